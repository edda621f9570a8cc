"""Finds a network's head: the layer that gives the logits, or the embedding that is compared with text."""

from collections.abc import Mapping

from torch import Tensor, nn

HEADS = (
    *(
        "head",
        "head.fc",
        "fc",
        "classifier",
        "classifier.1",
        "heads.head",
        "cls_classifier",
        "head_dist",
        "last_linear",
    ),
    *("distillation_classifier", "visual_projection"),
)
"""The layers that are heads in networks that do not say where theirs is."""


def layers(module: nn.Module) -> tuple[str, ...]:
    """The layers that are heads of such a module, whether this one has them or not; timm's modules say so themselves."""
    config = getattr(module, "pretrained_cfg", None)
    named = config.get("classifier") if isinstance(config, dict) else None
    if isinstance(named, str):
        return (named, "head_dist", "aux_head")
    return (*named, "aux_head") if isinstance(named, tuple | list) else HEADS


def has_part(name: str, heads: tuple[str, ...]) -> bool:
    """Return whether a tensor of this name belongs to a head, or stands beside it in the same part of the network."""
    beside = tuple(head.rpartition(".")[0] + "." for head in heads if "." in head)
    return is_in(name, heads) or name.startswith(beside)


def is_in(name: str, heads: tuple[str, ...]) -> bool:
    """Return whether a tensor of this name is one of the heads' own."""
    return name.rpartition(".")[0] in heads


def classes(tensors: Mapping[str, Tensor], module: nn.Module) -> int | None:
    """The outputs of the first head in a file; 0 if there is none, None if the module's head is not known.

    The names of the file are the module's.
    """
    heads = layers(module)
    own = [head for head in heads if f"{head}.weight" in module.state_dict()]
    for head in own or heads:
        weight = tensors.get(f"{head}.weight")
        if weight is not None:
            return weight.shape[0] if weight.ndim > 1 else None
    return 0 if own or heads is not HEADS or not any(has_part(name, heads) for name in tensors) else None
