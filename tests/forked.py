"""Commands in processes of their own, to be killed: forked from one that has imported everything, which takes seconds."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["vit_analysis.study.passes"])


def start(
    command: str,
    arguments: Sequence[str],
    log: Path,
    first: Callable[[], object] = dict,
    environment: dict[str, str] | None = None,
) -> BaseProcess:
    """Start ``python -m vit_analysis.command arguments``; `first` changes something before; what it says goes to `log`."""
    parts = (command, list(arguments), log, first, environment or {}, Path.cwd())
    process = CONTEXT.Process(target=_run, args=parts, daemon=True)  # ends with the tests
    process.start()
    return process


def _run(
    command: str,
    arguments: list[str],
    log: Path,
    first: Callable[[], object],
    environment: dict[str, str],
    folder: Path,
) -> None:
    from importlib import import_module

    from vit_analysis.shell.running import run

    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background jobs are started deaf to it
    os.chdir(folder)
    os.environ.update(environment)
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = [str(import_module(f"vit_analysis.{command}").__file__), *arguments]
    first()
    run(import_module(f"vit_analysis.shell.{command}").main)


def ends(process: BaseProcess, within: float = 300.0) -> int:
    """The exit status; negative of the signal that killed it."""
    process.join(within)
    assert process.exitcode is not None, f"still running after {within:.0f} s"
    return process.exitcode


def pair(
    folder: Path, command: str, arguments: Sequence[str], **changes: Any
) -> tuple[list[BaseProcess], list[Path]]:
    """Two processes of one run, with nobody who looks after them as torchrun does; and their logs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    logs = [folder / f"{rank}.log" for rank in range(2)]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        start(command, arguments, log, environment={**world, "RANK": str(rank)}, **changes)
        for rank, log in enumerate(logs)
    ]
    return started, logs


def wait(until: Callable[[], bool], within: float = 300.0) -> None:
    """Until this is so."""
    end = time.monotonic() + within
    while not until():
        assert time.monotonic() < end, f"not so after {within:.0f} s"
        time.sleep(0.01)


def pause(sign: Path) -> None:
    """Say by a file that this process is here, and stay until a signal ends it."""
    sign.touch()
    wait(lambda: False)


def die() -> None:
    """As if by kill -9, at this very instant."""
    os.kill(os.getpid(), signal.SIGKILL)
