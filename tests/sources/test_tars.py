import gzip
import io
import pickle
import tarfile

import pytest
from pictures import SMALL, folder, in_order, parquet, png, read, read_all, table, tar

from vit_analysis.images import Images
from vit_analysis.spelling import Refusal


def shades(found) -> list[int]:
    return [shade for shade, _ in found]


# One tar -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "./", "val/", "./deep/val/"])
def test_folders_in_a_tar_are_classes_below_the_one_that_holds_them_all(tmp_path, prefix):
    files = {
        f"{prefix}{kind}/{number}.png": number for number, kind in enumerate(["b/x", "a", "b/y", "a", "b/x"])
    }
    source = tar(tmp_path / "x.tar", files)
    images = Images(str(source), limit=None, workers=0)
    assert images.classes == ["a", "b/x", "b/y"]
    assert in_order(read_all(images)) == [(1, 0), (3, 0), (0, 1), (4, 1), (2, 2)]


def test_a_tar_of_tars_is_one_of_folders(tmp_path):
    """As ILSVRC2012's own archive of training images is made."""
    inner = {
        f"n0{n}.tar": tar(tmp_path / f"{n}.tar", {f"{i}.png": 10 * n + i for i in range(3)}) for n in (2, 1)
    }
    source = tar(tmp_path / "train.tar", {name: path.read_bytes() for name, path in inner.items()})
    images = Images(str(source), limit=None, workers=0)
    assert images.classes == ["n01", "n02"]
    assert in_order(read_all(images)) == [(10, 0), (11, 0), (12, 0), (20, 1), (21, 1), (22, 1)]


def test_hidden_members_links_and_other_files(tmp_path, caplog):
    path = tar(
        tmp_path / "x.tar", {"./._0.png": b"", "0.png": 0, "notes.txt": b"", "a.zip": b"", ".git/1.png": 1}
    )
    with tarfile.open(path, "a") as made:
        info = tarfile.TarInfo("2.png")
        info.type, info.linkname = tarfile.SYMTYPE, "0.png"
        made.addfile(info)
    assert in_order(read(path)) == [(0, -1)]
    assert "left out: 1 .link, 1 .txt, 1 .zip (unpack it)" in caplog.text


def test_what_is_ambiguous_in_a_tar_is_refused(tmp_path):
    with pytest.raises(Refusal, match="'train' and 'val', which are different sets"):
        read(tar(tmp_path / "x.tar", {"deep/train/a/0.png": 0, "deep/val/a/1.png": 1}))
    with pytest.raises(Refusal, match=r"images beside them, such as '2.png'"):
        read(tar(tmp_path / "y.tar", {"a/0.png": 0, "b/1.png": 1, "2.png": 2}))


# WebDataset ------------------------------------------------------------------------------------------------------------


SAID = {
    "cls": ({"cls": "2"}, {"cls": "0\n"}, ["0", "2"], [1, 0]),
    "names": ({"cls": "dog"}, {"cls": "cat"}, ["cat", "dog"], [1, 0]),
    "json label": ({"json": {"label": 1}}, {"json": {"label": 0, "x": 3}}, ["0", "1"], [1, 0]),
    "json cls": ({"json": {"cls": 1}}, {"json": {"cls": 0}}, ["0", "1"], [1, 0]),
    "json name": ({"json": {"label": "b"}}, {"json": {"label": "a"}}, ["a", "b"], [1, 0]),
    "both": ({"cls": "1", "json": {"label": 0}}, {"json": {"label": 1}, "cls": "0"}, ["0", "1"], [1, 0]),
    "neither": ({"json": {"caption": "x"}}, {"txt": "y"}, [], [-1, -1]),
    "unknown": ({"cls": "-1"}, {"cls": "-1"}, [], [-1, -1]),
}


