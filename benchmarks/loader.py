"""Decoding: what an image costs step by step, and images a second with and without worker processes, beside what models take.

    python benchmarks/loader.py --images.source FOLDER
    python benchmarks/loader.py lab/vit lab/resnet --images.source FOLDER --images.limit 256

First the steps of one image in one thread, in CPU time. Then reading alone (decode, resize, crop and normalise for every
model) with no, one, two ... worker processes: bytes that are normalised where models run, and, by turns with it, floats that
are normalised in the worker process, as timm's loader without its prefetcher does it; ratios are within a round, their median
is told. At last the models alone, on images in memory, and both together, as every analysis does it: loading overlaps
computing where there is a processor for it. Images a second are by wall-clock time, as workers are processes; CPU time counts
them all.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import tyro
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset

from vit_analysis.images import Batch, Images, Inputs, Preprocessing
from vit_analysis.layers import Tap
from vit_analysis.models import Model, load_all
from vit_analysis.reading import stream
from vit_analysis.shell import running
from vit_analysis.sources.cores import processors
from vit_analysis.sources.decoded import Decoded, Decoder
from vit_analysis.sources.preprocessing import coloured, normalisation, normalised
from vit_analysis.sources.source import Source

CPU = torch.device("cpu")


def main(
    models: tuple[str, ...] = ("vit_tiny_patch16_224@random", "resnet50@random"),
    /,
    *,
    images: Images = Images(limit=512),  # noqa: B008  (frozen)
    rounds: int = 3,
    alone: bool = False,
) -> None:
    """Measure and print Markdown tables.

    Args:
        models: whose preprocessing and forward passes.
        images: which; the source is a folder.
        rounds: how often each is measured.
        alone: measure no models, but reading alone.
    """
    running.keep_memory()
    loaded = {model.name: model for model in load_all(models)}
    wanted = list(dict.fromkeys(model.preprocessing for model in loaded.values()))
    print(f"{len(images.order)} images, {len(wanted)} preprocessings, {processors()} processors\n")
    steps(images, wanted, rounds)
    counts = sorted({0, 1, 2, processors()})
    print(
        "\n| reading alone, workers | floats, images/s | bytes, images/s | ratio | floats, CPU ms | bytes, CPU ms | ratio |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for workers in counts:
        print(f"| {workers} | {reading(dataclasses.replace(images, workers=workers), wanted, rounds)} |")
    if alone:
        return
    print("\n| | workers | images/s |\n|---|--:|--:|")
    kept = Kept(**chosen(images), one=next(iter(images.read(wanted))))
    print(f"| models alone, images in memory | | {rate(lambda: passes(loaded, kept), images, rounds):.0f} |")
    for workers in counts:
        own = dataclasses.replace(images, workers=workers)
        print(f"| both | {workers} | {rate(lambda own=own: passes(loaded, own), images, rounds):.0f} |")


def chosen(images: Images) -> dict[str, Any]:
    """The fields that say which images these are."""
    return {field.name: getattr(images, field.name) for field in dataclasses.fields(Images)}


class Floats(Decoder):
    """Images as batches of floats, normalised one by one where they are decoded."""

    def __init__(self, wanted: tuple[Preprocessing, ...], source: Decoded) -> None:
        super().__init__(wanted, source)
        self.transforms = [whole(one) for one in wanted]

    def _row(self, number: int) -> tuple[list[Tensor], int]:
        image, label = self.source.image(number)
        made = zip(self.wanted, self.transforms, strict=True)
        return [coloured(transform(image), one) for one, transform in made], label

    def _inputs(self, rows: list[list[Tensor]]) -> Inputs | list[Tensor]:
        return [torch.stack(own) for own in zip(*rows, strict=True)]


def whole(wanted: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """The transform of timm with its last steps, floats and normalisation."""
    mean, std = normalisation(wanted)
    own = {**vars(wanted), "input_size": (3, *wanted.input_size[1:]), "mean": mean, "std": std}
    transform: Callable[[Image.Image], Tensor] = create_transform(**own, is_training=False)
    return transform


@dataclass(frozen=True)
class OfFloats(Images):
    """Images that are handed over as floats."""

    @cached_property
    def _source(self) -> Source:
        source: Any = super()._source

        def batches(wanted: Sequence[Preprocessing]) -> Dataset[Batch]:
            return Floats(tuple(wanted), source)

        source.batches = batches
        return source


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


def steps(images: Images, wanted: Sequence[Preprocessing], rounds: int) -> None:
    """Print what each step takes of an image, for all preprocessings together where it is done for each."""
    source = Images.of(images)._source
    assert isinstance(source, Decoded)
    numbers = images.order[: images.batch]
    decoder, floats = Decoder(tuple(wanted), source), [whole(one) for one in wanted]
    pictures: list[Any] = [source.image(number)[0] for number in numbers]
    cut = [[run(one.transforms[:2], own) for one in decoder.transforms] for own in pictures]
    bytes_of = [
        [run(one.transforms[2:], own) for one, own in zip(decoder.transforms, row, strict=True)]
        for row in cut
    ]
    inputs = decoder._inputs(bytes_of)
    assert isinstance(inputs, Inputs)
    framing = [decoder.framings.index(one.framing) for one in wanted]
    ready = [
        [run(one.transforms[2:], row[place]) for one, place in zip(floats, framing, strict=True)]
        for row in cut
    ]
    told: dict[str, Callable[[], Any]] = {
        "read the file, decode": lambda: [source.image(number) for number in numbers],
        "resize, crop": lambda: [
            [run(one.transforms[:2], own) for one in decoder.transforms] for own in pictures
        ],
        "to bytes": lambda: [
            [run(one.transforms[2:], own) for one, own in zip(decoder.transforms, row, strict=True)]
            for row in cut
        ],
        "to a batch of bytes": lambda: decoder._inputs(bytes_of),
        "to floats, normalise, whole batches": lambda: [
            normalised(inputs.pixels[place], one) for one, place in zip(wanted, framing, strict=True)
        ],
        "instead: to floats, normalise, one by one": lambda: [
            [run(one.transforms[2:], row[place]) for one, place in zip(floats, framing, strict=True)]
            for row in cut
        ],
        "instead: to a batch of floats": lambda: [torch.stack(own) for own in zip(*ready, strict=True)],
    }
    print("| one image, one thread | CPU ms |\n|---|--:|")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, step in told.items():
        print(f"| {name} | {1000 * min(alone_spent(step) for _ in range(rounds)) / len(numbers):.2f} |")
    torch.set_num_threads(threads)


def run(transforms: Sequence[Callable[[Any], Any]], value: Any) -> Any:
    """One transform after the other."""
    for transform in transforms:
        value = transform(value)
    return value


def reading(images: Images, wanted: Sequence[Preprocessing], rounds: int) -> str:
    """The cells of reading alone, floats and bytes by turns."""
    count = len(images.order)
    ways = (OfFloats(**chosen(images)), images)
    found = [[spent(lambda own=own: every(own, wanted)) for own in ways] for _ in range(rounds)]
    cells = []
    for unit in (0, 1):
        ratio = statistics.median(after[unit] / before[unit] for before, after in found)
        taken = [min(one[way][unit] for one in found) for way in (0, 1)]
        own = [f"{count / each:.0f}" if unit == 0 else f"{1000 * each / count:.2f}" for each in taken]
        cells.append(f"{own[0]} | {own[1]} | {1 / ratio if unit == 0 else ratio:.2f}")
    return " | ".join(cells)


def every(images: Images, wanted: Sequence[Preprocessing]) -> None:
    """Make the inputs of all models of every batch."""
    for batch in images.read(wanted):
        for place in range(len(wanted)):
            batch.on(CPU, place)


def passes(loaded: Mapping[str, Model], images: Images) -> None:
    """Every image through every model, as every analysis has it, and nothing kept."""
    reading = stream.Reading(loaded, images, {name: [Tap("", "in")] for name in loaded}, lambda _: None)
    for _ in stream.stream(reading):
        pass


def spent(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds that something takes, and seconds of CPU, its processes' too."""
    start, cpu = time.perf_counter(), sum(os.times()[:4])
    run()
    return time.perf_counter() - start, sum(os.times()[:4]) - cpu


def alone_spent(run: Callable[[], Any]) -> float:
    """Seconds of CPU that something takes in this process, which are told finer than those of others."""
    start = time.process_time()
    run()
    return time.process_time() - start


def rate(run: Callable[[], Any], images: Images, rounds: int) -> float:
    """Images a second, the best of some rounds."""
    return len(images.order) / min(spent(run)[0] for _ in range(rounds))


if __name__ == "__main__":
    tyro.cli(main)
