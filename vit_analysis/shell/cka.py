"""The command ``cka``: similarity of all pairs of layers."""

from pathlib import Path
from typing import Annotated

import tyro

from vit_analysis.typed import Choice, Machine, Measure, Pictures, Selection, single


def main(
    models: tuple[str, ...] = ("lab/vit", "lab/resnet"),
    /,
    *,
    images: Choice = Choice(),  # noqa: B008  (frozen)
    layers: tuple[str, ...] = ("paper",),
    tokens: Selection = "all",
    by: Annotated[Measure, tyro.conf.arg(name="measure")] = "cka",
    out: Path = Path("figures/cka"),
    pictures: Annotated[Pictures, tyro.conf.arg(name="")] = Pictures(),  # noqa: B008  (frozen)
    machine: Annotated[Machine, tyro.conf.arg(name="")] = Machine(),  # noqa: B008  (frozen)
) -> None:
    """CKA of all pairs of layers of some models (figures 1, 2 and B.1 of Raghu et al. 2021).

    Args:
        models: NAME[@WEIGHTS] ...; NAME is lab/... or a timm name, WEIGHTS a checkpoint file or "random".
        images: which images to run the models on.
        layers: paper, blocks, or glob patterns over module paths such as 'blocks.*.attn'.
        tokens: which values of a layer of tokens are compared.
        by: the measure of similarity: cka is the paper's, the others show what rests on that choice.
        out: path of the results without ending; .parquet and .png, or what --format says, are added.
        pictures: how pictures are written.
        machine: where models run, and how precisely.
    """
    from vit_analysis import cka, command, plot
    from vit_analysis.shell import told

    command.ready(out, "_robustness", pictures=pictures)
    loaded = command.loaded(models, machine, pictures)
    table = cka.measure(loaded, images, layers=single(layers), tokens=tokens, measure=by, state=out)
    command.write(table, out)
    command.draw(table, out, plot.cka, pictures)
    found = told.cka(table)
    if tokens == "all" and by == "cka" and cka.dominated(table):
        beside = command.beside(out, "_robustness")
        robust = cka.robustness(loaded, images, layers=single(layers), state=beside)
        command.write(robust, beside)
        found += told.robustness(robust)
    command.tell(found)
