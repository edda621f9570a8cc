"""The command ``attention_distance``: how far each head looks."""

from pathlib import Path
from typing import Annotated

import tyro

from vit_analysis.spelling import Refusal
from vit_analysis.typed import Choice, Machine, Pictures


def main(
    models: tuple[str, ...] = ("lab/vit", "lab/resnet"),
    /,
    *,
    images: Choice = Choice(),  # noqa: B008  (frozen)
    blocks: tuple[int, ...] = (),
    out: Path = Path("figures/attention_distance"),
    pictures: Annotated[Pictures, tyro.conf.arg(name="")] = Pictures(),  # noqa: B008  (frozen)
    machine: Annotated[Machine, tyro.conf.arg(name="")] = Machine(),  # noqa: B008  (frozen)
) -> None:
    """Measure how far attention heads look (figures 3, 4, C.5 and C.6 of Raghu et al. 2021); with CNNs, figure 5 too.

    Entropy and normalised mutual information of every head (Park et al. 2023) are in the same table; their picture gets
    _spread in the name.

    Args:
        models: NAME[@WEIGHTS] ...; NAME is lab/... or a timm name, WEIGHTS a checkpoint file or "random". Models
            without attention are the CNNs of figure 5, whose results get _heads in the name.
        images: which images to run the models on.
        blocks: numbers of blocks, negative ones from the last; all of them by default.
        out: path of the results without ending; .parquet and .png, or what --format says, are added.
        pictures: how pictures are written.
        machine: where models run, and how precisely.
    """
    from vit_analysis import attention_distance, command, layers, plot
    from vit_analysis.shell import told

    command.ready(out, "_spread", "_heads", pictures=pictures)
    loaded = command.loaded(models, machine, pictures)
    vits = [model for model in loaded if layers.attentions(model)]
    if not vits:
        raise Refusal(f"no attention in {', '.join(models)}; name a Vision Transformer")
    table = attention_distance.measure(vits, images, blocks=blocks or None, state=out)
    command.write(table, out)
    command.draw(table, out, plot.attention_distance, pictures)
    command.draw(table, command.beside(out, "_spread"), plot.attention_spread, pictures)
    found = told.attention_distance(table)
    cnns = [model for model in loaded if model not in vits]
    if cnns:
        beside = command.beside(out, "_heads")
        subsets = attention_distance.all_subsets(vits, cnns, images, state=beside)
        command.write(subsets, beside)
        command.draw(subsets, beside, plot.head_subsets, pictures)
        found += told.head_subsets(subsets)
    command.tell(found)
