"""Networks that tell something else of themselves than they do, or do it in another way: right, or refused with a sentence."""

import json
import logging

import networks
import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import transforms

from vit_analysis import attention_distance, cka, layers, localization, models, receptive_field
from vit_analysis.anatomy.positions import position, positions
from vit_analysis.makers import processors
from vit_analysis.spelling import Refusal
from vit_analysis.tensors import tokens
from vit_analysis.tensors.tokens import Grid

PIXELS = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Block = timm.models.vision_transformer.Block


def spatial(module: nn.Module, count: int) -> Tensor:
    """The numbers of the tokens that are taken to have a place, of so many."""
    model = models.own(module, "m", preprocessing=models.Preprocessing((3, 32, 32)))
    activation = torch.arange(count).float()[None, :, None].expand(2, -1, 24)
    return tokens.spatial(activation, layers.layout(model))[0, :, 0].int().tolist()


# What is around a network --------------------------------------------------------------------------------------------


class Doubled(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(2 * x - 1)


@pytest.mark.parametrize(
    "around", [Doubled, lambda net: nn.Sequential(transforms.Normalize((0.4,) * 3, (0.2,) * 3), net)]
)
def test_a_module_that_changes_images_stays_and_its_preprocessing_is_only_assumed(around, caplog):
    net = networks.timm_vit()
    model = models.own(around(net), "m")
    assert model.module is not net
    assert model.assumed
    given = 2 * PIXELS - 1 if around is Doubled else (PIXELS - 0.4) / 0.2
    found, expected = (
        cka.measure(model, PIXELS, layers="blocks"),
        cka.measure({"n": net}, given, layers="blocks"),
    )
    np.testing.assert_allclose(found["cka"], expected["cka"], atol=1e-6)
    cka.measure(model, models.Images(limit=8, batch=8), layers="blocks")
    assert "m: how its images are prepared is not known; assumed are 32 x 32 pixels, mean 0.5" in caplog.text


class Answers(Doubled):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).softmax(-1)


def test_a_module_that_answers_something_else_stays():
    module = Answers(networks.timm_vit())
    assert models.own(module, "m").module is module
    assert not models.own(module, "m").assumed


