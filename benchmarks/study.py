"""Everything that only reads activations, in one pass, against the bare forward pass: CPU seconds and extra memory.

    python benchmarks/study.py      # ViT-Ti/16 and ResNet-50, 160 images in batches of 32 and 160
    python benchmarks/study.py --models vit_base_patch16_224 resnet50 --batches 64 --images 64
    python benchmarks/study.py --contenders "forward, tuned" similarity paper study --batches 160

"study" is every table of `figures` that shares the pass in which activations are only read: CKA of all pairs (seven layers of
every ResNet unit, six of every transformer block) with massive tokens watched; CKA of block outputs under every control, and
the second measures of similarity (given the pixels, ranks, nearest neighbours, each with normalised tokens too); attention
distances, head subsets, skip connections, localization (four ways), soft nearest neighbour loss (two ways, in batches that
hold enough of every class), statistics of tokens and frequencies; each with its intervals. "paper" is all of it but the last
two, "similarity" CKA with its controls and second measures alone. "tuned" is a forward pass with the same settings: channels
last and an allocator that keeps memory. Ratios are to the first contender. See `alternating` for how it is measured.
"""

import argparse
import json
import os
from functools import partial

import alternating
import timm
import torch

CONTENDERS = ("forward", "forward, tuned", "study", "study, plain", "similarity", "paper")
SIMILARITY = ("cka", "cka_controls")
PAPER = (
    *(*SIMILARITY, "attention_distance", "head_subsets", "skip"),
    *("localization", "localization_penultimate", "localization_units", "localization_normalized"),
    *("soft_nearest_neighbor", "soft_nearest_neighbor_normalized"),
)
TABLES = {"similarity": SIMILARITY, "paper": PAPER, "study": (*PAPER, "tokens", "frequency")}


def main() -> None:
    """Run the rounds, or with --one a single measurement that prints JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--models", nargs=2, default=["vit_tiny_patch16_224", "resnet50"], metavar=("VIT", "CNN")
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 160])
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS[:4])
    parser.add_argument("--one", type=json.loads)
    arguments = parser.parse_args()
    if arguments.one:
        measure(**arguments.one)
        return
    vit, cnn = arguments.models
    for batch in arguments.batches:
        settings = {"vit": vit, "cnn": cnn, "batch": batch, "images": arguments.images}
        contenders = [{"contender": name, **settings} for name in arguments.contenders]
        results = alternating.rounds(__file__, contenders, arguments.rounds)
        told = {json.loads(name)["contender"]: own for name, own in results.items()}
        print(f"\n{vit} and {cnn}, {arguments.images} images in batches of {batch}\n")
        print("| | CPU s | ratio | extra MB | ratio |\n|---|--:|--:|--:|--:|")
        print("\n".join(alternating.rows(told, arguments.contenders[0])))


def evenly(labels: torch.Tensor, count: int) -> list[int]:
    """Numbers of images with as many of every class."""
    seen = [int((labels[:number] == label).sum()) for number, label in enumerate(labels)]
    return sorted(range(len(labels)), key=lambda number: seen[number])[:count]


def measure(contender: str, vit: str, cnn: str, batch: int, images: int) -> None:
    """One contender."""
    from vit_analysis import models
    from vit_analysis.lab import scenes
    from vit_analysis.reading.measure import tables
    from vit_analysis.shell.running import keep_memory
    from vit_analysis.study import loaded, plans
    from vit_analysis.study.parts import Parts

    torch.manual_seed(0)
    kind, _, settings = contender.partition(", ")
    modules = {vit: timm.create_model(vit), cnn: timm.create_model(cnn, zero_init_last=False)}
    modules = {name: module.eval().requires_grad_(False) for name, module in modules.items()}
    drawn = scenes.draw(evenly(scenes.truth(range(4 * images))["shape"], images), size=224)
    given = plans.balanced(alternating.InMemory(batch=batch, pixels=drawn.image, labels=drawn.shape.long()))
    parts = list(given.pixels.split(given.batch))
    if settings == "plain":
        os.environ["VIT_ANALYSIS_PLAIN"] = "1"
    elif (kind, settings) != ("forward", ""):
        keep_memory()
    if settings == "tuned":
        modules[cnn] = modules[cnn].to(memory_format=torch.channels_last)

    def warm_up() -> None:
        alternating.forward(list(modules.values()), parts[:1])

    def everything() -> None:
        cast = loaded.Cast(Parts(vit=(vit,), cnn=(cnn,)), models.named(modules))
        planned = plans.by_table(cast, given, given, given, given)
        # In small batches the loss has images of its own: batches with enough of some classes.
        wanted = {name: planned[name]() for name in TABLES[kind]}
        each = {f"{name} {number}": one for name, own in wanted.items() for number, one in enumerate(own)}
        tables({name: one for name, one in each.items() if one.reading.images.facts() == given.facts()})

    forward = partial(alternating.forward, list(modules.values()), parts)
    alternating.one(forward if kind == "forward" else everything, warm_up, given.pixels)


if __name__ == "__main__":
    main()
