"""Lesions that resume from the block that changes, against running the whole model anew for each: CPU seconds, extra memory.

    python benchmarks/lesions.py                                        # the lab's pair, untrained: 320 scenes, as `figures`
    python benchmarks/lesions.py --models vit_tiny_patch16_224@random resnet50@random --images 64
    python benchmarks/lesions.py --batch 64 --images 128 --models resnet50@random

The tables of both are compared, too. Images are drawn before the clock starts. "extra" is memory beyond models and images; see
`alternating` for how it is measured.
"""

import argparse
import json
from dataclasses import replace

import alternating
import numpy as np
import torch

CONTENDERS = ("anew", "resumed")


def main() -> None:
    """Run the rounds, or with --one a single measurement that prints JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["lab/vit@random", "lab/resnet@random"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--one", type=json.loads)
    arguments = parser.parse_args()
    if arguments.one:
        measure(**arguments.one)
        return
    for model in arguments.models:
        settings = {"model": model, "batch": arguments.batch, "images": arguments.images}
        contenders = [{"contender": name, **settings} for name in CONTENDERS]
        results = alternating.rounds(__file__, contenders, arguments.rounds)
        told = {json.loads(name)["contender"]: own for name, own in results.items()}
        print(
            f"\n{model}, {arguments.images} images in batches of {arguments.batch}: {compared(**settings)}\n"
        )
        print("| | CPU s | ratio | extra MB | ratio |\n|---|--:|--:|--:|--:|")
        print("\n".join(alternating.rows(told, "anew")))


def plans(model: str, batch: int, images: int) -> dict[str, object]:
    """Both contenders' measurements, and the images."""
    from vit_analysis import lesions, models
    from vit_analysis.lab import scenes

    torch.manual_seed(0)
    loaded = models.load(model, device="cpu")
    drawn = scenes.draw(range(images), size=loaded.preprocessing.input_size[1])
    given = alternating.InMemory(batch=batch, pixels=drawn.image)
    resumed = lesions.plan(loaded, given)
    anew = replace(lesions.plan(loaded, given), prepare=lambda: None)
    return {"resumed": resumed, "anew": anew, "pixels": given.pixels, "model": loaded.module}


def compared(model: str, batch: int, images: int) -> str:
    """Both contenders' tables of a few images."""
    made = plans(model, batch, min(images, 2 * batch))
    one, other = (made[name].table() for name in CONTENDERS)
    numbers = [name for name in one.columns if one[name].dtype == np.float64]
    largest = float((one[numbers] - other[numbers]).abs().max().max())
    return "tables are equal" if one.equals(other) else f"tables differ by {largest:.1e} at most"


def measure(contender: str, model: str, batch: int, images: int) -> None:
    """One contender."""
    from vit_analysis.shell import running

    running.keep_memory()
    made = plans(model, batch, images)

    def warm_up() -> None:
        alternating.forward([made["model"]], [made["pixels"][:batch]])

    alternating.one(made[contender].table, warm_up, made["pixels"])


if __name__ == "__main__":
    main()
