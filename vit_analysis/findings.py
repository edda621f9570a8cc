"""Verdicts: for every claim its number with an interval, its controls, and what follows from them.

A verdict speaks of these models on these images. Reproduced means that the 95 % interval lies beyond the threshold, not
reproduced that it lies on the other side, and a finding is fragile where a control under which it should hold reverses it.
p is two-sided, against the threshold, and adjusted for the number of claims measured (Holm).

    python -m vit_analysis.findings
    python -m vit_analysis.findings --vit vit_base_patch16_224 --cnn resnet50 --images.source ~/imagenet/val
"""

import json
import logging
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import tyro

from vit_analysis import command
from vit_analysis import table as tables
from vit_analysis.images import Images
from vit_analysis.spelling import Refusal
from vit_analysis.study import passes
from vit_analysis.study.claims import CLAIMS, DIFFERENCES, Claim, Difference
from vit_analysis.study.controls import Control
from vit_analysis.study.evidence import Evidence, Study, estimate
from vit_analysis.study.parts import Parts

logger = logging.getLogger(__name__)

OPPOSITE = {("reproduced", "not reproduced"), ("not reproduced", "reproduced")}


def measure(made: Study) -> pd.DataFrame:
    """Return the verdict on every claim.

    Returns:
        Columns id, figure, claim, paper, statistic, value, low, high, threshold, verdict (reproduced, not reproduced,
        inconclusive, not measured), fragile, controls (by name: value, low, high, verdict), models, difference (number in the
        notes, 0 for none), in_size (whether the effect is as large as the paper's words), p (Holm-adjusted), tau
        (the threshold as a number), reason (why it was not measured). One row per claim, those of the five differences first.
    """
    whole = Evidence(made)
    under = cache(lambda control: control.apply(whole))
    claims = sorted(CLAIMS, key=lambda claim: (claim.difference == 0, claim.difference))
    rows = [verdict(claim, whole, under) for claim in claims]
    found = pd.DataFrame(rows)
    found["p"] = holm(found["p"].to_numpy(dtype=float))
    origin = next(iter(made.tables.values())).attrs if made.tables else {}
    facts = {key: origin[key] for key in ("models", "images", "command") if key in origin}
    digests = {name: digest for own in made.tables.values() for name, digest in own.attrs["models"].items()}
    return tables.with_provenance(found, "findings", **facts | {"models": digests})


def differences(found: pd.DataFrame) -> list[Difference]:
    """The five differences of the course notes, each with the verdict that its claims add up to."""
    return [
        difference._replace(findings=tuple(own["id"]), verdict=together(list(own["verdict"])))
        for difference in DIFFERENCES
        for own in [found[found["difference"] == difference.number]]
    ]


def together(verdicts: list[str]) -> str:
    """The verdict that several claims on one difference add up to; those not measured do not count."""
    measured = [verdict for verdict in verdicts if verdict != "not measured"]
    if not measured:
        return "not measured"
    kinds = set(measured)
    if len(kinds) == 1:
        return measured[0]
    return "partly reproduced" if "reproduced" in kinds else "not reproduced"


def holm(p: np.ndarray) -> np.ndarray:
    """Adjust p-values for as many tests as there are numbers (Holm 1979); NaN stays NaN."""
    adjusted = np.full(len(p), np.nan)
    order = [place for place in np.argsort(p) if not math.isnan(p[place])]
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[place]))
        adjusted[place] = largest
    return adjusted


def verdict(claim: Claim, evidence: Evidence, under: Callable[[Control], Evidence | None]) -> dict[str, Any]:
    """The row of one claim; ``under`` gives the evidence under a control.

    Raises:
        Exception: any error of the code that computes the number, with the claim's id added.
    """
    row: dict[str, Any] = {
        **{name: getattr(claim, name) for name in ("id", "figure", "claim", "paper", "statistic")},
        **dict.fromkeys(("value", "low", "high"), math.nan),
        **{"threshold": str(claim.rule), "verdict": "not measured", "fragile": False, "controls": {}},
        **{"models": _models(claim, evidence), "difference": claim.difference, "in_size": False},
        **{"p": math.nan, "tau": claim.rule.threshold, "reason": ""},
    }
    try:
        found = estimate(claim.compute, claim.tables, evidence)
    except Refusal as needed:
        return row | {"reason": str(needed)}
    except Exception as fault:
        fault.add_note(f"in the number of claim {claim.id}")
        raise
    if math.isnan(found.value):
        return row | {"reason": "undefined here: layers that it needs are constant over images"}
    word = claim.rule.verdict(found.value, found.low, found.high)
    controls = {control: own for control in claim.controls if (own := _control(claim, control, under))}
    return row | {
        **{"value": found.value, "low": found.low, "high": found.high, "verdict": word},
        **{"in_size": bool(claim.rule.in_size(found.value)), "p": found.p(claim.rule.threshold)},
        **{"controls": {control.words: own for control, own in controls.items()}},
        "fragile": any(
            (word, own["verdict"]) in OPPOSITE for control, own in controls.items() if control.turning
        ),
    }


