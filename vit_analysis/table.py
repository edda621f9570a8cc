"""Tables: tidy DataFrames that carry their provenance, written to disk whole or not at all."""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from vit_analysis.spelling import Refusal, did_you_mean

VERSIONS = ("vit-analysis", "torch", "torchvision", "timm", "numpy", "pillow")
MAKER = "vit_analysis"
# What pictures and texts of ours hold, by which they are known again. A text must hold more than a user's own might by chance;
# findings.md had no mark before.
MARKS = {
    ".png": rb"\0\0\0\x15tEXtSoftware\0vit_analysis",
    ".pdf": rb"/Creator \(vit_analysis\)",
    ".svg": rb"<dc:title>vit_analysis</dc:title>",
    ".html": rb"\A<!DOCTYPE html>.*networks\? vit_analysis report</title>",
    ".md": rb"\A# Findings\n\n(<!-- made by vit_analysis -->|Of .*\n## The five differences\n)",
    ".tex": rb"\A% Findings, made by vit_analysis\.\n",
    ".csv": rb"\Aid,figure,claim,paper,statistic,value,low,high,p,verdict,because,",
}
# Ending of a column that holds, for each row, another column's values without each of the groups of images.
WITHOUT = "_without"
# Columns of findings that hold lists and mappings, which files have as JSON.
NESTED = ("controls", "runs")

# The folder in which a file is written has this prefix and, as a user may call a folder so too, holds this file. After an hour
# without a change its writer must have been killed.
PART = ".vit_analysis-part-"
SIGN = ".a part of what vit_analysis writes, to be removed"
ABANDONED = 3600.0  # seconds


@cache
def code() -> str:
    """Sixteen hexadecimal digits that change with the code that tables come from: all but pictures, commands and words."""
    return _digest_of_code("plot", "study", "report", "shell")


@cache
def code_of_pictures() -> str:
    """Sixteen hexadecimal digits that change with the code that pictures and verdicts come from, commands aside."""
    return _digest_of_code("shell")


def _digest_of_code(*but: str) -> str:
    package = Path(__file__).parent
    kinds = (".py", ".html", ".css", ".js")
    files = sorted(
        file for file in package.rglob("*.*") if file.suffix in kinds and file.parent.name not in but
    )
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


class Fact(dict[str, Any]):
    """A fact of a table that is a mapping: pandas copies ``attrs`` at every step, in depth, and this copies as itself."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Fact":
        """Return itself: what is known of a table is written once, and read."""
        return self


class Facts(list[Any]):
    """A fact of a table that is a list; see `Fact`."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Facts":
        """Return itself: what is known of a table is written once, and read."""
        return self


def light(facts: Mapping[Any, Any]) -> dict[str, Any]:
    """The facts of a table, mappings and lists as such that cost nothing to copy."""
    return {
        str(name): Fact(fact) if isinstance(fact, dict) else Facts(fact) if isinstance(fact, list) else fact
        for name, fact in facts.items()
    }


def with_provenance(table: pd.DataFrame, analysis: str, **facts: Any) -> pd.DataFrame:
    """The table with ``attrs`` that say which analysis made it, of what, and with which versions; `WITHOUT` columns last.

    Facts must be of types that JSON has.
    """
    table = table[sorted(table, key=lambda name: str(name).endswith(WITHOUT))]
    table.attrs.update(light({"analysis": analysis, **facts, "versions": versions()}))
    return table


def versions() -> dict[str, str]:
    """The versions of the packages that a table's numbers come from."""
    return {name: version(name) for name in VERSIONS}


