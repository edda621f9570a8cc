"""Every figure of the paper for some models, what they say of its claims, and a report: one command.

    python -m vit_analysis.figures
    python -m vit_analysis.figures --only 1 2 9
    python -m vit_analysis.figures --cast paper --images.source ~/imagenet/val --train.source ~/imagenet/train
    python -m vit_analysis.figures --vit vit_base_patch16_224 --cnn resnet50 --images.source ~/imagenet/val --train.source ...

A cast names a model for every part (`study.casts`): ``paper`` the public checkpoints that are nearest to the paper's,
``small`` a pair for a laptop, ``lab`` the networks that come with this program. What it substitutes, how much it downloads and
about how long it takes is said before it starts. Parts that are named as well take the place of the cast's.

Tables are measured in as few passes as can be (`study`) and lie beside the pictures; a second run draws from them. What is
there already is replaced if an earlier run made it, put aside if a command of a single analysis did, and refused otherwise.
"""

if __name__ == "__main__":  # before anything heavy is imported
    from vit_analysis.shell import running

    running.begin("figures")


import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from vit_analysis import command, findings, plot, table
from vit_analysis.reading import processes
from vit_analysis.spelling import Refusal
from vit_analysis.study import report
from vit_analysis.study.drawings import DRAWINGS, Drawing
from vit_analysis.study.evidence import Evidence
from vit_analysis.study.parts import Parts
from vit_analysis.study.report import EMBEDDED, places
from vit_analysis.typed import Pictures

logger = logging.getLogger(__name__)

# Controls and experiments that a figure is drawn beside, of models of their own.
OURS = ("untrained", "local", "flat")
VERDICTS = plot.LAYOUTS["findings"]  # the pictures of what was found


def draw(
    evidence: Evidence,
    out: Path,
    chosen: Sequence[Drawing] = DRAWINGS,
    pictures: Pictures = Pictures(),  # noqa: B008  (frozen)
    cast: Sequence[str] = (),
) -> dict[str, Path | str]:
    """Pictures as `OUT/figure_ID.png`, or of other formats; by id the path of the first, or what it would need."""
    drawn: dict[str, Path | str] = {}
    for drawing in chosen:
        try:
            paths = command.draw_all(
                partial(drawing.draw, evidence),
                _stem(out, drawing),
                pictures,
                cast or everyone(evidence.parts),
                evidence.study.made_of(drawing.id),
            )
        except Refusal as needed:
            drawn[drawing.id] = str(needed)
            logger.info("figure %s: %s", drawing.id, needed)
            continue
        except Exception as fault:
            fault.add_note(f"in figure {drawing.id}")
            raise
        drawn[drawing.id] = min(
            paths, key=lambda path: path.suffix not in EMBEDDED
        )  # the report's, if it can hold one
    return drawn


def everyone(parts: Parts) -> list[str]:
    """All models of a study, in the order by which each has one look in every picture."""
    return [*parts.runs(), *parts.twins()]


def _stem(out: Path, drawing: Drawing) -> Path:
    return out / f"figure_{drawing.id.replace(' ', '_')}"


def files(out: Path, chosen: Sequence[Drawing], pictures: Pictures, *, whole: bool) -> list[Path]:
    """The files that are written beside the tables: pictures, and where all is drawn verdicts and the report."""
    stems = [*(_stem(out, drawing) for drawing in chosen), *(out / name for name in VERDICTS if whole)]
    drawn = [command.beside(stem, ending) for stem in stems for ending in pictures.endings]
    return [*drawn, *([*findings.files(out / "findings"), out / "report.html"] if whole else [])]


def choose(only: Sequence[str]) -> list[Drawing]:
    """The drawings of these figures; all of them where none is named. 8 is also 8 lesions, and 13 is 13a and 13b.

    A control or an experiment of ours, of other models than the figure, is drawn if it is asked for by its whole name.

    Raises:
        Refusal: there is no such figure; it names all.
    """
    chosen: dict[str, Drawing] = {}
    for name in only:
        found = [
            drawing for drawing in DRAWINGS if name in (drawing.id, _number(drawing), drawing.id.rstrip("ab"))
        ]
        if not found:
            there = ", ".join(repr(drawing.id) if " " in drawing.id else drawing.id for drawing in DRAWINGS)
            raise Refusal(f"no figure {name!r}; there are {there}")
        chosen |= {drawing.id: drawing for drawing in found}
    return list(chosen.values()) if only else list(DRAWINGS)


def _number(drawing: Drawing) -> str:
    """The number of a figure, by which all drawings of it are asked for."""
    number, _, what = drawing.id.partition(" ")
    return drawing.id if what in OURS else number


def judge(
    evidence: Evidence, out: Path, drawn: dict[str, Path | str], note: str, pictures: Pictures
) -> pd.DataFrame:
    """Write the verdicts of a study, their picture, and the report; return the verdicts."""
    found = findings.of(evidence.study, out / "findings", note)
    if processes.rank_and_size()[0]:
        return found
    findings.write(found, out / "findings")
    for name, picture in VERDICTS.items():
        made_of = evidence.study.made_of(name, note)
        command.draw_all(partial(picture, found), out / name, pictures, everyone(evidence.parts), made_of)
    page = out / "report.html"
    made_of = evidence.study.made_of("report", note, command.line(), repr(pictures))
    if table.is_stamped(page, made_of):
        logger.info("kept %s", page)
        return found
    facts: dict[str, Any] = {
        "command": command.line(),
        **{key: found.attrs.get(key) for key in ("notes", "models", "images")},
    }
    facts |= {"versions": table.versions(), "made of": made_of or "tables without a key"}
    line = f"{command.line().partition(' --only')[0]}"
    command.make_room(page)
    with plot.style(pictures.called):
        shown = places(evidence, drawn, found, line)
    report.write(page, shown, found, findings.differences(found), facts, pictures.called)
    logger.info("wrote %s", page)
    return found


def needed(chosen: Sequence[Drawing]) -> set[str]:
    """Names of the tables that these figures are drawn from."""
    return {name for drawing in chosen for name in drawing.tables}
