"""A checkpoint's names turned into a module's own: prefixes of wrappers taken off, names of other codebases translated."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import takewhile
from math import inf, isqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vit_analysis.loading import choice
from vit_analysis.loading.checkpoint import Checkpoint
from vit_analysis.loading.choice import counted, first
from vit_analysis.loading.names import CONVENTIONS, HEADS, OTHERS, TOKENS, TRANSPOSED, Convention
from vit_analysis.spelling import Refusal

INFIXES = re.compile(
    r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|_fpw_module)\."
)
"""What wrappers put into names, anywhere: compilation, FSDP of either age, activation checkpoints, Lightning's Fabric."""
ENOUGH = 0.5  # share of the names that must fit before a file is taken for one of this network
RESIZED = re.compile(r"pos_embed|patch_embed|relative_position|rel_pos")
"""What timm's own filters resize without a word."""
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


def renamed(tensors: Mapping[str, Tensor], module: nn.Module) -> Checkpoint:
    """Return the tensors under the names that the module gives them, with what was done.

    Tried are a prefix that is taken off or put on, the names of another codebase (`names`), and what timm itself does with
    files of the module's family; what makes the most names the module's own is done. Nothing is resized. What has no
    name of the module's keeps its own; what stands outside of the prefix is left aside.

    Raises:
        Refusal: weights at several places fit equally well.
    """
    own = module.state_dict()
    bare = {INFIXES.sub("", name): value for name, value in tensors.items()}
    found = _best(bare, module, own)
    if _hits(found, own) < ENOUGH * min(len(own), len(bare)):
        found = Checkpoint(bare, ())
    taken = ["names of wrappers taken out"] if bare.keys() != tensors.keys() else []
    return _laid_out(Checkpoint(found.tensors, (*taken, *found.said)), own)


def _best(tensors: dict[str, Tensor], module: nn.Module, own: Mapping[str, Tensor]) -> Checkpoint:
    """What makes the most names the module's own, the simplest first."""
    direct = _prefixed(tensors, own)
    if _hits(direct, own) == len(own):
        return direct
    several = (direct, _translated(tensors, module), _filtered(tensors, module))
    return max(several, key=lambda one: _hits(one, own))


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
        prefix = _only(choice.place(counts), max(counts.values()) >= clear)
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
    if known and known.hits >= LIKENESS * len(names):
        return known.convention.title
    return next(
        (title for title, pattern in OTHERS.items() if any(re.search(pattern, name) for name in names)), None
    )


def _only(place: str | list[str], is_clear: bool) -> str:
    """The only place, or of several the first if it is not clear that there are weights at all."""
    if isinstance(place, str) or not is_clear:
        return place if isinstance(place, str) else place[0]
    raise Refusal(
        f"weights under {' and under '.join(repr(one.removesuffix('.')) for one in place)} fit equally well; "
        "keep one of them in the file"
    )


def _hits(found: Checkpoint, own: Mapping[str, Tensor]) -> int:
    return len(own.keys() & found.tensors.keys())


# Prefixes -----------------------------------------------------------------------------------------------------------


