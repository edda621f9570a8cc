"""Everything that a GPU can tell, in one run of a few minutes, without a network or weights, as one Markdown file.

    python benchmarks/gpu.py --out gpu.md              # on the GPU
    python benchmarks/gpu.py --tiny --out gpu.md       # all of it on a CPU at toy size, in a minute

Whether tables are those of the CPU; images/s of the forward pass, of CKA of all sublayers and of everything that only reads
activations, with their ratios and memory, by model, precision and batch; kernels and waits per layer; Gram products by method
(`gram_products`); what decoding keeps up with. Images lie on the device, but for decoding. What time does not allow
(``--minutes``) is left out and said.
"""

import argparse
import functools
import importlib.metadata
import platform
import shutil
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import alternating
import gram_products
import study
import timm
import torch
from torch.profiler import ProfilerActivity, profile

from vit_analysis import cka, models
from vit_analysis.images import Images
from vit_analysis.lab import scenes
from vit_analysis.models import Model
from vit_analysis.reading import graphs, measure
from vit_analysis.study import plans
from vit_analysis.study.loaded import Cast
from vit_analysis.study.parts import Parts
from vit_analysis.tensors.precision import computing
from vit_analysis.typed import Precision

FULL = {
    "models": ("vit_base_patch16_224", "resnet50", "vit_large_patch16_224"),
    "pairs": (("vit_base_patch16_224", "resnet50"),),
    "alike": ("vit_tiny_patch16_224", "resnet50"),
    "batches": (64, 256, 1024),
    "images": 1024,
    "gram_images": (32, 64, 128, 256, 1024),
    "features": (50_000, 151_296, 802_816),
    "files": 1024,
    "workers": (0, 8, 16),
}
TINY = {
    "models": ("lab/vit", "lab/resnet"),
    "pairs": (("lab/vit", "lab/resnet"),),
    "alike": ("lab/vit", "lab/resnet"),
    "batches": (32, 40),
    "images": 80,
    "gram_images": (16, 32),
    "features": (5_000,),
    "files": 64,
    "workers": (0, 1),
}
LARGE = 1024  # a batch that fills a GPU for long
# Tables of a GPU may differ from those of a CPU by so much, in CKA.
BOUNDS: dict[Precision, float] = {"float32": 1e-3, "tf32": 3e-3, "bf16": 3e-2}