def placed(places: Sequence[Sequence[str]], *more: str) -> pd.DataFrame:
    """Columns model, layer, depth, from [model, layer, ...] in order of execution: each model's layers go from 0 to 1.

    Args:
        places: a row each; several rows of a layer have its depth.
        more: names of what stands after model and layer.
    """
    table = pd.DataFrame(places, columns=["model", "layer", *more])
    number = table.groupby("model")["layer"].transform(lambda own: own.factorize()[0]).astype(float)
    last = number.groupby(table["model"]).transform("max").clip(lower=1)
    table.insert(2, "depth", number / last)
    return table


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a table as parquet, ``attrs`` included."""
    write_whole(path, lambda part: table.to_parquet(part))


def read(path: Path | str) -> pd.DataFrame:
    """Read a table that `write` wrote.

    Raises:
        FileNotFoundError: there is no such file; it names the tables in that folder.
        OSError: the file is no table.
    """
    path = Path(path)
    if not path.is_file():
        near = did_you_mean(path.name, [file.name for file in path.parent.glob("*.parquet")])
        raise FileNotFoundError(f"no table {path}; {near}")
    try:
        found = pd.read_parquet(path)
        facts = light(found.attrs)
        found.attrs.clear()
        found.attrs.update(facts)
        return found
    except Exception as error:  # of many kinds; all mean that this is no complete parquet file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(f"{path} is no table that can be read: {reason}") from error


def facts(path: Path) -> dict[str, Any]:
    """The provenance of the table in a file; none of what is no table that can be read."""
    try:
        return {str(name): fact for name, fact in read(path).attrs.items()}
    except OSError:
        return {}


def write_picture(figure: Any, path: Path, stamp: str = "") -> None:
    """Write a figure of matplotlib as png, pdf or svg, with this package's name in it, by which `is_ours` knows it again.

    Args:
        figure: the figure.
        path: where to.
        stamp: of all that it was drawn from, by which `is_stamped` knows whether it has to be drawn again.
    """
    # Here, as whoever has a figure has loaded matplotlib, and others need not.
    from vit_analysis.plot.saving import save

    write_whole(path, lambda part: save(figure, part, MAKER, stamp))


def is_stamped(path: Path, stamp: str) -> bool:
    """Return whether a file is a picture or page that was made from the same tables, in the same style, by the same code."""
    return bool(stamp) and is_ours(path) and stamp.encode() in path.read_bytes()


def is_ours(path: Path) -> bool:
    """Return whether a file is a table, a picture or a text that this package made."""
    if not path.is_file():
        return False
    if path.suffix == ".parquet":
        return "analysis" in facts(path)
    mark = MARKS.get(path.suffix.lower())
    return mark is not None and re.search(mark, path.read_bytes(), re.DOTALL) is not None


def column(table: pd.DataFrame, name: str) -> pd.Series:
    """Return a column by name.

    Raises:
        Refusal: there is no such column; it gives the nearest right names.
    """
    if name not in table:
        raise Refusal(f"the table has no column {name!r}; {did_you_mean(name, map(str, table.columns))}")
    return table[name]


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file that appears at ``path`` complete or not at all: written beside it, synced, then renamed.

    A full disk or a kill leaves what was at ``path`` before. What killed writers left beside it is removed after an hour.

    Raises:
        OSError: it cannot be written; names ``path`` and says why.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch(path.parent) as folder:
            part = folder / path.name
            try:
                write(part)
                with part.open("rb+") as file:
                    os.fsync(file.fileno())
                part.chmod(0o644)
                part.replace(path)
            except RuntimeError as error:  # torch.save raises it for a full disk
                raise OSError(_full(folder) or str(error)) from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise OSError(f"cannot write {path}: {reason}; what was there before is as it was") from error


@contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """A folder to write a file in, removed in the end, as some libraries write more files than they are asked for."""
    with tempfile.TemporaryDirectory(dir=beside, prefix=PART, ignore_cleanup_errors=True) as folder:
        Path(folder, SIGN).touch()
        _sweep(Path(folder))
        yield Path(folder)


def _full(folder: Path) -> str | None:
    """The system's error message where there is no room for another file; None where there is."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**16))
    except OSError as error:
        return error.strerror
    return None


def _sweep(fresh: Path) -> None:
    """Remove what killed writers left beside a folder made just now: folders with our prefix and our sign in them.

    The folder's own time stands for now, so that ages are right on a disk of another machine whose clock differs.
    """
    now = fresh.stat().st_mtime
    for left in fresh.parent.glob(f"{PART}*"):
        with suppress(OSError):
            last = max(one.stat().st_mtime for one in (left, *left.iterdir()))
            if (left / SIGN).is_file() and now - last > ABANDONED:
                shutil.rmtree(left)
