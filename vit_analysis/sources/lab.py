"""The lab's scenes as a source: drawn by code, as many as asked for, with the answers to several questions."""

from collections.abc import Hashable, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from vit_analysis.lab import scenes
from vit_analysis.sources.preprocessing import Batch, Preprocessing, as_input

# No lab model was trained on scenes of this seed or a higher one.
UNSEEN = 1_000_000


class Lab:
    """Scenes that no lab model has seen."""

    at_hand = True

    def __init__(self, seed: int) -> None:
        self.seed = UNSEEN + seed

    def order(self, limit: int | None, seed: int) -> list[int]:  # noqa: ARG002  (the seed is in the scenes)
        """The first scenes, as each is drawn independently of the others."""
        assert limit is not None
        return list(range(limit))

    def targets(self) -> dict[str, list[str]]:
        """Shapes, textures and positions."""
        return {name: list(answers) for name, answers in scenes.TARGETS.items()}

    def truth(self, numbers: Sequence[int]) -> dict[str, Int[Tensor, " image"]]:
        """The right answers; nothing is drawn."""
        return scenes.truth(numbers, seed=self.seed)

    def batches(self, wanted: Sequence[Preprocessing]) -> Dataset[Batch]:
        """Scenes drawn once, at the largest size wanted."""
        return Drawn(tuple(wanted), self.seed)

    def name(self, number: int) -> str:
        """The number of the scene."""
        return f"scene {number}"

    def contents(self) -> dict[str, Any]:
        """Nothing, as the seed and the code say it all."""
        return {}

    def origin(self) -> Hashable:
        """The seed."""
        return "lab", self.seed

    def identity(self, number: int) -> str:
        """The seed and the number of the scene."""
        return f"scene {self.seed} {number}"


class Drawn(Dataset[Batch]):
    """The lab's scenes as batches, drawn at the largest size wanted."""

    def __init__(self, wanted: tuple[Preprocessing, ...], seed: int) -> None:
        self.wanted = wanted
        self.seed = seed

    def __getitems__(self, numbers: list[int]) -> Batch:
        size = max(max(one.input_size[1:]) for one in self.wanted)
        drawn = scenes.draw(numbers, seed=self.seed, size=size)
        inputs = [as_input(drawn.image, one) for one in self.wanted]
        return Batch(-1, inputs, drawn.shape.long(), list(numbers), [])
