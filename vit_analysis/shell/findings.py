"""The command ``findings``: the verdict on every claim."""

from pathlib import Path
from typing import Annotated

import tyro

from vit_analysis.study import parts as study
from vit_analysis.study.casts import Named
from vit_analysis.study.parts import Parts
from vit_analysis.typed import Choice


def main(
    *,
    cast: Annotated[Named, tyro.conf.arg(name="")] = Named(),  # noqa: B008  (frozen)
    parts: Annotated[Parts, tyro.conf.arg(name="")] = Parts(),  # noqa: B008  (frozen)
    images: Choice = study.IMAGES,
    train: Choice = study.TRAIN,
    labelled: Choice = study.SAME,
    note: str = "",
    out: Path = Path("runs/figures/findings"),
    machine: Annotated[Machine, tyro.conf.arg(name="")] = Machine(),  # noqa: B008  (frozen)
) -> None:
    """Measure which findings of Raghu et al. (2021) and of the course notes hold for some models; by default the lab's.

    Args:
        cast: which cast.
        parts: the models.
        images: the images that everything is measured on.
        train: the images that probes learn from.
        labelled: images with classes for probes and the soft nearest neighbour loss, in place of the others.
        note: a sentence on these models and images that readers have to know, without its full stop.
        out: path of the verdicts, to which .parquet, .md, .tex and .csv are added; tables are written beside.
        machine: where models run, and how precisely.
    """
    from vit_analysis import command, findings
    from vit_analysis.shell import verdicts
    from vit_analysis.study import announced, casts, passes

    own = casts.parts(cast.cast, parts)
    command.named(out, ".parquet", ".md")
    command.replacing(*findings.files(out), *passes.files(out.parent))
    announced.say(casts.named(cast.cast), announced.Asked(own, images, train), machine.device)
    made = passes.of(own, images, train, out.parent, labelled=labelled, machine=machine)
    found = findings.of(made, out, note)
    findings.write(found, out)
    command.tell(
        [*verdicts.table(found), *verdicts.differences(found), f"every claim: {command.beside(out, '.md')}"]
    )
