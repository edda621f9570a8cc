import pickle

import numpy as np
import pyarrow as pa
import pytest
from pictures import SMALL, in_order, parquet, png, read, read_all, table

from vit_analysis.images import Images
from vit_analysis.sources import parquet as module
from vit_analysis.spelling import Refusal

DOGS = {"_type": "ClassLabel", "names": ["cat", "dog"]}
IMAGE = {"_type": "Image"}


@pytest.mark.parametrize("group", [1, 3, 100])
def test_rows_are_read_by_number_whatever_the_groups(tmp_path, group):
    for shard in range(3):
        own = range(10 * shard, 10 * shard + 10)
        made = table({"image": own, "label": [n % 2 for n in own]}, {"image": IMAGE, "label": DOGS})
        parquet(tmp_path / "data" / f"train-{shard}-of-12.parquet", made, group)
    expected = [(n, n % 2) for n in range(30)]
    for source in (
        tmp_path,
        tmp_path / "data" / "*.parquet",
        tmp_path / "data" / "train-{0..2}-of-12.parquet",
    ):
        assert Images(str(source)).classes == ["cat", "dog"]
        assert in_order(read(source)) == expected
    assert in_order(read(tmp_path, workers=2)) == expected
    images = Images(str(tmp_path), limit=None, batch=4, workers=0)
    rest = [n for rank in (0, 1) for b in images.read([SMALL], rank=rank, of=2, start=3) for n in b.images]
    assert sorted(rest) == sorted(images.order[12:])


def test_parts_of_a_large_group_are_read_and_few_are_kept(tmp_path, monkeypatch, caplog):
    size = len(png(0))
    monkeypatch.setattr(module, "KEPT", 12 * size)
    monkeypatch.setattr(module, "PART", 3 * size)
    path = parquet(tmp_path / "x.parquet", table({"image": range(200), "label": range(200)}), 150)
    images = Images(str(path), limit=None, batch=16, workers=0)
    assert in_order(read_all(images)) == [(n, n) for n in range(200)]
    kept = images._source.kept.parts.values()
    assert sum(own.nbytes for own in kept) <= 12 * size
    assert len(kept) > 1
    assert "is read slowly, as an image costs the reading of row groups" in caplog.text


COLUMNS = {
    "image, label": ({"image": [0, 1], "label": [1, 0]}, None, ["0", "1"], [1, 0]),
    "img, label": ({"img": [0, 1], "label": [1, 0]}, {"img": IMAGE, "label": DOGS}, ["cat", "dog"], [1, 0]),
    "category": ({"image": [0, 1], "key": ["x", "y"], "category": ["b", "a"]}, None, ["a", "b"], [1, 0]),
    "fine": (
        {"img": [0, 1], "fine_label": [1, 0], "coarse_label": [0, 0]},
        {"img": IMAGE, "fine_label": DOGS, "coarse_label": DOGS},
        ["cat", "dog"],
        [1, 0],
    ),
    "an own name": ({"picture": [0, 1], "species": [1, 0]}, {"species": DOGS}, ["cat", "dog"], [1, 0]),
    "none": ({"image": [0, 1], "caption": ["x", "y"]}, None, [], [-1, -1]),
    "unknown": ({"image": [0, 1], "label": [-1, -1]}, {"label": DOGS}, [], [-1, -1]),
    "bytes": ({"x": [png(0), png(1)], "label": ["b", "a"]}, None, ["a", "b"], [1, 0]),
    "yes and no": ({"image": [0, 1], "target": [True, False]}, None, ["0", "1"], [1, 0]),
    "categories": (
        {"image": [0, 1], "label": pa.array(["b", "a"]).dictionary_encode()},
        None,
        ["a", "b"],
        [1, 0],
    ),
    "lists of one": ({"image": [0, 1], "labels": [[1], [0]]}, None, ["0", "1"], [1, 0]),
    "arrays of one": (
        {"image": [0, 1], "label": pa.FixedSizeListArray.from_arrays(pa.array([1, 0]), 1)},
        {"label": DOGS},
        ["cat", "dog"],
        [1, 0],
    ),
    "whole floats": ({"image": [0, 1], "label": [1.0, 0.0]}, None, ["0", "1"], [1, 0]),
    "halves": (
        {"image": [0, 1], "label": np.array([1, 0], np.float16)},
        {"label": DOGS},
        ["cat", "dog"],
        [1, 0],
    ),
    "names in lists": ({"image": [0, 1], "label": [["b"], ["a"]]}, None, ["a", "b"], [1, 0]),
    "nothing known": ({"image": [0, 1], "label": [None, None]}, None, [], [-1, -1]),
    "a share and a class": (
        {"image": [0, 1], "target": [0.5, 1.0], "label": [1, 0]},
        None,
        ["0", "1"],
        [1, 0],
    ),
}


