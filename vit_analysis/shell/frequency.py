"""The command ``frequency``: how fine the feature maps of each layer are."""

from pathlib import Path
from typing import Annotated

import tyro

from vit_analysis.typed import Choice, Machine, Pictures, single


def main(
    models: tuple[str, ...] = ("lab/vit", "lab/resnet"),
    /,
    *,
    images: Choice = Choice(),  # noqa: B008  (frozen)
    layers: tuple[str, ...] = ("blocks",),
    out: Path = Path("figures/frequency"),
    pictures: Annotated[Pictures, tyro.conf.arg(name="")] = Pictures(),  # noqa: B008  (frozen)
    machine: Annotated[Machine, tyro.conf.arg(name="")] = Machine(),  # noqa: B008  (frozen)
) -> None:
    """Log amplitude of feature maps by frequency in each layer (beyond the paper).

    Args:
        models: NAME[@WEIGHTS] ...; NAME is lab/... or a timm name, WEIGHTS a checkpoint file or "random".
        images: which images to run the models on.
        layers: blocks, paper, or glob patterns over module paths such as 'blocks.*.attn'.
        out: path of the results without ending; .parquet and .png, or what --format says, are added.
        pictures: how pictures are written.
        machine: where models run, and how precisely.
    """
    from vit_analysis import command, frequency, plot
    from vit_analysis.shell import told

    command.ready(out, pictures=pictures)
    loaded = command.loaded(models, machine, pictures)
    table = frequency.measure(loaded, images, layers=single(layers), state=out)
    command.write(table, out)
    command.draw(table, out, plot.frequency, pictures)
    command.tell(told.frequency(table))
