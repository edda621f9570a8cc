import numpy as np
import pytest
import torch
from doubles import Given, Layers
from torch import nn

from vit_analysis import frequency, models
from vit_analysis.images import Images, Preprocessing
from vit_analysis.reading.stream import stream
from vit_analysis.spelling import Refusal

FEW = Images(limit=24, batch=8)


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (7, 7), (2, 2), (16, 8)])
def test_amplitudes_are_those_of_the_whole_fourier_transform(rows, columns):
    maps = np.random.default_rng(0).normal(size=(3, rows, columns, 5)).astype(np.float32)
    whole = np.abs(np.fft.fft2(maps, axes=(1, 2))).mean(3)
    count = min(rows, columns) // 2 + 1
    down, across = (np.rint(np.linspace(0, side // 2, count)).astype(int) for side in (rows, columns))
    np.testing.assert_allclose(
        frequency.amplitudes(torch.from_numpy(maps)), whole[:, down, across], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("periods", [1, 2, 3])
def test_a_wave_along_the_diagonal_has_all_its_amplitude_at_its_frequency(periods):
    place = np.arange(8)
    wave = np.cos(2 * np.pi * periods * (place[:, None] + place) / 8).astype(np.float32)
    found = frequency.amplitudes(torch.from_numpy(wave)[None, :, :, None])[0].numpy()
    expected = np.zeros(5)
    expected[periods] = 32  # half of 8 x 8: the other half is at the negative frequency
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_chessboard_is_the_finest_pattern_and_a_constant_the_coarsest():
    board = torch.from_numpy(np.indices((6, 6)).sum(0) % 2 * 2.0 - 1).float()[None, :, :, None]
    np.testing.assert_allclose(frequency.amplitudes(board)[0], [0, 0, 0, 36], atol=1e-4)
    np.testing.assert_allclose(frequency.amplitudes(torch.ones_like(board))[0], [36, 0, 0, 0], atol=1e-4)


def test_a_table_is_relative_to_frequency_zero_whatever_the_scale():
    table = frequency.measure(["lab/vit@random", "lab/resnet@random"], FEW)
    assert (table.loc[table["frequency"] == 0, ["log_amplitude", "low", "high"]] == 0).all().all()
    assert (table.groupby(["model", "layer"])["frequency"].max() == 1).all()
    vit = table[table["model"] == "lab/vit@random"]
    assert vit.groupby("layer").size().tolist() == [5] * 8  # 8 x 8 tokens: 0, 1/4, 1/2, 3/4, 1
    for _, own in table[table["frequency"] > 0].groupby("layer"):
        assert (own["low"] <= own["log_amplitude"]).all()


def test_it_is_the_log_of_the_mean_amplitude_and_not_the_mean_of_logs():
    (model,) = models.load_all(["lab/vit"], device="cpu")
    table = frequency.measure(model, FEW, layers="blocks.2")
    seen: list[torch.Tensor] = []
    handle = model.module.blocks[2].register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        for batch in FEW.read([model.preprocessing]):
            model.module.eval()(batch.inputs[0])
    handle.remove()
    maps = torch.cat(seen)[:, 1:].unflatten(1, (8, 8)).numpy()
    mean = np.abs(np.fft.fft2(maps, axes=(1, 2)))[:, range(5), range(5)].mean((0, 2))
    np.testing.assert_allclose(table["log_amplitude"], np.log(mean) - np.log(mean[0]), atol=1e-4)


def test_blurring_lowers_and_sharpening_raises_what_is_fine():
    class Filter(nn.Module):
        def __init__(self, kernel):
            super().__init__()
            self.before, self.after = nn.Identity(), nn.Identity()
            self.register_buffer(
                "kernel", torch.tensor(kernel).outer(torch.tensor(kernel)).expand(3, 1, 3, 3).clone()
            )

        def forward(self, x):
            x = self.before(x)
            return self.after(nn.functional.conv2d(x, self.kernel, padding=1, groups=3)).mean((2, 3))

    for kernel, sign in (([0.25, 0.5, 0.25], -1), ([-0.25, 1.5, -0.25], 1)):
        prepared = Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3)
        own = models.own(Filter(kernel), "filter", preprocessing=prepared)
        table = frequency.measure(own, FEW, layers=["before", "after"])
        finest = table[table["frequency"] > 0.7].groupby("layer")["log_amplitude"].mean()
        assert sign * (finest["after"] - finest["before"]) > 1


def test_batches_merge_in_any_order():
    plan = frequency.plan("lab/vit@random", FEW)
    one, two, three = (plan.fold(batch) for batch in stream(plan.reading))
    for name, value in (one + (two + three)).tensors().items():
        torch.testing.assert_close(value, getattr((three + one) + two, name))


def test_layers_without_a_place_are_refused():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    own = models.own(module, "flat", preprocessing=Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3))
    with pytest.raises(Refusal, match="none of these layers is a map"):
        frequency.measure(own, FEW, layers="1")


def test_rows_are_logs_less_that_of_frequency_zero_of_the_same_layer_and_without_each_group():
    generator = np.random.default_rng(0)
    amplitudes, counts = generator.uniform(1, 9, size=(3, 5)), (8, 8, 3)
    places, shares = [["m", "a"]] * 3 + [["n", "b"]] * 2, [0.0, 0.5, 1.0, 0.0, 1.0]
    one, two, three = (
        frequency.AmplitudeSums.of_batch(
            batch, counts[batch], totals=torch.tensor(own), places=places, frequencies=shares
        )
        for batch, own in enumerate(amplitudes)
    )
    table = frequency._rows(one + two + three)
    assert table[["model", "layer"]].to_numpy().tolist() == places
    assert table["frequency"].tolist() == shares

    def by_hand(batches: list[int]) -> np.ndarray:
        whole = amplitudes[batches].sum(0)
        return np.log(whole / whole[[0, 0, 0, 3, 3]])

    np.testing.assert_allclose(table["log_amplitude"], by_hand([0, 1, 2]), atol=1e-12)
    without = np.stack([by_hand([1, 2]), by_hand([0, 2]), by_hand([0, 1])], axis=1)
    np.testing.assert_allclose(np.stack(table["log_amplitude_without"]), without, atol=1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 4), (4, 1)])
def test_a_map_of_one_row_or_column_has_no_frequencies_and_is_left_out(rows, columns):
    net = Layers(map=lambda x: x, line=lambda x: x[:, :, :rows, :columns])
    images = Given(batch=4, pixels=torch.rand(8, 3, 4, 4) + 1)
    assert frequency.measure({"m": net}, images, layers=["map", "line"])["layer"].unique().tolist() == ["map"]
    with pytest.raises(Refusal, match="none of these layers is a map of more than one position"):
        frequency.measure({"m": net}, images, layers="line")


def test_a_batch_of_one_image_counts_like_any_other():
    net, pixels = Layers(map=lambda x: x), torch.rand(5, 3, 4, 4) + 1
    whole, apart = (
        frequency.measure({"m": net}, Given(batch=batch, pixels=pixels), layers="map")["log_amplitude"]
        for batch in (5, 4)
    )
    torch.testing.assert_close(torch.tensor(apart), torch.tensor(whole))


def test_a_map_of_one_channel_has_frequencies():
    net, pixels = Layers(map=lambda x: x[:, :1]), torch.rand(8, 3, 4, 4) + 1
    table = frequency.measure({"m": net}, Given(batch=4, pixels=pixels), layers="map")
    assert table["log_amplitude"].notna().all()
