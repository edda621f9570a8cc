from concurrent.futures import ProcessPoolExecutor

import forked
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from vit_analysis import models, skip
from vit_analysis.images import Images, Preprocessing
from vit_analysis.lab import scenes
from vit_analysis.spelling import Refusal


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint of a small timm model, in half precision as ours are shipped."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    module = timm.create_model("resnet10t")
    safetensors.torch.save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in module.state_dict().items()}, path
    )
    return path


def test_a_checkpoint_is_loaded_exactly_and_widened(small):
    loaded = models.load(f"resnet10t@{small}", device="cpu")
    assert loaded.name == "resnet10t@small"
    assert not loaded.module.training
    expected = safetensors.torch.load_file(small)
    own = loaded.module.state_dict()
    assert own["conv1.0.weight"].dtype == torch.float32
    assert all(torch.equal(own[key], value.to(own[key].dtype)) for key, value in expected.items())


def test_preprocessing_is_the_models_own():
    vit = models.load("vit_tiny_patch16_224@random", device="cpu")
    assert vit.preprocessing == Preprocessing((3, 224, 224), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9)
    assert models.load("resnet10t@random", device="cpu").preprocessing.mean != (0.5,) * 3


def test_the_untrained_twin_is_seeded_and_leaves_the_generator_alone():
    state = torch.get_rng_state()
    one, same, other = (models.load("resnet10t@random", seed=seed, device="cpu") for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.digest == same.digest != other.digest
    assert one.name == "resnet10t@random"


def test_the_digest_changes_with_any_weight():
    module = nn.Linear(3, 2)
    before = models.digest(module)
    with torch.no_grad():
        module.bias[0] += 1e-6
    assert models.digest(module) != before


def test_weights_fine_tuned_to_other_classes_are_recognised(tmp_path):
    module = timm.create_model("resnet10t", num_classes=7)
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in module.state_dict().items()}}, tmp_path / "tuned.pth"
    )
    loaded = models.load(f"resnet10t@{tmp_path / 'tuned.pth'}", device="cpu")
    assert loaded.module.num_classes == 7
    assert torch.equal(loaded.module.fc.weight, module.fc.weight)


def test_weights_of_another_architecture_say_which_keys_and_how_many(small):
    with pytest.raises(
        Refusal, match=r"does not fit ResNet of 122 tensors: .* missing \(.*\.\.\.\).*of another shape"
    ):
        models.load(f"resnet18@{small}", device="cpu")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "was-run"), "w"))

    torch.save({"state_dict": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(OSError, match=r"evil.pth' is not a file of weights that can be read safely"):
        models.load(f"resnet10t@{tmp_path / 'evil.pth'}", device="cpu")
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_broken_checkpoint_says_so(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x08\x00\x00")
    with pytest.raises(OSError, match="is not a file of weights"):
        models.load(f"resnet10t@{tmp_path / name}", device="cpu")


def test_unknown_names_bring_the_nearest_right_ones(small):
    with pytest.raises(Refusal, match="no model 'resnet5'; did you mean 'resnet50'"):
        models.load("resnet5")
    with pytest.raises(Refusal, match="no lab model 'lab/vitt'; did you mean 'lab/vit'"):
        models.load("lab/vitt")
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint .*smal.safetensors'; did you mean .*small.safetensors"
    ):
        models.load(f"resnet10t@{small.parent / 'smal.safetensors'}")


def test_trained_weights_that_cannot_be_had_say_what_to_do(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no pretrained weights exist\nlong story")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(
        OSError,
        match=r"no trained weights for 'resnet10t': no pretrained weights exist; give .*resnet10t@FILE",
    ):
        models.load("resnet10t")


def test_models_of_the_same_name_need_names_of_their_own(tmp_path, small):
    other = tmp_path / "small.safetensors"
    other.write_bytes(small.read_bytes())
    names = [f"resnet10t@{small}", f"resnet10t@{other}"]
    assert [model.name for model in models.load_all(names, device="cpu")] == names
    with pytest.raises(Refusal, match="give different models, or names of your own"):
        models.named([models.load(name, device="cpu") for name in names])


def test_any_module_gets_timms_defaults():
    model = models.named({"mine": nn.Conv2d(3, 4, 3)})["mine"]
    assert model.preprocessing == Preprocessing()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lab/vit", "lab/vit@random"),
        ("lab/vit@random", "lab/vit@random"),
        ("resnet50.tv_in1k@~/weights.pt", "resnet50.tv_in1k@random"),
        ("hf-hub:someone/model@revision", "hf-hub:someone/model@revision@random"),
    ],
)
def test_the_untrained_twin_of_any_name(name, expected):
    assert models.twin(name) == expected


