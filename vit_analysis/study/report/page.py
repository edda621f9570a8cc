"""The page as plain data: texts, numbers in digits, and links, of which the template makes elements."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from vit_analysis.plot.style import display_name
from vit_analysis.spelling import did_you_mean
from vit_analysis.study import casts, rules, written
from vit_analysis.study.differences import Difference, Reason
from vit_analysis.study.numbers import GRID
from vit_analysis.study.report import cast, maps
from vit_analysis.study.report.images import picture
from vit_analysis.study.report.sections import Place
from vit_analysis.study.report.words import anchor, interval, label, numbers, p_value, text
from vit_analysis.table import column

TEXTS = (
    *("id", "figure", "claim", "paper", "statistic", "threshold", "threshold_from", "because", "reason"),
    *("paper_of", "substitution"),
)
COLUMNS = (
    *(*TEXTS, "models", "difference", "value", "low", "high", "tau", "p"),
    *("verdict", "controls", "runs", "paper_low", "paper_high", "paper_unit", "here"),
)
MARKS = {
    rules.REPRODUCED: "✓",
    rules.SMALLER: "✓",
    rules.PARTLY: "◐",
    rules.ARCHITECTURAL: "⌂",
    rules.FRAGILE: "≈",
    rules.REFUTED: "✗",
    rules.OPEN: "?",
    rules.UNKNOWN: "–",  # noqa: RUF001
}
OUTCOMES = {  # what the verdict on its claims says of a reason
    rules.REPRODUCED: "The experiment bears the reason out.",
    rules.SMALLER: "The experiment bears the reason out.",
    rules.PARTLY: "The experiment bears the reason out in part.",
    rules.ARCHITECTURAL: "It is so without training as well.",
    rules.REFUTED: "The experiment speaks against the reason.",
    rules.FRAGILE: "The experiment does not decide.",
    rules.OPEN: "The experiment does not decide.",
    rules.UNKNOWN: "The experiment was not made with these models.",
}
Row = Mapping[str, Any]


def page(
    places: Sequence[Place],
    findings: pd.DataFrame,
    differences: Sequence[Difference],
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that the template shows; see `rendering.write` for what it is made of and what is refused."""
    found = checked(findings)
    drawn = {place.id: place for place in places}
    rows = {str(row["id"]): _row(row, drawn, differences) for row in found}
    counts = Counter(row["verdict"] for row in found)
    said = {warning for place in places for warning in place.warnings}  # where it belongs
    members = cast.cast(findings.attrs.get("parts", {}), findings.attrs.get("models", {}))
    return {
        "models": [display_name(name) for name in provenance.get("models") or ()],
        "notes": [text(note) for note in provenance.get("notes") or () if f"{note}." not in said],
        "cast": [{**member._asdict(), "number": len(member.runs)} for member in members],
        "replaced": any(member.stands_for for member in members),
        "absent": _absent(findings),
        "substitutions": casts.MEANINGS,
        "told_of_data": any(member.learned for member in members if member.learned != cast.NOTHING),
        "lab": cast.the_lab(members),
        "letters": _letters(members),
        "words": [{**tag(word), "count": counts[word], "meaning": told} for word, told in rules.WORDS.items()],
        "partly": tag(rules.PARTLY),
        "adding": rules.ADDING,
        "differences": [_difference(difference, rows, drawn) for difference in differences],
        "places": [_place(place, list(rows.values())) for place in places],
        "rows": list(rows.values()),
        "figures": list(drawn),
        "table": {"columns": list(COLUMNS), "rows": [[_plain(row[name]) for name in COLUMNS] for row in found]},
        "provenance": provenance,
    }  # fmt: skip


def checked(findings: pd.DataFrame) -> list[dict[str, Any]]:
    """The findings as rows.

    Raises:
        Refusal: a column is missing.
        ValueError: an unknown verdict, or controls or runs that are none.
    """
    columns = [column(findings, name) for name in COLUMNS]
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*columns, strict=True)]
    for row in rows:
        if row["verdict"] not in rules.WORDS:
            raise ValueError(
                f"no verdict {row['verdict']!r}; {did_you_mean(str(row['verdict']), rules.WORDS)}"
            )
        for name, kind, wanted in (
            ("controls", Mapping, "a mapping of names to numbers"),
            ("runs", list, "a list of numbers"),
        ):
            if not isinstance(row[name], kind):
                raise ValueError(f"{name} of {row['id']} must be {wanted}, found {type(row[name]).__name__}")
    return rows


def tag(verdict: str) -> dict[str, str]:
    """A verdict's word, its mark, and its name in the style sheet."""
    kind = re.sub(r"\W+", "-", verdict) if verdict in MARKS else "other"
    return {"word": verdict, "mark": MARKS.get(verdict, ""), "kind": kind}


def _letters(members: Sequence[cast.Member]) -> dict[str, str]:
    """What the letters of formulas stand for, where the cast says who they are."""
    told = {member.letter: f"{member.called}, the {member.role}" for member in members if member.letter}
    grid = f"the heat map of CKA of all pairs of layers, on {GRID} x {GRID} depths, without its diagonal"
    return {**told, "M": grid} if told else {}


