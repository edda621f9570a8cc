"""What a person types, before anything heavy is imported: which images, how pictures are drawn, and the line itself."""

import os
import shlex
import sys
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vit_analysis.spelling import Refusal, did_you_mean

UNLIMITED = 10**9  # images: more than there are
LAB = "lab"  # the source of images that is code: it draws as many as are asked for

Selection = Literal["all", "spatial", "cls", "mean", "normalized", "standardized", "inliers", "typical"]
"""Which values of a layer of tokens are compared, see `tensors.tokens.SELECTIONS`."""
Scaling = Literal["all", "normalized"]
"""Tokens as they are, or each scaled to norm 1."""
Measure = Literal["cka", "partial_cka", "rank_cka", "mutual_knn"]
"""The measures of similarity of two layers, see `cka.measure`."""
Format = Literal["png", "pdf", "svg"]
Precision = Literal["float32", "tf32", "bf16"]
"""The precisions of a forward pass, see `tensors.precision.computing`."""


@dataclass(frozen=True)
class Choice:
    """The choice of images, and the way they are read.

    Attributes:
        source: ``lab`` (procedural scenes); a folder of images, whose folders are their classes; a tar; shards, as in
            'DIR/train-{000..063}.tar', 'DIR/*.parquet' or a folder of them; torch/NAME of torchvision, such as torch/cifar10;
            or hfds/NAME of the library datasets.
        root: folder of the data, for torch/ and hfds/ names.
        split: which split to read, for torch/ and hfds/ names.
        limit: how many images; a random choice by `seed` where there are more. None takes all.
        batch: images per batch; the unbiased estimator gives the same answer for any size, and large ones cost more per image.
        seed: random seed of the choice and order of images, and of the scenes.
        workers: number of processes that decode; None chooses it by the number of cores.
        strict: fail at the first unreadable image instead of when more than 1 % are.
        image_column: column of the images in parquet and hfds/, or their ending in tars; None finds it.
        label_column: column of the classes, or in tars the ending of the files, or the key in .json files, that says them;
            None finds it.
    """

    source: str = LAB
    root: Path | None = None
    split: str = "validation"
    limit: int | None = 1024
    batch: int = 64
    seed: int = 0
    workers: int | None = None
    strict: bool = False
    image_column: str | None = None
    label_column: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, str | Path):
            raise Refusal(
                f"images.source is one name, got {type(self.source).__name__}; several files are a folder of images, or "
                f"shards as in 'DIR/{{a,b}}.tar'"
            )
        object.__setattr__(self, "source", str(self.source))  # a path is as good as its name
        for name, least in (("limit", 1), ("batch", 1), ("seed", 0), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise Refusal(f"images.{name} must be at least {least}, got {value}")
        if self.endless and self.limit is None:
            raise Refusal("the lab draws as many scenes as asked for: say images.limit")
        if self.endless and (self.image_column or self.label_column):
            raise Refusal(f"{self.source!r} has no columns")

    @property
    def endless(self) -> bool:
        """Return whether the source draws as many different images as asked for."""
        return self.source == LAB


@dataclass(frozen=True)
class Pictures:
    """The files that pictures are written to, and how models are named in them.

    Attributes:
        format: kinds of file of every picture: png, or for a paper pdf or svg, of lines and text.
        width: width of every picture in inches, such as that of a column; None is each picture's own.
        names: MODEL=NAME ...: a model's name, as tables have it, and what pictures call it, as in lab/vit=ViT.
    """

    format: tuple[Format, ...] = ("png",)
    width: float | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.format:
            raise Refusal("--format names no kind of file; choose of png, pdf and svg")
        if self.width is not None and not 1 <= self.width <= 100:
            raise Refusal(f"--width is in inches, from 1 to 100, got {self.width:g}")
        for name in self.names:
            model, equals, called = name.rpartition("=")
            if not (equals and model.strip() and called.strip()):
                raise Refusal(f"--names takes MODEL=NAME, as in lab/vit=ViT, got {name!r}")

    @property
    def endings(self) -> tuple[str, ...]:
        """The endings of the files of one picture."""
        return tuple(f".{kind}" for kind in dict.fromkeys(self.format))

    def and_png(self) -> "Pictures":
        """The same with png first, which a page shows whatever else is written."""
        return replace(self, format=("png", *self.format))

    @property
    def called(self) -> dict[str, str]:
        """The names in pictures by the names in tables; a model's own name may have equals signs in it."""
        return dict(name.rpartition("=")[::2] for name in self.names)

    def refuse_others(self, models: Collection[str]) -> None:
        """Check, once models are loaded, that they are those that get names.

        Raises:
            Refusal: one is none of them.
        """
        for model in self.called:
            if model not in models:
                raise Refusal(f"--names: no model is called {model!r}; {did_you_mean(model, models)}")


@dataclass(frozen=True)
class Machine:
    """Where models run, and how precisely.

    Attributes:
        device: cpu, cuda ...; None is the GPU if there is one.
        precision: of the models' own products: float32 in full; tf32, on NVIDIA's GPUs only; or bf16, by autocast. Whatever it
            is, similarities are at least as precise. What it changes is measured on the first batch and said.
    """

    device: str | None = None
    precision: Precision = "float32"


def line() -> str:
    """The command as it would be typed again."""
    return f"{program()} {shlex.join(sys.argv[1:])}".strip()


def program() -> str:
    """The command without its arguments, as it would be typed again."""
    script = Path(sys.argv[0])
    if script.suffix != ".py":
        return script.name
    script = script.parent if script.stem == "__main__" else script
    return f"python -m {script.parent.name}.{script.stem}"


def out() -> str:
    """The last --out of the line, with the slash at its end that a Path does not keep; empty where there is none."""
    found = ""
    for argument, value in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        if argument == "--out" or argument.startswith("--out="):
            found = value if argument == "--out" else argument.removeprefix("--out=")
    return found


def is_folder(path: Path) -> bool:
    """Return whether what was typed for --out names a folder and no file in one."""
    said = out() or str(path)
    return path.name in ("", "..") or said.endswith(("/", "/.", os.sep))


def as_they_are() -> bool:
    """Return whether the user asks (VIT_ANALYSIS_PLAIN=1) that convolutions and the allocator are not tuned."""
    return os.environ.get("VIT_ANALYSIS_PLAIN", "0") not in ("", "0")


def single(words: tuple[str, ...]) -> str | tuple[str, ...]:
    """The one word, or all of them where there are several: an option's plain value may be a word with a meaning."""
    return words[0] if len(words) == 1 else words
