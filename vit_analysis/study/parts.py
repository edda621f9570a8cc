"""Which model plays which part in a study: names only."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from vit_analysis import models


@dataclass(frozen=True)
class Parts:
    """The models of a study by the part they play, each as NAME[@WEIGHTS].

    Attributes:
        vit: Vision Transformers; the first one is the subject of figures and findings about one.
        cnn: CNNs, likewise.
        gap: the first Vision Transformer trained with average pooling instead of a class token.
        less_data: the first Vision Transformer trained on less data, from the least on.
        cnn_less_data: the first CNN trained on less data, from the least on.
        other_seed: the first Vision Transformer trained again from other initial weights.
        no_skip: the first Vision Transformer trained without the skip connections of one block.
        mixer: an MLP-Mixer.
        tuned: the first Vision Transformer fine-tuned to other data.
    """

    vit: tuple[str, ...] = ()
    cnn: tuple[str, ...] = ()
    gap: str | None = None
    less_data: tuple[str, ...] = ()
    cnn_less_data: tuple[str, ...] = ()
    other_seed: str | None = None
    no_skip: tuple[str, ...] = ()
    mixer: str | None = None
    tuned: str | None = None

    def names(self, *parts: str) -> list[str]:
        """The models of these parts, or of all, each once."""
        values = [getattr(self, part) for part in parts or [field.name for field in fields(self)]]
        named = [value if isinstance(value, tuple) else (value,) for value in values if value]
        return list(dict.fromkeys(name for group in named for name in group))

    def twins(self) -> list[str]:
        """The untrained twins of the first Vision Transformer and the first CNN."""
        return [models.twin(name) for name in (*self.vit[:1], *self.cnn[:1])]

    def change(self, rename: Callable[[str], str | None]) -> "Parts":
        """The same parts with other names; None leaves a model out."""
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                changed[field.name] = tuple(new for name in value if (new := rename(name)))
            else:
                changed[field.name] = rename(value) if value else None
        return Parts(**changed)


LAB_PARTS = Parts(
    vit=("lab/vit",),
    cnn=("lab/resnet",),
    gap="lab/vit_gap",
    less_data=("lab/vit_small_data", "lab/vit_medium_data"),
    cnn_less_data=("lab/resnet_small_data",),
    other_seed="lab/vit_other_seed",
    no_skip=("lab/vit_no_skip_first", "lab/vit_no_skip_middle", "lab/vit_no_skip_last"),
    mixer="lab/mixer",
)


def parts_wanted(part: str) -> str:
    """Say in words, with its flag, what model a part stands for."""
    told = {
        "vit": "a Vision Transformer (--vit)",
        "cnn": "a CNN (--cnn)",
        "gap": "a Vision Transformer trained with average pooling (--gap)",
        "less_data": "a Vision Transformer trained on less data (--less-data)",
        "cnn_less_data": "a CNN trained on less data (--cnn-less-data)",
        "other_seed": "a Vision Transformer trained from another seed (--other-seed)",
        "no_skip": "a Vision Transformer trained without the skip connections of one block (--no-skip)",
        "mixer": "an MLP-Mixer (--mixer)",
        "tuned": "a fine-tuned Vision Transformer (--tuned)",
    }
    return told[part]
