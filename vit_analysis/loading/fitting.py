"""What a checkpoint shows of how its network was built, and strict loading that knows what is harmless."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt, prod

import torch
from torch import Tensor, nn

from vit_analysis.loading import heads
from vit_analysis.loading.choice import counted, first
from vit_analysis.loading.translation import looks_like, spelled
from vit_analysis.spelling import Refusal

OWN = re.compile(  # of the module's own making: the file need not have them, the module need not want them
    r"(^|\.)(relative_position_index|relative_coords_table|attn_mask|position_ids|position_index|pos_embed\.inv_freq|rope\.(?!freqs$).*|periods)$"
)
NEEDLESS = {  # what a file may lack: it is not computed with, and keeps the module's value
    "counters of batches": re.compile(r"(^|\.)num_batches_tracked$"),
    "a mask token": re.compile(r"(^|\.)mask_token$"),
}
TRAINING = {  # kinds of tensors that only training needs
    "a mask token": re.compile(r"(^|\.)mask_token$"),
    "a decoder": re.compile(r"(^|\.)decoder(_|\.)"),
    "a projection head": re.compile(
        r"(^|\.)((head|fc)\.(mlp|last_layer|\d+)|dino_head|ibot_head|projector|projection_head|projection|predictor|prototypes)(\.|$)"
    ),
    "a queue": re.compile(r"(^|\.)queue(_ptr|\d*)?$"),
    "counters": re.compile(
        r"(^|\.)(n_averaged|num_batches_tracked|total_ops|total_params|logit_scale|logit_bias)$"
    ),
    "a pooler": re.compile(r"(^|\.)pooler\.dense\."),
    "indices": OWN,
}

HEADLESS = "it has no head for the module's: make the module without one (num_classes=0)"


@dataclass(frozen=True)
class Shown:
    """What a checkpoint shows of how its network was built; None where it does not show it.

    Attributes:
        classes: outputs of its head; 0 if there is no head in the file.
        channels: channels of its images.
        patch: rows and columns of pixels in a patch.
        grid: rows and columns of patches, from the position embedding: those of the module, or else a square.
        registers: its register tokens.
        class_token: whether it has a class token.
        average: whether its head reads the mean of the tokens, where that is not as in the module.
        pooler: whether it has Hugging Face's pooler.
        blocks: its blocks.
        width: features of a token.
    """

    classes: int | None = None
    channels: int | None = None
    patch: tuple[int, int] | None = None
    grid: tuple[int, int] | None = None
    registers: int | None = None
    class_token: bool | None = None
    average: bool | None = None
    pooler: bool | None = None
    blocks: int | None = None
    width: int | None = None


def shown(tensors: Mapping[str, Tensor], module: nn.Module) -> Shown:
    """Return what tensors under the module's names show of the network that they are from.

    The module says what its parts are called, and how many tokens besides those of patches its position embedding holds.
    """
    own, known, stem = module.state_dict(), _part_of(module), _stem(module, tensors)
    classes, channels = heads.classes(tensors, module), None if stem is None else stem.shape[1]
    if known is None:
        return Shown(classes, channels)
    patch, positions = tensors.get(known("patch_embed.proj.weight")), tensors.get(known("pos_embed"))
    registers, norm = tensors.get(known("reg_token")), tensors.get(known("blocks.0.norm1.weight"))
    block = re.escape(known("blocks.0.norm1.weight")).replace("0", r"(\d+)", 1)
    number = registers.shape[-2] if registers is not None and registers.ndim > 1 else 0
    tokens = sum(known(name) in tensors for name in ("cls_token", "dist_token"))
    place, mean = known("pos_embed"), known("fc_norm.weight")
    return Shown(
        classes=classes,
        channels=channels,
        patch=_patch(module, known("patch_embed.proj.weight"), patch) if patch is stem else None,
        grid=positions if positions is None else _grid(positions, module, own.get(place), tokens, number),
        registers=number,
        class_token=known("cls_token") in tensors,
        average=mean in tensors if (mean in tensors) != (mean in own) else None,
        pooler=any(TRAINING["a pooler"].search(name) for name in tensors),
        blocks=len({found[1] for name in tensors if (found := re.fullmatch(block, name))}) or None,
        width=len(norm) if norm is not None and norm.ndim == 1 else None,
    )


def fit(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> list[str]:
    """Load weights that must fit exactly, but for what changes nothing that the module computes; say what was left aside.

    Left aside is what only training needs (`TRAINING`), indices that the module makes itself, and a head that the module
    does not have. Counters of batches may be missing. The weights take the module's precision.

    Raises:
        Refusal: they do not fit; it says which keys are missing, unexpected, of another shape or no numbers, how many, and
            what the names look like.
    """
    own = module.state_dict()
    layers = heads.layers(module)
    aside = _aside(tensors, own, layers)
    # Rotations of some networks have a name like an index, and are learnt.
    learnt = dict(module.named_parameters())
    missing = [
        key
        for key, value in own.items()
        if key not in tensors and ((key in learnt and OWN.search(key)) or not _is_needless(key, value))
    ]
    shapes = [key for key in own if key in tensors and tensors[key].shape != own[key].shape]
    faults = {
        "missing": missing,
        "unexpected": [key for key in tensors if key not in own and key not in aside],
        "of another shape": [
            f"{key} {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}" for key in shapes
        ],
        "quantised": [key for key in own if key in tensors and _is_quantised(tensors[key], own[key])],
        "without values": [key for key in own if key in tensors and _is_hollow(tensors[key])],
        "not numbers": [key for key in own if key in tensors and _has_nan(tensors[key])],
        "infinite": [key for key in learnt if key in tensors and _is_infinite(tensors[key])],
    }
    if told := [f"{len(keys)} {fault} ({first(keys)})" for fault, keys in faults.items() if keys]:
        hints = _hints(tensors, own)
        if missing and all(heads.is_in(key, layers) for key in missing):
            hints.append(HEADLESS)
        raise Refusal(
            f"{source!r} does not fit {type(module).__name__} of {len(own)} tensors: {'; '.join([*told, *hints])}"
        )
    fitting = {key: value.detach().to(own[key].dtype) for key, value in tensors.items() if key in own}
    module.load_state_dict(own | fitting)
    kinds = dict.fromkeys(aside.values())
    said = [f"{counted(len(aside), 'tensor')} left aside ({first(kinds)})"] if aside else []
    lacking = [
        kind for kind, one in NEEDLESS.items() if any(one.search(key) for key in own.keys() - tensors.keys())
    ]
    return [*said, f"{' and '.join(lacking)} not in the file"] if lacking else said


def _aside(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], layers: tuple[str, ...]
) -> dict[str, str]:
    """The tensors that the module does without, and what they are: what it has none of at all."""
    kinds = {
        kind: pattern for kind, pattern in TRAINING.items() if not any(pattern.search(key) for key in own)
    } | {"counters": TRAINING["counters"]}
    has_head = any(heads.is_in(key, layers) for key in own)
    aside: dict[str, str] = {}
    for key in tensors:
        if key in own:
            continue
        if not has_head and heads.has_part(key, layers):
            aside[key] = "a head"
        elif kind := next((kind for kind, pattern in kinds.items() if pattern.search(key)), None):
            aside[key] = kind
    return aside


def _is_needless(key: str, value: Tensor) -> bool:
    """Return whether the file may lack a tensor: it is not computed with, the module makes it itself, or it is empty."""
    return any(one.search(key) for one in (*NEEDLESS.values(), OWN)) or not value.numel()


def _is_quantised(value: Tensor, own: Tensor) -> bool:
    is_number = value.is_floating_point() or value.is_complex()
    return value.is_quantized or (own.is_floating_point() and (not is_number or value.is_complex()))


def _is_hollow(value: Tensor) -> bool:
    """Return whether a tensor is only promised, or sparse; neither is a network's weight."""
    return value.is_meta or value.layout != torch.strided


