"""Attention distances of all heads against the bare forward pass: CPU seconds, as a ratio.

    python benchmarks/attention_distance.py
    python benchmarks/attention_distance.py --rounds 9 --model vit_base_patch16_224@random

The two alternate within a round on the same images, and what is printed is the median over rounds of the seconds and of the
ratio of the same round: other load on the machine comes and goes between rounds. The images are random and made beforehand.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import alternating
import torch

from vit_analysis import attention_distance, models


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--model", default="vit_tiny_patch16_224@random")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = models.load(arguments.model, device="cpu")
    pixels = torch.randn(arguments.batches * arguments.batch, *model.preprocessing.input_size)
    images = alternating.InMemory(batch=arguments.batch, pixels=pixels)
    rounds = [measure(model, images) for _ in range(arguments.rounds + 1)][1:]  # the first one warms up
    bare, ours = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(ours / bare for bare, ours in rounds)
    print(
        f"{arguments.model}, {arguments.batches} batches of {arguments.batch}, {torch.get_num_threads()} thread"
    )
    print(f"bare forward {bare:.2f} CPU s, with all attention distances {ours:.2f} CPU s, ratio {ratio:.3f}")


def measure(model: models.Model, images: alternating.InMemory) -> tuple[float, float]:
    """CPU seconds of the bare forward pass and of the distances on the same images."""
    start = time.process_time()
    alternating.forward([model.module], images.pixels.split(images.batch))
    bare = time.process_time() - start
    start = time.process_time()
    attention_distance.measure([model], images)
    return bare, time.process_time() - start


if __name__ == "__main__":
    main()
