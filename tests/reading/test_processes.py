"""Many processes give the table of one, and none of them waits for one that does not come."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import every_analysis
import forked
import numpy as np
import pandas as pd
import pytest
import torch
from forked import ends
from test_kill import RUN, batches_kept, saving_always
from torch import Tensor

from vit_analysis import table
from vit_analysis.reading import measure, processes
from vit_analysis.reading.state import Sums
from vit_analysis.spelling import Refusal


def test_two_processes_give_the_tables_of_one(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    script = [str(every_analysis.__file__), "--folder", str(tmp_path)]
    ran = subprocess.run([*torchrun, *script], capture_output=True, text=True, timeout=900, check=False)
    assert ran.returncode == 0, ran.stderr
    one = every_analysis.tables(tmp_path / "alone")
    assert {file.stem for file in tmp_path.glob("*.parquet")} == set(one)
    for name, expected in one.items():
        own = table.read(tmp_path / f"{name}.parquet")
        assert list(own) == list(expected), name
        assert len(own) == len(expected) > 0, name
        for column in expected:
            same(own[column], expected[column], f"{column} of {name}")


def same(own: pd.Series, expected: pd.Series, what: str) -> None:
    """To 1e-12: another number of processes adds up in another order."""
    if expected.dtype == object and isinstance(expected.iloc[0], list | np.ndarray):
        # Kept in float32, and of sums of which a twentieth is missing.
        for row, other in zip(own, expected, strict=True):
            np.testing.assert_allclose(row, other, rtol=1e-6, atol=1e-7, err_msg=what)
    elif pd.api.types.is_float_dtype(expected):
        np.testing.assert_allclose(own, expected, rtol=1e-12, atol=1e-12, err_msg=what)
    else:
        assert own.tolist() == expected.tolist(), what


def lively() -> None:
    """More signs of life than usual, so that whoever waits for one of them hears it soon; and sums after every batch."""
    processes.BEAT = 0.2
    saving_always()


def first_killed() -> None:
    ending(0, forked.die)


def second_killed() -> None:
    ending(1, forked.die)


def second_fails() -> None:
    def fail() -> None:
        raise ValueError("I am broken")

    ending(1, fail)


def second_refuses() -> None:
    def refuse() -> None:
        raise Refusal("choose other images")

    ending(1, refuse)


ENDS_NOW = Path("ends now")


def ending(rank: int, end: Callable[[], None]) -> None:
    """One process ends in its first batch, but not before the other has written sums."""
    lively()
    add, heed = measure._add, processes.company.heed

    def add_or_end(*arguments) -> None:
        if processes.rank_and_size()[0] == rank:
            forked.wait(lambda: any(Path("out").glob("[!.]*.state")))
            ENDS_NOW.touch()
            end()
        add(*arguments)

    def heed_impatiently() -> None:
        # Not before: however slow a process is, it has to be heard as long as it lives.
        if ENDS_NOW.exists():
            processes.SILENCE = 2.0
        heed()

    measure._add = add_or_end
    if end is forked.die:
        processes.company.heed = heed_impatiently


@pytest.mark.parametrize(
    ("trouble", "who", "status", "sentence"),
    [
        (second_fails, 1, 70, "error: process 1 failed: ValueError: I am broken"),
        (second_refuses, 1, 2, "error: process 1 failed: choose other images"),
        (second_killed, 1, -signal.SIGKILL, "error: no sign of life from process 1 for 2 seconds"),
        (first_killed, 0, -signal.SIGKILL, f"error: {processes.GONE}"),
    ],
)
def test_a_process_that_dies_ends_the_run_and_the_others_say_why(
    tmp_path, monkeypatch, trouble, who, status, sentence
):
    # As a scheduler starts them, without torchrun's agent, which would end the others by itself.
    monkeypatch.chdir(tmp_path)
    runs, logs = forked.pair(tmp_path, "cka", RUN, first=trouble)
    assert ends(runs[who]) == status, logs[who].read_text()
    assert ends(runs[1 - who]) == 2
    said = logs[1 - who].read_text()
    assert sentence in said.splitlines(), said
    assert "Traceback" not in said
    # What the survivor had is kept, and the same command ends well.
    kept = batches_kept(Path("out"))
    assert kept > 0
    runs, logs = forked.pair(tmp_path, "cka", RUN)
    assert [ends(run) for run in runs] == [0, 0], logs[0].read_text()
    if who:  # only the first process says what it does
        assert f"going on after batch {kept} of 10" in logs[0].read_text()
    assert {file.name for file in Path("out").glob("[!.]*")} == {"run.parquet", "run.png"}


def late() -> None:
    """The second process begins when the first has looked for it four times as long as a silent one gets.

    The first looks again whenever the second has given a sign of life, so that it does not matter who is faster.
    """
    lively()
    processes.BEAT, processes.SILENCE, looks = 0.05, 0.5, 40
    read, beat, heard = measure._read, processes.Company._beat, [b"0"]
    silent = []

    def read_late(*arguments):
        if processes.rank_and_size()[0] == 1:
            store = processes.company.store
            forked.wait(lambda: int(store.get("alive 0")) >= looks)
        return read(*arguments)

    def beat_in_turn(company: processes.Company, count: int) -> None:
        beat(company, count)
        store = company.store
        if count and store and processes.rank_and_size()[0] == 0 and not silent:
            try:
                forked.wait(lambda: not company.store or store.get("alive 1") != heard[0], within=60)
            except AssertionError:
                silent.append(1)  # which the process itself has to find
            heard[0] = store.get("alive 1")

    measure._read, processes.Company._beat = read_late, beat_in_turn


def test_a_process_that_is_late_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs, logs = forked.pair(tmp_path, "cka", RUN, first=late)
    assert [ends(run) for run in runs] == [0, 0], "".join(log.read_text() for log in logs)


WAITS = Path("waits")


def late_for_ever() -> None:
    """The second process never comes, though it lives, and the first waits for it."""
    lively()
    read, meet = measure._read, processes.company.meet

    def read_never(*arguments):
        while processes.rank_and_size()[0] == 1:
            processes.company.heed()
            time.sleep(0.1)
        return read(*arguments)

    def say_and_meet() -> None:
        WAITS.touch()
        meet()

    measure._read, processes.company.meet = read_never, say_and_meet


def test_a_signal_reaches_a_process_that_waits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs, logs = forked.pair(tmp_path, "cka", RUN, first=late_for_ever)
    forked.wait(lambda: WAITS.exists() or not runs[0].is_alive())
    assert batches_kept(Path("out")) == 9  # the first has every other one of ten
    os.kill(runs[0].pid, signal.SIGTERM)
    assert ends(runs[0]) == 143, logs[0].read_text()
    assert "stopped; the same command goes on from what it last wrote" in logs[0].read_text()
    assert ends(runs[1]) == 2


@dataclass(frozen=True)
class Moments(Sums):
    total: Tensor
    count: Tensor
    of: str = "x"


THREE = Moments(torch.tensor([1.0, 2.0, 3.0]), torch.tensor(3))


@pytest.mark.parametrize(
    "other",
    [
        replace(THREE, of="y"),
        replace(THREE, total=torch.ones(4)),
        replace(THREE, total=torch.ones(3).double()),
    ],
)
def test_processes_with_sums_of_other_things_are_refused_before_they_add_up(monkeypatch, other):
    # Two processes, of which the second is given.
    def gather(shapes: list, mine: processes._Shape) -> None:
        tensors = {name: (value.shape, value.dtype) for name, value in other.tensors().items()}
        shapes[:] = [mine, processes._Shape(Moments, tensors, other.labels())]

    monkeypatch.setattr(processes, "rank_and_size", lambda: (0, 2))
    monkeypatch.setattr(processes.dist, "all_gather_object", gather)
    monkeypatch.setattr(processes.dist, "all_reduce", lambda _: pytest.fail("added up"))
    with pytest.raises(ValueError, match="process 0 has sums of other things than process 1"):
        processes.over_processes(THREE, torch.device("cpu"))
