from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from doubles import Given, Layers, cell, oracle_cka, u_centred
from torch import nn

from vit_analysis import cka, models
from vit_analysis.cka import View
from vit_analysis.images import Images
from vit_analysis.reading import intervals, measure
from vit_analysis.reading.capture import Capture
from vit_analysis.spelling import Refusal
from vit_analysis.study.controls import VIEWS
from vit_analysis.tensors import grams, measures, similarity
from vit_analysis.tensors.tokens import SELECTIONS, Layout

FEATURES = 192  # 3 x 8 x 8


def pair(change=lambda x: x, offset: float = 0.0) -> Layers:
    """Two layers of a common source: true CKA 0.6^2 = 0.360. The input holds both sources, side by side."""

    def x(both: torch.Tensor) -> torch.Tensor:
        return change(both[:, 0].flatten(1) + offset)

    def y(both: torch.Tensor) -> torch.Tensor:
        return 0.6 * both[:, 0].flatten(1) + 0.8 * both[:, 1].flatten(1)

    return Layers(x=x, y=y, independent=lambda both: both[:, 1].flatten(1))


@pytest.fixture(scope="module")
def gaussian() -> Given:
    torch.manual_seed(7)
    return Given(batch=128, pixels=torch.randn(2560, 2, 3, 8, 8))


def measured(module: nn.Module, images: Images, **kwargs):
    return cka.measure({"m": module}, images, layers=["x", "y", "independent"], **kwargs)


def test_the_truth_is_within_the_interval_and_the_interval_is_narrow(gaussian):
    table = measured(pair(), gaussian)
    low, value, high = (cell(table, "x", "y", column) for column in ("low", "cka", "high"))
    assert low < 0.360 < high
    assert high - low < 0.02
    assert abs(value - 0.360) < 0.005


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(pair(offset=10), id="mean offset of 10 sigma"),
        pytest.param(pair(offset=100), id="mean offset of 100 sigma"),
        pytest.param(pair(lambda x: 1e-6 * x), id="scale 1e-6"),
        pytest.param(pair(lambda x: 1e6 * x), id="scale 1e6"),
        pytest.param(pair(lambda x: x.bfloat16()), id="bf16"),
        pytest.param(pair(lambda x: (30 * x).half()), id="fp16 x 30"),
        pytest.param(pair(lambda x: (x + 10).bfloat16(), 0), id="bf16 with an offset of 10 sigma"),
    ],
)
def test_offset_scale_and_half_precision_do_not_move_it(gaussian, wrong):
    plain, changed = measured(pair(), gaussian), measured(wrong, gaussian)
    assert cell(changed, "x", "y") == pytest.approx(cell(plain, "x", "y"), abs=1e-3)


def test_independent_layers_are_within_their_interval_of_zero(gaussian):
    table = measured(pair(), gaussian)
    assert cell(table, "x", "independent", "low") < 0 < cell(table, "x", "independent", "high")
    assert abs(cell(table, "x", "independent")) < 0.005


@pytest.mark.parametrize("batch", [16, 64, 500, 1024])
def test_the_size_of_batches_hardly_matters(gaussian, batch):
    # The biased estimator reads 0.95 at 16 and 0.46 at 1024.
    images = Given(batch=batch, pixels=gaussian.pixels)
    assert cell(measured(pair(), images), "x", "y") == pytest.approx(0.360, abs=0.01)


def test_permuted_images_are_not_similar(gaussian):
    shuffled = Layers(
        x=lambda both: both[:, 0].flatten(1), y=lambda both: both[torch.randperm(len(both)), 0].flatten(1)
    )
    table = cka.measure({"m": shuffled}, gaussian, layers=["x", "y"])
    assert abs(cell(table, "x", "y")) < 0.02


def test_order_within_a_batch_does_not_matter(gaussian):
    order = torch.cat([start + torch.randperm(64) for start in range(0, 2560, 64)])
    shuffled, plain = (Given(batch=64, pixels=pixels) for pixels in (gaussian.pixels[order], gaussian.pixels))
    assert cell(measured(pair(), shuffled), "x", "y") == pytest.approx(
        cell(measured(pair(), plain), "x", "y"), abs=1e-6
    )


# Parts of batches ------------------------------------------------------------------------------------------------------


@pytest.fixture
def _parts_of_80(monkeypatch):
    monkeypatch.setattr(grams, "PART", 80)


def correlated(images: int) -> torch.Tensor:
    """Features with an offset, far fewer than images."""
    return (torch.randn(images, 6) @ torch.randn(6, 2 * 3 * 4 * 4) + 2).view(images, 2, 3, 4, 4)


