"""Models as users have them: wrapped, compiled, in other precisions, odd inside: right or refused, and given back."""

import copy
import logging
from collections.abc import Callable

import networks
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from doubles import Given, Layers
from torch import Tensor, nn

from vit_analysis import attention_distance, cka, layers, lesions, localization, models, receptive_field, skip
from vit_analysis.images import Images, Preprocessing
from vit_analysis.layers import Anatomy
from vit_analysis.spelling import Refusal
from vit_analysis.tensors.precision import full_float32

ANALYSES = (cka, attention_distance, receptive_field, skip, lesions, localization)
PIXELS = torch.randn(96, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def measured(analysis, module: nn.Module, **more) -> pd.DataFrame:
    few = {"images": PIXELS[:4], "channels": 2} if analysis is receptive_field else {"images": PIXELS}
    return analysis.measure({"m": module}, **few | more)


def assert_same(found: pd.DataFrame, expected: pd.DataFrame, tolerance: float = 0.0) -> None:
    assert len(found) == len(expected)
    for column in expected.select_dtypes("number"):
        np.testing.assert_allclose(
            found[column], expected[column], rtol=tolerance, atol=tolerance, err_msg=column
        )


class Task(nn.Module):
    """A training task that holds a network, as those of Lightning do."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.loss = net, nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Tuned(Task):
    """A network with another head behind it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x))


def compiled_inside() -> nn.Module:
    module = networks.timm_vit()
    for number, block in enumerate(module.blocks):
        module.blocks[number] = torch.compile(block)
    return module


def compiled_in_place() -> nn.Module:
    module = networks.timm_vit()
    module.compile()
    return module


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "data parallel": lambda: nn.DataParallel(networks.timm_vit()),
    "average of weights": lambda: torch.optim.swa_utils.AveragedModel(networks.timm_vit()),
    "timm's average": lambda: timm.utils.ModelEmaV3(networks.timm_vit()),
    "compiled": lambda: torch.compile(networks.timm_vit()),
    "compiled in place": compiled_in_place,
    "blocks compiled": compiled_inside,
    "a task": lambda: Task(networks.timm_vit()),
    "several at once": lambda: torch.compile(nn.DataParallel(Task(networks.timm_vit()))),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_wrapped_network_is_the_network(kind):
    plain, wrapped = networks.timm_vit(), WRAPPED[kind]()
    model = models.named({"m": wrapped})["m"]
    assert model.preprocessing == models.named({"m": plain})["m"].preprocessing
    assert model.preprocessing.mean == (0.5, 0.5, 0.5)
    for analysis in ANALYSES:
        expected, found = measured(analysis, plain), measured(analysis, wrapped)
        assert_same(found, expected)
    assert {"patch_embed", "norm"} <= set(measured(cka, wrapped)["layer"])
    assert len(measured(cka, wrapped, tokens="cls"))


def test_a_network_with_more_around_it_keeps_its_preprocessing_and_anatomy(caplog):
    caplog.set_level(logging.INFO)
    model = models.named({"m": Tuned(networks.timm_vit())})["m"]
    assert model.preprocessing.mean == (0.5, 0.5, 0.5)
    assert "m: images are prepared as for its 'net', a VisionTransformer" in caplog.text
    found = cka.measure(model, PIXELS, tokens="cls")
    assert set(found["layer"]) == {
        f"net.{layer}" for layer in measured(cka, networks.timm_vit(), tokens="cls")["layer"]
    }
    assert len(cka.measure(model, PIXELS, layers=["net.blocks.*", "head"])) == 9


def test_a_preprocessing_that_is_assumed_is_said_and_can_be_told(caplog):
    assumed = models.named({"m": networks.timm_vit(), "o": Layers(x=lambda x: x[:, :, :4, :4])})
    assert assumed["o"].preprocessing == Preprocessing()
    cka.measure(assumed["o"], PIXELS, layers="x")
    assert caplog.text == ""  # tensors go in as they are
    cka.measure(assumed["o"], Images(limit=8, batch=8), layers="x")
    assert (
        "o: how its images are prepared is not known; assumed are 224 x 224 pixels, mean 0.485" in caplog.text
    )
    caplog.clear()
    own = Preprocessing((3, 32, 32))
    assert models.own(networks.Own(), "m", preprocessing=own).preprocessing == own
    models.named({"m": networks.timm_vit(), "w": nn.DataParallel(networks.timm_vit())})
    assert caplog.text == ""


