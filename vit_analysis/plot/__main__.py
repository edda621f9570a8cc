"""Draw a table again: for a paper, with other names, of some models only, or in another layout.

    python -m vit_analysis.plot figures/cka.parquet figures/cka.png
    python -m vit_analysis.plot figures/skip.parquet cosines.pdf --layout cosines --width 3.25 --names lab/vit=ViT

A command that nothing imports: it alone of this folder knows how tables are read and pictures written.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vit_analysis import table as tables
from vit_analysis.plot import LAYOUTS, style
from vit_analysis.plot.axes import Undrawable
from vit_analysis.plot.saving import FORMATS
from vit_analysis.shell import running
from vit_analysis.spelling import Refusal, did_you_mean
from vit_analysis.typed import Pictures

SIDES = ("model", "other_model", "vit", "cnn")  # columns that hold the names of models


def main(
    table: Path,
    picture: Path,
    /,
    *,
    layout: str | None = None,
    models: tuple[str, ...] = (),
    names: tuple[str, ...] = (),
    width: float | None = None,
) -> None:
    """Draw a table again without computing it again.

    Args:
        table: a .parquet file that a command of this package wrote.
        picture: .png, .pdf or .svg; replaces only a picture that this package made.
        layout: which picture, where several can be drawn of a table; by default that of the command that wrote it.
        models: only these models, in this order.
        names: what models are called, as MODEL=NAME; untrained twins and training runs follow.
        width: of the picture in inches, such as 3.25 for a column; by default as wide as it is by nature.
    """
    try:
        draw(table, picture, layout=layout, models=models, names=names, width=width)
    except (Undrawable, Refusal, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def draw(
    table: Path,
    picture: Path,
    *,
    layout: str | None = None,
    models: Sequence[str] = (),
    names: Sequence[str] = (),
    width: float | None = None,
) -> None:
    """Draw a table as a picture.

    Raises:
        Refusal: nothing draws such a table or writes such a picture, what is there would be lost, or a name is none of the
            table's.
        OSError: the table cannot be read or the picture not be written.
    """
    replaceable(picture)
    asked = Pictures(width=width, names=tuple(names))
    rows = tables.read(table)
    analysis = str(rows.attrs.get("analysis"))
    if analysis not in LAYOUTS:
        raise Refusal(
            f"{str(table)!r} is a table of {analysis!r}; there are pictures for {', '.join(LAYOUTS)}"
        )
    layouts = LAYOUTS[analysis]
    if layout is not None and layout not in layouts:
        raise Refusal(f"no layout {layout!r} of a table of {analysis}; {did_you_mean(layout, layouts)}")
    if analysis == "findings":
        nested = {name: rows[name].map(json.loads) for name in tables.NESTED if name in rows}
        rows = rows.assign(**nested)
    shown, cast = only(rows, models), held(rows)
    asked.refuse_others(cast)
    with style(asked.called, cast, width):
        tables.write_picture(layouts[layout or next(iter(layouts))](shown), picture)


def replaceable(picture: Path) -> None:
    """Make sure that a picture can be written there.

    Raises:
        Refusal: it has no ending of a picture, or is there and not ours.
    """
    if picture.suffix.lower() not in FORMATS:
        kinds = ", ".join(f"*{ending}" for ending in FORMATS)
        near = did_you_mean(picture.suffix, FORMATS) if picture.suffix else "its ending says which"
        raise Refusal(f"{str(picture)!r} is none of {kinds}; {near}")
    if picture.exists() and not tables.is_ours(picture):
        raise Refusal(f"{str(picture)!r} is there and was not made by vit_analysis; choose another name")


def held(rows: pd.DataFrame) -> list[str]:
    """The names of the models that a table is of."""
    sides = [str(name) for side in SIDES if side in rows for name in rows[side].unique()]
    return list(dict.fromkeys([*map(str, rows.attrs.get("models", {})), *sides]))


def only(rows: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """The rows of some models, in their order; all of them where none is named.

    Raises:
        Refusal: one is none of the table, or the table has no rows by model.
    """
    sides = [side for side in SIDES if side in rows]
    if models and not sides:
        raise Refusal(f"--models: a table of {rows.attrs.get('analysis')} has no rows by model")
    there = {str(name) for side in sides for name in rows[side].unique()}
    for model in models:
        if model not in there:
            raise Refusal(f"no model {model!r} in the table; {did_you_mean(model, sorted(there))}")
    if not models:
        return rows
    shown = rows[rows[sides].isin(models).all(axis=1)]
    order = {model: place for place, model in enumerate(models)}
    shown = shown.sort_values(sides, key=lambda column: column.map(order), kind="stable", ignore_index=True)
    shown.attrs = rows.attrs
    return shown


if __name__ == "__main__":
    running.alone(main)