def _control(
    claim: Claim, control: Control, under: Callable[[Control], Evidence | None]
) -> dict[str, Any] | None:
    try:
        evidence = under(control)
        if evidence is None:
            return None
        found = estimate(claim.compute, claim.tables, evidence)
    except Refusal:
        return None
    except Exception as fault:
        fault.add_note(f"in the control {control.name!r} of claim {claim.id}")
        raise
    if math.isnan(found.value):
        return None
    verdict = claim.rule.verdict(found.value, found.low, found.high)
    return {"value": found.value, "low": found.low, "high": found.high, "verdict": verdict}


def _models(claim: Claim, evidence: Evidence) -> str:
    """Names of the models that the claim's tables hold, of those that play a part."""
    known = evidence.parts.names()
    held = {
        model for name in claim.tables if name in evidence.study.tables
        for model in evidence.study.tables[name].attrs["models"]
    }  # fmt: skip
    return ", ".join(name for name in known if name in held)


def markdown(found: pd.DataFrame) -> str:
    """The five differences, then every claim, as Markdown."""
    lines = ["# Findings", "", f"Of {', '.join(found.attrs.get('models', {}))}.", ""]
    counts = found["verdict"].value_counts()
    lines += [f"{'; '.join(f'{counts[verdict]} {verdict}' for verdict in counts.index)}.", ""]
    lines += ["## The five differences", ""]
    for difference in differences(found):
        own = found[found["id"].isin(difference.findings)]
        told = "; ".join(f"{row.id} {number(row)} {row.verdict}" for row in own.itertuples())
        lines += [f"{difference.number}. **{difference.title}**: {difference.verdict}. {told}.", ""]
    lines += ["## Every claim", ""]
    lines += [
        "| id | figure | claim | the paper | statistic | number | wanted | p (Holm) | verdict | controls |",
        "|---|---|---|---|---|--:|---|--:|---|---|",
    ]
    lines += [_line(row) for row in found.itertuples()]
    return "\n".join([*lines, ""])


def _line(row: Any) -> str:
    verdict = (
        f"**{row.verdict}**"
        + (", fragile" if row.fragile else "")
        + (", but smaller than the words" if row.verdict == "reproduced" and not row.in_size else "")
        + (f": {row.reason}" if row.reason else "")
    )
    controls = "; ".join(f"{name} {own['value']:.3g}" for name, own in row.controls.items())
    p = "" if math.isnan(row.p) else f"{row.p:.1g}"
    said = (row.id, row.figure, row.claim, row.paper, row.statistic)
    cells = (*said, number(row), row.threshold, p, verdict, controls)
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def number(row: Any) -> str:
    """The value and its interval, to three significant digits; empty where there is no value."""
    if math.isnan(row.value):
        return ""
    return f"{row.value:.3g}" + ("" if math.isnan(row.low) else f" [{row.low:.3g}, {row.high:.3g}]")


def write(found: pd.DataFrame, out: Path) -> None:
    """Write ``out``.parquet, controls as JSON, and ``out``.md."""
    command.write(found.assign(controls=found["controls"].map(json.dumps)), out)
    tables.write_whole(
        command.beside(out, ".md"), lambda part: part.write_text(markdown(found), encoding="utf-8")
    )


def read(path: Path) -> pd.DataFrame:
    """Read what `write` wrote."""
    found = tables.read(path)
    return found.assign(controls=found["controls"].map(json.loads))


def main(
    *,
    parts: Annotated[Parts, tyro.conf.arg(name="")] = Parts(),  # noqa: B008  (frozen)
    images: Images = passes.IMAGES,
    train: Images = passes.TRAIN,
    out: Path = Path("figures/findings"),
    device: str | None = None,
) -> None:
    """Measure which findings of Raghu et al. (2021) and of the course notes hold for some models; by default the lab's.

    Args:
        parts: the models.
        images: the images that everything is measured on.
        train: the images that probes learn from.
        out: path of the verdicts, to which .parquet and .md are added; the tables they are computed from are written beside.
        device: cpu, cuda ...; by default the GPU if there is one.
    """
    found = measure(passes.of(parts, images, train, out.parent, device=device))
    write(found, out)
    logger.info("%s", markdown(found).partition("## Every claim")[0].strip())
    logger.info("every claim: %s", command.beside(out, ".md"))


if __name__ == "__main__":
    command.run(main)