class Prompted(nn.Module):
    """Prompts behind the class token of a network whose blocks it calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.prompts = networks.timm_vit(embed_dim=24), nn.Parameter(torch.randn(1, 3, 24))

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        x = net._pos_embed(net.patch_embed(x))
        x = torch.cat([x[:, :1], self.prompts.expand(len(x), -1, -1), x[:, 1:]], 1)
        for block in net.blocks:
            x = block(x)
        return net.head(net.norm(x)[:, 0])


def test_the_tokens_of_a_network_are_those_that_the_module_around_it_gives_its_blocks():
    assert spatial(Prompted(), 20) == list(range(4, 20))
    assert spatial(networks.timm_vit(embed_dim=24), 17) == list(range(1, 17))


class Distilled(nn.Module):
    """A student without a class token, and its teacher, which does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = networks.timm_vit(embed_dim=24)
        self.embed, self.blocks = nn.Conv2d(3, 24, 4, 4), nn.ModuleList([Block(24, 3), Block(24, 3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).mT
        for block in self.blocks:
            x = block(x)
        return x.mean(1)


def test_a_network_that_does_not_run_says_nothing_of_one_that_does():
    assert spatial(Distilled(), 64) == list(range(64))
    with pytest.raises(Refusal):
        cka.measure({"m": Distilled()}, PIXELS, layers="blocks.*", tokens="cls")


def test_a_part_of_a_codebase_is_no_network():
    class Mine(Distilled):
        def __init__(self) -> None:
            super().__init__()
            self.teacher, self.gate = None, timm.layers.EffectiveSEModule(24)
            self.fc = timm.layers.ClassifierHead(24, 10)

    model = models.own(Mine(), "m")
    assert (model.anatomy.base, model.assumed) == ("", True)
    assert spatial(Mine(), 64) == list(range(64))


# Tokens that are not what their names say ---------------------------------------------------------------------------


class Odd(nn.Module):
    """A class token in front, but for what `kind` says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed, self.blocks = nn.Conv2d(3, 24, 8, 8), nn.ModuleList([Block(24, 3), Block(24, 3)])
        self.cls_token = nn.Parameter(torch.randn(1, 1, 24))
        self.reg_tokens = nn.Parameter(torch.randn(1, 4, 24)) if kind == "registers at the end" else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).mT
        first = self.cls_token.expand(len(x), -1, -1)
        whole = torch.cat([first, x], 1)
        x = {
            "at the end": torch.cat([x, first], 1),
            "registers at the end": torch.cat(
                [whole, *([] if self.reg_tokens is None else [self.reg_tokens.expand(len(x), -1, -1)])], 1
            ),
            "of the image": torch.cat([first + x.mean(1, keepdim=True), x], 1),
            "scaled by the image": whole * (1 + x.mean(1, keepdim=True)),
            "never the same": whole * (1 + torch.randn(1)),
            "later": x,
        }.get(self.kind, whole)
        for number, block in enumerate(self.blocks):
            x = block(torch.cat([first, x], 1) if number == 1 and self.kind == "later" else x)
        return x[:, 0]


def test_a_class_token_in_front_is_counted():
    assert spatial(Odd("in front"), 17) == list(range(1, 17))


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("at the end", 17),
        ("registers at the end", 21),
        ("of the image", 17),
        ("scaled by the image", 17),
        ("never the same", 17),
        ("later", 17),
    ],
)
def test_tokens_whose_place_a_run_does_not_show_are_refused(kind, count):
    with pytest.raises(Refusal, match=f"these {count} tokens .* say it: models.own"):
        spatial(Odd(kind), count)


def test_a_stem_of_many_convolutions_changes_nothing():
    module = Odd("in front")
    stem = [nn.Conv2d(3, 24, 3, 2, 1), nn.Conv2d(24, 24, 3, 2, 1), nn.Conv2d(24, 24, 3, 2, 1)]
    module.embed = nn.Sequential(*stem, *(nn.Conv2d(24, 24, 1) for _ in range(20)))
    assert spatial(module, 17) == list(range(1, 17))
    model = models.own(module, "m", preprocessing=models.Preprocessing((3, 32, 32)))
    assert layers.grid(model) == Grid(4, 4, 8.0, 8.0, -3.5, -3.5)  # of all three strided ones


# Images of another size than a network was built for ------------------------------------------------------------------


def test_tokens_lie_where_the_images_that_are_given_put_them():
    module = networks.timm_vit(dynamic_img_size=True)
    wide, odd = torch.randn(16, 3, 16, 64), torch.randn(64, 3, 24, 40)
    found = attention_distance.measure({"m": module}, wide)
    assert found["uniform_px"].iloc[0] == pytest.approx(Grid(2, 8, 8.0, 8.0).distances().mean().item())
    table = localization.measure({"m": module}, odd)
    assert (table["token_row"].max(), table["token_col"].max()) == (2, 4)
    # 15 patches and a class token are as many as the 4 x 4 patches that it was built for
    kept = cka.measure({"m": module}, odd, layers="blocks", tokens="cls")
    assert kept["cka"].notna().all()
    every, only = (
        cka.measure({"m": module}, odd, layers="blocks", tokens=t)["cka"][1] for t in ("all", "spatial")
    )
    assert every != only


def test_a_network_of_transformers_is_read_at_the_size_of_its_images():
    module = networks.transformers_vit(
        "dinov2",
    )
    big = torch.randn(16, 3, 48, 48)
    found = attention_distance.measure({"m": module}, big)
    assert found["uniform_px"].iloc[0] == pytest.approx(Grid(6, 6, 8.0, 8.0).distances().mean().item())
    assert localization.measure({"m": module}, big)["token"].nunique() == 36
    assert len(receptive_field.measure({"m": module}, big[:2], layers="blocks", channels=2)) == 2


@pytest.mark.parametrize("analysis", [localization, receptive_field])
def test_images_of_a_size_that_is_not_taken_are_a_sentence(analysis):
    with pytest.raises(Refusal, match="does not take images of 3 x 48 x 48"):
        analysis.measure({"m": networks.timm_vit()}, torch.randn(16, 3, 48, 48), layers="blocks")


def test_maps_that_are_not_square_and_end_with_channels():
    module = torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [2, 2], num_classes=4).eval()
    pixels = torch.randn(32, 3, 32, 64)
    found = cka.measure({"m": module}, pixels, layers=["features.1"], tokens="mean")
    assert found["cka"].item() == pytest.approx(1)
    kept = []
    module.features[1].register_forward_hook(lambda *own: kept.append(own[2]))
    module(pixels)
    assert layers.layout(module).ends_with_channels(kept[0])


# Downsampling without modules -----------------------------------------------------------------------------------------


class LeNet(nn.Module):
    def __init__(self, pool) -> None:
        super().__init__()
        self.pool = pool
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.relu(self.conv2(self.pool(F.relu(self.conv1(x)))))).flatten(1)


def test_functions_are_followed_as_modules_are():
    images = torch.randn(4, 1, 28, 28)
    with_modules = positions(LeNet(nn.MaxPool2d(2)), images)
    assert with_modules[8, 8] == Grid(8, 8, 2.0, 2.0, 6.0, 6.0)
    for pool in (lambda x: F.max_pool2d(x, 2), lambda x: F.avg_pool2d(x, 2)):
        assert positions(LeNet(pool), images) == with_modules


def test_padding_before_a_convolution_is_followed():
    found = positions(timm.create_model("resnetblur18"), torch.zeros(1, 3, 97, 97))
    plain = positions(timm.create_model("resnet18"), torch.zeros(1, 3, 97, 97))
    for size, grid in plain.items():
        assert position(found, *size) == grid


def test_attention_over_other_things_than_images_is_refused():
    class Chunked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(48, 144)

        def forward(self, x: Tensor, **_) -> Tensor:
            query, key, value = self.qkv(x).unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4)
            parts = zip(query.split(2), key.split(2), value.split(2), strict=True)
            return (
                torch.cat([F.scaled_dot_product_attention(*own) for own in parts]).transpose(1, 2).flatten(2)
            )

    module = networks.timm_vit()
    for block in module.blocks:
        block.attn = Chunked()
    with pytest.raises(Refusal, match="attends in 2 things for 64 images"):
        attention_distance.measure({"m": module}, PIXELS)


# Given back as they were --------------------------------------------------------------------------------------------


def test_weights_keep_their_memory_and_the_users_random_numbers_go_on():
    module = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
    module[2].weight = nn.Parameter(torch.randn(8, 1, 3, 3).expand(8, 8, 3, 3))
    before = [own.data_ptr() for own in module.parameters()]
    numbers = torch.get_rng_state()
    with torch.inference_mode():
        cka.measure({"m": module}, PIXELS, layers=["0", "2"])
        receptive_field.measure({"m": module}, PIXELS[:4], layers=["0"], channels=2)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert [own.data_ptr() for own in module.parameters()] == before
    module(PIXELS[:2]).sum().backward()
    assert module[0].weight.grad is not None


def test_gradients_that_end_before_something_that_learns_are_refused():
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.extra = networks.timm_vit(num_classes=0), Block(48, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                features = self.net.forward_features(x)
            return self.extra(features)

    with pytest.raises(Refusal, match="gradients of 'extra' of m do not reach its input"):
        receptive_field.measure({"m": Adapted()}, PIXELS[:4], layers=["extra"], channels=2)


def test_the_digest_knows_what_a_network_is_set_to():
    one, other = networks.timm_vit(), networks.timm_vit(num_heads=4)
    other.load_state_dict(one.state_dict())
    assert models.digest(one) == models.digest(networks.timm_vit()) != models.digest(other)
    vit = networks.transformers_vit()
    before = models.digest(vit)
    vit.config.hidden_act = "relu"
    assert models.digest(vit) != before
    assert models.digest(one.train()) == models.digest(one.eval())


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (lambda: torch.jit.script(nn.Sequential(nn.Linear(3, 3))), "is a TorchScript program"),
        (lambda: nn.Sequential(nn.LazyConv2d(3, 3)), "whose shape is not known yet"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_read_is_refused(module, sentence):
    with pytest.raises(Refusal, match=sentence):
        models.own(module(), "m")


# Processors of transformers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "size", "share", "way"),
    [
        ({"size": {"height": 32, "width": 32}}, (32, 32), 1, "squash"),
        ({"size": {"height": 32, "width": 64}}, (32, 64), 1, "squash"),
        ({"size": 32, "image_processor_type": "ViTImageProcessor"}, (32, 32), 1, "squash"),
        ({"size": 40, "crop_size": 32, "do_center_crop": True}, (32, 32), 0.8, "center"),
        (
            {
                "size": {"height": 40, "width": 40},
                "crop_size": {"height": 32, "width": 32},
                "do_center_crop": True,
            },
            (32, 32),
            0.8,
            "squash",
        ),
        ({"size": {"shortest_edge": 28}, "crop_pct": 0.875}, (28, 28), 0.875, "center"),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, (384, 384), 1, "squash"),
    ],
)
def test_processors_are_read(facts, size, share, way):
    read = processors.processed(facts, networks.transformers_vit())
    assert (read.input_size[1:], read.crop_mode) == (size, way)
    assert read.crop_pct == pytest.approx(share)


@pytest.mark.parametrize(
    "facts",
    [
        {"rescale_factor": 1 / 127.5},
        {"do_rescale": False},
        {"do_resize": False},
        {"size": {"longest_edge": 32}},
        {"size": {"shortest_edge": 32}},
        {"size": 32, "image_processor_type": "CLIPImageProcessor"},
        {"resample": None},
        {"image_mean": None},
        {"crop_size": {"height": 16, "width": 32}, "size": {"shortest_edge": 32}, "do_center_crop": True},
    ],
)
def test_processors_that_ask_for_something_else_are_refused_by_what_they_say(facts):
    with pytest.raises(Refusal, match=r"preprocessor_config.json says \w+=.*, which is not known here"):
        processors.processed(json.loads(json.dumps(facts)), networks.transformers_vit())


def test_the_preprocessing_of_a_module_of_transformers_or_torchvision_is_assumed(caplog):
    caplog.set_level(logging.WARNING)
    for module in (networks.transformers_vit("clip_vision_model"), networks.torchvision_vit()):
        assert models.own(module, "m").assumed
    assert not models.own(networks.timm_vit(), "m").assumed


@pytest.mark.parametrize("device", ["foo", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(Refusal, match=f"cannot compute on --device '{device}'"):
        models.load("lab/vit@random", device=device)
