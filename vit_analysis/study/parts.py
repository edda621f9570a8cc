"""What a study is asked: which model plays which part, which training runs of it there are, on which images by default."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import tyro

from vit_analysis.makers.request import twin
from vit_analysis.typed import Choice


def _read(words: list[str]) -> "str | tuple[str, ...]":
    """Read NAME+NAME...; a checkpoint whose path has a plus sign in it is one name."""
    (text,) = words
    names = tuple(name for name in text.split("+") if name)
    return text if len(names) < 2 or Path(text.partition("@")[2]).expanduser().is_file() else names


# One model, or several training runs of it: the same recipe from other initial weights, or other data of the same kind.
Runs = Annotated[
    str | tuple[str, ...],
    tyro.constructors.PrimitiveConstructorSpec[Any](
        nargs=1,
        metavar="NAME[+NAME...]",
        instance_from_str=_read,
        is_instance=lambda value: isinstance(value, str | tuple),
        str_from_instance=lambda value: ["+".join(_runs(value))],
    ),
]


@dataclass(frozen=True)
class Parts:
    """The models of a study by the part they play, each as NAME[@WEIGHTS].

    Several training runs of one model stand together, `NAME+NAME+NAME` on a command line and a tuple in Python: figures show
    the first, findings give the number for each. The second run of one part is compared with the second of another.

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
        local: the first Vision Transformer with attention to near patches alone, trained like it.
        flat: the first CNN without any downsampling after its stem, trained like it.
    """

    vit: tuple[Runs, ...] = ()
    cnn: tuple[Runs, ...] = ()
    gap: Runs | None = None
    less_data: tuple[Runs, ...] = ()
    cnn_less_data: tuple[Runs, ...] = ()
    other_seed: Runs | None = None
    no_skip: tuple[Runs, ...] = ()
    mixer: Runs | None = None
    tuned: Runs | None = None
    local: Runs | None = None
    flat: Runs | None = None

    def names(self, *parts: str) -> list[str]:
        """The first run of every model of these parts, or of all, each once."""
        return _once(runs[0] for runs in self.members(*parts))

    def runs(self, *parts: str) -> list[str]:
        """Every run of every model of these parts, or of all, each once."""
        return _once(name for runs in self.members(*parts) for name in runs)

    def members(self, *parts: str) -> list[tuple[str, ...]]:
        """The models of these parts, or of all, each as the names of its runs."""
        found = []
        for part in parts or [field.name for field in fields(self)]:
            value = getattr(self, part)
            found += [_runs(own) for own in (value if several(part) else (value,)) if own]
        return found

    def each_run(self) -> list["Parts"]:
        """The parts with the first run of every model, with the second ...; a model without such a run keeps its first."""
        most = max((len(runs) for runs in self.members()), default=1)
        return [
            self._change(lambda runs, number=number: runs[number] if number < len(runs) else runs[0])  # type: ignore[misc]
            for number in range(most)
        ]

    def twins(self) -> list[str]:
        """The untrained twins of the first Vision Transformer and the first CNN."""
        return [twin(name) for name in (*self.names("vit")[:1], *self.names("cnn")[:1])]

    def change(self, rename: Callable[[str], str | None]) -> "Parts":
        """The same parts with other names; where one is None, that run and all after it are left out: runs stay pairs."""

        def renamed(runs: tuple[str, ...]) -> str | tuple[str, ...] | None:
            found = tuple(new for new in takewhile(lambda new: new is not None, map(rename, runs)) if new)
            return (found if len(found) > 1 else found[0]) if found else None

        return self._change(renamed)

    def _change(self, change: Callable[[tuple[str, ...]], str | tuple[str, ...] | None]) -> "Parts":
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if several(field.name):
                changed[field.name] = tuple(new for own in value if (new := change(_runs(own))))
            else:
                changed[field.name] = change(_runs(value)) if value else None
        return Parts(**changed)


def _runs(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def several(part: str) -> bool:
    """Return whether several models may play a part, and not one with several runs."""
    return part in ("vit", "cnn", "less_data", "cnn_less_data", "no_skip")


def _once(names: Any) -> list[str]:
    return list(dict.fromkeys(names))


IMAGES = Choice(limit=2000, batch=160)  # about 11 batches of 16 scenes of each shape
TRAIN = Choice(limit=100_000, seed=1)
# No images of their own for what needs classes: those of all else.
SAME = Choice(source="", limit=None, batch=160)

LAB_PARTS = Parts(
    vit=(("lab/vit", "lab/vit:1", "lab/vit:2"),),
    cnn=(("lab/resnet", "lab/resnet:1", "lab/resnet:2"),),
    gap=("lab/vit_gap", "lab/vit_gap:1", "lab/vit_gap:2"),
    less_data=(
        ("lab/vit_small_data", "lab/vit_small_data:1", "lab/vit_small_data:2"),
        ("lab/vit_medium_data", "lab/vit_medium_data:1", "lab/vit_medium_data:2"),
    ),
    cnn_less_data=(("lab/resnet_small_data", "lab/resnet_small_data:1", "lab/resnet_small_data:2"),),
    # The ceiling: the same data from other weights. Further runs are each other's: both have images of their own, without end.
    other_seed=("lab/vit_other_seed", "lab/vit:2", "lab/vit:1"),
    no_skip=(
        "lab/vit_no_skip_first",
        ("lab/vit_no_skip_middle", "lab/vit_no_skip_middle:1", "lab/vit_no_skip_middle:2"),
        "lab/vit_no_skip_last",
    ),
    mixer="lab/mixer",
    local=("lab/vit_local", "lab/vit_local:1", "lab/vit_local:2"),
    flat=("lab/resnet_flat", "lab/resnet_flat:1", "lab/resnet_flat:2"),
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
        "local": "a Vision Transformer with attention to near patches alone (--local)",
        "flat": "a CNN without downsampling (--flat)",
    }
    return told[part]
