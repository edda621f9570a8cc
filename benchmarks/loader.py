"""Decoding: images a second with and without worker processes, beside what the models take.

    python benchmarks/loader.py --images.source FOLDER
    python benchmarks/loader.py lab/vit lab/resnet --images.source FOLDER --images.limit 256

Wall-clock time, as workers are processes: of reading alone (decode, resize, crop and normalise for every model) with no, one,
two ... worker processes; of the forward passes alone, on images in memory; and of both together, as every analysis does it:
loading overlaps computing.
"""

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import torch
import tyro

from vit_analysis import features
from vit_analysis.images import Images
from vit_analysis.models import load_all


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
    loaded = {model.name: model for model in load_all(models)}
    wanted = list(dict.fromkeys(model.preprocessing for model in loaded.values()))
    print(
        f"{len(images.order)} images of {images.source!r}, {len(wanted)} preprocessings, {os.cpu_count()} cores\n"
    )
    print("| | workers | images/s |\n|---|--:|--:|")
    for workers in sorted({0, 1, 2, os.cpu_count() or 1}):
        own = dataclasses.replace(images, workers=workers)
        print(
            f"| reading alone | {workers} | {rate(lambda own=own: list(own.read(wanted)), images, rounds):.0f} |"
        )
    first = next(iter(images.read(wanted)))
    kept = [first] * images.batches

    def forward() -> None:
        with torch.inference_mode():
            for batch in kept:
                for model in loaded.values():
                    model.module(batch.inputs[wanted.index(model.preprocessing)].to(model.device))

    print(f"| forward passes alone | | {rate(forward, images, rounds):.0f} |")
    for workers in (0, None):
        own = dataclasses.replace(images, workers=workers)
        reading = features.Reading(loaded, own, {name: [":in"] for name in loaded}, lambda *_: None)
        told = own._workers if workers is None else workers
        print(
            f"| both | {told} | {rate(lambda reading=reading: list(features.stream(reading)), images, rounds):.0f} |"
        )


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
