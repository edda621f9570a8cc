"""Commands beside busy processes: CPU seconds and wall time, as ratios to the same command on a quiet machine.

    python benchmarks/busy.py                       # CKA and the whole study on the lab, two cores, 3 rounds
    python benchmarks/busy.py --commands cka --rounds 5 --settings ours
    python benchmarks/busy.py --images 64 --only 1 2 9    # some figures of the study alone
    python benchmarks/busy.py --busy 0 --settings ours torch "spin 5000"    # quiet, and with another length of waiting

All of it, the busy processes too, is held to so many cores, so that one busy process matters on a large machine as
well. "ours" is what a command sets for itself (`shell.threads`), "torch" what it would have without that, "one thread"
has one, "spin N" is ours with N rounds of waiting. Everything is measured in turn in every round, each time in a process
of its own. Threads that share their cores fairly with busy processes take 1 + busy / cores times as long. Linux.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product

SETTINGS = {
    "ours": {},
    "torch": {"OMP_NUM_THREADS": "{cores}", "GOMP_SPINCOUNT": "300000"},  # GNU's default, said aloud
    "one thread": {"OMP_NUM_THREADS": "1"},
    **{f"spin {count}": {"GOMP_SPINCOUNT": str(count)} for count in (5_000, 20_000, 100_000)},
}
OF_THREADS = ("OMP_", "GOMP_", "KMP_", "MKL_")
Cost = tuple[float, float]  # CPU seconds, wall seconds


def main() -> None:
    """Run the rounds and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--commands", nargs="+", choices=("cka", "figures"), default=["cka", "figures"])
    parser.add_argument("--only", nargs="+", default=[], help="figures of the study; all of them by default")
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1, 2], help="busy processes; first 0")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["ours", "torch"])
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])  # of all that is started too
    lines = {"cka": ["cka"], "figures": ["figures", *(["--only", *arguments.only] if arguments.only else [])]}
    asked = list(product(arguments.commands, arguments.settings))
    costs: dict[tuple[str, str, int], list[Cost]] = {
        (*one, busy): [] for one in asked for busy in arguments.busy
    }
    for _ in range(arguments.rounds):
        for (command, setting, busy), own in costs.items():
            own.append(cost(lines[command], arguments.images, environment(setting, arguments.cores), busy))
    print(f"{arguments.cores} cores, {arguments.images} images, {arguments.rounds} rounds\n")
    beside = " | ".join(f"CPU, {busy} busy | wall, {busy} busy" for busy in arguments.busy[1:])
    print(f"| command | threads | CPU s, quiet | wall s, quiet | {beside} |")
    print(f"|---|---|{'--:|' * 2 * len(arguments.busy)}")
    for command, setting in asked:
        cells = row([costs[command, setting, busy] for busy in arguments.busy])
        print(f"| {' '.join(lines[command])} | {setting} | {' | '.join(cells)} |")


def environment(setting: str, cores: int) -> dict[str, str]:
    """The environment of a command: this one, with what it says of threads replaced."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OF_THREADS)}
    return kept | {name: value.format(cores=cores) for name, value in SETTINGS[setting].items()}


def cost(line: Sequence[str], images: int, environment: dict[str, str], busy: int) -> Cost:
    """What one run of a command takes beside so many busy processes; its own processes are counted, the busy ones are not."""
    name, *options = line
    limits = ["--images.limit", str(images)]
    with tempfile.TemporaryDirectory() as folder, working(busy):
        call = [sys.executable, "-m", f"vit_analysis.{name}", *options, *limits, "--out", f"{folder}/out"]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run([*call, "--quiet"], env=environment, stderr=subprocess.DEVNULL, check=True)
        wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


@contextmanager
def working(count: int) -> Iterator[None]:
    """So many processes that do nothing but work."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def row(states: Sequence[Sequence[Cost]]) -> Iterator[str]:
    """Seconds when quiet, and beside busy processes the median over rounds of the ratio to those of the same round."""
    quiet, *loaded = states
    for which in range(2):
        yield f"{statistics.median(own[which] for own in quiet):.1f}"
    for other in loaded:
        for which in range(2):
            ratios = [own[which] / base[which] for own, base in zip(other, quiet, strict=True)]
            yield f"{statistics.median(ratios):.2f}"


if __name__ == "__main__":
    main()
