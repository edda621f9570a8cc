"""Every figure of the paper for some models, what they say of its claims, and a report: one command.

    python -m vit_analysis.figures
    python -m vit_analysis.figures --only 1 2 9
    python -m vit_analysis.figures --vit vit_base_patch16_224 --cnn resnet50 --images.source ~/imagenet/val --train.source ...

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
from vit_analysis.spelling import Refusal, did_you_mean
from vit_analysis.study import report
from vit_analysis.study.drawings import DRAWINGS, Drawing
from vit_analysis.study.evidence import Evidence
from vit_analysis.study.report import Place
from vit_analysis.typed import Pictures

logger = logging.getLogger(__name__)

VERDICTS = plot.LAYOUTS["findings"]  # the pictures of what was found


def draw(
    evidence: Evidence,
    out: Path,
    chosen: Sequence[Drawing] = DRAWINGS,
    pictures: Pictures = Pictures(),  # noqa: B008  (frozen)
) -> dict[str, Path | str]:
    """Pictures as `OUT/figure_ID.png`, or of other formats; by id the path of the first, or what it would need."""
    drawn: dict[str, Path | str] = {}
    for drawing in chosen:
        try:
            paths = command.draw_all(
                partial(drawing.draw, evidence), _stem(out, drawing), pictures, _cast(evidence)
            )
        except Refusal as needed:
            drawn[drawing.id] = str(needed)
            logger.info("figure %s: %s", drawing.id, needed)
            continue
        except Exception as fault:
            fault.add_note(f"in figure {drawing.id}")
            raise
        drawn[drawing.id] = paths[0]
    return drawn


def _cast(evidence: Evidence) -> list[str]:
    """All models of a study, in the order by which each has one look in every picture."""
    return [*evidence.parts.runs(), *evidence.parts.twins()]


def _stem(out: Path, drawing: Drawing) -> Path:
    return out / f"figure_{drawing.id.replace(' ', '_')}"


def files(out: Path, chosen: Sequence[Drawing], pictures: Pictures, *, whole: bool) -> list[Path]:
    """The files that are written beside the tables: pictures, and where all is drawn verdicts and the report."""
    stems = [*(_stem(out, drawing) for drawing in chosen), *(out / name for name in VERDICTS if whole)]
    drawn = [command.beside(stem, ending) for stem in stems for ending in pictures.endings]
    return [*drawn, *([*findings.files(out / "findings"), out / "report.html"] if whole else [])]


def choose(only: Sequence[str]) -> list[Drawing]:
    """The drawings of these figures; all of them where none is named. 8 is also 8 lesions, and 13 is 13a and 13b.

    Raises:
        Refusal: there is no such figure; with the nearest.
    """
    chosen: dict[str, Drawing] = {}
    for name in only:
        found = [
            drawing
            for drawing in DRAWINGS
            if name in (drawing.id, drawing.id.split()[0], drawing.id.rstrip("ab"))
        ]
        if not found:
            raise Refusal(f"no figure {name!r}; {did_you_mean(name, [drawing.id for drawing in DRAWINGS])}")
        chosen |= {drawing.id: drawing for drawing in found}
    return list(chosen.values()) if only else list(DRAWINGS)


def places(evidence: Evidence, drawn: dict[str, Path | str], found: pd.DataFrame, line: str) -> list[Place]:
    """Every figure's place in the report."""
    made = []
    for drawing in DRAWINGS:
        picture = drawn[drawing.id]
        there = isinstance(picture, Path)
        made.append(
            Place(
                id=drawing.id,
                title=drawing.title,
                claim=drawing.claim,
                shows=_shows(drawing, found) if there else "",
                picture=picture if isinstance(picture, Path) else None,
                alternative=drawing.alternative,
                missing="" if isinstance(picture, Path) else f"This figure: {picture}.",
                command=f"{line} --only {drawing.id.split()[0]}" if there else "",
                heatmaps=_heatmaps(drawing, evidence) if there else (),
            )
        )
    return made


def _shows(drawing: Drawing, found: pd.DataFrame) -> str:
    """The numbers of the claims that the figure is about, in words."""
    told = [
        f"{row.statistic}: {str(row.reason) or findings.in_digits(row)}, {row.verdict}"
        for row in found[found["figure"] == drawing.id].itertuples()
    ]
    return f"{'; '.join(told)}." if told else "See the picture."


def _heatmaps(drawing: Drawing, evidence: Evidence) -> list[tuple[str, pd.DataFrame]]:
    if drawing.panels is None:
        return []
    cka = evidence.table("cka")
    return [
        (
            model if model == other else f"{model} and {other}",
            cka[(cka["model"] == model) & (cka["other_model"] == other)],
        )
        for model, other in drawing.panels(evidence)
    ]


def judge(
    evidence: Evidence, out: Path, drawn: dict[str, Path | str], note: str, pictures: Pictures
) -> pd.DataFrame:
    """Write the verdicts of a study, their picture, and the report; return the verdicts."""
    found = findings.measure(evidence.study, note)
    if processes.rank_and_size()[0]:
        return found
    findings.write(found, out / "findings")
    for name, picture in VERDICTS.items():
        command.draw_all(partial(picture, found), out / name, pictures, _cast(evidence))
    facts: dict[str, Any] = {
        "command": command.line(),
        **{key: found.attrs.get(key) for key in ("notes", "models", "images")},
    }
    facts |= {"versions": table.versions()}
    line = f"{command.line().partition(' --only')[0]}"
    command.make_room(out / "report.html")
    report.write(
        out / "report.html",
        places(evidence, drawn, found, line),
        found,
        findings.differences(found),
        facts,
    )
    logger.info("wrote %s", out / "report.html")
    return found


def needed(chosen: Sequence[Drawing]) -> set[str]:
    """Names of the tables that these figures are drawn from."""
    return {name for drawing in chosen for name in drawing.tables}
