import numpy as np
import pytest
import torch
from doubles import Given, Layers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vit_analysis import models, tokens
from vit_analysis.images import Images, Preprocessing
from vit_analysis.layers import Anatomy, Grid
from vit_analysis.reading.stream import stream
from vit_analysis.spelling import Refusal
from vit_analysis.table import WITHOUT
from vit_analysis.tensors.tokens import MASSIVE

FEW = Images(limit=24, batch=8)
NAMES = (*tokens.MEANS, *tokens.SHARES)


def oracle(own: np.ndarray, first: np.ndarray | None, median: float) -> dict[str, float]:
    """The statistics of one image, pair by pair and singular value by singular value."""
    norms = np.linalg.norm(own, axis=1)
    unit = own / norms[:, None]
    count = len(own)
    pairs = [unit[i] @ unit[j] for i in range(count) for j in range(count) if i != j]
    widths = np.linalg.svd(own - own.mean(0), compute_uv=False)
    shares = widths[widths > 1e-12] / widths.sum()
    variances = widths**2
    magnitude = np.abs(own)
    enormous = (magnitude > 100) & (magnitude > 1000 * np.sort(magnitude.ravel())[(magnitude.size - 1) // 2])
    return {
        "norm": np.sort(norms)[(count - 1) // 2],  # torch's median is the lower one
        "largest": norms.max(),
        "patch_cosine": np.mean(pairs),
        "class_cosine": np.nan if first is None else np.mean(unit @ first / np.linalg.norm(first)),
        "effective_rank": np.exp(-(shares * np.log(shares)).sum()),
        "participation": variances.sum() ** 2 / (variances**2).sum(),
        "massive_tokens": (norms > MASSIVE * median).mean(),
        "massive_activations": enormous.any(1).mean(),
    }


@pytest.mark.parametrize("channels", [5, 40])  # fewer and more than tokens
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_every_statistic_is_that_of_an_oracle_that_shares_no_code(channels, scale):
    generator = np.random.default_rng(0)
    own = generator.normal(size=(3, 12, channels)).astype(np.float32)
    own[1, 4, 2] = 2e4 * scale  # a token of enormous value in one channel
    own[2, 7] *= 50 * scale
    first = generator.normal(size=(3, channels)).astype(np.float32)
    median = float(np.sort(np.linalg.norm(own, axis=2).ravel())[17])
    found = tokens.statistics(torch.from_numpy(own), torch.from_numpy(first))
    for image, row in enumerate(found.numpy()):
        expected = oracle(own[image].astype(float), first[image].astype(float), median)
        np.testing.assert_allclose(row, [expected[name] for name in NAMES], rtol=2e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(2, 9))
def test_a_rotation_of_channels_changes_no_norm_cosine_or_rank(seed, count, channels):
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(2, count, channels, generator=generator)
    turned = own @ torch.linalg.qr(torch.randn(channels, channels, generator=generator)).Q
    for one, other in zip(
        tokens.statistics(own, own[:, 0]).T, tokens.statistics(turned, turned[:, 0]).T, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_ranks_count_directions():
    own = torch.zeros(1, 8, 16)
    for place in range(4):  # four pairs of opposite tokens along four axes: mean 0
        own[0, 2 * place, place], own[0, 2 * place + 1, place] = 1, -1
    effective, participation = tokens.ranks(own)
    assert effective.item() == pytest.approx(4)
    assert participation.item() == pytest.approx(4)
    effective, participation = tokens.ranks(own[:, :2])
    assert effective.item() == pytest.approx(1)
    assert participation.item() == pytest.approx(1)


def test_equal_tokens_have_rank_one_and_cosine_one():
    own = torch.ones(2, 5, 7)
    found = dict(zip(NAMES, tokens.statistics(own, -own[:, 0])[0].tolist(), strict=True))
    assert found["patch_cosine"] == pytest.approx(1)
    assert found["class_cosine"] == pytest.approx(-1)
    assert found["effective_rank"] == found["participation"] == 1
    assert found["massive_tokens"] == found["massive_activations"] == 0


def test_an_activation_of_a_hundred_is_massive_only_a_thousand_times_above_the_median():
    own = torch.full((1, 10, 4), 0.05)
    own[0, 3, 1] = 99.0
    assert not tokens.massive_activations(own).any()
    own[0, 3, 1] = 101.0
    assert tokens.massive_activations(own).nonzero().tolist() == [[0, 3]]
    own += 0.06
    assert not tokens.massive_activations(own).any()


def test_a_token_that_is_nothing_has_the_cosine_0_with_all_others():
    own = torch.eye(3)[None, [0, 0, 1, 2]]
    own[0, 3] = 0
    found = tokens.statistics(own, own[:, 0])[0]
    assert found[tokens.MEANS.index("patch_cosine")].item() == pytest.approx(
        1 / 6
    )  # one pair of six is alike
    assert found[tokens.MEANS.index("class_cosine")].item() == pytest.approx(2 / 4)


def test_one_token_has_no_pair():
    assert tokens.statistics(torch.randn(2, 1, 4), None)[:, 2].isnan().all()


def test_a_table_has_a_row_for_each_block_and_intervals_inside_what_can_be():
    table = tokens.measure(["lab/vit", "lab/resnet@random"], FEW)
    assert table.groupby("model").size().to_dict() == {"lab/vit": 8, "lab/resnet@random": 8}
    for name in NAMES:
        assert {name, f"{name}_low", f"{name}_high", f"{name}{WITHOUT}"} <= set(table)
    vit = table[table["model"] == "lab/vit"]
    assert (vit[[name for name in vit if not name.endswith(WITHOUT)]].notna()).all().all()
    assert table.loc[table["model"] != "lab/vit", "class_cosine"].isna().all()  # a CNN has no class token
    for name in tokens.SHARES:
        assert table[f"{name}_low"].between(0, table[name]).all()
        assert table[f"{name}_high"].between(table[name], 1).all()
    assert (table["largest"] >= table["norm"]).all()
    assert table["patch_cosine"].between(-1, 1).all()


def test_what_the_hook_sums_is_what_the_block_passes_on():
    (model,) = models.load_all(["lab/vit"], device="cpu")
    table = tokens.measure(model, FEW, layers="blocks.3")
    batches = list(FEW.read([model.preprocessing]))
    seen: list[torch.Tensor] = []
    handle = model.module.blocks[3].register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        for batch in batches:
            model.module.eval()(batch.inputs[0])
    handle.remove()
    rows = torch.cat([tokens.statistics(one[:, 1:], one[:, 0]) for one in seen])
    np.testing.assert_allclose(table[list(NAMES)].to_numpy(float)[0], rows.mean(0), rtol=1e-6)


def test_halves_merge_to_the_whole():
    plan = tokens.plan("lab/vit@random", FEW)
    parts = [plan.fold(batch) for batch in stream(plan.reading)]
    one, two, three = parts
    for name, value in (one + (two + three)).tensors().items():
        torch.testing.assert_close(value, getattr((three + one) + two, name))


def test_layers_without_tokens_are_refused():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    own = models.own(module, "flat", preprocessing=Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3))
    with pytest.raises(Refusal, match="none of these layers has tokens"):
        tokens.measure(own, FEW, layers="1")


def test_massive_tokens_are_found_where_they_were_put():
    class Huge(nn.Module):
        """A patch embedding whose second token is a hundred times the others, from the second layer on."""

        def __init__(self):
            super().__init__()
            self.embed, self.first, self.second = nn.Conv2d(3, 8, 8, 8), nn.Identity(), nn.Identity()

        def forward(self, x):
            x = self.first(self.embed(x).flatten(2).mT)
            return self.second(x * torch.where(torch.arange(x.shape[1]) == 1, 100.0, 1.0)[:, None]).mean(1)

    own = models.own(
        Huge(),
        "huge",
        preprocessing=Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3),
        anatomy=Anatomy(prefix=0, class_token=False, grid=Grid(4, 4, 8.0, 8.0), reads="mean"),
    )
    table = tokens.measure(own, FEW, layers=["first", "second"]).set_index("layer")
    assert table.loc["second", "massive_tokens"] == pytest.approx(1 / 16, abs=1e-6)
    assert table.loc["first", "massive_tokens"] == 0


def test_massive_activations_of_an_image_do_not_depend_on_the_others():
    own = torch.randn(5, 9, 6) * torch.tensor([1.0, 40.0, 1e3, 1e-3, 1.0]).view(5, 1, 1)
    own[[0, 2, 3], [1, 4, 7], 2] = torch.tensor(
        [5e3, 5e6, 90.0]
    )  # the last is 90,000 times the median, and below 100
    found = tokens.massive_activations(own)
    assert found.nonzero().tolist() == [[0, 1], [2, 4]]
    assert torch.equal(found, torch.cat([tokens.massive_activations(one[None]) for one in own]))


def test_what_is_at_a_limit_is_not_massive():
    own = torch.full((1, 9, 4), 0.0625)
    own[0, 3, 1] = 100.0  # 1,600 times the median, and not above 100
    assert not tokens.massive_activations(own).any()
    own = torch.full((1, 9, 4), 0.25)
    own[0, 3, 1] = -250.0  # above 100, and 1,000 times the median to the bit
    assert not tokens.massive_activations(own).any()
    own[0, 3, 1] = -251.0
    assert tokens.massive_activations(own).nonzero().tolist() == [[0, 3]]


def of_layer(function, *, prefix: int = 0, class_token: bool = False):
    module = Layers(out=function)
    anatomy = Anatomy(prefix=prefix, class_token=class_token)
    known = models.own(module, "m", preprocessing=Preprocessing(), anatomy=anatomy)
    return lambda images: tokens.measure(known, images, layers="out")


def test_a_layer_of_one_token_has_no_pair_and_is_measured_all_the_same():
    table = of_layer(lambda x: x)(Given(batch=4, pixels=torch.randn(8, 1, 5)))
    assert np.isnan(table["patch_cosine"].item())
    assert table["norm"].item() == table["largest"].item() > 0
    assert table["effective_rank"].item() == 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_value_that_is_not_finite_is_refused_though_the_median_is_finite(value):
    pixels = torch.randn(8, 6, 5)
    pixels[6, 2, 1] = value
    with pytest.raises(Refusal, match="'out' of m has values that are not finite in batch 1"):
        of_layer(lambda x: x)(Given(batch=4, pixels=pixels))


def test_vectors_have_no_tokens_and_are_left_out_beside_what_has_some():
    module = Layers(flat=lambda x: x.mean(1), out=lambda x: x, map=lambda x: x.mT.unflatten(2, (2, 3)))
    known = models.own(
        module, "m", preprocessing=Preprocessing(), anatomy=Anatomy(prefix=0, class_token=False)
    )
    table = tokens.measure(known, Given(batch=4, pixels=torch.randn(8, 6, 5)), layers="*").set_index("layer")
    assert list(table.index) == ["out", "map"]
    for name in NAMES:  # positions of a map are tokens
        assert table.loc["map", name] == pytest.approx(table.loc["out", name], nan_ok=True), name


@pytest.mark.parametrize("prefix", [1, 3])
def test_the_class_token_is_the_first_and_no_spatial_one(prefix):
    pixels = torch.randn(8, prefix + 6, 5)
    table = of_layer(lambda x: x, prefix=prefix, class_token=True)(Given(batch=4, pixels=pixels))
    near = torch.cosine_similarity(pixels[:, :1], pixels[:, prefix:], dim=-1).mean()
    assert table["class_cosine"].item() == pytest.approx(float(near), abs=1e-6)
    assert table["largest"].item() == pytest.approx(
        float(pixels[:, prefix:].norm(dim=-1).amax(1).mean()), rel=1e-5
    )
