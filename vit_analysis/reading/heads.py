"""Queries, keys and values of an attention, seen where it hands them to `scaled_dot_product_attention`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vit_analysis.spelling import Refusal


@dataclass(frozen=True)
class Heads:
    """The inputs of one call of `scaled_dot_product_attention`.

    It computes softmax(scale query key' + bias) value for every image and head.

    Attributes:
        value: None where the attention did not tell.
        images: how many images there are; an attention in windows, or over a part of the images, has another number of rows.
    """

    query: Float[Tensor, "image head query feature"]
    key: Float[Tensor, "image head key feature"]
    value: Float[Tensor, "image head key width"] | None
    bias: Tensor | None
    scale: float
    images: int | None = None

    @classmethod
    def of_weights(cls, weights: Float[Tensor, "image head query key"]) -> "Heads":
        """The heads that have these weights after the softmax: their logarithms are queries, of keys that are unit vectors."""
        count = weights.shape[-1]
        key = torch.eye(count, dtype=weights.dtype, device=weights.device)
        logarithms = weights.clamp(min=torch.finfo(weights.dtype).tiny).log()
        return cls(logarithms, key.expand(*weights.shape[:2], count, count), None, None, 1.0)

    def __len__(self) -> int:
        return len(self.query)

    def output(self) -> Float[Tensor, "image head query width"]:
        """Return each head's weighted sum of values, before the projection that joins the heads.

        Raises:
            Refusal: the values are not known.
        """
        if self.value is None:
            raise Refusal(
                "an attention that does not call scaled_dot_product_attention does not tell its values, so what its heads add "
                "is not known; choose another Vision Transformer"
            )
        return functional.scaled_dot_product_attention(
            self.query, self.key, self.value, attn_mask=self.bias, scale=self.scale
        )


def attach_heads(module: nn.Module, see: Callable[[Heads], None], hooks: ExitStack) -> None:
    """Watch `scaled_dot_product_attention` while this module runs, and have the module call it.

    A dropout calls nothing: what it is given are the weights.

    timm's attentions compute the softmax themselves where ``fused_attn`` is off, and those of transformers where their
    configuration says ``eager``, so both are on until ``hooks`` closes. Outputs of the two ways differ by rounding only,
    queries and keys not at all. torch's own attention has a fast path that calls nothing that could be watched; it is off
    as long.
    """
    if isinstance(module, nn.Dropout):
        handle = module.register_forward_pre_hook(lambda _, args: see(Heads.of_weights(args[0])))
        hooks.callback(handle.remove)
        return
    watching = ExitStack()

    def start(*_: Any) -> None:
        watching.enter_context(_Watch(see))

    def stop(*_: Any) -> None:
        watching.close()

    hooks.callback(module.register_forward_pre_hook(start).remove)
    # Closed after an error, too: a watch left open would see every later attention of the process.
    hooks.callback(module.register_forward_hook(stop, always_call=True).remove)
    for part in module.modules():
        if getattr(part, "fused_attn", None) is False:
            setattr(part, "fused_attn", True)  # noqa: B010  (a module's attributes are tensors and modules to mypy)
            hooks.callback(setattr, part, "fused_attn", False)
        if isinstance(part, nn.MultiheadAttention) and torch.backends.mha.get_fastpath_enabled():
            torch.backends.mha.set_fastpath_enabled(False)
            hooks.callback(torch.backends.mha.set_fastpath_enabled, True)
        config: Any = getattr(part, "config", None)
        if getattr(config, "_attn_implementation", None) == "eager":
            config._attn_implementation = "sdpa"
            hooks.callback(setattr, config, "_attn_implementation", "eager")


class _Watch(TorchFunctionMode):
    def __init__(self, see: Callable[[Heads], None]) -> None:
        super().__init__()
        self.see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            self.see(_heads(*args, **(kwargs or {})))
        if func is functional.multi_head_attention_forward:
            with self._watching_inside():
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    @contextmanager
    def _watching_inside(self) -> Iterator[None]:
        """Watch what torch's own attention calls inside, where a mode is off: by another function of that name."""
        real = functional.scaled_dot_product_attention

        def watched(*args: Any, **kwargs: Any) -> Tensor:
            self.see(_heads(*args, **kwargs))
            return real(*args, **kwargs)

        functional.scaled_dot_product_attention = watched
        try:
            yield
        finally:
            functional.scaled_dot_product_attention = real


def _heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001  (the names are torch's)
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Heads:
    """The arguments of `scaled_dot_product_attention`, with its defaults spelt out."""
    if is_causal:
        shape = query.shape[-2], key.shape[-2]
        attn_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = query.new_zeros(attn_mask.shape).masked_fill(~attn_mask, -torch.inf)
    if enable_gqa:  # several heads of queries share a head of keys
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    return Heads(query, key, value, attn_mask, query.shape[-1] ** -0.5 if scale is None else scale)
