import networks
import numpy as np
import pytest
import timm
import torch
from doubles import Given, Layers
from torch import nn

from vit_analysis import layers, models, plot, receptive_field
from vit_analysis.images import Images
from vit_analysis.reading import gradients
from vit_analysis.reading.capture import Capture, Layer
from vit_analysis.reading.intervals import of_table
from vit_analysis.receptive_field import drawn, mean_gradients, measure, with_maps
from vit_analysis.spelling import Refusal
from vit_analysis.tensors.fields import offsets


def given(images: int = 4, size: int = 16, batch: int = 4) -> Given:
    return Given(batch=batch, pixels=torch.randn(images, 3, size, size))


def fields(module: nn.Module, images: Images, taps, **kwargs) -> dict[str, np.ndarray]:
    _, maps = with_maps({"m": module}, images, layers=taps, channels=None, **kwargs)
    return {row.layer: row.map.reshape(row.rows, row.columns) for row in maps.itertuples()}


def small_vit(**config) -> nn.Module:
    settings = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 12,
        "num_heads": 2,
        "depth": 2,
        "num_classes": 3,
    }
    return timm.create_model("vit_tiny_patch16_224", **settings | config).eval()


def small_resnet(units: tuple[int, ...] = (1, 1, 1, 1)) -> nn.Module:
    torch.manual_seed(2)  # with it no branch is dead
    module = timm.models.resnet.ResNet(
        timm.models.resnet.BasicBlock,
        layers=units,
        channels=(4, 6, 6, 8),
        num_classes=3,
        zero_init_last=False,
    )
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.bias, std=0.5)
    return module.eval()


