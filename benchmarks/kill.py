"""Kills commands at random instants, starts them again until they end, and compares the tables with those of unbroken runs.

    python benchmarks/kill.py --kills 20

Real commands, with kill -9, on untrained models; they write their sums after every batch instead of every ten seconds, to be
killed while they do so as often as can be. Instants are drawn evenly over what an unbroken run takes after its imports.
After each kill every file that can be seen must be whole; at the end nothing but tables and pictures may be left, and the
tables must be those of the unbroken run, byte for byte.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import count
from pathlib import Path

from safetensors import safe_open

from vit_analysis import table

COMMANDS = {
    "cka": ["lab/vit@random", "lab/resnet@random", "--images.limit", "1920", "--images.batch", "16"],
    "skip": ["lab/vit@random", "--images.limit", "2400", "--images.batch", "16"],
    "lesions": ["lab/resnet@random", "lab/vit@random", "--images.limit", "480", "--images.batch", "16"],
}
AFTER = "between table and picture"
# The command as `python -m` runs it, but for how often it writes; it says when it has imported everything.
RUN = """
import sys, runpy
from pathlib import Path
from vit_analysis.reading import measure
from vit_analysis import {name}
measure.SAVE_EVERY = 0.0
sys.argv[0] = {name}.__file__
Path("imported").touch()
del sys.modules["vit_analysis.{name}"]
runpy.run_module("vit_analysis.{name}", run_name="__main__", alter_sys=False)
"""


def start(name: str, folder: Path) -> subprocess.Popen[bytes]:
    """The command, in a folder of its own, when it has imported everything."""
    folder.mkdir(exist_ok=True)
    (folder / "imported").unlink(missing_ok=True)
    call = [sys.executable, "-c", RUN.format(name=name), *COMMANDS[name], "--out", "out/run"]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(call, cwd=folder, stderr=log)
    while not (folder / "imported").exists() and process.poll() is None:
        time.sleep(0.001)
    return process


def seen(folder: Path) -> str:
    """What state the files are in that can be seen; fails if one is not whole."""
    for file in folder.glob("out/[!.]*.parquet"):
        table.read(file)
    states = list(folder.glob("out/[!.]*.state"))
    for state in states:
        with safe_open(state, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                file.get_tensor(name)
    if next(folder.glob("out/*.parquet"), None):
        return AFTER
    return "with sums on disk" if states else "before the first sums"


def campaign(name: str, kills: int, folder: Path, chance: random.Random) -> None:
    """Kill it so many times."""
    began = time.monotonic()
    process = start(name, folder / "unbroken")
    ready = time.monotonic()
    assert process.wait() == 0, (folder / "unbroken" / "log").read_text()
    takes = time.monotonic() - ready
    expected = {file.name: file.read_bytes() for file in (folder / "unbroken" / "out").glob("*.parquet")}
    done, ends, parts, when = 0, 0, 0, Counter[str]()
    while done < kills:
        broken = folder / f"broken {ends}"
        for attempt in count():
            process = start(name, broken)
            ready = time.monotonic()
            try:
                # Where only the picture is left to draw, one kill is enough.
                drawing = when[AFTER] > ends
                status = process.wait(None if drawing else chance.uniform(0, takes))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                done += 1
                when[seen(broken)] += 1
                continue
            assert status == 0, (broken / "log").read_text()
            if attempt == 0:  # the machine has less other work than before
                takes = min(takes, time.monotonic() - ready)
            break
        left = [file for file in (broken / "out").iterdir() if file.name[0] != "."]
        parts += len(list((broken / "out").glob(".*")))
        assert {file.suffix for file in left} == {".parquet", ".png"}, left
        found = {file.name: file.read_bytes() for file in left if file.suffix == ".parquet"}
        assert found == expected, f"{name}: another table than the unbroken run's"
        ends += 1
    told = ", ".join(f"{often} {what}" for what, often in sorted(when.items()))
    print(
        f"| {name} | {takes:.1f} | {done} | {told} | {ends} of {ends} | {parts} | {time.monotonic() - began:.0f} |",
        flush=True,
    )


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="of each command, at least")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    arguments = parser.parse_args()
    print("| command | unbroken, s | kills | of these | same table | parts left | s in all |")
    print("|---|--:|--:|---|--:|--:|--:|", flush=True)
    for name in arguments.commands:
        with tempfile.TemporaryDirectory() as folder:
            campaign(name, arguments.kills, Path(folder), random.Random(arguments.seed))


if __name__ == "__main__":
    main()
