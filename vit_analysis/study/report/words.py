"""Numbers and sentences as the page writes them."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup, escape

LEAST_P = 1e-6  # a smaller p is not told: twenty groups of images carry no more
FIGURE = r"[Ff]igures? (?P<figure>\w+(?:\.\w+)*)"
WIDE = 100  # units of a small picture of an interval


def anchor(kind: str, name: object) -> str:
    """An id that is its own link: the same text after ``id=`` and after ``#``."""
    return f"{kind}-{quote(str(name), safe='')}"


def label(figure: str) -> str:
    """What a figure is called."""
    return figure.capitalize() if figure.isalpha() and len(figure) > 1 else f"Figure {figure}"


def text(value: Any) -> str:
    """Anything as text: empty for NaN and None."""
    return "" if pd.api.types.is_scalar(value) and pd.isna(value) else str(value)


def numbers(values: Sequence[float]) -> list[str]:
    """Numbers that belong together, with as many digits as the largest of them needs for three; a dash for none."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0)
    digits = min(max(2 - math.floor(math.log10(largest)), 0), 4) if largest else 2
    return [_number(value, digits) for value in values]


def _number(value: float, digits: int) -> str:
    if pd.isna(value):
        return "–"  # noqa: RUF001
    return f"{value:z.{digits}f}".replace("-", "−")  # noqa: RUF001


def p_value(p: float) -> str:
    """A p as it may be told."""
    if pd.isna(p):
        return "–"  # noqa: RUF001
    return "< 1e-6" if p <= LEAST_P else f"{p:.0e}" if p < 0.001 else f"{p:.3f}"


def interval(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Places, from 0 to `WIDE`, of value, bounds, threshold and training runs on a line that holds them all.

    None where there is no value that is finite. Bounds without end stop at the ends of the line; a threshold that is no one
    number has no place.
    """
    if not math.isfinite(row["value"]):
        return None
    told = [row["value"], row["low"], row["high"], row["tau"], *row["runs"]]
    finite = [own for own in told if math.isfinite(own)]
    low, high = min(finite), max(finite)
    room = (high - low or 1.0) * 0.08
    low, high = low - room, high + room
    value, least, most, tau, *runs = (
        round(WIDE * min(max(((own if not math.isnan(own) else row["value"]) - low) / (high - low), 0.0), 1.0), 1)
        for own in told
    )  # fmt: skip
    line = None if math.isnan(row["tau"]) else tau
    return {"value": value, "low": least, "width": round(most - least, 1), "tau": line, "runs": runs}


def linked(
    sentence: str, figures: Collection[str], claims: Collection[str], letters: Mapping[str, str]
) -> Markup:
    """A sentence in which figures and claims are links, and letters of formulas say what they are.

    Args:
        sentence: any text.
        figures: ids of the figures that the page has.
        claims: ids of the claims that it has.
        letters: what a letter that stands alone means.
    """
    known = "|".join(re.escape(name) for name in sorted(map(str, claims), key=len, reverse=True))
    short = "|".join(map(re.escape, letters))
    patterns = [FIGURE, *([rf"(?<!\w)(?P<claim>{known})(?!\w)"] if known else [])]
    patterns += [rf"\b(?P<letter>{short})\b"] if short else []
    pieces, end = [], 0
    for found in re.finditer("|".join(patterns), sentence):
        pieces += [escape(sentence[end : found.start()]), _link(found, figures, letters)]
        end = found.end()
    return Markup("").join([*pieces, escape(sentence[end:])])


def _link(found: re.Match[str], figures: Collection[str], letters: Mapping[str, str]) -> Markup:
    groups = found.groupdict()
    if (figure := groups.get("figure")) in figures:
        return Markup('<a href="#{}">{}</a>').format(anchor("figure", figure), found.group())
    if claim := groups.get("claim"):
        return Markup('<a href="#{}">{}</a>').format(anchor("finding", claim), claim)
    if letter := groups.get("letter"):
        return Markup('<abbr title="{}">{}</abbr>').format(letters[letter], letter)
    return escape(found.group())
