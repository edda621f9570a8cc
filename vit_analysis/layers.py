"""Places in a model, under the paper's names for them.

Layers are chosen by ``"paper"`` (every sublayer, figure 1: six per Vision Transformer block, seven per ResNet bottleneck),
``"blocks"`` (block outputs), ``"last"`` or ``"penultimate"`` (the last block output or the one before), or glob patterns over
module paths. In a pattern ``*`` stands for one path component or a part of one and ``**`` for any number of them:
``blocks.*`` is the twelve blocks, ``blocks.*.attn`` their attentions, ``**.bn1`` every bn1. ``PATH:in`` is what a module is
given.

Which part of a network plays which role is data: `anatomy.families` for the codebases that are known, `Anatomy` for a module
of your own.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import nn

from vit_analysis.anatomy import describing, find
from vit_analysis.anatomy.find import CONTAINERS
from vit_analysis.anatomy.patterns import matching, nearest
from vit_analysis.anatomy.places import INPUT, Branch, Sublayer, Tap
from vit_analysis.anatomy.roles import Anatomy, Block, Unit
from vit_analysis.anatomy.windows import Partition
from vit_analysis.spelling import Refusal
from vit_analysis.tensors.tokens import TELL, Grid, Layout

__all__ = ["INPUT", "Anatomy", "Block", "Branch", "Grid", "Sublayer", "Tap", "Unit"]

logger = logging.getLogger(__name__)

ENDS = {"last": -1, "penultimate": -2}
RESIDUAL_UNIT = re.compile(r"(conv|bn|norm)(\d|_\w+)")
SHORTCUT = ("downsample.0", "downsample.1", "downsample.conv", "downsample.norm")


@runtime_checkable
class Described(Protocol):
    """A module with its anatomy, such as `models.Model`."""

    @property
    def module(self) -> nn.Module:
        """The module."""

    @property
    def anatomy(self) -> Anatomy:
        """What is known of it."""


AnyModel = nn.Module | Described
"""A module whose anatomy is found, or one that has it beside it."""


def known(model: AnyModel) -> tuple[nn.Module, Anatomy]:
    """A module and its anatomy."""
    if isinstance(model, nn.Module):
        return model, describing.anatomy(model)
    return model.module, model.anatomy


def choose(models: Mapping[str, AnyModel], layers: str | Sequence[str]) -> dict[str, list[Tap]]:
    """Choose the taps of every model, by model name.

    Raises:
        Refusal: a pattern matches nothing in any model, or nothing matches in one model.
    """
    if layers == "paper":
        return {name: paper(model) for name, model in models.items()}
    if layers == "blocks":
        return {name: [Tap(unit) for unit in blocks(model)] for name, model in models.items()}
    if isinstance(layers, str) and layers in ENDS:
        return {name: [Tap(_from_the_end(name, blocks(model), layers))] for name, model in models.items()}
    patterns = [layers] if isinstance(layers, str) else list(layers)
    paths = {
        name: [path for path, _ in known(model)[0].named_modules() if path] for name, model in models.items()
    }
    found = {pattern: {name: matching(own, pattern) for name, own in paths.items()} for pattern in patterns}
    for pattern, matches in found.items():
        if not any(matches.values()):
            everything = ["paper", "blocks", *(path for own in paths.values() for path in own)]
            raise Refusal(
                f"no layer of {', '.join(paths)} matches {pattern!r}; {nearest(pattern, everything)}"
            )
    chosen = {
        name: list(dict.fromkeys(tap for own in found.values() for tap in own[name])) for name in models
    }
    if empty := [name for name, taps in chosen.items() if not taps]:
        raise Refusal(
            f"no layer of {', '.join(empty)} matches {' or '.join(map(repr, patterns))}; add a pattern that does"
        )
    return chosen


def _from_the_end(name: str, units: Sequence[str], which: str) -> str:
    if len(units) < -ENDS[which]:
        raise Refusal(f"{name} has a single block, so there is none before its last; choose 'last'")
    return units[ENDS[which]]


def paper(model: AnyModel) -> list[Tap]:
    """The paper's layers: sublayers and outputs of all blocks, entrance and final norm.

    They are block outputs alone for a model whose sublayers are not known.
    """
    module, anatomy = known(model)
    units = blocks(model)
    inner = [tap for unit in units for tap in _sublayers(unit, module.get_submodule(unit), anatomy)]
    if len(inner) == len(units):
        return [Tap(unit) for unit in units]
    entrances = [Tap(_below(anatomy, name)) for name in anatomy.entrances or ()]
    if kind(module.get_submodule(units[0]), anatomy):
        entrances.append(Tap(units[0], "in"))  # tokens with their position embedding
    exits = [Tap(_below(anatomy, anatomy.norm))] if anatomy.norm else []
    return [*entrances, *inner, *exits]


def blocks(model: AnyModel) -> list[str]:
    """Paths of the repeated units (blocks) of a model.

    Raises:
        Refusal: the model has none that could be found; name layers by patterns.
    """
    module, anatomy = known(model)
    base = anatomy.base or ""
    network = module.get_submodule(base)
    own = anatomy.blocks if anatomy.blocks is not None else find.blocks(network)
    return [_below(anatomy, path) for path in own]


def layout(model: AnyModel) -> Layout:
    """Return how the model arranges tokens and channels, read from the model and never assumed."""
    module, anatomy = known(model)
    grid = anatomy.grid
    tokens = anatomy.tokens or ((grid.rows, grid.columns) if grid else None)
    return Layout(
        spatial=tokens[0] * tokens[1] if tokens else anatomy.spatial,
        prefix=anatomy.prefix,
        class_token=anatomy.class_token,
        channels_last=bool(anatomy.channels_last),
        by_shape=not find.is_convolutional(module) and not anatomy.channels_last,
        grid=tokens,
        counted=bool(anatomy.counted),
    )


def prefix(model: AnyModel) -> int:
    """Return the number of tokens before the spatial ones.

    Raises:
        Refusal: it is not known.
    """
    module, anatomy = known(model)
    if anatomy.prefix is None:
        raise Refusal(
            f"how many tokens of {type(module).__name__} stand before the spatial ones (class token, registers) is not known; "
            f"say it: {TELL.format('prefix=1, class_token=True')}"
        )
    return anatomy.prefix


def grid(model: AnyModel) -> Grid:
    """Return where the model's spatial tokens lie in its input.

    Raises:
        Refusal: it has no fixed grid of patches, or none is known.
    """
    module, anatomy = known(model)
    if anatomy.grid is None:
        raise Refusal(
            f"{type(module).__name__} has no fixed grid of patches (patch_embed.img_size, .grid_size), so its tokens have no "
            f"place in the image; choose a Vision Transformer, or say where they lie with Anatomy(grid=Grid(...))"
        )
    return anatomy.grid


def attentions(model: AnyModel) -> dict[str, Tap]:
    """Taps on queries, keys and values of every block's attention, by block, in order of execution; none for a CNN."""
    module, anatomy = known(model)
    found = {}
    for unit in blocks(model):
        block = module.get_submodule(unit)
        own = kind(block, anatomy)
        name = own.heads if own else "attn"  # some blocks have an attention and no kind that is known
        if name and isinstance(find.part(block, name), nn.Module):
            found[unit] = Tap(f"{unit}.{name}", "heads")
    return found


