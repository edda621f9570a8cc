"""Places in a model, under the paper's names for them: the only file that knows module paths.

Layers are chosen by ``"paper"`` (every sublayer, figure 1: six per Vision Transformer block, seven per ResNet bottleneck),
``"blocks"`` (block outputs), ``"last"`` or ``"penultimate"`` (the last block output or the one before), or glob patterns over
module paths. In a pattern ``*`` stands for one path component or a part of one and ``**`` for any number of them:
``blocks.*`` is the twelve blocks, ``blocks.*.attn`` their attentions, ``**.bn1`` every bn1. ``PATH:in`` is what a module is
given.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from vit_analysis.spelling import Refusal, did_you_mean
from vit_analysis.tensors.tokens import Grid, Layout

logger = logging.getLogger(__name__)

ENTRANCES = ("patch_embed", "stem", "conv_stem", "conv1", "bn1")
ENDS = {"last": -1, "penultimate": -2}
RESIDUAL_UNIT = re.compile(r"(conv|bn|norm)(\d|_\w+)")
# A RegNet's units are b1, b2 ..., a DenseNet's denselayer1 ...; everyone else's are numbers.
NUMBERED = re.compile(r"(b|denselayer)?\d+")
CONTAINERS = (nn.ModuleList, nn.ModuleDict)  # never run themselves
# activation(z + f(z)) may differ from the output by this share of f(z), and by rounding in so many last places of the sum.
ROUNDING, LAST_PLACES = 1e-2, 1


class Tap(NamedTuple):
    """A place in a model where activations are read.

    Attributes:
        path: of a module, such as ``blocks.3.attn``; the model itself is the empty path.
        at: ``out`` is what the module returns. ``in`` is what it is given: for ``blocks.3.norm2`` the residual stream in the
            middle of a block, for the model itself its images. ``heads`` is the queries, keys and values of an attention: what
            it hands to `scaled_dot_product_attention`, after its norms, rotations and biases (`capture.Heads`).
    """

    path: str
    at: Literal["out", "in", "heads"] = "out"

    @classmethod
    def of(cls, name: str) -> "Tap":
        """The tap that is printed as ``PATH``, ``PATH:in`` or ``PATH:heads``."""
        path, colon, at = name.rpartition(":")
        return cls(path, at) if colon and at in ("in", "heads") else cls(name)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return self.path if self.at == "out" else f"{self.path}:{self.at}"

    def module(self, model: nn.Module) -> nn.Module:
        """The module of a model at this path.

        Raises:
            Refusal: there is none; it gives the nearest right paths.
        """
        try:
            return model.get_submodule(self.path)
        except AttributeError:
            paths = [name for name, _ in model.named_modules() if name]
            near = did_you_mean(self.path, paths)
            raise Refusal(f"no layer {self.path!r} in {type(model).__name__}; {near}") from None


INPUT = Tap("", "in")  # the images as the model receives them


# What a transformer-like block computes, in order; a block need not have all of them.
SUBLAYERS = (
    Tap("norm1"),
    Tap("attn"),
    Tap("mlp_tokens.act"),
    Tap("norm2", "in"),
    Tap("norm2"),
    Tap("mlp.act"),
    Tap("mlp_channels.act"),
)


class Branch(NamedTuple):
    """A long branch f beside a skip connection, with the output activation(z + f(z)).

    Attributes:
        block: path of the block that it is part of.
        sublayer: ``attention``, ``mlp`` or ``unit``.
        skip: where z is read, after its projection if it has one.
        long: where f(z) is read.
        joined: where the output is read.
        activation: path of a module between the addition and `joined`; None where there is none.
    """

    block: str
    sublayer: str
    skip: Tap
    long: Tap
    joined: Tap
    activation: str | None = None

    def join(self, model: nn.Module, total: Tensor) -> Tensor:
        """Return activation(total), which may overwrite total; no hook sees it."""
        return total if self.activation is None else model.get_submodule(self.activation).forward(total)

    def is_sum(self, model: nn.Module, skip: Tensor, long: Tensor, joined: Tensor) -> bool:
        """Return whether the output is activation(z + f(z)); NaN counts as equal, as other checks find it."""
        if not skip.numel() == long.numel() == joined.numel():
            return False
        expected = self.join(model, skip.reshape(joined.shape) + long.reshape(joined.shape))
        rounding = LAST_PLACES * torch.finfo(joined.dtype).eps * joined.norm()
        return not (expected - joined).norm() > ROUNDING * long.norm() + rounding

    def refusal(self) -> Refusal:
        """The refusal for a block that adds in another way."""
        return Refusal(
            f"what goes on after {str(self.long)!r} is not z + f(z) with z from {str(self.skip)!r}: its block adds in another "
            f"way (parallel branches, a norm or a scale after the branch), and such skip connections are not known"
        )


def choose(models: Mapping[str, nn.Module], layers: str | Sequence[str]) -> dict[str, list[Tap]]:
    """Choose the taps of every model, by model name.

    Raises:
        Refusal: a pattern matches nothing in any model, or nothing matches in one model.
    """
    if layers == "paper":
        return {name: paper(model) for name, model in models.items()}
    if layers == "blocks":
        return {name: [Tap(unit) for unit in blocks(model)] for name, model in models.items()}
    if isinstance(layers, str) and layers in ENDS:
        return {
            name: [Tap(unit) for unit in blocks(model)[ENDS[layers] :][:1]] for name, model in models.items()
        }
    patterns = [layers] if isinstance(layers, str) else list(layers)
    paths = {name: [path for path, _ in model.named_modules() if path] for name, model in models.items()}
    found = {pattern: {name: _matching(own, pattern) for name, own in paths.items()} for pattern in patterns}
    for pattern, matches in found.items():
        if not any(matches.values()):
            everything = ["paper", "blocks", *(path for own in paths.values() for path in own)]
            raise Refusal(
                f"no layer of {', '.join(paths)} matches {pattern!r}; {did_you_mean(pattern, everything)}"
            )
    chosen = {
        name: list(dict.fromkeys(tap for own in found.values() for tap in own[name])) for name in models
    }
    if empty := [name for name, taps in chosen.items() if not taps]:
        raise Refusal(
            f"no layer of {', '.join(empty)} matches {' or '.join(map(repr, patterns))}; add a pattern that does"
        )
    return chosen


def paper(model: nn.Module) -> list[Tap]:
    """The paper's layers: sublayers and outputs of all blocks, entrance and final norm.

    They are block outputs alone for a model whose sublayers are not known.
    """
    units = blocks(model)
    modules = dict(model.named_modules())
    inner = [tap for unit in units for tap in _sublayers(unit, modules[unit])]
    if len(inner) == len(units):
        return [Tap(unit) for unit in units]
    entrances = [
        Tap(name) for name in ENTRANCES if not isinstance(modules.get(name), (*CONTAINERS, type(None)))
    ]
    if _is_transformer_block(modules[units[0]]):
        entrances.append(Tap(units[0], "in"))  # tokens with their position embedding
    exits = (
        [Tap("norm")] if not isinstance(modules.get("norm"), (nn.Identity, *CONTAINERS, type(None))) else []
    )
    return [*entrances, *inner, *exits]


def blocks(model: nn.Module) -> list[str]:
    """Paths of the repeated units (blocks) of a model, found by structure: composite modules that are numbered.

    Raises:
        Refusal: the model has none; name layers by patterns.
    """
    units: list[str] = []
    for path, module in model.named_modules():
        entrance, number = path.partition(".")[0], path.rpartition(".")[2]
        inside = any(path.startswith(f"{unit}.") for unit in units)
        if NUMBERED.fullmatch(number) and not inside and entrance not in ENTRANCES and _is_unit(module):
            units.append(path)
    if not units:
        raise Refusal(
            f"{type(model).__name__} has no repeated blocks that could be found by structure; name its layers with patterns, "
            f"as in {_richest(model)!r}; {did_you_mean('', [path for path, _ in model.named_modules() if path])}"
        )
    return units


def layout(model: nn.Module) -> Layout:
    """Return how the model arranges tokens and channels, read from the model and never assumed."""
    embed = getattr(model, "patch_embed", getattr(model, "stem", None))  # a Mixer's is its stem
    grid = getattr(embed, "grid_size", None)
    # Class tokens: a CrossViT has one for each size of patch, a CoaT one for each stage.
    own = [token for name, token in model.named_parameters(recurse=False) if name.startswith("cls_token")]
    return Layout(
        spatial=grid[0] * grid[1] if grid else getattr(embed, "num_patches", None),
        prefix=getattr(model, "num_prefix_tokens", own[0].shape[1] if own else 0),
        class_token=bool(own) or getattr(model, "cls_token", None) is not None,
        channels_last=getattr(model, "output_fmt", "NCHW") == "NHWC",
        by_shape=not is_convolutional(model),
        grid=tuple(grid) if grid else None,
    )


def grid(model: nn.Module) -> Grid:
    """Return where the model's spatial tokens lie in its input.

    Raises:
        Refusal: it has no fixed grid of patches.
    """
    embed = getattr(model, "patch_embed", None)
    size, count = getattr(embed, "img_size", None), getattr(embed, "grid_size", None)
    if size is None or count is None:
        raise Refusal(
            f"{type(model).__name__} has no fixed grid of patches (patch_embed.img_size, .grid_size), so its tokens have no "
            f"place in the image; choose a Vision Transformer"
        )
    return Grid(count[0], count[1], size[0] / count[0], size[1] / count[1])


def attentions(model: nn.Module) -> dict[str, Tap]:
    """Taps on queries, keys and values of every block's attention, by block, in order of execution; none for a CNN."""
    modules = dict(model.named_modules())
    return {unit: Tap(f"{unit}.attn", "heads") for unit in blocks(model) if f"{unit}.attn" in modules}


