"""Verdicts: every claim of the registry as a number with its interval, controls, and what follows from them.

A verdict speaks of these models on these images. What each word means, and which of them a number gets, is in `study.rules`.
p is two-sided, against the threshold, and adjusted for the number of claims measured (Holm).

    python -m vit_analysis.findings
    python -m vit_analysis.findings --vit vit_base_patch16_224 --cnn resnet50 --images.source ~/imagenet/val
"""

if __name__ == "__main__":  # before anything heavy is imported
    from vit_analysis.shell import running

    running.begin("findings")


import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from vit_analysis import command
from vit_analysis import table as tables
from vit_analysis.reading import processes
from vit_analysis.spelling import Refusal
from vit_analysis.study import casts, rules, written
from vit_analysis.study.claims import CLAIMS, Claim
from vit_analysis.study.controls import BLOCKS, OF_BLOCKS, UNTRAINED, Control
from vit_analysis.study.differences import DIFFERENCES, Difference
from vit_analysis.study.estimates import Estimate, further
from vit_analysis.study.evidence import Evidence, Study
from vit_analysis.study.written import in_digits as in_digits  # here too, as before

logger = logging.getLogger(__name__)

ENOUGH = 5  # groups of images: a t quantile of 4.3 with three of them makes every interval wide


class Found(NamedTuple):
    """A claim and all that was measured of it.

    Attributes:
        claim: the claim.
        estimate: its number; None where it could not be measured.
        reason: why not.
        controls: the same number under each control for which there is something.
        further: the same number in each further training run.
    """

    claim: Claim
    estimate: Estimate | None
    reason: str = ""
    controls: Mapping[Control, Estimate] = {}
    further: Sequence[Estimate] = ()


def measure(made: Study, note: str = "") -> pd.DataFrame:
    """Return the verdict on every claim.

    Args:
        made: the study.
        note: what readers have to know of these models and images; it stands above the findings.

    Returns:
        Columns id, figure, claim, paper, statistic, value, low, high, threshold, threshold_from, verdict (one of
        `rules.WORDS`), because (what turned it, or why it is not what the interval says), controls (by their words: value,
        low, high, verdict), runs (the number in every training run; empty where there is one), models, difference (number in
        the notes, 0 for none), in_size (whether it is as large as the paper's words in every run), p (Holm-adjusted), tau (the
        threshold as a number), reason (why it was not measured).
        Beside the paper: paper_low, paper_high, paper_unit, paper_of (the number that the paper, or whoever makes the claim,
        prints, from and to; what it counts; who says it, of which models; NaN and empty where none is printed), here (the same
        number of these models, without an interval; the value itself where that is what is printed; NaN where it could not be
        measured), substitution (where a model is of a cast, `study.casts`: one of `casts.MEANINGS`, and whom the models stand
        for; else empty).
        One row per claim, those of the five differences first.
    """
    whole = Evidence(made)
    under = cache(lambda control: control.apply(whole))
    claims = sorted(CLAIMS, key=lambda claim: (claim.difference == 0, claim.difference))
    numbers, used, lacking = [], [], []
    played = [part.name for part in fields(made.parts) if made.parts.names(part.name)]
    absent = casts.absent(whole.parts.names(), played)
    for claim in claims:
        whole.asked.clear()
        whole.used.clear()
        numbers.append(number(claim, whole, under))
        used.append([name for name in whole.parts.names() if name in whole.used])
        lacking.append([why for part, why in absent.items() if part in whole.asked])
    found = judged(numbers)
    found["models"] = [", ".join(_held(claim, whole, own)) for claim, own in zip(claims, used, strict=True)]
    found["here"] = [_here(one, whole) for one in numbers]
    found["substitution"] = [
        casts.substitution(own, why, of_training=claim.of_training)
        for claim, own, why in zip(claims, used, lacking, strict=True)
    ]
    origin = next(iter(made.tables.values())).attrs if made.tables else {}
    facts: dict[str, Any] = {key: origin[key] for key in ("models", "images", "command") if key in origin}
    digests = {name: digest for own in made.tables.values() for name, digest in own.attrs["models"].items()}
    own = {part.name: [list(runs) for runs in made.parts.members(part.name)] for part in fields(made.parts)}
    facts |= {
        "parts": own,
        "models": digests,
        "notes": [note for note in (note, few_groups(made), *weak_twins(whole)) if note],
    }
    facts["differences"] = {str(one.number): one.verdict for one in differences(found)}
    return tables.with_provenance(found, "findings", **facts)


