from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from doubles import Labelled, Layers
from PIL import Image
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler
from torch.utils.data import TensorDataset

from vit_analysis import models, plot, probe
from vit_analysis.images import UNSEEN, Images, Preprocessing, given
from vit_analysis.lab import scenes
from vit_analysis.spelling import Refusal
from vit_analysis.tensors import ridge
from vit_analysis.tensors.tokens import Layout, aligned

KINDS = 3


def labelled(images: int, seed: int, **settings) -> Labelled:
    """Images of 2 channels of 4 x 4: the class is in the mean of the first channel, the second is noise."""
    noise = torch.Generator().manual_seed(seed)
    labels = torch.randint(KINDS, (images,), generator=noise)
    pixels = torch.randn(images, 2, 4, 4, generator=noise)
    pixels[:, 0] += 0.5 * (labels[:, None, None] - 1)
    return Labelled(pixels=pixels, labels=labels, seed=seed, **settings)


TRAIN, TEST = labelled(400, seed=1), labelled(200, seed=2, batch=32)
NET = Layers(
    telling=lambda x: x[:, 0].flatten(1), noise=lambda x: x[:, 1].flatten(1), whole=lambda x: x.flatten(1)
)


def measured(
    net=NET, images=TEST, train=TRAIN, shots=10, draws=2, tokens=("mean",), **kwargs
) -> pd.DataFrame:
    kwargs = {"layers": [name for name, _ in net.named_children()]} | kwargs
    return probe.measure({"m": net}, images, probe.Shots(train, shots, draws), tokens=tokens, **kwargs)


def test_every_accuracy_is_that_of_sklearn():
    shots = probe.Shots(TRAIN, 10, 2)
    table = measured()
    *draws, held_out = shots.chosen()["class"]
    assert len(table) == 3 * 2
    for row in table.itertuples():
        x, unseen = (NET.functions[row.layer](images.pixels).double().numpy() for images in (TRAIN, TEST))
        own = draws[row.draw]
        scaler = StandardScaler().fit(x[own])
        scores = [
            (RidgeClassifier(alpha=alpha).fit(scaler.transform(x[own]), TRAIN.labels[own]), alpha)
            for alpha in ridge.PENALTIES
        ]
        best, _ = max(
            scores,
            key=lambda one: (one[0].score(scaler.transform(x[held_out]), TRAIN.labels[held_out]), one[1]),
        )
        assert row.accuracy == pytest.approx(best.score(scaler.transform(unseen), TEST.labels), abs=1e-9)


def test_a_layer_that_tells_classes_apart_reads_high_and_noise_at_chance():
    table = measured(draws=5, shots=20, train=labelled(1000, seed=3), images=labelled(1000, seed=4))
    mean = table.groupby("layer")["accuracy"].mean()
    assert mean["telling"] > 0.65
    assert mean["noise"] == pytest.approx(table.attrs["chance"]["class"], abs=0.05)
    columns = ["model", "layer", "depth", "tokens", "target", "shots", "draw", "accuracy", "accuracy_without"]
    assert list(table.columns) == columns
    assert table["depth"].unique().tolist() == [0.0, 0.5, 1.0]
    assert table["draw"].tolist() == list(range(5)) * 3


def test_the_size_of_batches_does_not_matter():
    expected = measured()
    for batch in (1, 7, 200):
        table = measured(images=replace(TEST, batch=batch))
        pd.testing.assert_frame_equal(*(own.drop(columns="accuracy_without") for own in (table, expected)))


def test_scale_and_offset_of_a_layer_do_not_matter():
    moved = Layers(
        telling=lambda x: 1e4 * x[:, 0].flatten(1) + 1e5,
        noise=lambda x: 1e-4 * x[:, 1].flatten(1) - 7,
        whole=lambda x: x.flatten(1),
    )
    np.testing.assert_allclose(
        measured(moved)["accuracy"], measured()["accuracy"], atol=0.011
    )  # two images of 200


