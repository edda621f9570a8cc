from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from doubles import Given, Layers, oracle_cka
from scipy.stats import t as student
from torch import nn

from vit_analysis import localization, models, plot
from vit_analysis.images import Images
from vit_analysis.localization import (
    SHARES,
    STATISTICS,
    chances,
    coarser,
    grid_maps,
    measure,
    neighbours,
    patches,
    statistics,
    summary,
)
from vit_analysis.reading.intervals import of_table
from vit_analysis.spelling import Refusal
from vit_analysis.tensors import similarity
from vit_analysis.tensors.tokens import Grid


def given(images: int = 160, size: int = 8, batch: int = 16) -> Given:
    return Given(batch=batch, pixels=torch.randn(images, 3, size, size))


def cells(x: torch.Tensor, side: int = 4) -> torch.Tensor:
    """A map whose position is all pixels of its cell."""
    height = x.shape[2] // side
    return nn.functional.pixel_unshuffle(x, height)


def maps(table, layer: str | None = None) -> np.ndarray:
    own = table if layer is None else table[table["layer"] == layer]
    count = own["token"].max() + 1
    return own["cka"].to_numpy().reshape(count, count)


def maps_of(rows, group: int | None = None) -> torch.Tensor:
    """The maps of one layer; without a group of batches, if one is given."""
    values = rows["cka"] if group is None else [without[group] for without in rows["cka_without"]]
    return torch.tensor(np.asarray(values, dtype=float)).view(16, 16)


def values(table, layer: str) -> dict[str, float]:
    found = summary(table)
    own = found[found["layer"] == layer]
    return dict(zip(own["statistic"], own["value"], strict=True))


def test_tokens_that_are_their_own_patch_find_it_every_time():
    table = measure({"m": Layers(x=cells)}, given(), layers="x")
    found = maps(table)
    np.testing.assert_allclose(found.diagonal(), 1, atol=1e-6)
    assert np.abs(found - np.diag(found.diagonal())).max() < 0.2
    own = values(table, "x")
    assert own["own"] == pytest.approx(1)
    assert own["hit_rate"] == own["near_hit_rate"] == 1
    assert own["contrast"] > 3.5  # of one in sixteen, at most sqrt(15)
    assert abs(own["edge_effect"]) < 0.02


def test_moved_tokens_find_the_patch_they_came_from():
    order = torch.randperm(16)

    def moved(x: torch.Tensor) -> torch.Tensor:
        return cells(x).flatten(2)[:, :, order].unflatten(2, (4, 4))

    table = measure({"m": Layers(x=moved)}, given(), layers="x")
    assert maps(table).argmax(1).tolist() == order.tolist()


def test_tokens_of_shuffled_images_are_similar_to_no_patch():
    module = Layers(x=lambda x: cells(x)[torch.randperm(len(x))])
    table = measure({"m": module}, given(640, batch=64), layers="x")
    assert np.abs(maps(table)).max() < 0.05
    assert abs(values(table, "x")["own"]) < 0.01


def test_constant_tokens_are_undefined_counted_and_named(caplog):
    def half(x: torch.Tensor) -> torch.Tensor:
        y = cells(x)
        y[:, :, :2] = 7.3
        return y

    table = measure(
        {"m": Layers(x=half, flat=lambda x: torch.ones(len(x), 5, 4, 4))}, given(), layers=["x", "flat"]
    )
    found = maps(table, "x")
    assert np.isnan(found[:8]).all()
    assert np.isfinite(found[8:]).all()
    assert values(table, "x")["hit_rate"] == 1  # of those that are defined
    assert np.isnan(maps(table, "flat")).all()
    assert np.isnan(list(values(table, "flat").values())).all()
    assert (
        "8 of 16 tokens of x of m are constant over all images, so their CKA is undefined (NaN)"
        in caplog.text
    )
    assert "16 of 16 tokens of flat of m" in caplog.text


