"""Every analysis on a few tiny batches of untrained models: run by itself, or by torchrun, for test_processes.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd

from vit_analysis import attention_distance, cka, command, models, receptive_field, soft_nearest_neighbor
from vit_analysis.images import Images
from vit_analysis.models import Model
from vit_analysis.probe import Shots
from vit_analysis.shell import running
from vit_analysis.shell.analyses import ANALYSES
from vit_analysis.study import loaded, passes
from vit_analysis.study.parts import Parts

IMAGES = Images(limit=34, batch=8)  # the last batch is too small for HSIC
ONE_COUNTS = Images(limit=10, batch=8)
FIELDS = Images(limit=6, batch=2)
CLASSES = Images(limit=400, batch=64)


def chosen(vit: Model, cnn: Model) -> Mapping[str, Mapping[str, Any]]:
    """What an analysis is given instead of both models and `IMAGES`, where it would refuse them or take long."""
    return {
        "cka": {"layers": "blocks"},
        "attention_distance": {"models": vit},
        "receptive_field": {"images": FIELDS, "layers": "blocks", "channels": 2},
        "lesions": {"models": cnn},
        "localization": {"models": vit},
        "probe": {"shots": Shots(Images(limit=400, batch=50, seed=1), 2, 2)},
        "soft_nearest_neighbor": {"images": CLASSES},
    }


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    vit, cnn = models.load("lab/vit@random"), models.load("lab/resnet@random")
    own = chosen(vit, cnn)
    found = {
        one.name: one.module.measure(**{"models": [vit, cnn], "images": IMAGES} | own.get(one.name, {}))
        for one in ANALYSES
    }
    found["cka, one process has nothing"] = cka.measure(vit, ONE_COUNTS, layers="blocks")
    found["head_subsets"] = attention_distance.head_subsets(vit, cnn, IMAGES)
    _, found["receptive_field_maps"] = receptive_field.with_maps([vit, cnn], **own["receptive_field"])
    cast = loaded.Cast.load(Parts(vit=("lab/vit@random",), cnn=("lab/resnet@random",)))
    wanted = ["cka", "skip", "soft_nearest_neighbor"]
    with patch.object(soft_nearest_neighbor, "MATES", 2):
        study = passes.run(cast, Images(limit=80, batch=20), passes.TRAIN, folder / "study", wanted)
    return found | {f"study's {name}": table for name, table in study.tables.items()}


def main(folder: Path) -> None:
    """Write them, as one process or as many.

    Args:
        folder: where to.
    """
    for name, own in tables(folder).items():
        command.write(own, folder / name)


if __name__ == "__main__":
    running.run(main)