def branches(model: nn.Module) -> list[Branch]:
    """Every long branch beside a skip connection, in order of execution; none for a block without its skip connections.

    The long branch ends with what its last module returns: stochastic depth, LayerScale or squeeze-and-excitation included.

    Raises:
        Refusal: no block is of a kind that is known.
    """
    modules = dict(model.named_modules())
    skipping = [unit for unit in blocks(model) if _has_skip(modules[unit])]
    found = [branch for unit in skipping for branch in _branches(unit, modules[unit])]
    if found and (unknown := sorted(set(skipping) - {branch.block for branch in found})):
        logger.warning(
            "%d of %d blocks of %s are left out, as their skip connections, if any, are not known: %s%s",
            *(len(unknown), len(skipping), type(model).__name__),
            *(", ".join(unknown[:3]), ", ..." if len(unknown) > 3 else ""),
        )
    if not found:
        raise Refusal(
            f"the skip connections of {type(model).__name__} are not known; choose a Vision Transformer or a ResNet"
        )
    return found


def without_skips(model: nn.Module) -> list[str]:
    """The blocks that were made without skip connections."""
    modules = dict(model.named_modules())
    return [unit for unit in blocks(model) if getattr(modules[unit], "skip", True) is False]


def lower_units(model: nn.Module) -> list[str]:
    """The units of figure 5: the first three of a CNN's first stage and the first two of its second."""
    stages: dict[str, list[str]] = {}
    for unit in blocks(model):
        stages.setdefault(unit.rpartition(".")[0], []).append(unit)
    return [unit for stage, most in zip(stages.values(), (3, 2), strict=False) for unit in stage[:most]]


