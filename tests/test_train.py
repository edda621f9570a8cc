"""Training: an interrupted run is an unbroken run, the file says all, mistakes are answered."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from vit_analysis import models, train
from vit_analysis.images import UNSEEN, Images
from vit_analysis.lab import scenes, zoo
from vit_analysis.loading import fitting
from vit_analysis.shell import train as command
from vit_analysis.spelling import Refusal
from vit_analysis.train import UNLIMITED, FileData, SceneData, order

SAMPLED = 200  # images on which each shipped model is tried
TINY = zoo.Recipe(
    "vit",
    {
        "img_size": 32,
        "patch_size": 8,
        "num_classes": 10,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "dropout": 0.1,
    },
)
TINY_RESNET = zoo.Recipe("resnet", {"num_classes": 10, "layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16]})
PLAN = train.Plan(steps=12)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "TESTED", 1000)
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 5)


def lessons(**changes) -> SceneData:
    return SceneData(Images(**({"limit": UNLIMITED, "batch": 8} | changes)))


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    learn, done = train.learn, iter(range(1000))

    def mortal(*given):
        if next(done) == step:
            raise Killed
        return learn(*given)

    monkeypatch.setattr(train, "learn", mortal)


@pytest.mark.parametrize("recipe", [TINY, TINY_RESNET], ids=["vit with dropout", "resnet with running means"])
def test_a_killed_run_goes_on_to_the_same_weights(
    recipe: zoo.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    train.train(recipe, lessons(), PLAN, whole)
    with monkeypatch.context() as dying:
        kill_at(8, dying)
        with pytest.raises(Killed):
            train.train(recipe, lessons(), PLAN, broken)
    assert not broken.exists()
    assert len(list(tmp_path.glob("*.checkpoint"))) == 1

    torch.manual_seed(99)  # a new process is in another state
    batches, started = SceneData.batches, []
    monkeypatch.setattr(
        SceneData, "batches", lambda self, steps: started.append(steps) or batches(self, steps)
    )
    train.train(recipe, lessons(), PLAN, broken)
    assert started == [range(5, 12)]
    assert metadata(broken) == metadata(whole)
    for name, tensor in load_file(whole).items():
        assert torch.equal(load_file(broken)[name], tensor)
    assert not list(tmp_path.glob("*.checkpoint"))


@pytest.mark.parametrize(
    "other", [replace(PLAN, steps=13), replace(PLAN, seed=1), replace(PLAN, learning_rate=1e-4)], ids=str
)
def test_other_settings_do_not_pick_up_a_checkpoint(
    other: train.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.safetensors"
    kill_at(8, monkeypatch)
    with pytest.raises(Killed):
        train.train(TINY, lessons(), PLAN, out)
    monkeypatch.setattr(train, "resume", lambda *_: pytest.fail("resumed the run of other settings"))
    kill_at(1, monkeypatch)
    with pytest.raises(Killed):
        train.train(TINY, lessons(), other, out)


@pytest.mark.parametrize("what", ["code", "versions", "the seed's weights", "init"])
def test_other_code_versions_or_first_weights_do_not_pick_up_a_checkpoint(
    tmp_path, monkeypatch, what
) -> None:
    out, first = tmp_path / "out.safetensors", tmp_path / "first.safetensors"
    train.train(TINY, lessons(), train.Plan(steps=1), first)
    with monkeypatch.context() as dying:
        kill_at(8, dying)
        with pytest.raises(Killed):
            train.train(TINY, lessons(), PLAN, out)
    monkeypatch.setattr(train, "resume", lambda *_: pytest.fail("resumed another run"))
    kill_at(1, monkeypatch)
    if what == "code":
        monkeypatch.setattr(train, "code", lambda: "another")
    elif what == "versions":
        monkeypatch.setattr(train, "versions", lambda: {"torch": "another"})
    elif what == "the seed's weights":
        build = zoo.build
        monkeypatch.setattr(zoo, "build", lambda *own: build(*own).apply(double))
    with pytest.raises(Killed):
        train.train(TINY, lessons(), PLAN, out, first if what == "init" else None)


def double(module: torch.nn.Module) -> None:
    if isinstance(module, torch.nn.Linear):
        module.weight.data *= 2


@pytest.mark.parametrize("overwrite", [False, True])
def test_weights_that_appeared_during_the_training_stay(tmp_path, caplog, monkeypatch, overwrite) -> None:
    out, share = tmp_path / "a.b.safetensors", train.accuracy

    def meanwhile(*given):
        out.write_bytes(b"of somebody else")
        return share(*given)

    monkeypatch.setattr(train, "accuracy", meanwhile)
    for number in (1, 2):
        train.train(TINY, lessons(), train.Plan(steps=1), out, None, overwrite)
        beside = tmp_path / f"a.b.{number}.safetensors"
        assert beside.exists() is not overwrite
        assert (out.read_bytes() == b"of somebody else") is not overwrite
        assert metadata(out if overwrite else beside)["steps"] == 1
        said = f"{out} appeared during the training and stays as it is; writing {beside}"
        assert (said in caplog.text) is not overwrite
    assert len(list(tmp_path.iterdir())) == (1 if overwrite else 3)


def test_starts_from_a_folder_of_weights_as_from_its_file(tmp_path) -> None:
    (tmp_path / "own").mkdir()
    file = tmp_path / "own" / "model.safetensors"
    train.train(TINY, lessons(), PLAN, file)
    ends = []
    for init in (file, file.parent):
        ends.append(tmp_path / f"{init.name}.out")
        train.train(TINY, lessons(), train.Plan(steps=2), ends[-1], init)
    for name, tensor in load_file(ends[0]).items():
        assert torch.equal(load_file(ends[1])[name], tensor)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        train.train(TINY, lessons(), PLAN, tmp_path / "b", tmp_path / "nowhere")


def test_training_teaches() -> None:
    """Thirty-two scenes by heart, against chance of 0.1."""
    torch.manual_seed(0)
    model, data = zoo.build(TINY_RESNET.architecture, TINY_RESNET.config), lessons(limit=32, batch=32)
    train.fit(model, data, train.Plan(steps=120, learning_rate=3e-3))
    share, count = train.accuracy(model, data.batches(range(1)))
    assert count == 32
    assert share > 0.8


def metadata(path: Path) -> dict:
    with safe_open(path, framework="pt") as file:
        texts = file.metadata()
    assert all(isinstance(value, str) for value in texts.values())
    return {key: value if key == "architecture" else json.loads(value) for key, value in texts.items()}


def test_the_file_says_all(tmp_path: Path) -> None:
    out = tmp_path / "tiny.safetensors"
    data = lessons(limit=64, seed=4)
    train.train(TINY, data, replace(PLAN, seed=7), out)
    facts = metadata(out)
    assert facts["data"] == {"source": "lab", "distinct": 64, "seed": 4, "batch": 8}
    assert (facts["seed"], facts["steps"], facts["images_seen"]) == (7, 12, 96)
    assert facts["input_size"] == [3, 32, 32]
    assert facts["mean"] == facts["std"] == [0.5, 0.5, 0.5]
    assert facts["classes"] == list(scenes.SHAPES)
    assert facts["versions"].keys() == {"vit-analysis", "torch", "torchvision", "timm", "numpy", "pillow"}

    weights = load_file(out)
    assert all(tensor.dtype == torch.float16 for tensor in weights.values())
    model = zoo.build(facts["architecture"], facts["config"]).eval()
    fitting.fit(model, weights, "the file")
    share, tested = train.accuracy(model, data.unseen())
    assert facts["accuracy"] == {"shape": share, "images": tested}
    assert tested == 1000


def test_goes_on_from_weights(tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    train.train(TINY, lessons(), PLAN, first)
    train.train(TINY, lessons(), train.Plan(steps=1, learning_rate=1e-9), second, init=first)
    for name, tensor in load_file(first).items():
        torch.testing.assert_close(load_file(second)[name], tensor, atol=1e-4, rtol=1e-3)


def test_a_head_of_other_classes_is_not_taken_and_all_else_is(tmp_path: Path) -> None:
    first = tmp_path / "first.safetensors"
    train.train(TINY, lessons(), PLAN, first)
    torch.manual_seed(5)
    other = zoo.build("vit", TINY.config | {"num_classes": 3})
    head = other.head.weight.clone()
    train.start_from(other, first)
    assert torch.equal(other.head.weight, head)
    torch.testing.assert_close(
        other.blocks[1].mlp.fc1.weight, load_file(first)["blocks.1.mlp.fc1.weight"].float()
    )


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    first = tmp_path / "first.safetensors"
    train.train(TINY, lessons(), PLAN, first)
    with pytest.raises(Refusal, match="does not fit ResNet"):
        train.train(TINY_RESNET, lessons(), PLAN, tmp_path / "second.safetensors", init=first)


def test_no_number_as_loss_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"at step 0: lower the learning rate, now 0\.001"):
        train.train(TINY, Poisoned(lessons().images), PLAN, tmp_path / "out.safetensors")


class Poisoned(SceneData):
    def batches(self, steps: range):
        for images, labels in super().batches(steps):
            yield images * float("nan"), labels


def test_every_distinct_image_comes_once_a_turn() -> None:
    seen = torch.cat([order(step, 10, 4, seed=1) for step in range(10)])
    turns = seen.view(4, 10)
    assert torch.equal(turns.sort(dim=1).values, torch.arange(10).expand(4, 10))
    assert not torch.equal(turns[0], turns[1])
    assert not torch.equal(order(0, 10, 4, seed=1), order(0, 10, 4, seed=2))
    assert torch.equal(order(3, UNLIMITED, 4, seed=1), torch.arange(12, 16))


def test_scenes_of_the_test_are_never_learned() -> None:
    with pytest.raises(Refusal, match="kept for tests, got 1000000"):
        lessons(seed=UNSEEN)
    tested = next(lessons().unseen())[0]
    expected = scenes.draw(range(500), seed=UNSEEN).image
    torch.testing.assert_close(tested, 2 * expected - 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of plain colours."""
    for label, colour in (("green", (0, 200, 0)), ("red", (200, 0, 0))):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(30):
            Image.new("RGB", (40, 40), colour).save(tmp_path / "photos" / label / f"{number}.png")
    return tmp_path / "photos"