@pytest.mark.parametrize(("first", "second", "classes", "labels"), SAID.values(), ids=SAID)
def test_files_beside_an_image_say_its_class(tmp_path, first, second, classes, labels):
    files = {"0.png": 0} | {f"0.{kind}": own for kind, own in first.items()}
    files |= {f"1.{kind}": own for kind, own in second.items()} | {"1.png": 1}
    source = tar(tmp_path / "x.tar", files)
    images = Images(str(source), limit=None, workers=0)
    assert images.classes == classes
    assert in_order(read_all(images)) == list(enumerate(labels))


def test_some_labels_are_not_enough(tmp_path):
    source = tar(tmp_path / "x.tar", {"0.png": 0, "0.cls": "1", "1.png": 1, "1.cls": "0", "2.png": 2})
    with pytest.raises(Refusal, match=r"1 of 3 images of .*x.tar' have no class and the others have one"):
        read(source)


def test_of_several_images_of_a_sample_one_is_named(tmp_path):
    files = {
        f"{n}.{kind}": own for n in range(2) for kind, own in {"png": n, "seg.png": 9, "cls": str(n)}.items()
    }
    source = tar(tmp_path / "x.tar", files)
    with pytest.raises(
        Refusal,
        match=r"'0.png' and '0.seg.png' in .* several images of one sample; say .* --images.image-column png$",
    ):
        read(source)
    assert in_order(read(source, image_column="png")) == [(0, 0), (1, 1)]
    assert shades(in_order(read(source, image_column="seg.png"))) == [9, 9]


def test_names_with_dots_are_no_samples_of_several_images(tmp_path):
    files = {f"cat.{n}.{kind}": own for n in range(3) for kind, own in {"png": n, "cls": str(n)}.items()}
    assert in_order(read(tar(tmp_path / "x.tar", files))) == [(0, 0), (1, 1), (2, 2)]


def test_labels_are_named(tmp_path):
    files = {
        f"{n}.{kind}": own
        for n in range(2)
        for kind, own in {"png": n, "txt": f"k{1 - n}", "json": {"fine": n}}.items()
    }
    source = tar(tmp_path / "x.tar", files)
    assert Images(str(source)).classes == []
    assert Images(str(source), label_column="fine").classes == ["0", "1"]
    assert in_order(read(source, label_column="txt")) == [(0, 1), (1, 0)]
    with pytest.raises(Refusal, match=r"no file beside .* ends with .coarse, and no .json says 'coarse'"):
        read(source, label_column="coarse")


def of_labels(tmp_path, label: str | None, **files) -> tuple[list[str], list[int]]:
    """Classes and labels of two samples, each file given as what it holds for the one and for the other."""
    own = {f"{n}.{kind.replace('_', '.')}": held[n] for kind, held in files.items() for n in range(2)}
    own |= {f"{n}.png": n for n in range(2)}
    source = tar(tmp_path / "x.tar", own)
    images = Images(str(source), limit=None, workers=0, label_column=label)
    return images.classes, [label for _, label in in_order(read_all(images))]


@pytest.mark.parametrize("label", ["age", ".age", "AGE"])
def test_a_named_label_is_that_one_whatever_else_lies_beside(tmp_path, label):
    both = {"age": ("young", "old"), "cls": ("0", "1"), "json": ({"age": 9}, {"age": 8})}
    for order in (list(both), list(both)[::-1]):
        files = {kind: both[kind] for kind in order}
        assert of_labels(tmp_path, label, **files) == (["old", "young"], [1, 0])


def test_a_named_key_of_a_json_is_read_beside_a_cls(tmp_path):
    held = {"cls": ("5", "6"), "json": ({"fine": 3, "label": 1}, {"fine": 2, "label": 0})}
    assert of_labels(tmp_path, "fine", **held) == (["2", "3"], [1, 0])
    assert of_labels(tmp_path, None, **held) == (["5", "6"], [0, 1])
    with pytest.raises(Refusal, match=r"no file beside .* ends with .coarse, and no .json says 'coarse'"):
        of_labels(tmp_path, "coarse", **held)