@pytest.mark.usefixtures("_parts_of_80")
@pytest.mark.parametrize(("images", "batch"), [(320, 160), (297, 160), (421, 200), (137, 512)])
def test_similarities_are_of_the_parts_of_batches_by_the_three_term_formula(images, batch):
    pixels, module = correlated(images), pair(torch.relu)
    table = measured(module, Given(batch=batch, pixels=pixels))
    parts = [part for whole in pixels.split(batch) for part in whole.split(grams.sizes(len(whole)))]
    assert len(parts) > -(-images // batch)
    assert sum(map(len, parts)) == images
    for row in table.itertuples():
        x, y = ([module.functions[name](part) for part in parts] for name in (row.layer, row.other_layer))
        assert row.cka == pytest.approx(oracle_cka(x, y), abs=1e-6)


@pytest.mark.usefixtures("_parts_of_80")
@pytest.mark.parametrize("view", [View(), View("normalized"), View(measure="rank_cka"), View(given="pixels")])
def test_parts_of_a_batch_are_what_batches_of_their_size_are(view):
    pixels, views = correlated(480), {"one": view}
    one, other = (
        measure.total(
            {
                "": cka.plan_controls(
                    {"m": pair()}, Given(batch=batch, pixels=pixels), views, layers=["x", "y"]
                )
            }
        )[""]
        for batch in (160, 80)
    )
    torch.testing.assert_close(one.total.hsic, other.total.hsic, rtol=1e-5, atol=0)
    assert one.images.sum() == other.images.sum() == 480
    assert (len(one.held), len(other.held)) == (3, 6)  # groups are of whole batches


@pytest.mark.usefixtures("_parts_of_80")
@pytest.mark.parametrize("view", [View(measure="mutual_knn"), View(measure="biased"), View("typical")])
def test_what_depends_on_the_number_of_images_is_of_the_whole_batch(view):
    module, images = pair(torch.relu), Given(batch=160, pixels=correlated(160))
    table = cka.plan_controls({"m": module}, images, {"one": view}, layers=["x", "y"]).table()
    rows = [module.functions[name](images.pixels) for name in "xy"]
    chosen = [SELECTIONS[view.tokens](own, Layout()) for own in rows]
    x, y = (cka.VECTORS[view.measure](similarity.gram(own)).double() for own in chosen)
    assert len(x) >= 160 * 159 / 2
    assert cell(table, "x", "y") == pytest.approx(float(x @ y / (x.norm() * y.norm())), abs=1e-5)


@pytest.mark.usefixtures("_parts_of_80")
def test_only_parts_are_made_unless_somebody_needs_the_whole(monkeypatch):
    made, own = [], {"mine": Layers(x=lambda pixels: pixels)}
    gram = similarity.gram
    monkeypatch.setattr(similarity, "gram", lambda x: made.append(len(x)) or gram(x))
    images = Given(batch=160, pixels=torch.randn(160, 5, 8))
    plain = cka.plan(own, images, layers="x")
    alone = plain.table()
    assert made == [80, 80]
    made.clear()
    whole = cka.plan_controls(own, images, {"near": View(measure="mutual_knn"), "all": View()}, layers="x")
    together = measure.tables({"plain": plain, "whole": whole})  # whoever needs the whole is asked first
    assert made == [160]
    np.testing.assert_allclose(together["plain"]["cka"], alone["cka"], atol=1e-6)


@pytest.mark.usefixtures("_parts_of_80")
def test_massive_tokens_are_watched_in_a_quarter_of_a_large_batch():
    shares = []
    for batch in (160, 640):
        pixels = torch.randn(640, 9, 16)
        pixels[::2, 4] *= 100
        plan = cka.plan({"m": Layers(x=lambda x: x)}, Given(batch=batch, pixels=pixels), layers="x")
        sums = measure.total({"": plan})[""]
        assert 0.2 * 640 * 9 <= float(sums.massive[0, 0]) <= 0.4 * 640 * 9
        shares.append(cka.massive_shares(sums).iloc[0])
    for share in shares:
        assert share["tokens"] == pytest.approx(1 / 18)
        assert share["hsic"] > 0.9


def test_every_pair_within_and_across_is_the_three_term_formula():
    # An incomplete last batch, correlated features with an offset, two models.
    pixels = (torch.randn(42, 6) @ torch.randn(6, 2 * 3 * 4 * 4) + 2).view(42, 2, 3, 4, 4)
    images = Given(batch=16, pixels=pixels)
    one, other = (
        pair(torch.relu),
        Layers(z=lambda x: x[:, 1].square().flatten(1), u=lambda x: x.flatten(1)[:, :5]),
    )
    table = cka.measure({"a": one, "b": other}, images, layers=["x", "y", "z", "u"])
    layers = {**one.functions, **other.functions}
    batches = pixels.split(16)
    assert len(table) == 16
    for row in table.itertuples():
        expected = oracle_cka(
            *([layers[name](batch) for batch in batches] for name in (row.layer, row.other_layer))
        )
        assert row.cka == pytest.approx(expected, abs=1e-6)


def test_rows_carry_the_layer_that_was_read_in_order_of_execution():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.third, self.second, self.first = nn.Linear(8, 8), nn.ReLU(), nn.Linear(12, 8)

        def forward(self, x):
            return self.third(self.second(self.first(x.flatten(1))))

    images = Given(batch=20, pixels=torch.randn(20, 12))
    table = cka.measure({"m": Backwards()}, images, layers="*")
    assert list(dict.fromkeys(table["layer"])) == ["first", "second", "third"]
    assert table["depth"].iloc[::3].tolist() == [0.0, 0.5, 1.0]
    assert cell(table, "third", "third") == pytest.approx(1)
    assert table["cka"].to_numpy().reshape(3, 3) == pytest.approx(
        table["cka"].to_numpy().reshape(3, 3).T, abs=1e-12
    )


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_batchnorm_layers_are_read_before_they_are_overwritten(name):
    # Hooks that keep a reference read what the in-place ReLU and `x += shortcut` left.
    module = timm.create_model(name, zero_init_last=False).eval()
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.bias, std=0.5)
    images = Given(batch=16, pixels=torch.randn(16, 3, 64, 64))
    taps = [tap for tap, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)][:12]
    table = cka.measure({"m": module}, images, layers=taps)
    with Capture(module, taps) as run, torch.inference_mode():
        kept = run(images.pixels)
    for layer, other in pairwise(taps):
        assert cell(table, layer, other) == pytest.approx(oracle_cka([kept[layer]], [kept[other]]), abs=1e-5)


