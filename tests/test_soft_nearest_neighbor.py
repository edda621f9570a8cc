from dataclasses import replace
from functools import reduce
from itertools import pairwise
from operator import add

import numpy as np
import pandas as pd
import pytest
import torch
from doubles import Labelled, Layers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch.utils.data import TensorDataset

from vit_analysis import models, plot
from vit_analysis import soft_nearest_neighbor as snn
from vit_analysis.images import AnyImages, Images
from vit_analysis.images import given as as_images
from vit_analysis.layers import Tap
from vit_analysis.reading.capture import Layer
from vit_analysis.reading.stream import Pass
from vit_analysis.spelling import Refusal
from vit_analysis.tensors import similarity

CHANCE = np.log(63 / 15)  # of 4 classes of 16


def clusters(
    separation: float, images: int = 640, classes: int = 4, features: int = 12, **settings
) -> Labelled:
    """Gaussian classes whose centres lie `separation` standard deviations from the origin."""
    labels = torch.arange(images) % classes
    centres = torch.nn.functional.normalize(torch.randn(classes, features), dim=1)
    pixels = separation * centres[labels] + torch.randn(images, features)
    return Labelled(pixels=pixels[:, :, None, None], labels=labels, batch=64, **settings)


def brute(x: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    """The formula as printed, image by image, for those that have a mate."""
    losses = []
    for i in range(len(x)):
        others = [k for k in range(len(x)) if k != i]
        weight = {k: np.exp(-((x[i] - x[k]) ** 2).sum() / temperature) for k in others}
        mates = [k for k in others if labels[k] == labels[i]]
        if mates:
            losses.append(-np.log(sum(weight[k] for k in mates) / sum(weight.values())))
    return np.array(losses)


def measured(images: AnyImages, change=lambda x: x, **kwargs) -> pd.Series:
    table = snn.measure({"m": Layers(x=lambda x: change(x.flatten(1)))}, images, layers=["x"], **kwargs)
    assert len(table) == 1
    return table.iloc[0]


def test_the_curve_is_the_formula_at_every_temperature():
    x, labels = torch.randn(20, 6), torch.tensor([0] * 9 + [1] * 8 + [2, 2, 3])  # 3 has no mate
    distances = similarity.squared_distances(similarity.gram(x))
    points, losses = snn.curve(distances[None], labels)
    assert 10 ** points[0, 0] == pytest.approx(
        np.median(distances[~torch.eye(20, dtype=torch.bool)]), rel=0.02
    )
    assert len(points[0]) == 62
    for point, loss in zip(points[0], losses[0], strict=True):
        if point > points[0, 0] - 1.7:  # below, the formula as printed is 0 / 0
            expected = brute(x.double().numpy(), labels.numpy(), float(10**point))
            assert len(expected) == 19
            assert loss.item() == pytest.approx(expected.sum(), rel=1e-5)


@pytest.mark.parametrize("separation", [0.0, 1.0, 2.0, 4.0])
def test_the_minimum_is_that_of_a_bounded_search_over_one_temperature(separation):
    images = clusters(separation)
    batches = [
        (similarity.squared_distances(similarity.gram(batch.inputs[0])), batch.labels)
        for batch in snn.balanced(images, "class").read([None])
    ]
    median = float(torch.stack([distances.median() for distances, _ in batches]).median())

    def loss(log_temperature: float) -> float:
        total = 0.0
        for distances, labels in batches:
            logits = (-distances / (median * 10**log_temperature)).fill_diagonal_(-torch.inf)
            mated = logits.masked_fill(labels[:, None] != labels, -torch.inf)
            total += float((logits.logsumexp(1) - mated.logsumexp(1)).mean())
        return total / len(batches)

    oracle = minimize_scalar(loss, bounds=(-3, 3), method="bounded")
    row = measured(images)
    assert row["loss"] == pytest.approx(oracle.fun, abs=1e-3)
    if not row["at_bound"]:
        assert np.log10(row["temperature"] / median) == pytest.approx(oracle.x, abs=0.03)


def test_features_without_structure_have_the_loss_of_chance():
    row = measured(clusters(0.0))
    assert row["chance"] == pytest.approx(CHANCE)
    assert row["loss"] == pytest.approx(CHANCE, abs=0.05)
    for images, loss in ((64, CHANCE), (300, np.log(299 / 74))):
        _, losses = snn.curve(
            similarity.squared_distances(similarity.gram(torch.randn(images, 9)))[None],
            torch.arange(images) % 4,
        )
        assert losses[0, -1].item() / images == pytest.approx(loss, abs=0.01)  # at a large temperature


@pytest.mark.parametrize(
    "names", [{}, {"class_to_idx": {"a": 0, "b": 1, "c": 2, "d": 3}}], ids=["no names", "names"]
)
def test_classes_of_a_data_set_are_those_that_are_told_apart(names):
    images = clusters(2.0)
    data = TensorDataset(images.pixels, images.labels)
    vars(data).update(names)
    shuffled = measured(data)
    assert shuffled["anchors"] == 640
    assert shuffled["chance"] == pytest.approx(CHANCE)
    in_order = measured(as_images(data).only(range(640), batch=64))
    expected = measured(images)
    for column in ("loss", "temperature", "loss_fixed", "low", "high"):
        assert in_order[column] == pytest.approx(expected[column], rel=1e-6)
        assert shuffled[column] == pytest.approx(expected[column], rel=0.2)


def test_separated_classes_have_no_loss_and_the_bound_is_reported():
    row = measured(clusters(300.0))
    assert row["loss"] == pytest.approx(0, abs=1e-12)
    assert row["at_bound"]
    assert row["anchors"] == 640


def test_more_separation_is_less_loss_within_narrow_intervals():
    rows = [measured(clusters(separation, images=640)) for separation in (1.0, 2.0, 4.0)]
    for one, other in pairwise(rows):
        assert other["high"] < one["low"]
    for row in rows:
        assert row["low"] < row["loss"] < row["high"]
        assert row["loss"] <= row["loss_fixed"] <= row["chance"]


TURN = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(3))).Q


