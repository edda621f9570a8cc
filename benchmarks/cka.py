"""CKA of all pairs of layers against the bare forward pass and against peers: CPU seconds and extra memory, as ratios.

    python benchmarks/cka.py                    # both tasks, 3 rounds, one thread
    python benchmarks/cka.py --rounds 5 --tasks resnets

Every measurement is a process of its own (so that its peak memory is its own), contenders alternate within a round, and what
is printed is the median over rounds of the seconds, and of the ratio to the bare forward pass *of the same round*: other load
on the machine comes and goes between rounds, and hits all contenders of one alike. "tuned" is what a command of this package
sets for its process, for the forward pass and for us: convolutions with channels last, and an allocator that keeps memory.
Peers are asked for the same: within both models and across, which takes them three runs. They are an optional dependency
group (pip install --group benchmark).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

THREADS = "1"
TASKS = {"resnets": (("resnet18", "resnet18"), 4), "pair": (("vit_tiny_patch16_224", "resnet50"), 2)}
BATCH = 32
CONTENDERS = ("forward", "ours", "forward, tuned", "ours, tuned", "pytorch-cka", "torch_cka")


def main() -> None:
    """Run the rounds, or with --one a single measurement that prints JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--one", nargs=2, metavar=("CONTENDER", "TASK"))
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one)))
        return
    for task in arguments.tasks:
        report(task, rounds(task, arguments.contenders, arguments.rounds))


def rounds(task: str, contenders: Sequence[str], count: int) -> dict[str, list[dict[str, float]]]:
    """Alternating measurements of all contenders."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    quiet = {"OMP_NUM_THREADS": THREADS, "MKL_NUM_THREADS": THREADS}
    for _ in range(count):
        for name in contenders:
            call = [sys.executable, __file__, "--one", name, task]
            ran = subprocess.run(
                call, env={**os.environ, **quiet}, capture_output=True, text=True, check=True
            )
            results[name].append(json.loads(ran.stdout.splitlines()[-1]))
    return results


def report(task: str, results: dict[str, list[dict[str, float]]]) -> None:
    """One Markdown table per task."""
    models, batches = TASKS[task]
    layers = (
        " x ".join(str(int(results["ours"][0]["layers" + side])) for side in "12")
        if "ours" in results
        else ""
    )
    print(
        f"\n{models[0]} x {models[1]}, {layers} layers, {batches} x {BATCH} images, within + within + across\n"
    )
    print("| | CPU s | ratio | extra MB | ratio |\n|---|--:|--:|--:|--:|")
    for name, own in results.items():
        cells = []
        for key, form in (("cpu", ".1f"), ("extra", ".0f")):
            ratio = [one[key] / base[key] for one, base in zip(own, results["forward"], strict=True)]
            cells += [
                f"{statistics.median(one[key] for one in own):{form}}",
                f"{statistics.median(ratio):.2f}",
            ]
        print(f"| {name} | {' | '.join(cells)} |")


def measure(contender: str, task: str) -> dict[str, float]:
    """CPU seconds and extra memory (MB over what stands before) of one contender."""
    import timm
    import torch

    from vit_analysis import scenes
    from vit_analysis.command import keep_memory

    warnings.simplefilter("ignore")
    names, batches = TASKS[task]
    torch.manual_seed(0)
    modules = [
        timm.create_model(name, zero_init_last=False) if "resnet" in name else timm.create_model(name)
        for name in names
    ]
    modules = [module.eval().requires_grad_(False) for module in modules]
    pixels = scenes.draw(range(batches * BATCH), size=224).image
    layers = [layers_of(module) for module in modules]
    kind, _, tuned = contender.partition(", ")
    if tuned:
        modules = [module.to(memory_format=torch.channels_last) for module in modules]
        keep_memory()
    contenders = {"forward": forward, "ours": ours, "pytorch-cka": pytorch_cka, "torch_cka": torch_cka}
    run = contenders[kind](modules, pixels, layers)
    with torch.inference_mode():
        for module in modules:  # what a first call allocates and compiles is no one's fault
            module(pixels[:BATCH])
    before = current_mb()
    start = time.process_time()
    run()
    cpu = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu": cpu, "extra": peak - before, "layers1": len(layers[0]), "layers2": len(layers[1])}


def layers_of(module: object) -> list[str]:
    """Convolutions outside shortcuts, and units; attentions and blocks of a Vision Transformer."""
    from torch import nn

    assert isinstance(module, nn.Module)
    if hasattr(module, "patch_embed"):
        return [f"blocks.{number}{part}" for number in range(12) for part in (".attn", "")]
    kinds = ("BasicBlock", "Bottleneck")
    return [
        name for name, m in module.named_modules() if isinstance(m, nn.Conv2d) or type(m).__name__ in kinds
    ]


def forward(modules: Sequence, pixels, layers: Sequence) -> Callable[[], None]:  # noqa: ARG001
    """Every image through both models, nothing else."""
    import torch

    def run() -> None:
        with torch.inference_mode():
            for part in pixels.split(BATCH):
                for module in modules:
                    module(part)

    return run


def ours(modules: Sequence, pixels, layers: Sequence) -> Callable[[], None]:
    """The public function, intervals and massive tokens included."""
    import torch

    from vit_analysis import cka
    from vit_analysis.images import Batch, Images

    @dataclass(frozen=True)
    class InMemory(Images):
        pixels: torch.Tensor = field(default_factory=lambda: torch.empty(0))

        @property
        def order(self) -> list[int]:
            return list(range(len(self.pixels)))

        def read(self, wanted, *, rank: int = 0, of: int = 1, start: int = 0) -> Iterator[Batch]:  # noqa: ARG002
            for number, part in enumerate(self.pixels.split(BATCH)):
                yield Batch(number, [part] * len(wanted), torch.zeros(BATCH).long(), list(range(BATCH)), [])

    images = InMemory(batch=BATCH, pixels=pixels)
    named = {"first": modules[0], "second": modules[1]}
    return lambda: cka.compare(named, images, layers=[*layers[0], *layers[1]])


def pairs_of(modules: Sequence, layers: Sequence) -> Iterator[tuple]:
    """Within, within, across."""
    for first, second in ((0, 0), (1, 1), (0, 1)):
        yield modules[first], modules[second], layers[first], layers[second]


def batches_of(pixels):
    """A loader over tensors in memory."""
    from torch.utils.data import DataLoader, TensorDataset

    return DataLoader(TensorDataset(pixels), batch_size=BATCH)


def pytorch_cka(modules: Sequence, pixels, layers: Sequence) -> Callable[[], None]:
    """pytorch-cka 1.1.3."""
    from cka import compute_cka

    def run() -> None:
        for first, second, own, other in pairs_of(modules, layers):
            compute_cka(first, second, batches_of(pixels), layers=own, model2_layers=other, device="cpu")

    return run


def torch_cka(modules: Sequence, pixels, layers: Sequence) -> Callable[[], None]:
    """torch_cka 0.21; its hooks stay, so every pair gets copies of the models."""
    import copy

    import torch
    from torch_cka import CKA

    compared = [
        CKA(copy.deepcopy(first), copy.deepcopy(second), "first", "second", own, other)
        for first, second, own, other in pairs_of(modules, layers)
    ]

    def run() -> None:
        with torch.inference_mode():
            for pair in compared:
                pair.compare(batches_of(pixels))

    return run


def current_mb() -> float:
    """Resident memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