def test_draws_share_no_image_and_hold_as_many_of_each_class():
    assert probe.Shots(TRAIN).chosen()["class"].shape == (6, 10 * KINDS)  # five draws, and one held out
    chosen = probe.Shots(TRAIN, 7, 3).chosen()["class"]
    assert chosen.shape == (4, 7 * KINDS)
    assert len(chosen.unique()) == chosen.numel()
    for draw in chosen:
        assert TRAIN.labels[draw].tolist() == sorted(list(range(KINDS)) * 7)


def test_examples_are_never_among_the_images_they_are_judged_on():
    seen = []

    class Watched(Labelled):
        def truth(self, numbers):
            seen.append(list(numbers))
            return super().truth(numbers)

    source = Watched(pixels=TRAIN.pixels, labels=TRAIN.labels, batch=50)
    shots = probe.Shots(source, 10, 2)
    examples = set(shots.chosen()["class"].flatten().tolist())
    seen.clear()
    probe.measure({"m": NET}, source, shots, layers=["telling"], tokens=["mean"])
    judged = {number for numbers in seen[-7:] for number in numbers}  # 310 images in batches of 50
    assert not judged & examples
    assert judged | examples == set(range(400))


def data_set(images: Labelled, **attributes) -> TensorDataset:
    """The same images and classes as a torch data set."""
    data = TensorDataset(images.pixels, images.labels)
    vars(data).update(attributes)
    return data


@pytest.mark.parametrize("names", [{}, {"class_to_idx": {"a": 0, "b": 1, "c": 2}}], ids=["no names", "names"])
def test_a_data_set_is_probed_as_its_images_and_classes_are(names):
    train, images = (given(data_set(own, **names)) for own in (TRAIN, TEST))
    in_order = train.only(range(400))
    expected, found = measured(), measured(images=images, train=in_order)
    pd.testing.assert_frame_equal(*(own.drop(columns="accuracy_without") for own in (found, expected)))
    assert found.attrs["chance"] == {"class": pytest.approx(1 / KINDS)}


def test_examples_of_a_data_set_are_left_out_even_if_it_is_given_twice():
    data = data_set(TRAIN, class_to_idx={"a": 0, "b": 1, "c": 2})
    once = given(data)
    counts = [
        measured(images=images, train=once).attrs["images"]["count"] for images in (once, given(data), data)
    ]
    assert counts == [400 - 10 * KINDS * 3] * 3


def test_images_to_learn_from_are_the_same_ones_unless_others_are_given():
    data = data_set(labelled(600, seed=5), class_to_idx={"a": 0, "b": 1, "c": 2})
    table = probe.measure({"m": NET}, data, layers=["telling"], tokens=["mean"])
    assert (table["shots"].unique().tolist(), table["draw"].nunique()) == ([10], 5)
    assert table.attrs["images"]["count"] == 600 - 10 * KINDS * 6
    assert table.attrs["train"]["count"] == 10 * KINDS * 6
    assert table["accuracy"].mean() > 0.5
    scenes_alone = probe.plan("lab/vit@random", Images(limit=16), layers="last", tokens=["cls"])
    train = scenes_alone.reading.settings["train"]
    assert (train["source"], train["seed"]) == ("lab", 1)
    assert scenes_alone.reading.settings["shots"] == 100


def test_tokens_are_read_from_where_they_are():
    module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, reg_tokens=2, num_classes=0
    )  # 1 + 2 prefix tokens
    activation = torch.randn(3, 7, 192)
    read = probe.Reader(("cls", "mean", "mean_spatial", "each"), probe.layers.layout(module))
    parts = read(activation)
    assert list(parts) == ["cls", "mean", "mean_spatial", "0", "1", "2", "3"]
    torch.testing.assert_close(parts["cls"], activation[:, 0])
    torch.testing.assert_close(parts["mean"], activation.mean(1))
    torch.testing.assert_close(parts["mean_spatial"], activation[:, 3:].mean(1))
    torch.testing.assert_close(parts["2"], activation[:, 5])
    assert list(probe.Reader(("cls", "mean_spatial", "3", "9"), Layout(4))(activation[:, 3:])) == ["3"]