def test_a_named_ending_has_several_parts(tmp_path):
    held = {"coarse_cls": ("b", "a"), "fine_cls": ("0", "1"), "cls": ("9", "8")}
    assert of_labels(tmp_path, "coarse.cls", **held) == (["a", "b"], [1, 0])
    assert of_labels(tmp_path, "fine.cls", **held) == (["0", "1"], [0, 1])
    assert of_labels(tmp_path, "cls", **held) == (["8", "9"], [1, 0])


def test_endings_of_several_parts_that_are_not_named_are_told(tmp_path, caplog):
    assert of_labels(tmp_path, None, coarse_cls=("b", "a")) == ([], [-1, -1])
    assert "a class is said of '0.coarse', which is no image" in caplog.text


JSON = {
    "null before": ({"label": None, "cls": 1}, {"label": None, "cls": 0}, ["0", "1"]),
    "whole floats": ({"label": 1.0}, {"label": 0.0}, ["0", "1"]),
    "lists of one": ({"label": [1]}, {"label": [0]}, ["0", "1"]),
    "yes and no": ({"label": True}, {"label": False}, ["0", "1"]),
    "names in lists": ({"cls": ["b"]}, {"cls": ["a"]}, ["a", "b"]),
}


@pytest.mark.parametrize(("one", "other", "classes"), JSON.values(), ids=JSON)
def test_classes_in_a_json_are_whole_numbers_or_names(tmp_path, one, other, classes):
    assert of_labels(tmp_path, None, json=(one, other)) == (classes, [1, 0])


@pytest.mark.parametrize("value", [0.5, [0, 1], {"a": 1}])
def test_what_is_no_class_in_a_json_is_told(tmp_path, caplog, value):
    assert of_labels(tmp_path, None, json=({"label": value}, {"label": value})) == ([], [-1, -1])
    assert caplog.text.count("'0.json' says ") == caplog.text.count("which is not read as a class") == 1
    with pytest.raises(Refusal, match=r"'0.json' says .* in '.*x.tar', and no number or name of a class"):
        of_labels(tmp_path, "label", json=({"label": value}, {"label": value}))


