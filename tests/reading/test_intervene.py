"""Temporary changes leave a model as it was."""

from contextlib import contextmanager, nullcontext, suppress
from itertools import product

import pytest
import timm
import torch
from torch import Tensor, nn

from vit_analysis.layers import Branch, Tap
from vit_analysis.reading.capture import Capture
from vit_analysis.reading.intervene import (
    Repeated,
    channels_last,
    edited,
    evaluating,
    true_branches,
    without_skips,
)
from vit_analysis.spelling import Refusal


class Caching(nn.Linear):
    """Keeps, while it does not train, what it makes of its weights: `train` is where that is made and dropped."""

    cached: torch.Tensor | None = None

    def train(self, mode: bool = True) -> "Caching":
        super().train(mode)
        self.cached = None if mode else self.weight.detach().clone()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight if self.cached is None else self.cached)


def test_a_mode_comes_back_through_train_so_that_what_depends_on_it_is_right():
    model = nn.Sequential(Caching(3, 3), nn.Dropout()).train()
    with evaluating(model):
        assert model[0].cached is not None
    with torch.no_grad():
        model[0].weight.add_(1)  # training goes on
    x = torch.randn(2, 3)
    torch.testing.assert_close(model.eval()(x), nn.functional.linear(x, model[0].weight))


@pytest.mark.parametrize("frozen", ["", "0", "1", "1.0"])
def test_every_module_gets_its_own_mode_back(frozen):
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(3), Caching(3, 3))).train()
    model.get_submodule(frozen).eval()
    before = {name: module.training for name, module in model.named_modules()}
    with pytest.raises(ZeroDivisionError), evaluating(model):
        _ = 1 / any(module.training for module in model.modules())
    assert {name: module.training for name, module in model.named_modules()} == before


def test_a_model_that_evaluates_is_not_touched():
    model = nn.Sequential(Caching(3, 3)).eval()
    cached = model[0].cached
    with evaluating(model):
        pass
    assert model[0].cached is cached


def test_a_tiny_vit_that_goes_on_training_is_what_its_weights_say():
    """timm's attention of LeViT and TinyViT keeps its biases of evaluation; training on must not leave the old ones."""
    torch.manual_seed(0)
    settings = {
        "embed_dims": (16, 16, 16, 16),
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 1, 1, 1),
        "num_classes": 3,
    }
    model = timm.create_model("tiny_vit_5m_224", **settings).train()
    x = torch.randn(1, 3, 224, 224)
    with evaluating(model), torch.no_grad():
        model(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    fresh = timm.create_model("tiny_vit_5m_224", **settings)
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), fresh.eval()(x))


# Skip connections ------------------------------------------------------------------------------------------------------------


class Passes(nn.Module):
    """Passes on what it is given first, as told."""

    def __init__(self, told=lambda x: x) -> None:
        super().__init__()
        self.told = told

    def forward(self, x: Tensor, *_: object):
        return self.told(x)


ADDING = {
    "a new tensor": lambda z, long: z + long,
    "into the branch": lambda z, long: long.add_(z),
    "into the stream": lambda z, long: z.add_(long),
}
PASSED = {"a tensor": lambda x: x, "a tuple": lambda x: (x, "weights"), "a list": lambda x: [x, None]}


class Unit(nn.Module):
    """One unit of a residual stream, in all ways in which it can be written."""

    def __init__(self, add: str = "a new tensor", passed: str = "a tensor", *, relu: bool = False) -> None:
        super().__init__()
        self.add, self.skip, self.f, self.long = (
            ADDING[add],
            Passes(),
            nn.Linear(3, 3),
            Passes(PASSED[passed]),
        )
        self.act = nn.ReLU() if relu else Passes()
        self.out = Passes(PASSED[passed])

    def forward(self, x: Tensor) -> Tensor:
        z = self.skip(x * 1)
        long = self.long(self.f(z))
        total = self.add(z, long if isinstance(long, Tensor) else long[0])
        out = self.out(self.act(total), 2)
        return out if isinstance(out, Tensor) else out[0]


class Net(nn.Module):
    def __init__(self, *units: nn.Module) -> None:
        super().__init__()
        self.units, self.given = nn.ModuleList(units), []

    def forward(self, x: Tensor) -> Tensor:
        self.given.append((x.clone(), torch.is_grad_enabled(), self.training))
        own = x * 1
        for unit in self.units:
            own = unit(own)
        x.zero_()  # a model may write into its input
        return own


def branch(number: int = 0, *, skip: str = "out", joined: str = "in", relu: bool = False) -> Branch:
    own = f"units.{number}"
    at = Tap(f"{own}.f", "in") if skip == "in" else Tap(f"{own}.skip")
    act = f"{own}.act" if relu else None
    return Branch(own, "unit", at, Tap(f"{own}.long"), Tap(f"{own}.out", joined), act)


def cut(net: Net, x: Tensor, without: set[int], *, relu: bool) -> Tensor:
    for number, unit in enumerate(net.units):
        total = unit.f(x) + (0 if number in without else x)
        x = total.relu() if relu else total
    return x


WAYS = [*product(ADDING, PASSED, ("in", "out"), ("in", "out"), (True, False))]


