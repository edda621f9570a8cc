"""Draw a table again.

python -m vit_analysis.plot figures/cka.parquet figures/cka.png
"""

from pathlib import Path

import pandas as pd
import tyro

from vit_analysis.plot import PICTURES
from vit_analysis.plot.axes import Undrawable

ENDINGS = (".png", ".pdf", ".svg")


def main(table: Path, picture: Path, /) -> None:
    """Draw a table again without computing it again.

    Args:
        table: a .parquet file that a command of this package wrote.
        picture: .png, .pdf or .svg.
    """
    if not table.is_file():
        raise SystemExit(f"error: no table {str(table)!r}")
    rows = pd.read_parquet(table)
    analysis = str(rows.attrs.get("analysis"))
    if analysis not in PICTURES:
        raise SystemExit(
            f"error: {str(table)!r} is a table of {analysis!r}; there are pictures for {', '.join(PICTURES)}"
        )
    if picture.suffix.lower() not in ENDINGS:
        raise SystemExit(
            f"error: {str(picture)!r} is none of {', '.join(f'*{ending}' for ending in ENDINGS)}"
        )
    picture.parent.mkdir(parents=True, exist_ok=True)
    try:
        PICTURES[analysis](rows).savefig(picture)
    except (Undrawable, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    tyro.cli(main, prog="python -m vit_analysis.plot")
