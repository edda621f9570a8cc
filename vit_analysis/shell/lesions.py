"""The command ``lesions``: what a model does without the skip connections of one block."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from vit_analysis.typed import Choice, Machine, Pictures

logger = logging.getLogger(__name__)


def main(
    models: tuple[str, ...] = ("lab/vit", "lab/resnet"),
    /,
    *,
    images: Choice = Choice(),  # noqa: B008  (frozen)
    trained: tuple[str, ...] | None = None,
    out: Path = Path("figures/lesions"),
    pictures: Annotated[Pictures, tyro.conf.arg(name="")] = Pictures(),  # noqa: B008  (frozen)
    machine: Annotated[Machine, tyro.conf.arg(name="")] = Machine(),  # noqa: B008  (frozen)
) -> None:
    """Measure what happens without the skip connections of a block (figure 8 of Raghu et al. 2021).

    Args:
        models: NAME[@WEIGHTS] ...; NAME is lab/... or a timm name, WEIGHTS a checkpoint file or "random".
        images: which images to run the models on.
        trained: models trained without the skip connections of one block, each compared with the first model; where that is
            lab/vit, by default the lab's.
        out: path of the results without ending; .parquet and .png, or what --format says, are added. Those of models trained
            without skip connections get _trained in the name.
        pictures: how pictures are written.
        machine: where models run, and how precisely.
    """
    from vit_analysis import command, lesions, plot
    from vit_analysis.models import load_all
    from vit_analysis.shell import told

    command.ready(out, "_trained", pictures=pictures)
    loaded = load_all(models, device=machine.device, precision=machine.precision)
    others = load_all(_trained(models[0], trained), device=machine.device, precision=machine.precision)
    command.named_in(pictures, [*loaded, *others])
    removed = lesions.measure(loaded, images, state=out)
    command.write(removed, out)
    command.draw(removed, out, plot.lesions, pictures)
    found = told.lesions(removed)
    if others:
        beside = command.beside(out, "_trained")
        table = lesions.trained_without_skips(loaded[0], others, images, state=beside)
        command.write(table, beside)
        command.draw(table, beside, plot.lesions, pictures)
        found += told.lesions_trained(table)
    command.tell(found)


def _trained(intact: str, names: Sequence[str] | None) -> list[str]:
    """The models that are named; by default, for lab/vit, those of the lab whose weights exist."""
    from vit_analysis.lab import zoo
    from vit_analysis.lesions import TRAINED

    if names is not None or intact != "lab/vit":
        return list(names or ())
    missing = [name for name in TRAINED if not zoo.home(name).exists()]
    for name in missing:
        logger.warning(
            "no weights of %r yet, so it is left out; train it: python -m vit_analysis.train %s", name, name
        )
    return [name for name in TRAINED if name not in missing]