# What every analysis takes as its models ----------------------------------------------------------------------------

VIT, CNN = "lab/vit@random", "lab/resnet@random"


@pytest.fixture(scope="module")
def pair():
    return models.load_all([VIT, CNN])


def known(given) -> list[tuple[str, str, str]]:
    """Under which name, of which name and with which weights each model is known."""
    return [(name, model.name, model.digest) for name, model in models.named(given).items()]


def test_models_are_a_name_a_loaded_model_or_several_of_either(pair):
    vit, cnn = pair
    one, other = (VIT, VIT, vit.digest), (CNN, CNN, cnn.digest)
    for given in (VIT, vit, [VIT], (vit,)):
        assert known(given) == [one]
    for given in ([VIT, CNN], (VIT, CNN), pair, (vit, CNN)):
        assert known(given) == [one, other]
    assert known([cnn, VIT]) == [other, one]
    assert models.named(pair)[CNN] is cnn


def test_names_of_your_own_are_of_names_loaded_models_and_modules(pair):
    vit, cnn = pair
    own = models.named({"name": VIT, "loaded": cnn, "module": vit.module})
    expected = {"name": vit.digest, "loaded": cnn.digest, "module": vit.digest}
    assert [(model.name, model.digest) for model in own.values()] == list(expected.items())
    assert list(own) == list(expected)
    assert own["loaded"].preprocessing == cnn.preprocessing == own["name"].preprocessing
    assert own["module"].module is vit.module
    assert (vit.name, cnn.name) == (VIT, CNN)  # those that were given keep their names


def test_an_analysis_takes_models_in_any_of_these_ways(pair):
    vit, _ = pair
    images = Images(limit=8, batch=8)
    tables = [skip.measure(given, images) for given in (VIT, vit, [vit], {VIT: vit}, {VIT: VIT})]
    for table in tables[1:]:
        assert table.equals(tables[0])
        assert table.attrs["models"] == tables[0].attrs["models"]


@pytest.mark.parametrize("nothing", [[], (), {}])
def test_no_model_at_all_is_refused(nothing):
    with pytest.raises(
        Refusal, match=r"give one or more models, such as \['lab/vit', 'lab/resnet'\]; got none"
    ):
        models.named(nothing)


def test_the_same_model_twice_needs_names_of_its_own(pair):
    vit, _ = pair
    with pytest.raises(
        Refusal, match=r"names of your own as in \{'a': model, 'b': model\}; got \['lab/vit@ra"
    ):
        models.named([vit, VIT])
    assert list(models.named({"a": vit, "b": vit})) == ["a", "b"]


def no_models() -> dict[str, str]:
    """What is said of things that are no models."""
    net = nn.Linear(3, 2)
    wrong = {
        "a module": net,
        "a module that has an order": nn.Sequential(net),
        "modules": [VIT, net],
        "nothing": None,
        "a number": 3,
        "numbers": [VIT, 3],
        "a number with a name": {"mine": 3},
    }
    said = {}
    for what, given in wrong.items():
        for ask in (models.named, lambda models: skip.measure(models, Images(limit=4))):
            with pytest.raises(Refusal) as refused:
                ask(given)
            assert said.setdefault(what, str(refused.value)) == str(refused.value)
    return said


def test_what_is_no_model_is_answered_with_the_line_to_write():
    """In a process without checks of types, as a user's is."""
    with ProcessPoolExecutor(1, mp_context=forked.CONTEXT) as pool:
        said = pool.submit(no_models).result()
    for what, kind in {
        "a module": "Linear",
        "modules": "Linear",
        "a module that has an order": "Sequential",
    }.items():
        assert f"got {kind}. Write measure({{'my {kind}': module}}, images)" in said[what]
    assert list(models.named({"my Linear": nn.Linear(3, 2)})) == ["my Linear"]  # the line that is told works
    for what, kind in {
        "nothing": "NoneType",
        "a number": "int",
        "numbers": "int",
        "a number with a name": "int",
    }.items():
        assert f"got {kind}. Write measure(['lab/vit', models.load('resnet50')], images)" in said[what]
    for sentence in said.values():
        assert sentence.startswith("models are names, loaded models or modules under names of your own; got")


