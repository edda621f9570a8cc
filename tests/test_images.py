import io
import tarfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import forked
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from vit_analysis import cka, models, skip
from vit_analysis import images as images_module
from vit_analysis.images import UNSEEN, Images, Preprocessing, as_input, as_rgb, given
from vit_analysis.lab import scenes
from vit_analysis.reading import stream
from vit_analysis.spelling import Refusal

SMALL = Preprocessing(input_size=(3, 16, 16), mean=(0.0,) * 3, std=(1.0,) * 3, crop_pct=1.0)
OTHER = Preprocessing(input_size=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3, crop_pct=1.0)


def coloured(number: int) -> Image.Image:
    return Image.fromarray(np.full((20, 24, 3), number, dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    for number in range(40):
        path = tmp_path / "photos" / f"class{number // 20}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coloured(number).save(path)
    return tmp_path / "photos"


def brightness(inputs: torch.Tensor) -> list[int]:
    return (inputs.mean((1, 2, 3)) * 255).round().int().tolist()


def test_all_images_come_once_in_a_seeded_order_with_their_classes(folder):
    images = Images(str(folder), limit=None, batch=16, workers=0)
    batches = list(images.read([SMALL]))
    assert [len(batch.labels) for batch in batches] == [16, 16, 8]
    values = [value for batch in batches for value in brightness(batch.inputs[0])]
    assert sorted(values) == list(range(40))
    assert values != list(range(40))  # folders are sorted by class: a slice of them must not be one class
    assert [value // 20 for value in values] == [int(label) for batch in batches for label in batch.labels]
    assert [value for batch in images.read([SMALL]) for value in brightness(batch.inputs[0])] == values
    assert images.classes == ["class0", "class1"]


def test_a_limit_takes_a_random_choice(folder):
    images = Images(str(folder), limit=12, batch=12, workers=0)
    (batch,) = images.read([SMALL])
    assert 0 < batch.labels.float().mean() < 1
    assert images.order != Images(str(folder), limit=12, seed=1).order


def test_every_model_gets_the_same_image_in_its_own_way(folder):
    batch = next(Images(str(folder), batch=10, workers=0).read([SMALL, OTHER]))
    one, other = batch.inputs
    assert (one.shape, other.shape) == ((10, 3, 16, 16), (10, 3, 8, 8))
    torch.testing.assert_close(one.mean((2, 3)), other.mean((2, 3)) * 0.25 + 0.5)


def test_workers_and_the_main_process_read_the_same(folder):
    read = [list(Images(str(folder), batch=16, workers=workers).read([SMALL])) for workers in (0, 1)]
    for own, other in zip(*read, strict=True):
        assert own.images == other.images
        assert torch.equal(own.inputs[0], other.inputs[0])


def test_whole_batches_are_dealt_to_processes_and_a_run_may_start_later(folder):
    images = Images(str(folder), batch=8, workers=0)
    everything = [batch.images for batch in images.read([SMALL])]
    first, second = ({b.number: b.images for b in images.read([SMALL], rank=rank, of=2)} for rank in (0, 1))
    assert first == {0: everything[0], 2: everything[2], 4: everything[4]}
    assert second == {1: everything[1], 3: everything[3]}
    assert [batch.number for batch in images.read([SMALL], rank=0, of=2, start=2)] == [2, 4]


def test_a_tar_is_read_as_it_is(tmp_path):
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for number in range(6):
            file = io.BytesIO()
            coloured(number).save(file, "png")
            info = tarfile.TarInfo(f"class{number % 2}/{number}.png")
            info.size = file.tell()
            file.seek(0)
            tar.addfile(info, file)
    images = Images(str(tmp_path / "photos.tar"), workers=0)
    (batch,) = images.read([SMALL])
    values = brightness(batch.inputs[0])
    assert sorted(values) == list(range(6))
    assert batch.labels.tolist() == [value % 2 for value in values]
    assert images.classes == ["class0", "class1"]
    assert images.truth(batch.images)["class"].tolist() == batch.labels.tolist()


@pytest.mark.parametrize("largest", [0, 252, 40_000, 65_535, 70_000])
@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_of_numbers_of_32_bits_it_is_not_known_which_is_white(tmp_path, kind, largest):
    """Not even of those that would all be read as black."""
    pixels = np.linspace(0, largest, 64).reshape(8, 8).astype(kind)
    Image.fromarray(pixels).save(tmp_path / "0.tiff")
    with pytest.raises(OSError, match=r"what is white is not known; save it with 8 or 16 bits"):
        list(Images(str(tmp_path), workers=0).read([SMALL]))
    with pytest.raises(OSError, match=r"mode [IF]\), and what is white is not known"):
        as_rgb(Image.fromarray(pixels))


@pytest.mark.parametrize("ending", ["png", "tiff", "pgm"])
def test_of_16_bits_the_largest_number_is_white(tmp_path, ending):
    Image.fromarray(np.full((8, 8), 257 * 60, np.uint16)).save(tmp_path / f"0.{ending}")
    (batch,) = Images(str(tmp_path), workers=0).read([SMALL])
    assert brightness(batch.inputs[0]) == [60]


def test_an_unreadable_image_is_named_and_left_out(folder, caplog):
    for number in range(40, 120):
        coloured(number).save(folder / "class0" / f"{number:03d}.png")
    (folder / "class0" / "000.png").write_bytes(b"no image")
    (batch,) = Images(str(folder), batch=120, workers=0).read([SMALL])
    assert len(batch.images) == len(batch.labels) == len(batch.inputs[0]) == 119
    assert 0 not in brightness(batch.inputs[0])
    assert "class0/000.png" in caplog.text
    assert caplog.text.count("cannot read") == 1


@pytest.mark.parametrize(
    ("strict", "sentence"), [(True, "1 of 40 images"), (False, "1 of 40 images cannot be read, more than 1%")]
)
def test_too_many_unreadable_images_end_the_run(folder, strict, sentence):
    whole = (folder / "class1" / "033.png").read_bytes()
    (folder / "class1" / "033.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match=sentence):
        list(Images(str(folder), batch=40, workers=0, strict=strict).read([SMALL]))


def test_one_image_in_a_hundred_may_be_unreadable_and_no_more():
    images = Images(limit=300)
    images.refuse_unreadable(["third"], 3)
    with pytest.raises(OSError, match=r"4 of 300 images cannot be read, more than 1%; the last is fourth"):
        images.refuse_unreadable(["fourth"], 4)
    with pytest.raises(OSError, match=r"1 of 300 images cannot be read; the last is first"):
        replace(images, strict=True).refuse_unreadable(["first"], 1)


def test_scenes_are_unseen_ones_with_their_shape_as_label():
    (batch,) = Images(limit=12).read([SMALL])
    drawn = scenes.draw(range(12), seed=UNSEEN, size=16)
    torch.testing.assert_close(batch.inputs[0], drawn.image)
    assert torch.equal(batch.labels, drawn.shape.long())
    assert Images().classes == list(scenes.SHAPES)


def test_scenes_are_drawn_once_for_the_largest_model():
    (batch,) = Images(limit=4).read([OTHER, SMALL])
    assert [tuple(inputs.shape[2:]) for inputs in batch.inputs] == [(8, 8), (16, 16)]
    torch.testing.assert_close(as_input(batch.inputs[1].clamp(0, 1), OTHER), batch.inputs[0])


def test_an_unknown_source_names_what_lies_beside(folder):
    with pytest.raises(FileNotFoundError, match=r"no images at .*photo'; did you mean .*photos"):
        list(Images(str(folder)[:-1]).read([SMALL]))
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images in .*empty"):
        list(Images(str(folder / "empty")).read([SMALL]))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"limit": 0}, "images.limit must be at least 1, got 0"),
        ({"batch": 0}, "images.batch must be at least 1, got 0"),
        ({"limit": None}, "the lab draws as many scenes as asked for: say images.limit"),
        ({"label_column": "x"}, "'lab' has no columns"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, sentence):
    with pytest.raises(Refusal, match=sentence):
        Images(**wrong)


def of_files() -> str:
    with pytest.raises(Refusal) as refused:
        Images(["a.png", "b.png"])
    return str(refused.value)


def test_several_files_are_no_source():
    """In a process without checks of types, as a user's is."""
    with ProcessPoolExecutor(1, mp_context=forked.CONTEXT) as pool:
        said = pool.submit(of_files).result()
    assert said.startswith(
        "images.source is one name, got list; several files are a folder of images, or shards as in"
    )


def test_images_have_names_and_an_origin(folder, tmp_path):
    images = Images(str(folder), limit=2)
    assert [images.name(number) for number in (0, 39)] == ["class0/000.png", "class1/039.png"]
    (tmp_path / "link").symlink_to(folder)
    assert Images(str(tmp_path / "link"), seed=3).origin() == images.origin() == images.only([1]).origin()
    assert Images(seed=1).origin() != Images(seed=2).origin() == Images(seed=2, limit=3).origin()
    assert (Images().endless, images.endless, given(torch.zeros(4, 3, 8, 8)).endless) == (True, False, False)


@pytest.mark.parametrize("others", [[], [3], [39, 0, 3], range(40)])
def test_images_without_others_of_their_source_are_the_rest_in_their_order(folder, others):
    images = Images(str(folder), limit=None)
    left = images.without(images.only(others))
    assert left == [number for number in images.order if number not in others]
    assert sorted([*left, *others]) == list(range(40))


def test_what_is_told_of_images_is_what_was_chosen(folder):
    images = Images(str(folder), root=folder.parent, split="all", limit=7, batch=5, seed=3)
    told = images.facts()
    chosen = {"source": str(folder), "root": str(folder.parent), "split": "all", "seed": 3, "batch": 5}
    assert told.items() >= {**chosen, "count": 7}.items()
    assert Images(str(folder)).facts()["root"] is None
    assert images.only([4, 2]).facts().items() >= {**chosen, "count": 2}.items()


def test_images_that_are_there_need_no_process_that_makes_them_ready(folder):
    at_hand = (Images(limit=4), given(torch.zeros(4, 3, 16, 16)))
    assert [one._workers([[0], [1], [2]], [SMALL]) for one in at_hand] == [0, 0]
    assert Images(str(folder))._workers([[0], [1], [2]], [SMALL]) > 0
    assert Images(str(folder), workers=5)._workers([[0]], [SMALL]) == 5


def test_the_first_image_is_found_without_reading_ahead(folder, monkeypatch):
    for number in range(40, 120):
        coloured(number).save(folder / "class0" / f"{number:03d}.png")
    before = Images(str(folder), batch=1)
    (folder / before.name(before.order[0])).write_bytes(b"no image")
    images, model, made = Images(str(folder), batch=1), models.load(VIT), []
    with monkeypatch.context() as own:
        loader = lambda *args, **options: made.append(options) or DataLoader(*args, **options)  # noqa: E731
        own.setattr(images_module, "DataLoader", loader)
        first = stream.one_image(images, model)
    assert [(options["num_workers"], len(options["batch_sampler"])) for options in made] == [(0, 1)] * 2
    (expected, *_) = replace(images, workers=0).read([model.preprocessing])
    assert torch.equal(first, expected.inputs[0])


def test_an_image_asked_for_twice_comes_twice(folder):
    (batch,) = Images(str(folder), workers=0).made([[3, 30, 3]], [SMALL])
    assert batch.images == [3, 30, 3]
    assert brightness(batch.inputs[0]) == [3, 30, 3]
    assert batch.labels.tolist() == [0, 1, 0]


# What every analysis takes as its images -----------------------------------------------------------------------------


VIT = "lab/vit@random"


class Held(Dataset):
    """A data set of items that are there."""

    def __init__(self, items, **attributes) -> None:
        self.items = items
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number):
        return self.items[number]


def plain(number: int) -> torch.Tensor:
    """A model's input of one colour."""
    return torch.full((3, 16, 16), number / 255)


KINDS = {
    "images with classes": lambda number: (coloured(number), number % 3),
    "images alone": coloured,
    "images in a tuple": lambda number: (coloured(number),),
    "tensors": plain,
    "tensors with classes": lambda number: (plain(number), torch.tensor(number % 3)),
    "mappings": lambda number: {"image": coloured(number), "label": number % 3},
    "mappings of other names": lambda number: {"img": coloured(number), "fine_label": number % 3},
    "mappings without classes": lambda number: {"image": plain(number)},
    "arrays": lambda number: (np.asarray(coloured(number)), np.int64(number % 3)),
}


def read(images: Images, *wanted: Preprocessing) -> dict[int, list[torch.Tensor]]:
    """The inputs of every image, by its number."""
    return {
        number: [inputs[place] for inputs in batch.inputs]
        for batch in images.read(wanted)
        for place, number in enumerate(batch.images)
    }


def same(found: dict[int, list[torch.Tensor]], expected: dict[int, list[torch.Tensor]]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(one, other)
        for number in found
        for one, other in zip(found[number], expected[number], strict=True)
    )


def test_images_are_given_as_they_are_or_by_their_path(folder):
    images = Images(str(folder), limit=12, seed=3)
    assert given(images) is images
    assert given(str(folder)) == given(folder) == Images(str(folder))
    assert given("lab") == Images()


def of_a_path(folder: Path) -> tuple[Images, list[str]]:
    images = Images(folder, limit=12)
    return images, images.classes


def test_a_path_is_as_good_as_its_name(folder):
    """In a process without checks of types, as a user's is: to them the source is a text."""
    with ProcessPoolExecutor(1, mp_context=forked.CONTEXT) as pool:
        images, classes = pool.submit(of_a_path, folder).result()
    assert images == Images(str(folder), limit=12)
    assert images.source == str(folder)
    assert classes == ["class0", "class1"]


def test_a_tensor_goes_into_every_model_as_it_is():
    pixels = torch.randn(70, 3, 8, 8)
    found = read(given(pixels), SMALL, OTHER)
    assert same(found, {number: [pixels[number]] * 2 for number in range(70)})
    assert {label for batch in given(pixels).read([SMALL]) for label in batch.labels.tolist()} == {-1}
    assert given(pixels).targets == {}


def test_a_tensor_is_measured_as_the_images_that_it_was_made_of():
    images = Images(limit=12)
    (batch,) = images.read([models.load(VIT).preprocessing])
    pixels = batch.inputs[0]
    expected = skip.measure(VIT, images)
    for own in (pixels, pixels.to(memory_format=torch.channels_last), pixels.clone().requires_grad_()):
        pd.testing.assert_frame_equal(skip.measure(VIT, own), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_set_of_any_kind_is_read_by_number(kind):
    images = given(Held([KINDS[kind](number) for number in range(70)]))
    numbers = []
    for batch in images.read([SMALL]):
        assert brightness(batch.inputs[0]) == batch.images
        labels = (
            [number % 3 for number in batch.images]
            if "with classes" in kind or kind in ("mappings", "mappings of other names", "arrays")
            else [-1] * len(batch.images)
        )
        assert batch.labels.tolist() == labels
        numbers += batch.images
    assert sorted(numbers) == list(range(70))
    assert numbers != sorted(numbers)  # they may be sorted by class


def test_images_of_a_data_set_are_made_an_input_as_those_of_a_folder_are(folder):
    files = sorted(folder.rglob("*.png"))
    data = Held([(Image.open(file).convert("RGB"), int(file.parent.name[-1])) for file in files])
    found, expected = (read(images, SMALL, OTHER) for images in (given(data), Images(str(folder), workers=0)))
    assert same(found, expected)


@pytest.mark.parametrize("kind", ["a tensor", *KINDS])
def test_a_choice_of_given_images_keeps_their_data(kind):
    whole = given(
        torch.stack([plain(number) for number in range(20)])
        if kind == "a tensor"
        else Held([KINDS[kind](number) for number in range(20)])
    )
    everything = read(whole, SMALL)
    chosen = whole.only([7, 2, 13], batch=2)
    assert (chosen.order, chosen.batches) == ([7, 2, 13], 2)
    assert list(read(chosen, SMALL)) == [7, 2, 13]
    assert same(read(chosen, SMALL), {number: everything[number] for number in (7, 2, 13)})
    assert same(read(chosen.only([13]), SMALL), {13: everything[13]})


def key(images) -> str:
    """What decides whether sums on disk are of these images."""
    return cka.plan(VIT, images, layers="blocks").key()


def test_another_tensor_has_another_key():
    pixels = torch.randn(6, 3, 8, 16)
    other = pixels.clone()
    other[5, 2, 7, 15] += 1e-3
    assert key(pixels) == key(pixels.clone())
    assert key(pixels) == key(pixels.to(memory_format=torch.channels_last))
    different = [
        pixels,
        other,
        pixels.flip(0),
        pixels.view(6, 3, 16, 8),
        pixels.double(),
        given(pixels).only([0, 1]),
        given(pixels).only([1, 0]),
    ]
    assert len({key(images) for images in different}) == len(different)


def test_two_data_sets_never_share_a_key():
    """Not even the same one: what it holds may have changed meanwhile."""
    pixels = torch.randn(6, 3, 8, 8)
    data = [Held(list(pixels)), Held(list(pixels)), TensorDataset(pixels)]
    images = [*data, *data, pixels]
    assert len({key(own) for own in images}) == len(images)
    once = given(data[0])
    assert key(once) == key(once)


@pytest.mark.parametrize("named", [True, False], ids=["with names", "without names"])
def test_classes_of_a_data_set_are_known(named):
    names = {"class_to_idx": {"disk": 0, "ring": 1, "star": 2}} if named else {}
    images = given(Held([(coloured(number), number % 3) for number in range(12)], **names))
    (answers,) = images.targets.values()
    assert len(answers) == 3
    assert not named or answers == ["disk", "ring", "star"]
    assert images.truth([4, 2, 3])["class"].tolist() == [1, 2, 0]
    assert images.only([5, 0]).truth([5, 0])["class"].tolist() == [2, 0]


NO_CLASSES = {
    "nothing": None,
    "one of four": torch.eye(4)[1],
    "a class for every pixel": torch.zeros(16, 16, dtype=torch.long),
    "a name": "disk",
    "boxes": {"boxes": []},
    "a share": 0.5,
    "a share in a tensor": torch.tensor(0.5),
}


@pytest.mark.parametrize("label", NO_CLASSES.values(), ids=NO_CLASSES)
def test_what_is_no_number_of_a_class_is_no_class(label):
    images = given(Held([(plain(number), label) for number in range(4)]))
    (batch,) = images.read([SMALL])
    assert batch.labels.tolist() == [-1] * 4
    assert images.targets == {}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        (
            ["a.png"] * 4,
            "the data set gives str where an image is expected: an image of PIL or a tensor, alone or with its class",
        ),
        ([plain(1), (3, 1), plain(1), plain(2)], "the data set gives int where an image is expected"),
        ([plain(1), torch.zeros(3, 8, 8)] * 2, "3 x 8 x 8"),
    ],
    ids=["paths", "a number among tensors", "tensors of two sizes"],
)
def test_a_data_set_of_something_else_says_so_in_one_sentence(items, sentence, workers):
    with pytest.raises(Refusal, match=f"^[^\n]*{sentence}[^\n]*$"):
        list(replace(given(Held(items)), workers=workers).read([SMALL]))


