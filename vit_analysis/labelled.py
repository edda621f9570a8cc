"""Labelled images by the number of the step that learns from them, so that a run can go on from any step."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader

from vit_analysis.images import UNSEEN, Images, Preprocessing, as_input
from vit_analysis.lab import scenes

logger = logging.getLogger(__name__)

Batch = tuple[Float[Tensor, "image 3 row column"], Int[Tensor, " image"]]

TESTED = 10_000  # unseen scenes
HELD_OUT = 10  # every tenth image of a folder is kept for the test
UNLIMITED = 10**9
INPUT = Preprocessing(input_size=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=1.0)


@runtime_checkable
class Data(Protocol):
    """Labelled images to learn from, by the number of the step that does, and others for the test."""

    @property
    def images(self) -> Images:
        """Which, how many to a batch, and the seed of their order."""

    @property
    def target(self) -> str:
        """What the labels tell."""

    @property
    def classes(self) -> list[str]:
        """Names of the labels."""

    def batches(self, steps: range) -> Iterator[Batch]:
        """Images and labels of these steps."""

    def unseen(self) -> Iterator[Batch]:
        """Images and labels of no step."""


@dataclass(frozen=True)
class Scenes:
    """The lab's scenes, labelled with their shape; `images.limit` of them, again and again."""

    images: Images
    device: str = "cpu"
    target: ClassVar[str] = "shape"
    classes: ClassVar[list[str]] = list(scenes.SHAPES)

    def __post_init__(self) -> None:
        if self.images.seed >= UNSEEN:
            raise ValueError(f"scenes of seeds from {UNSEEN} on are kept for tests, got {self.images.seed}")

    def batches(self, steps: range) -> Iterator[Batch]:
        """Drawn when they are needed."""
        for step in steps:
            numbers = order(step, self.images.limit or UNLIMITED, self.images.batch, self.images.seed)
            yield self.draw(numbers, self.images.seed)

    def unseen(self) -> Iterator[Batch]:
        """Scenes of the seed that analyses draw from."""
        for numbers in torch.arange(TESTED).split(500):
            yield self.draw(numbers, UNSEEN)

    def draw(self, numbers: Int[Tensor, " image"], seed: int) -> Batch:
        """Scenes as a model's input."""
        drawn = scenes.draw(numbers, seed=seed, size=INPUT.input_size[1], device=self.device)
        return as_input(drawn.image, INPUT), drawn.shape


class Files:
    """A folder, a tar or a data set of timm's; every tenth image is kept for the test. Not augmented."""

    target = "class"

    def __init__(self, images: Images, device: str = "cpu") -> None:
        self.images, self.device, self.classes = images, device, images.classes
        if not self.classes:
            raise ValueError(f"{images.source!r} has no classes to learn: it needs a folder for each")
        self.tested = images.order[::HELD_OUT]
        self.learned = [number for place, number in enumerate(images.order) if place % HELD_OUT]

    def batches(self, steps: range) -> Iterator[Batch]:
        """Decoded by the workers, ahead of their step."""
        places = (order(step, len(self.learned), self.images.batch, self.images.seed) for step in steps)
        return self.read([[self.learned[place] for place in batch.tolist()] for batch in places])

    def unseen(self) -> Iterator[Batch]:
        """The images kept for the test."""
        return self.read([batch.tolist() for batch in torch.tensor(self.tested).split(self.images.batch)])

    def read(self, numbers: list[list[int]]) -> Iterator[Batch]:
        """Images by their number, as a model's input; an unreadable one is named and left out."""
        dataset, workers = self.images._dataset((INPUT,)), self.images._workers
        loader: DataLoader[Any] = DataLoader(
            dataset, batch_sampler=numbers, collate_fn=unchanged, num_workers=workers
        )
        for batch in loader:
            for name in batch.unreadable:
                logger.warning("cannot read %s: left out", name)
            yield batch.inputs[0].to(self.device), batch.labels.to(self.device)


def unchanged(batch: Any) -> Any:
    """The data set already gives whole batches. A function of its own, as workers have to be sent it."""
    return batch


def order(step: int, distinct: int, batch: int, seed: int) -> Int[Tensor, " image"]:
    """Which of the distinct images a step learns from: all of them once, then all in another order, and so on."""
    places = torch.arange(step * batch, (step + 1) * batch)
    if places[-1] < distinct and distinct >= UNLIMITED:
        return places
    parts = []
    for turn in (places // distinct).unique().tolist():
        shuffled = torch.randperm(distinct, generator=torch.Generator().manual_seed(1_000_003 * seed + turn))
        parts.append(shuffled[places[places // distinct == turn] % distinct])
    return torch.cat(parts)


def provenance(data: Data) -> dict[str, Any]:
    """Enough to have the same images again; not where they lay."""
    images = data.images
    distinct = images.limit if images.limit and images.limit < UNLIMITED else None
    return {
        "source": Path(images.source).name,
        "distinct": distinct,
        "seed": images.seed,
        "batch": images.batch,
    }
