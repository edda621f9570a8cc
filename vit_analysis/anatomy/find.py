"""The anatomy of a network, found by its names and its structure; nothing is run."""

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from vit_analysis.anatomy import families
from vit_analysis.anatomy.roles import Anatomy, Network
from vit_analysis.spelling import Refusal, did_you_mean
from vit_analysis.tensors.tokens import Grid

# Codebases whose conventions are known: with one of their networks, what it does not have is not there.
TIMM, TORCHVISION, TRANSFORMERS = "timm.", "torchvision.models.", "transformers.models."
CODEBASES = (TIMM, "vit_analysis.lab.", TORCHVISION, TRANSFORMERS)
ADAPTER = "transformers.models.timm_wrapper."  # a network of timm under a name of transformers
HEADS = (
    "num_classes",
    "base_model_prefix",
    "fc",
    "classifier",
    "heads",
)  # a network has one, a part of it has none
CONTAINERS = (nn.ModuleList, nn.ModuleDict)  # never run themselves
SEQUENCES = (nn.Sequential, nn.ModuleList)
# Names of parameters that are tokens, and of those that are no part of what the network computes.
TOKEN = re.compile(r"(^|[._])(cls|class|dist|distillation|reg|register)s?_?(tokens?|embedding)$")
POSITION = re.compile(r"pos|rel|rope|bias|scale|gamma|lambda|temperature")
UNUSED = ("mask_token",)
BARE = (
    "torch.nn.modules.module",
    "torch.nn.modules.container",
)  # torch's modules that have no weights of their own


def anatomy(module: nn.Module) -> Anatomy:
    """Find what can be known of a network without running it."""
    base, network = inner(module)
    row = next((row for row in families.NETWORKS if _is_of(network, row)), None)
    found = _of_row(network, row) if row else _of_names(network)
    common = Anatomy(base=base, kinds=families.BLOCKS, unit=families.UNIT)
    return common.with_told(found)


def inner(module: nn.Module) -> tuple[str, nn.Module]:
    """The network of a known codebase in a module, and its path: the module itself, or the only one inside it."""
    if is_network(module):
        return "", module
    found: list[tuple[str, nn.Module]] = []
    for path, part in module.named_modules():
        if is_network(part) and not any(path.startswith(f"{outer}.") for outer, _ in found):
            found.append((path, part))
    return found[0] if len(found) == 1 else ("", module)


def is_network(module: nn.Module) -> bool:
    """Return whether this is a whole network of a known codebase."""
    home = type(module).__module__
    return (
        home.startswith(CODEBASES)
        and not home.startswith(ADAPTER)
        and any(hasattr(module, name) for name in HEADS)
    )


def blocks(network: nn.Module) -> list[str]:
    """Paths of the repeated units (blocks) of a network, found by structure: composite modules that are numbered.

    Raises:
        Refusal: there are none; name layers by patterns.
    """
    units: list[str] = []
    for path, module in network.named_modules():
        entrance, number = path.partition(".")[0], path.rpartition(".")[2]
        inside = any(path.startswith(f"{unit}.") for unit in units)
        numbered = re.fullmatch(families.NUMBERED, number)
        if numbered and not inside and entrance not in families.ENTRANCES and _is_unit(module):
            units.append(path)
    if not units:
        raise Refusal(
            f"{type(network).__name__} has no repeated blocks that could be found by structure; name its layers with "
            f"patterns, as in {_richest(network)!r}; {did_you_mean('', [path for path, _ in network.named_modules() if path])}"
        )
    return units