def test_cells_are_the_three_term_formula_on_tokens_and_pixels():
    # An incomplete last batch, an offset, correlated pixels, a rectangular grid.
    pixels = (torch.randn(42, 20) @ torch.randn(20, 3 * 8 * 12) + 2).view(42, 3, 8, 12)

    def mixed(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(
            nn.functional.avg_pool2d(x, 4)[:, [0, 1, 2, 0]] + 0.1 * x.mean((1, 2, 3), keepdim=True)
        )

    table = measure({"m": Layers(x=mixed)}, Given(batch=16, pixels=pixels), layers="x")
    assert len(table) == 36
    for row in table.iloc[::5].itertuples():
        assert row.token == 3 * row.token_row + row.token_col
        top, left = 4 * row.patch_row, 4 * row.patch_col
        expected = oracle_cka(
            [mixed(batch)[:, :, row.token_row, row.token_col] for batch in pixels.split(16)],
            [batch[:, :, top : top + 4, left : left + 4] for batch in pixels.split(16)],
        )
        assert row.cka == pytest.approx(expected, abs=1e-5)
        assert row.low < row.cka < row.high
    found, size = grid_maps(table)
    assert size == (2, 3)
    np.testing.assert_array_equal(found, maps(table))


def test_a_vision_transformers_tokens_are_numbered_without_the_class_token():
    module = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=12, num_heads=2).eval()
    images = Given(batch=16, pixels=torch.randn(32, 3, 32, 32))
    table = measure({"m": module}, images)
    assert list(table["layer"].unique()) == ["blocks.1"]
    assert maps(table).shape == (4, 4)
    with torch.inference_mode():
        kept = module.forward_intermediates(
            images.pixels, indices=[1], output_fmt="NLC", intermediates_only=True
        )[0]
    for token, patch in ((0, 0), (1, 3), (3, 2)):
        top, left = 16 * (patch // 2), 16 * (patch % 2)
        expected = oracle_cka(
            kept[:, token].split(16), images.pixels[:, :, top : top + 16, left : left + 16].split(16)
        )
        assert maps(table)[token, patch] == pytest.approx(expected, abs=1e-4)
    penultimate = measure({"m": module}, images, layers="penultimate")
    assert list(penultimate["layer"].unique()) == ["blocks.0"]


@pytest.mark.parametrize("budget", [1, 16 * 15 // 2 * 5])
def test_pieces_of_any_size_give_the_same_answer(monkeypatch, budget):
    # Up to the rounding of float32: how many Gram matrices are one product decides how each is summed.
    module, images = Layers(x=lambda x: cells(x).exp()), given(32)
    whole = measure({"m": module}, images, layers="x")
    monkeypatch.setattr(similarity, "VECTORS", budget)
    monkeypatch.setattr(similarity, "CPU_PIECE", 500)
    np.testing.assert_allclose(
        measure({"m": module}, images, layers="x")["cka"], whole["cka"], rtol=1e-5, atol=1e-7
    )


def test_scale_rotation_and_offset_of_a_token_do_not_matter():
    rotation = torch.linalg.qr(torch.randn(12, 12))[0]
    plain = Layers(x=lambda x: cells(x).tanh())
    turned = Layers(x=lambda x: 30 * torch.einsum("nirc,oi->norc", cells(x).tanh(), rotation) + 5)
    images = given()
    one, other = (measure({"m": module}, images, layers="x") for module in (plain, turned))
    np.testing.assert_allclose(one["cka"], other["cka"], atol=1e-5)


def test_sums_of_two_halves_are_those_of_all():
    images, module = given(64), Layers(x=lambda x: cells(x).exp())
    table = measure({"m": module}, images, layers="x")
    reversed_batches = torch.cat(images.pixels.split(16)[::-1])
    again = measure({"m": module}, Given(batch=16, pixels=reversed_batches), layers="x")
    for column in ("cka", "low", "high"):
        np.testing.assert_allclose(table[column], again[column], rtol=1e-9, atol=1e-12)


def test_normalized_tokens_see_past_the_few_that_are_massive():
    def massive(x: torch.Tensor) -> torch.Tensor:
        y = cells(x).clone()
        y[::16] *= 300
        return y

    images = given(320)
    plain, robust = (
        measure({"m": Layers(x=massive)}, images, layers="x", tokens=tokens)
        for tokens in ("all", "normalized")
    )
    assert values(plain, "x")["own"] < 0.5
    assert values(robust, "x")["own"] > 0.9
    assert robust.attrs["tokens"] == "normalized"


def test_neighbours_and_edges_of_a_grid_by_hand():
    near, edge = neighbours(3, 4)
    assert near[5].nonzero().flatten().tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert near[0].nonzero().flatten().tolist() == [0, 1, 4, 5]
    assert (~edge).nonzero().flatten().tolist() == [5, 6]
    assert chances(3, 4)[1:3] == pytest.approx([1 / 12, 9 / 12])


def test_statistics_of_maps_by_hand():
    found = torch.zeros(16, 16, dtype=torch.float64)
    _, edge = neighbours(4, 4)
    found[5, 5] = 1.0  # own
    found[6, 7] = 1.0  # touches 6
    found[9, 0] = 1.0  # far from 9
    found[10] = torch.nan  # constant
    found[edge] = edge.double() * 0.5 + 0.1
    own, hit, near_hit, contrast, edge_effect = statistics(found, 4, 4).tolist()
    assert own == pytest.approx(1 / 3)
    assert hit == pytest.approx(1 / 3)
    assert near_hit == pytest.approx(2 / 3)
    spread = np.sqrt(1 / 16 * 15 / 16)
    assert contrast == pytest.approx((1 - 2 / 15) / spread / 3)
    assert edge_effect == pytest.approx(0.5)


def test_a_grid_without_an_interior_has_no_interior_statistics():
    assert statistics(torch.rand(4, 4, dtype=torch.float64), 2, 2)[:4].isnan().all()


def test_a_coarser_map_holds_the_means_of_blocks():
    fine = torch.rand(48, 48, dtype=torch.float64)  # 8 x 6
    found = coarser(fine, (8, 6), (4, 2))
    blocks = fine.numpy().reshape(4, 2, 2, 3, 4, 2, 2, 3).mean((1, 3, 5, 7))
    np.testing.assert_allclose(found, blocks.reshape(8, 8))


def test_cells_that_do_not_divide_are_weighted_by_what_they_have_in_common():
    line = np.zeros((4, 7))
    line[0, :2] = 4 / 7, 3 / 7  # each of four cells is as wide as 1.75 of seven
    line[1, 1:4] = 1 / 7, 4 / 7, 2 / 7
    line[2, 3:6] = 2 / 7, 4 / 7, 1 / 7
    line[3, 5:] = 3 / 7, 4 / 7
    fine = torch.rand(7, 7, dtype=torch.float64)
    np.testing.assert_allclose(coarser(fine, (7, 1), (4, 1)), line @ fine.numpy() @ line.T)
    np.testing.assert_allclose(coarser(fine, (1, 7), (1, 4)), line @ fine.numpy() @ line.T)
    square = torch.rand(49, 49, dtype=torch.float64)
    both = np.kron(line, line)
    np.testing.assert_allclose(coarser(square, (7, 7), (4, 4)), both @ square.numpy() @ both.T)


@pytest.mark.parametrize(
    ("size", "wanted"), [((8, 8), (4, 4)), ((7, 7), (4, 4)), ((5, 3), (3, 2)), ((7, 4), (4, 4))]
)
def test_coarser_maps_keep_a_constant_and_the_mean(size, wanted):
    count, cells_wanted = size[0] * size[1], wanted[0] * wanted[1]
    flat = coarser(torch.full((count, count), 0.3, dtype=torch.float64), size, wanted)
    np.testing.assert_allclose(flat, np.full((cells_wanted, cells_wanted), 0.3))
    fine = torch.rand(count, count, dtype=torch.float64)
    assert coarser(fine, size, wanted).mean().item() == pytest.approx(fine.mean().item())


def test_a_map_on_its_own_grid_is_as_it_was_and_twice_coarser_is_once():
    fine = torch.rand(64, 64, dtype=torch.float64)
    np.testing.assert_allclose(coarser(fine, (8, 8), (8, 8)), fine)
    twice = coarser(coarser(fine, (8, 8), (4, 4)), (4, 4), (2, 2))
    np.testing.assert_allclose(twice, coarser(fine, (8, 8), (2, 2)))


@pytest.mark.parametrize("wanted", [(4, 4), (2, 2)])
def test_a_constant_token_leaves_cells_that_it_is_not_in_as_they_were(wanted):
    fine = torch.rand(16, 16, dtype=torch.float64)
    spoilt = fine.clone()
    spoilt[0] = torch.nan
    found, whole = (coarser(maps, (4, 4), wanted) for maps in (spoilt, fine))
    np.testing.assert_allclose(found[1:], whole[1:])


def test_patches_are_cut_row_by_row():
    pixels = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6).float()
    cut = patches(pixels, Grid(2, 3, 2.0, 2.0))
    assert cut.shape == (2, 6, 12)
    assert torch.equal(cut[:, 4], pixels[:, :, 2:4, 2:4].flatten(1))


def test_patches_lie_where_the_network_cuts_them():
    pixels = torch.arange(2 * 3 * 5 * 7).view(2, 3, 5, 7).float()
    left_over = patches(pixels, Grid(2, 3, 2.0, 2.0))
    assert torch.equal(left_over, patches(pixels[:, :, :4, :6], Grid(2, 3, 2.0, 2.0)))
    moved = patches(pixels, Grid(2, 3, 2.0, 2.0, top=1.0, left=1.0))
    assert torch.equal(moved, patches(pixels[:, :, 1:, 1:], Grid(2, 3, 2.0, 2.0)))
    padded = patches(
        pixels, Grid(3, 4, 2.0, 2.0, top=-0.5, left=-0.5)
    )  # positions at the corners of their cells
    assert torch.equal(padded[:, 0], left_over[:, 0])
    assert torch.equal(padded[:, 3].view(2, 3, 2, 2)[..., 0], pixels[:, :, :2, 6])
    assert not padded[:, 3].view(2, 3, 2, 2)[..., 1].any()
    with pytest.raises(Refusal, match=r"patches of 2.5 x 2 px are no whole pixels"):
        patches(pixels, Grid(2, 3, 2.5, 2.0))


@pytest.mark.parametrize(("rows", "columns", "missing"), [(2, 4, (0, 1)), (3, 3, (1, 0)), (3, 4, (1, 1))])
def test_a_cell_that_reaches_beyond_the_image_on_either_side_has_zeros_there(rows, columns, missing):
    pixels = torch.rand(2, 3, 5, 7) + 1
    cut = patches(pixels[:, :, : 5 - (1 - missing[0]), : 7 - (1 - missing[1])], Grid(rows, columns, 2.0, 2.0))
    whole = cut.view(2, rows, columns, 3, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 2 * rows, 2 * columns)
    down, across = 2 * rows - missing[0], 2 * columns - missing[1]
    assert torch.equal(whole[:, :, :down, :across], pixels[:, :, :down, :across])
    assert not whole[:, :, down:].any()
    assert not whole[:, :, :, across:].any()


def test_a_model_that_writes_into_its_input_is_compared_with_what_it_was_given():
    images = given(32)
    kept = images.pixels.clone()
    plain = measure({"m": Layers(x=cells)}, replace(images, pixels=kept), layers="x")

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.end = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            own = cells(x).clone()
            x.zero_()
            return self.end(own)

    np.testing.assert_array_equal(measure({"m": Late()}, images, layers="end")["cka"], plain["cka"])


@pytest.mark.parametrize(("rows", "columns", "tokens"), [(3, 5, 3), (5, 3, 3), (4, 4, 4), (2, 5, 10)])
def test_where_every_interior_token_is_right_there_are_as_many_trials_as_interior_tokens(
    rows, columns, tokens
):
    count = rows * columns
    token, patch = np.divmod(np.arange(count**2), count)
    table = pd.DataFrame({"model": "m", "layer": "x", "token": token, "token_row": token // columns})
    table = table.assign(token_col=token % columns, patch_row=patch // columns, patch_col=patch % columns)
    table["cka"] = (token == patch) * 0.9
    table["cka_without"] = list(np.repeat(table["cka"].to_numpy()[:, None], 5, axis=1))
    found = summary(table).set_index("statistic").loc["hit_rate"]
    square = student.ppf(0.975, 4) ** 2
    if min(rows, columns) > 2:
        assert found["value"] == 1
        assert found["low"] == pytest.approx(tokens / (tokens + square))  # Wilson's, of so many, all right
    else:
        assert np.isnan(found["value"])


def noisy(x: torch.Tensor) -> torch.Tensor:
    return cells(x) + 2 * torch.randn_like(cells(x))


def test_the_summary_holds_the_statistics_of_each_layer_with_their_interval_and_what_chance_gives():
    table = measure({"a": Layers(x=cells, y=noisy), "b": Layers(x=noisy)}, given(), layers=["x", "y"])
    found = summary(table)
    assert list(found.columns) == ["model", "layer", "statistic", "value", "low", "high", "chance"]
    places = [("a", "x"), ("a", "y"), ("b", "x")]
    assert list(found[["model", "layer", "statistic"]].itertuples(index=False, name=None)) == [
        (*place, name) for place in places for name in STATISTICS
    ]
    for place, own in found.groupby(["model", "layer"]):
        rows = table[(table["model"] == place[0]) & (table["layer"] == place[1])]
        np.testing.assert_array_equal(own["value"], statistics(maps_of(rows), 4, 4))
        np.testing.assert_array_equal(own["chance"], chances(4, 4))
        without = torch.stack([statistics(maps_of(rows, group), 4, 4) for group in range(10)])
        variance = 0.9 * (without - without.mean(0)).square().sum(0)
        half = 2.2621572 * variance.sqrt()  # Student's t with 9 degrees of freedom
        smooth = ~own["statistic"].isin(SHARES).to_numpy()
        np.testing.assert_allclose((own["high"] - own["value"])[smooth], half[smooth], rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose((own["value"] - own["low"])[smooth], half[smooth], rtol=1e-6, atol=1e-12)


def test_shares_have_wilsons_interval_of_no_more_trials_than_there_are_tokens():
    table = measure({"a": Layers(x=cells, y=noisy), "b": Layers(x=noisy)}, given(), layers=["x", "y"])
    found = summary(table)
    shares = found[found["statistic"].isin(SHARES)]
    assert len(shares) == 6
    assert shares["value"].max() == 1
    for row in shares.itertuples():
        assert 0 <= row.low <= row.value <= row.high <= 1
        assert row.high - row.low > 0.1  # also where every token is right
        for bound in (bound for bound in (row.low, row.high) if 0 < bound < 1):
            # (bound - share)^2 = t^2 bound (1 - bound) / trials
            trials = 2.2621572**2 * bound * (1 - bound) / (bound - row.value) ** 2
            assert trials <= 16.001


def test_a_difference_of_two_layers_has_an_interval_of_its_own():
    table = measure({"a": Layers(x=cells), "b": Layers(x=noisy)}, given(), layers="x")

    def difference(rows):
        one, other = (statistics(maps_of(own), 4, 4) for _, own in rows.groupby("model"))
        return one - other

    value, low, high, _ = of_table(difference, table)
    one, other = (own["value"].to_numpy() for _, own in summary(table).groupby("model"))
    np.testing.assert_allclose(value, one - other)
    contrast = STATISTICS.index("contrast")
    assert 0.1 < low[contrast] < value[contrast] < high[contrast]  # b's tokens are mostly noise


def test_a_layer_without_places_is_refused_with_what_was_expected():
    module = Layers(vector=lambda x: x.flatten(1), sequence=lambda x: x.flatten(2).mT)
    for layer in ("vector", "sequence"):
        with pytest.raises(
            Refusal, match=f"'{layer}' of m is .* neither image x token x channel .* nor a map"
        ):
            measure({"m": module}, given(16), layers=layer)


def test_a_map_too_large_to_pair_is_refused_before_it_is_tried():
    with pytest.raises(
        Refusal, match=r"'x' of m has 40 x 40 positions, so 2,560,000 pairs .* at most 1024 positions"
    ):
        measure({"m": Layers(x=lambda x: x)}, given(16, 40), layers="x")


def test_a_grid_that_does_not_divide_the_input_is_refused():
    with pytest.raises(Refusal, match="8 x 8 px does not divide into 3 x 3 patches"):
        measure({"m": Layers(x=lambda x: x[:, :, :3, :3])}, given(16), layers="x")


def test_a_value_that_is_not_finite_names_layer_model_and_batch():
    images = given()

    def spoilt(x):
        return cells(x) / (0 if torch.equal(x[0], images.pixels[2 * images.batch]) else 1)

    with pytest.raises(Refusal, match="'x' of m has values that are not finite in batch 2"):
        measure({"m": Layers(x=spoilt)}, images, layers="x")


def test_a_last_batch_too_small_is_left_out_with_a_warning(caplog):
    images = given(35)
    table = measure({"m": Layers(x=cells)}, images, layers="x")
    whole = measure({"m": Layers(x=cells)}, replace(images, pixels=images.pixels[:32]), layers="x")
    np.testing.assert_array_equal(table["cka"], whole["cka"])
    assert caplog.text.count("fewer than 4 images and is left out") == 1


def test_class_token_and_average_pooling_side_by_side_with_a_picture():
    loaded = [
        models.load(name, device="cpu")
        for name in ("lab/vit@random", "lab/vit_gap@random", "lab/resnet@random")
    ]
    table = measure(loaded, Images(limit=48, batch=16))
    assert table.groupby("model", sort=False)["token"].max().tolist() == [63, 63, 15]
    assert table.attrs["analysis"] == "localization"
    figure = plot.localization(table)
    panels = [ax for ax in figure.axes if ax.images]
    tokens = [ax.get_xlabel().split("\n")[0] for ax in panels]
    assert tokens[:4] == ["token (0, 0)", "token (2, 1)", "token (5, 2)", "token (5, 5)"]
    assert tokens[8:] == ["token (0, 0)", "token (1, 1)", "token (2, 1)", "token (2, 2)"]
    assert len({ax.images[0].get_clim() for ax in panels}) == 1
    np.testing.assert_array_equal(
        panels[3].images[0].get_array(),
        table[(table["model"] == "lab/vit@random") & (table["token"] == 45)]["cka"].to_numpy().reshape(8, 8),
    )
    assert localization.summary(table)["value"].notna().any()
