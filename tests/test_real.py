"""Real weights and real images: the public function against float64 oracles, and what massive activations do."""

import pytest
import torch
from doubles import cell, oracle_cka

from vit_analysis import cka, models
from vit_analysis.images import Images
from vit_analysis.reading.capture import Capture


@pytest.fixture(scope="module")
def pair(assets):
    weights = assets / "weights"
    names = [f"{name}@{weights / name}.safetensors" for name in ("vit_tiny_patch16_224", "resnet50")]
    return models.load_all(names, device="cpu")


@pytest.fixture(scope="module")
def photographs(assets):
    return Images(str(assets / "images" / "imagenet_sample"), limit=40, batch=20, workers=0)


@pytest.fixture(scope="module")
def kept(pair, photographs):
    """Block outputs of both models, by layer, as a list over batches."""
    seen: dict[str, list[torch.Tensor]] = {}
    for batch in photographs.read([model.preprocessing for model in pair]):
        for model, pixels in zip(pair, batch.inputs, strict=True):
            taps = [name for name, _ in model.module.named_modules() if name in WANTED]
            with Capture(model.module, taps) as run, torch.inference_mode():
                for layer, activation in run(pixels).items():
                    seen.setdefault(str(layer), []).append(activation)
    return seen


WANTED = ("blocks.0", "blocks.6", "blocks.8", "blocks.11", "layer1.0", "layer2.3", "layer4.2")


@pytest.fixture(scope="module")
def table(pair, photographs):
    return cka.measure(pair, photographs, layers=WANTED)


def test_the_names_are_those_of_the_models(pair):
    assert [model.name for model in pair] == ["vit_tiny_patch16_224", "resnet50"]
    assert [model.preprocessing.crop_pct for model in pair] == [0.9, 0.95]


def test_every_pair_agrees_with_the_float64_formula(table, kept):
    assert len(table) == len(WANTED) ** 2
    for row in table.itertuples():
        assert row.cka == pytest.approx(oracle_cka(kept[row.layer], kept[row.other_layer]), abs=2e-5)


def test_the_models_recognise_what_they_see(pair, photographs):
    # Preprocessing is right if the models work: these are mostly training images (82.8 % and 76.6 % on all 1,000).
    right = torch.zeros(2)
    names = sorted(photographs.name(number)[:9] for number in range(1000))
    for batch in photographs.read([model.preprocessing for model in pair]):
        truth = torch.tensor([names.index(photographs.name(number)[:9]) for number in batch.images])
        for i, (model, pixels) in enumerate(zip(pair, batch.inputs, strict=True)):
            with torch.inference_mode():
                right[i] += (model.module(pixels).argmax(1) == truth).sum()
    assert (right / 40).min() > 0.6


def test_massive_activations_make_the_last_blocks_look_alike_and_normalizing_undoes_it(
    table, pair, photographs
):
    shares = {row["layer"]: row for row in table.attrs["massive"]}
    assert shares["blocks.6"]["tokens"] == 0
    assert 0.01 < shares["blocks.11"]["tokens"] < 0.03
    assert shares["blocks.11"]["hsic"] > 0.9
    assert cell(table, "blocks.8", "blocks.11") > 0.99
    assert cell(table, "blocks.6", "blocks.11") < 0.3
    normalized = cka.measure(
        pair[:1], photographs, layers=[w for w in WANTED if "blocks" in w], tokens="normalized"
    )
    assert cell(normalized, "blocks.8", "blocks.11") < 0.95
    assert cell(normalized, "blocks.6", "blocks.11") > 0.5