@pytest.mark.parametrize(("add", "passed", "skip", "joined", "relu"), WAYS[::5])
def test_without_its_skip_a_unit_passes_on_its_branch_however_it_is_written(add, passed, skip, joined, relu):
    net = Net(*(Unit(add, passed, relu=relu) for _ in range(3)))
    told = [branch(number, skip=skip, joined=joined, relu=relu) for number in range(3)]
    x, seen = torch.randn(4, 3), []
    seeing = net.units[1].out.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        for without in ({1}, {0, 2}):
            with without_skips(net, [told[number] for number in without]):
                for _ in range(2):
                    torch.testing.assert_close(net(x.clone()), cut(net, x, without, relu=relu))
            own = (
                seen[-1] if isinstance(seen[-1], Tensor) else seen[-1][0]
            )  # hooks that were there before see it
            torch.testing.assert_close(own, cut(Net(*net.units[:2]), x, without, relu=relu))
        torch.testing.assert_close(net(x.clone()), cut(net, x, set(), relu=relu))
    seeing.remove()
    assert not any([*own._forward_hooks, *own._forward_pre_hooks] for own in net.modules())


def test_of_several_that_a_module_passes_on_the_others_stay():
    net = Net(Unit(passed="a tuple"))
    with Capture(net, ["units.0.f"]) as run, without_skips(net, [branch(joined="out")]):
        out = []
        net.units[0].out.register_forward_hook(lambda _, __, value: out.append(value))
        run(torch.randn(2, 3))
    assert type(out[0]) is tuple
    assert out[0][1] == "weights"


class Scales(Unit):
    """Adds in another way."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.skip(x * 1)
        return self.out(z + 2 * self.long(self.f(z)))


class Never(Unit):
    """Never runs its branch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.skip(x))


class Late(Unit):
    """Never runs what its skip is read from."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.long(self.f(x)))


class Nothing(Unit):
    """Passes on something that is no tensor."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.skip(x)
        self.long("nothing")
        return self.out(z + self.f(z))


@pytest.mark.parametrize("odd", [Scales, Never, Late, Nothing])
def test_what_adds_in_another_way_is_refused_and_none_of_the_true_branches(odd):
    net = Net(Unit(), odd(), Unit("into the stream", relu=True)).train()
    told = [branch(0), branch(1), branch(2, relu=True)]
    images = torch.randn(5, 3)
    before = images.clone()
    assert true_branches(net, told, images) == [told[0], told[2]]
    ((given, grad, training),) = net.given
    assert torch.equal(given, before[:1])
    assert (grad, training, net.training) == (False, False, True)
    assert torch.equal(images, before)
    with (
        pytest.raises(
            Refusal, match=r"what goes on after 'units.1.long' is not z \+ f\(z\) with z from 'units.1.skip'"
        ),
        without_skips(net, [told[1]]),
    ):
        net(images.clone())
    assert not any([*own._forward_hooks, *own._forward_pre_hooks] for own in net.modules())
    with without_skips(net, [told[0]]):
        torch.testing.assert_close(net.units[0](before), net.units[0].f(before))


# Several runs of one model -------------------------------------------------------------------------------------------------


class Tape:
    """Says what it is asked for."""

    def __init__(self, said: list[object]) -> None:
        self.said, self.unchanged = said, True

    @contextmanager
    def recording(self):
        self.said.append("recording")
        yield

    @contextmanager
    def replaying(self, number: int):
        self.said.append(number)
        yield

    def clear(self) -> None:
        self.said.append("clear")


@pytest.mark.parametrize("taped", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_a_model_runs_under_each_change_on_the_same_images_and_records_are_given_up_after_it(taped, fails):
    net, said = Net(Unit()), []

    @contextmanager
    def shifted(model: nn.Module):
        with edited(model, {"units.0": lambda x: x + 1}):
            yield
        if fails:
            raise ZeroDivisionError

    repeated = Repeated(net, [nullcontext, lambda _: nullcontext(), shifted])
    assert not repeated.unchanged
    repeated.tape = Tape(said) if taped else None
    assert repeated.unchanged is taped
    if taped:
        repeated.tape.unchanged = False
        assert not repeated.unchanged
    x = torch.randn(2, 3)
    before = x.clone()
    with torch.no_grad(), pytest.raises(ZeroDivisionError) if fails else nullcontext():
        torch.testing.assert_close(repeated(x), cut(net, before, set(), relu=False) + 1)
    assert torch.equal(x, before)
    assert all(torch.equal(given, before) for given, *_ in net.given)
    assert len(net.given) == 3
    assert said == (["recording", 0, 1, "clear"] if taped else [])
    assert repeated._get_name() == "Net"


def test_kernels_alone_lie_in_another_order_and_their_own_memory_comes_back():
    model = nn.ModuleDict(
        {"conv": nn.Conv2d(3, 4, 2), "linear": nn.Linear(3, 4), "three": nn.Conv3d(3, 4, 2)}
    )
    before = {name: (own.data_ptr(), own.stride()) for name, own in model.named_parameters()}
    with suppress(ZeroDivisionError), channels_last(model):
        strides = {name: own.stride() for name, own in model.named_parameters()}
        raise ZeroDivisionError
    assert strides == {name: own for name, (_, own) in before.items()} | {"conv.weight": (12, 1, 6, 3)}
    assert {name: (own.data_ptr(), own.stride()) for name, own in model.named_parameters()} == before