@pytest.mark.parametrize("again", ["a/1.png", "./a/1.png", "/a/1.png", "../a/1.png"])
def test_a_member_that_was_added_again_replaces_the_earlier_one(tmp_path, caplog, again):
    path = tar(tmp_path / "x.tar", {"a/1.png": 1, "a/1.cls": "0", "b/2.png": 2, "b/2.cls": "1"})
    with tarfile.open(path, "a") as made:
        for name, data in {again: png(7), again.replace("png", "cls"): b"5"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    images = Images(str(path), limit=None, workers=0)
    assert images.classes == ["1", "5"]
    assert in_order(read_all(images)) == [(7, 1), (2, 0)]
    assert "1 images are there twice, such as 'a/1.png'; the later ones are read" in caplog.text


@pytest.mark.parametrize("prefix", ["../", "../../", "/", "/../"])
def test_members_outside_of_the_folder_are_images_too(tmp_path, prefix):
    """As ``tar -P`` packs them."""
    source = tar(tmp_path / "x.tar", {f"{prefix}p/a/1.png": 1, f"{prefix}p/b/2.png": 2})
    assert Images(str(source)).classes == ["a", "b"]
    assert in_order(read(source)) == [(1, 0), (2, 1)]


# Shards ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    """Twelve shards of three images, of which the numbers are in natural order of the shards' names."""
    for shard in range(12):
        own = {f"{3 * shard + n:05d}.{kind}": value for n in range(3) for kind, value in
               {"png": 3 * shard + n, "cls": str(n % 2)}.items()}  # fmt: skip
        tar(tmp_path / "set" / f"train-{shard}.tar", own)
    (tmp_path / "set" / "README.md").write_text("twelve shards")
    return tmp_path / "set"


@pytest.mark.parametrize("name", ["", "train-{0..11}.tar", "*.tar", "train-{11..0}.tar", "t*-{0,1,10}*.tar"])
def test_images_of_shards_have_one_number_however_they_are_named(shards, name, monkeypatch):
    monkeypatch.chdir(shards.parent)
    expected = [(number, number % 3 % 2) for number in range(36)]
    if "{0,1,10}" in name:
        expected = [one for one in expected if one[0] // 3 in (0, 1, 10, 11)]
    assert in_order(read(f"{shards}/{name}".rstrip("/"))) == expected


def test_ranges_of_shards_keep_their_zeros(tmp_path):
    for number in (8, 9, 10):
        tar(tmp_path / f"s-{number:03d}.tar", {f"{number}.png": number})
    assert shades(in_order(read(tmp_path / "s-{008..010}.tar"))) == [8, 9, 10]
    with pytest.raises(FileNotFoundError, match=r"2 of the shards .* are not there, such as '.*s-011.tar'"):
        read(tmp_path / "s-{009..012}.tar")
    with pytest.raises(
        FileNotFoundError, match=r"no images at .*t-\{0..3\}.tar': no file has such a name; did you mean"
    ):
        read(tmp_path / "t-{0..3}.tar")


def test_shards_are_read_alike_by_workers_ranks_and_after_a_restart_in_one_of_them(shards):
    whole = read(shards, batch=5)
    assert read(shards, batch=5, workers=2) == whole
    images = Images(str(shards), limit=20, batch=5, workers=0, seed=3)
    order = images.order
    first = read_all(images)
    rest = {number for rank in range(2) for batch in images.read([SMALL], rank=rank, of=2, start=1)
            for number in batch.images}  # fmt: skip
    assert rest == set(order[5:])
    assert first == {number: whole[number] for number in order}


def test_shards_of_different_sets_are_not_read_as_one(tmp_path):
    for name in ("my-train-0.tar", "my-train-1.tar", "my-validation-0.tar"):
        tar(tmp_path / name, {"0.png": 0})
    for source in (tmp_path, tmp_path / "*.tar"):
        with pytest.raises(
            Refusal, match=r"train and validation, which are different sets .*\*train\*.tar or "
        ):
            read(source)
    assert len(read(tmp_path / "*train*.tar")) == 2


def test_sets_in_a_tar_are_told_where_files_say_the_classes_too(tmp_path):
    files = {
        f"{own}/{n}.{kind}": n if kind == "png" else str(n)
        for own in ("train", "val")
        for n in (0, 1)
        for kind in ("png", "cls")
    }
    with pytest.raises(Refusal, match="'train' and 'val', which are different sets"):
        read(tar(tmp_path / "x.tar", files))


SETS = {
    "three": ["train-0", "validation-0", "unsupervised-0"],
    "the last two": ["train-0", "unsupervised-0"],
    "in folders": ["train/0", "val/0"],
    "deeper": ["data/train/a-0", "data/test/a-0"],
    "hub": ["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"],
    "beside others": ["train-0", "val-0", "sample"],
}


@pytest.mark.parametrize("names", SETS.values(), ids=SETS)
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_shards_of_several_sets_are_told(tmp_path, names, kind):
    for name in names:
        path = tmp_path / f"{name}.{kind}"
        tar(path, {"0.png": 0}) if kind == "tar" else parquet(path, table({"image": [0]}))
    with pytest.raises(
        Refusal, match=r"holds shards of .* and .*, which are different sets of images; choose one"
    ):
        read(tmp_path)


def test_shards_named_after_classes_are_one_set(tmp_path):
    for number, name in enumerate(("bullet_train", "test_tube", "bottle")):
        tar(tmp_path / f"{name}.tar", {f"{number}.png": number})
    assert len(read(tmp_path)) == 3


def test_a_folder_of_tars_and_parquet_files_is_two_things(tmp_path):
    folder(tmp_path, {"a.tar": b"", "b.parquet": b""})
    with pytest.raises(Refusal, match=r"holds .tar and .parquet files; choose, as in '.*\*.tar'"):
        read(tmp_path)


def test_an_opened_tar_goes_to_a_worker_that_starts_anew(shards):
    images = Images(str(shards), limit=None, workers=0)
    expected = read_all(images)
    assert read_all(pickle.loads(pickle.dumps(images))) == expected


# What is not whole -----------------------------------------------------------------------------------------------------


def whole(tmp_path) -> bytes:
    return tar(tmp_path / "whole.tar", {f"{n}.png": n for n in range(4)}).read_bytes()


CUT = {
    "in an image": (lambda data: data[: 3 * 1024 + 512 + 40], "cut off or damaged after 3 files"),
    "in a header": (lambda data: data[: 3 * 1024 + 100], "cut off or damaged after 3 files"),
    "between images": (
        lambda data: data[: 3 * 1024],
        "cut off or damaged after 3 files .the mark of its end is missing",
    ),
    "a block lost": (lambda data: data[:1024] + b"x" * 512 + data[1536:], "cut off or damaged after 1 files"),
    "another behind": (lambda data: data + data, "after 4 files .behind its end there is more"),
    "nothing": (lambda _: b"", "not even its first file .empty file"),
    "no tar": (lambda _: b"no tar at all" * 99, "not even its first file"),
}


@pytest.mark.parametrize(("change", "said"), CUT.values(), ids=CUT)
def test_a_shard_that_is_not_whole_is_named(tmp_path, change, said):
    assert len(png(3)) <= 512  # as offsets above take it
    data = whole(tmp_path)
    for number in range(3):
        (tmp_path / f"s{number}.tar").write_bytes(change(data) if number == 1 else data)
    with pytest.raises(OSError, match=rf"s1.tar' is no tar of images that can be read: .*{said}"):
        read(tmp_path / "s*.tar")


def test_a_shard_without_images_is_named(tmp_path):
    tar(tmp_path / "s0.tar", {"0.png": 0})
    tar(tmp_path / "s1.tar", {"0.txt": b"", "1.txt": b""})
    with pytest.raises(FileNotFoundError, match=r"no images in '.*s1.tar': it holds 2 .txt"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.zip", "x.7z", "x.tar.zst"])
def test_what_is_packed_has_to_be_unpacked(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(Refusal, match=f"{name}' is compressed, .* unpack it"):
        read(tmp_path / name)


def test_a_compressed_tar_is_known_by_its_content(tmp_path):
    (tmp_path / "x.tar").write_bytes(gzip.compress(whole(tmp_path)))
    with pytest.raises(Refusal, match=r"x.tar' is compressed, .* unpack it"):
        read(tmp_path / "x.tar")


def test_a_shard_that_changed_meanwhile_is_refused(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(whole(tmp_path))
    images = Images(str(path), workers=0)
    assert images.order
    path.write_bytes(path.read_bytes() + b"\0" * 512)
    with pytest.raises(Refusal, match=r"x.tar' was changed"):
        read_all(images)


def test_an_image_that_cannot_be_decoded_is_named_with_its_shard(tmp_path):
    tar(tmp_path / "s0.tar", {"a/0.png": 0})
    tar(tmp_path / "s1.tar", {"b/1.png": b"no image"})
    with pytest.raises(OSError, match=r"1 of 2 images cannot be read.*the last is s1.tar/b/1.png"):
        read(tmp_path)


def test_long_names_and_other_dialects_of_tar(tmp_path):
    for number, dialect in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        with tarfile.open(tmp_path / f"{number}.tar", "w", format=dialect) as made:
            for kind in "ab":
                info = tarfile.TarInfo(f"{kind * 60}/{'ü' * 80}/{number}.png")
                info.size = len(png(number))
                made.addfile(info, io.BytesIO(png(number)))
        images = Images(str(tmp_path / f"{number}.tar"))
        assert images.classes == [f"{kind * 60}/{'ü' * 80}" for kind in "ab"]
        assert shades(in_order(read(tmp_path / f"{number}.tar"))) == [number, number]


def test_names_packed_on_windows_are_folders_too(tmp_path):
    source = tar(tmp_path / "x.tar", {"a\\0.png": 0, "b\\1.png": 1})
    assert Images(str(source)).classes == ["a", "b"]