def _prefixed(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Checkpoint:
    """The tensors without the prefix that hides the most of the module's names, or with the one that they lack."""
    off, on = _prefixes(tensors, own), _prefixes(own, tensors)
    if max(on.values(), default=0) > max(off.values(), default=0):
        prefix = _only(choice.place(on), is_clear=False)
        return Checkpoint(
            {prefix + name: value for name, value in tensors.items()}, (f"prefix {prefix!r} put on",)
        )
    if not off:
        return Checkpoint(dict(tensors), ())
    place = choice.place(off)
    if not isinstance(place, str) and _are_equal(tensors, place):
        place = place[0]
    return _below(tensors, _only(place, max(off.values()) >= ENOUGH * len(own)))


def _prefixes(long: Iterable[str], short: Mapping[str, Tensor]) -> Counter[str]:
    """How many names are one of the others after each prefix."""
    counts: Counter[str] = Counter()
    for name in long:
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
        counts.update(name[:start] for start in starts if name[start:] in short)
    return counts


def _below(tensors: Mapping[str, Tensor], prefix: str) -> Checkpoint:
    """What stands below a prefix, without it; what does not is counted."""
    if not prefix:
        return Checkpoint(dict(tensors), ())
    inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    outside = [name for name in tensors if not name.startswith(prefix)]
    said = [f"prefix {prefix!r} taken off"]
    if outside:
        said.append(f"{counted(len(outside), 'tensor')} outside of it left aside ({first(outside)})")
    return Checkpoint(inside, tuple(said))


def _are_equal(tensors: Mapping[str, Tensor], places: list[str]) -> bool:
    """Whether the same weights stand at all places."""
    sets = [_below(tensors, place).tensors for place in places]
    return all(
        one.keys() == sets[0].keys() and all(torch.equal(one[name], sets[0][name]) for name in one)
        for one in sets
    )


# Names of other codebases -------------------------------------------------------------------------------------------


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


def _translated(tensors: Mapping[str, Tensor], module: nn.Module) -> Checkpoint:
    """The tensors with the names of the module's codebase, if both are known."""
    own = module.state_dict()
    theirs, ours = spelled(tensors, clear=ENOUGH * len(own)), spelled(own)
    if theirs is None or ours is None or ours.hits < ENOUGH * len(own):
        return Checkpoint({}, ())
    canonical, rest = _decoded(tensors, theirs)
    canonical, said = _with_positions_of(canonical, module, ours)
    canonical = _with_bias_of(canonical, theirs, ours)
    inside = {name: value for name, value in rest.items() if name.startswith(theirs.prefix)}
    outside = [name for name in rest if name not in inside]
    if outside:
        said.append(
            f"{counted(len(outside), 'tensor')} outside of {theirs.prefix!r} left aside ({first(outside)})"
        )
    done = {name.removeprefix(theirs.prefix): value for name, value in inside.items()} | _encoded(
        canonical, ours
    )
    if theirs.convention is not ours.convention:
        title = theirs.convention.title
        said.insert(
            0,
            f"names of {title} turned into those of {ours.convention.title} (activations and epsilons: the module's)",
        )
    if theirs.outer:
        said.insert(0, f"prefix {theirs.outer!r} taken off")
    return Checkpoint(done, tuple(said))


def _decoded(tensors: Mapping[str, Tensor], spelled: Spelled) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
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
        canonical[own] = _ranked(whole, 3) if own in TOKENS else whole
        for name in names.values():
            del rest[name]
    return canonical, rest


def _encoded(canonical: Mapping[str, Tensor], spelled: Spelled) -> dict[str, Tensor]:
    """The tensors with the names of another convention; what it has no name for keeps timm's."""
    done: dict[str, Tensor] = {}
    for name, value in canonical.items():
        template, block, kind = _template(name)
        entry = spelled.convention.names.get(template) or spelled.convention.names.get(name)
        places = _places(entry) if entry else ()
        if not places or len(value) % len(places):
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


def _places(entry: str | tuple[str, ...]) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry


def _template(name: str) -> tuple[str, str, str]:
    """A name as the table has it, its block, and whether it is a weight or a bias."""
    block = re.search(r"(?<=blocks\.)\d+", name)
    kind = name.rpartition(".")[2] if name.endswith((".weight", ".bias")) else ""
    template = name.removesuffix(kind) + "*" if kind else name
    return re.sub(r"blocks\.\d+", "blocks.#", template), block[0] if block else "", kind


# Shapes -------------------------------------------------------------------------------------------------------------


def _with_positions_of(
    canonical: dict[str, Tensor], module: nn.Module, ours: Spelled
) -> tuple[dict[str, Tensor], list[str]]:
    """Move the class token's own position to where the module has it: with the positions, or in the token already."""
    own = {name: tuple(value.shape) for name, value in _decoded(module.state_dict(), ours)[0].items()}
    if not {"pos_embed", "cls_token"} <= own.keys() & canonical.keys() or canonical["pos_embed"].ndim != 3:
        return canonical, []
    here, there = _is_square(canonical["pos_embed"].shape[1]), _is_square(own["pos_embed"][1])
    positions, token = canonical["pos_embed"], canonical["cls_token"]
    if there and not here and _is_square(positions.shape[1] - 1):
        moved = {"cls_token": token + positions[:, :1], "pos_embed": positions[:, 1:]}
        return canonical | moved, ["the class token's position added to the token"]
    if here and not there and _is_square(own["pos_embed"][1] - 1):
        return canonical | {"pos_embed": torch.cat([torch.zeros_like(token), positions], dim=1)}, [
            "the class token given a position of zeros"
        ]
    return canonical, []


def _with_bias_of(canonical: dict[str, Tensor], theirs: Spelled, ours: Spelled) -> dict[str, Tensor]:
    """Give CLIP's projection, which has no bias, one of zeros where it becomes a head; take one of zeros from a head."""
    from_clip, to_clip = ("CLIP" in one.convention.title for one in (theirs, ours))
    weight, bias = canonical.get("head.weight"), canonical.get("head.bias")
    if from_clip and not to_clip and weight is not None and bias is None:
        return canonical | {"head.bias": weight.new_zeros(len(weight))}
    if to_clip and not from_clip and bias is not None and not bias.any():
        return {name: value for name, value in canonical.items() if name != "head.bias"}
    return canonical


def _is_square(number: int) -> bool:
    return isqrt(number) ** 2 == number


def _ranked(value: Tensor, axes: int) -> Tensor:
    """The tensor with leading axes of length one put on or taken off."""
    while value.ndim < axes:
        value = value[None]
    while value.ndim > axes and value.shape[0] == 1:
        value = value[0]
    return value


def _laid_out(found: Checkpoint, own: Mapping[str, Tensor]) -> Checkpoint:
    """The tensors with as many axes as the module's own."""
    said, done = list(found.said), dict(found.tensors)
    for name in own.keys() & done.keys():
        axes = own[name].ndim
        if name.endswith("patch_embed.proj.weight") and (axes, done[name].ndim) == (2, 4):
            done[name] = done[name].permute(0, 2, 3, 1).flatten(1)
            said.append("the patch embedding laid out by row, column and channel")
        elif all(one == 1 for one in own[name].shape[: max(0, axes - done[name].ndim)]):
            done[name] = _ranked(done[name], axes)
    return Checkpoint(done, tuple(said))


# timm's own filters -------------------------------------------------------------------------------------------------


def _filtered(tensors: Mapping[str, Tensor], module: nn.Module) -> Checkpoint:
    """What timm makes of a file of the module's family; what it would resize stays as it is."""
    of_family = getattr(sys.modules.get(type(module).__module__), "checkpoint_filter_fn", None)
    if of_family is None or not type(module).__module__.startswith("timm."):
        return Checkpoint({}, ())
    direct = _below(tensors, _shared(tensors))
    try:
        done = of_family(dict(direct.tensors), module)
    except Exception:  # it is for files of one family; another's may break it in any way
        return Checkpoint({}, ())
    storages = {value.untyped_storage().data_ptr() for value in direct.tensors.values()}
    for name, value in done.items():
        if RESIZED.search(name) and value.untyped_storage().data_ptr() not in storages:
            if name not in direct.tensors:
                return Checkpoint({}, ())
            done[name] = direct.tensors[name]
    return Checkpoint(done, (*direct.said, f"names turned into timm's {type(module).__name__}'s"))


def _shared(names: Iterable[str]) -> str:
    """The prefix that all names have."""
    parts = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return "".join(f"{one[0]}." for one in takewhile(lambda several: len(set(several)) == 1, parts))
