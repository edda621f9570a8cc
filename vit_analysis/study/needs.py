"""Which models some figures need, found by drawing them of nothing and noting which parts they ask for."""

from collections.abc import Sequence
from dataclasses import fields
from typing import NamedTuple

import pandas as pd

from vit_analysis.spelling import Refusal
from vit_analysis.study.drawings import Drawing
from vit_analysis.study.evidence import Evidence, Study
from vit_analysis.study.parts import Parts

OF_ALL = {
    "cka_controls"
}  # tables whose numbers of one model depend on which others there are: untrained twins are taken away

ALSO = {
    "lesions_trained": ("vit",),
    "head_subsets": ("vit", "cnn"),
}  # parts that are measured, though a figure does not ask


class Needed(NamedTuple):
    """What some figures are drawn of.

    Attributes:
        parts: the models that they ask for, the first run of each.
        twins: whether they ask for untrained twins.
    """

    parts: Parts
    twins: bool


class _Noting(Parts):
    """Parts that note which models they were asked for."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(**{own.name: getattr(parts, own.name) for own in fields(parts)})
        object.__setattr__(self, "asked", set[str]())
        object.__setattr__(self, "asked_for_twins", [])

    def members(self, *parts: str) -> list[tuple[str, ...]]:
        found = super().members(*parts)
        vars(self)["asked"].update(runs[0] for runs in found)
        return found

    def twins(self) -> list[str]:
        vars(self)["asked_for_twins"].append(True)
        return super().twins()


class _OfNothing(Evidence):
    """Evidence whose tables have no rows."""

    def table(self, name: str) -> pd.DataFrame:  # noqa: ARG002
        return pd.DataFrame({"model": [], "control": []})


def of(chosen: Sequence[Drawing], parts: Parts) -> Needed:
    """What these figures need of some models; all, where one of them does not say."""
    everything = Needed(parts, twins=True)
    if any(OF_ALL & {*drawing.tables} for drawing in chosen):
        return everything
    asked, twins = set[str](), False
    for drawing in chosen:
        own, with_twins = _asked(drawing, parts)
        also = [part for table in drawing.tables for part in ALSO.get(table, ())]
        own |= {*parts.names(*also)} if also else set()
        if not own:
            return everything
        asked |= own
        twins |= with_twins
    return Needed(parts.change(lambda name: name if name in asked else None), twins)


def _asked(drawing: Drawing, parts: Parts) -> tuple[set[str], bool]:
    """The models that a figure asks for, and whether it asks for twins; nothing for a figure that draws whatever there is."""
    noting = _Noting(parts)
    evidence = _OfNothing(Study(noting, {}, {}))
    try:
        (drawing.panels or drawing.draw)(evidence)
    except Refusal:
        pass  # of what it would need, or that there is no such row: it has asked by then
    except (KeyError, ValueError, IndexError, RuntimeError):
        return set(), False  # it draws the whole table, and nothing can be drawn of an empty one
    return vars(noting)["asked"], bool(vars(noting)["asked_for_twins"])
