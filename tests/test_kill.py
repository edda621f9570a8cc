"""A command that is killed, at the instants where it could do harm, ends with the table of one that never was."""

import os
import re
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import forked
import pandas as pd
import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from vit_analysis import table
from vit_analysis.reading import measure, state

RUN = [
    "lab/vit@random",
    "--images.limit",
    "40",
    "--images.batch",
    "4",
    "--layers",
    "blocks",
    "--out",
    "out/run",
]
SKIP = ["lab/vit@random", "--images.limit", "40", "--images.batch", "4", "--out", "out/run"]


def saving_always() -> None:
    measure.SAVE_EVERY = 0.0


def during_a_batch() -> None:
    saving_always()
    real, seen = measure._add, []

    def add(*arguments) -> None:
        seen.append(1)
        if len(seen) == 3:
            forked.die()
        real(*arguments)

    measure._add = add


PAUSED = Path("paused")


def pausing_in_the_third_batch() -> None:
    saving_always()
    real, seen = measure._add, []

    def add(*arguments) -> None:
        seen.append(1)
        if len(seen) == 3:
            forked.pause(PAUSED)
        real(*arguments)

    measure._add = add


def pausing_when_the_third_sums_are_written() -> None:
    """And nobody has noted it yet."""
    saving_always()
    real, written = state.save, []

    def save(*arguments) -> None:
        real(*arguments)
        written.append(1)
        if len(written) == 3:
            forked.pause(PAUSED)

    state.save = save