@pytest.mark.parametrize(
    ("change", "factor"),
    [
        pytest.param(lambda x: 1e3 * x, 1e6, id="scale 1e3"),
        pytest.param(lambda x: 1e-3 * x, 1e-6, id="scale 1e-3"),
        pytest.param(lambda x: 1.05 * x, 1.1025, id="a scale between two points of the grid"),
        pytest.param(lambda x: x + 100, 1, id="an offset of 100 sigma"),
        pytest.param(lambda x: x @ TURN, 1, id="rotation"),
    ],
)
def test_scale_offset_and_rotation_do_not_matter(change, factor):
    images = clusters(2.0)
    plain, moved = measured(images), measured(images, change)
    for column in ("loss", "loss_fixed", "low", "high"):
        assert moved[column] == pytest.approx(plain[column], abs=1e-3)
    assert moved["temperature"] == pytest.approx(factor * plain["temperature"], rel=0.02)


def test_images_without_a_mate_are_left_out_and_counted(caplog):
    class Torn(Labelled):
        """A choice of these loses all images of kind 0 but one, as if they could not be read."""

        def read(self, wanted, **kwargs):
            for batch in super().read(wanted, **kwargs):
                kept = [place for place, label in enumerate(batch.labels.tolist()) if label]
                kept = [batch.labels.tolist().index(0), *kept]
                yield batch._replace(
                    inputs=[batch.inputs[0][kept]],
                    labels=batch.labels[kept],
                    images=[batch.images[place] for place in kept],
                )

    whole = clusters(1.0)
    torn = Torn(pixels=whole.pixels, labels=whole.labels, batch=64)
    table = snn.measure({"m": Layers(x=lambda x: x.flatten(1))}, torn, layers=["x"])
    assert table["anchors"].item() == 10 * 48
    assert table.attrs["dropped"] == 10
    assert table["chance"].item() == pytest.approx(np.log(48 / 15))
    assert "10 images have no other image of their class" in caplog.text


@pytest.fixture(scope="module")
def single() -> list[snn.Curves]:
    """The sums of each of ten batches."""
    chosen = snn.balanced(clusters(2.0), "class")
    passes = [
        Pass(
            batch.number,
            64,
            {
                "m": {
                    Layer(Tap("x")): (
                        similarity.squared_distances(similarity.gram(batch.inputs[0])),
                        torch.zeros(2).double(),
                    )
                }
            },
            batch.labels,
            batch.images,
        )
        for batch in chosen.read([None])
    ]
    return [snn._fold(chosen, "class", one) for one in passes]


@settings(max_examples=10, deadline=None)
@given(split=st.integers(1, 9), order=st.permutations(range(10)))
def test_batches_merge_in_any_order_and_grouping(single, split, order):
    shuffled = [single[number] for number in order]
    merged = reduce(add, shuffled[:split]) + reduce(add, shuffled[split:])
    pd.testing.assert_frame_equal(snn._table(reduce(add, single)), snn._table(merged), rtol=1e-10)


def test_batches_are_balanced_disjoint_and_the_same_every_time():
    labels = torch.cat(
        [torch.full((50,), 0), torch.full((70,), 1), torch.full((33,), 2), torch.full((5,), 3)]
    )
    images = Labelled(pixels=torch.randn(158, 1, 1, 1), labels=labels, batch=100)
    chosen = snn.balanced(images, "class")
    assert (chosen.batch, chosen.batches) == (
        48,
        2,
    )  # the smallest of three classes ends it; the fourth is too small
    assert len(set(chosen.order)) == 96
    for batch in torch.tensor(chosen.order).view(2, 48):
        assert labels[batch].bincount().tolist() == [16, 16, 16]
    assert snn.balanced(images, "class").order == chosen.order