class Bench:
    """The device, the sizes, and how long it may take."""

    def __init__(self, sizes: Mapping[str, Any], device: torch.device, minutes: float) -> None:
        self.sizes, self.device = sizes, device
        self.end = time.monotonic() + 60 * minutes
        self.precisions: list[Precision] = ["bf16", "float32", *(["tf32"] if device.type == "cuda" else [])]

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], Any], repeats: int = 5) -> float:
        """Median time of a run, after one that does not count."""
        run()
        taken = []
        for _ in range(repeats):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    def cell(self, run: Callable[[], str]) -> str:
        """What a run says, or why it says nothing."""
        if time.monotonic() > self.end:
            return "no time left"
        try:
            return run()
        except torch.OutOfMemoryError:
            return "memory full"
        except Exception as fault:
            traceback.print_exception(fault)
            return f"**{type(fault).__name__}**"
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def peak(self, run: Callable[[], Any]) -> float:
        """GB that a run takes of the device beyond what is there before it; 0 where that is not told."""
        if self.device.type != "cuda":
            run()
            return 0.0
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        self.wait()
        return (torch.cuda.max_memory_allocated() - before) / 1e9

    def load(self, name: str, precision: Precision, device: torch.device | None = None) -> Model:
        """An untrained model."""
        return replace(self._made(name, device or self.device), precision=precision)

    @functools.cache  # noqa: B019  (there is one bench)
    def _made(self, name: str, device: torch.device) -> Model:
        return models.load(f"{name}@random", device=device)

    @functools.cached_property
    def drawn(self) -> torch.Tensor:
        """Scenes of the size that the models take."""
        return scenes.draw(range(self.sizes["images"]), size=32 if self.sizes is TINY else 224).image

    def images(self, batch: int, count: int, device: torch.device | None = None) -> alternating.InMemory:
        """The first of them, on the device, again and again where there are not as many."""
        pixels = self.drawn.to(device or self.device)
        pixels = pixels.repeat(-(-count // len(pixels)), 1, 1, 1)[:count]
        labels = torch.arange(count) % max(
            2, min(10, batch // 16)
        )  # as many of each class as some losses ask for
        return alternating.InMemory(batch=batch, pixels=pixels, labels=labels)


def main() -> None:
    """Run all sections, each printed and written as soon as it is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.md"))
    parser.add_argument("--minutes", type=float, default=6.5)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", nargs="+", choices=[own.__name__ for own in SECTIONS], help="some sections")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() and not arguments.tiny else "cpu")
    bench = Bench(TINY if arguments.tiny else FULL, device, arguments.minutes)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "a CPU"
    told = [f"# {name}, torch {torch.__version__}, timm {timm.__version__}"]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for section in [own for own in SECTIONS if own.__name__ in (arguments.only or own.__name__)]:
        start = time.perf_counter()
        told += ["", f"## {section.__doc__.splitlines()[0].rstrip('.')}", ""]
        try:
            told += section(bench)
        except Exception as fault:  # the other sections are worth having
            traceback.print_exception(fault)
            told.append(f"**{type(fault).__name__}: {fault}**")
        print(f"[{section.__name__}: {time.perf_counter() - start:.0f} s]", flush=True)
        arguments.out.write_text("\n".join(told) + "\n")
    print("\n".join(told))


def alike(bench: Bench) -> Iterator[str]:
    """Tables of the device beside those of the CPU in float32."""
    names, images = bench.sizes["alike"], (64 if bench.sizes is FULL else 32)
    cpu = torch.device("cpu")
    exact = cka.measure(
        [bench.load(name, "float32", cpu) for name in names], bench.images(images // 2, images, cpu)
    )
    yield f"CKA of all sublayers of {' and '.join(names)} with random weights, {images} images.\n"
    yield "| precision | median | most | bound | |\n|---|--:|--:|--:|---|"
    for precision in bench.precisions:
        found = cka.measure(
            [bench.load(name, precision) for name in names], bench.images(images // 2, images)
        )
        apart = (found["cka"] - exact["cka"]).abs()
        good = "as it should be" if apart.max() < BOUNDS[precision] else "**TOO FAR**"
        yield f"| {precision} | {apart.median():.0e} | {apart.max():.0e} | {BOUNDS[precision]:.0e} | {good} |"


def forward(bench: Bench, model: Model, images: alternating.InMemory) -> None:
    """Every batch through a model, nothing else."""
    convolutional = "resnet" in model.name
    module = model.module.to(memory_format=torch.channels_last) if convolutional else model.module
    with torch.inference_mode(), computing(model.precision or "float32", bench.device):
        for batch in images.pixels.split(images.batch):
            module(batch.clone())


def throughput(bench: Bench) -> Iterator[str]:
    """The forward pass alone, and CKA of all sublayers."""
    yield "| model | precision | batch | forward, images/s | CKA, images/s | ratio | forward, GB | CKA, GB |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    for precision in bench.precisions:
        for name in bench.sizes["models"]:
            model = bench.load(name, precision)
            for batch in bench.sizes["batches"]:
                cells = bench.cell(
                    lambda model=model, batch=batch: beside_forward(bench, [model], batch, cka_of)
                )
                yield f"| {name} | {precision} | {batch} | {cells} |"


def of_study(bench: Bench) -> Iterator[str]:
    """Everything of the paper's that only reads activations, in one pass, beside the forward passes of both models."""
    yield "| models | precision | batch | forward, images/s | study, images/s | ratio | forward, GB | study, GB |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    for precision in bench.precisions[:2]:
        for names in bench.sizes["pairs"]:
            loaded = [bench.load(name, precision) for name in names]
            for batch in bench.sizes["batches"][:2]:
                cells = bench.cell(
                    lambda own=loaded, batch=batch: beside_forward(bench, own, batch, everything)
                )
                yield f"| {' and '.join(names)} | {precision} | {batch} | {cells} |"


def beside_forward(
    bench: Bench,
    loaded: Sequence[Model],
    batch: int,
    planned: Callable[[Sequence[Model], Images], dict[str, Any]],
) -> str:
    """Images/s of the forward pass and of measurements in the middle of a long run, their ratio, and memory.

    What a run does once, such as recording its passes (`reading.graphs`), is taken away: it is the time of the batches by
    which one run is longer than another. Batches that fill a GPU for long are run as they are.
    """
    short, more = (graphs.WORTH, 6) if batch < LARGE and bench.device.type == "cuda" else (0, 2)

    def once(count: int) -> float:
        images = bench.images(batch, count * batch)
        bench.wait()
        start = time.perf_counter()
        measure.total(planned(loaded, images))
        bench.wait()
        return time.perf_counter() - start

    images = bench.images(batch, 4 * batch)
    bare = bench.seconds(lambda: [forward(bench, own, images) for own in loaded], 3) / 4
    memory = [
        bench.peak(lambda: [forward(bench, own, images) for own in loaded]),
        bench.peak(lambda: once(1)),
    ]
    whole = (once(short + more) - (once(short) if short else 0)) / more
    rates = [f"{batch / own:.0f}" for own in (bare, whole)]
    return " | ".join([*rates, f"{whole / bare:.2f}", *(f"{own:.1f}" for own in memory)])


def cka_of(loaded: Sequence[Model], images: Images) -> dict[str, Any]:
    """CKA of all sublayers."""
    return {"": cka.plan(loaded, images)}


def everything(loaded: Sequence[Model], images: Images) -> dict[str, Any]:
    """The measurements of a study that share the pass over activations."""
    vit, cnn = loaded
    cast = Cast(Parts(vit=(vit.name,), cnn=(cnn.name,)), {own.name: own for own in loaded})
    images = plans.balanced(images)
    planned = plans.by_table(cast, images, images, images, images)
    wanted = {name: planned[name]() for name in study.TABLES["paper"]}
    each = {f"{name} {number}": one for name, own in wanted.items() for number, one in enumerate(own)}
    return {name: one for name, one in each.items() if one.reading.images.facts() == images.facts()}


def waits(bench: Bench) -> Iterator[str]:
    """Kernels, and waits for the device, of one batch run plainly, the search for the axis of images included."""
    yield "| model | precision | what | layers | kernels | waits | copies to the host | on the device, ms | wall, ms |"
    yield "|---|---|---|--:|--:|--:|--:|--:|--:|"
    batch = bench.sizes["batches"][0]
    for name in bench.sizes["models"][:2]:
        model = bench.load(name, "bf16")
        images = bench.images(batch, batch)
        plan = cka.plan(model, images)
        layers = len(plan.reading.taps[model.name])
        runs = {
            "forward": lambda m=model, i=images: forward(bench, m, i),
            "CKA": lambda p=plan: measure.total({"": p}),
        }
        for what, run in runs.items():
            yield f"| {name} | bf16 | {what} | {layers} | {bench.cell(lambda run=run: traced(bench, run))} |"


def traced(bench: Bench, run: Callable[[], Any]) -> str:
    """Counts of one run from a profile, whose most costly kernels go to the log."""
    wall = bench.seconds(run, 3)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.device.type == "cuda" else [])]
    with profile(activities=kinds) as seen:
        run()
        bench.wait()
    events = seen.key_averages()
    print(
        events.table(sort_by=f"self_{bench.device.type}_time_total", row_limit=24, max_name_column_width=70)
    )

    def count(*parts: str) -> int:
        return sum(own.count for own in events if any(part in own.key for part in parts))

    kernels = [own for own in events if "CUDA" in str(own.device_type)]
    device = sum(own.self_device_time_total for own in kernels) / 1e3
    synced = count("StreamSynchronize", "DeviceSynchronize")
    launched = count("cudaLaunchKernel", "cuLaunchKernel")
    return f"{launched} | {synced} | {count('Memcpy DtoH')} | {device:.1f} | {1e3 * wall:.1f}"


def products(bench: Bench) -> Iterator[str]:
    """Gram products by method: time, share of the roofline, and error of CKA against products in float64."""
    sizes = bench.sizes["gram_images"], bench.sizes["features"]
    yield from gram_products.rows(*sizes, lambda run: bench.seconds(run, 7), bench.device)


def peers(bench: Bench) -> Iterator[str]:
    """Peers asked for the same layers of one model, in float32."""
    name, batch = bench.sizes["models"][0], bench.sizes["batches"][0]
    images = bench.images(batch, 2 * batch)
    model = bench.load(name, "float32")
    paths = [path for path in model.module.state_dict() if path.endswith("attn.qkv.weight")]
    layers = [path.removesuffix(".qkv.weight") for path in paths] or ["blocks.0"]
    ours = bench.seconds(lambda: measure.total({"": cka.plan(model, images, layers=layers)}), 3)
    yield f"{len(layers)} layers of {name}, {2 * batch} images in batches of {batch}.\n"
    yield "| | images/s | of ours |\n|---|--:|--:|"
    yield f"| ours | {2 * batch / ours:.0f} | 1 |"
    for peer, run in {"pytorch-cka": pytorch_cka, "torch_cka": torch_cka}.items():
        if there(peer):

            def one(run: Callable[..., Any] = run) -> str:
                taken = bench.seconds(lambda: run(bench, model, images, layers), 1)
                return f"{2 * batch / taken:.0f} | {ours / taken:.3f}"

            yield f"| {peer} | {bench.cell(one)} |"


def there(distribution: str) -> bool:
    """Return whether a distribution is installed."""
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def pytorch_cka(bench: Bench, model: Model, images: alternating.InMemory, layers: Sequence[str]) -> None:
    """pytorch-cka 1.1.3, all pairs of layers of a model."""
    import sys

    here = str(Path(__file__).parent)  # where a file has the name of their package
    sys.path[:] = [path for path in sys.path if path != here]
    sys.modules.pop("cka", None)
    from cka import compute_cka

    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images.pixels), batch_size=images.batch
    )
    compute_cka(
        model.module, model.module, loader, layers=layers, model2_layers=layers, device=str(bench.device)
    )


