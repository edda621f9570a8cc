"""What every command does with its results: finds out before a long run whether they can be written, and writes them."""

import errno
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from vit_analysis import plot, table, typed
from vit_analysis.models import Model, load_all
from vit_analysis.reading import processes
from vit_analysis.spelling import Refusal
from vit_analysis.typed import Machine, Pictures, line

logger = logging.getLogger(__name__)
answers = logging.getLogger("vit_analysis.told")
"""What was found is said here, however quiet a command is asked to be."""

MEANWHILE = (
    f".{'0' * 16}.unreadable"  # the longest ending of what is written during a pass (`reading.measure`)
)


def loaded(names: Sequence[str], machine: Machine, pictures: Pictures) -> list[Model]:
    """Load models by name, and make sure that those which get names in pictures are among them.

    Raises:
        Refusal: one is not, or cannot be loaded.
    """
    found = load_all(names, device=machine.device, precision=machine.precision)
    named_in(pictures, found)
    return found


def named_in(pictures: Pictures, models: Sequence[Model]) -> None:
    """Make sure that models which get names in pictures are among these.

    Raises:
        Refusal: one is not.
    """
    pictures.refuse_others([model.name for model in models])


def ready(out: Path, *more: str, pictures: Pictures = Pictures()) -> None:  # noqa: B008  (frozen)
    """Find out before a long run whether ``out``.parquet and pictures can be written, and replace nothing that is not ours.

    Args:
        out: path of the results without ending.
        more: what names of further tables and pictures have after it.
        pictures: which files pictures are written to.

    Raises:
        OSError: one of them, or what is written meanwhile, cannot be written.
        Refusal: ``out`` is a folder's name, or a file is there that is not ours.
    """
    endings = (".parquet", *pictures.endings)
    named(out, *endings)
    results = [beside(out, name) for name in ("", *more)]
    replacing(*(beside(result, ending) for result in results for ending in endings))
    writable(*(beside(result, MEANWHILE) for result in results))


def named(out: Path, *endings: str) -> None:
    """Make sure that ``out`` names a file, with or without its ending, and not a folder.

    Raises:
        Refusal: it is a folder's name.
    """
    if typed.is_folder(out):
        written = " and ".join(str(out / f"NAME{ending}") for ending in endings or [""])
        raise Refusal(f"--out {typed.out() or str(out)!r} is a folder; --out {out / 'NAME'} writes {written}")


def replacing(*files: Path) -> None:
    """Find out before a long run whether files can be written and replace only what this package made.

    Raises:
        OSError: one cannot be written.
        Refusal: a file of that name is there, and no table, picture or text of this package.
    """
    writable(*files)
    for file in files:
        if file.exists() and not table.is_ours(file):
            raise Refusal(f"{str(file)!r} is there and was not made by vit_analysis; choose another --out")


def writable(*files: Path) -> None:
    """Find out before a long run whether files can be written, by writing others of the same names; nothing is left behind.

    Raises:
        OSError: a folder cannot be written to or has the file's name, or the name is too long.
    """
    for file in files:
        try:
            if file.is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder of that name is there")
            folder = next(one for one in (file.parent, *file.absolute().parents) if one.exists())
            with table.scratch(folder) as trial:
                (trial / file.name).touch()
        except OSError as error:
            raise OSError(f"cannot write {file}: {error.strerror}: {str(file.parent)!r}") from error


def write(result: pd.DataFrame, out: Path) -> None:
    """Write ``out``.parquet, with the command line in its provenance, from the first process only.

    A table of another command that is there is not lost: it is put aside as ``out``.1.parquet, 2 ...
    """
    if processes.rank_and_size()[0]:
        return
    result.attrs["command"] = line()
    file = beside(out, ".parquet")
    make_room(file, lambda there: table.facts(there).get("command") == line())
    table.write(result, file)
    logger.info("wrote %s", file)


def draw(
    result: pd.DataFrame,
    out: Path,
    picture: Callable[[pd.DataFrame], Any],
    pictures: Pictures = Pictures(),  # noqa: B008  (frozen)
) -> None:
    """Write the picture of a table as ``out``.png, or as the files that were asked for, from the first process only."""
    draw_all(lambda: picture(result), out, pictures)


def draw_all(
    picture: Callable[[], Any],
    out: Path,
    pictures: Pictures,
    cast: Sequence[str] = (),
    made_of: str = "",
) -> list[Path]:
    """Draw in the style that was asked for and write every file of the picture, from the first process only.

    Args:
        picture: draws it.
        out: path of the files without ending.
        pictures: the style, and which files are written.
        cast: all models of a study, by whose order each has one look in every picture.
        made_of: a digest of what it is drawn from; files that were drawn from the same, in the same style, are kept.

    Returns:
        The files, the first kind that was asked for first.
    """
    paths = [beside(out, ending) for ending in pictures.endings]
    if processes.rank_and_size()[0]:
        return paths
    style = json.dumps([made_of, pictures.called, list(cast), pictures.width, version("matplotlib")])
    stamp = f"drawn from {hashlib.sha256(style.encode()).hexdigest()[:16]}" if made_of else ""
    if all(table.is_stamped(path, stamp) for path in paths):
        logger.info("kept %s", " and ".join(map(str, paths)))
        return paths
    with plot.style(pictures.called, cast, pictures.width):
        figure = picture()
        for path in paths:
            save(figure, path, stamp)
    return paths


def save(figure: Any, path: Path, stamp: str = "") -> None:
    """Write a figure of matplotlib, from the first process only, with the stamp of what it was drawn from."""
    if processes.rank_and_size()[0] == 0:
        make_room(path)
        table.write_picture(figure, path, stamp)
        logger.info("wrote %s", path)


def tell(found: Sequence[str]) -> None:
    """Say in the end what was found."""
    answers.info("found: %s", "\n       ".join(found))


def make_room(file: Path, replaced: Callable[[Path], bool] = table.is_ours) -> None:
    """Put aside what lies where a file will be written, as NAME.1.parquet, 2 ..., so that nothing is lost.

    Args:
        file: the file.
        replaced: whether what is there need not be kept; by default what this package made.
    """
    if not file.exists() or replaced(file):
        return
    aside = free(file)
    what = "table of another command" if table.is_ours(file) else "file that was there"
    file.rename(aside)
    logger.info("put the %s aside as %s", what, aside)


def free(file: Path) -> Path:
    """The first of NAME.1.parquet, 2 ... that is not there."""
    names = (file.with_name(f"{file.stem}.{number}{file.suffix}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def beside(out: Path, ending: str) -> Path:
    """``out`` with something added, also where its name holds a dot."""
    return out.with_name(out.name + ending)