def test_maps_are_brought_to_the_size_of_the_last():
    last = (2048, 7, 7)
    for channels, size, patch in (
        (256, 56, (2, 4)),
        (512, 28, (2, 2)),
        (1024, 14, (1, 2)),
        (2048, 7, (1, 1)),
    ):
        activation = torch.randn(2, channels, size, size)
        tokens = aligned(activation, last[0], last[1:])
        assert tokens.shape == (2, 49, 2048)
        # Feature (channel, down, across) of the first token is the mean of that place of the patches in its cell.
        cell = activation[:, 5, : size // 7, : size // 7]
        expected = cell[:, patch[0] - 1 :: patch[0], patch[1] - 1 :: patch[1]].mean((1, 2))
        torch.testing.assert_close(tokens[:, 0, 5 * patch[0] * patch[1] + patch[0] * patch[1] - 1], expected)
        torch.testing.assert_close(
            tokens.mean(1).view(2, channels, -1).mean(2), activation.mean((2, 3)), atol=1e-5, rtol=0
        )


def test_every_map_of_a_network_is_read_with_about_as_many_features_as_its_last_has_channels():
    widths = {"low": (4, 16), "middle": (8, 8), "high": (12, 4), "last": (24, 2)}

    def map(x: torch.Tensor, channels: int, side: int) -> torch.Tensor:
        return x.mean((1, 2, 3), keepdim=True).expand(-1, channels, side, side)

    net = Layers(**{name: lambda x, own=own: map(x, *own) for name, own in widths.items()})
    anatomy = probe.layers.Anatomy(blocks=tuple(widths))
    known = models.own(net, "m", preprocessing=Preprocessing(), anatomy=anatomy)
    taps = {"m": [probe.Tap(name) for name in widths]}
    _, names, sizes = probe._readers({"m": known}, taps, ("mean", "each"), TRAIN)
    assert [str(layer) for _, layer in sizes] == list(widths)
    assert {len(own) for own in names.values()} == {1 + 2 * 2}
    assert [width for _, width in sizes.values()] == [16, 16, 24, 24]


def test_maps_of_odd_sizes_are_pooled_as_they_are():
    assert aligned(torch.randn(1, 8, 15, 15), 64, (5, 5)).shape == (1, 25, 8)
    assert aligned(torch.randn(1, 8, 6, 6), 64, (6, 6)).shape == (1, 36, 8)


def test_scenes_are_asked_for_what_they_were_drawn_from():
    numbers = [0, 5, 17, 3000]
    truth, drawn = Images(seed=3).truth(numbers), scenes.draw(numbers, seed=UNSEEN + 3)
    assert torch.equal(truth["shape"], drawn.shape)
    assert torch.equal(truth["texture"], drawn.texture)
    many = scenes.truth(range(4000), seed=1)["position"]
    cells = scenes.draw(range(500), seed=1).position.sub(0.5).mul(2).div(scenes.REACH)
    cells = cells.add(1).mul(1.5).long()
    assert torch.equal(3 * cells[:, 0] + cells[:, 1], many[:500])
    assert many.bincount(minlength=9).min() > 380
    assert [len(answers) for answers in Images().targets.values()] == [10, 4, 9]


def test_folders_and_tars_know_their_labels_without_reading(tmp_path):
    for number in range(8):
        path = tmp_path / f"kind{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image")
    images = Images(str(tmp_path), limit=6)
    assert images.targets == {"class": ["kind0", "kind1"]}
    assert images.truth([0, 7, 3])["class"].tolist() == [0, 1, 0]
    listed = images.only([7, 0], batch=2)
    assert (listed.order, listed.batches, listed.truth(listed.order)["class"].tolist()) == ([7, 0], 1, [1, 0])
    assert listed.facts()["numbers"] != images.only([0, 7]).facts()["numbers"]


