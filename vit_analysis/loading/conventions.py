"""A checkpoint's names turned into a module's own: prefixes of wrappers taken off, names of other codebases translated."""

import re
import sys
from collections.abc import Mapping
from math import isqrt

import torch
from torch import Tensor, nn

from vit_analysis.loading.checkpoint import Checkpoint
from vit_analysis.loading.choice import counted, first
from vit_analysis.loading.prefixes import ENOUGH, below, prefixed, shared
from vit_analysis.loading.translation import Spelled, decoded, encoded, ranked, spelled

INFIXES = re.compile(
    r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|_fpw_module)\."
)
"""What wrappers put into names, anywhere: compilation, FSDP of either age, activation checkpoints, Lightning's Fabric."""
CHUNKS = re.compile(r"(?<=\bblocks\.)\d+\.(?=\d+\.)")
"""The number of the part that a block is in, where DINOv2 is trained in parts; the block's own counts through."""
RESIZED = re.compile(r"pos_embed|patch_embed|relative_position|rel_pos")
"""What timm's own filters resize without a word."""


def renamed(tensors: Mapping[str, Tensor], module: nn.Module) -> Checkpoint:
    """Return the tensors under the names that the module gives them, with what was done.

    Tried are a prefix that is taken off or put on, the names of another codebase (`names`), and what timm itself does with
    files of the module's family; what makes the most names the module's own is done. Nothing is resized. What has no
    name of the module's keeps its own; what stands outside of the prefix is left aside.

    Raises:
        Refusal: weights at several places fit equally well.
    """
    own = module.state_dict()
    bare = _bare(tensors, own)
    found = _best(bare, module, own)
    if _hits(found, own) < ENOUGH * min(len(own), len(bare)):
        found = Checkpoint(bare, ())
    taken = ["names of wrappers taken out"] if bare.keys() != tensors.keys() else []
    return _laid_out(Checkpoint(found.tensors, (*taken, *found.said)), own)


def _bare(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what wrappers put into their names, unless that would make two of one."""
    bare = {INFIXES.sub("", name): value for name, value in tensors.items()}
    if not any(CHUNKS.search(name) for name in own):
        bare = {CHUNKS.sub("", name): value for name, value in bare.items()}
    return bare if len(bare) == len(tensors) else dict(tensors)


def _best(tensors: dict[str, Tensor], module: nn.Module, own: Mapping[str, Tensor]) -> Checkpoint:
    """What makes the most names the module's own, the simplest first."""
    direct = prefixed(tensors, own)
    if _hits(direct, own) == len(own):
        return direct
    several = (direct, _translated(tensors, module), _filtered(tensors, module))
    return max(several, key=lambda one: _hits(one, own))


def _translated(tensors: Mapping[str, Tensor], module: nn.Module) -> Checkpoint:
    """The tensors with the names of the module's codebase, if both are known."""
    own = module.state_dict()
    theirs, ours = spelled(tensors, clear=ENOUGH * len(own)), spelled(own)
    if theirs is None or ours is None or ours.hits < ENOUGH * len(own):
        return Checkpoint({}, ())
    canonical, rest = decoded(tensors, theirs)
    canonical, said = _with_positions_of(canonical, module, ours)
    canonical = _with_bias_of(canonical, theirs, ours)
    inside = {name: value for name, value in rest.items() if name.startswith(theirs.prefix)}
    outside = [name for name in rest if name not in inside]
    if outside:
        said.append(
            f"{counted(len(outside), 'tensor')} outside of {theirs.prefix!r} left aside ({first(outside)})"
        )
    done = {name.removeprefix(theirs.prefix): value for name, value in inside.items()} | encoded(
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


def _with_positions_of(
    canonical: dict[str, Tensor], module: nn.Module, ours: Spelled
) -> tuple[dict[str, Tensor], list[str]]:
    """Move the class token's own position to where the module has it: with the positions, or in the token already."""
    own = {name: tuple(value.shape) for name, value in decoded(module.state_dict(), ours)[0].items()}
    positions, token = canonical.get("pos_embed"), canonical.get("cls_token")
    if positions is None or token is None or not {"pos_embed", "cls_token"} <= own.keys():
        return canonical, []
    if positions.ndim != 3 or token.shape != (1, 1, positions.shape[2]):
        return canonical, []
    here, there = _is_square(positions.shape[1]), _is_square(own["pos_embed"][1])
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
    if from_clip and not to_clip and weight is not None and weight.ndim == 2 and bias is None:
        return canonical | {"head.bias": weight.new_zeros(len(weight))}
    if to_clip and not from_clip and bias is not None and not bias.any():
        return {name: value for name, value in canonical.items() if name != "head.bias"}
    return canonical


def _filtered(tensors: Mapping[str, Tensor], module: nn.Module) -> Checkpoint:
    """What timm makes of a file of the module's family; what it would resize stays as it is."""
    of_family = getattr(sys.modules.get(type(module).__module__), "checkpoint_filter_fn", None)
    if of_family is None or not type(module).__module__.startswith("timm."):
        return Checkpoint({}, ())
    direct = below(tensors, shared(tensors))
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


def _laid_out(found: Checkpoint, own: Mapping[str, Tensor]) -> Checkpoint:
    """The tensors with as many axes as the module's own."""
    said, done = list(found.said), dict(found.tensors)
    for name in own.keys() & done.keys():
        axes = own[name].ndim
        if name.endswith("patch_embed.proj.weight") and (axes, done[name].ndim) == (2, 4):
            done[name] = done[name].permute(0, 2, 3, 1).flatten(1)
            said.append("the patch embedding laid out by row, column and channel")
        elif all(one == 1 for one in own[name].shape[: max(0, axes - done[name].ndim)]):
            done[name] = ranked(done[name], axes)
    return Checkpoint(done, tuple(said))


def _is_square(number: int) -> bool:
    return isqrt(number) ** 2 == number


def _hits(found: Checkpoint, own: Mapping[str, Tensor]) -> int:
    return len(own.keys() & found.tensors.keys())