def _has_nan(value: Tensor) -> bool:
    if _is_hollow(value):
        return False
    return value.is_floating_point() and not value.is_quantized and bool(value.float().isnan().any())


def _is_infinite(value: Tensor) -> bool:
    """Return whether a learnt weight is infinite; a buffer may be, as masks of attention are."""
    if _is_hollow(value) or value.is_quantized or not value.is_floating_point():
        return False
    return bool(value.float().isinf().any())


def _hints(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """What the names and shapes tell of the network that the file is from."""
    hints = []
    theirs, ours = looks_like(tensors), looks_like(own)
    if theirs and theirs != ours:
        hints.append(f"its names look like {theirs}")
    there, here = _depth(tensors), _depth(own)
    if theirs and theirs == ours and there != here and there and here:
        hints.append(f"it has {counted(there, 'block')} where the module has {here}")
    return hints


def _depth(names: Mapping[str, Tensor]) -> int:
    """The number of blocks that are numbered in names: the largest set of numbers that stand in one place."""
    numbers: dict[str, set[str]] = {}
    for name in names:
        for found in re.finditer(r"(?<=[._])\d+(?=\.)", name):
            numbers.setdefault(name[: found.start()], set()).add(found[0])
    return max(map(len, numbers.values()), default=0)


def _part_of(module: nn.Module) -> Callable[[str], str] | None:
    """A function from timm's name of a part of a Vision Transformer to the module's; None if the module is none."""
    own = module.state_dict()
    ours = spelled(own)
    if ours is None or ours.hits < len(own) / 2:
        return None

    def name_of(part: str) -> str:
        kind = part.rpartition(".")[2]
        template = part.replace("blocks.0", "blocks.#")
        starred = template.removesuffix(kind) + "*"
        entry = ours.convention.names.get(template) or ours.convention.names.get(starred) or part
        theirs = entry if isinstance(entry, str) else entry[0]
        return ours.prefix + theirs.replace("#", "0").replace("*", kind)

    return name_of


def _stem(module: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The weight of the file for the first convolution that the module has."""
    convolutions = (name for name, part in module.named_modules() if isinstance(part, nn.Conv2d))
    weight = tensors.get(f"{next(convolutions, '')}.weight")
    return weight if weight is not None and weight.ndim == 4 else None


def _patch(module: nn.Module, name: str, weight: Tensor | None) -> tuple[int, int] | None:
    """Rows and columns of pixels in a patch, if patches are cut by a convolution that does not let them overlap."""
    part = dict(module.named_modules()).get(name.removesuffix(".weight"))
    is_cut = isinstance(part, nn.Conv2d) and tuple(part.kernel_size) == tuple(part.stride)
    return (weight.shape[2], weight.shape[3]) if is_cut and weight is not None and weight.ndim == 4 else None


def _grid(
    positions: Tensor, module: nn.Module, own: Tensor | None, tokens: int, registers: int
) -> tuple[int, int] | None:
    """Rows and columns of the patches that have positions: the module's if there are as many, else a square or None.

    Args:
        positions: the position embedding in the file.
        module: the module, which was built for a grid too.
        own: its position embedding.
        tokens: class tokens in the file.
        registers: registers in the file, which have positions in some networks.
    """
    if positions.ndim not in (2, 3):
        return (positions.shape[1], positions.shape[2]) if positions.ndim == 4 else None
    grid, number = _own_grid(module), positions.shape[-2]
    is_embedded = own is None or not grid or own.shape[-2] > prod(grid)
    others = {tokens, tokens + registers} if is_embedded else {0}
    if grid and number - prod(grid) in others:
        return grid
    sides = {isqrt(number - other) for other in others if number > other and _is_square(number - other)}
    return (side := sides.pop(), side) if len(sides) == 1 else None


def _is_square(number: int) -> bool:
    return isqrt(number) ** 2 == number


def _own_grid(module: nn.Module) -> tuple[int, int] | None:
    """Rows and columns of the module's patches, as it was built."""
    for part in module.modules():
        for holder in (part, getattr(part, "config", None)):
            size, patch = getattr(holder, "image_size", None), getattr(holder, "patch_size", None)
            grid = getattr(holder, "grid_size", None)
            if isinstance(grid, tuple) and len(grid) == 2:
                return grid
            if size is not None and patch is not None:
                rows, columns = ((one, one) if isinstance(one, int) else tuple(one) for one in (size, patch))
                return rows[0] // columns[0], rows[1] // columns[1]
    return None
