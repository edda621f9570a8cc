"""Data sets that are given: which classes they have, and what is no image."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import forked
import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from pictures import SMALL, folder, read_all
from timm.data import create_dataset
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder

from vit_analysis.images import Images, given
from vit_analysis.spelling import Refusal


class Held(Dataset):
    """A data set of items that are there."""

    def __init__(self, items, **attributes) -> None:
        self.items = items
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number):
        if isinstance(own := self.items[number], Exception):
            raise own
        return own


def plain(number: int) -> torch.Tensor:
    return torch.full((3, 4, 4), number / 255)


def held(labels, **attributes) -> Images:
    return given(Held([(plain(number), label) for number, label in enumerate(labels)], **attributes))


def known(images: Images) -> tuple[list[str], list[int]]:
    """The names and the labels, which are those of batches too."""
    truth = images.truth(range(len(images.order)))["class"].tolist()
    assert [label for _, label in read_all(images).values()] == truth
    return images.classes, truth


LABELS = {
    "from 0": ([1, 0, 2], ["0", "1", "2"], [1, 0, 2]),
    "from 1": ([2, 1, 3], ["1", "2", "3"], [1, 0, 2]),
    "with gaps": ([100_001, 7, 2**63], ["7", "100001", str(2**63)], [1, 0, 2]),
    "floats": ([1.0, 0.0, 1.0], ["0", "1"], [1, 0, 1]),
    "lists": ([[1], [0], [1]], ["0", "1"], [1, 0, 1]),
    "arrays": ([np.array([1]), np.array(0), np.array([[1]])], ["0", "1"], [1, 0, 1]),
    "tensors": ([torch.tensor([1.0]), torch.tensor(0), torch.tensor([1])], ["0", "1"], [1, 0, 1]),
    "yes and no": ([True, False, True], ["0", "1"], [1, 0, 1]),
}


@pytest.mark.parametrize(("labels", "names", "numbers"), LABELS.values(), ids=LABELS)
def test_classes_that_occur_are_numbered_in_order_of_their_value(labels, names, numbers):
    assert known(held(labels)) == (names, numbers)


@pytest.mark.parametrize("unknown", [None, -100, -1, torch.tensor(-1), [-1]], ids=str)
def test_a_class_for_only_some_images_is_refused(unknown):
    for labels in ([unknown, 0, 1], [0, 1, unknown], [0, unknown, 1, 1, 0]):
        with pytest.raises(
            Refusal, match=r"1 of . images of the data set have no class and the others have one"
        ):
            _ = held(labels).classes
    assert held([unknown] * 3).classes == []


@pytest.mark.parametrize(
    "label", ["disk", 0.5, torch.eye(4)[1], {"boxes": []}], ids=["text", "share", "one of four", "boxes"]
)
def test_what_is_not_read_as_a_class_is_said(label, caplog):
    assert held([label] * 3).classes == []
    assert (
        caplog.text.count("beside an image, which is not read as its class: a class is a whole number") == 1
    )


NAMED = {
    "from 0": ({"a": 0, "b": 1, "c": 2}, [1, 0, 1], ["a", "b", "c"], [1, 0, 1]),
    "from 1": ({"a": 1, "b": 2, "c": 3}, [1, 3, 1], ["a", "b", "c"], [0, 2, 0]),
    "with gaps": ({"z": 10, "a": 20}, [20, 10, 20], ["z", "a"], [1, 0, 1]),
    "several names": ({"tench": 0, "Tinca": 0, "shark": 1}, [1, 0, 1], ["tench", "shark"], [1, 0, 1]),
}


@pytest.mark.parametrize(("places", "labels", "names", "numbers"), NAMED.values(), ids=NAMED)
def test_names_of_a_data_set_go_with_its_own_numbers(places, labels, names, numbers):
    assert known(held(labels, class_to_idx=places)) == (names, numbers)


def test_a_class_without_a_name_is_refused():
    with pytest.raises(Refusal, match=r"an image of class 0, and its class_to_idx names 1, 2$"):
        _ = held([1, 0, 2], class_to_idx={"a": 1, "b": 2}).classes


LISTS = {
    "other numbers": [2, 2, 2],
    "too few": [1, 0],
    "one of four": torch.eye(3).tolist(),
    "texts": ["b", "a", "b"],
    "of different lengths": [[1], [0, 2], []],
}


@pytest.mark.parametrize("listed", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("attribute", ["targets", "samples"])
def test_what_a_data_set_lists_is_not_taken_for_what_its_items_say(listed, attribute):
    listed = listed if attribute == "targets" else [(f"{own}.png", own) for own in listed]
    assert known(held([1, 0, 1], **{attribute: listed})) == (["0", "1"], [1, 0, 1])


@pytest.fixture
def root(tmp_path):
    return folder(tmp_path / "set", {f"{kind}/{n}.png": n for n, kind in enumerate("cabcab")})


def test_lists_of_torchvision_are_read_and_not_the_images(root):
    data = ImageFolder(str(root))
    taken = []
    loader = data.loader
    data.loader = lambda path: taken.append(path) or loader(path)
    images = given(data)
    assert images.truth(range(6))["class"].tolist() == [0, 0, 1, 1, 2, 2]
    assert images.classes == ["a", "b", "c"]
    assert len(taken) == 3
    assert given(Subset(data, [5, 0])).truth([0, 1])["class"].tolist() == [2, 0]


def test_classes_are_those_that_a_transform_makes(root):
    for data in (
        ImageFolder(str(root), target_transform=lambda label: 10 + label % 2),
        create_dataset("", root=str(root), search_split=False, target_transform=lambda label: 10 + label % 2),
    ):
        assert known(given(data)) == (["10", "11"], [0, 0, 1, 1, 0, 0])


def test_labels_of_several_columns():
    """As QMNIST's, of which an item has the first."""
    data = torchvision.datasets.QMNIST.__new__(torchvision.datasets.QMNIST)
    data.data = torch.arange(4, dtype=torch.uint8)[:, None, None].expand(4, 5, 5)
    data.targets = torch.stack([torch.tensor([3, 1, 0, 2]), *torch.arange(28).reshape(7, 4)], 1)
    data.transform = data.target_transform = None
    data.compat = True
    names, labels = known(given(data))
    assert (len(names), labels) == (10, [3, 1, 0, 2])


