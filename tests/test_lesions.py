import logging
from contextlib import nullcontext
from functools import partial

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from doubles import Given, Labelled, oracle_cka
from torch import nn

from vit_analysis import cka, layers, lesions, models, plot
from vit_analysis.images import Images
from vit_analysis.lab import zoo
from vit_analysis.lab.vit import ViT
from vit_analysis.layers import Branch, Tap
from vit_analysis.lesions import measure, partition, trained_without_skips
from vit_analysis.reading.capture import Capture, Layer
from vit_analysis.reading.intervene import Repeated, without_skips
from vit_analysis.reading.stream import Activation, Pass
from vit_analysis.shell import lesions as command
from vit_analysis.spelling import Refusal
from vit_analysis.tensors.tokens import Layout

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
OWN = {"img_size": 16, "patch_size": 4, "num_classes": 5, "embed_dim": 16, "depth": 3, "num_heads": 2}


def vit(**config) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", **SMALL | config).eval()


def resnet(name: str = "resnet18", **config) -> nn.Module:
    module = timm.create_model(name, zero_init_last=False, **config).eval()
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.bias, std=0.5)
    return module


def images(count: int = 8, batch: int = 4, size: int = 32) -> Given:
    return Given(batch=batch, pixels=torch.randn(count, 3, size, size))


def of_block(module: nn.Module, block: str) -> list[Branch]:
    return [branch for branch in layers.branches(module) if branch.block == block]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_without_skips_a_block_is_the_one_that_was_built_without(number):
    whole, without = ViT(**OWN).eval(), ViT(**OWN, no_skip=number).eval()
    without.load_state_dict(whole.state_dict())
    x, taps = torch.randn(2, 3, 16, 16), [f"blocks.{number}.norm2:in", f"blocks.{number}", "norm"]
    with Capture(whole, taps) as run, torch.no_grad():  # hooked before the change, and yet sees it
        intact, before = whole(x), run(x)
        with without_skips(whole, of_block(whole, f"blocks.{number}")):
            changed, seen = whole(x), run(x)
        torch.testing.assert_close(whole(x), intact, rtol=0, atol=0)
    with Capture(without, taps) as run, torch.no_grad():
        expected = run(x)
    torch.testing.assert_close(changed, without(x), rtol=0, atol=0)
    for tap in taps:
        torch.testing.assert_close(seen[tap], expected[tap], rtol=0, atol=0)
    assert not torch.allclose(seen["norm"], before["norm"])
    assert layers.without_skips(without) == [f"blocks.{number}"]
    assert not layers.without_skips(whole)


@pytest.mark.parametrize(
    ("name", "unit"), [("resnet18", "layer1.1"), ("resnet18", "layer2.0"), ("resnet50", "layer3.0")]
)
def test_without_its_skip_a_residual_unit_is_its_long_branch(name, unit):
    module = resnet(name)
    block = module.get_submodule(unit)
    inner = [f"{unit}:in", unit]
    with (
        torch.no_grad(),
        Capture(module, inner) as run,
        without_skips(module, of_block(module, unit)),
    ):
        seen = run(torch.randn(2, 3, 64, 64))
    x = seen[inner[0]]
    with torch.no_grad():
        for part in ("1", "2", "3") if name == "resnet50" else ("1", "2"):
            x = getattr(block, f"act{part}")(getattr(block, f"bn{part}")(getattr(block, f"conv{part}")(x)))
    torch.testing.assert_close(seen[unit], x)


def test_an_error_inside_leaves_the_model_as_it_was():
    module = vit(depth=1)
    with pytest.raises(KeyError), without_skips(module, of_block(module, "blocks.0")):
        raise KeyError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_a_repeated_model_numbers_what_it_saw_under_each_change():
    module, x = vit(depth=2), torch.randn(2, 3, 32, 32)
    repeated = Repeated(module, [nullcontext, partial(without_skips, branches=of_block(module, "blocks.1"))])
    with Capture(repeated, ["model.blocks.1", "model"]) as run, torch.no_grad():
        seen = run(x)
    assert [str(layer) for layer in seen] == ["model.blocks.1", "model", "model.blocks.1#2", "model#2"]
    torch.testing.assert_close(seen["model"], module(x).detach())


def labelled(count: int = 24, batch: int = 8, classes: int = 10, size: int = 32) -> Labelled:
    return Labelled(
        batch=batch, pixels=torch.randn(count, 3, size, size), labels=torch.randint(classes, (count,))
    )


