import os
import pickle
from itertools import chain

import numpy as np
import pytest
from pictures import SMALL, folder, in_order, png, read, read_all, saved, tar
from PIL import Image
from timm.data import create_dataset

from vit_analysis.images import Images
from vit_analysis.sources.names import Names, natural, readable
from vit_analysis.spelling import Refusal


def classes(root, **options) -> list[str]:
    return Images(str(root), **options).classes


def test_numbers_and_labels_are_those_that_timm_gives(tmp_path):
    names = [
        f"{kind}/{name}.png" for kind in ("b2", "B10", "a", "b1") for name in (10, 9, "x2", "X10", "0 a")
    ]
    root = folder(tmp_path, {name: number for number, name in enumerate(names)})
    theirs = create_dataset("", root=str(root), search_split=False)
    images = Images(str(root), workers=0)
    ours = [images.name(number) for number in range(len(names))]
    assert ours == [theirs.filename(number) for number in range(len(names))]
    assert images.classes == list(theirs.reader.class_to_idx)
    assert [label for _, label in in_order(read_all(images))] == [label for _, label in theirs.reader.samples]


KINDS = ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "gif", "ppm", "pcx", "tga", "jp2", "ico"]


def test_what_pil_reads_is_read_in_any_letter_case_and_the_rest_is_counted(tmp_path, caplog):
    Image.init()
    kinds = [kind for kind in KINDS if f".{kind}" in Image.EXTENSION]
    image = Image.fromarray(np.full((16, 16, 3), 200, dtype=np.uint8))
    files = {f"a/{kind}.{kind}": saved(image, Image.EXTENSION[f".{kind}"]) for kind in kinds}
    files |= {f"b/{kind}.{kind.upper()}": files[f"a/{kind}.{kind}"] for kind in kinds}
    others = {
        "a/1.txt": b"",
        "notes.TXT": b"",
        "b/2.txt": b"",
        "more.zip": b"",
        "b/c.tar.gz": b"",
        "README": b"",
    }
    root = folder(tmp_path, files | others)
    assert len(read(root)) == 2 * len(kinds)
    said = "left out: 3 .txt, 1 without an ending, 1 .tar.gz (unpack it), 1 .zip (unpack it)"
    assert caplog.text.count("left out") == 1
    assert said in caplog.text


def test_formats_that_pil_only_knows_by_name_are_no_images():
    assert {".png", ".jpg", ".webp", ".jfif"} <= readable()
    assert not {".pdf", ".mpg", ".h5", ".grib", ".txt", ""} & readable()


def test_hidden_files_are_not_there(tmp_path, caplog):
    hidden = [
        ".DS_Store",
        "a/._0.png",
        "a/Thumbs.db",
        ".git/x.png",
        "__MACOSX/a/1.png",
        "b/.ipynb_checkpoints/c.png",
    ]
    root = folder(tmp_path, {"a/0.png": 0, "b/1.png": 1} | dict.fromkeys(hidden, 9))
    assert in_order(read(root)) == [(0, 0), (1, 1)]
    assert "left out" not in caplog.text


def test_a_class_is_the_whole_path_of_a_folder(tmp_path):
    root = folder(
        tmp_path, {"animals/big/0.png": 0, "cars/big/1.png": 1, "animals/small/2.png": 2, "cars/3.png": 3}
    )
    assert classes(root) == ["animals/big", "animals/small", "cars", "cars/big"]
    images = Images(str(root), limit=None, workers=0)
    said = {shade: images.classes[label] for shade, label in read_all(images).values()}
    assert said == {0: "animals/big", 1: "cars/big", 2: "animals/small", 3: "cars"}


@pytest.mark.parametrize(
    "files", [{"0.png": 0, "1.png": 1}, {"a/0.png": 0, "a/1.png": 1}], ids=["flat", "one"]
)
def test_one_folder_alone_is_no_classes(tmp_path, files):
    assert classes(folder(tmp_path, files)) == []
    assert len(read(tmp_path)) == 2


def test_images_beside_folders_of_classes_are_refused(tmp_path):
    root = folder(tmp_path, {"(1)/0.png": 0, "b/1.png": 1, "loose.png": 2})
    with pytest.raises(
        Refusal, match=r"folders of images \('\(1\)', 'b'\) and 1 images beside them, such as 'loose.png'"
    ):
        classes(root)


@pytest.mark.parametrize(
    "sets", [("train", "val"), ("Train", "test"), ("training", "validation", "testing"), ("dev", "eval")]
)
def test_sets_of_a_data_set_are_not_read_as_one(tmp_path, sets):
    root = folder(tmp_path, {f"{own}/{kind}/0.png": 0 for own in sets for kind in "ab"} | {"about.md": b""})
    with pytest.raises(Refusal, match="different sets of images; choose one: ") as refused:
        classes(root)
    assert all(str(root / own) in str(refused.value) for own in sets)
    assert classes(root / sets[0]) == ["a", "b"]