def test_learns_the_classes_of_a_folder(folder: Path, tmp_path: Path) -> None:
    for number in range(30, 60):
        for kind in ("red", "green"):
            shutil.copy(folder / kind / "0.png", folder / kind / f"{number}.png")
    (folder / "red" / "3.png").write_bytes(b"no image")
    data = FileData(Images(source=str(folder), limit=None, batch=8, workers=0))
    assert not set(data.tested) & set(data.learned)
    assert len(data.tested) == 12
    out = tmp_path / "out.safetensors"
    recipe = replace(TINY, config={**TINY.config, "num_classes": 2})
    train.train(recipe, data, train.Plan(steps=20), out)
    facts = metadata(out)
    assert facts["classes"] == ["green", "red"]
    assert facts["data"]["source"] == "photos"
    assert facts["accuracy"]["class"] == 1


@pytest.mark.parametrize(("broken", "strict"), [(2, False), (10, False), (60, False), (1, True)])
def test_too_many_unreadable_images_end_a_training(folder: Path, broken: int, strict: bool) -> None:
    """By the same rule as in an analysis."""
    for path in sorted(folder.rglob("*.png"))[:broken]:
        path.write_bytes(b"no image")
    images = Images(source=str(folder), limit=None, batch=8, workers=0, strict=strict)
    data = FileData(images)
    with pytest.raises(OSError, match=r"of 60 images cannot be read.*the last is"):
        list(chain(data.batches(range(20)), data.unseen()))


