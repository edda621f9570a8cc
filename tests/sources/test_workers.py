"""As many processes decode as there are processors for, and as shared memory has room for the batches of."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from vit_analysis.images import Images, Preprocessing, given
from vit_analysis.sources import workers

MEGABYTE = 2**20


@pytest.mark.parametrize(
    ("processors", "free", "batches", "expected"),
    [
        (16, 10_000, 100, 15),
        (16, 10_000, 3, 3),
        (16, 10_000, 1, 0),
        (1, 10_000, 100, 1),
        (2, 10_000, 100, 1),
        (16, 64, 100, 1),  # what a container has unless it is told otherwise
        (16, 300, 100, 5),
        (16, 20, 100, 0),
    ],
)
def test_workers_are_as_many_as_there_are_cores_batches_and_room_for(
    monkeypatch, tmp_path, processors, free, batches, expected
):
    monkeypatch.setattr(workers, "processors", lambda: processors)
    monkeypatch.setattr(workers, "SHARED", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free * MEGABYTE))
    assert workers.chosen(batches, 9 * MEGABYTE) == expected


def test_where_memory_is_not_shared_as_files_there_is_room(monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "SHARED", tmp_path / "none")
    monkeypatch.setattr(workers, "processors", lambda: 2)
    assert workers.chosen(100, 9 * MEGABYTE) == 1


def test_images_choose_their_workers_unless_they_are_told(tmp_path, monkeypatch):
    for number in range(12):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    asked = []
    monkeypatch.setattr(workers, "chosen", lambda *own: asked.append(own) or 0)
    wanted = [Preprocessing((3, 8, 8)), Preprocessing((3, 8, 8), mean=(0.5,) * 3), Preprocessing((3, 4, 4))]
    assert len(list(Images(str(tmp_path), batch=5).read(wanted))) == 3
    assert asked == [(3, 5 * 3 * (8 * 8 + 4 * 4))]
    list(Images(str(tmp_path), batch=5, workers=0).read(wanted))
    list(Images(limit=12, batch=5).read(wanted))
    list(given(torch.zeros(12, 3, 8, 8)).read(wanted))
    assert len(asked) == 1  # what is at hand, or told, is not asked for


def test_a_worker_that_is_stopped_with_the_rest_of_its_job_ends_without_an_error():
    read = Images(limit=64, batch=4, workers=1).read([Preprocessing((3, 32, 32))])
    next(read)
    (worker,) = multiprocessing.active_children()
    subprocess.run(["kill", str(worker.pid)], check=True)  # by another process than the one that it works for
    end = time.monotonic() + 60
    while not (ended := os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert (ended.si_code, ended.si_status) == (os.CLD_EXITED, 0), signal.Signals(ended.si_status)
    read.close()