def test_folders_that_are_only_called_like_sets_are_classes(tmp_path):
    """A train is also what runs on rails."""
    assert classes(folder(tmp_path, {"train/0.png": 0, "tractor/1.png": 1})) == ["tractor", "train"]


DEEPER = {
    "YOLO": ["images/train/0", "images/val/1"],
    "one folder more": ["data/train/a/0", "data/val/a/1", "data/train/b/2"],
    "MVTec": ["bottle/train/good/0", "bottle/test/good/1", "cable/train/good/2", "cable/test/bent/3"],
    "a third set": ["train/a/0", "val/a/1", "extra/a/2"],
    "COCO": ["train2017/0", "val2017/1"],
    "with another word": ["train_images/0", "test_images/1"],
    "Intel": ["seg_train/seg_train/a/0", "seg_test/seg_test/a/1", "seg_pred/seg_pred/2"],
    "without labels": ["train/a/0", "test/a/1", "unlabeled/2"],
    "one with classes": ["train/a/0", "unlabelled/1"],
    "CycleGAN": ["trainA/0", "trainB/1", "testA/2", "testB/3"],
    "beside others": ["train/a/0", "test/a/1", "sample/a/2"],
    "of two kinds of names": ["train_images/0", "val/1"],
    "in capitals": ["TRAIN/a/0", "Valid/a/1"],
    "VOC": ["trainval/a/0", "test/a/1"],
    "joined words": ["trainset/a/0", "testset/a/1"],
    "half a path": ["a/train/0", "b/test/1"],
}


@pytest.mark.parametrize("names", DEEPER.values(), ids=DEEPER)
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_sets_are_told_wherever_their_folders_are(tmp_path, names, kind):
    files = {f"{name}.png": number for number, name in enumerate(names)}
    source = folder(tmp_path / "x", files) if kind == "folder" else tar(tmp_path / "x.tar", files)
    with pytest.raises(Refusal, match=r"' and '.*, which are different sets of images; "):
        classes(source)


VEHICLES = {
    "a train among others": ["bus", "car", "train"],
    "words in names": ["test_tube", "bullet_train", "bottle", "train station"],
    "only contained": ["valley", "trainer", "contest"],
    "one set": ["train/a", "train/b"],
    "names of one kind": ["train", "training", "car"],
    "extra alone": ["extra", "unlabeled"],
    "at different depths": ["rail/train", "test"],
}


@pytest.mark.parametrize("names", VEHICLES.values(), ids=VEHICLES)
def test_one_word_alone_is_no_split(tmp_path, names):
    files = {f"{name}/{number}.png": number for number, name in enumerate(names)}
    assert sorted(classes(folder(tmp_path / "x", files))) == sorted(names)
    inner = [name.removeprefix("train/") for name in names] if names == ["train/a", "train/b"] else names
    assert sorted(classes(tar(tmp_path / "x.tar", files))) == sorted(inner)


# Photographs and masks ------------------------------------------------------------------------------------------------

MASKS = {
    "two folders": ["images/0.png", "images/1.png", "masks/0.png", "masks/1.png"],
    "deeper": ["a/images/0.png", "a/masks/0.png", "b/images/0.png", "b/masks/0.png"],
    "VOC": ["JPEGImages/0.png", "SegmentationClass/0.png"],
    "two endings": ["x/0.png", "x/0.seg.png", "x/1.png", "x/1.seg.png", "y/2.png", "y/2.seg.png"],
    "two formats": ["0.png", "0.bmp", "1.png", "1.bmp"],
    "a word more": ["0.png", "0_mask.png", "1.png", "1_mask.png"],
    "a longer word": ["ISIC_01.png", "ISIC_01_Segmentation.png", "ISIC_02.png", "ISIC_02_Segmentation.png"],
}