def test_lesions_are_accuracy_and_similarity_measured_one_at_a_time(monkeypatch):
    given = labelled(classes=5, size=16)
    module = ViT(**OWN).eval()
    monkeypatch.setattr(lesions, "classes_of_labels", lambda *_: list(range(5)))
    table = measure({"m": module}, given).set_index("block")
    assert set(table["reference"]) == {"labels"}
    taps = ["blocks.0:in", "blocks.0", "blocks.1", "blocks.2"]

    def measured(model: nn.Module) -> tuple[float, dict[str, torch.Tensor]]:
        with Capture(model, taps) as run, torch.no_grad():
            return (model(given.pixels).argmax(-1) == given.labels).double().mean().item(), run(given.pixels)

    def across(seen: dict[str, torch.Tensor], place: int) -> float:
        pairs = [(a, b) for a in taps[:place] for b in taps[place:]]
        return np.mean([oracle_cka(seen[a].split(8), seen[b].split(8)) for a, b in pairs])

    accuracy, whole = measured(module)
    for number in range(3):
        without = ViT(**OWN, no_skip=number).eval()
        without.load_state_dict(module.state_dict())
        changed, seen = measured(without)
        row = table.loc[f"blocks.{number}"]
        assert (row.accuracy, row["drop"]) == (pytest.approx(changed), pytest.approx(accuracy - changed))
        assert row.across == pytest.approx(across(seen, number + 1), abs=1e-4)
        assert row.across_intact == pytest.approx(across(whole, number + 1), abs=1e-4)
        assert row.across_drop == pytest.approx(row.across_intact - row.across)
        assert row.low <= row["drop"] <= row.high
        assert row.across_low < row.across_drop < row.across_high


def test_without_known_labels_lesions_are_agreement_with_the_intact_model():
    module = resnet(num_classes=7)
    table = measure({"v": vit(num_classes=4), "r": module}, labelled(8, 4), state=None)
    assert set(table["reference"]) == {"intact model"}
    np.testing.assert_allclose(table["accuracy"] + table["drop"], 1)
    assert table["model"].tolist() == ["v"] * 3 + ["r"] * 8
    assert list(table.attrs["models"]) == ["v", "r"]


def test_models_trained_without_are_compared_with_the_intact_one_and_partition_the_map(monkeypatch):
    loaded = models.named(
        {"whole": ViT(**OWN), "first": ViT(**OWN, no_skip=0), "last": ViT(**OWN, no_skip=2)}
    )
    whole, first, last = loaded.values()
    given = labelled(classes=5, size=16)
    monkeypatch.setattr(lesions, "classes_of_labels", lambda *_: [4, 3, 2, 1, 0])
    table = trained_without_skips(whole, [first, last], given)
    assert table["model"].tolist() == ["first", "last"]
    assert table["block"].tolist() == ["blocks.0", "blocks.2"]
    with torch.no_grad():
        right = [
            (m.module.eval()(given.pixels).argmax(-1) == 4 - given.labels).double().mean()
            for m in (whole, last)
        ]
    assert table["accuracy"][1] == pytest.approx(right[1].item())
    assert table["drop"][1] == pytest.approx((right[0] - right[1]).item())
    maps = cka.measure(list(loaded.values()), given, layers=["blocks.0:in", "blocks.*"])
    assert partition(maps, "last", "blocks.2") == pytest.approx(table["across"][1], abs=1e-6)
    assert partition(maps, "whole", "blocks.2") == pytest.approx(table["across_intact"][1], abs=1e-6)
    rich = cka.measure(list(loaded.values()), given, layers="paper")
    assert abs(partition(rich, "last", "blocks.2")) < 1
    with pytest.raises(Refusal, match=r"no layer 'blocks.7' of last"):
        partition(maps, "last", "blocks.7")


def test_what_cannot_be_compared_says_why():
    whole, other, deep = models.named(
        {"whole": ViT(**OWN), "other": ViT(**OWN), "deep": ViT(**OWN | {"depth": 4}, no_skip=1)}
    ).values()
    with pytest.raises(
        Refusal, match="other has 3 blocks, and 0 without skip connections; wanted are 3, as whole"
    ):
        trained_without_skips(whole, [other], images(size=16))
    with pytest.raises(Refusal, match="deep has 4 blocks, and 1 without"):
        trained_without_skips(whole, [deep], images(size=16))


