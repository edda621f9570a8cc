"""Every figure's place in the report: the paper's claim, what these models show, what readers have to know, and heat maps."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from vit_analysis.plot.style import display_name
from vit_analysis.study.controls import CONTROLS
from vit_analysis.study.drawings import DRAWINGS, Drawing
from vit_analysis.study.evidence import Evidence
from vit_analysis.study.report.substitutions import substituted

HALF = 0.5  # of a layer's similarity: what comes from few tokens beyond that is said
EMBEDDED = (".png", ".svg")  # kinds of pictures that the page can hold
UNDECIDED = "No verdict rests on this figure alone."


class Panel(NamedTuple):
    """Two models compared, layer by layer, in one way or several.

    Attributes:
        models: the model that goes upwards and the one to the right; the same one twice for a model with itself.
        views: tables of CKA, each with every pair of layers, by the words for how they are compared.
    """

    models: tuple[str, str]
    views: Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Place:
    """A figure's place in the report."""

    id: str
    """The figure's number: ``1``, ``B.1``, ``notes``."""
    title: str
    claim: str
    """The paper's claim in our own words."""
    shows: str
    """What these models show where no claim says it; empty where one does."""
    picture: Path | None
    """A PNG or an SVG; None where there is none."""
    alternative: str
    """What the picture shows, for those who cannot see it."""
    missing: str = ""
    """Why there is no picture: which model or data it would need."""
    command: str = ""
    """What makes this picture alone."""
    panels: Sequence[Panel] = ()
    """What is drawn as interactive heat maps."""
    images: str = ""
    """What was measured on what, in place of the paper's models and images."""
    warnings: Sequence[str] = ()
    """What readers have to know before they believe the figure."""


def places(
    evidence: Evidence, drawn: Mapping[str, Path | str], found: pd.DataFrame, line: str
) -> list[Place]:
    """Every figure's place in the report.

    Args:
        evidence: what the figures are drawn from.
        drawn: for each figure by its id a picture, or a sentence on what it would need.
        found: the findings, with ``notes`` in their ``attrs``.
        line: the command that makes all figures.
    """
    return [
        _place(evidence, drawing, picture, found, line)
        if isinstance(picture := drawn[drawing.id], Path)
        else Place(drawing.id, drawing.title, drawing.claim, "", None, drawing.alternative, f"This figure: {picture}.")
        for drawing in DRAWINGS
    ]  # fmt: skip


def _place(evidence: Evidence, drawing: Drawing, picture: Path, found: pd.DataFrame, line: str) -> Place:
    panels = _panels(evidence, drawing)
    decided = (found["figure"] == drawing.id).any()
    return Place(
        id=drawing.id,
        title=drawing.title,
        claim=drawing.claim,
        shows="" if decided else _shows(panels, drawing),
        picture=picture if picture.suffix in EMBEDDED else None,
        alternative=drawing.alternative,
        missing=""
        if picture.suffix in EMBEDDED
        else f"It is {picture.name}; --format png puts it on this page as well.",
        command=f"{line} --only {shlex.quote(drawing.id)}",
        panels=panels,
        images=_images(evidence, drawing),
        warnings=[
            *substituted(drawing.id, evidence),
            *_massive(evidence, drawing, panels),
            *_notes(panels, found),
        ],
    )


def _panels(evidence: Evidence, drawing: Drawing) -> list[Panel]:
    if drawing.panels is None:
        return []
    cka = evidence.table("cka")
    controls = evidence.study.tables.get("cka_controls")
    tables = [(_words(cka), cka)] + ([] if controls is None else _by_control(controls))
    found = []
    for pair in drawing.panels(evidence):
        views = {words: own for words, table in tables if (own := between(table, *pair)) is not None}
        if views:
            found.append(Panel(pair, views))
    shared = (
        [words for words in found[0].views if all(words in panel.views for panel in found)] if found else []
    )
    return [Panel(panel.models, {words: panel.views[words] for words in shared}) for panel in found]  # fmt: skip


def _words(cka: pd.DataFrame) -> str:
    layers, tokens = (cka.attrs.get(name) for name in ("layers", "tokens"))
    which = "all sublayers, as in the paper" if layers == "paper" else "all layers that were measured"
    return which if tokens in ("all", None) else f"{which}, {tokens} tokens"


