"""Decoding: images a second with and without worker processes, beside what the models take.

    python benchmarks/loader.py --images.source FOLDER
    python benchmarks/loader.py lab/vit lab/resnet --images.source FOLDER --images.limit 256

Wall-clock time, as workers are processes: of reading alone (decode, resize, crop and normalise for every model) with no, one,
two ... worker processes; of the models alone, on images in memory; and of both together, as every analysis does it: loading
overlaps computing where there is a core for it.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tyro

from vit_analysis import command
from vit_analysis.images import Batch, Images, Preprocessing
from vit_analysis.layers import Tap
from vit_analysis.models import Model, load_all
from vit_analysis.reading import stream


def main(
    models: tuple[str, ...] = ("vit_tiny_patch16_224@random", "resnet50@random"),
    /,
    *,
    images: Images = Images(limit=512),  # noqa: B008  (frozen)
    rounds: int = 3,
) -> None:
    """Measure and print a Markdown table.

    Args:
        models: whose preprocessing and forward passes.
        images: which; the source is a folder.
        rounds: the best of so many is told.
    """
    command.keep_memory()
    loaded = {model.name: model for model in load_all(models)}
    wanted = list(dict.fromkeys(model.preprocessing for model in loaded.values()))
    print(f"{len(images.order)} images, {len(wanted)} preprocessings, {os.cpu_count()} cores\n")
    print("| | workers | images/s |\n|---|--:|--:|")
    for workers in sorted({0, 1, 2, os.cpu_count() or 1}):
        own = dataclasses.replace(images, workers=workers)
        print(
            f"| reading alone | {workers} | {rate(lambda own=own: list(own.read(wanted)), images, rounds):.0f} |"
        )
    kept = Kept(
        **{field.name: getattr(images, field.name) for field in dataclasses.fields(Images)},
        one=next(iter(images.read(wanted))),
    )
    print(f"| models alone, images in memory | | {rate(lambda: passes(loaded, kept), images, rounds):.0f} |")
    for workers in sorted({0, 1, 2, os.cpu_count() or 1}):
        own = dataclasses.replace(images, workers=workers)
        print(f"| both | {workers} | {rate(lambda own=own: passes(loaded, own), images, rounds):.0f} |")


@dataclass(frozen=True)
class Kept(Images):
    """The same batch again and again: reading it costs nothing."""

    one: Batch | None = None

    def read(
        self,
        wanted: Sequence[Preprocessing],  # noqa: ARG002
        *,
        rank: int = 0,
        of: int = 1,
        start: int = 0,
    ) -> Iterator[Batch]:
        """As many batches as there are."""
        assert self.one
        for number in range(rank, self.batches, of):
            if number >= start:
                yield self.one._replace(number=number)


def passes(loaded: Mapping[str, Model], images: Images) -> None:
    """Every image through every model, as every analysis has it, and nothing kept."""
    reading = stream.Reading(loaded, images, {name: [Tap("", "in")] for name in loaded}, lambda _: None)
    for _ in stream.stream(reading):
        pass


def rate(run: Callable[[], Any], images: Images, rounds: int) -> float:
    """Images a second, the best of some rounds."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return len(images.order) / min(seconds)


if __name__ == "__main__":
    tyro.cli(main)