# Odd inside ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [16, 17, 96])
def test_images_along_the_second_axis_are_found(images):
    """With as many images as tokens nothing but two sizes of batch can tell the axes apart."""
    first, second = networks.Own(), networks.Own(batch_first=False)
    given = Given(batch=images, pixels=torch.randn(3 * images, 3, 32, 32))
    choose = {"layers": ["encoder.layers.*", "encoder.layers.*.norm1"]}
    expected, found = (cka.measure({"m": module}, given, **choose) for module in (first, second))
    assert_same(found, expected, 1e-6)


@pytest.mark.parametrize("analysis", ANALYSES, ids=lambda analysis: analysis.__name__)
def test_every_analysis_reads_a_network_with_images_along_the_second_axis(analysis):
    expected = measured(analysis, networks.Own())
    assert_same(measured(analysis, networks.Own(batch_first=False)), expected, 1e-5)


class WritesIntoItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = networks.timm_vit()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.mul_(0.5).add_(3.0))


@pytest.mark.parametrize("analysis", [cka, skip, localization, attention_distance])
def test_a_model_that_writes_into_its_input_changes_no_other(analysis):
    other = networks.timm_vit(seed=1)
    alone = analysis.measure({"other": other}, PIXELS)
    for pair in (
        {"writer": WritesIntoItsInput(), "other": other},
        {"other": other, "writer": WritesIntoItsInput()},
    ):
        both = analysis.measure(pair, PIXELS)
        own = both[both["model"] == "other"]
        assert_same(own[own.get("other_model", own["model"]) == "other"], alone)


def test_a_model_that_writes_into_its_input_is_given_the_same_one_in_every_run():
    class Plain(WritesIntoItsInput):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x * 0.5 + 3.0)

    for analysis in (lesions, receptive_field, localization):
        assert_same(measured(analysis, WritesIntoItsInput()), measured(analysis, Plain()))


class Caches(nn.Module):
    """A layer that computes positions when it needs them first, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.places = networks.timm_vit(), None

    def forward(self, x: Tensor) -> Tensor:
        if self.places is None:
            self.places = torch.linspace(0, 1, 32, device=x.device)
        return self.net(x * self.places)


@pytest.mark.parametrize("analysis", ANALYSES, ids=lambda analysis: analysis.__name__)
def test_what_a_model_caches_can_be_trained_with_afterwards(analysis):
    module = Caches()
    measured(analysis, module)
    pixels = PIXELS[:2].clone().requires_grad_()
    module(pixels).sum().backward()
    assert pixels.grad is not None
    measured(receptive_field, module)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 3e-2), (torch.float64, 1e-4)]
)
def test_images_are_given_in_the_precision_of_the_weights(precision, tolerance):
    plain, other = networks.timm_vit(), networks.timm_vit().to(precision)
    for analysis, column in (
        (cka, "cka"),
        (attention_distance, "distance_px"),
        (receptive_field, "radius_px"),
        (skip, "cosine"),
        (lesions, "across"),
        (localization, "cka"),
    ):
        expected, found = measured(analysis, plain)[column], measured(analysis, other)[column]
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance, err_msg=analysis.__name__)
    assert next(other.parameters()).dtype == precision


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_network_is_read_but_not_differentiated():
    quantised = torch.ao.quantization.quantize_dynamic(networks.timm_vit(), {nn.Linear})
    one, same = (models.named({"m": copy.deepcopy(quantised)})["m"] for _ in range(2))
    assert one.digest == same.digest != models.named({"m": networks.timm_vit()})["m"].digest
    found, exact = measured(cka, quantised), measured(cka, networks.timm_vit())
    assert 0 < np.abs(found["cka"] - exact["cka"]).max() < 0.1
    with pytest.raises(
        Refusal, match=r"gradients of .* do not reach its input, though it depends on it: a quant"
    ):
        measured(receptive_field, quantised)


def test_gradients_that_a_model_cuts_off_are_no_receptive_field():
    class Frozen(Tuned):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                features = self.net(x)
            return self.head(features)

    with pytest.raises(
        Refusal, match=r"do not reach its input, though it depends on it: .* torch.no_grad\(\)"
    ):
        measured(receptive_field, Frozen(networks.timm_vit()))


def test_weights_without_values_are_refused():
    with torch.device("meta"):
        module = timm.create_model("resnet18")
    with pytest.raises(Refusal, match="on the device 'meta', which holds no values"):
        models.named({"m": module})


# Given back as they were --------------------------------------------------------------------------------------------


def state(module: nn.Module) -> list[object]:
    return [
        [
            (name, part.training, len(part._forward_hooks), len(part._forward_pre_hooks))
            for name, part in module.named_modules()
        ],
        [(name, own.requires_grad, own.stride(), own.dtype) for name, own in module.named_parameters()],
        [getattr(part, "fused_attn", None) for part in module.modules()],
        {name: value.clone() for name, value in module.state_dict().items()}.keys(),
        torch.backends.mha.get_fastpath_enabled(),
    ]


@pytest.mark.parametrize("make", [networks.timm_vit, networks.Own, networks.torchvision_vit])
@pytest.mark.parametrize("analysis", ANALYSES, ids=lambda analysis: analysis.__name__)
def test_a_users_model_comes_back_as_it_was(analysis, make):
    module = make().train()
    before, weights = state(module), copy.deepcopy(module.state_dict())
    measured(analysis, module)
    assert state(module) == before
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    module(PIXELS[:2].clone()).sum().backward()
    assert all(own.grad is not None for name, own in module.named_parameters() if "head" not in name[:4])


def test_modes_change_through_train_alone():
    """Some networks keep there what depends on the mode; timm's TinyViT did until 1.0.21."""

    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.kept = networks.timm_vit(), []

        def train(self, mode: bool = True) -> "Keeps":
            self.kept = [] if mode else [2.0]
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x * (self.kept[0] if self.kept else 1.0))

    module = Keeps().train()
    measured(cka, module)
    assert (module.training, module.kept) == (True, [])


