"""How many images a Gram matrix should be of: what an interval of a certain width costs, by the size of the parts of a batch.

    python benchmarks/parts.py
    python benchmarks/parts.py vit_tiny_patch16_224@FILE resnet50@FILE --images.source FOLDER --images.limit 960

CKA of all pairs of layers. An interval is as wide as the root of one over the number of images, so what counts is time per
image (forward passes and Gram matrices) times width squared. Every size has the same activations and the same groups of
images, which are the batches: time is CPU seconds of one thread, inside the hooks, in the first batch; intervals are of all
batches, with parts cut out of their Gram matrices.
"""

import os
import time
from itertools import accumulate

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import tyro

from vit_analysis.images import Images
from vit_analysis.models import load_all
from vit_analysis.reading.intervals import interval
from vit_analysis.reading.stream import Activation, Reading, stream
from vit_analysis.shell import running
from vit_analysis.tensors import grams, similarity
from vit_analysis.tensors.grams import Grams


def main(
    models: tuple[str, ...] = ("lab/vit", "lab/resnet"),
    /,
    *,
    images: Images = Images(limit=1920, batch=160),  # noqa: B008  (frozen)
    parts: tuple[int, ...] = (16, 32, 40, 53, 80, 160),
) -> None:
    """Measure and print a Markdown table.

    Args:
        models: which.
        images: which.
        parts: images of a part, about.
    """
    running.keep_memory()
    seconds = dict.fromkeys(parts, 0.0)
    sums: dict[int, list[torch.Tensor]] = {size: [] for size in parts}

    def reduce(activation: Activation) -> torch.Tensor:
        for size in parts if not sums[parts[0]] else ():
            grams.PART, start = size, time.process_time()
            for part in Grams(activation.values, activation.layout).parts:
                similarity.centred(part.all)
            seconds[size] += time.process_time() - start
        return activation.grams.all

    reading = Reading.of(load_all(models), images, "paper", reduce)
    batches, start = stream(reading), time.process_time()
    for number, batch in enumerate(batches):
        whole = torch.stack([gram for *_, gram in batch.kept()])
        if not number:
            passed = time.process_time() - start - sum(seconds.values()) - seconds.get(images.batch, 0.0)
        for size in parts:
            sums[size].append(hsic(whole, size))
    print(f"\n{' and '.join(model.name for model in reading.models.values())}, {len(images.order)} images in")
    print(f"batches of {images.batch}, {len(whole)} layers; forward passes of a batch {passed:.1f} CPU s\n")
    print(
        "| images of a part | with Gram matrices, of forward passes | half-width | time x half-width squared |"
    )
    print("|--:|--:|--:|--:|")
    for size, own in sums.items():
        ratio, square = 1 + seconds[size] / passed, squared_width(torch.stack(own))
        grams.PART = size
        most = max(grams.sizes(images.batch))
        print(f"| {most} | {ratio:.2f} | {square**0.5:.4f} | {ratio * square:.6f} |")


def hsic(whole: torch.Tensor, size: int) -> torch.Tensor:
    """Sums of one batch, from the Gram matrices of all its images."""
    grams.PART = size
    own = grams.sizes(whole.shape[-1])
    cuts = [slice(end - count, end) for count, end in zip(own, accumulate(own), strict=True)]
    return sum(
        count * similarity.hsic(similarity.centred(whole[:, cut, cut]))
        for count, cut in zip(own, cuts, strict=True)
    )


def squared_width(sums: torch.Tensor) -> float:
    """The mean over pairs of different layers of the squared half-width of their intervals."""
    total = sums.sum(0)
    found = interval(similarity.cka(total), [similarity.cka(total - own) for own in sums])
    others = ~torch.eye(len(total), dtype=torch.bool)
    return float(((found.high - found.low) / 2).square()[others].nanmean())


if __name__ == "__main__":
    tyro.cli(main)