@pytest.mark.parametrize("rest", [1, 2, 3])
def test_a_last_batch_too_small_is_left_out_with_one_warning(gaussian, caplog, rest):
    images = Given(batch=64, pixels=gaussian.pixels[: 256 + rest])
    table = measured(pair(), images)
    whole = measured(pair(), Given(batch=64, pixels=gaussian.pixels[:256]))
    np.testing.assert_array_equal(table["cka"], whole["cka"])
    assert caplog.text.count("fewer than 4 images and is left out") == 1


def test_too_few_images_altogether_are_an_error():
    with pytest.raises(Refusal, match="none of the 1 batches could be used: 3 images in batches of"):
        measured(pair(), Given(batch=64, pixels=torch.randn(3, 2, 3, 8, 8)))


def test_a_constant_layer_is_undefined_and_named(gaussian, caplog):
    module = Layers(x=lambda both: both[:, 0].flatten(1), flat=lambda both: torch.full((len(both), 5), 7.3))
    table = cka.measure({"m": module}, gaussian, layers=["x", "flat"])
    assert np.isnan(cell(table, "x", "flat"))
    assert np.isnan(cell(table, "flat", "flat"))
    assert cell(table, "x", "x") == pytest.approx(1)
    assert "constant over all images, so its CKA is undefined (NaN): flat of m" in caplog.text


def test_a_value_that_is_not_finite_names_model_layer_and_batch(gaussian):
    third = gaussian.pixels[2 * gaussian.batch, 0].flatten()

    def spoilt(both):
        own = both[:, 0].flatten(1)
        return own / (0 if torch.equal(own[0], third) else 1)

    with pytest.raises(Refusal, match="'y' of m has values that are not finite in batch 2"):
        cka.measure({"m": Layers(x=lambda both: both[:, 0], y=spoilt)}, gaussian, layers=["x", "y"])


