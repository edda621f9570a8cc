"""Every figure of the paper for some models, what they say of its claims, and a report: one command.

    python -m vit_analysis.figures
    python -m vit_analysis.figures --only 1 2 9
    python -m vit_analysis.figures --vit vit_base_patch16_224 --cnn resnet50 --images.source ~/imagenet/val --train.source ...

Tables are measured in as few passes as can be (`study`) and lie beside the pictures; a second run draws from them. What is
there already is replaced if an earlier run made it, put aside if a command of a single analysis did, and refused otherwise.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from vit_analysis import command, findings, plot, table
from vit_analysis.images import Images
from vit_analysis.reading import processes
from vit_analysis.spelling import Refusal, did_you_mean
from vit_analysis.study import passes, report
from vit_analysis.study.drawings import DRAWINGS, Drawing
from vit_analysis.study.evidence import Evidence
from vit_analysis.study.parts import Parts
from vit_analysis.study.report import places

logger = logging.getLogger(__name__)


def draw(evidence: Evidence, out: Path, chosen: Sequence[Drawing] = DRAWINGS) -> dict[str, Path | str]:
    """Pictures as `OUT/figure_ID.png`; by id its path, or what it would need."""
    drawn: dict[str, Path | str] = {}
    for drawing in chosen:
        path = _picture(out, drawing)
        try:
            figure = drawing.draw(evidence)
            command.save(figure, path)
        except Refusal as needed:
            drawn[drawing.id] = str(needed)
            logger.info("figure %s: %s", drawing.id, needed)
            continue
        except Exception as fault:
            fault.add_note(f"in figure {drawing.id}")
            raise
        drawn[drawing.id] = path
    return drawn


def _picture(out: Path, drawing: Drawing) -> Path:
    return out / f"figure_{drawing.id.replace(' ', '_')}.png"


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


def _needed(chosen: Sequence[Drawing]) -> set[str]:
    return {name for drawing in chosen for name in drawing.tables}


def main(
    *,
    parts: Annotated[Parts, tyro.conf.arg(name="")] = Parts(),  # noqa: B008  (frozen)
    only: tuple[str, ...] = (),
    images: Images = passes.IMAGES,
    train: Images = passes.TRAIN,
    labelled: Images = passes.SAME,
    note: str = "",
    out: Path = Path("figures"),
    device: str | None = None,
) -> None:
    """The figures of Raghu et al. (2021) for some models, with verdicts and a report; by default of the lab's.

    Args:
        parts: which models.
        only: numbers of figures, such as 1 9 B.1; then no verdicts and no report are written.
        images: which images all is measured on.
        train: which images probes learn from.
        labelled: images with classes for probes and the soft nearest neighbour loss, in place of the others.
        note: a sentence on these models and images that readers have to know, without its full stop.
        out: folder of pictures, tables, findings.md and report.html.
        device: cpu, cuda ...; the GPU if there is one.
    """
    chosen = choose(only)
    wanted = _needed(chosen) if only else None
    more = () if only else ("verdicts.png", "findings.parquet", "findings.md", "report.html")
    command.replacing(
        *(_picture(out, drawing) for drawing in chosen),
        *passes.files(out, wanted),
        *(out / name for name in more),
    )
    made = passes.of(parts, images, train, out, labelled=labelled, wanted=wanted, device=device)
    evidence = Evidence(made)
    drawn = draw(evidence, out, chosen)
    if only or processes.rank_and_size()[0]:
        return
    found = findings.measure(made, note)
    findings.write(found, out / "findings")
    command.save(plot.verdicts(found), out / "verdicts.png")
    facts: dict[str, Any] = {
        "command": command.line(),
        **{key: found.attrs.get(key) for key in ("notes", "models", "images")},
    }
    facts |= {"versions": table.versions()}
    line = f"{command.line().partition(' --only')[0]}"
    command.make_room(out / "report.html")
    report.write(
        out / "report.html", places(evidence, drawn, found, line), found, findings.differences(found), facts
    )
    logger.info("wrote %s and %s", out / "findings.md", out / "report.html")


if __name__ == "__main__":
    command.run(main)