def of(made: Study, out: Path, note: str = "") -> pd.DataFrame:
    """Return the verdicts that ``out``.parquet holds, if they are of the same tables by the same code; else `measure` them."""
    file, key = files(out)[0], made.made_of(note)
    if key and file.is_file() and tables.facts(file).get("key") == key:
        logger.info("kept %s", file)
        return read(file)
    found = measure(made, note)
    found.attrs["key"] = key
    return found


def few_groups(made: Study) -> str:
    """Say that intervals are over too few groups of images to decide much; empty where they are not."""
    column = f"cka{tables.WITHOUT}"
    held = [len(own[column].iloc[0]) for own in made.tables.values() if column in own and len(own)]
    if not held or max(held) >= ENOUGH:
        return ""
    groups = f"over {max(held)} groups of images" if max(held) > 1 else "not known from one batch of images"
    return f"Intervals are {groups}, which decides little: take more images, smaller batches (--images.limit, --images.batch)"


def weak_twins(evidence: Evidence) -> list[str]:
    """Say which untrained twins have layers that are constant over images, so that they are compared by the others alone."""
    said = []
    for twin in evidence.parts.twins():
        try:
            own = evidence.rows("cka", model=twin, other_model=twin)
        except Refusal:
            continue
        itself = own[own["layer"] == own["other_layer"]]
        if constant := int(itself["cka"].isna().sum()):
            said.append(
                f"{twin} is a weak control: {constant} of its {len(itself)} layers are constant over images, for example "
                f"where blocks start as the identity (a norm whose scale begins at zero)"
            )
    return said


def number(claim: Claim, evidence: Evidence, under: Callable[[Control], Evidence | None]) -> Found:
    """Measure one claim; ``under`` gives the evidence under a control.

    Raises:
        Exception: any error of the code that computes the number, with the claim's id added.
    """
    try:
        estimate = claim.interval(claim.compute, claim.tables, evidence)
    except Refusal as needed:
        return Found(claim, None, str(needed))
    except Exception as fault:
        fault.add_note(f"in the number of claim {claim.id}")
        raise
    if math.isnan(estimate.value):
        return Found(claim, None, "undefined here, as where layers are constant over images")
    controls = {
        control: own for control in claim.controls if (own := _control(claim, control, under(control)))
    }
    runs = further(claim.interval, claim.compute, claim.tables, evidence, anew=claim.of_training)
    return Found(claim, estimate, "", controls, [own for own in runs if not math.isnan(own.value)])


def judged(found: Sequence[Found]) -> pd.DataFrame:
    """Return a row with a verdict for each claim, without its models."""
    p = holm(
        np.array([own.estimate.p(own.claim.rule.threshold) if own.estimate else math.nan for own in found])
    )
    words: dict[str, str] = {}
    rows = []
    for own, adjusted in zip(found, p.tolist(), strict=True):
        rows.append(_row(own, adjusted, words))
        words[own.claim.id] = str(rows[-1]["verdict"])
    return pd.DataFrame(rows)


