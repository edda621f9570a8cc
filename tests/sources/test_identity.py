"""An image is the same one whatever its source is and however that was named."""

import os
from pathlib import Path

import pytest
import torch
from pictures import folder, parquet, table, tar
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder

from vit_analysis.images import Images, given
from vit_analysis.spelling import Refusal

FILES = {f"{'ab'[n % 2]}/{n}.png": n for n in range(6)}


def left(images: Images, examples: Images) -> list[str]:
    return sorted(images.name(number) for number in images.without(examples))


def everything(source: Path | str, **options) -> Images:
    return Images(str(source), **{"limit": None, "workers": 0} | options)


@pytest.fixture
def forms(tmp_path, monkeypatch):
    """The same six images in every form that has files."""
    monkeypatch.chdir(tmp_path)
    root = folder(tmp_path / "set", FILES)
    (tmp_path / "link").symlink_to(root)
    (tmp_path / "copy").mkdir()
    for number in range(6):
        os.link(root / f"{'ab'[number % 2]}/{number}.png", tmp_path / "copy" / f"x{number}.png")
    made = table({"image": range(6), "label": [n % 2 for n in range(6)]})
    for part in range(2):
        parquet(tmp_path / "shards" / f"{part}.parquet", made.slice(3 * part, 3))
    return {
        "a folder": everything(root),
        "by a relative path": everything("set"),
        "by a link": everything("link/../set/."),
        "by other names": everything("copy"),
        "a tar": everything(tar(tmp_path / "x.tar", FILES)),
        "rows": everything(parquet(tmp_path / "one.parquet", made)),
        "shards": everything("shards"),
        "given": given(ImageFolder(str(root), transform=lambda _: torch.rand(3, 4, 4))),
        "a part": given(Subset(ImageFolder(str(root)), [5, 4, 3, 2, 1, 0])),
    }


def test_no_image_is_left_in_any_other_form(forms):
    for images in forms.values():
        for examples in forms.values():
            assert images.without(examples) == []
            chosen = [number for number in examples.order if int(number) < 2]
            assert len(images.without(examples.only(chosen))) == 4


def test_shards_and_folders_that_overlap_are_compared_image_by_image(forms, tmp_path):
    assert left(forms["shards"], everything(tmp_path / "shards" / "0.parquet")) == [
        f"1.parquet row {n}" for n in range(3)
    ]
    assert left(everything("shards/1.parquet"), everything("shards/0.parquet")) == [
        f"1.parquet row {n}" for n in range(3)
    ]
    assert left(forms["a folder"], everything("set/a")) == ["b/1.png", "b/3.png", "b/5.png"]
    assert everything("set/a").without(forms["a folder"]) == []


def test_two_sets_that_share_nothing_stay_whole_and_in_their_order(forms, tmp_path):
    other = everything(folder(tmp_path / "other", {f"a/{n}.png": 100 + n for n in range(5)}))
    assert other.without(forms["a folder"]) == other.order


def test_an_image_that_cannot_be_read_is_not_taken_for_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gone", "lost"):
        (folder(tmp_path / name, {"0.png": 200}) / "1.png").symlink_to("nowhere")
    assert left(everything("gone"), everything("lost")) == ["1.png"]


def test_splits_of_torchvision_have_several_names(cifar):
    other = cifar.parent / "data" / ".." / "data"
    images = [
        everything("torch/cifar10", root=cifar, split="validation"),
        everything("torch/CIFAR10", root=other, split="test"),
        everything("Torch/cifar10", root=cifar / ".", split="val"),
    ]
    for own in images:
        for examples in images:
            assert own.without(examples.only([0])) == [number for number in own.order if number]


@pytest.mark.parametrize("split", ["train", "train[:4]", "train[1:]"])
def test_splits_of_the_library_are_compared_image_by_image(datasets, tmp_path, monkeypatch, split):
    monkeypatch.chdir(tmp_path)
    parquet(tmp_path / "set" / "train-0.parquet", table({"image": range(6), "label": [0, 1] * 3}))
    cache = tmp_path / "cache"
    whole = everything(f"hfds/{tmp_path}/set", split="train", root=cache)
    part = everything("hfds/set", split=split, root=cache)
    assert part.without(whole) == []
    assert len(whole.without(part)) == 6 - len(part.order)
    assert datasets


def test_pixels_are_compared_where_there_are_no_files():
    pixels = torch.rand(6, 3, 4, 4)
    one, other = (
        given(TensorDataset(pixels[part], torch.arange(len(pixels[part]))))
        for part in (slice(4), slice(2, 6))
    )
    assert one.without(other) == [number for number in one.order if number < 2]
    assert other.without(one) == [number for number in other.order if number > 1]
    assert given(pixels).without(given(pixels.clone())) == []


def test_what_cannot_be_compared_is_refused(forms):
    pixels = given(TensorDataset(torch.rand(6, 3, 4, 4), torch.arange(6)))
    with pytest.raises(
        Refusal, match="of some there are files, and of others pixels only; give both in one form"
    ):
        forms["a folder"].without(pixels)

    class Turned(Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, number):
            return torch.rand(3, 4, 4), number

    with pytest.raises(
        Refusal, match=r"image 0 is another image each time it is read.*without random transforms"
    ):
        pixels.without(given(Turned()))
    same = given(Turned())
    assert same.without(same.only([3])) == [number for number in same.order if number != 3]