def partitions(model: AnyModel) -> dict[str, Partition]:
    """Where blocks divide their maps into windows, by block; none for a model whose attention sees the whole image."""
    module, anatomy = known(model)
    found = {}
    for unit in blocks(model):
        own = kind(module.get_submodule(unit), anatomy)
        if own and own.windows:
            found[unit] = Partition(unit, f"{unit}.{own.norm1}", f"{unit}.{own.windows}")
    return found


def branches(model: AnyModel) -> list[Branch]:
    """Every long branch beside a skip connection, in order of execution; none for a block without its skip connections.

    The long branch ends with what its last module returns: stochastic depth, LayerScale or squeeze-and-excitation included.

    Raises:
        Refusal: no block is of a kind that is known.
    """
    module, anatomy = known(model)
    skipping = [unit for unit in blocks(model) if _has_skip(module.get_submodule(unit))]
    found = [branch for unit in skipping for branch in _branches(unit, module.get_submodule(unit), anatomy)]
    if found and (unknown := sorted(set(skipping) - {branch.block for branch in found})):
        logger.warning(
            "%d of %d blocks of %s are left out, as their skip connections, if any, are not known: %s%s",
            *(len(unknown), len(skipping), type(module).__name__),
            *(", ".join(unknown[:3]), ", ..." if len(unknown) > 3 else ""),
        )
    if not found:
        raise Refusal(
            f"the skip connections of {type(module).__name__} are not known; choose a Vision Transformer or a ResNet, or say "
            f"what its blocks consist of with Anatomy(kinds=(Block(...),))"
        )
    return found


def without_skips(model: AnyModel) -> list[str]:
    """The blocks that were made without skip connections."""
    module, _ = known(model)
    return [unit for unit in blocks(model) if getattr(module.get_submodule(unit), "skip", True) is False]


def lower_units(model: AnyModel) -> list[str]:
    """The units of figure 5: the first three of a CNN's first stage and the first two of its second."""
    stages: dict[str, list[str]] = {}
    for unit in blocks(model):
        stages.setdefault(unit.rpartition(".")[0], []).append(unit)
    return [unit for stage, most in zip(stages.values(), (3, 2), strict=False) for unit in stage[:most]]


def representation(model: AnyModel) -> str:
    """The representation that the model's own head reads, as probes name it: ``cls``, ``mean`` or ``mean_spatial``.

    ``mean_spatial`` is the average without prefix tokens, which timm leaves out.

    Raises:
        Refusal: it is not known.
    """
    module, anatomy = known(model)
    if anatomy.reads is None:
        raise Refusal(
            f"what the head of {type(module).__name__} reads is not known; say it with Anatomy(reads='cls'), 'mean' or "
            f"'mean_spatial'"
        )
    return anatomy.reads


