"""What an attention hands over is what it computes, and watching it changes nothing that stays."""

from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vit_analysis.reading.heads import Heads, attach_heads
from vit_analysis.spelling import Refusal


def spelt_out(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Image by image, head by head, query by query; several heads of queries may share a head of keys."""
    found = torch.zeros(*query.shape[:3], value.shape[-1])
    shared = query.shape[1] // key.shape[1]
    for image, head, one in torch.cartesian_prod(*map(torch.arange, query.shape[:3])).tolist():
        scores = key[image, head // shared] @ query[image, head, one] * scale
        if bias is not None:
            scores = scores + bias.expand(*query.shape[:3], key.shape[2])[image, head, one]
        found[image, head, one] = scores.exp() / scores.exp().sum() @ value[image, head // shared]
    return found


def lower(queries: int, keys: int) -> Tensor:
    return torch.tensor(
        [[0.0 if key <= query else -torch.inf for key in range(keys)] for query in range(queries)]
    )


BIAS = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
MASK = BIAS > -0.5
HIDDEN = torch.where(MASK, 0.0, -torch.inf)
CASES = {
    "plain": ({}, None, 7**-0.5, 4),
    "scaled": ({"scale": 0.3}, None, 0.3, 4),
    "with a bias": ({"attn_mask": BIAS}, BIAS, 7**-0.5, 4),
    "masked": ({"attn_mask": MASK}, HIDDEN, 7**-0.5, 4),
    "causal": ({"is_causal": True}, lower(5, 6), 7**-0.5, 4),
    "keys of two heads": ({"enable_gqa": True}, None, 7**-0.5, 2),
    "keys of two heads, masked and scaled": (
        {"enable_gqa": True, "attn_mask": MASK, "scale": 2.0},
        HIDDEN,
        2.0,
        2,
    ),
}


class Attends(nn.Module):
    """Calls the kernel with whatever it is given, by position or by name."""

    def __init__(self, **given) -> None:
        super().__init__()
        self.given = given

    def forward(self, *tensors: Tensor, **named: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(*tensors, **named, **self.given)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("named", [False, True])
def test_heads_say_all_that_the_kernel_is_told(case, named):
    given, bias, scale, shared = CASES[case]
    query, key, value = torch.randn(2, 4, 5, 7), torch.randn(2, shared, 6, 7), torch.randn(2, shared, 6, 3)
    module, seen = Attends(**given), []
    with ExitStack() as hooks:
        attach_heads(module, seen.append, hooks)
        out = module(query=query, key=key, value=value) if named else module(query, key, value)
    (heads,) = seen
    expected = spelt_out(query, key, value, bias, scale)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(heads.output(), expected)
    assert len(heads) == 2
    assert heads.scale == pytest.approx(scale)
    assert torch.equal(heads.query, query)
    every = [head * shared // 4 for head in range(4)]
    assert torch.equal(heads.key, key[:, every])
    assert heads.value is not None
    assert torch.equal(heads.value, value[:, every])
    assert (heads.bias is None) == (bias is None)
    if bias is not None:
        assert torch.equal(heads.bias, bias)


def test_weights_are_heads_whose_softmax_they_are():
    weights = torch.randn(2, 3, 4, 6).softmax(-1)
    weights[0, 0, 0] = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0, 0.0])
    heads = Heads.of_weights(weights)
    scores = heads.scale * heads.query @ heads.key.mT
    torch.testing.assert_close(scores.softmax(-1), weights)
    assert heads.key.shape == (2, 3, 6, 6)
    assert heads.bias is None
    with pytest.raises(Refusal, match="does not tell its values, so what its heads add is not known"):
        heads.output()


def test_a_dropout_is_given_weights():
    module, seen, weights = nn.Dropout(0.5).eval(), [], torch.randn(2, 3, 4, 4).softmax(-1)
    with ExitStack() as hooks:
        attach_heads(module, seen.append, hooks)
        assert torch.equal(module(weights), weights)
    module(weights)
    (heads,) = seen
    torch.testing.assert_close((heads.query @ heads.key.mT).softmax(-1), weights)


class Two(nn.Module):
    """torch's own attention of two kinds of tokens, and a kernel's."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(6, 2, batch_first=batch_first)
        self.kernel = Attends()

    def forward(self, x: Tensor) -> Tensor:
        own, _ = self.own(x, x, x, need_weights=False)
        return own + self.kernel(*[x.unflatten(-1, (2, 3)).transpose(-2, -3)] * 3).transpose(-2, -3).flatten(
            -2
        )


@pytest.mark.parametrize("batch_first", [True, False])
def test_torch_s_own_attention_is_seen_inside_and_every_call_once(batch_first):
    module, seen = Two(batch_first=batch_first).eval(), []
    x = torch.randn(2, 5, 6)
    before = functional.scaled_dot_product_attention
    with torch.no_grad():
        expected = module(x)
        with ExitStack() as hooks:
            attach_heads(module, seen.append, hooks)
            torch.testing.assert_close(module(x), expected)
            assert len(seen) == 2
            functional.scaled_dot_product_attention(*torch.randn(3, 1, 1, 4, 4))  # of nobody
            assert len(seen) == 2
    weight, bias = module.own.in_proj_weight.chunk(3), module.own.in_proj_bias.chunk(3)
    rows = x if batch_first else x.transpose(0, 1)
    for own, w, b in zip((seen[0].query, seen[0].key, seen[0].value), weight, bias, strict=True):
        torch.testing.assert_close(own, (rows @ w.T + b).unflatten(-1, (2, 3)).transpose(1, 2))
    assert functional.scaled_dot_product_attention is before


class Configured(nn.Module):
    """Parts that have the switches of timm and of transformers, on and off, and an attention of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.off, self.on, self.eager, self.flash = (Attends() for _ in range(4))
        self.off.fused_attn, self.on.fused_attn = False, True
        self.eager.config = SimpleNamespace(_attn_implementation="eager")
        self.flash.config = SimpleNamespace(_attn_implementation="flash")
        self.own = nn.MultiheadAttention(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def state(self) -> list[object]:
        configs = [part.config._attn_implementation for part in (self.eager, self.flash)]
        return [self.off.fused_attn, self.on.fused_attn, *configs, torch.backends.mha.get_fastpath_enabled()]


@pytest.mark.parametrize("fast", [True, False])
def test_switches_that_keep_the_kernel_out_are_turned_and_turned_back(fast):
    module = Configured()
    own = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        before = module.state()
        with ExitStack() as hooks:
            attach_heads(module, lambda _: None, hooks)
            assert module.state() == [True, True, "sdpa", "flash", False]
        assert module.state() == before == [False, True, "eager", "flash", fast]
    finally:
        torch.backends.mha.set_fastpath_enabled(own)


@pytest.mark.parametrize("inside", [True, False])
def test_after_an_error_nothing_is_watched(inside, monkeypatch):
    module, seen = Two(batch_first=True).eval(), []
    before = functional.scaled_dot_product_attention

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with ExitStack() as hooks:
        attach_heads(module, fail if inside else seen.append, hooks)
        if not inside:
            monkeypatch.setattr(module.kernel, "forward", fail)
        with pytest.raises(ZeroDivisionError):
            module(torch.randn(2, 5, 6))
        assert functional.scaled_dot_product_attention is before
        count = len(seen)
        functional.scaled_dot_product_attention(*torch.randn(3, 1, 1, 4, 4))
        assert len(seen) == count
    assert torch.overrides._get_current_function_mode() is None
    assert not [*module._forward_hooks, *module._forward_pre_hooks]