def test_the_untrained_lab_pair_on_three_questions():
    loaded = [models.load(name, device="cpu") for name in ("lab/vit@random", "lab/resnet@random")]
    shots = probe.Shots(Images(limit=2000, seed=1), 2, 2)
    table = probe.measure(loaded, Images(limit=40), shots, tokens=["cls", "mean", "0"])
    assert table["target"].unique().tolist() == ["shape", "texture", "position"]
    own = table.groupby("model", sort=False)["tokens"].unique()
    assert [own[model.name].tolist() for model in loaded] == [["cls", "mean", "0"], ["mean", "0"]]
    assert len(table) == (8 * 3 + 8 * 2) * 3 * 2
    assert table["accuracy"].between(0, 1).all()
    assert table.attrs["native"] == {"lab/vit@random": "cls", "lab/resnet@random": "mean"}
    assert table.attrs["grids"] == {"lab/vit@random": [8, 8], "lab/resnet@random": [4, 4]}
    assert table.attrs["train"]["count"] <= (10 + 4 + 9) * 2 * 3
    assert len(plot.probe(table).axes) == 3


def test_single_tokens_are_drawn_on_average_and_where_they_are():
    loaded = [models.load("lab/resnet@random", device="cpu")]
    shots = probe.Shots(Images(limit=2000, seed=1), 2, 1)
    table = probe.measure(loaded, Images(limit=16), shots, layers="layer4.*", tokens=["mean", "each"])
    assert [ax.get_title() for ax in plot.probe_tokens(table).axes] == [
        "single tokens, on average",
        "lab/resnet@random",
    ]
    maps = [ax for ax in plot.accuracy_maps(table).axes if ax.images]
    assert [ax.get_title().split("\n")[0] for ax in maps] == ["layer4.0", "layer4.1"]
    one = table[(table["target"] == "shape") & (table["layer"] == "layer4.1") & (table["tokens"] == "6")]
    assert maps[1].images[0].get_array()[1, 2] == pytest.approx(100 * one["accuracy"].mean())
    assert len({ax.images[0].get_clim() for ax in maps}) == 1


def test_what_cannot_be_probed_says_why(tmp_path):
    for number in range(8):
        path = tmp_path / f"kind{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image")
    folder = Images(str(tmp_path))
    with pytest.raises(
        Refusal, match=r"the classes of .*\(2: kind0, kind1\) .* judged on those of 'lab' \(10: disk"
    ):
        measured(images=Images(), train=folder, shots=1, draws=1)
    with pytest.raises(Refusal, match="has no classes to probe: it needs a folder for each"):
        measured(train=Images(str(tmp_path / "kind0")))
    with pytest.raises(
        Refusal, match=r"5 draws of 30 shots .* need 180 images of each class; of 'kind 0' there are"
    ):
        measured(shots=30, draws=5)
    with pytest.raises(Refusal, match="at least 1 shot and 1 draw, got 0 and 2"):
        measured(shots=0)
    with pytest.raises(Refusal, match="no tokens 'means' to probe; did you mean 'mean'"):
        measured(tokens=["means"])
    with pytest.raises(Refusal, match="no chosen layer has any of the tokens cls"):
        measured(tokens=["cls"])
    chosen = probe.Shots(TRAIN, 10, 2).chosen()["class"].flatten().tolist()
    with pytest.raises(Refusal, match="all 90 images of 'lab' are examples"):
        measured(images=TRAIN.only(chosen))


def test_examples_are_left_out_however_their_source_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(40):
        path = tmp_path / "photos" / f"kind{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    (tmp_path / "link").symlink_to("photos")
    shots = probe.Shots(Images("photos", limit=None, workers=0), 2, 1)
    for source in (tmp_path / "photos", tmp_path / "link", "./photos"):
        images = Images(str(source), limit=None, workers=0)
        table = probe.measure({"m": NET}, images, shots, layers=["whole"], tokens=["mean"])
        assert table.attrs["images"]["count"] == 40 - 2 * 2 * 2