def _by_control(controls: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The table of each control, with block outputs as they are first."""
    words = {own.name: own.words for own in CONTROLS if own.view} | {"all": "block outputs only"}
    measured = dict.fromkeys(controls["control"])
    return [(f"blocks: {words[name]}" if name != "all" else words[name], controls[controls["control"] == name])
            for name in measured if name in words]  # fmt: skip


def between(table: pd.DataFrame, model: str, other: str) -> pd.DataFrame | None:
    """The rows that compare two models, the first one upwards, in order of execution; None where there are none."""
    held = table[(table["model"] == model) & (table["other_model"] == other)]
    if len(held):
        return held
    turned = table[(table["model"] == other) & (table["other_model"] == model)]
    if turned.empty:
        return None
    swapped = {f"other_{name}": name for name in ("model", "layer", "depth")}
    turned = turned.rename(columns=swapped | {name: side for side, name in swapped.items()})
    order = [pd.factorize(turned[side])[0] for side in ("other_layer", "layer")]
    return turned.iloc[np.lexsort(order)]


def _shows(panels: Sequence[Panel], drawing: Drawing) -> str:
    """What a figure shows that no claim is about: how alike layers are, or what is drawn."""
    told = []
    for panel in panels:
        table = next(iter(panel.views.values()))
        same = panel.models[0] == panel.models[1]
        apart = table[table["layer"] != table["other_layer"]] if same else table
        names = [display_name(name) for name in dict.fromkeys(panel.models)]
        pairs = "different layers" if same else "layers"
        told.append(f"{' and '.join(names)}: CKA of {pairs} is {apart['cka'].mean():.2f} on average")
    return f"{UNDECIDED} {'; '.join(told)}." if told else f"{UNDECIDED} {drawing.alternative}"


def _images(evidence: Evidence, drawing: Drawing) -> str:
    """Which images the figure's tables were measured on, and which ones probes learned from."""
    told = []
    for name in drawing.tables:
        facts = evidence.table(name).attrs
        told.append(_count(facts.get("images", {}), "images"))
        told.append(_count(facts.get("train", {}), "more to learn from"))
    return "; ".join(dict.fromkeys(text for text in told if text))


def _count(images: Mapping[str, Any], what: str) -> str:
    if not images.get("count"):
        return ""
    split = f" ({images['split']})" if images.get("split") else ""
    source = Path(
        str(images.get("source"))
    ).name  # of a folder its name; where it lies is told by the provenance
    return f"{images['count']:,} {what} of {source}{split}"


def _massive(evidence: Evidence, drawing: Drawing, panels: Sequence[Panel]) -> list[str]:
    """Say in which layers a few massive tokens make up most of what is compared."""
    shown = {name for panel in panels for name in panel.models}
    told = []
    for name in drawing.tables:
        facts = evidence.table(name).attrs
        if facts.get("tokens", "all") != "all":
            continue
        for model, (many, total) in _dominated(facts.get("massive", ())).items():
            if many and (model in shown or not panels):
                told.append(
                    f"{display_name(model)}: in {many} of {total} layers a few tokens with very large values (massive tokens) "
                    "make up more than half of what is compared, so that this figure shows mostly those tokens there. The "
                    "controls that normalise tokens show the others."
                )
    return told


def _dominated(massive: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """By model, how many of its layers a few massive tokens rule, and how many layers it has."""
    counts: dict[str, tuple[int, int]] = {}
    for row in massive:
        many, total = counts.get(row["model"], (0, 0))
        share = max(row.get(name) or 0.0 for name in ("hsic", "distances"))
        counts[row["model"]] = (many + (share > HALF), total + 1)
    return counts


def _notes(panels: Sequence[Panel], found: pd.DataFrame) -> list[str]:
    """The notes of the findings on models that are drawn here."""
    shown = dict.fromkeys(name for panel in panels for name in panel.models)
    return [
        f"{note}." for note in found.attrs.get("notes", ()) for name in shown if note.startswith(f"{name} ")
    ]
