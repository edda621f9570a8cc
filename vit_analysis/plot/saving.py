"""Pictures as files for papers: png, pdf with its fonts whole, svg whose text is text; the same picture is the same bytes."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure


class Format(NamedTuple):
    """What a kind of file holds beside the picture.

    Attributes:
        maker: the key of the maker's name.
        stamp: the key of the stamp of what it was drawn from.
        time: the key of the time, which is left out, as files would differ each time; empty where there is none.
    """

    maker: str
    stamp: str
    time: str = ""


FORMATS: Mapping[str, Format] = {
    ".png": Format("Software", "Comment"),
    ".pdf": Format("Creator", "Keywords", "CreationDate"),
    ".svg": Format("Creator", "Identifier", "Date"),
}
"""The kinds of pictures, by their endings."""


def save(figure: Figure, path: Path, maker: str, stamp: str = "") -> None:
    """Write a figure with a maker's name in it.

    Args:
        figure: the figure.
        path: with one of the endings of `FORMATS`, in small letters or capitals.
        maker: by which the file is known again.
        stamp: of what it was drawn from; empty for none.
    """
    form = FORMATS[path.suffix.lower()]
    metadata = {form.maker: maker, **({form.time: None} if form.time else {})}
    metadata |= {form.stamp: stamp} if stamp else {}
    # TrueType (42) is what publishers ask for; text stays text, and names inside do not depend on chance.
    with mpl.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": maker}):
        figure.savefig(path, metadata=metadata)