def test_massive_tokens_are_counted_and_named_and_the_robust_variants_see_past_them(caplog):
    torch.manual_seed(1)
    base = torch.randn(320, 12, 16)

    def massive(x):
        x = x.clone()
        x[torch.arange(0, len(x), 16), 5, 0] = 1000.0  # one token of one image in sixteen, in one channel
        return x

    module = Layers(x=lambda x: x, spoilt=massive, again=lambda x: massive(torch.randn_like(x)))
    images = Given(batch=64, pixels=base)
    table = cka.measure({"m": module}, images, layers=["x", "spoilt", "again"])
    assert cell(table, "x", "spoilt") < 0.05  # the same features but for 0.5 % of tokens
    assert cell(table, "spoilt", "again") > 0.95  # nothing in common but where the massive tokens are
    assert "m: massive tokens, 0.5 % of all, make up" in caplog.text
    shares = {row["layer"]: row for row in table.attrs["massive"]}
    assert shares["spoilt"]["tokens"] == pytest.approx(1 / 16 / 12)
    assert shares["spoilt"]["hsic"] > 0.99
    assert shares["x"] == {"model": "m", "layer": "x", "tokens": 0.0, "hsic": 0.0}
    for tokens in ("normalized", "standardized", "inliers"):
        robust = cka.measure({"m": module}, images, layers=["x", "spoilt", "again"], tokens=tokens)
        assert cell(robust, "x", "spoilt") > 0.95
        assert abs(cell(robust, "spoilt", "again")) < 0.05


def test_the_robustness_table_holds_the_mean_off_diagonal_of_each_estimator():
    images = Given(batch=64, pixels=torch.randn(256, 6, 8))
    module = Layers(x=lambda x: x, y=lambda x: x.square(), z=lambda x: x.exp())
    robust = cka.robustness({"m": module}, images, layers=["x", "y", "z"])
    assert robust["tokens"].tolist() == list(cka.ROBUST)
    for row in robust.itertuples():
        table = cka.measure({"m": module}, images, layers=["x", "y", "z"], tokens=row.tokens)
        different = table[table["layer"] != table["other_layer"]]
        assert row.cka == pytest.approx(different["cka"].mean(), abs=1e-12)
        assert row.low < row.cka < row.high


def test_tokens_choose_what_of_a_token_layer_is_compared():
    module = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1).eval()
    images = Given(batch=32, pixels=torch.randn(32, 3, 32, 32))
    taps = ["patch_embed", "blocks.0.attn", "blocks.0"]
    with Capture(module, taps) as run, torch.inference_mode():
        kept = run(images.pixels)
    chosen = {
        "all": lambda x: x,
        "spatial": lambda x: x[:, -4:],
        "mean": lambda x: x.mean(1),
        "normalized": lambda x: x / x.norm(dim=-1, keepdim=True),
    }
    for tokens, choose in chosen.items():
        table = cka.measure({"m": module}, images, layers=taps, tokens=tokens)
        expected = oracle_cka([choose(kept["blocks.0.attn"])], [choose(kept["blocks.0"])])
        assert cell(table, "blocks.0.attn", "blocks.0") == pytest.approx(expected, abs=1e-5)
    table = cka.measure({"m": module}, images, layers=taps, tokens="cls")
    assert set(table["layer"]) == {
        "blocks.0.attn",
        "blocks.0",
    }  # there is no class token in a patch embedding
    expected = oracle_cka([kept["blocks.0.attn"][:, 0]], [kept["blocks.0"][:, 0]])
    assert cell(table, "blocks.0.attn", "blocks.0") == pytest.approx(expected, abs=1e-5)


def test_a_class_token_that_no_layer_has_is_an_error():
    module = timm.create_model(
        "vit_base_patch16_siglip_gap_224", img_size=32, depth=1, embed_dim=32, num_heads=2
    ).eval()
    with pytest.raises(Refusal, match="no chosen layer has what --tokens asks for"):
        cka.measure(
            {"m": module}, Given(batch=8, pixels=torch.randn(8, 3, 32, 32)), layers="blocks.*", tokens="cls"
        )


def test_misspelt_layers_bring_the_nearest_right_ones(gaussian):
    with pytest.raises(Refusal, match="matches 'xx'; did you mean 'x'"):
        cka.measure({"m": pair()}, gaussian, layers="xx")


def test_the_untrained_lab_pair_in_one_pass_with_provenance():
    loaded = [models.load(name, device="cpu") for name in ("lab/vit@random", "lab/resnet@random")]
    table = cka.measure(loaded, Images(limit=48, batch=16), layers="blocks")
    assert list(table.columns) == [
        *("model", "layer", "depth", "other_model", "other_layer", "other_depth"),
        *("measure", "cka", "low", "high", "cka_without"),
    ]  # fmt: skip
    assert set(table["model"]) == set(table["other_model"]) == {"lab/vit@random", "lab/resnet@random"}
    assert len(table) == (8 + 8) ** 2
    assert table.attrs["models"] == {model.name: model.digest for model in loaded}
    assert table.attrs["images"]["count"] == 48
    alone = cka.measure(loaded[:1], Images(limit=48, batch=16), layers="blocks")
    inside = table[(table["model"] == loaded[0].name) & (table["other_model"] == loaded[0].name)]
    np.testing.assert_allclose(alone["cka"], inside["cka"], rtol=1e-10)


