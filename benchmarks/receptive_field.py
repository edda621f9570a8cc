"""Receptive fields against the backward passes that they are made of: CPU seconds and extra memory, as ratios.

    python benchmarks/receptive_field.py                    # three tasks, 3 rounds, one thread
    python benchmarks/receptive_field.py --tasks lab --contenders passes ours 'whole passes'

See `alternating` for how it is measured. "passes" is one tuned forward pass for each batch and, of every layer that is
measured, as many bare backward passes from that layer down to the images as channels are drawn; "whole passes" are as many
forward and backward passes of the whole network, which is what a loop over layers and channels with hooks costs. "ours" is
`receptive_field.measure`: tables, intervals and contribution scores included.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Sequence

import alternating
import torch
from torch import Tensor, nn

from vit_analysis import layers, models, receptive_field
from vit_analysis.lab import scenes
from vit_analysis.reading.capture import Capture
from vit_analysis.shell.running import keep_memory

TASKS = {"lab": ("lab/vit", 32, 8), "vit": ("vit_tiny_patch16_224", 224, 2), "resnet": ("resnet18", 224, 2)}
BATCHES, CHANNELS = 2, 8
CONTENDERS = ("passes", "ours", "whole passes")


def main() -> None:
    """Run the rounds, or with --one a single measurement that prints JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS[:2]))
    parser.add_argument("--one", type=json.loads)
    arguments = parser.parse_args()
    if arguments.one:
        measure(*arguments.one)
        return
    for task in arguments.tasks:
        name, size, batch = TASKS[task]
        contenders = [(contender, task) for contender in arguments.contenders]
        results = alternating.rounds(__file__, contenders, arguments.rounds)
        told = {json.loads(named)[0]: own for named, own in results.items()}
        print(f"\n{name}, {BATCHES} x {batch} images of {size} px, {CHANNELS} channels\n")
        print("| | CPU s | ratio | extra MB | ratio |\n|---|--:|--:|--:|--:|")
        print("\n".join(alternating.rows(told, arguments.contenders[0])))


def measure(contender: str, task: str) -> None:
    """One contender."""
    warnings.simplefilter("ignore")
    name, size, batch = TASKS[task]
    torch.manual_seed(0)
    model = models.load(f"{name}@random", device="cpu")
    pixels = scenes.draw(range(BATCHES * batch), size=size).image
    if layers.is_convolutional(model):
        model.module.to(memory_format=torch.channels_last)
    keep_memory()
    taps = [tap for step in layers.sublayers(model) for tap in (step.residual, step.long) if tap]
    run: dict[str, Callable[[Tensor], object]] = {
        "passes": lambda own: passes(model.module, taps, own.split(batch)),
        "whole passes": lambda own: whole_passes(model.module, len(taps), own.split(batch)),
        "ours": lambda own: receptive_field.measure(
            [model], alternating.InMemory(batch=batch, pixels=own), channels=CHANNELS
        ),
    }
    alternating.one(lambda: run[contender](pixels), lambda: model.module(pixels[:1]), pixels)


def passes(module: nn.Module, taps: Sequence[layers.Tap], batches: Sequence[Tensor]) -> None:
    """One forward pass of each batch, and bare backward passes from the middle of each layer."""
    with Capture(module, taps, lambda _, values: middle(values)) as run:
        for batch in batches:
            pixels = batch.clone().requires_grad_()
            for values in run(pixels.clone()).values():
                for channel in range(CHANNELS):
                    one = torch.zeros_like(values)
                    one[:, channel] = 1
                    torch.autograd.grad(values, pixels, one, retain_graph=True)


def middle(values: Tensor) -> Tensor:
    """The features of a token in the middle, or of the middle position of a map."""
    if values.ndim == 3:
        return values[:, values.shape[1] // 2].clone()
    return values[:, :, values.shape[2] // 2, values.shape[3] // 2].clone()


def whole_passes(module: nn.Module, count: int, batches: Sequence[Tensor]) -> None:
    """Forward and backward passes of the whole network, for every layer and channel."""
    for batch in batches:
        for channel in range(count * CHANNELS):
            pixels = batch.clone().requires_grad_()
            output = module(pixels)
            torch.autograd.grad(output[:, channel % output.shape[1]].sum(), pixels)


if __name__ == "__main__":
    main()
