"""Data sets of the Hugging Face library ``datasets``, by name or from a folder: ``hfds/NAME``.

The library is called directly, as timm's factory in some versions turns names into small letters, and knows one name of a
column only.
"""

from collections.abc import Hashable
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image
from torch import Tensor

from vit_analysis.sources import columns
from vit_analysis.sources.decoded import Decoded, decoded
from vit_analysis.sources.identity import of_file
from vit_analysis.sources.labels import Labels
from vit_analysis.sources.names import digest
from vit_analysis.sources.source import Named
from vit_analysis.sources.stamp import stamp
from vit_analysis.spelling import Refusal, did_you_mean

PREFIX = "hfds/"


class Hub(Decoded):
    """Images in a data set of the library ``datasets``.

    Raises:
        Refusal: the library or the data set is not there, or it is not known which columns are meant.
    """

    def __init__(self, named: Named) -> None:
        self.named = named
        self.data = _loaded(named)
        if not len(self.data):
            raise FileNotFoundError(f"no images in {named.source!r}: its split {named.split!r} has no rows")
        self.columns = columns.found(
            self.data.features.arrow_schema, named.image_column, named.label_column, repr(named.source)
        )

    def __len__(self) -> int:
        return len(self.data)

    def image(self, number: int) -> tuple[Image.Image | Tensor, int]:
        """Decode the image of a row, which is in the row or in a file that it names."""
        return decoded(BytesIO(self._content(number))), int(self.labels[number])

    def identity(self, number: int) -> str:
        """A digest of its file."""
        return of_file(self._content(number))

    def _content(self, number: int) -> bytes:
        held, path = columns.content(self._images[number][self.columns.image][0].as_py())
        return Path(str(path)).read_bytes() if held is None else held

    @cached_property
    def _images(self) -> Any:
        return self._table(self.columns.image)

    def _table(self, column: str) -> Any:
        return self.data.select_columns([column]).with_format("arrow")

    def name(self, number: int) -> str:
        """The path that the row names, and its number."""
        path = columns.content(self._images[number][self.columns.image][0].as_py())[1]
        return f"row {number}{f' {path}' if path else ''}"

    @cached_property
    def _known(self) -> Labels:
        name = self.columns.label
        what = repr(self.named.source)
        parts = [] if name is None else [(what, self._table(name)[:].column(name))]
        return self.columns.labels(parts, len(self), what)

    def contents(self) -> dict[str, Any]:
        """A digest of the files that the library keeps, of those that rows name, and of the classes; and the columns."""
        return {"files": self._digest, "columns": [self.columns.image, self.columns.label]}

    @cached_property
    def _digest(self) -> str:
        files = [Path(own["filename"]) for own in self.data.cache_files]
        kept = [f"{path.name} {stamp(path)}" for path in files]
        return digest("\0".join(kept), "\0".join(self._outside()), *self._known.facts)

    def _outside(self) -> list[str]:
        """Files that rows name and do not hold, with their sizes and times of change."""
        found = list[str]()
        for part in self._table(self.columns.image).iter(batch_size=1000):
            for chunk in part.column(self.columns.image).chunks:
                named = pa.types.is_struct(chunk.type) and chunk.type.get_field_index("path") >= 0
                if named and (held := chunk.field("bytes")).null_count:
                    paths = chunk.field("path").filter(held.is_null())
                    found += [f"{path} {stamp(Path(str(path)))}" for path in paths.to_pylist()]
        return found

    def origin(self) -> Hashable:
        """The name, the folder and the split."""
        return self.named.source, str(self.named.root), self.named.split, self.columns.image


def _loaded(named: Named) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise Refusal(f"{named.source!r} needs the library datasets: pip install datasets") from error
    name = named.source[len(PREFIX) :]
    folder = Path(name).expanduser()
    try:
        if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(str(folder))
        else:
            place = str(folder) if folder.exists() else name
            cache = str(named.root) if named.root else None
            return datasets.load_dataset(place, split=named.split, cache_dir=cache)
    except Exception as error:  # of whatever kind: it is the library that speaks
        raise Refusal(_told(named, error)) from error
    if not isinstance(found, datasets.DatasetDict):
        return found
    if named.split not in found:
        raise Refusal(
            f"{named.source!r} has no split {named.split!r}; {did_you_mean(named.split, found)} (--images.split)"
        )
    return found[named.split]


def _told(named: Named, error: Exception) -> str:
    said = " ".join(str(error).split())
    hint = "; name another with --images.split" if "split" in said.lower() else ""
    return f"{named.source!r} (split {named.split!r}) cannot be loaded: {said or type(error).__name__}{hint}"
