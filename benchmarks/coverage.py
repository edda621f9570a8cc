"""How often the interval of each finding holds the truth: independent sets of scenes against all of them together.

    python benchmarks/coverage.py    # 640 scenes a set, every finding of the lab
    python benchmarks/coverage.py --images 2000 --batch 160 --only skip attention_distance --out runs/coverage-2000

Each set has scenes of its own (its seed is its number) and goes through the study's plans and intervals as they are. The
truth of a finding is its number on the sums of all sets together, of which each is a small share; where sums cannot be
added, as every set has probes of its own, it is the mean of the numbers. Sets that are done are kept: a second call with
more `--sets` goes on. Models are the lab's, the first training run of each.
"""

import json
import logging
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vit_analysis import findings
from vit_analysis.images import Images
from vit_analysis.reading import measure, state
from vit_analysis.reading.measure import Measurement
from vit_analysis.shell import running
from vit_analysis.spelling import Refusal
from vit_analysis.study import loaded, passes, plans
from vit_analysis.study.claims import CLAIMS
from vit_analysis.study.controls import ALL, VIEWS
from vit_analysis.study.evidence import Evidence, Study
from vit_analysis.study.parts import LAB_PARTS
from vit_analysis.typed import Machine

logger = logging.getLogger(__name__)

TRAINED = ("probe", "probe_tokens")  # tables of something that every set learns anew
NEEDED = {name for claim in CLAIMS for name in claim.tables}
UNITS = ("S3",)  # its interval is about the units of one network, which no further scenes can tell


def measured(
    cast: loaded.Cast, seed: int, images: int, batch: int, only: tuple[str, ...]
) -> dict[str, list[Measurement[Any]]]:
    """The plans of the study for one set of scenes, by table."""
    own = Images(limit=images, batch=batch, seed=seed)
    planned = plans.by_table(
        cast,
        own,
        plans.balanced(own),
        Images(limit=passes.TRAIN.limit, seed=1000 + seed),
        plans.balanced(own),
    )
    found = {}
    for name, plan in planned.items():
        if name not in NEEDED or (only and name not in only):
            continue
        try:
            found[name] = plan()
        except Refusal as needed:
            logger.info("%s: %s", name, needed)
    return found


def sums(planned: dict[str, list[Measurement[Any]]]) -> dict[str, Any]:
    """The sums of one set, by table and number of the measurement, in as few passes as can be."""
    each = {f"{name} {number}": one for name, own in planned.items() for number, one in enumerate(own)}
    groups: dict[Any, dict[str, Measurement[Any]]] = defaultdict(dict)
    for name, one in each.items():
        key = one.sums if one.alone else json.dumps(one.reading.images.facts(), sort_keys=True)
        groups[key][name] = one
    found: dict[str, Any] = {}
    for group in groups.values():
        found |= measure.total(group)
    return found


def evidence(
    cast: loaded.Cast, planned: dict[str, list[Measurement[Any]]], summed: dict[str, Any]
) -> Evidence:
    """The tables that sums become, as evidence."""
    tables = {}
    for name, own in planned.items():
        parts = [one.finish(summed[f"{name} {number}"]) for number, one in enumerate(own)]
        tables[name] = pd.concat(parts, ignore_index=True)
        # One source of variation: all tables are of the same scenes.
        count = int(next(iter(summed.values())).images.sum())
        tables[name].attrs = parts[0].attrs | {"images": {"source": "lab", "count": count}}
    return Evidence(Study(cast.parts, tables, {}))


def numbers(whole: Evidence) -> dict[str, tuple[float, float, float]]:
    """Value and interval of every claim that can be measured."""
    found = {}
    for claim in CLAIMS:
        own = findings.number(claim, whole, lambda _: None).estimate
        if own is not None and claim.id not in UNITS and not own.runs:
            found[claim.id] = own.value, own.low, own.high
    return found


def table(sets: list[dict[str, Any]], truth: dict[str, float]) -> pd.DataFrame:
    """One row per claim: truth, bias, spread of the numbers, mean half-width, intervals of no width, and coverage."""
    rows = []
    for claim in CLAIMS:
        if claim.id not in truth:
            continue
        value, low, high = np.array([own[claim.id] for own in sets if claim.id in own], dtype=float).T
        known = truth[claim.id] if not set(claim.tables) & set(TRAINED) else float(value.mean())
        held = (low <= known) & (known <= high)
        rows.append(
            {
                "claim": claim.id,
                "interval": getattr(claim.interval, "__name__", None)
                or claim.interval.func.__name__.strip("_"),
                "truth": known,
                "bias / its error": (value.mean() - known)
                / (value.std(ddof=1) / math.sqrt(len(value)) or math.nan),
                "spread": value.std(ddof=1),
                "mean half-width": ((high - low) / 2).mean(),
                "no width": f"{100 * np.mean(high - low <= 0):.0f} %",
                "coverage": f"{held.mean():.2f}",
            }
        )
    return pd.DataFrame(rows)


def markdown(found: pd.DataFrame) -> str:
    """The table as Markdown."""
    lines = [list(found), ["---"] * len(found.columns)]
    lines += [[own if isinstance(own, str) else f"{own:.3g}" for own in row] for row in found.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(
    *,
    sets: int = 32,
    images: int = 640,
    batch: int = 32,
    only: tuple[str, ...] = (),
    out: Path = Path("runs/coverage"),
) -> None:
    """Measure how often intervals hold the truth.

    Args:
        sets: how many sets of scenes.
        images: scenes of each.
        batch: scenes in a batch.
        only: tables to measure; all of the study where none is named.
        out: folder of what is kept.
    """
    plans.VIEWS = {ALL: VIEWS[ALL]}  # controls have no coverage of their own
    cast = loaded.Cast.load(LAB_PARTS.each_run()[0], Machine("cpu"))
    kept, total = out / "sets.json", out / "sums"
    done: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    whole: dict[str, Any] | None = None
    if done:
        planned = measured(cast, 1, images, batch, only)
        kinds = {
            f"{name} {number}": one.kind for name, own in planned.items() for number, one in enumerate(own)
        }
        whole, count = state.restore(total, kinds, next(iter(cast.models.values())).device)
        done = done[:count]
    for seed in range(len(done) + 1, sets + 1):
        planned = measured(cast, seed, images, batch, only)
        own = sums(planned)
        done.append(numbers(evidence(cast, planned, own)))
        whole = (
            own
            if whole is None
            else {name: whole[name] + own[name] for name in own if name.split()[0] not in TRAINED}
            | {name: value for name, value in own.items() if name.split()[0] in TRAINED}
        )
        out.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(done))
        state.save(total, whole, len(done))
        logger.info("set %d of %d", seed, sets)
    assert whole is not None
    truth = {name: value for name, (value, *_) in numbers(evidence(cast, planned, whole)).items()}
    found = table(done, truth)
    text = markdown(found)
    (out / "coverage.md").write_text(text + "\n")
    logger.info("%d sets of %d scenes in batches of %d\n%s", len(done), images, batch, text)


if __name__ == "__main__":
    running.run(main)
