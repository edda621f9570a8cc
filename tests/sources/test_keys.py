"""A table or a state of sums is used again only if nothing that it depends on has changed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pictures import folder, parquet, png, table, tar
from torch import nn

from vit_analysis import cka
from vit_analysis.images import Images
from vit_analysis.reading import stream
from vit_analysis.study import passes

TIME = 1_700_000_000_000_000_000  # nanoseconds


@pytest.fixture(scope="module")
def model():
    return {"m": nn.Sequential(nn.Conv2d(3, 4, 4), nn.ReLU())}


def key(model, images: Images) -> str:
    """What decides whether sums on disk are of these images."""
    return cka.plan(model, images, layers=["0", "1"]).key()


def still(root: Path) -> Path:
    """Set all times of change to one, so that each test changes what it says and nothing else."""
    for path in root.rglob("*"):
        os.utime(path, ns=(TIME, TIME))
    return root


@pytest.fixture
def root(tmp_path):
    return still(folder(tmp_path / "set", {"a/0.png": 0, "a/1.png": 1, "b/2.png": 2, "b/3.png": 3}))


def renamed(root: Path, old: str, new: str) -> None:
    (root / old).rename(root / new)


def exchanged(root: Path) -> None:
    for old, new in (("a", "x"), ("b", "a"), ("x", "b")):
        renamed(root, old, new)


def exchanged_files(root: Path) -> None:
    """Two files of the same size and time; only their names are exchanged for each other's folder."""
    renamed(root, "a/1.png", "b/1.png")
    renamed(root, "b/2.png", "a/2.png")


def replaced(root: Path) -> None:
    """Another content of the same size, at another time."""
    data = bytearray((root / "a/1.png").read_bytes())
    data[-1] ^= 1
    (root / "a/1.png").write_bytes(data)
    os.utime(root / "a/1.png", ns=(TIME, TIME + 1))


def grown(root: Path) -> None:
    """Another size at the same time."""
    (root / "a/1.png").write_bytes(png(1) + b" ")
    os.utime(root / "a/1.png", ns=(TIME, TIME))


CHANGES = {
    "a file more": lambda root: folder(root, {"b/9.png": 9}),
    "a file less": lambda root: (root / "a/0.png").unlink(),
    "another file": replaced,
    "another size": grown,
    "another name": lambda root: renamed(root, "a/0.png", "a/00.png"),
    "another ending": lambda root: renamed(root, "a/0.png", "a/0.bmp"),
    "another class": lambda root: renamed(root, "a", "c"),
    "labels exchanged": exchanged,
    "files exchanged": exchanged_files,
    "a class more": lambda root: folder(root, {"c/9.png": 9}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_of_a_folder_changes_the_key(root, model, change):
    before = key(model, Images(str(root)))
    if change is exchanged:
        (root / "b/3.png").unlink()  # folders of one and of two images
        before = key(model, Images(str(root)))
    change(root)
    assert key(model, Images(str(root))) != before


def test_every_choice_of_images_changes_the_key(root, model):
    still(folder(root.parent / "other", {"a/0.png": 0, "a/1.png": 1, "b/2.png": 2, "b/3.png": 3}))
    images = Images(str(root), batch=2)
    other = [
        {"source": str(root.parent / "other")},
        {"seed": 1},
        {"limit": 3},
        {"batch": 3},
        {"root": root},
        {"split": "x"},
    ]
    keys = [key(model, replace(images, **own)) for own in [{}, *other]]
    assert len(set(keys)) == len(keys)


def test_the_key_stays_where_nothing_changes(root, model):
    before = key(model, Images(str(root)))
    folder(root, {"notes.txt": b"", "a/.DS_Store": b""})
    assert key(model, Images(str(root), workers=3, strict=True)) == before
    assert key(model, Images(str(root), limit=4)) == before  # of four images


TOLD = "import json, sys; from vit_analysis.images import Images; print(json.dumps([Images(s).facts() for s in sys.argv[1:]]))"


def test_another_process_has_the_same_facts(root, tmp_path):
    sources = [str(root), str(made_tar(tmp_path)), str(made_parquet(tmp_path, images=("image",)))]
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    told = subprocess.run(
        [sys.executable, "-c", TOLD, *sources], env=environment, capture_output=True, check=True
    )
    assert json.loads(told.stdout) == [Images(source).facts() for source in sources]


def made_tar(root: Path, labels: str = "0110", path: str = "s/0.tar", names: str = "0123") -> Path:
    files = {f"{name}.{kind}": own for n, (name, label) in enumerate(zip(names, labels, strict=True))
             for kind, own in {"png": n, "cls": label}.items()}  # fmt: skip
    still((made := tar(root / path, files)).parent)
    return made


def made_parquet(
    root: Path,
    labels: str = "0110",
    names: tuple[str, ...] = ("cat", "dog"),
    images: tuple[str, ...] = ("image", "img"),
) -> Path:
    own = {name: range(place, 4 + place) for place, name in enumerate(images)}
    own |= {"label": [int(label) for label in labels], "fine": [0, 0, 1, 1]}
    features = {"label": {"_type": "ClassLabel", "names": list(names)}}
    still((made := parquet(root / "p" / "0.parquet", table(own, features))).parent)
    return made


def test_every_change_of_a_tar_changes_the_key(tmp_path, model):
    found = {}

    def told(what: str, **options) -> None:
        found[what] = key(model, Images(str(tmp_path / "s"), **options))

    path = made_tar(tmp_path)
    told("as it was")
    os.utime(path, ns=(TIME, TIME + 1))
    told("another time")
    made_tar(tmp_path, labels="1001")
    told("other labels")
    made_tar(tmp_path, names="0124")
    told("another name")
    made_tar(tmp_path)
    assert key(model, Images(str(tmp_path / "s"))) == found["as it was"]
    path.rename(path.with_name("1.tar"))
    told("another name of the shard")
    made_tar(tmp_path, path="s/2.tar")
    told("another shard")
    told("one of them by its ending", image_column="png", limit=3)
    assert len(set(found.values())) == len(found)


def test_every_change_of_a_parquet_file_changes_the_key(tmp_path, model):
    found = {}

    def told(what: str, **options) -> None:
        images = Images(str(tmp_path / "p"), **{"image_column": "image", "label_column": "label"} | options)
        found[what] = key(model, images)

    path = made_parquet(tmp_path)
    told("as it was")
    told("another column of images", image_column="img")
    told("another column of labels", label_column="fine")
    os.utime(path, ns=(TIME, TIME + 1))
    told("another time")
    made_parquet(tmp_path, labels="1001")
    told("other labels")
    made_parquet(tmp_path, names=("cat", "cow"))
    told("other classes")
    assert len(set(found.values())) == len(found)


def test_tables_of_a_study_are_not_kept_when_labels_were_exchanged(root, model, tmp_path):
    images = Images(str(root))
    plan = cka.plan(model, images, layers=["0"])
    passes._write(plan.table(), tmp_path, "cka", [plan])
    same = cka.plan(model, Images(str(root), workers=0), layers=["0"])
    assert passes._key([same]) == passes._key([plan])
    assert passes._kept(tmp_path, "cka", [same], whole=True) is not None
    exchanged_files(root)
    new = cka.plan(model, Images(str(root)), layers=["0"])
    for whole in (True, False):
        assert passes._kept(tmp_path, "cka", [new], whole=whole) is None


def test_free_memory_is_not_asked_of_a_system_that_does_not_tell(monkeypatch):
    """As Windows does not."""
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert stream._free_memory(torch.device("cpu")) == sys.maxsize
