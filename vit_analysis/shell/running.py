"""Around every command: arguments, how much it says, processes, errors. Nothing heavy is imported before a line is parsed."""

import ctypes
import inspect
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import Annotated, Any, NoReturn

import tyro

from vit_analysis import __version__, typed
from vit_analysis.shell import threads
from vit_analysis.spelling import Refusal

logger = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

MISTAKE = 2  # exit status after a sentence to the user
FAULT = 70  # after a fault of ours: EX_SOFTWARE of sysexits.h
OTHERS = ("timm", "PIL", "matplotlib", "httpx", "huggingface_hub", "transformers")
"""Libraries that say nothing but errors."""


@dataclass(frozen=True)
class Manner:
    """How much a command says.

    Attributes:
        verbose: say more: how images are prepared for each model, and every layer that is read.
        quiet: say only warnings, and what was found.
        version: say the version of this package, and do nothing.
    """

    verbose: Annotated[bool, tyro.conf.arg(aliases=["-v"])] = False
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    version: bool = False

    def __post_init__(self) -> None:
        if self.verbose and self.quiet:
            raise Refusal("--verbose and --quiet are opposites; say one of them")


def begin(name: str) -> NoReturn:
    """Run the command of this name with the line that was typed, and end with its status."""
    run(import_module(f"vit_analysis.shell.{name}").main)
    sys.exit(0)


def run(main: Callable[..., None]) -> None:
    """Call ``main`` with the command line, on one process or on each that torchrun started; see `alone`."""

    @wraps(main)
    def joined(*arguments: Any, **options: Any) -> None:
        with _joined():
            main(*arguments, **options)

    alone(joined)


def alone(main: Callable[..., None]) -> None:
    """Call ``main`` with the command line, and with the flags that every command has.

    A `Refusal` or an OSError ends it with a sentence. Any other exception is a fault of ours and ends it with its traceback.
    """
    if "--version" in sys.argv[1:]:
        sys.stdout.write(f"vit_analysis {__version__}\n")
        return
    try:
        tyro.cli(_with_manner(main), prog=typed.program())
    except Refusal as meaningless:  # of the line itself; those of a run have ended it by then
        if os.environ.get("VIT_ANALYSIS_TRACEBACK"):
            raise
        sys.stderr.write(f"error: {meaningless}\n")
        sys.exit(MISTAKE)


def _with_manner(main: Callable[..., None]) -> Callable[..., None]:
    """``main`` with the flags that say how much it says, and with sentences for errors."""

    def called(*arguments: Any, manner: Manner, **options: Any) -> None:
        speak(manner)
        with _ending_in_sentences():
            main(*arguments, **options)

    hint = Annotated[Manner, tyro.conf.arg(name=""), tyro.conf.FlagCreatePairsOff]
    own = inspect.signature(main)
    flag = inspect.Parameter("manner", inspect.Parameter.KEYWORD_ONLY, default=Manner(), annotation=hint)
    called.__signature__ = own.replace(parameters=[*own.parameters.values(), flag])  # type: ignore[attr-defined]
    called.__annotations__ = {**main.__annotations__, "manner": hint}
    called.__doc__ = main.__doc__
    return called


def speak(manner: Manner) -> None:
    """Let log lines go to stderr: of one process only, and as many as were asked for; what was found is always said."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    first = os.environ.get("RANK", "0") == "0"
    level = logging.DEBUG if manner.verbose else logging.WARNING if manner.quiet else logging.INFO
    logging.getLogger("vit_analysis").setLevel(level if first else logging.ERROR)
    # Each process reads images of its own, and warns of them.
    logging.getLogger("vit_analysis.images").setLevel(level if first else logging.WARNING)
    logging.getLogger("vit_analysis.told").setLevel(logging.INFO if first else logging.ERROR)
    for library in OTHERS:
        logging.getLogger(library).setLevel(logging.ERROR)


@contextmanager
def _joined() -> Iterator[None]:
    """The processes of this run, each knowing of the others' failures, with what sums need to be kept."""
    threads.settle()  # this and the next before torch is imported, which reads some of these settings then
    keep_memory()
    from vit_analysis.reading import processes, state

    threads.between_operations()

    company = processes.company
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            processes.join()
        with state.keeping():
            yield
            company.meet()  # until the first has written what the sums of all were for
        company.leave()
    except KeyboardInterrupt:
        company.fail("stopped")
        raise
    except (Refusal, OSError) as error:
        company.fail(str(error))
        raise
    except Exception as fault:
        company.fail(f"{type(fault).__name__}: {fault}")
        raise


@contextmanager
def _ending_in_sentences() -> Iterator[None]:
    """End the process with a sentence where the user can mend what went wrong, and with a traceback where it is our fault."""
    signal.signal(signal.SIGTERM, _stop)  # as clusters send it: to be treated as Ctrl-C
    try:
        yield
    except (Refusal, OSError) as error:
        if os.environ.get("VIT_ANALYSIS_TRACEBACK"):
            raise
        logger.error("error: %s", error)
        sys.exit(MISTAKE)
    except KeyboardInterrupt as stop:
        notes = getattr(stop, "__notes__", ["the same command goes on from what it last wrote"])
        logger.error("stopped; %s", "; ".join(notes))
        sys.exit(128 + (signal.SIGTERM if stop.args else signal.SIGINT))
    except Exception as fault:
        traceback.print_exception(fault)
        logger.error(
            "this is a fault of vit_analysis and not of yours, in %s; please report the lines above",
            typed.program(),
        )
        sys.exit(FAULT)


def _stop(*_: object) -> None:
    raise KeyboardInterrupt("SIGTERM")


def keep_memory() -> None:
    """Have glibc keep freed memory for the next batch instead of giving it back and faulting it in again page by page.

    A quarter of the CPU time of a forward pass of ViT-Ti and ResNet-50 (benchmarks/README.md). This is a setting of the whole
    process, so it is for commands and not for notebooks; VIT_ANALYSIS_PLAIN=1 turns it off, and an own MALLOC_TRIM_THRESHOLD_
    in the environment stays as it is.
    """
    if typed.as_they_are():
        return
    # Large tensors in large pages, if torch has not been asked before: 5 % of a forward pass of ResNet-50, 1 % of ViT-Ti/16.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    for parameter, size in ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1)):
        mallopt(ctypes.c_int(parameter), ctypes.c_int(size))