@pytest.mark.parametrize("names", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_photographs_and_masks_are_not_read_as_one_set(tmp_path, names, kind):
    files = dict.fromkeys(names, 1)
    source = folder(tmp_path / "x", files) if kind == "folder" else tar(tmp_path / "x.tar", files)
    with pytest.raises(
        Refusal, match=r"what was drawn of them|are several images of one sample, as a photograph"
    ):
        classes(source)


NO_MASKS = {
    "dots in names": ["cat.0.png", "cat.1.png", "dog.0.png", "dog.1.png"],
    "masks are a class": ["masks/0.png", "hats/1.png"],
    "a few copies": ["a/0.png", "a/0.1.png", *(f"a/{n}.png" for n in range(1, 9)), "b/0.png"],
    "photographs are a class": ["photos/0.png", "paintings/1.png"],
}


@pytest.mark.parametrize("names", NO_MASKS.values(), ids=NO_MASKS)
def test_names_that_only_look_alike_are_read(tmp_path, names):
    files = dict.fromkeys(names, 1)
    assert len(read(folder(tmp_path / "x", files))) == len(names) == len(read(tar(tmp_path / "x.tar", files)))


# Links ---------------------------------------------------------------------------------------------------------------


def test_links_to_folders_above_end(tmp_path):
    root = folder(tmp_path / "pics", {"a/0.png": 0, "b/1.png": 1})
    folder(tmp_path, {"outside/2.png": 2})
    for name, target in {"a/up": "..", "b/up": "..", "b/beside": "../a", "a/out": "../.."}.items():
        (root / name).symlink_to(target, target_is_directory=True)
    (root / "self").symlink_to("self")
    (root / "a" / "here").symlink_to(".")
    assert in_order(read(root)) == [(0, 0), (1, 1)]


def test_a_folder_is_read_by_its_own_name_and_by_one_link_otherwise(tmp_path, caplog):
    folder(tmp_path, {"far/5.png": 5})
    root = folder(tmp_path / "pics", {"z/0.png": 0})
    (root / "a").symlink_to(root / "z")
    (root / "far").symlink_to(tmp_path / "far")
    (root / "more").symlink_to(tmp_path / "far")
    assert classes(root) == ["far", "z"]
    assert "links to folders that are read already: 'a', 'more'" in caplog.text


def test_a_link_to_an_image_is_an_image_and_one_to_nothing_cannot_be_read(tmp_path):
    root = folder(tmp_path, {"a/0.png": 0, "b/1.png": 1})
    (root / "b" / "2.png").symlink_to(root / "a" / "0.png")
    assert in_order(read(root)) == [(0, 0), (1, 1), (0, 1)]
    (root / "b" / "3.png").symlink_to(root / "gone.png")
    with pytest.raises(OSError, match=r"1 of 4 images cannot be read.*b/3.png \(.*No such file"):
        read(root)


# What pixels are ------------------------------------------------------------------------------------------------------


def test_a_turn_noted_by_the_camera_is_not_made(tmp_path):
    """As timm and torchvision read images, and published accuracies are measured."""
    pixels = np.zeros((4, 8, 3), dtype=np.uint8)
    pixels[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    root = folder(tmp_path, {"0.png": saved(Image.fromarray(pixels), "png", exif=exif)})
    (batch,) = Images(str(root), workers=0).read([SMALL])
    (seen,) = batch.inputs[0]
    assert seen[..., 0].min() > 0.9
    assert seen[..., -1].max() < 0.1


# What does not depend on how it is read -----------------------------------------------------------------------------


def test_the_listing_of_the_file_system_does_not_matter(tmp_path, monkeypatch):
    root = folder(tmp_path, {f"{kind}/{number}.png": number for kind in "abc" for number in range(3)})
    (root / "link").symlink_to(tmp_path / "a")
    before = Images(str(root)).facts(), read(root)

    class Backwards:
        def __init__(self, path) -> None:
            self.entries = sorted(scandir(path), key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_: object) -> None:
            pass

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", Backwards)
    assert (Images(str(root)).facts(), read(root)) == before


def test_workers_ranks_and_later_starts_read_the_same(tmp_path):
    root = folder(tmp_path, {f"{number % 3}/{number}.png": number for number in range(23)})
    whole = read(root)
    assert read(root, workers=2) == whole
    images = Images(str(root), limit=None, batch=4, workers=0)
    parts = [batch.images for rank in range(3) for batch in images.read([SMALL], rank=rank, of=3, start=2)]
    assert sorted(chain(*parts)) == sorted(images.order[8:])


def test_a_listed_folder_goes_to_a_worker_that_starts_anew(tmp_path):
    images = Images(str(folder(tmp_path, {"a/0.png": 0, "b/1.png": 1})), limit=None, workers=0)
    expected = read_all(images)
    assert read_all(pickle.loads(pickle.dumps(images))) == expected


def test_a_file_that_changed_meanwhile_is_not_taken_for_the_one_that_was_listed(tmp_path):
    root = folder(tmp_path, {"a/0.png": 0, "b/1.png": 1})
    images = Images(str(root), workers=0)
    assert images.facts()
    (root / "a/0.png").write_bytes(png(7) + b" ")
    with pytest.raises(Refusal, match=r"0.png' was changed after its folder was listed"):
        list(images.read([SMALL]))


def test_natural_order_and_names_in_one_block():
    names = ["x10", "X9", "x09", "a!", "a1", "\udcff.png", "ü", "x"]
    assert sorted(names, key=natural) == ["a1", "a!", "x", "X9", "x09", "x10", "ü", "\udcff.png"]
    block = Names(names)
    assert list(block) == names
    assert block[3] == "a!"
    with pytest.raises(IndexError):
        block[len(names)]
