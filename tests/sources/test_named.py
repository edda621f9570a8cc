"""Names that libraries know, and what is said of names that mean nothing."""

import builtins
import pickle
import sys

import pytest
from pictures import folder, in_order, parquet, png, read, read_all, table, tar

from vit_analysis.images import Images
from vit_analysis.spelling import Refusal


@pytest.mark.parametrize("name", ["torch/cifar10", "torch/CIFAR10", "Torch/cifar10"])
def test_a_data_set_of_torchvision(cifar, name):
    images = Images(name, root=cifar, limit=None, workers=0)
    assert images.classes == ["plane", "car", "bird", "cat"]
    assert in_order(read_all(images)) == [(0, 3), (1, 1), (2, 0), (3, 2)]
    assert len(Images(name, root=cifar, split="train").order) == 20


def test_another_content_of_a_data_set_is_another_key(cifar):
    before = Images("torch/cifar10", root=cifar).facts()
    assert Images("torch/cifar10", root=cifar, workers=1).facts() == before
    path = cifar / "cifar-10-batches-py" / "test_batch"
    own = pickle.loads(path.read_bytes())
    for key, value in {"labels": [3, 1, 2, 0], "data": 1 + own["data"]}.items():
        path.write_bytes(pickle.dumps(own | {key: value}))
        assert Images("torch/cifar10", root=cifar).facts() != before


def test_what_a_data_set_of_torchvision_needs_is_said(tmp_path):
    with pytest.raises(
        Refusal, match=r"needs the folder .* --images.root FOLDER, which holds the folder cifar-10-batches-py"
    ):
        _ = Images("torch/cifar10").order
    with pytest.raises(Refusal, match="no data set 'torch/cifar99'; did you mean 'torch/cifar"):
        _ = Images("torch/cifar99").order
    with pytest.raises(FileNotFoundError, match=r"no folder '.*/nowhere'; --images.root has to hold"):
        _ = Images("torch/cifar10", root=tmp_path / "nowhere").order
    folder(tmp_path, {"cifar.zip": b""})
    with pytest.raises(
        FileNotFoundError, match=r"It has to hold the folder cifar-10-batches-py; there is cifar.zip$"
    ):
        _ = Images("torch/cifar10", root=tmp_path).order


# The library datasets ------------------------------------------------------------------------------------------------


COLUMNS = {
    "img, label": (["img", "label"], ["cat", "dog"]),
    "image, category": (["image", "category"], ["cat", "dog"]),
    "no labels": (["image"], []),
}


@pytest.mark.parametrize(("columns", "classes"), COLUMNS.values(), ids=COLUMNS)
@pytest.mark.parametrize("whole", [True, False], ids=["one", "splits"])
def test_a_data_set_that_the_library_saved(datasets, tmp_path, columns, classes, whole):
    kinds = dict(zip(columns, [datasets.Image(), datasets.ClassLabel(names=["cat", "dog"])], strict=False))
    rows = dict(
        zip(columns, [[{"bytes": png(n), "path": None} for n in range(5)], [1, 0, 1, 0, 0]], strict=False)
    )
    data = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    place = tmp_path / "Folder" / "With Capitals"
    (data if whole else datasets.DatasetDict(validation=data, train=data.select([0]))).save_to_disk(place)
    images = Images(f"hfds/{place}", limit=None, workers=0)
    assert images.classes == classes
    labels = [1, 0, 1, 0, 0] if classes else [-1] * 5
    assert in_order(read_all(images)) == list(enumerate(labels))
    assert in_order(read(f"hfds/{place}", workers=1)) == list(enumerate(labels))
    if not whole:
        with pytest.raises(Refusal, match=r"no split 'vali'; did you mean 'validation'\? \(--images.split\)"):
            _ = Images(f"hfds/{place}", split="vali").order