def test_a_killed_run_goes_on_and_another_selection_of_tokens_does_not_pick_it_up(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "SAVE_EVERY", 0.0)
    images = Given(batch=16, pixels=torch.randn(64, 6, 8))
    calls = []

    def function(x):
        if len(x) == images.batch:  # smaller ones only tell the axis of images
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
        return x.square()

    module = Layers(x=lambda x: x, y=function)
    with pytest.raises(KeyboardInterrupt):
        cka.measure({"m": module}, images, layers=["x", "y"], state=tmp_path / "run")
    assert len(list(tmp_path.iterdir())) == 1
    normalized = cka.measure(
        {"m": module}, images, layers=["x", "y"], tokens="normalized", state=tmp_path / "run"
    )
    assert len(calls) == 3 + 4
    resumed = cka.measure({"m": module}, images, layers=["x", "y"], state=tmp_path / "run")
    assert len(calls) == 3 + 4 + 2
    fresh = cka.measure({"m": module}, images, layers=["x", "y"])
    np.testing.assert_array_equal(resumed["cka"], fresh["cka"])
    np.testing.assert_array_equal(resumed["low"], fresh["low"])
    assert cell(normalized, "x", "y") != cell(fresh, "x", "y")
    assert list(tmp_path.iterdir()) == []


def test_replicates_in_the_table_give_its_intervals():
    images = Given(batch=16, pixels=torch.randn(160, 6, 8))
    own = {"mine": Layers(a=lambda x: x, b=lambda x: 2 * x + torch.randn_like(x))}
    table = cka.measure(own, images, layers=["a", "b"])
    assert np.stack(table["cka_without"]).shape == (4, 10)
    found = intervals.of_table(lambda rows: torch.tensor(rows["cka"].to_numpy(float)), table)
    np.testing.assert_array_equal(found.value, table["cka"])
    np.testing.assert_allclose(found.low, table["low"], atol=1e-5)
    np.testing.assert_allclose(found.high, table["high"], atol=1e-5)
    assert (found.high - found.low)[1] > 0.01


def test_controls_are_what_their_names_say():
    # x and y share half of their variance; images 0 and 16 are dominant in both.
    shared, dominant = torch.randn(128, 6, 8), torch.zeros(128, 1, 1)
    dominant[::64] = 60.0
    own = {"mine": Layers(x=lambda pixels: pixels, y=lambda pixels: pixels.flip(1) + pixels)}
    images = Given(batch=64, pixels=shared + dominant * torch.randn(1, 1, 8))
    table = cka.plan_controls(own, images, VIEWS, layers=["x", "y"]).table()
    assert list(table["control"].unique()) == list(VIEWS)
    found = {name: cell(rows, "x", "y") for name, rows in table.groupby("control")}
    pd.testing.assert_series_equal(
        table.loc[table["control"] == "all", "cka"], cka.measure(own, images, layers=["x", "y"])["cka"]
    )
    assert abs(found["shuffled"]) < 0.05
    assert found["all"] > 0.99 > found["typical"] > 0.2
    assert cell(table[table["control"] == "shuffled"], "x", "x") == pytest.approx(1)


def test_a_table_of_some_controls_holds_those_in_their_order_and_what_all_together_do():
    own = {"mine": Layers(x=lambda pixels: pixels, y=lambda pixels: pixels.relu())}
    images = Given(batch=24, pixels=torch.randn(48, 5, 8))
    every = cka.plan_controls(own, images, VIEWS, layers=["x", "y"])
    some = cka.plan_controls(
        own, images, {name: VIEWS[name] for name in ("shuffled", "all")}, layers=["x", "y"]
    )
    assert some.key() != every.key()
    table, whole = some.table(), every.table()
    assert table["control"].tolist() == ["shuffled"] * 4 + ["all"] * 4
    rows = pd.concat([whole[whole["control"] == control] for control in ("shuffled", "all")])
    pd.testing.assert_frame_equal(table, rows.reset_index(drop=True))


def test_a_control_that_is_none_is_refused_with_the_nearest_right_ones(gaussian):
    with pytest.raises(Refusal, match="no tokens 'normalised'; did you mean 'normalized'"):
        cka.plan_controls({"m": pair()}, gaussian, {"one": View(), "other": View("normalised")}, layers="*")
    with pytest.raises(Refusal, match="no measure 'rank'; did you mean 'rank_cka'"):
        cka.plan_controls({"m": pair()}, gaussian, {"one": View(measure="rank")}, layers="*")


