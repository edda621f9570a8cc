"""A Vision Transformer's names in one codebase, read and written by the table in `names`."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from vit_analysis.loading import choice
from vit_analysis.loading.names import CONVENTIONS, HEADS, OTHERS, TOKENS, TRANSPOSED, Convention
from vit_analysis.loading.prefixes import only

LIKENESS = 0.5  # share of names that must be a convention's before a file is said to look like it
HEAD_ROOTS = tuple(head.removesuffix("*") for head in HEADS)


class Spelled(NamedTuple):
    """A convention that names were found in, with the prefix before the names of the transformer and before its head's."""

    convention: Convention
    prefix: str
    outer: str
    hits: int


class _Part(NamedTuple):
    own: str  # timm's name
    theirs: str  # the name in the table
    head: bool


def spelled(names: Iterable[str], *, clear: float = inf) -> Spelled | None:
    """The convention of `CONVENTIONS` that the most names follow; None if no name follows any.

    Raises:
        Refusal: names at several places follow it equally well, and at each of them at least ``clear``.
    """
    names = list(names)
    best: Spelled | None = None
    for convention in CONVENTIONS:
        counts = Counter(
            prefix for name in names for prefix, part in _readings(name, convention) if not part.head
        )
        if not counts or max(counts.values()) <= (best.hits if best else 0) / 2:
            continue
        prefix = only(choice.place(counts), max(counts.values()) >= clear)
        inner = next((one for one in convention.inner if prefix.endswith(one)), "")
        outer = prefix.removesuffix(inner)
        heads = sum(at == outer for name in names for at, part in _readings(name, convention) if part.head)
        if best is None or counts[prefix] + heads > best.hits:
            best = Spelled(convention, prefix, outer, counts[prefix] + heads)
    return best


def looks_like(names: Iterable[str]) -> str | None:
    """Whose names these are, as a sentence says it; None if that is not known."""
    names = list(names)
    known = spelled(names)
    others = (title for title, pattern in OTHERS.items() if any(re.search(pattern, name) for name in names))
    follows = known is not None and known.hits >= LIKENESS * len(names)
    return next(others, known.convention.title if known is not None and follows else None)


def decoded(tensors: Mapping[str, Tensor], spelled: Spelled) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors with timm's names, and those that have none."""
    pieces: dict[tuple[str, str], dict[str, str]] = {}
    for name in tensors:
        for prefix in dict.fromkeys((spelled.prefix, spelled.outer)):
            found = _read(name.removeprefix(prefix), spelled.convention) if name.startswith(prefix) else None
            if found and prefix == (spelled.outer if found[0].head else spelled.prefix):
                part, block, kind = found
                own = part.own.replace("#", block).replace("*", kind)
                pieces.setdefault((own, part.own), {})[part.theirs] = name
    canonical, rest = {}, dict(tensors)
    for (own, template), names in pieces.items():
        needed = list(dict.fromkeys(_places(spelled.convention.names[template])))
        several = [tensors[names[one]] for one in needed if one in names]
        if len(several) < len(needed) or len({(value.ndim, value.shape[1:]) for value in several}) > 1:
            continue
        whole = torch.cat(several) if len(several) > 1 else several[0]
        whole = whole.T if needed[0].endswith(TRANSPOSED) else whole
        canonical[own] = ranked(whole, 3) if own in TOKENS else whole
        for name in names.values():
            del rest[name]
    return canonical, rest


def encoded(canonical: Mapping[str, Tensor], spelled: Spelled) -> dict[str, Tensor]:
    """The tensors with the names of another convention; what it has no name for keeps timm's."""
    done: dict[str, Tensor] = {}
    for name, value in canonical.items():
        template, block, kind = _template(name)
        entry = spelled.convention.names.get(template) or spelled.convention.names.get(name)
        places = _places(entry) if entry else ()
        if not places or not value.ndim or len(value) % len(places):
            done[name] = value
            continue
        for place in dict.fromkeys(places):
            share = [part for at, part in zip(places, value.chunk(len(places)), strict=True) if at == place]
            whole = (
                torch.cat(share)
                if 1 < len(share) < len(places)
                else (value if len(set(places)) == 1 else share[0])
            )
            prefix = spelled.outer if name.startswith(HEAD_ROOTS) else spelled.prefix
            theirs = prefix + place.removesuffix(TRANSPOSED).replace("#", block).replace("*", kind)
            done[theirs] = whole.T if place.endswith(TRANSPOSED) else whole
    return done


def ranked(value: Tensor, axes: int) -> Tensor:
    """The tensor with leading axes of length one put on or taken off."""
    while value.ndim < axes:
        value = value[None]
    while value.ndim > axes and value.shape[0] == 1:
        value = value[0]
    return value


@cache
def _pattern(convention: Convention) -> tuple[re.Pattern[str], tuple[_Part, ...]]:
    """One pattern for all names of a convention, whose groups have the numbers of their parts."""
    parts = [
        _Part(own, theirs, own.startswith(HEAD_ROOTS))
        for own, several in convention.names.items()
        for theirs in dict.fromkeys(_places(several))
    ]
    written = (
        re.escape(part.theirs.removesuffix(TRANSPOSED))
        .replace(r"\#", r"(\d+)")
        .replace(r"\*", "(weight|bias)")
        for part in parts
    )
    return re.compile("|".join(f"(?P<p{i}>{one})" for i, one in enumerate(written))), tuple(parts)


def _read(name: str, convention: Convention) -> tuple[_Part, str, str] | None:
    """Which part a name is, of which block, and whether its weight or bias."""
    pattern, parts = _pattern(convention)
    found = pattern.fullmatch(name)
    if not found or not found.lastgroup:
        return None
    inner = [
        group
        for key, group in enumerate(found.groups(), 1)
        if group and key != pattern.groupindex[found.lastgroup]
    ]
    block = next((group for group in inner if group.isdigit()), "")
    return parts[int(found.lastgroup[1:])], block, next((group for group in inner if not group.isdigit()), "")


def _readings(name: str, convention: Convention) -> Iterable[tuple[str, _Part]]:
    """The parts that a name may be, each with the prefix that then stands before it."""
    for start in (0, *(dot.end() for dot in re.finditer(r"\.", name))):
        if found := _read(name[start:], convention):
            yield name[:start], found[0]


def _places(entry: str | tuple[str, ...]) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry


def _template(name: str) -> tuple[str, str, str]:
    """A name as the table has it, its block, and whether it is a weight or a bias."""
    block = re.search(r"(?<=blocks\.)\d+", name)
    kind = name.rpartition(".")[2] if name.endswith((".weight", ".bias")) else ""
    template = name.removesuffix(kind) + "*" if kind else name
    return re.sub(r"blocks\.\d+", "blocks.#", template), block[0] if block else "", kind