def sublayers(model: AnyModel) -> list[Sublayer]:
    """The steps of the residual stream (figures 6 and C.1-C.4): two per transformer block; a CNN's first layer and its units.

    A unit's long branch does not include the projection of a stage's first shortcut.
    """
    module, anatomy = known(model)
    units = blocks(model)
    found: list[Sublayer] = []
    for number, unit in enumerate(units, 1):
        block = module.get_submodule(unit)
        branches = {one.sublayer: one for one in _branches(unit, block, anatomy)}
        own = kind(block, anatomy)
        if own:
            mixing, mlp = branches.get("attention"), branches.get("mlp")
            whole, last = (_running(unit, block, added) for added in (own.mixing_added, own.mlp_added))
            middle = Tap(f"{unit}.{own.norm2}", "in")
            found.append(Sublayer(f"{own.name} {number}", middle, whole, mixing, mixing is not None))
            found.append(Sublayer(f"MLP {number}", Tap(unit), last, mlp))
        else:
            branch = branches.get("unit")
            found.append(Sublayer(f"unit {number}", Tap(unit), branch.long if branch else None, branch))
    entrance = [name for name in anatomy.entrances or () if name in ("conv1", "conv_stem", "stem")]
    if entrance and not kind(module.get_submodule(units[0]), anatomy):
        found.insert(0, Sublayer("initial conv", Tap(_below(anatomy, entrance[0])), None))
    return found


def kind(block: nn.Module, anatomy: Anatomy) -> Block | None:
    """The kind of transformer block that this one is; None if it is of no kind that is known, such as a convolutional unit."""
    return next(
        (own for own in anatomy.kinds or () if all(find.part(block, name) is not None for name in own.needs)),
        None,
    )


def last_block(model: AnyModel) -> list[str]:
    """The path of the last of `blocks`, in a list that is empty if the model has none."""
    try:
        return blocks(model)[-1:]
    except Refusal:
        return []


def is_convolutional(model: AnyModel) -> bool:
    """Return whether most of the model is convolutions: such a model runs faster with its channels last in memory."""
    return find.is_convolutional(known(model)[0])


def _below(anatomy: Anatomy, path: str) -> str:
    return f"{anatomy.base}.{path}" if anatomy.base else path


def _sublayers(path: str, unit: nn.Module, anatomy: Anatomy) -> Iterator[Tap]:
    if own := kind(unit, anatomy):
        mixing, hidden = _first(unit, own.mixing), _first(unit, own.hidden)
        inner = [Tap(own.norm1), *map(Tap, mixing), Tap(own.norm2, "in"), Tap(own.norm2), *map(Tap, hidden)]
        yield from (Tap(f"{path}.{tap.path}", tap.at) for tap in inner if _runs(unit, tap.path))
    else:
        pattern = [name for name, _ in unit.named_children() if RESIDUAL_UNIT.fullmatch(name)]
        yield from (
            Tap(f"{path}.{name}")
            for name in [*pattern, *SHORTCUT]
            if _runs(unit, name) and not isinstance(find.part(unit, name), nn.Identity)
        )
    yield Tap(path)


def _runs(unit: nn.Module, path: str) -> bool:
    """Return whether a block has a module at this path that runs by itself."""
    own = find.part(unit, path)
    return isinstance(own, nn.Module) and not isinstance(own, CONTAINERS)


def _branches(path: str, unit: nn.Module, anatomy: Anatomy) -> Iterator[Branch]:
    if not _has_skip(unit):
        return

    def tap(names: Sequence[str]) -> Tap | None:
        return next((Tap(f"{path}.{name}") for name in _first(unit, names)), None)

    if own := kind(unit, anatomy):
        middle = Tap(f"{path}.{own.norm2}", "in")
        if mixing := tap(own.mixing_added):
            yield Branch(path, "attention", Tap(path, "in"), mixing, middle)
        if mlp := tap(own.mlp_added):
            yield Branch(path, "mlp", middle, mlp, Tap(path))
    elif anatomy.unit and (long := tap(anatomy.unit.long)):
        skip = tap(anatomy.unit.shortcut) or Tap(path, "in")
        # A bottleneck's second activation lies inside its long branch.
        ends = [name for name in anatomy.unit.activation if name != "act2" or not hasattr(unit, "conv3")]
        activation = tap(ends)
        yield Branch(path, "unit", skip, long, Tap(path), activation.path if activation else None)


def _has_skip(unit: nn.Module) -> bool:
    """Return whether a block has skip connections; some of the lab's and an EfficientNet's strided ones say they have none."""
    return getattr(unit, "skip", True) is not False and getattr(unit, "has_skip", True) is not False


def _first(unit: nn.Module, names: Sequence[str]) -> list[str]:
    """The first of these parts that a block has, in a list that is empty if it has none."""
    return [name for name in names if isinstance(find.part(unit, name), nn.Module)][:1]


def _running(path: str, unit: nn.Module, names: Sequence[str]) -> Tap | None:
    """The first of these parts that does something."""
    own = [name for name in names if isinstance(find.part(unit, name), nn.Module)]
    busy = [name for name in own if not isinstance(find.part(unit, name), nn.Identity)]
    return next((Tap(f"{path}.{name}") for name in busy or own), None)
