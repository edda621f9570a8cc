"""Measures of similarity side by side: on independent features, with a few outliers, and what the second ones cost.

    python benchmarks/measures.py

Prints three tables in Markdown. RSA, Procrustes similarity and the mean CCA correlation are computed here alone, to show why
they are not among the project's measures. Costs are CPU seconds of one thread, all measured in turn in this process.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from vit_analysis import cka, models
from vit_analysis.images import Images
from vit_analysis.shell import running
from vit_analysis.study.controls import ALL, MEASURES, NORMALIZED, VIEWS
from vit_analysis.tensors import similarity

FEATURES = 3000
ROUNDS = 3
COSTS = (
    (("lab/vit", "lab/resnet"), Images(limit=960, batch=160)),
    (("vit_tiny_patch16_224@random", "resnet50@random"), Images(limit=64, batch=64)),
)


def by_vectors(name: str) -> Callable[[list[Tensor], list[Tensor]], float]:
    """A measure of the project, as a ratio of sums over batches."""

    def of(xs: list[Tensor], ys: list[Tensor]) -> float:
        sums = np.zeros(3)
        for x, y in zip(xs, ys, strict=True):
            v, w = (cka.VECTORS[name](similarity.gram(own)).double() for own in (x, y))
            sums += [float(v @ w), float(v @ v), float(w @ w)]
        return float(sums[0] / np.sqrt(sums[1] * sums[2]))

    return of


def mean_of(one: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[list[Tensor], list[Tensor]], float]:
    """A measure of one batch, as its mean over batches."""
    return lambda xs, ys: float(np.mean([one(x.numpy(), y.numpy()) for x, y in zip(xs, ys, strict=True)]))


def rsa(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation of the distances of all pairs of images."""
    above = np.triu_indices(len(x), 1)
    distances = [np.linalg.norm(own[:, None] - own[None], axis=-1)[above] for own in (x, y)]
    return float(spearmanr(*distances).statistic)


def procrustes(x: np.ndarray, y: np.ndarray) -> float:
    """Nuclear norm of the cross-covariance over that of each itself."""
    x, y = (own - own.mean(0) for own in (x, y))
    (ux, sx, _), (uy, sy, _) = (np.linalg.svd(own, full_matrices=False) for own in (x, y))
    both = np.linalg.svd((sx[:, None] * (ux.T @ uy)) * sy, compute_uv=False).sum()
    return float(both / np.sqrt((sx**2).sum() * (sy**2).sum()))


def cca(x: np.ndarray, y: np.ndarray) -> float:
    """Mean canonical correlation."""
    bases = []
    for own in (x, y):
        u, s, _ = np.linalg.svd(own - own.mean(0), full_matrices=False)
        bases.append(u[:, s > 1e-6 * s[0]])
    return float(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).mean())


KINDS = {
    **{name: by_vectors(name) for name in ("cka", "rank_cka", "mutual_knn", "biased")},
    "RSA": mean_of(rsa),
    "Procrustes": mean_of(procrustes),
    "CCA": mean_of(cca),
}


def independent(batch: int, images: int = 512) -> list[float]:
    """Every measure on features that have nothing in common."""
    xs, ys = (torch.randn(images, FEATURES).split(batch) for _ in range(2))
    return [kind(list(xs), list(ys)) for kind in KINDS.values()]


def norms_alone(images: int = 64) -> list[float]:
    """Every measure where images have the same norms in both layers, and nothing else in common."""
    norms = torch.linspace(0.2, 4, images)[:, None]
    xs, ys = ([norms * torch.randn(images, FEATURES)] for _ in range(2))
    return [kind(xs, ys) for kind in KINDS.values()]


def outliers(batch: int, images: int = 1024, count: int = 5) -> list[float]:
    """Every measure on independent features but for a few images that are outliers in both layers."""
    far = torch.zeros(images, 1)
    far[torch.randperm(images)[:count]] = 60.0
    direction = torch.randn(1, FEATURES)
    xs, ys = ((torch.randn(images, FEATURES) + far * direction).split(batch) for _ in range(2))
    return [kind(list(xs), list(ys)) for kind in KINDS.values()]


def cost(names: list[str], images: Images) -> list[tuple[str, float]]:
    """CPU seconds of a pass over some scenes through two models, for growing choices of what is compared."""
    both = models.load_all(names, device="cpu")
    plain = {ALL: VIEWS[ALL], NORMALIZED.name: NORMALIZED.view}
    second = {control.name: control.view for control in MEASURES if "twins" not in control.view.given}
    pixels = list(images.read([model.preprocessing for model in both]))

    def forward() -> None:
        with torch.inference_mode():
            for batch in pixels:
                for model, own in zip(both, batch.inputs, strict=True):
                    model.module(own)

    tasks = {
        "forward passes alone": forward,
        "CKA of block outputs, of all tokens and of normalised ones": lambda: cka.plan_controls(
            both, images, plain
        ).table(),
        "and the second measures of both": lambda: cka.plan_controls(both, images, plain | second).table(),
    }
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(ROUNDS):
        for name, task in tasks.items():
            start = time.process_time()
            task()
            taken[name].append(time.process_time() - start)
    return [(name, statistics.median(own)) for name, own in taken.items()]


def row(name: str, values: list[float]) -> str:
    """A row of a table."""
    return f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |"


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = f"| | {' | '.join(KINDS)} |\n|---|{'--:|' * len(KINDS)}"
    print(f"Independent features ({FEATURES} of them, 512 images)\n\n{head}")
    for batch in (16, 64, 160, 512):
        print(row(f"batches of {batch}", independent(batch)))
    print(row("the same norms, 64 images", norms_alone()))
    print(f"\nFive of 1,024 images are outliers in both layers\n\n{head}")
    for batch in (16, 32, 64, 128):
        print(row(f"batches of {batch}", np.mean([outliers(batch) for _ in range(3)], axis=0).tolist()))
    for names, images in COSTS:
        found = cost(list(names), images)
        print(f"\n{images.limit} scenes in batches of {images.batch}, {' and '.join(names)}\n")
        print("| | CPU s | of the forward passes |\n|---|--:|--:|")
        for name, seconds in found:
            print(f"| {name} | {seconds:.2f} | {seconds / found[0][1]:.2f} |")


if __name__ == "__main__":
    running.run(main)
