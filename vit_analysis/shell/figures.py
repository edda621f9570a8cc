"""The command ``figures``: every figure of the paper, verdicts and a report."""

from pathlib import Path
from typing import Annotated

import tyro

from vit_analysis.study import parts as study
from vit_analysis.study.casts import Named
from vit_analysis.study.parts import Parts
from vit_analysis.typed import Choice, Machine, Pictures


def main(
    *,
    cast: Annotated[Named, tyro.conf.arg(name="")] = Named(),  # noqa: B008  (frozen)
    parts: Annotated[Parts, tyro.conf.arg(name="")] = Parts(),  # noqa: B008  (frozen)
    only: tuple[str, ...] = (),
    images: Choice = study.IMAGES,
    train: Choice = study.TRAIN,
    labelled: Choice = study.SAME,
    note: str = "",
    out: Path = Path("runs/figures"),
    pictures: Annotated[Pictures, tyro.conf.arg(name="")] = Pictures(),  # noqa: B008  (frozen)
    machine: Annotated[Machine, tyro.conf.arg(name="")] = Machine(),  # noqa: B008  (frozen)
) -> None:
    """The figures of Raghu et al. (2021) for some models, with verdicts and a report; by default of the lab's.

    Args:
        cast: which cast.
        parts: which models.
        only: numbers of figures, such as 1 9 B.1; then no verdicts and no report are written.
        images: which images all is measured on.
        train: which images probes learn from.
        labelled: images with classes for probes and the soft nearest neighbour loss, in place of the others.
        note: a sentence on these models and images that readers have to know, without its full stop.
        out: folder of pictures, tables, findings.md and report.html.
        pictures: how pictures are written.
        machine: where models run, and how precisely.
    """
    from vit_analysis import command, figures, models
    from vit_analysis.shell import verdicts
    from vit_analysis.study import announced, casts, needs, passes
    from vit_analysis.study.evidence import Evidence

    own = casts.parts(cast.cast, parts)
    chosen = figures.choose(only)
    wanted = figures.needed(chosen) if only else None
    pictures = pictures if only else pictures.and_png()  # which the report shows
    command.replacing(*figures.files(out, chosen, pictures, whole=not only), *passes.files(out, wanted))
    few = needs.of(chosen, own) if only else needs.Needed(own, twins=True)
    announced.say(casts.named(cast.cast), announced.Asked(few.parts, images, train, wanted), machine.device)
    made = passes.of(
        *(few.parts, images, train, out), labelled=labelled, wanted=wanted, twins=few.twins, machine=machine
    )
    evidence = Evidence(made)
    names = dict(zip(own.runs(), models.called(own.runs()), strict=True))
    drawn = figures.draw(evidence, out, chosen, pictures, figures.everyone(own.change(names.get)))
    if only:
        command.tell(verdicts.drawn(drawn))
    else:
        found = figures.judge(evidence, out, drawn, note, pictures)
        command.tell([*verdicts.differences(found), *verdicts.drawn(drawn), f"open {out / 'report.html'}"])