def torch_cka(bench: Bench, model: Model, images: alternating.InMemory, layers: Sequence[str]) -> None:
    """torch_cka 0.21, all pairs of layers of a model; its hooks stay, so it gets a copy."""
    import copy

    from torch_cka import CKA

    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images.pixels), batch_size=images.batch
    )
    own = [copy.deepcopy(model.module) for _ in range(2)]
    with torch.inference_mode():
        CKA(*own, "first", "second", layers, layers, device=str(bench.device)).compare(loader)


def decoding(bench: Bench) -> Iterator[str]:
    """JPEG files of 320 pixels, read alone and under CKA in bf16."""
    from torchvision.transforms.functional import to_pil_image

    name, count, batch = bench.sizes["models"][0], bench.sizes["files"], bench.sizes["batches"][-1] // 4
    yield "| workers | read, images/s | CKA from files, images/s |\n|--:|--:|--:|"
    with tempfile.TemporaryDirectory() as folder:
        for number, scene in enumerate(scenes.draw(range(64), size=320).image):
            to_pil_image(scene).save(first := Path(folder) / f"{number:05d}.jpg", quality=92)
            for more in range(number + 64, count, 64):
                shutil.copy(first, first.with_stem(f"{more:05d}"))
        model = bench.load(name, "bf16")
        for workers in bench.sizes["workers"]:
            images = Images(source=folder, limit=count, batch=batch, workers=workers)

            def one(images: Images = images) -> str:
                start = time.perf_counter()
                read = sum(len(own.labels) for own in images.read([model.preprocessing]))
                middle = time.perf_counter()
                measure.total({"": cka.plan(model, images)})
                bench.wait()
                return f"{read / (middle - start):.0f} | {count / (time.perf_counter() - middle):.0f}"

            yield f"| {workers} | {bench.cell(one)} |"


SECTIONS = (alike, waits, products, peers, decoding, of_study, throughput)


if __name__ == "__main__":
    main()