def test_an_unreadable_image_is_named_once_and_counts_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(30, 60):
        shutil.copy(folder / "red" / "0.png", folder / "red" / f"{number}.png")
        shutil.copy(folder / "green" / "0.png", folder / "green" / f"{number}.png")
    images = Images(source=str(folder), limit=None, batch=16, workers=0)
    data = FileData(images)
    (folder / images.name(data.learned[0])).write_bytes(b"no image")
    data = FileData(Images(source=str(folder), limit=None, batch=16, workers=0))
    seen = list(data.batches(range(40)))
    assert 40 * 16 - 7 <= sum(len(labels) for _, labels in seen) <= 40 * 16 - 5
    assert caplog.text.count("cannot read") == 1
    alone = FileData(Images(source=str(folder), limit=None, batch=1, workers=0))
    with pytest.raises(OSError, match="no image of a batch of 1 can be read, see above"):
        list(alone.batches(range(200)))


def test_other_files_do_not_pick_up_a_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Images(source=str(folder), limit=None, batch=8, workers=0)
    recipe, out = replace(TINY, config={**TINY.config, "num_classes": 2}), tmp_path / "out.safetensors"
    kill_at(8, monkeypatch)
    with pytest.raises(Killed):
        train.train(recipe, FileData(images), PLAN, out)
    monkeypatch.setattr(train, "resume", lambda *_: pytest.fail("resumed the run of other files"))
    for old, new in (("red", "x"), ("green", "red"), ("x", "green")):
        (folder / old).rename(folder / new)
    Image.new("RGB", (40, 40), (0, 200, 0)).save(folder / "red" / "3.png")
    kill_at(1, monkeypatch)
    with pytest.raises(Killed):
        train.train(recipe, FileData(replace(images)), PLAN, out)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        *(
            ({"learning_rate": rate}, "--learning-rate is a number above 0")
            for rate in (-1.0, 0.0, float("nan"))
        ),
        ({"learning_rate": float("inf")}, "--learning-rate is a number above 0, got inf"),
        *(({"seed": seed}, f"--seed is a whole number from 0 .*got {seed}") for seed in (-1, 2**70)),
        *(({"device": name}, f"cannot compute on --device '{name}': ") for name in ("cdua", "cuda:99")),
        ({"out": Path()}, "is a folder; --out NAME writes NAME"),
        ({"out": Path("..")}, "is a folder; --out ../NAME writes"),
        ({"out": Path("photos"), "overwrite": True}, "cannot write photos: a folder of that name is there"),
        ({"out": Path("a" * 240)}, "cannot write a*.0*.checkpoint: File name too long"),
        ({"images": Images(source="photos", limit=1)}, "'photos' has no image to learn from: one of 10"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_said_before(folder: Path, monkeypatch, given, said) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(train, "train", lambda *_: pytest.fail("it began"))
    with pytest.raises((Refusal, OSError), match=said):
        command.main("lab/vit", **{"device": "cpu", **given})
    assert [path.name for path in folder.parent.iterdir()] == ["photos"]


def test_a_slash_after_the_name_of_the_weights_is_a_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "lab/vit", "--out", "q/"])
    with pytest.raises(Refusal, match="--out 'q/' is a folder; --out q/NAME writes q/NAME"):
        command.main("lab/vit", out=Path("q/"), device="cpu")


