"""The list of all analyses, which the list of commands, tests and benchmarks go through. It imports nothing heavy."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType


@dataclass(frozen=True)
class Analysis:
    """One analysis of models and images, in a module of its own.

    Its module has ``measure(models, images, ...) -> DataFrame`` and ``plan``, which says what is
    measured before any image is read, so that several analyses can share one pass over the images. Lesions are planned one
    model at a time, and receptive fields with their maps (``plan_with_maps``).

    Attributes:
        name: name of its module, and so of its command.
        figures: the figures of the paper that it makes.
        measures: what it measures, in words.
        tables: kinds of table that it makes, the one of ``measure`` first; each has its picture in ``plot.PICTURES``.
    """

    name: str
    figures: str
    measures: str
    tables: tuple[str, ...]

    @property
    def module(self) -> ModuleType:
        """Its module, imported only when it is asked for: with torch and timm that takes seconds."""
        return import_module(f"vit_analysis.{self.name}")

    @property
    def command(self) -> Callable[..., None]:
        """The function that runs when its name is typed; importing it loads little."""
        return import_module(f"vit_analysis.shell.{self.name}").main


ANALYSES = (
    Analysis(
        "cka", "1, 2, B.1, G.2, H", "similarity of all pairs of layers, within and across models", ("cka",)
    ),
    Analysis(
        "attention_distance",
        "3, 4, 5, C.5, C.6",
        "how far each head looks in pixels, its entropy and mutual information, also in Swin's windows; "
        "head subsets against the CNN's lower units",
        ("attention_distance", "head_subsets"),
    ),
    Analysis(
        "receptive_field",
        "6, C.1-C.4",
        "gradients of a layer's centre position, before and after the residual addition; radius, and the squares of "
        "published tables",
        ("receptive_field", "receptive_field_maps"),
    ),
    Analysis(
        "skip",
        "7, E.1, E.2",
        "norms of skip connection and long branch, class token against spatial tokens",
        ("skip",),
    ),
    Analysis(
        "lesions",
        "8",
        "accuracy and similarity without the skip connections of one block",
        ("lesions", "lesions_trained"),
    ),
    Analysis(
        "localization", "9, 10, D.1-D.3", "CKA of each token with each patch of the image", ("localization",)
    ),
    Analysis(
        "probe",
        "11, 13, D.4, F",
        "few-shot linear probes; on scenes also of texture and position",
        ("probe",),
    ),
    Analysis(
        "soft_nearest_neighbor",
        "(course notes)",
        "how entangled classes are in each layer",
        ("soft_nearest_neighbor",),
    ),
    Analysis(
        "tokens",
        "(beyond the paper)",
        "norms of tokens, massive ones, their cosines and ranks",
        ("tokens",),
    ),
    Analysis(
        "frequency",
        "(beyond the paper)",
        "how much of feature maps is fine detail",
        ("frequency",),
    ),
)
OTHERS = {
    "figures": "the study: every figure, verdicts, report",
    "findings": "the verdicts",
    "train": "train a lab model, or fine-tune one to your images",
    "plot": "draw a table again",
}
"""The commands that are no analyses, and what they do."""
