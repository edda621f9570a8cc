"""CKA of all pairs of layers against the bare forward pass and against peers: CPU seconds and extra memory, as ratios.

    python benchmarks/cka.py                    # both tasks, 3 rounds, one thread
    python benchmarks/cka.py --rounds 5 --tasks resnets
    python benchmarks/cka.py --cross --contenders forward ours pytorch-cka    # one model against the other alone

See `alternating` for how it is measured. "tuned" is what a command of this package sets for its process, for the forward pass
and for us: convolutions with channels last, and an allocator that keeps memory; "plain" is neither. Peers are asked for the
same: within both models and across, which takes them three runs; with --cross only across, where we still compute all. They
are an optional dependency group (pip install --group benchmark).
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import alternating
import timm
import torch
from torch import nn

from vit_analysis import cka
from vit_analysis.lab import scenes
from vit_analysis.shell.running import keep_memory

TASKS = {"resnets": (("resnet18", "resnet18"), 4), "pair": (("vit_tiny_patch16_224", "resnet50"), 2)}
BATCH = 32
CONTENDERS = (
    *("forward", "ours", "ours, plain", "forward, tuned", "ours, tuned"),
    *("pytorch-cka", "torch_cka"),
)
Pairs = Sequence[tuple[int, int]]


def main() -> None:
    """Run the rounds, or with --one a single measurement that prints JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--cross", action="store_true")
    parser.add_argument("--one", type=json.loads)
    arguments = parser.parse_args()
    if arguments.one:
        measure(*arguments.one)
        return
    for task in arguments.tasks:
        (first, second), batches = TASKS[task]
        asked = "across" if arguments.cross else "within + within + across"
        contenders = [(name, task, arguments.cross) for name in arguments.contenders]
        results = alternating.rounds(__file__, contenders, arguments.rounds)
        told = {json.loads(name)[0]: own for name, own in results.items()}
        counts = " x ".join(str(len(layers_of(model(name)))) for name in (first, second))
        print(f"\n{first} x {second}, {counts} layers, {batches} x {BATCH} images, {asked}\n")
        print("| | CPU s | ratio | extra MB | ratio |\n|---|--:|--:|--:|--:|")
        print("\n".join(alternating.rows(told, arguments.contenders[0])))


def measure(contender: str, task: str, cross: bool) -> None:
    """One contender."""
    warnings.simplefilter("ignore")
    names, batches = TASKS[task]
    torch.manual_seed(0)
    modules = [model(name) for name in names]
    pixels = scenes.draw(range(batches * BATCH), size=224).image
    layers = [layers_of(module) for module in modules]
    kind, _, settings = contender.partition(", ")
    if settings == "plain":
        os.environ["VIT_ANALYSIS_PLAIN"] = "1"
    if settings == "tuned":
        modules = [module.to(memory_format=torch.channels_last) for module in modules]
        keep_memory()
    pairs = [(0, 1)] if cross else [(0, 0), (1, 1), (0, 1)]
    parts = pixels.split(BATCH)
    contenders: dict[str, Callable[[], Callable[[], Any]]] = {
        "forward": lambda: lambda: alternating.forward(modules, parts),
        "ours": lambda: ours(modules, pixels, layers),
        "pytorch-cka": lambda: pytorch_cka(modules, pixels, layers, pairs),
        "torch_cka": lambda: torch_cka(modules, pixels, layers, pairs),
    }
    alternating.one(contenders[kind](), lambda: alternating.forward(modules, parts[:1]), pixels)


def model(name: str) -> nn.Module:
    """An untrained model in which every layer does something."""
    module = timm.create_model(name, **({"zero_init_last": False} if "resnet" in name else {}))
    return module.eval().requires_grad_(False)


def layers_of(module: nn.Module) -> list[str]:
    """Convolutions outside shortcuts, and units; attentions and blocks of a Vision Transformer."""
    if hasattr(module, "patch_embed"):
        return [f"blocks.{number}{part}" for number in range(12) for part in (".attn", "")]
    kinds = ("BasicBlock", "Bottleneck")
    return [
        name for name, m in module.named_modules() if isinstance(m, nn.Conv2d) or type(m).__name__ in kinds
    ]


def ours(modules: Sequence[nn.Module], pixels, layers: Sequence) -> Callable[[], Any]:
    """The public function, intervals and massive tokens included."""
    images = alternating.InMemory(batch=BATCH, pixels=pixels)
    named = {"first": modules[0], "second": modules[1]}
    return lambda: cka.measure(named, images, layers=[*layers[0], *layers[1]])


def batches_of(pixels) -> Iterator:
    """A loader over tensors in memory."""
    from torch.utils.data import DataLoader, TensorDataset

    return DataLoader(TensorDataset(pixels), batch_size=BATCH)


def pytorch_cka(modules: Sequence, pixels, layers: Sequence, pairs: Pairs) -> Callable[[], None]:
    """pytorch-cka 1.1.3."""
    sys.path.remove(str(Path(__file__).parent))  # where this file has the name of their package
    from cka import compute_cka

    def run() -> None:
        for first, second in pairs:
            compute_cka(
                *(modules[first], modules[second], batches_of(pixels)),
                **{"layers": layers[first], "model2_layers": layers[second], "device": "cpu"},
            )

    return run


def torch_cka(modules: Sequence, pixels, layers: Sequence, pairs: Pairs) -> Callable[[], None]:
    """torch_cka 0.21; its hooks stay, so every pair gets copies of the models."""
    import copy

    from torch_cka import CKA

    compared = [
        CKA(
            *(copy.deepcopy(modules[first]), copy.deepcopy(modules[second]), "first", "second"),
            *(layers[first], layers[second]),
        )
        for first, second in pairs
    ]

    def run() -> None:
        with torch.inference_mode():
            for pair in compared:
                pair.compare(batches_of(pixels))

    return run


if __name__ == "__main__":
    main()
