"""The shell around every command: arguments, processes, logging, errors and writing, once."""

import ctypes
import errno
import itertools
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import tyro

from vit_analysis import table
from vit_analysis.reading import processes, state
from vit_analysis.reading.stream import as_they_are
from vit_analysis.spelling import Refusal

logger = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

MEANWHILE = (
    f".{'0' * 16}.unreadable"  # the longest ending of what is written during a pass (`reading.measure`)
)

MISTAKE = 2  # exit status after a sentence to the user
FAULT = 70  # after a fault of ours: EX_SOFTWARE of sysexits.h


def run(main: Callable[..., None]) -> None:
    """Call ``main`` with the command line, on one process or on each that torchrun started.

    A `Refusal` or an OSError ends it with a sentence. Any other exception is a fault of ours and ends it with its traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for library in ("timm", "PIL", "matplotlib", "httpx", "huggingface_hub", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    keep_memory()
    signal.signal(signal.SIGTERM, _stop)  # as clusters send it: to be treated as Ctrl-C
    company = processes.company
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            _join()
        with state.keeping():
            tyro.cli(main, prog=_program())
            company.meet()  # until the first has written what the sums of all were for
        company.leave()
    except (Refusal, OSError) as error:
        company.fail(str(error))
        if os.environ.get("VIT_ANALYSIS_TRACEBACK"):
            raise
        logger.error("error: %s", error)
        sys.exit(MISTAKE)
    except KeyboardInterrupt as stop:
        company.fail("stopped")
        notes = getattr(stop, "__notes__", ["the same command goes on from what it last wrote"])
        logger.error("stopped; %s", "; ".join(notes))
        sys.exit(128 + (signal.SIGTERM if stop.args else signal.SIGINT))
    except Exception as fault:
        company.fail(f"{type(fault).__name__}: {fault}")
        traceback.print_exception(fault)
        logger.error(
            "this is a fault of vit_analysis and not of yours, in %s; please report the lines above",
            _program(),
        )
        sys.exit(FAULT)


def _stop(*_: object) -> None:
    raise KeyboardInterrupt("SIGTERM")


def ready(out: Path, *more: str) -> None:
    """Find out before a long run whether ``out``.parquet and .png can be written, and replace nothing that is not ours.

    Args:
        out: path of the results without ending.
        more: what names of further tables and pictures have after it.

    Raises:
        OSError: one of them, or what is written meanwhile, cannot be written.
        Refusal: ``out`` is a folder's name, or a file is there that is not ours.
    """
    named(out, ".parquet", ".png")
    results = [beside(out, name) for name in ("", *more)]
    replacing(*(beside(result, ending) for result in results for ending in (".parquet", ".png")))
    writable(*(beside(result, MEANWHILE) for result in results))


def named(out: Path, *endings: str) -> None:
    """Make sure that ``out`` names a file, with or without its ending, and not a folder.

    Raises:
        Refusal: it is a folder's name.
    """
    typed = out_as_typed() or str(out)
    if out.name in ("", "..") or typed.endswith(("/", "/.", os.sep)):
        written = " and ".join(str(out / f"NAME{ending}") for ending in endings or [""])
        raise Refusal(f"--out {typed!r} is a folder; --out {out / 'NAME'} writes {written}")


def out_as_typed() -> str:
    """The last --out of the command line, with the slash at its end that a Path does not keep; empty where there is none."""
    typed = ""
    for argument, value in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        if argument == "--out" or argument.startswith("--out="):
            typed = value if argument == "--out" else argument.removeprefix("--out=")
    return typed


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


def draw(result: pd.DataFrame, out: Path, picture: Callable[[pd.DataFrame], Any]) -> None:
    """Write ``out``.png, from the first process only."""
    if processes.rank_and_size()[0] == 0:
        save(picture(result), beside(out, ".png"))


def save(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib, from the first process only."""
    if processes.rank_and_size()[0] == 0:
        make_room(path)
        table.write_picture(figure, path)
        logger.info("wrote %s", path)


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


def keep_memory() -> None:
    """Have glibc keep freed memory for the next batch instead of giving it back and faulting it in again page by page.

    A quarter of the CPU time of a forward pass of ViT-Ti and ResNet-50 (benchmarks/README.md). This is a setting of the whole
    process, so it is for commands and not for notebooks; VIT_ANALYSIS_PLAIN=1 turns it off, and an own MALLOC_TRIM_THRESHOLD_
    in the environment stays as it is.
    """
    if as_they_are():
        return
    # Large tensors in large pages, if torch has not been asked before: 5 % of a forward pass of ResNet-50, 1 % of ViT-Ti/16.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    for parameter, size in ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1)):
        mallopt(ctypes.c_int(parameter), ctypes.c_int(size))


def line() -> str:
    """The command as it would be typed again."""
    return f"{_program()} {shlex.join(sys.argv[1:])}".strip()


def _program() -> str:
    program = Path(sys.argv[0])
    return f"python -m {program.parent.name}.{program.stem}" if program.suffix == ".py" else program.name


def _join() -> None:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    processes.company.join("cpu:gloo,cuda:nccl" if cuda else "gloo")
