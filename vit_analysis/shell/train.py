"""The command ``train``: a lab model, or one fine-tuned to a user's images."""

import math
from dataclasses import replace
from pathlib import Path

from vit_analysis.spelling import Refusal
from vit_analysis.typed import UNLIMITED, Choice


def main(
    name: str,
    /,
    *,
    images: Choice = Choice(limit=UNLIMITED),  # noqa: B008  (frozen)
    seen: int = 320_000,
    learning_rate: float = 1e-3,
    seed: int | None = None,
    init: Path | None = None,
    out: Path | None = None,
    ship: bool = False,
    overwrite: bool = False,
    device: str | None = None,
) -> None:
    """Train a lab model: on scenes, to tell their shapes, or on the classes of other images.

    Args:
        name: which model, such as lab/vit.
        images: what to learn from; their limit is the number of distinct images.
        seen: number of images to learn from, repetitions counted.
        learning_rate: the largest learning rate, reached after the warm-up.
        seed: seed of the weights; None is the model's own, 0 for most.
        init: file or folder of weights to start from, such as the shipped ones; None starts from random ones.
        out: file to write the weights to; None is runs/NAME.safetensors.
        ship: write to the lab's own file for this model, inside the package.
        overwrite: replace weights that are there.
        device: cpu, cuda ...; by default the GPU if there is one.
    """
    if seen < 1:
        raise Refusal(f"--seen is at least 1 image, got {seen}")
    if not 0 < learning_rate < math.inf:
        raise Refusal(f"--learning-rate is a number above 0, got {learning_rate:g}")
    if seed is not None and not 0 <= seed < 2**63:
        raise Refusal(f"--seed is a whole number from 0 to 2**63 - 1, got {seed}")
    from vit_analysis import command, models, train
    from vit_analysis.images import Images
    from vit_analysis.lab import zoo

    place = str(models.usable(device))
    recipe, out = zoo.recipe(name), train.place(name, out, seed, ship=ship)
    command.named(out)
    command.writable(out, train.checkpoint_beside(out, "0" * 8))
    if out.exists() and not overwrite:
        raise Refusal(f"{str(out)!r} is there already; say --overwrite, or choose another --out")
    limit = min(images.limit or UNLIMITED, recipe.distinct or UNLIMITED)
    data = train.data(Images.of(replace(images, limit=limit, seed=images.seed or recipe.images)), place)
    recipe = replace(recipe, config={**recipe.config, "num_classes": len(data.classes)})
    plan = train.Plan(-(-seen // images.batch), learning_rate, recipe.seed if seed is None else seed, place)
    train.train(recipe, data, plan, out, init, overwrite)
