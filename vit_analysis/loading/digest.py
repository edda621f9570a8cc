"""A digest of a network: other weights, another structure or other settings are another network."""

import hashlib
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vit_analysis.spelling import Refusal

MODES = ("training", "fused_attn")  # of a module, and no part of what it computes


def digest(module: nn.Module) -> str:
    """Sixteen hexadecimal digits that change when any weight does, or what the module consists of.

    Raises:
        Refusal: the weights have no values, as on torch's meta device.
    """
    total = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", repr(module)).encode())
    for place, part in module.named_modules():
        total.update(f"{place}{type(part).__module__}{_settings(part)}".encode())
    tensors = {**dict(module.named_buffers()), **module.state_dict()}  # some buffers are in no state
    for key, value in tensors.items():
        total.update(key.encode())
        for content in _contents(value):
            total.update(content)
    return total.hexdigest()[:16]


def _settings(part: nn.Module) -> list[Any]:
    """What a module is set to beside its weights, such as its number of heads, but not its mode."""
    plain = (bool, int, float, str, type(None))
    own = [(name, value) for name, value in sorted(vars(part).items(), key=_name) if not name.startswith("_")]
    kept = [
        (name, value)
        for name, value in own
        if name not in MODES
        and (
            isinstance(value, plain)
            or (isinstance(value, tuple | list) and all(isinstance(one, plain) for one in value))
        )
    ]
    config: Any = getattr(part, "config", None)
    return [*kept, config.to_json_string() if hasattr(config, "to_json_string") else None]


def _name(setting: tuple[str, Any]) -> str:
    """The name alone: a value may be a tensor, which takes long to write out."""
    return setting[0]


def _contents(value: Any) -> Iterable[bytes]:
    """The bytes of a weight: of a tensor, of a quantised one, of several in a tuple, or of what else a state may hold."""
    if isinstance(value, tuple | list):
        for part in value:
            yield from _contents(part)
    elif not isinstance(value, Tensor):
        yield repr(value).encode()
    elif nn.parameter.is_lazy(value):
        raise Refusal(
            "this model has layers whose shape is not known yet (lazy ones); run it once on an image"
        )
    elif value.is_meta:
        raise Refusal("the weights of this model are on the device 'meta', which holds no values; load some")
    elif value.is_quantized:
        per_tensor = value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric)
        yield f"{value.qscheme()}{value.q_scale() if per_tensor else value.q_per_channel_scales().tolist()}".encode()
        yield from _contents(value.int_repr())
    elif hasattr(value, "__tensor_flatten__"):  # several tensors that pass for one, as torchao's
        for name in value.__tensor_flatten__()[0]:
            yield from _contents(getattr(value, name))
    else:
        plain = value.detach().cpu().to_dense() if value.layout != torch.strided else value.detach().cpu()
        yield f"{tuple(plain.shape)}{plain.dtype}".encode()
        yield plain.contiguous().flatten().view(torch.uint8).numpy().tobytes()