def test_what_tables_call_models_is_known_before_they_are_loaded(tmp_path):
    (tmp_path / "a").mkdir()
    files = [str(tmp_path / name) for name in ("one.safetensors", "two.safetensors", "a/one.safetensors")]
    for file in files:
        safetensors.torch.save_file(models.load("resnet10t@random").module.state_dict(), file)
    names = ["lab/vit", "resnet10t@random", *(f"resnet10t@{file}" for file in files)]
    for few in (names[:4], names):  # the last one has the same short name as another
        assert models.called(few) == [model.name for model in models.load_all(few, device="cpu")]
    assert models.called(names[:4]) == ["lab/vit", "resnet10t@random", "resnet10t@one", "resnet10t@two"]
    assert models.called(names) == names


# What is known of them ------------------------------------------------------------------------------------------


def test_labels_are_known_for_the_lab_and_for_wnids(tmp_path):
    lab = models.load("lab/vit@random", device="cpu")
    assert models.classes_of_labels(lab, Images(limit=4)) == list(range(10))
    imagenet = models.named({"m": nn.Identity()})["m"]
    imagenet.module.num_classes = 1000
    assert models.classes_of_labels(imagenet, Images(limit=4)) is None
    for wnid in ("n01443537", "n15075141", "n01440764"):
        (tmp_path / wnid).mkdir()
        torch.save({}, tmp_path / wnid / "a.jpg")
    folder = Images(source=str(tmp_path))
    assert models.classes_of_labels(imagenet, folder) == [0, 1, 999]
    assert models.classes_of_labels(lab, folder) is None
    for wnid in ("n01443537", "n15075141", "n01440764"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / wnid).rename(tmp_path / "images" / wnid)
    assert models.classes_of_labels(imagenet, Images(source=str(tmp_path))) == [0, 1, 999]
    for wnid, shape in {"n01440764": "star", "n01443537": "disk"}.items():
        (tmp_path / "images" / wnid).rename(tmp_path / "images" / shape)
    (tmp_path / "images" / "n15075141" / "a.jpg").unlink()
    shapes = [list(scenes.SHAPES).index(name) for name in ("disk", "star")]
    assert models.classes_of_labels(lab, Images(source=str(tmp_path))) == shapes
    assert models.classes_of_labels(imagenet, Images(source=str(tmp_path))) is None


def test_a_network_says_how_many_classes_it_has_and_a_part_of_one_says_nothing(tmp_path):
    for wnid in ("n01440764", "n15075141"):
        (tmp_path / wnid).mkdir()
        torch.save({}, tmp_path / wnid / "a.jpg")
    images = Images(source=str(tmp_path))
    unit = torchvision.models.resnet.BasicBlock
    network = torchvision.models.ResNet(unit, [1, 1, 1, 1], num_classes=1000)
    fewer = torchvision.models.ResNet(unit, [1, 1, 1, 1], num_classes=999)
    numbered = nn.Linear(2, 3)
    numbered.num_classes = 1000
    found = {
        "network": network,
        "fewer": fewer,
        "part": unit(4, 4),
        "numbered": numbered,
        "other": nn.Linear(9, 1000),
    }
    told = {name: models.classes_of_labels(one, images) for name, one in models.named(found).items()}
    known, unknown = [0, 999], None
    assert told == {"network": known, "fewer": unknown, "part": unknown, "numbered": known, "other": unknown}


def test_what_is_loaded_learns_nothing_and_knows_how_its_images_are_prepared(small):
    name = f"resnet10t@{small}"
    loaded = [models.load(name, device="cpu"), models.load_twin(name, device="cpu")]
    told = models.own(nn.Conv2d(3, 4, 3), "m", preprocessing=Preprocessing())
    for model in loaded:
        assert not any(weight.requires_grad for weight in model.module.parameters())
        assert not any(part.training for part in model.module.modules())
    assert not any(model.assumed for model in (*loaded, told))