def test_the_biased_control_is_the_formula_of_the_paper():
    own = {"mine": Layers(x=lambda pixels: pixels, y=lambda pixels: pixels.relu())}
    images = Given(batch=24, pixels=3 + torch.randn(24, 5, 8))
    table = cka.plan_controls(own, images, VIEWS, layers=["x", "y"]).table()
    x = images.pixels.double().flatten(1).numpy()
    centring = np.eye(24) - 1 / 24
    k, l = (centring @ (rows @ rows.T) @ centring for rows in (x, x.clip(0)))
    expected = (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())
    assert cell(table[table["control"] == "biased"], "x", "y") == pytest.approx(expected, abs=1e-6)
    assert expected > cell(table[table["control"] == "all"], "x", "y")


def test_a_table_of_some_pairs_of_models_holds_what_the_whole_table_does():
    images = Given(batch=16, pixels=torch.randn(64, 6, 8))
    own = {
        "one": Layers(a=lambda x: x, b=torch.relu),
        "other": Layers(a=torch.sin),
        "third": Layers(a=torch.cos),
    }
    whole = cka.measure(own, images, layers="*")
    plan = cka.plan(own, images, layers="*", pairs=[("one", "one"), ("one", "third")])
    assert len({plan.key(), cka.plan(own, images, layers="*").key()}) == 2  # another table is not read for it
    assert plan.key() != cka.plan(own, images, layers="*", pairs=[("one", "one")]).key()
    some = plan.table()
    rows = (whole["model"] == "one") & whole["other_model"].isin(["one", "third"])
    pd.testing.assert_frame_equal(some, whole[rows].reset_index(drop=True))


def test_models_may_run_in_half_precision_and_gram_matrices_do_not():
    both = [models.load("lab/vit", device="cpu"), models.load("lab/resnet", device="cpu")]
    images = Images(limit=128, batch=32)
    whole = cka.measure(both, images, layers="blocks")["cka"]
    with torch.autocast("cpu", torch.bfloat16):
        half = cka.measure(both, images, layers="blocks")["cka"]
    assert 0 < (half - whole).abs().max() < 0.01


def test_measurements_of_one_pass_share_their_products(monkeypatch):
    made = []
    monkeypatch.setattr(
        similarity, "_gram", lambda x, gram=similarity._gram: made.append(x.shape[1]) or gram(x)
    )
    vit, images = models.load("lab/vit@random", device="cpu"), Images(limit=16, batch=16)
    measure.tables(
        {
            "cka": cka.plan([vit], images, layers="blocks"),
            "controls": cka.plan_controls([vit], images, VIEWS),
        }
    )
    whole, width, blocks = 65 * 96, 96, 8
    # One of everything for both, one of the class token, and normalised tokens in pieces that add up to everything: second
    # measures need no product of their own, but for the pixels.
    assert made.count(width) == blocks
    assert sum(made) == blocks * (2 * whole + width) + 3 * 32**2


# Second measures -------------------------------------------------------------------------------------------------------


def shared_pixels(images: int = 240) -> tuple[dict[str, Layers], Given]:
    """Two layers that have nothing in common but the pixels, and the pixels."""
    pixels = torch.randn(images, 3, 4, 4)
    noise = {name: torch.randn(images, 48) for name in "xy"}
    place = {float(image[0, 0, 0]): number for number, image in enumerate(pixels)}

    def layer(name: str):
        return lambda x: x.flatten(1) + noise[name][[place[float(image[0, 0, 0])] for image in x]]

    return {"mine": Layers(x=layer("x"), y=layer("y"))}, Given(batch=24, pixels=pixels)


def test_given_the_pixels_layers_that_share_nothing_else_are_not_alike():
    own, images = shared_pixels()
    found = {
        name: cell(cka.measure(own, images, layers=["x", "y"], measure=name), "x", "y")
        for name in ("cka", "partial_cka")
    }
    assert found["cka"] > 0.2
    assert abs(found["partial_cka"]) < 0.05


def test_partial_cka_is_the_partial_correlation_of_u_centred_gram_matrices():
    own, images = shared_pixels(24)
    table = cka.measure(own, images, layers=["x", "y"], measure="partial_cka")
    rows = [own["mine"].functions[name](images.pixels).double().numpy() for name in "xy"]
    x, y, z = (u_centred(each) for each in (*rows, images.pixels.flatten(1).double().numpy()))
    x, y = (each - (each @ z) / (z @ z) * z for each in (x, y))
    assert cell(table, "x", "y") == pytest.approx(x @ y / np.sqrt((x @ x) * (y @ y)), abs=1e-5)
    assert cell(table, "x", "x") == pytest.approx(1)
    assert set(table["layer"]) == {"x", "y"}  # the pixels are taken away, and compared with nothing


