"""Pictures as the page holds them: in its own text, and no larger than they need be."""

import base64
import io
import re
import struct
from pathlib import Path
from typing import Any

from PIL import Image

from vit_analysis.spelling import did_you_mean
from vit_analysis.study.report.sections import Place
from vit_analysis.study.report.words import label

PNG = b"\x89PNG\r\n\x1a\n"
SVG = re.compile(rb'<svg[^>]*? width="([\d.]+)pt" height="([\d.]+)pt"')
LARGE = 150_000  # bytes, from which a PNG is kept in 256 colours: a third of the size, and no colour off by more than 1/20


def picture(place: Place, path: Path) -> dict[str, Any]:
    """A picture as it is embedded.

    Raises:
        FileNotFoundError: it is not there; names those that are.
        ValueError: it is neither a PNG nor an SVG.
    """
    if not path.is_file():
        near = did_you_mean(path.name, sorted(file.name for file in path.parent.glob("*.png")))
        raise FileNotFoundError(f"no picture {path} for figure {place.id}; {near}")
    data = path.read_bytes()
    if data.startswith(PNG):
        kind, size = "png", struct.unpack(">II", data[16:24])
        width, height = (
            dots // 2 for dots in size
        )  # 200 dots per inch, where a page has about half as many (96)
        data = lean(data)
    elif found := SVG.search(data):
        kind, (width, height) = "svg+xml", (round(float(points) * 96 / 72) for points in found.groups())
    else:
        raise ValueError(
            f"{path}, the picture of figure {place.id}, is neither a PNG nor an SVG of matplotlib"
        )
    return {
        "source": f"data:image/{kind};base64,{base64.b64encode(data).decode()}",
        "alternative": place.alternative,
        "title": f"{label(place.id)}: {place.title}",
        "width": width,
        "height": height,
    }


def lean(png: bytes) -> bytes:
    """The same picture in 256 colours where that makes a large one smaller; the file on disk stays as it is."""
    if len(png) < LARGE:
        return png
    with Image.open(io.BytesIO(png)) as whole:
        few = whole.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    smaller = io.BytesIO()
    few.save(smaller, "PNG")
    return min(png, smaller.getvalue(), key=len)
