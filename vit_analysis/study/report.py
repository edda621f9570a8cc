"""The report: the study on one page, a single HTML file that loads nothing and runs no script but its own.

It opens with the lecture notes' five differences, shows every figure with the paper's claim beside what these models show, and
ends with all verdicts and where they come from. Heat maps tell the layers and the value under the pointer or the arrow keys.
The page is `report.html` with its style and script beside it; both are allowed by their hashes and nothing else is.

Every text is escaped where it enters the page (`_text`), since anyone can choose names of models and files.
"""

import base64
import hashlib
import json
import math
import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from vit_analysis.spelling import did_you_mean
from vit_analysis.study import rules
from vit_analysis.study.differences import Difference
from vit_analysis.table import column, write_whole

COLUMNS = (
    *("id", "figure", "claim", "paper", "statistic", "models"),
    *(
        "value",
        "low",
        "high",
        "threshold",
        "threshold_from",
        "p",
        "verdict",
        "because",
        "controls",
        "runs",
        "reason",
    ),
)
MARKS = {
    rules.REPRODUCED: "✓",
    rules.SMALLER: "✓",
    rules.PARTLY: "◐",
    rules.ARCHITECTURAL: "⌂",
    rules.FRAGILE: "≈",
    rules.REFUTED: "✗",
    rules.OPEN: "?",
    rules.UNKNOWN: "&ndash;",
}
Row = Mapping[str, Any]  # a finding, or one of its controls
PNG = b"\x89PNG\r\n\x1a\n"
UNIT = 1000  # heat maps are sent in thousandths, the three digits that are shown
UNDEFINED = -(2**15)
SCALE = '<p class="scale" aria-hidden="true">CKA 0 <i></i> 1 <i class="undefined"></i> undefined</p>'


@dataclass(frozen=True)
class Place:
    """A figure's place in the report."""

    id: str
    """The figure's number: ``1``, ``B.1``, ``notes``."""
    title: str
    claim: str
    """The paper's claim in our own words."""
    shows: str
    """What these models show, with numbers."""
    picture: Path | None
    """A PNG; None where it cannot be made."""
    alternative: str
    """What the picture shows, for those who cannot see it."""
    missing: str = ""
    """Why there is no picture: which model or data it would need."""
    command: str = ""
    """What makes this picture alone."""
    heatmaps: Sequence[tuple[str, pd.DataFrame]] = ()
    """Captions and CKA tables, each of one model with one model, drawn as interactive heat maps."""


def write(
    path: Path,
    places: Sequence[Place],
    findings: pd.DataFrame,
    differences: Sequence[Difference],
    provenance: Mapping[str, Any],
) -> None:
    """Write the report to ``path``, whole or not at all.

    Args:
        path: the HTML file.
        places: the figures, in the order they are shown.
        findings: columns id, figure, claim, paper, statistic, value, low, high, threshold, threshold_from, verdict, because,
            controls, runs, p, models, reason. ``controls`` holds mappings ``{name: {"value", "low", "high", "verdict"}}``
            and ``runs`` lists, not JSON.
        differences: the five, which the report opens with.
        provenance: whatever says how the study can be repeated: command, models with digests, images, seed, versions.

    Raises:
        FileNotFoundError: a picture is not there; it names those that are.
        Refusal: a column is missing.
        KeyError: a difference rests on a finding that is not there.
        ValueError: an unknown verdict, a place without picture or reason, a heat map of more than two models.
    """
    rows = _checked(findings)
    page = _page(places, rows, differences, provenance)
    write_whole(path, lambda part: part.write_text(page, encoding="utf-8", newline="\n"))


def _checked(findings: pd.DataFrame) -> Sequence[Row]:
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


