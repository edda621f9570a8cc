"""Which columns of a table hold images and their classes, as the Hugging Face hub stores them or as the user names them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vit_analysis.sources.labels import Labels, of_codes
from vit_analysis.spelling import Refusal, did_you_mean

IMAGES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "pixels", "input")
CLASSES = ("label", "labels", "class", "classes", "category", "target", "cls", "fine_label", "y")


@dataclass(frozen=True)
class Columns:
    """The columns that are read.

    Attributes:
        image: the column of images: the bytes of a file, or a struct of ``bytes`` and ``path``.
        label: the column of classes; None where there is none.
        names: names of the classes, where the table has them.
    """

    image: str
    label: str | None
    names: tuple[str, ...] | None

    def labels(self, column: pa.ChunkedArray | None, images: int, what: str) -> Labels:
        """Number the classes in the column of labels."""
        if column is None:
            return of_codes(np.full(images, -1), [], what)
        encoded = pc.dictionary_encode(column).unify_dictionaries().combine_chunks()
        chunk = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
        codes = chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        return of_codes(codes, chunk.dictionary.to_pylist(), what, self.names)


def found(schema: pa.Schema, image: str | None, label: str | None, what: str) -> Columns:
    """Find the columns by type and name.

    Raises:
        Refusal: there are none, or several could be meant, or the one that the user names is of another type.
    """
    features = _features(schema)
    own = _chosen(schema, image, "image", what, lambda field: _holds_files(field.type))
    if own is None:
        marked = [
            name for name in features if features[name].get("_type") == "Image" and name in schema.names
        ]
        files = marked or [field.name for field in schema if _holds_files(field.type)]
        own = _one(
            [[name for name in files if name.lower() in IMAGES] if len(files) > 1 else files],
            files,
            "image",
            what,
        )
    if own is None:
        raise Refusal(f"no column of {what} holds images, as bytes; {_shown(schema)}")
    known = _chosen(schema, label, "label", what, lambda field: _holds_classes(field.type))
    if known is None:
        able = [field.name for field in schema if _holds_classes(field.type)]
        classes = [name for name in able if features.get(name, {}).get("_type") == "ClassLabel"]
        named = [name for name in able if name.lower() in CLASSES]
        both = [name for name in classes if name in named]
        known = _one([both, named, classes], able, "label", what)
    names = features.get(known or "", {}).get("names")
    return Columns(own, known, tuple(names) if names else None)


def content(cell: Any) -> tuple[bytes | None, str | None]:
    """The bytes of an image and its path, of which one may be missing."""
    if isinstance(cell, dict):
        return cell.get("bytes"), cell.get("path")
    return cell, None


def _chosen(
    schema: pa.Schema, name: str | None, kind: str, what: str, fits: Callable[[pa.Field], bool]
) -> str | None:
    if name is None:
        return None
    if name not in schema.names:
        raise Refusal(f"{what} has no column {name!r}; {did_you_mean(name, schema.names)}")
    if not fits(schema.field(name)):
        expected = "the bytes of files" if kind == "image" else "one number or name for each image"
        raise Refusal(
            f"column {name!r} of {what} holds {schema.field(name).type} and not {expected}; {_shown(schema)}"
        )
    return name


def _one(tiers: Sequence[list[str]], able: list[str], kind: str, what: str) -> str | None:
    """The one column of the first tier that has any."""
    first = next((tier for tier in tiers if tier), [])
    several = first or (able if kind == "image" else [])
    if len(several) > 1:
        raise Refusal(
            f"columns {', '.join(map(repr, several))} of {what} could all be meant; say --images.{kind}-column {several[0]}"
        )
    return several[0] if several else None


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What the library ``datasets`` notes of the columns."""
    noted = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(noted)["info"]["features"] if noted else {}
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: own for name, own in features.items() if isinstance(own, dict)}


def _holds_files(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        inner = [kind.field(number) for number in range(kind.num_fields)]
        return any(field.name == "bytes" and _holds_files(field.type) for field in inner)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _holds_classes(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return (
        pa.types.is_boolean(inner)
        or pa.types.is_integer(inner)
        or pa.types.is_string(inner)
        or pa.types.is_large_string(inner)
    )


def _shown(schema: pa.Schema) -> str:
    return f"there are {', '.join(f'{field.name} ({field.type})' for field in list(schema)[:8])}"