def test_weights_that_are_not_there_yet_are_named_and_left_out(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(zoo, "home", lambda name: tmp_path / name)
    with caplog.at_level(logging.WARNING):
        assert command._trained("lab/vit", None) == []
    assert "train it: python -m vit_analysis.train lab/vit_no_skip_middle" in caplog.text
    assert command._trained("resnet18", None) == []
    assert command._trained("lab/vit", ("a", "b")) == ["a", "b"]
    assert set(lesions.TRAINED) <= {zoo.PREFIX + name for name in zoo.RECIPES}


def test_the_untrained_lab_pair_and_its_picture():
    loaded = [models.load(name, device="cpu") for name in ("lab/vit@random", "lab/resnet@random")]
    table = measure(loaded, Images(limit=16, batch=8))
    assert list(table.columns) == [
        *("model", "block", "reference", "accuracy", "accuracy_low", "accuracy_high", "drop", "low", "high"),
        *("across", "across_intact", "across_drop", "across_low", "across_high"),
        *("drop_without", "across_drop_without"),
    ]
    assert set(table["reference"]) == {"labels"}
    left, right = plot.lesions(table).axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("accuracy", "mean CKA across the block")
    np.testing.assert_array_equal(left.lines[1].get_ydata(), table["accuracy"][:8])
    # Accuracies of so few images have wide intervals, and none leaves [0, 1] or is a point.
    assert table["accuracy_low"].between(0, table["accuracy"]).all()
    assert table["accuracy_high"].between(table["accuracy"], 1).all()
    assert (table["accuracy_high"] - table["accuracy_low"] > 0.1).all()


# From sums to rows -------------------------------------------------------------------------------------------------------


def test_rows_are_what_a_hand_computes_of_the_sums_of_all_groups_and_without_each():
    """Three batches of unequal size; two runs of three lack the skip connections of the last and of the first block."""
    generator, sizes = np.random.default_rng(0), (8, 8, 5)
    factors = generator.normal(size=(3, 3, 4, 6))  # batch, run, layer, feature
    hsic = np.einsum("brif,brjf->brij", factors, factors)
    right = np.array([[7, 2, 5], [6, 3, 1], [5, 0, 4]])
    sums = [
        lesions.RunSums.of_batch(
            number, size, hsic=size * torch.tensor(hsic[number]), right=torch.tensor(right[number]).double()
        )
        for number, size in enumerate(sizes)
    ]
    table = lesions._run_rows(sums[0] + sums[1] + sums[2], ["a", "b", "c"], ["c", "a"])

    def by_hand(batches: list[int], row: int) -> dict[str, float]:
        run, at = row + 1, (3, 1)[row]  # layers 0 to 2 come before the last block, 0 alone before the first
        whole = sum(sizes[batch] * hsic[batch] for batch in batches)

        def across(own: int) -> float:
            pairs = [(before, after) for before in range(at) for after in range(at, 4)]
            found = [whole[own, i, j] / np.sqrt(whole[own, i, i] * whole[own, j, j]) for i, j in pairs]
            return sum(found) / len(found)

        count = sum(sizes[batch] for batch in batches)
        shares = [sum(right[batch][own] for batch in batches) / count for own in (0, run)]
        told = {"accuracy": shares[1], "drop": shares[0] - shares[1]}
        told |= {"across": across(run), "across_intact": across(0)}
        return told | {"across_drop": told["across_intact"] - told["across"]}

    assert table["block"].tolist() == ["c", "a"]
    for row in range(2):
        expected = by_hand([0, 1, 2], row)
        left = [by_hand([batch for batch in range(3) if batch != out], row) for out in range(3)]
        for name, value in expected.items():
            assert table[name][row] == pytest.approx(value), name
        for name, low, high in (("drop", "low", "high"), ("across_drop", "across_low", "across_high")):
            without = np.array([own[name] for own in left])
            half = 4.3026527 * np.sqrt(
                2 / 3 * ((without - without.mean()) ** 2).sum()
            )  # Student's t, 2 degrees
            np.testing.assert_allclose(table[f"{name}_without"][row], without, rtol=1e-6)
            assert (table[low][row], table[high][row]) == pytest.approx(
                (expected[name] - half, expected[name] + half)
            )
        assert 0 <= table["accuracy_low"][row] < expected["accuracy"] < table["accuracy_high"][row] <= 1

    of_drop, of_across = ("drop", "low", "high"), ("across_drop", "across_low", "across_high")
    assert list(lesions._ordered(table.assign(model="m", reference="labels"))) == [
        *("model", "block", "reference", "accuracy", "accuracy_low", "accuracy_high", *of_drop),
        *("across", "across_intact", *of_across, "drop_without", "across_drop_without"),
    ]


def test_a_row_says_what_its_answers_are_compared_with():
    assert (lesions._reference(None), lesions._reference([0, 1])) == ("intact model", "labels")


def kept(key: str, values: torch.Tensor, path: str = "") -> torch.Tensor | None:
    """What is kept of a value of a layer; the output is at the empty path."""
    model = models.Model("m", nn.Identity(), models.Preprocessing(), "")
    return lesions._reducer(Tap(""))(Activation(model, Layer(Tap(path), key=key), values, Layout()))


def test_answers_are_read_from_the_output_by_its_names_and_features_are_not():
    values = torch.tensor([[0.0, 2.0, 1.0], [5.0, 3.0, 4.0]])
    for key in ("", "[logits]", "[pooler_output]", "[image_embeds]"):
        assert kept(key, values).tolist() == [1, 0]
        assert kept(key, values[:, :, None, None]).tolist() == [1, 0]
        with pytest.raises(Refusal, match="m returns 2 x 3 x 2 x 2 and no classes"):
            kept(key, values[:, :, None, None].expand(-1, -1, 2, 2))
    assert kept("[last_hidden_state]", values) is None
    for key, path in (("[attentions]", ""), ("[logits]", "blocks.0"), ("[last_hidden_state]", "blocks.0")):
        with pytest.raises(Refusal, match="is one of several values that its block passes on"):
            kept(key, values, path)
    assert kept("", torch.randn(3, 5), "blocks.0").shape == (0,)  # too few images for a similarity
    assert kept("", torch.randn(4, 5), "blocks.0").shape == (6,)


def test_a_block_divides_the_layers_of_its_own_model_alone():
    names = ("a", "b.inside", "b", "c")
    rows = [
        (model, layer, other, beside, base + 10.0 * i + j)
        for (model, other), base in {
            ("m", "m"): 0.0,
            ("n", "m"): 1e3,
            ("m", "n"): 1e4,
            ("n", "n"): 1e5,
        }.items()
        for i, layer in enumerate(names)
        for j, beside in enumerate(names)
    ]
    table = pd.DataFrame(rows, columns=["model", "layer", "other_model", "other_layer", "cka"])
    assert partition(table, "m", "b") == pytest.approx((2 + 3) / 2)  # a with b and c
    assert partition(table, "m", "c") == pytest.approx((3 + 13 + 23) / 3)
    assert partition(table, "n", "b") == pytest.approx(1e5 + (2 + 3) / 2)
    with pytest.raises(Refusal, match=r"the table holds no layer 'x' of m, only a, b.inside, b, c \.\.\."):
        partition(table, "m", "x")


def test_rows_of_several_models_stand_one_below_the_other(monkeypatch):
    def one(name: str) -> dict[str, pd.DataFrame]:
        made = pd.DataFrame({"model": [name] * 2, "block": ["a", "b"]})
        made.attrs = {"models": {name: f"of {name}"}}
        return {"": made}

    own = {name: models.Model(name, nn.Identity(), models.Preprocessing(), name) for name in "mn"}
    monkeypatch.setattr(lesions, "named", lambda _: own)
    monkeypatch.setattr(lesions, "plan", lambda model, _: model.name)
    monkeypatch.setattr(lesions, "in_passes", lambda passes, _: [one(own[""]) for own in passes])
    table = measure([], images())
    assert table.index.tolist() == [0, 1, 2, 3]
    assert table["model"].tolist() == ["m", "m", "n", "n"]
    assert table.attrs["models"] == {"m": "of m", "n": "of n"}


@pytest.mark.parametrize("path", ["blocks.0", "model.blocks.0"])
def test_a_model_whose_features_alone_were_kept_is_refused(path):
    seen = {"m": {Layer(Tap(path)): torch.zeros(28)}}
    batch = Pass(0, 8, seen, torch.zeros(8, dtype=torch.long), list(range(8)))
    with pytest.raises(
        Refusal, match="m returns features and no classes, so nothing it says can be compared"
    ):
        lesions._fold_runs(batch, None, lambda own: [list(one.values()) for one in own.values()])
