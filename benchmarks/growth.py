"""How CPU time and memory grow with images, layers and the size of a batch, beside those of the bare forward pass.

    python benchmarks/growth.py

CKA of all pairs of layers of ViT-Ti/16 and ResNet-18 at 96 px, with intervals and massive tokens: all layers of the paper
(six per transformer block, convolutions, norms and outputs of every ResNet unit), or every second of them. See `alternating`
for how it is measured; both sides run with channels last and an allocator that keeps memory.
"""

import argparse
import json

import alternating
import timm
import torch

from vit_analysis import cka, layers
from vit_analysis.lab import scenes
from vit_analysis.reading.intervene import channels_last
from vit_analysis.shell.running import keep_memory

SIZE = 96
SWEEPS: dict[str, list[dict[str, int]]] = {
    "images": [{"images": images, "batch": 64, "every": 1} for images in (512, 1024, 2048)],
    "layers": [{"images": 512, "batch": 64, "every": every} for every in (4, 2, 1)],
    "batch": [{"images": 1024, "batch": batch, "every": 1} for batch in (32, 64, 128, 256, 512, 1024)],
}


def main() -> None:
    """Run the sweeps, or with --one a single measurement that prints JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--one", type=json.loads)
    arguments = parser.parse_args()
    if arguments.one:
        measure(**arguments.one)
        return
    for sweep in arguments.sweeps:
        print(
            "\n| images | batch | layers | forward, CPU s | CKA, CPU s | ratio | forward, extra MB | CKA, extra MB |"
        )
        print("|--:|--:|--:|--:|--:|--:|--:|--:|")
        for point in SWEEPS[sweep]:
            contenders = [{"contender": name, **point} for name in ("forward", "cka")]
            results = alternating.rounds(__file__, contenders, arguments.rounds)
            told = {json.loads(name)["contender"]: own for name, own in results.items()}
            print(alternating.line(point, sum(map(len, chosen(point["every"]).values())), told), flush=True)


def models() -> dict[str, torch.nn.Module]:
    """The pair, untrained."""
    torch.manual_seed(0)
    made = {
        "vit_tiny_patch16": timm.create_model("vit_tiny_patch16_224", img_size=SIZE),
        "resnet18": timm.create_model("resnet18", zero_init_last=False),
    }
    return {name: model.eval().requires_grad_(False) for name, model in made.items()}


def chosen(every: int) -> dict[str, list[str]]:
    """Some of the paper's layers of each."""
    return {
        name: [str(tap) for tap in own[::every]] for name, own in layers.choose(models(), "paper").items()
    }


def measure(contender: str, images: int, batch: int, every: int) -> None:
    """One contender."""
    modules = models()
    pixels = scenes.draw(range(images), size=SIZE).image
    keep_memory()
    taps = [tap for own in chosen(every).values() for tap in own]
    given = alternating.InMemory(batch=batch, pixels=pixels)
    parts = pixels.split(batch)
    with channels_last(modules["resnet18"]):
        alternating.one(
            {
                "cka": lambda: cka.measure(modules, given, layers=taps),
                "forward": lambda: alternating.forward(list(modules.values()), parts),
            }[contender],
            lambda: alternating.forward(list(modules.values()), parts[:1]),
            pixels,
        )


if __name__ == "__main__":
    main()
