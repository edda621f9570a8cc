import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from vit_analysis.images import UNSEEN, Images, Preprocessing, as_input
from vit_analysis.lab import scenes

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


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # timm's reader never closes its tar
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
    ],
)
def test_settings_out_of_range_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        Images(**wrong)
