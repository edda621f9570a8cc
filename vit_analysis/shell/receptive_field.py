"""The command ``receptive_field``: how far a layer sees."""

from pathlib import Path
from typing import Annotated

import tyro

from vit_analysis.typed import Choice, Machine, Pictures, single


def main(
    models: tuple[str, ...] = ("lab/vit", "lab/resnet"),
    /,
    *,
    images: Choice = Choice(limit=32, batch=8),  # noqa: B008  (frozen)
    layers: tuple[str, ...] = ("paper",),
    channels: int | None = 32,
    out: Path = Path("figures/receptive_field"),
    pictures: Annotated[Pictures, tyro.conf.arg(name="")] = Pictures(),  # noqa: B008  (frozen)
    machine: Annotated[Machine, tyro.conf.arg(name="")] = Machine(),  # noqa: B008  (frozen)
) -> None:
    """Effective receptive fields (figures 6 and C.1-C.4 of Raghu et al. 2021).

    Args:
        models: NAME[@WEIGHTS] ...; NAME is lab/... or a timm name, WEIGHTS a checkpoint file or "random".
        images: which images to run the models on.
        layers: paper, blocks, or glob patterns over module paths such as 'blocks.*'; each costs a backward pass per channel.
        channels: how many channels of each layer are drawn at random for each image; None takes all.
        out: path of the results without ending; .parquet and .png, or what --format says, are added, and _maps before them
            for the fields.
        pictures: how pictures are written.
        machine: where models run, and how precisely.
    """
    from vit_analysis import command, plot, receptive_field
    from vit_analysis.shell import told

    command.ready(out, "_maps", pictures=pictures)
    loaded = command.loaded(models, machine, pictures)
    table, maps = receptive_field.with_maps(
        loaded, images, layers=single(layers), channels=channels, state=out
    )
    for result, ending, picture in (
        (table, "", plot.receptive_field),
        (maps, "_maps", plot.receptive_field_maps),
    ):
        command.write(result, command.beside(out, ending))
        command.draw(result, command.beside(out, ending), picture, pictures)
    command.tell(told.receptive_field(table))