def test_one_convolution_sees_exactly_3_by_3_pixels_and_two_see_5_by_5():
    convolutions = [nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 4, 3, padding=1)]
    seen = fields(nn.Sequential(*convolutions), given(), ["0", "1"])
    for layer, side in (("0", 3), ("1", 5)):
        rows, columns = np.nonzero(seen[layer])
        assert len(rows) == side**2
        assert {rows.min(), columns.min()} == {8 - side // 2}
        assert {rows.max(), columns.max()} == {8 + side // 2}


def test_one_convolution_is_the_mean_of_its_absolute_weights():
    convolution = nn.Conv2d(3, 5, 3, padding=1)
    expected = convolution.weight.detach().abs().mean((0, 1))
    seen = fields(nn.Sequential(convolution), given(), ["0"])["0"]
    np.testing.assert_allclose(seen[7:10, 7:10], expected.numpy(), rtol=1e-6)


def test_a_global_mean_is_constant_with_the_radius_and_the_share_of_a_constant_field():
    module = Layers(average=lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4))
    table, maps = with_maps({"m": module}, given(), layers="average")
    np.testing.assert_allclose(maps["map"].iloc[0], 1 / 16**2 / 3, rtol=1e-6)  # one colour of three
    row, column = np.mgrid[:16, :16] - 9.5  # the middle of the third of four cells
    assert table["radius_px"].item() == pytest.approx(np.sqrt((row**2 + column**2).mean()))
    assert table["centre_share"].item() == pytest.approx(1 / 16)
    assert table["uniform_centre_share"].item() == 1 / 16


def test_channels_of_opposite_gradients_do_not_cancel():
    module = Layers(
        once=lambda x: x[:, :1, ::2, ::2].repeat(1, 2, 1, 1),
        opposite=lambda x: torch.cat([x[:, :1], -x[:, :1]], dim=1)[:, :, ::2, ::2],
    )
    seen = fields(module, given(), ["once", "opposite"])
    assert seen["once"].max() > 0
    np.testing.assert_array_equal(seen["once"], seen["opposite"])


def small_resnet_with_sums() -> nn.Module:
    return small_resnet((3, 2, 1, 1))


@pytest.mark.parametrize("make", [small_vit, small_resnet, small_resnet_with_sums])
def test_every_layer_is_the_loop_over_images_and_channels_one_by_one(make):
    module = make()
    images = given(3, 32, batch=2)
    seen = fields(module, images, "paper")
    taps = [str(tap) for step in layers.sublayers(module) for tap in (step.residual, step.long) if tap]
    assert sorted(seen) == sorted(taps)

    def centre(activation: torch.Tensor) -> torch.Tensor:
        if activation.ndim == 3:
            activation = activation[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
        return activation[0, :, activation.shape[2] // 2, activation.shape[3] // 2]

    for tap in taps:
        assert seen[tap].max() > 0
        total = 0
        for image in images.pixels:
            pixels = image[None].clone().requires_grad_()
            with Capture(module, [tap]) as run:
                values = centre(run(pixels)[tap])
            gradients = [torch.autograd.grad(value, pixels, retain_graph=True)[0][0] for value in values]
            total = total + torch.stack(gradients).abs().mean((0, 1))
        np.testing.assert_allclose(seen[tap], (total / 3).numpy(), rtol=1e-4, atol=1e-9)


def test_a_long_branch_is_read_before_the_shortcut_is_added_in_place():
    # The branch is scaled down to a thousandth; with the shortcut added it would not be small.
    module = small_resnet()
    nn.init.constant_(module.layer1[0].bn2.weight, 1e-3)
    seen = fields(module, given(), ["layer1.0", "layer1.0.bn2"])
    assert 0 < seen["layer1.0.bn2"].max() < 0.01 * seen["layer1.0"].max()


def test_moments_are_of_the_mean_field_and_the_radius_that_of_the_table():
    module = small_vit()
    table, maps = with_maps({"m": module}, given(5, 32), channels=None)
    for row, own in zip(table.itertuples(), maps.itertuples(), strict=True):
        field = own.map.reshape(32, 32).astype(float)
        down, across = np.mgrid[:32, :32] - 19.5  # token (2, 2) of 4 x 4 is pixels 16 to 23
        assert row.radius_px == pytest.approx(np.sqrt((field * (down**2 + across**2)).sum() / field.sum()))
        assert row.centre_share == pytest.approx(field[16:24, 16:24].sum() / field.sum())
        assert row.uniform_centre_share == 1 / 16


def test_a_position_lies_where_its_convolutions_put_it():
    # Of a ResNet-50's 7 x 7 positions the fourth lies at pixel 96; the middle of its cell would be 111.5.
    distance, inside = offsets(224, 96.0, 32.0)
    assert distance[96] == 0
    assert inside.nonzero().flatten().tolist() == list(range(80, 112))
    distance, inside = offsets(224, 119.5, 16.0)
    assert distance[[112, 127]].tolist() == [-7.5, 7.5]
    assert inside.nonzero().flatten().tolist() == list(range(112, 128))
    module = small_resnet()
    field = fields(module, given(2, 64), ["conv1"])["conv1"]
    rows, columns = np.nonzero(field)
    assert {rows.min(), columns.min(), rows.max(), columns.max()} == {29, 35}  # 7 x 7 around 32


def test_a_scale_of_the_features_changes_the_field_and_not_the_numbers():
    plain = Layers(x=lambda x: torch.tanh(nn.functional.avg_pool2d(x, 3, 1, 1)))
    large = Layers(x=lambda x: 1000 * torch.tanh(nn.functional.avg_pool2d(x, 3, 1, 1)))
    images = given()
    one, other = (with_maps({"m": module}, images, layers="x") for module in (plain, large))
    np.testing.assert_allclose(one[0]["radius_px"], other[0]["radius_px"], rtol=1e-6)
    np.testing.assert_allclose(1000 * one[1]["map"].iloc[0], other[1]["map"].iloc[0], rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_size_of_batches_does_not_matter_nor_do_the_channels_drawn_depend_on_it(batch):
    loaded = [models.load("lab/vit@random", device="cpu")]
    whole, split = (
        measure(loaded, Images(limit=8, batch=size), layers="blocks.0", channels=5) for size in (8, batch)
    )
    for column in ("radius_px", "low", "high", "centre_share"):
        np.testing.assert_allclose(whole[column], split[column], rtol=1e-4)


def small_vit_seeded() -> nn.Module:
    torch.manual_seed(5)
    return small_vit()


def test_a_killed_run_goes_on_to_the_same_table(tmp_path, monkeypatch):
    monkeypatch.setattr("vit_analysis.reading.measure.SAVE_EVERY", 0.0)
    images, module = given(6, 32, batch=2), small_vit_seeded()
    calls = []

    def stop(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return mean_gradients(*args, **kwargs)

    monkeypatch.setattr(receptive_field, "mean_gradients", stop)
    with pytest.raises(KeyboardInterrupt):
        measure({"m": module}, images, state=tmp_path / "rf")
    assert list(tmp_path.iterdir())
    again = measure({"m": module}, images, state=tmp_path / "rf")
    assert not list(tmp_path.iterdir())
    assert len(calls) == 3 + 1  # only the batch that was interrupted
    whole = measure({"m": module}, images)
    np.testing.assert_allclose(again["radius_px"], whole["radius_px"], rtol=1e-12)


def test_drawn_channels_are_different_ones_and_belong_to_the_image():
    chosen = drawn([7, 9, 7], 10, 4)
    assert chosen.shape == (3, 4)
    assert all(len(set(row.tolist())) == 4 for row in chosen)
    assert torch.equal(chosen[0], chosen[2])
    assert not torch.equal(chosen[0], chosen[1])
    for draws in (None, 10, 50):
        assert torch.equal(drawn([7, 9], 10, draws), torch.arange(10).expand(2, 10))


def test_a_few_channels_estimate_all_of_them_within_the_interval():
    images, module = given(32, 32, batch=16), small_vit_seeded()
    some, every = (measure({"m": module}, images, layers="blocks", channels=c) for c in (3, None))
    assert not np.allclose(some["radius_px"], every["radius_px"], rtol=1e-6)
    assert (some["low"] < every["radius_px"]).all()
    assert (every["radius_px"] < some["high"]).all()
    assert ((some["high"] - some["low"]) > 0).all()


def test_a_layer_that_does_not_depend_on_its_input_is_undefined():
    module = Layers(flat=lambda x: torch.ones(len(x), 4, 2, 2), same=lambda x: 0 * x)
    table = measure({"m": module}, given(), layers=["flat", "same"])
    assert table["radius_px"].isna().all()
    assert table["centre_share"].isna().all()


def test_rows_name_steps_and_branches_in_the_depth_of_the_stream():
    table = measure({"v": small_vit(), "r": small_resnet()}, given(4, 32), channels=2)
    own = table[table["model"] == "v"].set_index("layer")
    assert own.loc["blocks.0.norm2:in", ["step", "branch"]].tolist() == ["attention 1", "residual"]
    assert own.loc["blocks.1.mlp", ["step", "branch", "depth"]].tolist() == ["MLP 2", "long", 1.0]
    residual = table[(table["model"] == "r") & (table["branch"] == "residual")]
    assert residual["step"].tolist() == ["initial conv", "unit 1", "unit 2", "unit 3", "unit 4"]
    assert residual["depth"].tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_the_intervals_follow_from_the_values_in_the_table_without_each_group():
    table = measure({"v": small_vit(), "r": small_resnet()}, given(8, 32), channels=2)
    for name, low, high in (("radius_px", "low", "high"), ("centre_share", "centre_low", "centre_high")):
        assert {len(without) for without in table[f"{name}_without"]} == {8}  # an image to each group
        found = of_table(lambda rows, name=name: torch.tensor(rows[name].to_numpy(float)), table)
        found = found.of_share() if name == "centre_share" else found
        np.testing.assert_array_equal(found.value, table[name])
        np.testing.assert_allclose(found.low, table[low], rtol=1e-4)
        np.testing.assert_allclose(found.high, table[high], rtol=1e-4)
        assert (table[low] < table[name]).all()
        assert (table[name] < table[high]).all()


def test_layers_that_were_chosen_have_the_rows_that_they_have_among_all():
    module, images = small_vit(), given(4, 32)
    whole = measure({"v": module}, images, channels=2).set_index("layer")
    chosen = measure({"v": module}, images, layers="blocks.1", channels=2).set_index("layer")
    assert list(chosen.index) == ["blocks.1"]
    for columns in (["step", "branch"], ["depth", "radius_px", "low", "high", "centre_share"]):
        own, expected = (table.loc["blocks.1", columns].tolist() for table in (chosen, whole))
        assert own == (pytest.approx(expected, rel=1e-6) if "depth" in columns else expected)


def test_a_layer_without_places_is_refused_with_what_was_expected():
    with pytest.raises(
        Refusal, match=r"'head' of m is 4 x 3, neither image x token x channel with 4 x 4 tokens nor a map"
    ):
        measure({"m": small_vit()}, given(4, 32), layers="head")


def test_no_channels_at_all_are_refused():
    with pytest.raises(Refusal, match="channels must be at least 1, or None for all, got 0"):
        measure({"m": small_vit()}, given(4, 32), channels=0)


def test_a_gradient_that_is_not_finite_names_layer_and_model():
    module = Layers(root=lambda x: (0 * x).sqrt())
    with pytest.raises(
        Refusal, match="the gradient of 'root' of m has values that are not finite in batch 0"
    ):
        measure({"m": module}, given(), layers="root")


def test_gradients_leave_the_model_and_the_caller_as_they_were():
    module = small_vit().train()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    with torch.no_grad():
        measure({"m": module}, given(4, 32), layers="blocks", channels=2)
        assert not torch.is_grad_enabled()
    assert module.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())


SIDES = ((20, 0.2), (30, 0.3), (50, 0.5), (99, 0.99))


@pytest.mark.parametrize("shape", [(16, 16), (12, 20), (20, 12)])
def test_one_convolution_of_ones_has_a_square_of_3_px_and_a_stack_those_of_its_kernel(shape):
    one, two = (nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(2))
    for convolution in (one, two):
        nn.init.ones_(convolution.weight)
    images = Given(batch=4, pixels=torch.rand(4, 3, *shape))  # features above 0
    table = measure({"m": nn.Sequential(one, two)}, images, layers=["0", "1"]).set_index("layer")
    kernel = np.outer([1, 2, 3, 2, 1], [1, 2, 3, 2, 1])  # of two in turn, 3 channels x 3 channels x 3 colours
    logs = np.log10(1 + 27 * kernel)
    shares = {1: logs[2, 2] / logs.sum(), 3: logs[1:4, 1:4].sum() / logs.sum(), 5: 1.0}
    for percent, share in SIDES:
        assert table.loc["0", f"side_{percent}_px"] == 3
        assert table.loc["1", f"side_{percent}_px"] == min(
            side for side, held in shares.items() if held > share
        )
        assert table.loc["0", f"area_{percent}"] == 9 / (shape[0] * shape[1])


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_squares_are_those_of_a_loop_over_images_and_pixels_with_the_published_scores(name):
    module = {"vit": small_vit_seeded, "resnet": small_resnet}[name]()
    images = given(5, 32, batch=2)
    table = measure({"m": module}, images, channels=1).set_index("layer")
    for layer in table.index:
        scores = np.zeros((32, 32))
        for image in images.pixels:
            pixels = image[None].clone().requires_grad_()
            with Capture(module, [layer]) as run:
                values = run(pixels.clone())[layer]
            if values.ndim == 3:
                values = values[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
            rows, columns = values.shape[2:]
            torch.relu(values[:, :, rows // 2, columns // 2]).sum().backward()
            scores += pixels.grad[0].clamp(min=0).sum(0).double().numpy() / len(images.pixels)
        logs = np.log10(scores + 1)
        middle = 19.5 if name == "vit" else 32 // columns * (columns // 2)
        for percent, share in SIDES:
            side = 2 if name == "vit" else 1
            while True:
                row, column = np.abs(np.mgrid[:32, :32] - middle)
                if logs[np.maximum(row, column) <= (side - 1) / 2].sum() > share * logs.sum():
                    break
                side += 2
            row = table.loc[layer]
            assert row[f"side_{percent}_px"] == side, (layer, percent)
            assert row[f"side_{percent}_low"] <= side <= row[f"side_{percent}_high"]


def test_sides_grow_with_the_scale_of_the_features_as_a_logarithm_of_1_plus_x_does():
    # A few bright pixels and many faint ones: the larger all are, the less the bright ones count.
    kernel = torch.full((1, 3, 15, 15), 0.01)
    kernel[..., 7, 7] = 1

    def sides(scale):
        module = Layers(x=lambda x: scale * nn.functional.conv2d(x, kernel, padding=7))
        images = Given(batch=4, pixels=torch.rand(4, 3, 32, 32))
        return measure({"m": module}, images, layers="x")["side_50_px"].item()

    assert sides(1e-3) < sides(1e4) < 15


def test_the_squares_and_their_intervals_do_not_depend_on_batches():
    module = small_vit_seeded()
    pixels = torch.randn(40, 3, 32, 32)
    whole, split = (
        measure({"m": module}, Given(batch=size, pixels=pixels), layers="blocks", channels=1)
        for size in (40, 7)
    )
    for percent, _ in SIDES:
        for column in ("px", "low", "high"):
            np.testing.assert_allclose(
                whole[f"side_{percent}_{column}"], split[f"side_{percent}_{column}"], rtol=1e-4
            )


def test_a_sum_costs_no_backward_pass_of_its_own(monkeypatch):
    passes = []
    true = gradients.gradient

    def counted(*args):
        passes.append(1)
        return true(*args)

    monkeypatch.setattr(gradients, "gradient", counted)
    measure({"m": small_vit_seeded()}, given(4, 32), channels=4)
    assert len(passes) == 8 + 3 * (1 + 4)  # eight layers once; then the first stream and four branches
    passes.clear()
    measure({"m": small_resnet_with_sums()}, given(4, 32), channels=4)
    assert len(passes) == 15 + 3 * (
        15 - 3
    )  # the stem, seven units and their branches; three units have no projection


def test_what_only_looks_like_a_sum_has_gradients_of_its_own():
    # The values are those of a sum, and the gradient does not go through the stream.
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    stream, long = (x * 2)[:, :, 2, 2], x.mean((2, 3))
    layers_of = [Layer(layers.Tap(name)) for name in ("stream", "long", "whole")]
    branches = dict(zip(layers_of, ("residual", "long", "residual"), strict=True))
    channels = dict.fromkeys(layers_of, torch.zeros(2, dtype=torch.int64))
    for whole, sums in (
        *((stream + long, 1), ((stream + long).relu(), 1), (stream.detach() + long, 0)),
        *((stream - long, 0), (stream + long.detach(), 0)),
    ):
        features, known = dict(zip(layers_of, (stream, long, whole), strict=True)), {}
        found = dict(gradients.learning(x, features, branches, channels, known))
        assert len(known) == sums
        (chain, *_) = gradients.chains(layers_of, known)[:: -1 if not sums else 1]
        for layer, own in gradients.along(x, features, chain, known, channels[chain[0]]):
            torch.testing.assert_close(own, found[layer])


def test_layers_without_places_are_refused_before_the_run_with_the_nearest_that_has_them():
    features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 16 * 16, 5), nn.ReLU())
    module = nn.ModuleDict({"features": features, "head": head})
    module.forward = lambda x: head(features(x))
    with pytest.raises(
        Refusal, match=r"'head.0' of m is 4 x 1024, .* such as 'features', .* 'head.1', 'head.2'$"
    ):
        measure({"m": module}, given(), layers=["features.*", "head.*"])
    table = measure({"m": module}, given(), layers="features.*", channels=1)
    assert list(table["layer"]) == ["features.0", "features.1"]
    with pytest.raises(Refusal, match=r"no layer of m matches 'featres.\*'; did you mean 'features.*'"):
        measure({"m": module}, given(), layers="featres.*")


@pytest.mark.parametrize(
    ("name", "pattern", "rows"),
    [
        *[("mixer_s32_224", "blocks.*", 8), ("convnext_atto", "stages.*.blocks.0", 4)],
        *[("efficientnet_b0", "blocks.*.0", 7), ("torchvision/vgg11", "features.1?", 10)],
    ],
)
def test_any_network_by_pattern(name, pattern, rows):
    table = measure(models.load(f"{name}@random", device="cpu"), given(2, 224, 2), layers=pattern, channels=2)
    assert len(table) == rows
    assert (table["radius_px"].dropna().diff().dropna() > -20).all()
    assert (table["side_99_px"].dropna() >= table["side_20_px"].dropna()).all()


def test_the_lab_pair_with_pictures():
    loaded = [models.load(name, device="cpu") for name in ("lab/vit@random", "lab/resnet@random")]
    table, maps = with_maps(loaded, Images(limit=4, batch=4), channels=1)
    assert table.attrs["analysis"] == "receptive_field"
    assert table.attrs["channels"] == 1
    upper, lower = np.array(plot.receptive_field(table).axes).reshape(2, 3)
    assert [ax.get_title() for ax in upper] == ["after the addition", "attention or unit alone", "MLP alone"]
    shown = [[line.get_label() for line in ax.get_lines()] for ax in upper]
    assert shown == [["lab/vit@random", "lab/resnet@random"]] * 2 + [["lab/vit@random"]]
    assert {ax.get_yscale() for ax in lower} == {"log"}
    figure = plot.receptive_field_maps(maps)
    panels = [ax for ax in figure.axes if ax.images]
    assert len(panels) == 5 + 5 + 5 + 4  # the initial convolution has no long branch
    assert panels[0].get_title().startswith("attention 1\n")
    assert all(ax.images[0].get_array().max() == pytest.approx(1) for ax in panels[:15])


@pytest.mark.parametrize(
    ("attention", "mlp", "missing"),
    [
        (1.0, 1.0, set()),
        (
            0.5,
            1.0,
            {("attention 2", "residual"), ("attention 2", "long")},
        ),  # and so the stream before the MLP is none
        (1.0, 0.5, {("MLP 2", "long")}),
    ],
)
def test_a_branch_that_is_not_what_is_added_has_no_field(attention, mlp, missing):
    vit = networks.timm_vit()
    block = vit.blocks[1]

    def scaled(x: torch.Tensor) -> torch.Tensor:
        x = x + attention * block.drop_path1(block.ls1(block.attn(block.norm1(x))))
        return x + mlp * block.drop_path2(block.ls2(block.mlp(block.norm2(x))))

    block.forward = scaled
    whole = {
        (f"{what} {n}", branch)
        for what in ("attention", "MLP")
        for n in (1, 2)
        for branch in ("residual", "long")
    }
    table = measure({"v": vit}, Given(batch=1, pixels=torch.randn(1, 3, 32, 32)), channels=1)
    assert set(zip(table["step"], table["branch"], strict=True)) == whole - missing
