"""Which columns of a table hold images and their classes, as the Hugging Face hub stores them or as the user names them."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from vit_analysis.sources.labels import Labels, of_codes, said
from vit_analysis.spelling import Refusal, did_you_mean

logger = logging.getLogger(__name__)

IMAGES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "pixels", "input")
CLASSES = ("label", "labels", "class", "classes", "category", "target", "cls", "fine_label", "y")


@dataclass(frozen=True)
class Columns:
    """The columns that are read.

    Attributes:
        image: the column of images: the bytes of a file, or a struct of ``bytes`` and ``path``.
        label: the column of classes; None where there is none.
        names: names of the classes, where the table has them.
        asked: whether the user names the column of classes.
        unread: a column that is called as classes are and is of another kind.
    """

    image: str
    label: str | None
    names: tuple[str, ...] | None
    asked: bool = field(default=False, compare=False)
    unread: str | None = field(default=None, compare=False)

    def labels(self, parts: Sequence[tuple[str, pa.ChunkedArray]], images: int, what: str) -> Labels:
        """Number the classes in the column of labels of each shard, by its name.

        Raises:
            Refusal: the column is the one that the user names and does not hold classes, or shards hold numbers and texts.
        """
        codes, values, text = [np.full(0, -1)], dict[str | int, int](), False
        for place, (name, column) in enumerate(parts):
            read = encoded(column)
            if read is None:
                self._refuse_odd(column, name)
                return of_codes(np.full(images, -1), [], what)
            texts = {isinstance(value, str) for value in read[1]}
            if place and texts and texts != {text} and values:
                raise Refusal(
                    f"column {self.label!r} of {name} holds {column.type}, and of {parts[0][0]} {parts[0][1].type}; write "
                    f"numbers in both, or names"
                )
            text = text if not texts else texts.pop()
            own = np.array([values.setdefault(value, len(values)) for value in read[1]] + [-1])
            codes.append(own[read[0]])
        if not parts:
            if self.unread:
                logger.warning("column %s of %s, which is not read as classes", self.unread, what)
            return of_codes(np.full(images, -1), [], what)
        return of_codes(np.concatenate(codes), list(values), what, self.names)

    def _refuse_odd(self, column: pa.ChunkedArray, name: str) -> None:
        """Say that a column holds something else than classes, or refuse it if the user names it."""
        if self.asked:
            raise Refusal(
                f"column {self.label!r} of {name} holds {column.type} and not one number or name for each image"
            )
        shown = str(column[0].as_py())[:60]
        logger.warning(
            "column %r of %s holds %s, such as %s, which is not read as classes",
            self.label,
            name,
            column.type,
            shown,
        )


def encoded(column: pa.ChunkedArray) -> tuple[Int[np.ndarray, " image"], list[str | int]] | None:
    """Which of different numbers or names is said of each image, -1 where none is; None if a column holds anything else."""
    while _is_list(column.type):
        if not pc.all(pc.equal(pc.list_value_length(column), 1)).as_py():
            return None
        column = pc.list_element(column, 0)
    if pa.types.is_null(column.type):
        return np.full(len(column), -1), []
    if not (_holds_classes(column.type) or pa.types.is_floating(column.type)):
        return None
    column = column.cast(pa.float64()) if pa.types.is_floating(column.type) else column
    whole = pc.dictionary_encode(column).unify_dictionaries().combine_chunks()
    chunk = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
    found = chunk.dictionary.to_pylist()
    values = [said(value) for value in found]
    if any(
        own is None and value == value and value not in (None, "")
        for own, value in zip(values, found, strict=True)
    ):
        return None
    codes = chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    places = {
        value: place for place, value in enumerate(dict.fromkeys(own for own in values if own is not None))
    }
    return np.array([-1 if own is None else places[own] for own in values] + [-1])[codes], list(places)


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
    others: list[pa.Field] = []
    known = _chosen(schema, label, "label", what, lambda field: _may_hold_classes(field.type))
    if known is None:
        able = [field.name for field in schema if _holds_classes(field.type)]
        classes = [name for name in able if features.get(name, {}).get("_type") == "ClassLabel"]
        named = [name for name in able if name.lower() in CLASSES]
        both = [name for name in classes if name in named]
        others = [field for field in schema if field.name.lower() in CLASSES and field.name != own]
        odd = [field.name for field in others if _may_hold_classes(field.type)]
        known = _one([both, named, classes, odd], able, "label", what)
    unread = next((f"{field.name!r} ({field.type})" for field in others), None) if known is None else None
    names = features.get(known or "", {}).get("names")
    return Columns(own, known, tuple(names) if names else None, label is not None, unread)


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


def _may_hold_classes(kind: pa.DataType) -> bool:
    """Return whether this holds classes if its numbers are whole, and its lists of one."""
    while _is_list(kind):
        kind = kind.value_type
    return _holds_classes(kind) or pa.types.is_floating(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _shown(schema: pa.Schema) -> str:
    return f"there are {', '.join(f'{field.name} ({field.type})' for field in list(schema)[:8])}"