def is_convolutional(network: nn.Module) -> bool:
    """Return whether most of a network is convolutions: such a network runs faster with its channels last in memory."""
    kinds = [
        isinstance(module, nn.Conv2d)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    return sum(kinds) > len(kinds) / 2


def part(module: nn.Module, path: str) -> Any:
    """The part or attribute of a module at a path; None where there is none."""
    for name in path.split("."):
        module = getattr(module, name, None)  # type: ignore[assignment]
    return module


def cut(patches: nn.Conv2d, size: tuple[int, int]) -> Grid:
    """The grid of patches that a convolution cuts an image of this size into: what is left over at the edges is no patch."""
    kernel, stride, padding = patches.kernel_size, patches.stride, patches.padding
    before = [padding[axis] if isinstance(padding, tuple) else 0 for axis in (0, 1)]
    count = [(size[axis] + 2 * before[axis] - kernel[axis]) // stride[axis] + 1 for axis in (0, 1)]
    first = [(kernel[axis] - stride[axis]) / 2 - before[axis] for axis in (0, 1)]
    return Grid(count[0], count[1], float(stride[0]), float(stride[1]), first[0], first[1])


def _is_of(network: nn.Module, row: Network) -> bool:
    """Return whether a network has the parts that a row of the table names, anywhere below it."""
    return _root(network, row) is not None and isinstance(_at(network, row, row.patches), nn.Conv2d)


def _root(network: nn.Module, row: Network) -> str | None:
    """The path below which a network has the parts of a row: ``vit.`` in a classifier of transformers, else empty."""
    for path, _ in network.named_modules():
        if path == row.patches or path.endswith(f".{row.patches}"):
            root = path.removesuffix(row.patches)
            if not row.prefix or isinstance(part(network, f"{root}{row.prefix[0]}"), Tensor):
                return root
    return None


def _at(network: nn.Module, row: Network, path: str) -> Any:
    return part(network, f"{_root(network, row)}{path}")


def _of_row(network: nn.Module, row: Network) -> Anatomy:
    root, patches = _root(network, row), _at(network, row, row.patches)
    tokens = [token for name in row.prefix if isinstance(token := _at(network, row, name), Tensor)]
    size = _image_size(network)
    grid = cut(patches, size) if size else None
    return Anatomy(
        entrances=(f"{root}{row.embedding}",),
        norm=f"{root}{row.norm}" if _at(network, row, row.norm) is not None else "",
        prefix=sum(_count(token) for token in tokens),
        class_token=bool(row.prefix),
        grid=grid,
        tokens=(grid.rows, grid.columns) if grid else None,
        channels_last=False,
        reads=row.reads,
    )


def _of_names(network: nn.Module) -> Anatomy:
    """The anatomy of a network with timm's names, or with names of its own: then tokens are counted only where it tells."""
    embed = getattr(network, "patch_embed", getattr(network, "stem", None))  # a Mixer's is its stem
    tokens = getattr(embed, "grid_size", None)
    exit = getattr(network, "norm", None)
    prefix, class_token = _prefix(network)
    return Anatomy(
        entrances=tuple(
            name
            for name in families.ENTRANCES
            if isinstance(own := getattr(network, name, None), nn.Module) and not isinstance(own, CONTAINERS)
        ),
        norm="norm"
        if isinstance(exit, nn.Module) and not isinstance(exit, (nn.Identity, *CONTAINERS))
        else "",
        prefix=prefix,
        class_token=class_token,
        grid=_grid(getattr(network, "patch_embed", None)),
        tokens=tuple(tokens) if tokens else None,
        spatial=getattr(embed, "num_patches", None),
        channels_last=getattr(network, "output_fmt", "NCHW") == "NHWC",
        reads=_reads(network, prefix, class_token),
    )


def _prefix(network: nn.Module) -> tuple[int | None, bool | None]:
    """Count the tokens before the spatial ones, and say whether there is a class token; None where neither can be known."""
    # Class tokens: a CrossViT has one for each size of patch, a CoaT one for each stage.
    own = [token for name, token in network.named_parameters(recurse=False) if name.startswith("cls_token")]
    told = getattr(network, "num_prefix_tokens", None)
    if type(network).__module__.startswith(CODEBASES):
        class_token = bool(own) or getattr(network, "cls_token", None) is not None
        return told if told is not None else (own[0].shape[1] if own else 0), class_token
    if is_convolutional(network):
        return 0, False
    tokens = {name: token for name, token in _own(network) if not name.endswith(UNUSED)}
    class_token = any(re.search(r"cls|class", name.rpartition(".")[2]) for name in tokens)
    if isinstance(told, int):
        return told, class_token if told else False
    if not all(TOKEN.search(name) and _count(token) for name, token in tokens.items()):
        return None, None
    return sum(_count(token) for token in tokens.values()), class_token


def _own(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters that may be tokens: those that a network adds to torch's layers, but for positions and scales."""
    for path, module in network.named_modules():
        home = type(module).__module__
        if home.startswith("torch.nn.") and home not in BARE and not isinstance(module, nn.Embedding):
            continue
        for name, value in module.named_parameters(recurse=False):
            whole = f"{path}.{name}".removeprefix(".")
            if not POSITION.search(whole) and (value.ndim in (2, 3) or TOKEN.search(whole)):
                yield whole, value


def _count(token: Tensor) -> int:
    """How many tokens a parameter holds: 1 x tokens x channels, or the channels of one; 0 if neither."""
    if token.ndim == 1:
        return 1
    return token.shape[-2] if token.ndim == 2 or (token.ndim == 3 and len(token) == 1) else 0


def _reads(network: nn.Module, prefix: int | None, class_token: bool | None) -> str | None:
    pool = getattr(network, "global_pool", None) or getattr(network, "pool", None)
    if prefix is None or (prefix and pool is None and not type(network).__module__.startswith(CODEBASES)):
        return None
    if class_token and pool in ("token", "cls"):
        return "cls"
    return "mean_spatial" if prefix else "mean"


def _grid(embed: Any) -> Grid | None:
    """Where the tokens of a patch embedding of timm's lie; None where it does not say."""
    size, count = getattr(embed, "img_size", None), getattr(embed, "grid_size", None)
    if size is None or count is None:
        return None
    patches = getattr(embed, "proj", None)
    if isinstance(patches, nn.Conv2d) and not hasattr(embed, "backbone"):
        grid = cut(patches, (size[0], size[1]))
        if (grid.rows, grid.columns) == tuple(count):
            return grid
    if size[0] % count[0] or size[1] % count[1]:
        return None
    return Grid(count[0], count[1], size[0] / count[0], size[1] / count[1])


def _image_size(network: nn.Module) -> tuple[int, int] | None:
    """The size of image that a network of torchvision or transformers is built for."""
    size = getattr(network, "image_size", None)
    size = getattr(getattr(network, "config", None), "image_size", size)
    if isinstance(size, int):
        return size, size
    return (size[0], size[1]) if size else None


def _is_unit(module: nn.Module) -> bool:
    """Return whether a module is composite, and neither a sequence of units nor a stage that holds one."""
    is_stage = any(isinstance(getattr(module, name, None), SEQUENCES) for name in ("blocks", "layers"))
    return any(module.children()) and not isinstance(module, SEQUENCES) and not is_stage


def _richest(network: nn.Module) -> str:
    """A pattern for the children of the module that has most of them."""
    path, _ = max(network.named_modules(), key=lambda named: len(list(named[1].children())))
    return f"{path}.*".removeprefix(".")
