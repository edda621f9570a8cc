"""The command ``localization``: where in the image a token's representation comes from."""

from pathlib import Path
from typing import Annotated

import tyro

from vit_analysis.typed import Choice, Machine, Pictures, Scaling, single


def main(
    models: tuple[str, ...] = ("lab/vit", "lab/resnet"),
    /,
    *,
    images: Choice = Choice(),  # noqa: B008  (frozen)
    layers: tuple[str, ...] = ("last",),
    tokens: Scaling = "all",
    out: Path = Path("figures/localization"),
    pictures: Annotated[Pictures, tyro.conf.arg(name="")] = Pictures(),  # noqa: B008  (frozen)
    machine: Annotated[Machine, tyro.conf.arg(name="")] = Machine(),  # noqa: B008  (frozen)
) -> None:
    """CKA of tokens with patches of the image (figures 9, 10 and D.1-D.3 of Raghu et al. 2021).

    Args:
        models: NAME[@WEIGHTS] ...; NAME is lab/... or a timm name, WEIGHTS a checkpoint file or "random".
        images: which images to run the models on.
        layers: last, penultimate, blocks, or glob patterns over module paths such as 'blocks.*'.
        tokens: all, or normalized: each scaled to norm 1.
        out: path of the results without ending; .parquet and .png, or what --format says, are added.
        pictures: how pictures are written.
        machine: where models run, and how precisely.
    """
    from vit_analysis import command, localization, plot
    from vit_analysis.shell import told

    command.ready(out, pictures=pictures)
    loaded = command.loaded(models, machine, pictures)
    table = localization.measure(loaded, images, layers=single(layers), tokens=tokens, state=out)
    command.write(table, out)
    command.draw(table, out, plot.localization, pictures)
    command.tell(told.localization(localization.summary(table)))