def _page(
    places: Sequence[Place],
    rows: Sequence[Row],
    differences: Sequence[Difference],
    provenance: Mapping[str, Any],
) -> str:
    style, script = _beside("report.css"), _beside("report.js")
    counts = Counter(row["verdict"] for row in rows)
    drawn = {place.id for place in places}
    return Template(_beside("report.html")).substitute(
        policy=f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'",
        style=style,
        script=script,
        models=_text(", ".join(provenance.get("models", ())) or "the models below"),
        strip="".join(_square(row) for row in rows),
        tally="".join(f"<li><b>{counts[verdict]}</b> {_tag(verdict)}</li>" for verdict in rules.WORDS),
        notes="".join(f'<p class="note">{_text(note)}.</p>' for note in provenance.get("notes", ())),
        legend="".join(
            f"<dt>{_tag(word)}</dt><dd>{_text(meaning)}.</dd>" for word, meaning in rules.WORDS.items()
        ),
        adding=_text(rules.ADDING),
        contents="".join(_entry(place) for place in places),
        differences="\n".join(_difference(difference, rows) for difference in differences),
        places="\n".join(_place(place, rows) for place in places),
        findings="\n".join(_finding(row, drawn) for row in rows),
        provenance=_facts(provenance),
    )


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _digest(source: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"


def _text(value: Any) -> str:
    """Escape anything as text of the page or of an attribute; empty for NaN and None."""
    return "" if pd.api.types.is_scalar(value) and pd.isna(value) else escape(str(value))


def _anchor(kind: str, name: object) -> str:
    """An id that is its own link: the same text after ``id=`` and after ``#``."""
    return f"{kind}-{quote(str(name), safe='')}"


def _label(figure: str) -> str:
    return figure.capitalize() if figure.isalpha() and len(figure) > 1 else f"Figure {figure}"


def _tag(verdict: str) -> str:
    """A verdict in words, with a mark and a colour."""
    mark = f'<span aria-hidden="true">{MARKS[verdict]}</span> ' if verdict in MARKS else ""
    return f'<span class="verdict {_kind(verdict)}">{mark}{_text(verdict)}</span>'


def _kind(verdict: str) -> str:
    """The verdict as a name in the style sheet."""
    return re.sub(r"\W+", "-", verdict) if verdict in MARKS else "other"


def _verdict(row: Row) -> str:
    because = f' <small class="because">{_text(row["because"])}</small>' if _text(row["because"]) else ""
    return _tag(row["verdict"]) + because


def _square(row: Row) -> str:
    kind, mark = _kind(row["verdict"]), MARKS[row["verdict"]]
    link, told = _anchor("finding", row["id"]), f"{_text(row['id'])}: {row['verdict']}"
    return f'<a tabindex="-1" class="{kind}" href="#{link}" title="{told}">{mark}</a>'


def _entry(place: Place) -> str:
    # Figures that share a number, such as 8 and 8 lesions, are told apart by their titles.
    number = _label(place.id).removeprefix("Figure ").split()[0]
    link = f'<a href="#{_anchor("figure", place.id)}"><b>{_text(number)}</b> <span>{_text(place.title)}</span></a>'
    return f"<li>{link}</li>"


def _difference(difference: Difference, rows: Sequence[Row]) -> str:
    known = {row["id"]: row for row in rows}
    for name in difference.findings:
        if name not in known:
            raise KeyError(f"difference {difference.number} rests on {name!r}; {did_you_mean(name, known)}")
    carried = "".join(
        f'<li><p><a href="#{_anchor("finding", name)}">{_text(name)}</a> {_text(known[name]["claim"])}</p>'
        f"<p>{_measured(known[name])}{_expected(known[name])}</p><p>{_verdict(known[name])}</p>{_controls(known[name])}</li>"
        for name in difference.findings
    )
    return (
        f'<article class="difference"><b class="numeral" aria-hidden="true">{difference.number}</b>'
        f"<h3>{_text(difference.title)} {_tag(difference.verdict)}</h3>"
        f'<p>{_text(difference.text)}</p><ul class="carried">{carried}</ul></article>'
    )


def _place(place: Place, rows: Sequence[Row]) -> str:
    name = _anchor("figure", place.id)
    about = " ".join(
        f'<li><a href="#{_anchor("finding", row["id"])}">{_text(row["id"])}</a> {_verdict(row)}</li>'
        for row in rows
        if str(row["figure"]) == place.id
    )
    about = about and f'<ul class="about" aria-label="Findings">{about}</ul>'
    command = place.command and f'<p class="command">Made by <code>{_text(place.command)}</code></p>'
    return (
        f'<section class="place" id="{name}" aria-labelledby="{name}-title">'
        f'<h3 id="{name}-title"><span class="number">{_text(_label(place.id))}</span> {_text(place.title)}</h3>'
        f'<div class="said"><div><h4>The paper</h4><p>{_text(place.claim)}</p></div>'
        f"<div><h4>These models</h4><p>{_text(place.shows)}</p></div></div>"
        f"{about}{_pictures(place)}{command}</section>"
    )


def _pictures(place: Place) -> str:
    maps = "".join(
        _heatmap(f"{_anchor('map', place.id)}-{number}", caption, table)
        for number, (caption, table) in enumerate(place.heatmaps)
    )
    maps = maps and f'<div class="maps">{maps}</div>{SCALE}'
    if place.picture is None:
        if not place.missing:
            raise ValueError(f"figure {place.id} has no picture and does not say why it is missing")
        return f'{maps}<p class="missing"><b>No picture.</b> {_text(place.missing)}</p>'
    picture = f'<figure class="picture">{_image(place, place.picture)}</figure>'
    if not maps:
        return picture
    return f'{maps}<details class="still" open><summary>As one picture</summary>{picture}</details>'


def _image(place: Place, path: Path) -> str:
    if not path.is_file():
        near = did_you_mean(path.name, sorted(file.name for file in path.parent.glob("*.png")))
        raise FileNotFoundError(f"no picture {path} for figure {place.id}; {near}")
    data = path.read_bytes()
    if not data.startswith(PNG):
        raise ValueError(f"{path}, the picture of figure {place.id}, is not a PNG")
    width, height = struct.unpack(">II", data[16:24])
    # Pictures have 200 dots per inch, a page about half as many (96).
    return (
        f'<img width="{width // 2}" height="{height // 2}" alt="{_text(place.alternative)}" '
        f'src="data:image/png;base64,{base64.b64encode(data).decode()}">'
    )


def _heatmap(name: str, caption: str, table: pd.DataFrame) -> str:
    rows, columns = _axes(caption, table)
    up, right = (f"{_text(side['model'].iloc[0])}, {len(side)} layers" for side in (rows, columns))
    values = table["cka"].describe()
    told = (
        "{min:z.2f} to {max:z.2f}, {mean:z.2f} on average".format(**values)
        if values["count"]
        else "undefined"
    )
    alternative = f"{_text(caption)}. CKA of {up}, upwards, with {right}, to the right: {told}."
    data: dict[str, object] = {"rows": rows.to_dict("list"), "columns": columns.to_dict("list")}
    data |= {side: _thousandths(table[side].to_numpy(float)) for side in ("cka", "low", "high")}
    return (
        f'<figure class="map"><figcaption>{_text(caption)}</figcaption><span class="up">{up} →</span><div class="cells">'
        f'<canvas width="{len(columns)}" height="{len(rows)}" tabindex="0" role="application" '
        f'aria-roledescription="heat map" aria-label="{alternative} Arrow keys move from cell to cell." '
        f'aria-describedby="{name}">{alternative}</canvas><i class="cursor"></i></div>'
        f'<span class="right">{right} →</span><output id="{name}" aria-live="polite">Point at a cell, or use the arrow '
        f'keys.</output><script type="application/json">{_json(data)}</script></figure>'
    )


def _axes(caption: str, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the layers of rows (upwards) and columns (to the right) of a table that has every pair, in that order."""
    rows, columns = _layers(table, ""), _layers(table, "other_")
    pairs = pd.MultiIndex.from_product([rows["layer"], columns["layer"]])
    if rows["model"].nunique() != 1 or columns["model"].nunique() != 1 or len(pairs) != len(table):
        raise ValueError(f"heat map {caption!r} must be one model with one model, every pair of layers once")
    if not pairs.equals(pd.MultiIndex.from_frame(table[["layer", "other_layer"]])):
        raise ValueError(
            f"rows of heat map {caption!r} must stand as `cka.measure` makes them, in order of execution"
        )
    return rows, columns


def _layers(table: pd.DataFrame, side: str) -> pd.DataFrame:
    names = {f"{side}{name}": name for name in ("model", "layer", "depth")}
    layers = pd.DataFrame({short: column(table, name) for name, short in names.items()})
    return layers.drop_duplicates(["model", "layer"]).round(3)


def _thousandths(values: np.ndarray) -> str:
    """Encode values in thousandths as 16-bit integers, little-endian in base64; bounds beyond +- 32.767 are clipped."""
    whole = np.rint(np.clip(np.nan_to_num(values), -32.767, 32.767) * UNIT)
    return base64.b64encode(np.where(np.isnan(values), UNDEFINED, whole).astype("<i2").tobytes()).decode()


def _json(data: object) -> str:
    """JSON in which no text can end the script element that holds it."""
    return json.dumps(data, allow_nan=False).translate({ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"})


def _finding(row: Row, drawn: set[str]) -> str:
    place = str(row["figure"])
    figure = _text(_label(place))
    if place in drawn:
        figure = f'<a href="#{_anchor("figure", place)}">{figure}</a>'
    return (
        f'<tr id="{_anchor("finding", row["id"])}"><th scope="row">{_text(row["id"])} <small>{figure}</small></th>'
        f"<td><p>{_text(row['claim'])}</p><p><small>{_text(row['statistic'])}</small></p>"
        f"<p><small>{_text(row['models'])}</small></p>{_controls(row)}</td>"
        f'<td data-name="Paper">{_text(row["paper"])}</td><td data-name="Measured">{_measured(row)}</td>'
        f'<td data-name="Expected">{_text(row["threshold"])} <small>{_text(row["threshold_from"])}</small></td>'
        f'<td data-name="p">{_p_value(row["p"])}</td>'
        f"<td>{_verdict(row)}</td></tr>"
    )


def _measured(row: Row) -> str:
    """The number and its interval, or why there is none."""
    if pd.isna(row["value"]):
        return f'<span class="reason">{_text(row.get("reason")) or "no number"}</span>'
    sides = [row["value"], row["low"], row["high"]]
    largest = max((abs(side) for side in sides if math.isfinite(side)), default=0)
    digits = min(max(2 - math.floor(math.log10(largest)), 0), 4) if largest else 2
    value, low, high = (
        "&ndash;" if pd.isna(side) else f"{side:z.{digits}f}".replace("-", "&minus;") for side in sides
    )
    runs = [f"{run:z.{digits}f}".replace("-", "&minus;") for run in row.get("runs", ())]
    each = f' <small class="runs">training runs {", ".join(runs)}</small>' if runs else ""
    return f'<b class="value">{value}</b> <span class="interval">[{low}, {high}]</span>{each}'


def _expected(row: Row) -> str:
    return "" if pd.isna(row["value"]) else f" <small>expected {_text(row['threshold'])}</small>"


def _p_value(p: float) -> str:
    return (
        "&ndash;"
        if pd.isna(p)
        else "&lt;&nbsp;1e-6"
        if p <= 1e-6
        else f"{p:.0e}"
        if p < 0.001
        else f"{p:.3f}"
    )


def _controls(row: Row) -> str:
    if not row["controls"]:
        return ""
    each = "".join(
        f"<li>{_text(name)}: {_measured(control)} {_tag(control['verdict'])}</li>"
        for name, control in row["controls"].items()
    )
    names = _text(", ".join(map(str, row["controls"])))
    return f"<details><summary>Controls: {names}</summary><ul>{each}</ul></details>"


def _facts(facts: object, key: str = "") -> str:
    """Write provenance, nested to any depth, as lists of terms."""
    if isinstance(facts, Mapping):
        pairs = "".join(
            f"<dt>{_text(name)}</dt><dd>{_facts(fact, str(name))}</dd>" for name, fact in facts.items()
        )
        return f"<dl>{pairs}</dl>"
    if isinstance(facts, list | tuple):
        return "<ul>" + "".join(f"<li>{_facts(fact)}</li>" for fact in facts) + "</ul>"
    if key == "command":
        return f"<code>{_text(facts)}</code>"
    return "none" if facts is None else _text(facts)
