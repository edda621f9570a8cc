"""Prefixes of names: the one that hides a module's names in a file, and what stands below it."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import takewhile

import torch
from torch import Tensor

from vit_analysis.loading import choice
from vit_analysis.loading.checkpoint import Checkpoint
from vit_analysis.loading.choice import counted, first
from vit_analysis.spelling import Refusal

ENOUGH = 0.5  # share of the names that must fit before a file is taken for one of this network


def prefixed(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Checkpoint:
    """The tensors without the prefix that hides the most of the module's names, or with the one that they lack."""
    off, on = _prefixes(tensors, own), _prefixes(own, tensors)
    if max(on.values(), default=0) > max(off.values(), default=0):
        prefix = only(choice.place(on), is_clear=False)
        return Checkpoint(
            {prefix + name: value for name, value in tensors.items()}, (f"prefix {prefix!r} put on",)
        )
    if not off:
        return Checkpoint(dict(tensors), ())
    place = choice.place(off)
    if not isinstance(place, str) and _are_equal(tensors, place):
        place = place[0]
    return below(tensors, only(place, max(off.values()) >= ENOUGH * len(own)))


def below(tensors: Mapping[str, Tensor], prefix: str) -> Checkpoint:
    """What stands below a prefix, without it; what does not is counted."""
    if not prefix:
        return Checkpoint(dict(tensors), ())
    inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    outside = [name for name in tensors if not name.startswith(prefix)]
    said = [f"prefix {prefix!r} taken off"]
    if outside:
        said.append(f"{counted(len(outside), 'tensor')} outside of it left aside ({first(outside)})")
    return Checkpoint(inside, tuple(said))


def shared(names: Iterable[str]) -> str:
    """The prefix that all names have."""
    parts = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return "".join(f"{one[0]}." for one in takewhile(lambda several: len(set(several)) == 1, parts))


def only(place: str | list[str], is_clear: bool) -> str:
    """The only place, or of several the first if it is not clear that there are weights at all."""
    if isinstance(place, str) or not is_clear:
        return place if isinstance(place, str) else place[0]
    raise Refusal(
        f"weights under {' and under '.join(repr(one.removesuffix('.')) for one in place)} fit equally well; "
        "keep one of them in the file"
    )


def _prefixes(long: Iterable[str], short: Mapping[str, Tensor]) -> Counter[str]:
    """How many names are one of the others after each prefix."""
    counts: Counter[str] = Counter()
    for name in long:
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
        counts.update(name[:start] for start in starts if name[start:] in short)
    return counts


def _are_equal(tensors: Mapping[str, Tensor], places: list[str]) -> bool:
    """Return whether the same weights stand at all places."""
    sets = [below(tensors, place).tensors for place in places]
    return all(
        one.keys() == sets[0].keys() and all(torch.equal(one[name], sets[0][name]) for name in one)
        for one in sets
    )
