"""Networks, their blocks and parts, found by structure; nothing is run."""

import re
from typing import Any

from torch import nn

from vit_analysis.anatomy import families
from vit_analysis.spelling import Refusal, did_you_mean

# Codebases whose conventions are known: what one of their networks does not have is not there.
TIMM, LAB = "timm.models.", "vit_analysis.lab."
TORCHVISION, TRANSFORMERS = "torchvision.models.", "transformers.models."
WHOLE = {
    TIMM: ("forward_features",),
    LAB: ("forward_features",),
    TORCHVISION: ("fc", "classifier", "heads", "head"),
    TRANSFORMERS: ("base_model_prefix",),
}
"""By codebase, attributes of which a whole network has one and a part of it none."""
ADAPTER = "transformers.models.timm_wrapper."  # a network of timm under a name of transformers
CONTAINERS = (nn.ModuleList, nn.ModuleDict)  # never run themselves
SEQUENCES = (nn.Sequential, nn.ModuleList)


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
    names = next((names for codebase, names in WHOLE.items() if home.startswith(codebase)), ())
    return not home.startswith(ADAPTER) and any(hasattr(module, name) for name in names)


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


def _is_unit(module: nn.Module) -> bool:
    """Return whether a module is composite, and neither a sequence of units nor a stage that holds one."""
    is_stage = any(isinstance(getattr(module, name, None), SEQUENCES) for name in ("blocks", "layers"))
    return any(module.children()) and not isinstance(module, SEQUENCES) and not is_stage


def _richest(network: nn.Module) -> str:
    """A pattern for the children of the module that has most of them."""
    path, _ = max(network.named_modules(), key=lambda named: len(list(named[1].children())))
    return f"{path}.*".removeprefix(".")
