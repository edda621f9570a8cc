"""How things are measured here: each measurement a process of its own, contenders in turn, ratios within a round.

Other load on a machine comes and goes: it hits all contenders of one round alike, so what is told is the median over rounds of
the ratio to the first contender *of the same round*. A process of its own gives each its own peak of memory.
"""

import ctypes
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vit_analysis.images import Batch, Images, Preprocessing

THREADS = "1"
Results = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class InMemory(Images):
    """Images made beforehand: reading them costs nothing."""

    pixels: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    labels: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    @property
    def order(self) -> list[int]:
        """All of them."""
        return list(range(len(self.pixels)))

    @property
    def targets(self) -> dict[str, list[str]]:
        """One question, if there are labels."""
        return {"class": [str(label) for label in self.labels.unique().tolist()]} if len(self.labels) else {}

    def facts(self) -> dict[str, Any]:
        """Which: as many of another choice are other images."""
        return {
            **super().facts(),
            "first": hashlib.sha256(self.pixels[:, 0, 0].cpu().numpy().tobytes()).hexdigest(),
        }

    def truth(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """The labels."""
        return {"class": self.labels[list(numbers)]}

    def only(self, numbers: Sequence[int], batch: int | None = None) -> "InMemory":
        """Some of them, in that order."""
        chosen = list(numbers)
        labels = self.labels[chosen] if len(self.labels) else self.labels
        return InMemory(batch=batch or self.batch, pixels=self.pixels[chosen], labels=labels)

    def read(
        self, wanted: Sequence[Preprocessing], *, rank: int = 0, of: int = 1, start: int = 0
    ) -> Iterator[Batch]:
        """The same tensor for every model."""
        for number in range(rank, self.batches, of):
            part = self.pixels[number * self.batch :][: self.batch]
            numbers = self.order[number * self.batch :][: self.batch]
            if number >= start:
                yield Batch(number, [part] * len(wanted), torch.full((len(part),), -1), numbers, [])


def rounds(script: str, contenders: Sequence[Any], count: int) -> Results:
    """Every contender once a round; what it is goes to ``script --one`` as JSON."""
    results: Results = {json.dumps(contender): [] for contender in contenders}
    quiet = {"OMP_NUM_THREADS": THREADS, "MKL_NUM_THREADS": THREADS}
    for _ in range(count):
        for contender, own in results.items():
            call = [sys.executable, script, "--one", contender]
            ran = subprocess.run(
                call, env={**os.environ, **quiet}, stdout=subprocess.PIPE, text=True, check=True
            )
            own.append(json.loads(ran.stdout.splitlines()[-1]))
    return {
        (name if isinstance(name := json.loads(contender), str) else contender): own
        for contender, own in results.items()
    }


def one(run: Callable[[], object], warm_up: Callable[[], object], pixels: torch.Tensor) -> None:
    """Measure, and print as JSON: CPU seconds, and extra memory in MB, the peak over what stood before the first batch.

    What stands before is the models and the images, all of them touched. What drawing them left behind is given back, and the
    peak until here is forgotten.
    """
    pixels.sum()
    ctypes.CDLL(None).malloc_trim(0)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    warm_up()  # what a first call compiles is no one's fault
    start = time.process_time()
    run()
    cpu = time.process_time() - start
    print(json.dumps({"cpu": cpu, "extra": memory("VmHWM") - before}))


def memory(name: str) -> float:
    """MB of this process, resident now (VmRSS) or at most (VmHWM). Linux."""
    (kilobytes,) = re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) / 1024


def forward(modules: Sequence[torch.nn.Module], batches: Sequence[torch.Tensor]) -> None:
    """Every batch through every model, nothing else: what all is compared with."""
    with torch.inference_mode():
        for batch in batches:
            for module in modules:
                module(batch)


def rows(results: Mapping[str, Sequence[Mapping[str, float]]], base: str) -> Iterator[str]:
    """Rows of a Markdown table: CPU seconds, ratio, extra MB, ratio."""
    for name, own in results.items():
        cells = []
        for key, form in (("cpu", ".1f"), ("extra", ".0f")):
            ratio = [one[key] / other[key] for one, other in zip(own, results[base], strict=True)]
            cells += [
                f"{statistics.median(one[key] for one in own):{form}}",
                f"{statistics.median(ratio):.2f}",
            ]
        yield f"| {name} | {' | '.join(cells)} |"


def line(point: Mapping[str, int], layers: int, results: Results) -> str:
    """A row of a table of growth: a point, and what the forward pass and another take there."""
    base, other = results.values()
    seconds = [statistics.median(one["cpu"] for one in own) for own in (base, other)]
    memory = [statistics.median(one["extra"] for one in own) for own in (base, other)]
    ratio = statistics.median(one["cpu"] / bare["cpu"] for one, bare in zip(other, base, strict=True))
    cells = [point["images"], point["batch"], layers, *(f"{own:.2f}" for own in (*seconds, ratio))]
    return f"| {' | '.join(map(str, [*cells, *(f'{own:.0f}' for own in memory)]))} |"
