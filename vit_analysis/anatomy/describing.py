"""The anatomy of a network, as its names and attributes tell it; nothing is run."""

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from vit_analysis.anatomy import families
from vit_analysis.anatomy.cutting import Size, built_for, cut, of_embedding
from vit_analysis.anatomy.find import CONTAINERS, inner, is_network, part
from vit_analysis.anatomy.roles import Anatomy, Network

CHANNELS_LAST = ("torchvision.models.swin_transformer",)
READS = {"token": "cls", "cls": "cls", "avg": "mean"}  # by timm's and the lab's names of poolings
# Names of parameters that are tokens, of those that are something else, and of those that nothing computes with.
TOKEN = re.compile(r"(^|[._])(cls|class|dist|distillation|reg|register)s?_?(tokens?|embedding)$")
OTHER = re.compile(r"pos|rel|rope|bias|scale|gamma|lambda|temperature")
UNUSED = ("mask_token",)
# torch's modules that have no weights of their own: what they hold is a user's.
BARE = ("torch.nn.modules.module", "torch.nn.modules.container")


def anatomy(module: nn.Module, size: Size | None = None) -> Anatomy:
    """Find what can be known of a network without running it.

    Args:
        module: the network, or a module around one of a known codebase.
        size: rows and columns of its images, for a network that takes any; None is the size that it is built for.
    """
    base, network = inner(module)
    return of_network(network, size).with_told(Anatomy(base=base))


def of_network(network: nn.Module, size: Size | None = None) -> Anatomy:
    """Find what can be known of a network that is the module itself; see `anatomy`."""
    row = next((row for row in families.NETWORKS if _root(network, row) is not None), None)
    found = _of_row(network, row, size) if row else _of_names(network, size)
    return Anatomy(base="", kinds=families.BLOCKS, unit=families.UNIT).with_told(found)


def _root(network: nn.Module, row: Network) -> str | None:
    """The path below which a network has the parts of a row: ``vit.`` in a classifier of transformers, else empty."""
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and (path == row.patches or path.endswith(f".{row.patches}")):
            root = path.removesuffix(row.patches)
            if not row.prefix or isinstance(part(network, f"{root}{row.prefix[0]}"), Tensor):
                return root
    return None


def _of_row(network: nn.Module, row: Network, size: Size | None) -> Anatomy:
    root = _root(network, row)
    tokens = [token for name in row.prefix if isinstance(token := part(network, f"{root}{name}"), Tensor)]
    size = size or built_for(network)
    grid = cut(part(network, f"{root}{row.patches}"), size) if size else None
    return Anatomy(
        entrances=(f"{root}{row.embedding}",),
        norm=f"{root}{row.norm}" if part(network, f"{root}{row.norm}") is not None else "",
        prefix=sum(_count(token) for token in tokens),
        class_token=bool(row.prefix),
        grid=grid,
        tokens=(grid.rows, grid.columns) if grid else None,
        channels_last=False,
        reads=row.reads,
    )


def _of_names(network: nn.Module, size: Size | None) -> Anatomy:
    """The anatomy of a network with timm's names, or with names of its own: then tokens are counted only where it tells."""
    embed = getattr(network, "patch_embed", getattr(network, "stem", None))  # a Mixer's is its stem
    tokens = getattr(embed, "grid_size", None)
    prefix, class_token = _prefix(network)
    grid = of_embedding(getattr(network, "patch_embed", None), size)
    return Anatomy(
        entrances=tuple(name for name in families.ENTRANCES if _runs(getattr(network, name, None))),
        norm="norm"
        if _runs(own := getattr(network, "norm", None)) and not isinstance(own, nn.Identity)
        else "",
        prefix=prefix,
        class_token=class_token,
        grid=grid,
        tokens=(grid.rows, grid.columns) if grid else tuple(tokens) if tokens else None,
        spatial=getattr(embed, "num_patches", None),
        channels_last=_channels_last(network),
        reads=_reads(network, prefix, class_token),
    )


def _runs(module: Any) -> bool:
    return isinstance(module, nn.Module) and not isinstance(module, CONTAINERS)


def _channels_last(network: nn.Module) -> bool:
    """Return whether maps end with channels; torch's begin with them."""
    return getattr(network, "output_fmt", "NCHW") == "NHWC" or type(network).__module__ in CHANNELS_LAST


def _prefix(network: nn.Module) -> tuple[int | None, bool | None]:
    """Count the tokens before the spatial ones, and say whether there is a class token; None where neither can be known."""
    # Class tokens: a CrossViT has one for each size of patch, a CoaT one for each stage.
    own = [token for name, token in network.named_parameters(recurse=False) if name.startswith("cls_token")]
    told = getattr(network, "num_prefix_tokens", None)
    if is_network(network):
        class_token = bool(own) or getattr(network, "cls_token", None) is not None
        return told if told is not None else (own[0].shape[1] if own else 0), class_token
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
            if not OTHER.search(whole) and (value.ndim in (2, 3) or TOKEN.search(whole)):
                yield whole, value


def _count(token: Tensor) -> int:
    """How many tokens a parameter holds: 1 x tokens x channels, or the channels of one; 0 if neither."""
    if token.ndim == 1:
        return 1
    return token.shape[-2] if token.ndim == 2 or (token.ndim == 3 and len(token) == 1) else 0


def _reads(network: nn.Module, prefix: int | None, class_token: bool | None) -> str | None:
    """What the head reads; None where it is not known. Without prefix tokens there is nothing but the mean to tell apart."""
    names = [getattr(network, name, None) for name in ("global_pool", "pool")]
    pool = READS.get(next((name for name in names if isinstance(name, str) and name), ""))
    if prefix is None:
        return None
    if pool == "cls":
        return "cls" if class_token else None
    if prefix and pool is None and not is_network(network):
        return None
    return "mean_spatial" if prefix and not getattr(network, "pool_include_prefix", False) else "mean"