@pytest.mark.parametrize(("columns", "features", "classes", "labels"), COLUMNS.values(), ids=COLUMNS)
def test_columns_are_found(tmp_path, columns, features, classes, labels):
    path = parquet(tmp_path / "x.parquet", table(columns, features))
    assert Images(str(path)).classes == classes
    assert in_order(read(path)) == list(enumerate(labels))


AMBIGUOUS = {
    "images": (
        {"image": [0, 1], "img": [1, 0]},
        r"'image', 'img' of .* could all be meant; say --images.image-column image",
    ),
    "labels": (
        {"image": [0, 1], "label": [0, 1], "target": [0, 1]},
        "'label', 'target' .* --images.label-column label",
    ),
    "no image": ({"label": [0, 1]}, r"no column of .* holds images, as bytes; there are label \(int64\)"),
}


@pytest.mark.parametrize(("columns", "said"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_columns_that_could_all_be_meant_are_listed(tmp_path, columns, said):
    with pytest.raises(Refusal, match=said):
        read(parquet(tmp_path / "x.parquet", table(columns)))


def test_columns_are_named(tmp_path):
    made = table({"image": [0, 1], "img": [2, 3], "label": [0, 1], "target": ["b", "a"], "share": [0.5, 0.1]})
    path = parquet(tmp_path / "x.parquet", made)
    named = {"image_column": "img", "label_column": "target"}
    assert in_order(read(path, **named)) == [(2, 1), (3, 0)]
    assert Images(str(path), **named).facts()["columns"] == ["img", "target"]
    for wrong, said in {
        ("image_column", "imgs"): "has no column 'imgs'; did you mean 'img'",
        ("image_column", "label"): "column 'label' of .* holds int64 and not the bytes of files",
        ("label_column", "share"): "holds double and not one number or name for each image",
    }.items():
        with pytest.raises(Refusal, match=said):
            read(path, **named | dict([wrong]))


@pytest.mark.parametrize(
    ("labels", "said"),
    [([0, None], "1 of 2 images .* have no class"), ([0, 2], "an image of class 2, and 2 classes")],
)
def test_some_labels_are_not_enough_and_no_label_is_out_of_range(tmp_path, labels, said):
    path = parquet(tmp_path / "x.parquet", table({"image": [0, 1], "label": labels}, {"label": DOGS}))
    with pytest.raises(Refusal, match=said):
        read(path)


ODD = {
    "shares": [0.5, 0.1],
    "one of two": [[0, 1], [1, 0]],
    "lists of several lengths": [[0], [1, 0]],
    "boxes": [{"x": 1}, {"x": 2}],
    "times": pa.array([0, 1], pa.timestamp("s")),
}


@pytest.mark.parametrize("labels", ODD.values(), ids=ODD)
def test_a_column_that_is_not_read_as_classes_is_told(tmp_path, caplog, labels):
    path = parquet(tmp_path / "x.parquet", table({"image": [0, 1], "label": labels}))
    assert in_order(read(path)) == [(0, -1), (1, -1)]
    assert caplog.text.count("column 'label' ") == caplog.text.count("which is not read as classes") == 1
    with pytest.raises(
        Refusal, match=r"column 'label' of .* holds .* and not one number or name for each image"
    ):
        read(path, label_column="label")


@pytest.mark.parametrize(
    "labels", [[0.0, None], [1.0, float("nan")], [[0], None], ["a", ""], ["a", None]], ids=str
)
def test_some_labels_of_any_kind_are_not_enough(tmp_path, labels):
    path = parquet(tmp_path / "x.parquet", table({"image": [0, 1], "label": labels}))
    with pytest.raises(Refusal, match=r"1 of 2 images .* have no class"):
        read(path)


TYPES = {
    "int64, int32": ([1, 0], [2, 0], pa.int64(), pa.int32(), ["0", "1", "2"], [1, 0, 2, 0]),
    "int8, uint64": (
        [1, 0],
        [2**64 - 1, 0],
        pa.int8(),
        pa.uint64(),
        ["0", "1", str(2**64 - 1)],
        [1, 0, 2, 0],
    ),
    "int64, double": ([1, 0], [2, 0], pa.int64(), pa.float64(), ["0", "1", "2"], [1, 0, 2, 0]),
    "bool, int64": ([True, False], [1, 0], pa.bool_(), pa.int64(), ["0", "1"], [1, 0, 1, 0]),
    "string, large_string": (
        ["b", "a"],
        ["c", "a"],
        pa.string(),
        pa.large_string(),
        ["a", "b", "c"],
        [1, 0, 2, 0],
    ),
    "string, dictionary": (
        *(["b", "a"], ["c", "a"], pa.string(), pa.dictionary(pa.int8(), pa.string())),
        *(["a", "b", "c"], [1, 0, 2, 0]),
    ),
    "lists": ([[1], [0]], [2, 0], pa.list_(pa.int64()), pa.int64(), ["0", "1", "2"], [1, 0, 2, 0]),
}


@pytest.mark.parametrize(("one", "other", "kind", "other_kind", "names", "labels"), TYPES.values(), ids=TYPES)
def test_shards_may_write_their_labels_differently(tmp_path, one, other, kind, other_kind, names, labels):
    parquet(tmp_path / "0.parquet", table({"image": [0, 1], "label": pa.array(one, kind)}))
    parquet(tmp_path / "1.parquet", table({"image": [2, 3], "label": pa.array(other, other_kind)}))
    assert Images(str(tmp_path)).classes == names
    assert in_order(read(tmp_path)) == list(enumerate(labels))


def test_numbers_in_one_shard_and_names_in_another_are_refused(tmp_path):
    parquet(tmp_path / "0.parquet", table({"image": [0, 1], "label": [0, 1]}))
    parquet(tmp_path / "1.parquet", table({"image": [2, 3], "label": ["0", "1"]}))
    with pytest.raises(
        Refusal,
        match=r"column 'label' of '.*1.parquet' holds string, and of '.*0.parquet' int64; write numbers in both",
    ):
        read(tmp_path)


def test_shards_have_the_same_columns_and_classes(tmp_path):
    for number, names in enumerate((["cat", "dog"], ["dog", "cat"])):
        features = {"label": {"_type": "ClassLabel", "names": names}}
        parquet(tmp_path / f"{number}.parquet", table({"image": [0, 1], "label": [0, 1]}, features))
    with pytest.raises(Refusal, match=r"1.parquet' has other columns or classes than '.*0.parquet'"):
        read(tmp_path)


@pytest.mark.parametrize(
    "change", [lambda data: data[:-30], lambda data: data[: len(data) // 2], lambda _: b""]
)
def test_a_shard_that_is_not_whole_is_named(tmp_path, change):
    made = table({"image": [0, 1], "label": [0, 1]})
    parquet(tmp_path / "s0.parquet", made)
    path = parquet(tmp_path / "s1.parquet", made)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(OSError, match=r"s1.parquet' is no parquet file that can be read"):
        read(tmp_path)


def test_a_shard_without_rows_is_named(tmp_path):
    made = table({"image": [0, 1], "label": [0, 1]})
    parquet(tmp_path / "s0.parquet", made)
    parquet(tmp_path / "s1.parquet", made.slice(0, 0))
    with pytest.raises(FileNotFoundError, match=r"no images in '.*s1.parquet'.*no rows"):
        read(tmp_path)


def test_a_row_without_an_image_and_one_that_cannot_be_decoded_are_named(tmp_path):
    image = pa.array(
        [
            {"bytes": None, "path": "a.png"},
            {"bytes": b"no image", "path": None},
            {"bytes": png(3), "path": None},
        ]
    )
    path = parquet(tmp_path / "x.parquet", pa.table({"image": image}))
    with pytest.raises(OSError, match=r"2 of 3 images cannot be read"):
        read(path)


@pytest.mark.parametrize("struct", [True, False], ids=["with paths", "alone"])
def test_a_table_of_paths_alone_holds_no_images(tmp_path, struct):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()}) if struct else pa.binary()
    rows = [{"bytes": None, "path": "a.png"}] * 5 if struct else [None] * 5
    path = parquet(tmp_path / "x.parquet", pa.table({"image": pa.array(rows, kind)}), 2)
    with pytest.raises(
        Refusal, match=r"column 'image' of '.*x.parquet' holds no image, but at most paths of files"
    ):
        read(path)


def test_a_table_of_ours_is_no_images(tmp_path):
    path = parquet(tmp_path / "cka.parquet", pa.table({"model": ["a"], "cka": [0.5]}))
    with pytest.raises(
        Refusal, match=r"no column of .* holds images, as bytes; there are model \(string\), cka \(double\)"
    ):
        read(path)


def test_what_is_kept_does_not_travel_to_another_process(tmp_path):
    path = parquet(tmp_path / "x.parquet", table({"image": range(9), "label": range(9)}))
    images = Images(str(path), limit=None, workers=0)
    expected = read_all(images)
    assert images._source.kept.parts
    other = pickle.loads(pickle.dumps(images))
    assert not other._source.kept.parts
    assert read_all(other) == expected