def test_more_classes_than_a_batch_holds_take_turns():
    labels = torch.arange(6).repeat_interleave(40)
    chosen = snn.balanced(Labelled(pixels=torch.randn(240, 1, 1, 1), labels=labels, batch=70), "class")
    batches = labels[torch.tensor(chosen.order)].view(-1, 64)
    assert [batch.unique().tolist() for batch in batches] == [[0, 1, 2, 3], [0, 1, 4, 5], [2, 3, 4, 5]]


def test_a_constant_layer_has_no_loss_and_is_named(caplog):
    row = measured(clusters(1.0), lambda x: torch.ones_like(x))
    assert np.isnan(row["loss"])
    assert "constant over all images, so its loss is undefined (NaN): x of m" in caplog.text


def test_massive_tokens_that_make_the_distances_are_said(caplog):
    images = Labelled(pixels=torch.randn(64, 10, 8), labels=torch.arange(64) % 2, batch=64)
    plain = Layers(x=lambda x: x)
    massive = Layers(x=lambda x: torch.cat([100 * x[:, :1], x[:, 1:]], dim=1))
    assert snn.dominated(snn.measure({"m": plain}, images, layers=["x"])) == []
    assert "massive" not in caplog.text
    assert snn.dominated(snn.measure({"m": massive}, images, layers=["x"])) == ["x of m"]
    assert "massive tokens make up most of the distances in 1 layers (x of m" in caplog.text
    robust = [snn.measure({"m": net}, images, layers=["x"], tokens="normalized") for net in (plain, massive)]
    assert robust[0]["loss"].item() == pytest.approx(robust[1]["loss"].item(), abs=1e-6)


def test_what_cannot_be_measured_says_why():
    images = clusters(1.0)
    with pytest.raises(Refusal, match="needs 16 images of each of 2 classes or more; it has 20, and 4 of 4"):
        measured(replace(images, batch=20))
    with pytest.raises(Refusal, match="and 0 of 4 classes have 16 among 40 images"):
        measured(clusters(1.0, images=40))
    with pytest.raises(Refusal, match="no labels 'clas' in 'lab'; did you mean 'class'"):
        measured(images, target="clas")
    with pytest.raises(Refusal, match="no tokens 'meen'; did you mean 'mean'"):
        measured(images, tokens="meen")
    with pytest.raises(Refusal, match="'x' of m has values that are not finite in batch 0"):
        measured(images, lambda x: x / 0)


def test_the_untrained_lab_pair_with_provenance():
    loaded = [models.load(name, device="cpu") for name in ("lab/vit@random", "lab/resnet@random")]
    table = snn.measure(loaded, Images(limit=130, batch=32), target="texture")
    assert list(table.columns) == [
        *("model", "layer", "depth", "loss", "temperature", "at_bound", "loss_fixed", "low", "high", "anchors", "chance"),
        "loss_without",
    ]  # fmt: skip
    assert len(table) == 16
    assert table.attrs["target"] == "texture"
    assert table["chance"].tolist() == pytest.approx([np.log(31 / 15)] * 16)
    lines = plot.entanglement(table).lines
    np.testing.assert_array_equal(lines[1].get_ydata(), table["loss"][8:])
    assert len(plot.soft_nearest_neighbor(table).axes) == 2


@pytest.mark.parametrize("place", [3.0, 290.3, 301.5, 598.75])
@pytest.mark.parametrize("bend", [0.01, 2.0])
def test_the_minimum_of_a_parabola_is_its_own_between_the_points_of_the_grid(place, bend):
    grid = torch.arange(2 * snn.ENDS + 1).double()
    found = snn.minimum((bend * (grid - place) ** 2 + 1.5)[None])
    assert float(found.loss) == pytest.approx(1.5)
    assert float(found.temperature) == pytest.approx(10 ** (snn.STEP * (place - snn.ENDS)))
    assert not found.at_bound.any()


@pytest.mark.parametrize(
    ("count", "told"),
    [(1, "a of m"), (2, "a of m, b of m"), (3, "a of m, b of m and 1 more layers"), (0, "")],
)
def test_constant_layers_are_named_up_to_two_and_then_counted(count, told, single, caplog):
    first = single[0]
    wide = {
        name: value.repeat_interleave(4, dim=1)
        for name, value in first.tensors().items()
        if name in ("loss", "reached")
    }
    fixed = torch.ones(len(first.fixed), 4).double()
    fixed[:, :count] = torch.nan
    places = [["m", layer] for layer in "abcd"]
    sums = replace(first, **wide, fixed=fixed, massive=torch.zeros(4, 2).double(), places=places)
    table = pd.DataFrame()
    table.attrs = {"tokens": "all", "massive": []}
    snn._warn(sums, table)
    assert caplog.text.strip().endswith(f"so its loss is undefined (NaN): {told}" if told else "")