def test_mistakes_are_answered(folder: Path) -> None:
    with pytest.raises(Refusal, match="--seen is at least 1 image, got 0"):
        command.main("lab/vit", seen=0)
    with pytest.raises(Refusal, match="has no classes to learn"):
        FileData(Images(source=str(folder / "red")))


def test_the_command_names_the_nearest_model() -> None:
    call = [sys.executable, "-m", "vit_analysis.train", "lab/vit_gpa"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no lab model 'lab/vit_gpa'; did you mean 'lab/vit_gap'" in done.stderr


def test_shipped_models_do_what_their_files_say() -> None:
    # A sample of what the files were judged on, in batches whose activations stay in the cache.
    images, labels = next(iter(lessons().unseen()))
    unseen = list(zip(images[:SAMPLED].split(50), labels[:SAMPLED].split(50), strict=True))
    for name in zoo.names():
        facts, model = metadata(zoo.lab_file(f"lab/{name}")), models.load(f"lab/{name}", device="cpu")
        share, tested = train.accuracy(model.module, iter(unseen))
        assert tested == SAMPLED
        claimed = facts["accuracy"]["shape"]
        assert facts["accuracy"]["images"] >= 10_000
        assert abs(share - claimed) < 5 * (claimed * (1 - claimed) / tested) ** 0.5 + 0.002, name


def test_a_training_run_has_its_own_weights_images_and_file(monkeypatch, tmp_path) -> None:
    plain, run = zoo.recipe("lab/vit_small_data"), zoo.recipe("lab/vit_small_data:2")
    assert (run.seed, run.images, run.config, run.distinct) == (2, 2, plain.config, plain.distinct)
    assert zoo.recipe("lab/vit:0") == zoo.recipe("lab/vit")
    assert zoo.home("lab/vit:0") == zoo.home("lab/vit") != zoo.home("lab/vit:1")
    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(zoo, "__file__", str(tmp_path / "zoo.py"))
    for name in ("lab/vit", "lab/vit:1", "lab/resnet:3"):
        zoo.home(name).touch()
    assert zoo.names() == ["vit", "vit:1", "resnet:3"]
    for name in ("lab/vit:", "lab/vit:one", "lab/vit:-1", "lab/vit:1.5"):
        with pytest.raises(
            Refusal, match=r"names a training run by its seed, a whole number, as in 'lab/vit:1'"
        ):
            zoo.recipe(name)


def test_the_command_trains_a_run_on_its_own_images(monkeypatch, tmp_path) -> None:
    called = []
    monkeypatch.setattr(train, "train", lambda *arguments: called.append(arguments))
    command.main("lab/vit_small_data:1", out=tmp_path / "a.safetensors")
    command.main("lab/vit_other_seed", out=tmp_path / "b.safetensors")
    seeds = [(plan.seed, data.images.seed, data.images.limit) for _, data, plan, *_ in called]
    assert seeds == [(1, 1, zoo.SMALL), (1, 0, UNLIMITED)]


def test_every_recipe_can_be_built() -> None:
    for recipe in zoo.RECIPES.values():
        config = json.loads(json.dumps(dict(recipe.config)))
        assert zoo.build(recipe.architecture, config)(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_unknown_architectures_and_missing_weights_are_answered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(Refusal, match="no architecture 'vti' in the lab; did you mean 'vit'"):
        zoo.build("vti", {})
    monkeypatch.setattr(zoo, "__file__", str(tmp_path / "zoo.py"))
    with pytest.raises(FileNotFoundError, match=r"train it: python -m vit_analysis\.train lab/mixer"):
        zoo.lab_file("lab/mixer")


def test_weights_go_under_runs_and_into_the_package_only_if_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = zoo.home("lab/vit").read_bytes()
    command.main("lab/vit", images=Images(limit=64, batch=32), seen=64, device="cpu")
    assert [str(file) for file in Path().rglob("*.*")] == ["runs/vit.safetensors"]
    assert zoo.home("lab/vit").read_bytes() == shipped
    command.main("lab/vit:1", images=Images(limit=64, batch=32), seen=64, seed=3, device="cpu")
    assert Path("runs/vit.seed1.seed3.safetensors").exists()
    places = []
    monkeypatch.setattr(train, "train", lambda *arguments: places.append(arguments[3]))
    command.main("lab/vit", ship=True, overwrite=True, device="cpu")
    assert places == [zoo.home("lab/vit")]
    with pytest.raises(Refusal, match="--ship writes to the lab's own file"):
        command.main("lab/vit", ship=True, out=Path("a.safetensors"))


@pytest.mark.parametrize("more", [{}, {"ship": True}])
def test_weights_that_are_there_are_replaced_only_if_that_is_asked_for(tmp_path, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/vit.safetensors").write_bytes(b"weeks of work")
    monkeypatch.setattr(train, "train", lambda *_: pytest.fail("it began"))
    with pytest.raises(Refusal, match=r"vit.safetensors' is there already; say --overwrite, or choose"):
        command.main("lab/vit", **more)
    assert Path("runs/vit.safetensors").read_bytes() == b"weeks of work"
