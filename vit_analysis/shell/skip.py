"""The command ``skip``: how much skip connections carry."""

from pathlib import Path
from typing import Annotated

import tyro

from vit_analysis.typed import Choice, Machine, Pictures


def main(
    models: tuple[str, ...] = ("lab/vit", "lab/resnet"),
    /,
    *,
    images: Choice = Choice(),  # noqa: B008  (frozen)
    first: int = 9,
    out: Path = Path("figures/skip"),
    pictures: Annotated[Pictures, tyro.conf.arg(name="")] = Pictures(),  # noqa: B008  (frozen)
    machine: Annotated[Machine, tyro.conf.arg(name="")] = Machine(),  # noqa: B008  (frozen)
) -> None:
    """Norm ratios and cosines of skip connections (figures 7, E.1 and E.2 of Raghu et al. 2021).

    Args:
        models: NAME[@WEIGHTS] ...; NAME is lab/... or a timm name, WEIGHTS a checkpoint file or "random".
        images: which images to run the models on.
        first: how many tokens of a Vision Transformer are shown one by one.
        out: path of the results without ending; .parquet and .png, or what --format says, are added.
        pictures: how pictures are written.
        machine: where models run, and how precisely.
    """
    from vit_analysis import command, plot, skip
    from vit_analysis.shell import told

    command.ready(out, pictures=pictures)
    table = skip.measure(command.loaded(models, machine, pictures), images, first=first, state=out)
    command.write(table, out)
    command.draw(table, out, plot.skip, pictures)
    command.tell(told.skip(table))