def representation(model: nn.Module) -> str:
    """The representation that the model's own head reads, as probes name it.

    ``cls`` (the class token) or an average: ``mean``, or ``mean_spatial`` if there are prefix tokens, which timm leaves out.
    """
    pool, own = getattr(model, "global_pool", None) or getattr(model, "pool", None), layout(model)
    if own.class_token and pool in ("token", "cls"):
        return "cls"
    return "mean_spatial" if own.prefix else "mean"


class Sublayer(NamedTuple):
    """A step of the residual stream.

    Attributes:
        name: its name, numbered as in the paper: ``attention 1``, ``MLP 1``, ``initial conv``, ``unit 1``.
        residual: tap of the stream after the step.
        long: tap of what the step adds to it, before the addition; None where it is unknown or there is no addition.
        branch: the addition of `long` as we suppose it; whether the model adds so, only a run of it shows
            (`intervene.true_branches`).
        needed: whether there is no such step at all if it adds in another way, as `residual` is then no residual stream.
    """

    name: str
    residual: Tap
    long: Tap | None
    branch: Branch | None = None
    needed: bool = False


def sublayers(model: nn.Module) -> list[Sublayer]:
    """The steps of the residual stream (figures 6 and C.1-C.4): two per transformer block; a CNN's first layer and its units.

    A unit's long branch does not include the projection of a stage's first shortcut.
    """
    modules = dict(model.named_modules())
    units = blocks(model)
    found: list[Sublayer] = []
    for number, unit in enumerate(units, 1):
        branches = {one.sublayer: one for one in _branches(unit, modules[unit])}
        own = [name for name, part in modules[unit].named_children() if not isinstance(part, nn.Identity)]
        if _is_transformer_block(modules[unit]):
            mixing = "attention" if "attn" in own else "token mixing"
            whole = _first(unit, own, "ls1", "attn")
            if _attention(modules[unit]) != "attn":
                whole = Tap(f"{unit}.{_attention(modules[unit])}")
            attention, mlp = branches.get("attention"), branches.get("mlp")
            middle = Tap(f"{unit}.norm2", "in")
            found.append(Sublayer(f"{mixing} {number}", middle, whole, attention, attention is not None))
            last = _first(unit, own, "ls2", "mlp", "mlp_channels")
            found.append(Sublayer(f"MLP {number}", Tap(unit), last, mlp))
        else:
            branch = branches.get("unit")
            found.append(Sublayer(f"unit {number}", Tap(unit), branch.long if branch else None, branch))
    entrance = [name for name in ("conv1", "conv_stem", "stem") if name in modules]
    if entrance and not _is_transformer_block(modules[units[0]]):
        found.insert(0, Sublayer("initial conv", Tap(entrance[0]), None))
    return found