def _row(row: Row, drawn: Mapping[str, Place], differences: Sequence[Difference]) -> dict[str, Any]:
    place = str(row["figure"])
    about = [own.number for own in differences if row["id"] in own.findings]
    return {
        **{name: text(row[name]) for name in TEXTS},
        "anchor": anchor("finding", row["id"]),
        "place": place,
        "figure": label(place),
        "figure_anchor": anchor("figure", place) if place in drawn else "",
        "models": _called(text(row["models"])),
        "measured": _measured(row),
        **{"printed": written.printed(row), "here": written.here(row)},
        "interval": interval(row),
        "p": p_value(row["p"]),
        "p_order": "" if pd.isna(row["p"]) else repr(float(row["p"])),
        "value_order": "" if pd.isna(row["value"]) else repr(float(row["value"])),
        "tag": tag(row["verdict"]),
        "rank": list(rules.WORDS).index(row["verdict"]),
        "difference": about[0] if about else "",
        "controls": [
            {"name": name, "measured": _measured({"runs": (), "reason": "", **own}), "tag": tag(own["verdict"])}
            for name, own in row["controls"].items()
        ],
    }  # fmt: skip


def _absent(findings: pd.DataFrame) -> dict[str, str]:
    """Why parts that no model plays cannot be played by a public one, by their words."""
    parts = findings.attrs.get("parts", {})
    names = [runs[0] for several in parts.values() for runs in several]
    lacking = casts.absent(names, [part for part, several in parts.items() if several])
    return {cast.ROLES[part]: why for part, why in lacking.items()}


def _called(names: str) -> str:
    return ", ".join(display_name(name) for name in names.split(", "))


def _measured(row: Row) -> dict[str, Any]:
    """The number with its interval and its training runs, or why there is none."""
    if pd.isna(row["value"]):
        return {"reason": text(row["reason"]) or "no number", "value": "", "low": "", "high": "", "runs": []}
    value, low, high, *_ = numbers([row["value"], row["low"], row["high"]])
    runs = numbers([row["value"], row["low"], row["high"], *row["runs"]])[3:]
    return {"reason": "", "value": value, "low": low, "high": high, "runs": runs}


def _plain(value: Any) -> Any:
    """A cell as JSON has it: numbers without end as words, no number as nothing."""
    if isinstance(value, Mapping):
        return {str(name): _plain(own) for name, own in value.items()}
    if isinstance(value, list):
        return [_plain(own) for own in value]
    if pd.isna(value):
        return None
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    return int(value) if pd.api.types.is_integer(value) else str(value)


def _difference(
    difference: Difference, rows: Mapping[str, Mapping[str, Any]], drawn: Mapping[str, Place]
) -> dict[str, Any]:
    place = drawn.get(difference.picture)
    return {
        **{"number": difference.number, "title": difference.title, "text": difference.text},
        "anchor": anchor("difference", difference.number),
        "tag": tag(difference.verdict),
        "reasons": [_reason(difference.number, reason, rows) for reason in difference.reasons],
        "rows": _asked(f"difference {difference.number}", difference.findings, rows),
        "place": None if place is None else {"anchor": anchor("figure", place.id), "label": label(place.id)},
        "picture": None if place is None or place.picture is None else picture(place, place.picture),
    }


def _reason(number: int, reason: Reason, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    told = _asked(f"a reason of difference {number}", reason.findings, rows)
    return {
        **{"text": reason.text, "said_by": reason.said_by, "experiment": reason.experiment},
        **{"tag": tag(reason.verdict), "outcome": OUTCOMES.get(reason.verdict, ""), "rows": told},
    }


def _asked(what: str, names: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    for name in names:
        if name not in rows:
            raise KeyError(f"{what} rests on {name!r}; {did_you_mean(name, rows)}")
    return [rows[name] for name in names]


def _place(place: Place, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if place.picture is None and not place.missing:
        raise ValueError(f"figure {place.id} has no picture and does not say why it is missing")
    own = [row for row in rows if row["place"] == place.id]
    return {
        "anchor": anchor("figure", place.id),
        "label": label(place.id),
        # Figures that share a number, such as 8 and 8 lesions, are told apart by their titles.
        "number": label(place.id).removeprefix("Figure ").split()[0],
        **{"title": place.title, "claim": place.claim, "shows": place.shows, "missing": place.missing},
        **{"command": place.command, "images": place.images, "warnings": list(place.warnings)},
        "rows": own,
        "differences": sorted({row["difference"] for row in own if row["difference"] != ""}),
        "picture": None if place.picture is None else picture(place, place.picture),
        "maps": [
            {**maps.heatmap(panel), "anchor": f"{anchor('map', place.id)}-{number}"}
            for number, panel in enumerate(place.panels)
        ],
        "views": list(place.panels[0].views) if place.panels else [],
    }