def test_what_is_shared_with_twins_is_taken_away_with_the_pixels():
    own, images = shared_pixels()
    twin = {"twin": Layers(x=own["mine"].functions["x"])}
    table = cka.plan_controls(
        own | twin, images, {"given": View(given="pixels and twins")}, layers=["x", "y"], twins=["twin"]
    ).table()
    mine = table[(table["model"] == "mine") & (table["other_model"] == "mine")]
    assert np.isnan(cell(mine, "x", "x")) or abs(cell(mine, "x", "y")) < 0.05  # nothing is left of x
    assert cell(mine, "y", "y") == pytest.approx(1)
    assert table[table["model"] == "twin"]["cka"].isna().all()


@pytest.mark.parametrize("name", ["rank_cka", "mutual_knn"])
def test_a_table_says_what_was_measured_and_second_measures_are_those_of_their_vectors(name):
    own = {"mine": Layers(x=lambda pixels: pixels, y=lambda pixels: pixels.relu())}
    images = Given(batch=24, pixels=torch.randn(24, 5, 8))
    table = cka.measure(own, images, layers=["x", "y"], measure=name)
    assert set(table["measure"]) == {name}
    assert table.attrs["measure"] == name
    rows = images.pixels.flatten(1)
    x, y = (measures.MEASURES[name](similarity.gram(each)).double() for each in (rows, rows.relu()))
    assert cell(table, "x", "y") == pytest.approx(float(x @ y / (x.norm() * y.norm())), abs=1e-5)


def test_neighbours_need_batches_that_have_some_and_a_small_last_batch_counts_for_nothing():
    own = {"mine": Layers(x=lambda pixels: pixels, y=lambda pixels: pixels.relu())}
    pixels = torch.randn(56, 5, 8)
    with pytest.raises(Refusal, match="mutual nearest neighbours need batches of 16 images or more, got 8"):
        cka.measure(own, Given(batch=8, pixels=pixels), layers="*", measure="mutual_knn")
    whole, first = (
        cka.measure(own, Given(batch=24, pixels=some), layers=["x", "y"], measure="mutual_knn")
        for some in (pixels, pixels[:48])
    )
    assert cell(whole, "x", "y") == pytest.approx(cell(first, "x", "y"), abs=1e-6)


def test_images_of_a_model_in_another_order_leave_its_own_layers_alike_and_nothing_across_models():
    run = {"x": lambda pixels: pixels, "y": lambda pixels: pixels.relu()}
    images = Given(batch=48, pixels=torch.randn(192, 5, 8))
    own = {"one": Layers(**run), "other": Layers(**run)}
    views = {"same": View(), "model": View(order="model"), "layer": View(order="layer")}
    table = cka.plan_controls(own, images, views, layers=["x", "y"]).table()

    def of(view: str, model: str, other: str) -> float:
        rows = table[(table["control"] == view) & (table["model"] == model) & (table["other_model"] == other)]
        return cell(rows, "x", "y")

    assert of("model", "one", "one") == pytest.approx(of("same", "one", "one"))
    assert abs(of("model", "one", "other")) < 0.1 < of("same", "one", "other")
    assert abs(of("layer", "one", "one")) < 0.1


def test_an_order_of_images_is_kept_where_it_is_needed():
    order = cka._shuffle("vit blocks.0", 8, torch.device("meta"))
    assert order.device.type == "meta"
    assert cka._shuffle("vit blocks.0", 8, torch.device("meta")) is order


@pytest.mark.parametrize("view", [*VIEWS.values()], ids=[*VIEWS])
def test_values_that_are_not_finite_are_refused_by_every_measure(view):
    broken = torch.randn(48, 5, 8)
    broken[3, 2, 1] = torch.nan
    own = {"mine": Layers(x=lambda pixels: pixels, y=lambda pixels: pixels.sin())}
    plan = cka.plan_controls(own, Given(batch=24, pixels=broken), {"one": view}, layers=["x", "y"])
    with pytest.raises(Refusal, match="has values that are not finite in batch 0"):
        plan.table()


