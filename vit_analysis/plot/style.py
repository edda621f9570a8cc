"""How the pictures of a study look: what models are called, one look for each of them, and how wide a picture is.

    with plot.style(names={"lab/vit": "ViT"}, cast=["lab/vit", "lab/resnet"], width=3.25):
        figure = plot.receptive_field(table)

Nothing here imports anything of ours. Drawing code asks `display_name`, `look`, `page_width` and `points`.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

# Any two are told apart with every kind of colour blindness: by a CIEDE2000 distance of 13 at least, the first six by 14.
PALETTE = (
    "#0f3f8c", "#cc3311", "#e49d04", "#03866a", "#9a5bcf", "#4eb4e7", "#6c3d2c", "#b87299", "#1d2027", "#90a976",
)  # fmt: skip
MARKERS = tuple("os^DvPX<>ph")  # one more than colours, so that they differ where colours repeat
COLUMN = 3.25  # inches: a column of a paper
NARROW = 5.0  # inches, below which letters are set smaller
LEAST = 6.0  # points, of the smallest letters

UNTRAINED = re.compile(r"(?P<model>.+)@random(?::(?P<seed>\d+))?")
FURTHER = re.compile(r"(?P<model>.+):(?P<run>\d+)")


@dataclass(frozen=True)
class Style:
    """What is true of every picture drawn now; see `style`."""

    names: Mapping[str, str] = field(default_factory=dict)
    cast: tuple[str, ...] = ()
    width: float | int | None = None


@dataclass(frozen=True)
class Look:
    """How a model is drawn wherever it is drawn: an untrained twin in its model's colour, dashed, its markers open.

    Attributes:
        colour: of lines, markers and bands.
        marker: of matplotlib.
        dashes: of matplotlib: ``-``, ``--``, ``:`` or ``-.``.
        filled: whether markers are.
    """

    colour: str
    marker: str
    dashes: str
    filled: bool = True

    def line(self) -> dict[str, Any]:
        """The arguments of ``Axes.plot``."""
        face = self.colour if self.filled else "white"
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.dashes,
            "markerfacecolor": face,
        }


NATURAL = Style()
NOW: ContextVar[Style] = ContextVar("style", default=NATURAL)


@contextmanager
def style(
    names: Mapping[str, str] = {},
    cast: Sequence[str] = (),
    width: float | int | None = None,
) -> Iterator[None]:
    """Draw every picture inside with these names, looks and width.

    Args:
        names: what models are called, by the names that tables have: ``{"lab/vit": "ViT"}``. Untrained twins and further
            training runs of a model follow from its name.
        cast: all models of a study in their order, by which each has one look in all pictures; else those of a table.
        width: of every picture, in inches; None leaves each as wide as it is by nature.

    Raises:
        ValueError: the width is no positive number.
    """
    if width is not None and not 0 < width < float("inf"):
        raise ValueError(f"a picture cannot be {width} inches wide")
    token = NOW.set(Style(dict(names), tuple(cast), width))
    try:
        yield
    finally:
        NOW.reset(token)


def display_name(model: str) -> str:
    """What a model is called in pictures: its own name where the style has none.

    Examples:
        >>> with style(names={"lab/vit": "ViT"}):
        ...     [display_name(name) for name in ("lab/vit", "lab/vit@random", "lab/vit:1", "lab/resnet")]
        ['ViT', 'ViT, untrained', 'ViT, run 2', 'lab/resnet']
    """
    names = NOW.get().names
    family, told = _family(model, names)
    return ", ".join([names[family], *told]) if family in names else model


def look(model: str, table: pd.DataFrame | None = None) -> Look:
    """The look of a model, by its place among the models of the study or, where none is told, of the table.

    Untrained twins and further training runs have their model's colour and marker. Beyond ten models colours repeat, with
    other markers and dashes.
    """
    cast = [*NOW.get().cast, *_models(table), model]
    trained = [family for family, told in (_family(name, ()) for name in cast) if "untrained" not in told]
    families = list(dict.fromkeys(_family(name, trained)[0] for name in cast))
    family, told = _family(model, trained)
    turn, colour = divmod(families.index(family), len(PALETTE))
    dashes = "--" if "untrained" in told else ":" if told else ("-", "-.")[turn % 2]
    marker = MARKERS[families.index(family) % len(MARKERS)]
    return Look(PALETTE[colour], marker, dashes, "untrained" not in told)


def family(model: str, table: pd.DataFrame | None = None) -> tuple[str, list[str]]:
    """The model that this is, is the untrained twin of or a training run of, and which of these it is: ``["run 2"]``."""
    cast = [*NOW.get().cast, *_models(table), model]
    return _family(
        model, [own for own, told in (_family(name, ()) for name in cast) if "untrained" not in told]
    )


def page_width(natural: float | int) -> float:
    """The width in inches to draw a picture in: the style's, or else the one it has by nature."""
    width = NOW.get().width
    return float(natural if width is None else width)


def points(natural: float | int) -> float:
    """The size of letters for what has ``natural`` points in a wide picture: smaller in a column, never too small to read."""
    return float(natural) if page_width(NARROW) >= NARROW else max(LEAST, natural - 1.5)


def _family(model: str, known: Collection[str]) -> tuple[str, list[str]]:
    """The model of ``known`` that this is, is an untrained twin of or a training run of, and which of these it is in words.

    Where none is known it is the model whose name is left after both are taken off. The twin of ``NAME@WEIGHTS`` may be
    called ``NAME@random``.
    """
    told: list[str] = []
    while model not in known:
        if twin := UNTRAINED.fullmatch(model):
            own = ["untrained", *([f"seed {twin['seed']}"] if twin["seed"] else [])]
        elif twin := FURTHER.fullmatch(model):
            own = [f"run {int(twin['run']) + 1}"]
        else:
            break
        model, told = twin["model"], [*own, *told]
    if model not in known and "untrained" in told:
        model = next((name for name in known if name.partition("@")[0] == model), model)
    return model, told


def _models(table: pd.DataFrame | None) -> list[str]:
    """The models of a table, in the order in which they were measured."""
    if table is None:
        return []
    columns = [name for name in ("model", "other_model", "vit", "cnn") if name in table]
    held = [str(model) for name in columns for model in table[name].unique()]
    return list(dict.fromkeys([*table.attrs.get("models", {}), *held]))