def test_a_folder_that_the_library_reads(datasets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    features = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    made = table({"img": range(4), "label": [1, 0, 0, 1]}, features)
    parquet(tmp_path / "My" / "Set" / "train-0.parquet", made)
    images = Images("hfds/My/Set", split="train", root=tmp_path / "cache", limit=None, workers=0)
    assert images.classes == ["cat", "dog"]
    assert in_order(read_all(images)) == [(0, 1), (1, 0), (2, 0), (3, 1)]
    with pytest.raises(Refusal, match=r"cannot be loaded: .*train.*; name another with --images.split"):
        _ = Images("hfds/My/Set", root=tmp_path / "cache").order
    folder(tmp_path / "Pics", {f"train/{kind}/{n}.png": n for n, kind in enumerate("ab")})
    found = Images("hfds/Pics", split="train", root=tmp_path / "cache", limit=None, workers=0)
    assert found.classes == ["a", "b"]
    before = found.facts()
    assert in_order(read_all(found)) == [(0, 0), (1, 1)]
    (tmp_path / "Pics" / "train" / "a" / "0.png").write_bytes(png(9))
    assert Images("hfds/Pics", split="train", root=tmp_path / "cache", limit=None).facts() != before
    assert datasets


def test_the_library_may_be_missing(monkeypatch):
    there = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "datasets":
            raise ImportError(name)
        return there(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Refusal, match="'hfds/beans' needs the library datasets: pip install datasets"):
        _ = Images("hfds/beans").order


def test_what_the_library_says_is_one_sentence(datasets, tmp_path):
    with pytest.raises(Refusal, match=r"^'hfds/.*empty' \(split 'validation'\) cannot be loaded: [^\n]+$"):
        _ = Images(f"hfds/{folder(tmp_path / 'empty', {'x.unknown': b''})}").order
    assert datasets


# Names that mean nothing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wds/x", "tfds/x", "hfids/x", "WDS/{0..3}.tar"])
def test_streams_are_refused_with_what_to_name(name):
    with pytest.raises(Refusal, match=r"is a stream, .* name the tars themselves, as in --images.source"):
        _ = Images(name).order


def test_a_missing_source_says_what_is_there(tmp_path, monkeypatch):
    folder(tmp_path, {"photos/0.png": 0, "video/0.png": 0})
    monkeypatch.chdir(tmp_path)
    for name, said in {
        "photo": r"^no images at 'photo'; did you mean 'photos'\?$",
        "xyz": "^no images at 'xyz'; there are 'photos', 'video'$",
        "labb": "did you mean 'lab'",
        "cifar10": "did you mean 'torch/cifar10'",
        "/nonexistent/deep/val": "^no images at '/nonexistent/deep/val'; there is no folder '/nonexistent': (?!.*'lab')",
        "": "no images at '': name a folder, a tar or 'lab'",
        "~nobody-at-all/{0..2}.tar": "no images at '~nobody-at-all/",
        "a\0*.tar": "no images at 'a.x00",
        "https://a.b/c.tar": "images are read from disk; download it",
        str(tmp_path / "photos" / "0.png" / "x"): "no images at",
    }.items():
        with pytest.raises(FileNotFoundError, match=said):
            _ = Images(name).order


def test_other_first_mistakes(tmp_path):
    root = folder(tmp_path, {"a.png": 0, "b.npy": b"", "saved/data-0.arrow": b"", "saved/state.json": b""})
    for name, said in {
        "a.png": r"no images in '.*a.png': it is one image, .* its folder is '.*'",
        "b.npy": r"it is files of '.npy', and a source is a folder of images, tars or parquet files",
        "saved": r"Found 0 images; it holds .arrow files of the library datasets; name it hfds/",
        "*.png": r"its folder is",
    }.items():
        with pytest.raises(FileNotFoundError, match=said):
            _ = Images(str(root / name)).order
    (root / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match="Found 0 images; it is empty"):
        _ = Images(str(root / "nothing")).order
    with pytest.raises(Refusal, match="is a folder of images, and has no columns"):
        _ = Images(str(folder(tmp_path / "c", {"a.png": 0})), label_column="x").order


def test_a_name_with_braces_that_is_there_is_that(tmp_path):
    root = folder(tmp_path, {"set{1,2}[x]/0.png": 0})
    assert in_order(read(root / "set{1,2}[x]")) == [(0, -1)]
    source = tar(tmp_path / "x[1].tar", {"0.png": 4})
    assert in_order(read(source)) == [(4, -1)]