def test_a_selection_that_no_layer_has_is_refused_with_the_pixels_too():
    with pytest.raises(Refusal, match="no chosen layer has what --tokens asks for"):
        cka.measure("lab/vit_gap@random", Images(limit=16, batch=16), tokens="cls", measure="partial_cka")


def test_too_few_images_for_a_neighbour_are_refused_however_large_the_batch_may_be():
    own = {"mine": Layers(x=lambda pixels: pixels)}
    with pytest.raises(Refusal, match="need batches of 16 images or more, got 10"):
        cka.measure(own, Given(batch=32, pixels=torch.randn(10, 5, 8)), layers="x", measure="mutual_knn")


@pytest.mark.parametrize("twins", [("a", "b"), ["b", "a"], {"a", "b"}])
def test_the_order_in_which_twins_are_named_makes_no_other_key_and_other_twins_do(twins):
    own = {name: Layers(x=lambda x: x) for name in "abc"}
    images, views = Given(batch=24, pixels=torch.randn(24, 5)), {"given": View(given="pixels and twins")}

    def key(twins) -> str:
        return cka.plan_controls(own, images, views, layers="x", twins=twins).key()

    assert key(twins) == key(("a", "b"))
    assert len({key(twins), key(("a",)), key(("a", "c")), key(())}) == 4


@pytest.mark.parametrize(
    ("shares", "expected"), [([0.0, 0.51], True), ([0.5, 0.2], False), ([0.9], True), ([], False)]
)
def test_one_layer_of_which_massive_tokens_are_more_than_half_is_enough(shares, expected):
    table = pd.DataFrame()
    table.attrs["massive"] = [{"model": "m", "layer": "x", "tokens": 0.1, "hsic": share} for share in shares]
    assert cka.dominated(table) is expected


@pytest.mark.parametrize("constant", range(5))
def test_two_constant_layers_are_named_and_the_others_counted(constant, caplog):
    functions = {f"c{number}": lambda x: torch.ones_like(x) for number in range(constant)}
    cka.measure(
        {"m": Layers(x=lambda x: x, **functions)}, Given(batch=8, pixels=torch.randn(8, 3)), layers="*"
    )
    named = ", ".join(f"c{number} of m" for number in range(min(constant, 2)))
    more = f" and {constant - 2} more layers" if constant > 2 else ""
    told = caplog.text.partition("its CKA is undefined (NaN): ")[2]
    assert told.strip() == named + more


def massive_of(counts: list[tuple[float, float, float, float]]) -> pd.DataFrame:
    """Of layers with so many tokens watched and massive ones among them, and HSIC with and without them."""
    count = len(counts)
    sums = cka.PairSums.of_batch(
        0,
        8,
        hsic=torch.zeros(1, count, count).double(),
        massive=torch.tensor(counts).double(),
        places=[["m", f"l{number}"] for number in range(count)],
    )
    return cka.massive_shares(sums)


def test_shares_of_massive_tokens_are_of_what_was_watched_and_zero_where_there_is_none():
    found = massive_of([(200, 5, 8, 2), (100, 0, 8, 7), (0, 0, 0, 0), (50, 1, 0, 0), (10, 10, 4, 5)])
    assert found["layer"].tolist() == ["l0", "l1", "l3", "l4"]  # of nothing watched nothing is told
    assert found["tokens"].tolist() == pytest.approx([0.025, 0, 0.02, 1])
    assert found["hsic"].tolist() == pytest.approx([0.75, 0, 1, -0.25])


@pytest.mark.parametrize("tokens", SELECTIONS)
def test_massive_tokens_are_warned_of_where_they_are_compared(tokens, caplog):
    shares = massive_of([(200, 5, 8, 2), (100, 50, 8, 3.9), (100, 1, 8, 4)])
    cka._warn_of_massive_tokens(shares, tokens)
    said = "m: massive tokens, 26.2 % of all, make up 51.2 % or more of the self-similarity of 2 of its layers (l0 ... l1)"
    assert (said in caplog.text) == (tokens in ("all", "spatial", "mean"))
    assert ("massive" in caplog.text) == (tokens in ("all", "spatial", "mean"))


@pytest.mark.parametrize(
    ("images", "batch", "told"), [(16, 8, 0), (17, 8, 1), (19, 8, 1), (20, 8, 0), (6, 8, 0), (23, 8, 0)]
)
def test_a_last_batch_is_said_to_be_left_out_only_where_it_is(images, batch, told, caplog):
    cka.plan({"m": Layers(x=lambda x: x)}, Given(batch=batch, pixels=torch.randn(images, 3)), layers="x")
    assert caplog.text.count("the last batch has fewer than 4 images and is left out") == told
