"""The shell around every command: arguments, processes, logging, errors and writing, once."""

import logging
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
import tyro

from vit_analysis import running, table

# What a user can mend: said in one sentence. Anything else is a fault of ours and shows its traceback.
MISTAKES = (ValueError, KeyError, OSError, TypeError, RuntimeError)


def run(main: Callable[..., None]) -> None:
    """Call ``main`` with the command line, on one process or on each that torchrun started."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for library in ("timm", "PIL", "matplotlib", "httpx", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        _join()
    try:
        tyro.cli(main, prog=_program())
    except MISTAKES as error:
        if os.environ.get("VIT_ANALYSIS_TRACEBACK"):
            raise
        message = error.args[0] if isinstance(error, KeyError) else error
        logging.error("error: %s", message)
        sys.exit(2)
    except KeyboardInterrupt:
        logging.error("stopped; the same command goes on where it was")
        sys.exit(130)
    finally:
        if processes > 1:
            dist.destroy_process_group()


def write(result: pd.DataFrame, out: Path) -> None:
    """Write ``out``.parquet, with the command line in its provenance, from the first process only."""
    if running.processes()[0] == 0:
        result.attrs["command"] = line()
        table.write(result, beside(out, ".parquet"))


def draw(result: pd.DataFrame, out: Path, picture: Callable[[pd.DataFrame], Any]) -> None:
    """Write ``out``.png, from the first process only."""
    if running.processes()[0] == 0:
        figure = picture(result)
        table.write_whole(beside(out, ".png"), lambda part: figure.savefig(part))


def beside(out: Path, ending: str) -> Path:
    """``out`` with something added, also where its name holds a dot."""
    return out.with_name(out.name + ending)


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
    dist.init_process_group("nccl" if cuda else "gloo")
