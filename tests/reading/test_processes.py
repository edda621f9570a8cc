"""Many processes give the table of one, and none of them waits for one that does not come."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import every_analysis
import forked
import numpy as np
import pandas as pd
import pytest
from forked import ends
from test_kill import RUN, batches_kept, slowly

from vit_analysis import table
from vit_analysis.reading import measure, processes


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


def impatient() -> None:
    processes.BEAT, processes.SILENCE = 0.2, 2.0
    slowly()


def first_killed() -> None:
    killed(0)


def second_killed() -> None:
    killed(1)


def killed(rank: int) -> None:
    impatient()
    real = measure._add

    def add(*arguments) -> None:
        real(*arguments)
        if processes.rank_and_size()[0] == rank:
            forked.die()

    measure._add = add


def second_fails() -> None:
    impatient()
    real = measure._add

    def add(*arguments) -> None:
        real(*arguments)
        if processes.rank_and_size()[0] == 1:
            raise ValueError("I am broken")

    measure._add = add


@pytest.mark.parametrize(
    ("trouble", "who", "sentence"),
    [
        (second_fails, 1, "error: process 1 failed: I am broken"),
        (second_killed, 1, "error: no sign of life from process 1 for 2 seconds"),
        (first_killed, 0, f"error: {processes.GONE}"),
    ],
)
def test_a_process_that_dies_ends_the_run_and_the_others_say_why(
    tmp_path, monkeypatch, trouble, who, sentence
):
    # As a scheduler starts them, without torchrun's agent, which would end the others by itself.
    monkeypatch.chdir(tmp_path)
    runs, logs = forked.pair(tmp_path, "cka", RUN, first=trouble)
    status = ends(runs[who])
    began = time.monotonic()
    assert status == (2 if trouble is second_fails else -signal.SIGKILL)
    assert ends(runs[1 - who], within=60) == 2
    assert time.monotonic() - began < 60
    said = logs[1 - who].read_text()
    assert sentence in said.splitlines()
    assert "Traceback" not in said
    # What the survivors had is kept, and the same command ends well.
    assert len(list(Path("out").glob("[!.]*.state"))) >= 1
    runs, logs = forked.pair(tmp_path, "cka", RUN)
    assert [ends(run) for run in runs] == [0, 0], logs[0].read_text()
    assert "going on after batch" in logs[1 - who].read_text()
    assert {file.name for file in Path("out").glob("[!.]*")} == {"run.parquet", "run.png"}


def late() -> None:
    """The second process is far behind, as long as four times what a silent one gets."""
    impatient()
    processes.SILENCE = 1.0
    real = measure._read

    def read(*arguments):
        if processes.rank_and_size()[0] == 1:
            time.sleep(4)
        return real(*arguments)

    measure._read = read


def test_a_process_that_is_late_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs, logs = forked.pair(tmp_path, "cka", RUN, first=late)
    assert [ends(run) for run in runs] == [0, 0], logs[0].read_text()


def late_for_ever() -> None:
    """The second process never comes, though it lives."""
    impatient()
    real = measure._read

    def read(*arguments):
        while processes.rank_and_size()[0] == 1:
            processes.company.heed()
            time.sleep(0.1)
        return real(*arguments)

    measure._read = read


def test_a_signal_reaches_a_process_that_waits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs, logs = forked.pair(tmp_path, "cka", RUN, first=late_for_ever)
    forked.wait(lambda: batches_kept(Path("out")) == 9)  # the first has every other one of ten
    time.sleep(0.5)
    os.kill(runs[0].pid, signal.SIGTERM)
    assert ends(runs[0], within=60) == 143
    assert "stopped; the same command goes on from what it last wrote" in logs[0].read_text()
    assert ends(runs[1], within=60) == 2