def test_a_data_set_of_tensors_lists_its_classes():
    assert known(given(TensorDataset(torch.rand(3, 3, 4, 4), torch.tensor([5, 4, 5])))) == (
        ["4", "5"],
        [1, 0, 1],
    )


# What is no image ------------------------------------------------------------------------------------------------------

NO_INPUT = [torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64]


@pytest.mark.parametrize("kind", NO_INPUT, ids=str)
def test_bytes_are_no_input_of_a_model(kind):
    said = r"is a model's input, of normalised floats, and this one of {} holds torch.*; for pictures give images of PIL"
    pixels = torch.ones(2, 3, 4, 4).to(kind)
    with pytest.raises(Refusal, match=said.format("2 x 3 x 4 x 4")):
        given(pixels)
    for items in (list(pixels), [(one, 0) for one in pixels], [{"image": one} for one in pixels]):
        with pytest.raises(Refusal, match=said.format("3 x 4 x 4")):
            read_all(given(Held(items)))


def test_halves_are_an_input():
    assert given(torch.ones(2, 3, 4, 4).half()).order
    assert given(torch.ones(2, 3, 4, 4, dtype=torch.bfloat16)).order


WRONG = {
    "channels first": (
        np.zeros((3, 8, 8), np.uint8),
        r"an array of uint8, 3 x 8 x 8, .*row x col x channel, as in .*transpose",
    ),
    "floats": (np.zeros((3, 8, 8), np.float32), r"an array of float32, 3 x 8 x 8, .* as in torch.from_numpy"),
    "other keys": (
        {"pixel_values": 1, "labels": 0},
        r"gives a dict of 'pixel_values', 'labels', .*give \{'image': ..., 'label'",
    ),
    "no channels": (torch.zeros(8, 8), r"gives a tensor of 8 x 8 where .*: channel x row x col"),
    "a batch": (torch.zeros(1, 3, 8, 8), r"gives a tensor of 1 x 3 x 8 x 8 where .*: channel x row x col"),
    "a path": ("a.png", "gives str where an image is expected"),
    "a missing key": (
        KeyError("x"),
        r"item . of the data set \(Held\) raises KeyError: 'x'; an item is an image of PIL",
    ),
    "a fault without words": (AssertionError(), r"raises AssertionError; an item is"),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("item", "said"), WRONG.values(), ids=WRONG)
def test_an_item_that_is_no_image_is_told(item, said, workers):
    images = given(Held([item] * 3))
    with pytest.raises(Refusal, match=said):
        list(replace(images, workers=workers).read([SMALL]))


@pytest.mark.parametrize("fault", [OSError("gone"), SyntaxError("broken PNG file")], ids=repr)
def test_an_item_that_cannot_be_read_is_left_out(fault):
    with pytest.raises(OSError, match="1 of 2 images cannot be read"):
        read_all(given(Held([plain(0), fault])))


ARRAYS = {"grey": (5, 4), "one channel": (5, 4, 1), "colours": (5, 4, 3), "transparent": (5, 4, 4)}


@pytest.mark.parametrize("shape", ARRAYS.values(), ids=ARRAYS)
def test_arrays_of_bytes_are_pictures(shape):
    assert read_all(given(Held([np.full(shape, 7, np.uint8)]))) == {0: (7, -1)}


def kinds() -> dict[str, str]:
    told = {}
    for what, images in {
        "paths": ["a.png", "b.png"],
        "a table": pd.DataFrame({"image": [1, 2]}),
        "floats": np.zeros((2, 3, 4, 4), np.float32),
        "one array": np.zeros((4, 4), np.uint8),
    }.items():
        with pytest.raises(Refusal) as refused:
            given(images)
        told[what] = str(refused.value)
    for shape in ((5, 4), (5, 4, 3)):  # and pictures of bytes one after another are one
        assert read_all(given(np.full((2, *shape), 7, np.uint8))) == {0: (7, -1), 1: (7, -1)}
    return told


def test_what_is_no_data_set_is_told_with_what_to_write():
    """In a process without checks of types, as a user's is."""
    with ProcessPoolExecutor(1, mp_context=forked.CONTEXT) as pool:
        told = pool.submit(kinds).result()
    assert "a list of str; name their folder, as in measure(models, Images('FOLDER'))" in told["paths"]
    assert "a DataFrame is no data set of images; write it as a parquet file" in told["a table"]
    for what in ("floats", "one array"):
        assert "pictures of uint8, image x row x col x channel, got " in told[what]
