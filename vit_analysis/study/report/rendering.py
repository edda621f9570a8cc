"""The page as HTML: the template filled, and only this page's own style and script allowed to work in it."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vit_analysis.plot.style import style
from vit_analysis.study.differences import Difference
from vit_analysis.study.report.page import page
from vit_analysis.study.report.sections import Place
from vit_analysis.study.report.words import linked
from vit_analysis.table import write_whole

HERE = Path(__file__).parent
STYLES = ("page.css", "parts.css", "media.css")
SCRIPTS = ("theme.js", "pictures.js", "download.js", "claims.js", "heatmaps.js")


def write(
    path: Path,
    places: Sequence[Place],
    findings: pd.DataFrame,
    differences: Sequence[Difference],
    provenance: Mapping[str, Any],
    names: Mapping[str, str] = {},
) -> None:
    """Write the report to ``path``, whole or not at all.

    Args:
        path: the HTML file.
        places: the figures, in the order they are shown.
        findings: what `findings.measure` returns; ``controls`` holds mappings ``{name: {"value", "low", "high", "verdict"}}``
            and ``runs`` lists, not JSON. Its ``attrs`` hold ``parts``, of which the cast is made, and ``models``.
        differences: the five, which the report opens with.
        provenance: whatever says how the study can be repeated: command, models with digests, images, versions, notes.
        names: models' names as a paper would write them, by the names that tables have.

    Raises:
        FileNotFoundError: a picture is not there; it names those that are.
        Refusal: a column is missing.
        KeyError: a difference or a reason rests on a finding that is not there.
        ValueError: an unknown verdict, a place without picture or reason, a heat map of more than two models.
    """
    with style(names):
        text = rendered(page(places, findings, differences, provenance))
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8", newline="\n"))


def rendered(data: Mapping[str, Any]) -> str:
    """The page as HTML."""
    looks, script = (source(names) for names in (STYLES, SCRIPTS))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(looks)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    claims = [row["id"] for row in data["rows"]]
    environment.filters["linked"] = partial(
        linked, figures=data["figures"], claims=claims, letters=data["letters"]
    )
    template = environment.get_template("page.html")
    return template.render(data, policy=policy, style=Markup(looks), script=Markup(script))


def source(names: Sequence[str]) -> str:
    """Files beside this one, as one text."""
    return "".join((HERE / name).read_text(encoding="utf-8") for name in names)


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
