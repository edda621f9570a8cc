"""Small sets of images in every form, each image of one colour that tells its number."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vit_analysis.images import Images, Preprocessing

SMALL = Preprocessing(input_size=(3, 4, 4), mean=(0.0,) * 3, std=(1.0,) * 3, crop_pct=1.0)


def png(number: int) -> bytes:
    """An image of one shade of grey."""
    return saved(Image.fromarray(np.full((4, 5, 3), number, dtype=np.uint8)), "png")


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def folder(root: Path, files: Mapping[str, int | bytes]) -> Path:
    """Files below a folder; a number is an image of that number."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(content) if isinstance(content, int) else content)
    return root


def tar(path: Path, files: Mapping[str, int | bytes | str | dict]) -> Path:
    """A tar of files; a number is an image, a text or a mapping is written as WebDataset does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as made:
        for name, content in files.items():
            if isinstance(content, dict):
                content = json.dumps(content)
            if isinstance(content, str):
                content = content.encode()
            data = png(content) if isinstance(content, int) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return path


def table(columns: Mapping[str, Sequence], features: Mapping[str, dict] | None = None) -> pa.Table:
    """A table; a list of numbers under a name that begins with ``i`` or ``p`` is one of images."""
    arrays = {
        name: [{"bytes": png(own), "path": f"{own}.png"} for own in values] if name[0] in "ip" else values
        for name, values in columns.items()
    }
    made = pa.table(arrays)
    noted = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    return made.replace_schema_metadata(noted)


def parquet(path: Path, own: pa.Table, group: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(own, path, row_group_size=group)
    return path


def read(source: Path | str, **options) -> dict[int, tuple[int, int]]:
    """By number, the shade of grey and the label of every image."""
    images = Images(str(source), **{"limit": None, "workers": 0, "batch": 4} | options)
    return read_all(images)


def read_all(images: Images) -> dict[int, tuple[int, int]]:
    found = {}
    for batch in images.read([SMALL]):
        shades = (batch.inputs[0].mean((1, 2, 3)) * 255).round().int().tolist()
        found |= dict(zip(batch.images, zip(shades, batch.labels.tolist(), strict=True), strict=True))
    return dict(sorted(found.items()))


def in_order(found: dict[int, tuple[int, int]]) -> list[tuple[int, int]]:
    assert list(found) == list(range(len(found)))
    return list(found.values())