def _row(found: Found, p: float, words: Mapping[str, str]) -> dict[str, Any]:
    claim, estimate = found.claim, found.estimate
    said = {name: getattr(claim, name) for name in ("id", "figure", "claim", "paper", "statistic")}
    wanted, size = rules.aim(claim.rule)
    rule = {"threshold": str(claim.rule), "threshold_from": claim.origin, "tau": claim.rule.threshold}
    rule |= {"wanted": wanted, "size": size}
    rule |= _printed(claim)
    row = said | rule | {"difference": claim.difference, "reason": found.reason, "because": ""}
    if estimate is None:
        nothing = dict.fromkeys(("value", "low", "high", "p"), math.nan)
        return row | nothing | {"verdict": rules.UNKNOWN, "in_size": False, "controls": {}, "runs": []}
    sides = {control: _side(claim, own) for control, own in found.controls.items()}
    side = _side(claim, estimate)
    known = rules.Known(
        side=side,
        p=p,
        in_size=all(bool(claim.rule.in_size(own.value)) for own in (estimate, *found.further)),
        turning=_turning(side, sides),
        null=[side for control, side in sides.items() if control.of_nothing],
        runs=[_side(claim, own) for own in found.further],
        of_training=claim.of_training and not estimate.runs,  # its interval is over runs already
        untrained=sides.get(UNTRAINED),
        untrained_share=_share(claim, estimate, found.controls.get(UNTRAINED)),
        of_architecture=claim.of_architecture,
        rests_on={name: words.get(name, rules.UNKNOWN) for name in claim.rests_on},
    )
    verdict, because = rules.judge(known)
    if len(estimate.runs) == 1:
        because = "one training run cannot tell"
    because = because or _of_twins(found, verdict, sides)
    if isinstance(claim.rule, rules.Described):
        because = "told without a threshold"
    controls = {
        control.words: {"value": own.value, "low": own.low, "high": own.high, "verdict": sides[control]}
        for control, own in found.controls.items()
    }
    return row | {
        **{"value": estimate.value, "low": estimate.low, "high": estimate.high, "p": p},
        **{"verdict": verdict, "because": because, "in_size": known.in_size, "controls": controls},
        "runs": _runs(found),
    }


def _printed(claim: Claim) -> dict[str, Any]:
    """The columns of the number that the paper prints for a claim."""
    low, high, unit, of = (
        (printed.low, printed.high, printed.unit, printed.of)
        if (printed := claim.printed)
        else (math.nan, math.nan, "", "")
    )
    return {"paper_low": low, "paper_high": high, "paper_unit": unit, "paper_of": of}


def _share(claim: Claim, trained: Estimate, untrained: Estimate | None) -> float:
    """How far untrained twins get beyond the threshold, as a share of how far the trained models get."""
    beyond = trained.value - claim.rule.threshold
    if untrained is None or math.isnan(beyond) or beyond == 0:
        return 1.0
    return (untrained.value - claim.rule.threshold) / beyond


def _of_twins(found: Found, verdict: str, sides: Mapping[Control, str]) -> str:
    """What untrained twins add to a verdict, as the word alone does not say how far they get."""
    positive = verdict in (rules.REPRODUCED, rules.SMALLER, rules.ARCHITECTURAL)
    if not positive or UNTRAINED not in found.claim.controls:
        return ""
    if UNTRAINED not in sides:
        return "untrained twins could not be asked"
    told = sides[UNTRAINED] == rules.REPRODUCED
    return f"untrained twins have {found.controls[UNTRAINED].value:.3g}" if told else ""


def _runs(found: Found) -> list[float]:
    """The number in every training run; empty where there is one run only."""
    assert found.estimate is not None
    own = found.estimate.runs or (found.estimate.value, *(other.value for other in found.further))
    return list(own) if len(own) > 1 else []


def _side(claim: Claim, estimate: Estimate) -> str:
    return claim.rule.side(estimate.value, estimate.low, estimate.high)


def _turning(side: str, sides: Mapping[Control, str]) -> dict[str, str]:
    """The sides under the controls that may turn a verdict, like compared with like.

    Controls of similarity are measured of block outputs: where block outputs alone already say something else than all layers,
    that is what turned it, and what such a control says is no news.
    """
    turning = {control: own for control, own in sides.items() if control.turning}
    if BLOCKS in turning and rules.turns(side, turning[BLOCKS]):
        turning = {control: own for control, own in turning.items() if control not in OF_BLOCKS}
    return {control.words: own for control, own in turning.items()}