def half_way(real: Callable) -> Callable:
    """A writer that is killed when half of it is on disk."""

    def write(data, path, *arguments) -> None:
        real(data, path, *arguments)
        os.truncate(path, Path(path).stat().st_size // 2)
        forked.die()

    return write


def half_way_through_the_sums() -> None:
    saving_always()
    safetensors.torch.save_file = half_way(safetensors.torch.save_file)


def before(owner: object, name: str, number: int = 1) -> None:
    """Die before this is called for the number-th time."""
    real, calls = getattr(owner, name), []

    def call(*arguments, **named):
        calls.append(1)
        if len(calls) == number:
            forked.die()
        return real(*arguments, **named)

    setattr(owner, name, call)


def before_the_second_sums_are_renamed() -> None:
    saving_always()
    before(Path, "replace", 2)


def before_the_table() -> None:
    before(table, "write")


def half_way_through_the_table() -> None:
    pd.DataFrame.to_parquet = half_way(pd.DataFrame.to_parquet)


def before_the_picture_is_renamed() -> None:
    before(Path, "replace", 2)  # the table is the first


def batches_kept(folder: Path) -> int:
    """Of the run, if there is a state; whatever can be seen there is whole."""
    for seen in folder.glob("[!.]*.parquet"):
        table.read(seen)
    kept = 0
    for left in folder.glob("[!.]*.state"):
        with safe_open(left, framework="pt") as file:
            kept = int(file.metadata()["done"])
    return kept


@pytest.fixture
def whole(tmp_path, monkeypatch) -> bytes:
    """The table of a run that nobody disturbs, in a folder of its own."""
    (tmp_path / "unbroken").mkdir()
    monkeypatch.chdir(tmp_path / "unbroken")
    assert forked.ends(forked.start("cka", RUN, Path("log"))) == 0, Path("log").read_text()
    assert {file.name for file in Path("out").iterdir()} == {"run.parquet", "run.png"}
    (tmp_path / "broken").mkdir()
    monkeypatch.chdir(tmp_path / "broken")
    return (tmp_path / "unbroken" / "out" / "run.parquet").read_bytes()


def test_killed_where_it_hurts_most_a_run_goes_on_to_the_same_table(whole):
    out = Path("out")
    instants = [  # and how many batches are safe then
        (half_way_through_the_sums, 0),
        (during_a_batch, 2),
        (before_the_second_sums_are_renamed, 3),
        (before_the_table, 10),
        (half_way_through_the_table, 10),
        (before_the_picture_is_renamed, 10),
    ]
    for instant, safe in instants:
        assert forked.ends(forked.start("cka", RUN, Path("log"), instant)) == -signal.SIGKILL, instant
        assert batches_kept(out) == safe, instant
    assert len(list(out.glob("[!.]*.state"))) == 1
    assert forked.ends(forked.start("cka", RUN, Path("log"))) == 0
    assert "going on after batch 10 of 10" in Path("log").read_text()
    assert {file.name for file in out.glob("[!.]*")} == {"run.parquet", "run.png"}
    assert (out / "run.parquet").read_bytes() == whole


def test_ctrl_c_and_a_clusters_sigterm_say_how_to_go_on(whole):
    for number, status, place, told, kept in (
        (signal.SIGINT, 130, pausing_in_the_third_batch, 2, 2),
        (signal.SIGTERM, 143, pausing_when_the_third_sums_are_written, 4, 5),
    ):
        run = forked.start("cka", RUN, Path("log"), place)
        forked.wait(lambda run=run: PAUSED.exists() or not run.is_alive())
        os.kill(run.pid, number)
        assert forked.ends(run) == status, Path("log").read_text()
        PAUSED.unlink()
        said = re.search(
            r"^stopped; the same command goes on after (\d+) of 10 batches$", Path("log").read_text(), re.M
        )
        assert said, Path("log").read_text()
        # One fewer where the signal came between the writing of the sums and the note of it: never one too many.
        assert (int(said[1]), batches_kept(Path("out"))) == (told, kept)
        assert "Traceback" not in Path("log").read_text()
    # Another command with the same --out does not take these sums for its own, nor harm them.
    assert forked.ends(forked.start("skip", SKIP, Path("log"))) == 0
    assert "going on" not in Path("log").read_text()
    assert batches_kept(Path("out")) == kept
    assert forked.ends(forked.start("cka", RUN, Path("log"))) == 0
    assert f"going on after batch {kept} of 10" in Path("log").read_text()
    assert Path("out/run.parquet").read_bytes() == whole


def on_a_disk_that_takes_no_more() -> None:
    """After the first sums; a limit of the system, which is here for everyone, where a disk really full is for few."""
    saving_always()
    real = state.save

    def save(*arguments) -> None:
        real(*arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

    state.save = save


def test_a_disk_that_takes_no_more_is_one_sentence_and_costs_nothing_that_was_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert forked.ends(forked.start("cka", RUN, Path("log"), on_a_disk_that_takes_no_more)) == 2
    (said,) = [line for line in Path("log").read_text().splitlines() if line.startswith("error")]
    assert re.fullmatch(
        r"error: cannot write out/run\..*\.state: .*File too large.*; what was there before is as it was",
        said,
    )
    assert "Traceback" not in Path("log").read_text()
    assert batches_kept(Path("out")) == 1
    assert not list(Path("out").glob(".*"))


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs a device that is always full")
@pytest.mark.parametrize(
    "write",
    [
        lambda full: pd.DataFrame({"a": [0.0] * 9999}).to_parquet(full),
        lambda full: full.write_bytes(bytes(9)),
        lambda full: torch.save(torch.zeros(99999), full),
    ],
)
def test_what_is_there_stays_when_the_disk_is_full(tmp_path, tmp_path_factory, monkeypatch, write):
    (tmp_path / "a").write_text("before")
    # By a link: older pandas removes what it could not write, which as root would be the device itself.
    full = tmp_path_factory.mktemp("full") / "device"
    full.symlink_to("/dev/full")
    monkeypatch.setattr(table.tempfile, "TemporaryFile", lambda **_: open("/dev/full", "wb", 0))  # noqa: SIM115, PTH123
    with pytest.raises(OSError, match=r"cannot write .*/a: No space left on device; what was there before"):
        table.write_whole(tmp_path / "a", lambda _: write(full))
    assert (tmp_path / "a").read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_what_killed_writers_left_goes_when_it_is_old(tmp_path):
    ages = {"old": 2 * table.ABANDONED, "fresh": 0.0, "still written": 2 * table.ABANDONED}
    for name, age in ages.items():
        folder = tmp_path / f"{table.PART}{name}"
        folder.mkdir()
        for file in (folder / "a", folder / table.SIGN):
            file.write_text("half of")
        then = time.time() - age
        for file in folder.iterdir():
            if name != "still written":
                os.utime(file, (then, then))
        os.utime(folder, (then, then))
    table.write_whole(tmp_path / "other", lambda part: part.write_text("whole"))
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {"other", f"{table.PART}fresh", f"{table.PART}still written"}
