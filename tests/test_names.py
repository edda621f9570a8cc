"""What model names say: sources, settings, weights; on files that a test makes."""

import argparse
import json
import logging

import networks
import pytest
import torch
import torchvision

from vit_analysis import layers, models
from vit_analysis.images import Preprocessing
from vit_analysis.makers.request import Request
from vit_analysis.spelling import Refusal
from vit_analysis.study import loaded
from vit_analysis.study.parts import Parts
from vit_analysis.typed import Machine

SMALL = "vit_tiny_patch16_224,depth=2,embed_dim=48,num_heads=3"
PIXELS = torch.randn(2, 3, 32, 32)


def answers(module: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found = module(PIXELS)
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("resnet50", ("resnet50", {}, "", 0)),
        ("resnet50@random", ("resnet50", {}, "random", 0)),
        ("resnet50@random:3", ("resnet50", {}, "random", 3)),
        ("v,img_size=384@a,b=c.pth", ("v", {"img_size": 384}, "a,b=c.pth", 0)),
        ("v,img_size=(32,64),act_layer=relu", ("v", {"img_size": (32, 64), "act_layer": "relu"}, "", 0)),
        ("v,class_token=False,x=none,y=1e-5", ("v", {"class_token": False, "x": None, "y": 1e-5}, "", 0)),
        ("hf-hub:someone/model@revision", ("hf-hub:someone/model@revision", {}, "", 0)),
        ("hf-hub:someone/model@revision@random", ("hf-hub:someone/model@revision", {}, "random", 0)),
    ],
)
def test_a_name_is_taken_apart(name, parts):
    request = Request.of(name)
    assert (request.name, dict(request.settings), request.weights, request.seed) == parts


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("v,img_size=3,img_size=4", "sets img_size twice"),
        ("v@", "names no weights after the @"),
        ("v@random:x", "random:SEED takes a whole number, got 'x'"),
        (
            "vit_tiny_patch16_224,img_sise=384@random",
            r"does not take img_sise=384: .*did you mean 'img_size'",
        ),
        ("torchvision/resnet5@random", "no model 'torchvision/resnet5'; did you mean 'torchvision/resnet50'"),
        ("torchvision/resnet50,clases=3@random", "does not take clases=3"),
        ("transformers/vit,hiden_size=48@random", "does not take hiden_size=48; did you mean 'hidden_size'"),
        ("lab/vit,img_size=64", "lab/vit is built as its weights say and takes no img_size="),
    ],
)
def test_what_a_name_gets_wrong_is_told(name, sentence):
    with pytest.raises(Refusal, match=sentence):
        models.load(name, device="cpu")


def test_settings_go_to_the_constructor_and_the_input_follows():
    one = models.load("vit_tiny_patch16_224,img_size=384,depth=1@random", device="cpu")
    assert (one.preprocessing.input_size, layers.layout(one).grid) == ((3, 384, 384), (24, 24))
    other = models.load("vit_tiny_patch16_224,img_size=32,patch_size=4,depth=1@random", device="cpu")
    assert (other.preprocessing.input_size, layers.grid(other).height) == ((3, 32, 32), 4)
    seeds = [models.load(f"resnet10t@random{seed}", device="cpu").digest for seed in ("", ":0", ":1", ":2")]
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 3


def test_what_a_checkpoint_shows_need_not_be_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    module = networks.timm_vit(img_size=48, patch_size=4, num_classes=7, reg_tokens=2)
    content = {"model": module.state_dict(), "args": argparse.Namespace(lr=1), "epoch": 3}
    torch.save(content, tmp_path / "cifar.pth")
    loaded = models.load(f"{SMALL}@{tmp_path}/cifar.pth", device="cpu")
    assert loaded.name == f"{SMALL}@cifar"
    assert loaded.preprocessing.input_size == (3, 48, 48)
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(loaded.module(pixels), module(pixels))
    (line,) = [line for line in caplog.messages if line.startswith("cifar.pth")]
    assert "num_classes=7; patch_size=4; img_size=48; reg_tokens=2" in line


@pytest.mark.parametrize("saved", ["torchvision", "transformers", "timm"])
@pytest.mark.parametrize("source", ["transformers", "timm"])
def test_weights_of_any_codebase_go_into_any_other(tmp_path, source, saved):
    module = {
        "torchvision": networks.torchvision_vit,
        "transformers": networks.transformers_vit,
        "timm": networks.timm_vit,
    }[saved]()
    torch.save(module.state_dict(), tmp_path / "net.pth")
    if source == "transformers":
        networks.transformers_vit().save_pretrained(tmp_path / "net")
        name = f"transformers/{tmp_path / 'net'}"
    else:
        name = SMALL
    loaded = models.load(f"{name}@{tmp_path / 'net.pth'}", device="cpu")
    torch.testing.assert_close(answers(loaded.module), answers(module), atol=1e-5, rtol=1e-5)