def is_padded(model: nn.Module) -> bool:
    """Return whether position i of a map lies at pixel i x stride of the input, as odd kernels padded by half put it.

    Otherwise the model is taken to cut its input into patches: a position lies in the middle of its cell.
    """
    strided = [
        module
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.MaxPool2d) and _side(module.stride) > 1
    ]
    return bool(strided) and all(
        _side(module.kernel_size) == 1 + 2 * _side(module.padding) for module in strided
    )


def last_block(model: nn.Module) -> list[str]:
    """The path of the last of `blocks`, in a list that is empty if the model has none."""
    try:
        return blocks(model)[-1:]
    except Refusal:
        return []


def is_convolutional(model: nn.Module) -> bool:
    """Return whether most of the model is convolutions: such a model runs faster with its channels last in memory."""
    kinds = [
        isinstance(module, nn.Conv2d)
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    return sum(kinds) > len(kinds) / 2


def _sublayers(path: str, unit: nn.Module) -> Iterator[Tap]:
    modules = dict(unit.named_modules())
    if _is_transformer_block(unit):
        for own in SUBLAYERS:
            name = _attention(unit) if own.path == "attn" and "attn" in modules else own.path
            if name in modules:
                yield Tap(f"{path}.{name}", own.at)
    else:
        shortcut = [
            f"downsample.{name}" for name in ("0", "1", "conv", "norm") if f"downsample.{name}" in modules
        ]
        pattern = [name for name, _ in unit.named_children() if RESIDUAL_UNIT.fullmatch(name)]
        silent = (nn.Identity, *CONTAINERS)
        yield from (
            Tap(f"{path}.{name}") for name in [*pattern, *shortcut] if not isinstance(modules[name], silent)
        )
    yield Tap(path)


def _has_skip(unit: nn.Module) -> bool:
    """Return whether a block has skip connections; some of the lab's and an EfficientNet's strided ones say they have none."""
    return getattr(unit, "skip", True) is not False and getattr(unit, "has_skip", True) is not False


def _branches(path: str, unit: nn.Module) -> Iterator[Branch]:
    own = dict(unit.named_modules())

    def last(*names: str) -> Tap | None:
        return next((Tap(f"{path}.{name}") for name in names if name in own), None)

    if not _has_skip(unit):
        return
    if _is_transformer_block(unit):
        if attention := last("drop_path1", "ls1", "attn"):
            yield Branch(path, "attention", Tap(path, "in"), attention, Tap(f"{path}.norm2", "in"))
        if mlp := last("drop_path2", "ls2", "mlp"):
            yield Branch(path, "mlp", Tap(f"{path}.norm2", "in"), mlp, Tap(path))
    elif long := last("drop_path", "se", "bn3", "norm3", "conv3", "bn2", "norm2", "conv2"):
        skip = last("downsample", "shortcut") or Tap(path, "in")
        activation = last("act3", *(() if "conv3" in own else ("act2",)), "relu")
        yield Branch(path, "unit", skip, long, Tap(path), activation.path if activation else None)


def _attention(unit: nn.Module) -> str:
    """Name of the module whose output is read as a block's attention: what is added, if the attention returns windows."""
    windows = getattr(unit, "window_size", None)
    return "drop_path1" if windows and hasattr(unit, "drop_path1") else "attn"


def _is_transformer_block(unit: nn.Module) -> bool:
    return all(hasattr(unit, name) for name in ("norm1", "norm2")) and any(
        hasattr(unit, name) for name in ("attn", "mlp_tokens")
    )


def _first(unit: str, own: Sequence[str], *names: str) -> Tap | None:
    return next((Tap(f"{unit}.{name}") for name in names if name in own), None)


def _side(size: Any) -> Any:
    return size[0] if isinstance(size, tuple | list) else size


def _richest(model: nn.Module) -> str:
    """A pattern for the children of the module that has most of them."""
    path, _ = max(model.named_modules(), key=lambda named: len(list(named[1].children())))
    return f"{path}.*".removeprefix(".")


def _is_unit(module: nn.Module) -> bool:
    """Return whether a module is composite, and neither a sequence of units nor a stage that holds one."""
    sequences = (nn.Sequential, nn.ModuleList)
    is_stage = any(isinstance(getattr(module, name, None), sequences) for name in ("blocks", "layers"))
    return any(module.children()) and not isinstance(module, sequences) and not is_stage


def _matching(paths: Sequence[str], pattern: str) -> list[Tap]:
    """The taps that a pattern names, in order of definition."""
    wanted = Tap.of(pattern)
    if wanted.at == "heads":
        return []  # heads are no tensor; only `attention_distance` reads them
    parts = wanted.path.split(".")
    if not any(sign in pattern for sign in "*?["):
        return [wanted] if wanted.path in paths else []
    # One ** means the same as several in a row, each of which would multiply the ways to match.
    parts = [part for place, part in enumerate(parts) if part != "**" or parts[place - 1 : place] != ["**"]]
    return [Tap(path, wanted.at) for path in paths if _match_parts(path.split("."), parts)]


def _match_parts(path: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_match_parts(path[skip:], pattern[1:]) for skip in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and _match_parts(path[1:], pattern[1:])