@pytest.mark.parametrize(
    "set_by", ["nobody", "the older way", "the newer way", "the newer way, for products"]
)
def test_precision_settings_of_the_user_are_respected_and_restored(set_by):
    newer = hasattr(torch.backends, "fp32_precision")
    if "newer" in set_by and not newer:
        pytest.skip("this torch has one way only")
    ask = (
        (lambda: (torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision))
        if newer
        else torch.get_float32_matmul_precision
    )
    if newer:  # whatever tests before this one have set
        torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"
    initial = ask()
    try:
        if set_by == "the older way":
            torch.set_float32_matmul_precision("high")
        elif set_by == "the newer way":
            torch.backends.fp32_precision = "tf32"
        elif set_by == "the newer way, for products":
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        before = ask()
        with full_float32(torch.device("cpu")):
            inside = (
                torch.backends.cuda.matmul.fp32_precision if newer else torch.get_float32_matmul_precision()
            )
            assert inside in ("ieee", "highest")
        assert ask() == before
        assert len(measured(cka, networks.timm_vit()))
        assert ask() == before
        if set_by == "the newer way":
            torch.backends.fp32_precision = "ieee"
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"  # it still follows the general setting
    finally:
        if set_by == "the older way" or not newer:
            torch.set_float32_matmul_precision("highest")
        if newer:
            torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"
            torch.backends.fp32_precision = "none"
            # Which "none" is not, and torch's own functions fail of it.
            torch.backends.cudnn.allow_tf32 = True
    assert ask() == initial


# Told ---------------------------------------------------------------------------------------------------------------


def test_what_is_not_known_of_a_module_can_be_told():
    class Prompted(networks.Own):
        """Tokens in front and behind: which of them are patches no run of it shows."""

    module = Prompted(tokens=1, last=2)
    assert layers.layout(models.own(module, "m")).prefix is None
    with pytest.raises(
        Refusal, match=r"of these 19 tokens stand before the spatial ones .* models.own\(module"
    ):
        cka.measure({"m": module}, PIXELS, tokens="spatial", layers="blocks")
    told = models.own(module, "m", anatomy=Anatomy(prefix=3, class_token=True))
    assert len(cka.measure(told, PIXELS, tokens="cls", layers="blocks")) == 4


def test_the_key_holds_what_is_told_and_how_images_are_prepared():
    module = networks.timm_vit()
    keys = [
        cka.plan(models.own(module, "m", **more), PIXELS).key()
        for more in (
            {},
            {"anatomy": Anatomy(prefix=2)},
            {"preprocessing": Preprocessing((3, 32, 32))},
            {"preprocessing": Preprocessing((3, 32, 32), crop_pct=1.0)},
        )
    ]
    assert len(set(keys)) == 4
    assert keys[0] == cka.plan(models.own(networks.timm_vit(), "m"), PIXELS).key()
    other = networks.timm_vit()
    other.blocks[0].mlp.act = nn.ReLU()  # the same weights, and another network
    assert cka.plan(models.own(other, "m"), PIXELS).key() != keys[0]