def test_a_resnet_of_torchvision_is_loaded_in_both_codebases(tmp_path):
    module = torchvision.models.resnet18(num_classes=5).eval()
    wrapped = {f"module.{key}": value for key, value in module.state_dict().items()}
    torch.save({"state_dict": wrapped}, tmp_path / "r.pth")
    for name, crop in (("torchvision/resnet18", 224 / 256), ("resnet18", 0.95)):
        loaded = models.load(f"{name}@{tmp_path / 'r.pth'}", device="cpu")
        assert torch.equal(answers(loaded.module), answers(module))
        assert loaded.preprocessing.crop_pct == pytest.approx(crop, abs=0.01)


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_transformers_is_a_model_with_its_own_preprocessing(tmp_path, caplog):
    module = networks.transformers_vit()
    module.save_pretrained(tmp_path / "mine")
    loaded = models.load(f"transformers/{tmp_path / 'mine'}", device="cpu")
    assert loaded.name == "transformers/mine"
    assert torch.equal(answers(loaded.module), answers(module))
    assert "no preprocessor_config.json says how its images are prepared; assumed are 32 x 32" in caplog.text
    caplog.clear()
    facts = {
        "size": {"shortest_edge": 36},
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [1, 1, 1],
        "resample": 3,
    }
    (tmp_path / "mine" / "preprocessor_config.json").write_text(json.dumps(facts))
    told = models.load(f"transformers/{tmp_path / 'mine'}@random:2", device="cpu")
    assert told.preprocessing == Preprocessing(
        (3, 32, 32), (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), "bicubic", 32 / 36, "center"
    )
    assert caplog.text == ""
    with pytest.raises(OSError, match=r"no network of transformers is .*min'; did you mean .*mine'"):
        models.load(f"transformers/{tmp_path / 'min'}")


def test_weights_that_a_folder_lacks_are_refused_and_not_drawn_at_random(tmp_path):
    module = networks.transformers_vit()
    last = layers.blocks(module)[1]
    state = {key: value for key, value in module.state_dict().items() if not key.startswith(last)}
    module.save_pretrained(tmp_path / "mine", state_dict=state)
    with pytest.raises(Refusal, match=r"do not fit ViTForImageClassification: 16 are missing"):
        models.load(f"transformers/{tmp_path / 'mine'}", device="cpu")


def test_a_package_that_is_not_there_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(Refusal, match=r"need the package transformers: pip install transformers"):
        models.load("transformers/vit@random")


def test_the_classes_of_any_codebase_are_counted():
    assert models._classes(torchvision.models.resnet18()) == 1000
    assert models._classes(networks.transformers_vit()) == networks.CLASSES
    assert models._classes(networks.timm_vit()) == networks.CLASSES
    assert models._classes(networks.Own()) is None


@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2", "dinov2_with_registers"])
def test_a_file_without_a_pooler_is_a_network_without_one(tmp_path, kind):
    module = networks.transformers_vit(kind)
    network = getattr(module, "vit", module)
    network.config.architectures = [type(network).__name__]
    network.save_pretrained(tmp_path / "net")
    state = {key: value for key, value in network.state_dict().items() if "pooler" not in key}
    torch.save(state, tmp_path / "net.pth")
    loaded = models.load(f"transformers/{tmp_path / 'net'}@{tmp_path / 'net.pth'}", device="cpu")
    with torch.no_grad():
        expected, found = network(PIXELS)[0], loaded.module(PIXELS)[0]
    assert torch.equal(found, expected)


def test_the_untrained_twin_is_of_the_shape_that_the_weights_show(tmp_path):
    module = networks.timm_vit(img_size=48, patch_size=4, num_classes=7)
    torch.save(module.state_dict(), tmp_path / "cifar.pth")
    name = f"{SMALL}@{tmp_path}/cifar.pth"
    trained, untrained = models.load(name, device="cpu"), models.load_twin(name, device="cpu")
    assert untrained.name == models.twin(name) == f"{SMALL}@random"
    assert untrained.preprocessing == trained.preprocessing
    assert layers.layout(untrained) == layers.layout(trained)
    assert untrained.digest != trained.digest
    shapes = {key: value.shape for key, value in trained.module.state_dict().items()}
    assert {key: value.shape for key, value in untrained.module.state_dict().items()} == shapes
    cast = loaded.Cast.load(Parts(vit=(name,), cnn=("lab/resnet@random",)), Machine("cpu"))
    assert [twin.name for twin in cast.twins] == [f"{SMALL}@random"]
    assert cast.twins[0].preprocessing == trained.preprocessing
    assert (
        models.load_twin("lab/vit", device="cpu").digest == models.load("lab/vit@random", device="cpu").digest
    )
