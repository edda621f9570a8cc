"""Draw a table again.

python -m vit_analysis.plot figures/cka.parquet figures/cka.png

A command that nothing imports: it alone of this folder knows how tables are read and pictures written.
"""

from pathlib import Path

from vit_analysis import table as tables
from vit_analysis.plot import PICTURES
from vit_analysis.plot.axes import Undrawable
from vit_analysis.plot.saving import FORMATS
from vit_analysis.shell import running
from vit_analysis.spelling import Refusal


def main(table: Path, picture: Path, /) -> None:
    """Draw a table again without computing it again.

    Args:
        table: a .parquet file that a command of this package wrote.
        picture: .png, .pdf or .svg; replaces only a picture that this package made.
    """
    try:
        draw(table, picture)
    except (Undrawable, Refusal, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def draw(table: Path, picture: Path) -> None:
    """Draw a table as a picture.

    Raises:
        Refusal: nothing draws such a table or writes such a picture, or what is there would be lost.
        OSError: the table cannot be read or the picture not be written.
    """
    if picture.suffix.lower() not in FORMATS:
        raise Refusal(f"{str(picture)!r} is none of {', '.join(f'*{ending}' for ending in FORMATS)}")
    if picture.exists() and not tables.is_ours(picture):
        raise Refusal(f"{str(picture)!r} is there and was not made by vit_analysis; choose another name")
    rows = tables.read(table)
    analysis = str(rows.attrs.get("analysis"))
    if analysis not in PICTURES:
        raise Refusal(
            f"{str(table)!r} is a table of {analysis!r}; there are pictures for {', '.join(PICTURES)}"
        )
    tables.write_picture(PICTURES[analysis](rows), picture)


if __name__ == "__main__":
    running.alone(main)
