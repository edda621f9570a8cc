"""Every analysis on a few tiny batches of untrained models: run by itself, or by torchrun, for test_processes.py."""

from pathlib import Path

import pandas as pd

from vit_analysis import (
    attention_distance,
    cka,
    command,
    lesions,
    localization,
    models,
    probe,
    receptive_field,
    skip,
    soft_nearest_neighbor,
)
from vit_analysis.images import Images
from vit_analysis.probe import Shots
from vit_analysis.study import passes


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    vit, cnn = models.load("lab/vit@random"), models.load("lab/resnet@random")
    images, both = Images(limit=34, batch=8), [vit, cnn]  # the last batch is too small for HSIC
    one_counts = Images(limit=10, batch=8)
    found = {
        "cka": cka.compare(both, images, layers="blocks"),
        "cka, one process has nothing": cka.compare([vit], one_counts, layers="blocks"),
        "attention_distance": attention_distance.distances([vit], images),
        "head_subsets": attention_distance.head_subsets(vit, cnn, images),
        "skip": skip.norm_ratios(both, images),
        "lesions": lesions.lesions([cnn], images),
        "localization": localization.compare([vit], images),
        "probe": probe.compare(both, images, Shots(Images(limit=400, batch=50, seed=1), 2, 2)),
        "soft_nearest_neighbor": soft_nearest_neighbor.compare(both, Images(limit=400, batch=64)),
    }
    fields = Images(limit=6, batch=2)
    found["receptive_field"], found["receptive_field_maps"] = receptive_field.with_maps(
        both, fields, layers="blocks", channels=2
    )
    cast = passes.Cast.load(passes.Parts(vit=("lab/vit@random",), cnn=("lab/resnet@random",)))
    wanted = ["cka", "skip", "soft_nearest_neighbor"]
    found |= {
        f"study's {name}": own
        for name, own in passes.run(
            cast, Images(limit=400, batch=100), passes.TRAIN, folder / "study", wanted
        ).tables.items()
    }
    return found


def main(folder: Path) -> None:
    """Write them, as one process or as many.

    Args:
        folder: where to.
    """
    for name, own in tables(folder).items():
        command.write(own, folder / name)


if __name__ == "__main__":
    command.run(main)