@pytest.mark.parametrize("nothing", [torch.zeros(0, 3, 8, 8), Held([])], ids=["a tensor", "a data set"])
def test_nothing_at_all_is_refused(nothing):
    with pytest.raises(Refusal, match="no images"):
        given(nothing)


def test_a_tensor_of_another_shape_is_refused():
    with pytest.raises(Refusal, match=r"a tensor are image x channel x row x col, got \(3, 8, 8\)"):
        given(torch.zeros(3, 8, 8))


def no_images() -> dict[str, str]:
    """What is said of things that are no images."""
    wrong = {
        "a loader": DataLoader(TensorDataset(torch.zeros(4, 3, 32, 32))),
        "nothing": None,
        "a number": 3,
        "a mapping": {"images": torch.zeros(4, 3, 32, 32)},
        "a model": models.load(VIT),
        "a stream": iter([plain(0)]),
    }
    said = {}
    for what, images in wrong.items():
        for ask in (given, lambda images: skip.measure(VIT, images)):
            with pytest.raises(Refusal) as refused:
                ask(images)
            assert said.setdefault(what, str(refused.value)) == str(refused.value)
    return said


def test_what_holds_no_images_is_answered_with_the_line_to_write():
    """In a process without checks of types, as a user's is."""
    with ProcessPoolExecutor(1, mp_context=forked.CONTEXT) as pool:
        said = pool.submit(no_images).result()
    assert (
        "every model has to see the same ones: give its data set, as in measure(models, loader.dataset)"
        in said.pop("a loader")
    )
    kinds = {
        "nothing": "NoneType",
        "a number": "int",
        "a mapping": "dict",
        "a model": "Model",
        "a stream": "list_iterator",
    }
    told = (
        "images are Images(...), a path, a torch data set or a tensor, got {}. "
        "Write measure(models, Images('FOLDER', limit=1024))"
    )
    assert said == {what: told.format(kind) for what, kind in kinds.items()}
