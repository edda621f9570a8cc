"""Parquet files of images, as the Hugging Face hub stores them, read by number.

The smallest part of a parquet file that can be found is a row group, so an image costs the reading of its group up to itself.
What was read last is kept, up to `KEPT` bytes; of a larger group a part is kept. A file of large groups is read slowly, and
said to be.
"""

import logging
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from vit_analysis.sources import columns
from vit_analysis.sources.decoded import Decoded, decoded
from vit_analysis.sources.identity import of_file
from vit_analysis.sources.labels import Labels
from vit_analysis.sources.names import digest
from vit_analysis.sources.shards import Shards
from vit_analysis.spelling import Refusal

logger = logging.getLogger(__name__)

KEPT = 128 * 2**20  # bytes of row groups that a process keeps
PART = KEPT // 4  # bytes that are kept at a time
BUFFER = 2**20  # bytes that are read at a time


class Parquet(Decoded):
    """Images in rows of parquet files."""

    def __init__(self, shards: Shards, name: str, image: str | None = None, label: str | None = None) -> None:
        self.shards, self.source = shards, name
        self.kept = Recent()
        self.columns: columns.Columns | None = None
        groups = [self._groups(number, image, label) for number in range(len(shards))]
        self._first_group = np.cumsum([0, *(len(own) for own in groups)])
        rows, sizes = np.concatenate(groups).T
        self._starts = np.cumsum([0, *rows])
        self._parts = np.maximum(1, rows * PART // np.maximum(sizes, PART))  # rows that are kept at a time
        if sizes.max() > KEPT:
            logger.warning(
                "%s is read slowly, as an image costs the reading of row groups of up to %.0f MB; write 100 rows in each",
                name,
                sizes.max() / 1e6,
            )

    def _groups(self, number: int, image: str | None, label: str | None) -> Int[np.ndarray, "group 2"]:
        """The number of rows and of bytes of the row groups of a shard."""
        path = self.shards.paths[number]
        with self._opened(number) as file:
            own = columns.found(file.schema_arrow, image, label, repr(str(path)))
            every = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
            groups = np.array([(one.num_rows, one.total_byte_size) for one in every]).reshape(-1, 2)
        if not groups[:, 0].sum():
            raise FileNotFoundError(f"no images in {str(path)!r}: it has no rows")
        if self._is_empty(every, own.image):
            raise Refusal(f"column {own.image!r} of {str(path)!r} holds no image, but at most paths of files")
        self.columns = self.columns or own
        if own != self.columns:
            raise Refusal(
                f"{str(path)!r} has other columns or classes than {str(self.shards.paths[0])!r}: {own}"
            )
        return groups

    @staticmethod
    def _is_empty(groups: list[pq.RowGroupMetaData], column: str) -> bool:
        """Return whether the file says that there are no bytes of images in any row."""
        own = [group.column(number) for group in groups for number in range(group.num_columns)]
        bytes_ = [one for one in own if one.path_in_schema in (column, f"{column}.bytes")]
        counts = [one.statistics and (one.statistics.null_count, one.num_values) for one in bytes_]
        return bool(counts) and all(found and found[0] == found[1] for found in counts)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def image(self, number: int) -> tuple[Image.Image | Tensor, int]:
        """Decode the image of a row."""
        return decoded(BytesIO(self._content(number))), int(self.labels[number])

    def identity(self, number: int) -> str:
        """A digest of its file."""
        return of_file(self._content(number))

    def _content(self, number: int) -> bytes:
        group = self._group(number)
        row, size = number - int(self._starts[group]), int(self._parts[group])
        rows = self.kept.get((group, row // size)) or self._read(group, row // size)
        held, path = columns.content(rows[row % size].as_py())
        if held is None:
            raise OSError(f"the row holds no image, but the path {path!r}")
        return held

    def _read(self, group: int, part: int) -> pa.Array:
        """Read a group up to the end of one of its parts, and keep that."""
        assert self.columns is not None
        shard, size = self._shard(group), int(self._parts[group])
        kept, place = list[pa.Array](), 0
        with self._opened(shard) as file:
            inside = group - int(self._first_group[shard])
            for rows in file.iter_batches(
                size, row_groups=[inside], columns=[self.columns.image], use_threads=False
            ):
                first, last = max(part * size, place), min((part + 1) * size, place + len(rows))
                if first < last:
                    kept.append(rows.column(0).slice(first - place, last - first))
                place += len(rows)
                if place >= (part + 1) * size:
                    break
        whole = pa.concat_arrays(kept)
        self.kept.put((group, part), whole)
        return whole

    def _group(self, number: int) -> int:
        return int(np.searchsorted(self._starts, number, side="right")) - 1

    def _shard(self, group: int) -> int:
        return int(np.searchsorted(self._first_group, group, side="right")) - 1

    @contextmanager
    def _opened(self, number: int) -> Iterator[pq.ParquetFile]:
        """Open a shard; for each reading anew and without threads, so that worker processes may do so too."""
        with self.shards.open(number) as file:
            try:
                with pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False) as opened:
                    yield opened
            except (pa.ArrowException, OSError) as error:
                path = str(self.shards.paths[number])
                raise OSError(f"{path!r} is no parquet file that can be read: {error}") from error

    def name(self, number: int) -> str:
        """The shard and the row in it."""
        shard = self._shard(self._group(number))
        return f"{self.shards.paths[shard].name} row {number - int(self._starts[self._first_group[shard]])}"

    @cached_property
    def _known(self) -> Labels:
        assert self.columns is not None
        parts = list[tuple[str, pa.ChunkedArray]]()
        if (name := self.columns.label) is not None:
            for number, path in enumerate(self.shards.paths):
                with self._opened(number) as file:
                    parts.append((repr(str(path)), file.read(columns=[name], use_threads=False).column(name)))
        return self.columns.labels(parts, len(self), repr(self.source))

    def contents(self) -> dict[str, Any]:
        """A digest of the shards and their classes, and the columns."""
        assert self.columns is not None
        return {"files": self._digest, "columns": [self.columns.image, self.columns.label]}

    @cached_property
    def _digest(self) -> str:
        return digest(self.shards.digest, *self._known.facts)

    def origin(self) -> Hashable:
        """The shards and the column of images."""
        return self.shards.origin(), self.columns and self.columns.image


class Recent:
    """The row groups that were read last, up to `KEPT` bytes; another process has its own."""

    def __init__(self) -> None:
        self.parts: OrderedDict[tuple[int, int], pa.Array] = OrderedDict()

    def get(self, part: tuple[int, int]) -> pa.Array | None:
        """Rows that are kept."""
        if part in self.parts:
            self.parts.move_to_end(part)
        return self.parts.get(part)

    def put(self, part: tuple[int, int], rows: pa.Array) -> None:
        """Keep rows in place of those that were not asked for the longest."""
        self.parts[part] = rows
        while len(self.parts) > 1 and sum(own.nbytes for own in self.parts.values()) > KEPT:
            self.parts.popitem(last=False)

    def __reduce__(self) -> tuple[type["Recent"], tuple[()]]:
        return Recent, ()