def differences(found: pd.DataFrame) -> list[Difference]:
    """The five differences of the course notes, and the reasons given for them, each with what its claims add up to."""
    words = dict(zip(found["id"], found["verdict"], strict=True))

    def whole(difference: Difference) -> Difference:
        own = tuple(found.loc[found["difference"] == difference.number, "id"])
        reasons = tuple(
            reason._replace(
                verdict=rules.together([words.get(name, rules.UNKNOWN) for name in reason.findings])
            )
            for reason in difference.reasons
        )
        verdict = rules.together([words[name] for name in own])
        return difference._replace(findings=own, reasons=reasons, verdict=verdict)

    return [whole(difference) for difference in DIFFERENCES]


def holm(p: np.ndarray) -> np.ndarray:
    """Adjust p-values for as many tests as there are numbers (Holm 1979); NaN stays NaN."""
    adjusted = np.full(len(p), np.nan)
    order = [place for place in np.argsort(p) if not math.isnan(p[place])]
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[place]))
        adjusted[place] = largest
    return adjusted


def _control(claim: Claim, control: Control, evidence: Evidence | None) -> Estimate | None:
    if evidence is None:
        return None
    try:
        found = claim.interval(claim.compute, claim.tables, evidence)
    except Refusal:
        return None
    except Exception as fault:
        fault.add_note(f"in the control {control.name!r} of claim {claim.id}")
        raise
    return None if math.isnan(found.value) else found


def _held(claim: Claim, evidence: Evidence, used: Sequence[str]) -> list[str]:
    """Those of the models that a claim's number asked for which its tables hold."""
    held = {
        model for name in claim.tables if name in evidence.study.tables
        for model in evidence.study.tables[name].attrs["models"]
    }  # fmt: skip
    return [name for name in used if name in held]


def _here(found: Found, evidence: Evidence) -> float:
    """The number that the paper prints for a claim, of these models; NaN where it prints none or it cannot be measured."""
    printed = found.claim.printed
    if printed is None or found.estimate is None:
        return math.nan
    if printed.here is None:
        return found.estimate.value
    try:
        return printed.here(evidence)
    except Refusal:
        return math.nan
    except Exception as fault:
        fault.add_note(f"in the number that the paper prints for claim {found.claim.id}")
        raise


def markdown(found: pd.DataFrame) -> str:
    """The five differences, then every claim, as Markdown."""
    return written.markdown(found, differences(found))


def write(found: pd.DataFrame, out: Path) -> None:
    """Write ``out``.parquet, .md for reading, .tex for a paper and .csv for a spreadsheet."""
    if processes.rank_and_size()[0]:
        return
    whole = found.assign(**{name: found[name].map(json.dumps) for name in tables.NESTED})
    whole.attrs |= found.attrs | {"command": command.line()}
    file, *texts = files(out)
    command.make_room(file, lambda there: tables.facts(there).get("analysis") == "findings")
    tables.write(whole, file)
    told = (written.markdown(found, differences(found)), written.latex(found, differences(found)))
    for text, contents in zip(texts, (*told, written.flat(found)), strict=True):
        command.make_room(text)
        tables.write_whole(text, partial(_put, contents))


def _put(text: str, file: Path) -> None:
    file.write_text(text, encoding="utf-8", newline="\n")


def files(out: Path) -> list[Path]:
    """The files that `write` writes."""
    return [command.beside(out, ending) for ending in (".parquet", ".md", ".tex", ".csv")]


def read(path: Path) -> pd.DataFrame:
    """Read what `write` wrote."""
    found = tables.read(path)
    return found.assign(**{name: found[name].map(json.loads) for name in tables.NESTED})
