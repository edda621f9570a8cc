"""Lesions that resume are lesions that run the whole model anew: the same table to the last bit, whatever the network."""

from collections import Counter
from dataclasses import replace

import networks
import pandas as pd
import pytest
import timm
import torch
import torchvision
from doubles import Given
from torch import Tensor, nn

from vit_analysis import lesions, models
from vit_analysis.lab.vit import ViT
from vit_analysis.layers import Anatomy, Block
from vit_analysis.models import Model
from vit_analysis.reading import replay
from vit_analysis.reading.measure import Measurement
from vit_analysis.reading.replay import mapped
from vit_analysis.spelling import Refusal

KIND = Block(("norm1", "mix", "norm2"), mixing=("mix",), hidden=("mlp",), mixing_added=("mix",))
OWN = {"img_size": 16, "patch_size": 4, "num_classes": 5, "embed_dim": 16, "depth": 3, "num_heads": 2}


class Part(nn.Module):
    """A block of nobody's network: what it mixes and what it does to each token."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.mix, self.norm2 = nn.LayerNorm(12), nn.Linear(12, 12), nn.LayerNorm(12)
        self.mlp = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Writes(Part):
    """The same block, which writes into what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        x += self.mix(self.norm1(x))
        x += self.mlp(self.norm2(x))
        return x


class Remembers(Part):
    """Adds to a sum that all blocks share, and reads it: what passes between blocks is more than what they return."""

    def __init__(self, shared: dict[str, Tensor]) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm1(x) + self.shared["sum"])
        x = x + self.mlp(self.norm2(x))
        self.shared["sum"] = self.shared["sum"] + x.mean()
        return x


class Network(nn.Module):
    """Blocks in a row, with glue in between: a skip from the stem, and one across, as in a U."""

    def __init__(self, *blocks: nn.Module, across: bool = False, noise: bool = False) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Conv2d(3, 12, 8, 8), nn.ModuleList(blocks), nn.Linear(12, 5)
        self.across, self.noise = across, noise
        self.shared: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.shared["sum"] = torch.zeros(())
        stem = x = self.stem(x).flatten(2).mT
        before = []
        for block in self.blocks:
            if self.across and len(before) * 2 >= len(self.blocks):
                x = x + before[len(self.blocks) - 1 - len(before)]
            x = block(x + 0.1 * stem)
            before.append(x)
        if self.noise:
            x = x + torch.randn_like(x)
        return self.head(x.mean(1))


def own(block: type[Part] = Part, count: int = 4, **more: bool) -> Model:
    torch.manual_seed(0)
    network = Network(**more)
    made = [Remembers(network.shared) if block is Remembers else block() for _ in range(count)]
    network.blocks.extend(made)
    anatomy = Anatomy(kinds=(KIND,), blocks=tuple(f"blocks.{number}" for number in range(count)))
    loaded = models.own(network.eval(), "m", anatomy=anatomy)
    return replace(loaded, preprocessing=replace(loaded.preprocessing, input_size=(3, 32, 32)))


def of(name: str, size: int = 64, **config: object) -> Model:
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=5, **config).eval()
    loaded = models.named({"m": module})["m"]
    return replace(loaded, preprocessing=replace(loaded.preprocessing, input_size=(3, size, size)))


def planned(model: Model, size: int, **more: int) -> Measurement:
    torch.manual_seed(1)
    return lesions.plan(model, Given(batch=4, pixels=torch.randn(8, 3, size, size), **more))


def tape(plan: Measurement) -> replay.Tape | None:
    (repeated,) = plan.reading.models.values()
    return repeated.module.tape


def assert_same(model: Model, size: int) -> bool:
    """Compare with running anew; return whether the model resumed."""
    resumed, anew = planned(model, size), replace(planned(model, size), prepare=lambda: None)
    table = resumed.table()
    assert tape(anew) is None
    pd.testing.assert_frame_equal(table, anew.table(), check_exact=True)
    return tape(resumed) is not None


SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 2), "num_heads": (2, 4)}
FAMILIES = {
    "lab": lambda: (models.named({"m": ViT(**OWN)})["m"], 16),
    "vit": lambda: (models.named({"m": networks.timm_vit(depth=3)})["m"], 32),
    "layer scale": lambda: (models.named({"m": networks.timm_vit(depth=3, init_values=0.1)})["m"], 32),
    "torchvision vit": lambda: (models.named({"m": networks.torchvision_vit(3)})["m"], 32),
    "transformers vit": lambda: (models.named({"m": networks.transformers_vit()})["m"], 32),
    "swin": lambda: (of("swin_tiny_patch4_window7_224", 32, **SWIN), 32),
    "resnet18": lambda: (of("resnet18"), 64),
    "resnet26": lambda: (of("resnet26"), 64),
    "torchvision resnet": lambda: (models.named({"m": torchvision.models.resnet18()})["m"], 64),
    "convnext": lambda: (of("convnext_atto"), 64),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_resume_and_nothing_changes(family):
    assert assert_same(*FAMILIES[family]())


@pytest.mark.parametrize(
    ("network", "resumes"),
    [
        (lambda: own(), True),
        (lambda: own(Writes), True),
        (lambda: own(across=True), True),
        (lambda: own(Remembers), False),
    ],
    ids=["a skip from the stem", "blocks that write into their input", "skips across", "a shared sum"],
)
def test_what_is_nobodys_resumes_where_that_is_exact_and_runs_anew_where_not(network, resumes):
    assert assert_same(network(), 32) is resumes


def test_a_network_that_draws_numbers_runs_anew():
    plan = planned(own(noise=True), 32)
    plan.prepare()
    assert tape(plan) is None


def test_blocks_that_run_twice_have_no_before_and_after():
    model = own(count=2)
    model.module.blocks.append(model.module.blocks[0])
    with pytest.raises(Refusal, match=r"'blocks\.0' of m runs several times for an image"):
        planned(model, 32).table()


def runs(plan: Measurement, pixels: Tensor) -> Counter[str]:
    """How often each module that computes runs in one batch."""
    (repeated,) = plan.reading.models.values()
    count: Counter[str] = Counter()
    hooks = [
        module.register_forward_hook(lambda *_, path=path: count.update([path]))
        for path, module in repeated.module.model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    with torch.no_grad():
        repeated.module(pixels)
    for hook in hooks:
        hook.remove()
    return count


def test_what_is_below_a_change_runs_once_for_all_lesions():
    plan = planned(models.named({"m": networks.timm_vit(depth=4)})["m"], 32)
    plan.prepare()
    count = runs(plan, torch.randn(2, 3, 32, 32))
    assert [count[f"blocks.{number}.attn.qkv"] for number in range(4)] == [1, 2, 3, 4]
    assert [count[f"blocks.{number}.mlp.fc1"] for number in range(4)] == [2, 3, 4, 5]
    assert (count["patch_embed.proj"], count["head"]) == (1, 5)
    plan = planned(of("resnet18"), 64)
    plan.prepare()
    (repeated,) = plan.reading.models.values()
    inner = nn.Sequential(repeated.module.model.layer1[0].conv1)
    ran: list[int] = []
    inner[0].forward = lambda x, own=inner[0].forward: ran.append(1) or own(x)
    with torch.no_grad():
        repeated.module(torch.randn(2, 3, 64, 64))
    assert len(ran) == 1


@pytest.mark.parametrize("most", [0, 60_000, 200_000])
def test_records_are_bounded_and_what_is_beyond_runs_again(most, monkeypatch):
    monkeypatch.setattr(replay, "MOST", most)
    model, pixels = models.named({"m": networks.timm_vit(depth=4)})["m"], torch.randn(2, 3, 32, 32)
    assert assert_same(model, 32)
    plan = planned(model, 32)
    plan.prepare()
    counted = runs(plan, pixels)["blocks.0.attn.qkv"]
    assert counted == (5 if most == 0 else 1)


def test_a_model_is_left_as_it_was():
    model = own()
    before = {module: dict(vars(module)) for module in model.module.modules()}
    model.module.blocks[1].forward = model.module.blocks[1].forward  # as wrappers leave it
    mine = model.module.blocks[1].forward
    planned(model, 32).table()
    assert model.module.blocks[1].forward is mine
    for module, own_attributes in before.items():
        assert {name for name in vars(module) if name != "forward"} == set(own_attributes)


def test_records_are_of_known_containers_alone():
    one, other = torch.zeros(2), torch.ones(2)
    assert mapped({"a": [one, None, (other, 3)]}, lambda own: own.sum()) == {"a": [0, None, (2, 3)]}
    with pytest.raises(TypeError, match="what a object holds is not known"):
        mapped([object()], torch.clone)


def test_another_way_the_second_time_is_refused():
    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.calls = nn.Linear(2, 2), nn.Linear(2, 2), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.b(self.a(x) if self.calls == 1 else x)

    network = Once()
    recorded = replay.Tape(network, [network.a, network.b], [replay.Place(network.b)])
    with torch.no_grad():
        with recorded.recording():
            network(torch.ones(1, 2))
        with (
            pytest.raises(Refusal, match="does not run the same modules again on the same images"),
            recorded.replaying(0),
        ):
            network(torch.ones(1, 2))
