"""What stands in a figure in place of what the paper shows there, where its number and title would not say it."""

from collections.abc import Callable, Mapping

from vit_analysis.plot.style import display_name
from vit_analysis.spelling import Refusal
from vit_analysis.study.evidence import Evidence


def substituted(figure: str, evidence: Evidence) -> list[str]:
    """Say what a figure shows in place of what the paper shows in it; nothing where it shows the same kind of thing."""
    if figure not in SUBSTITUTED:
        return []
    try:
        return [SUBSTITUTED[figure](evidence)]
    except Refusal:  # the tables of which it would speak are not there
        return []


def _heads(evidence: Evidence) -> str:
    table = evidence.table("head_subsets")
    each = [
        f"{display_name(str(vit))} from {own['distance_px'].min():.1f} to {own['distance_px'].max():.1f} px"
        for vit, own in table.groupby("vit", sort=False)
    ]
    return f"The paper's subsets of heads differ widely in how far they look. Mean distances here: {'; '.join(each)}."


def _tasks(evidence: Evidence) -> str:
    targets = [str(name) for name in dict.fromkeys(evidence.table("probe")["target"])]
    return (
        f"The paper's other tasks are CIFAR-10 and CIFAR-100. Here they are other classes of the same images: "
        f"{', '.join(targets[1:])} in place of {targets[0]}."
    )


def _sizes(evidence: Evidence) -> str:
    names = [display_name(name) for name in (*evidence.all("vit"), *evidence.parts.names("gap"))]
    return f"The paper compares Vision Transformers of several sizes. Here they are {', '.join(names)}, whatever their sizes."


def _small(evidence: Evidence) -> str:
    names = ", ".join(display_name(name) for name in evidence.parts.names("vit", "less_data"))
    return f"The paper's small model is ViT-B/32. Here: {names}."


SUBSTITUTED: Mapping[str, Callable[[Evidence], str]] = {
    "5": _heads,
    "F": _tasks,
    "G.2": _sizes,
    "C.5": _small,
}
