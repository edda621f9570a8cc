"""Pixels reach a model as bytes, and are to the last bit the floats that timm's own transform makes of each image alone."""

import io
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch.utils.data import Dataset

from vit_analysis.images import Images, Inputs, Preprocessing, as_rgb, given
from vit_analysis.spelling import Refusal

PLAIN = Preprocessing((3, 32, 32))
WANTED = {
    "usual": PLAIN,
    "another normalisation": replace(PLAIN, mean=(0.5,) * 3, std=(0.5,) * 3),
    "as they are": replace(PLAIN, mean=(0.0,) * 3, std=(1.0,) * 3),
    "enlarged": replace(PLAIN, input_size=(3, 96, 96), crop_pct=1.0),
    "bilinear": replace(PLAIN, interpolation="bilinear", crop_pct=0.95),
    "nearest": replace(PLAIN, interpolation="nearest"),
    "lanczos": replace(PLAIN, interpolation="lanczos", crop_pct=0.7),
    "no square": replace(PLAIN, input_size=(3, 24, 40)),
    "squashed": replace(PLAIN, crop_mode="squash", crop_pct=1.0),
    "with a border": replace(PLAIN, crop_mode="border", crop_pct=0.9),
    "with a border of another colour": replace(PLAIN, crop_mode="border", crop_pct=0.9, mean=(0.1, 0.5, 0.9)),
    "shades of grey": replace(PLAIN, input_size=(1, 32, 32)),
    "shades of grey with a border": replace(PLAIN, input_size=(1, 32, 32), crop_mode="border"),
}
RNG = np.random.default_rng(0)


def noise(rows: int, columns: int, *channels: int) -> np.ndarray:
    """Smooth enough that JPEG keeps most of it."""
    coarse = RNG.integers(0, 256, (rows // 4 + 1, columns // 4 + 1, *channels), dtype=np.uint8)
    return coarse.repeat(4, 0).repeat(4, 1)[:rows, :columns]


def saved(pixels: np.ndarray, kind: str, mode: str | None = None, **options) -> bytes:
    image, file = Image.fromarray(pixels), io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


TURNED = Image.Exif()
TURNED[0x0112] = 6  # orientation: to be turned by a quarter
FILES = {
    "wide.jpg": saved(noise(50, 80, 3), "jpeg"),
    "high.jpg": saved(noise(81, 33, 3), "jpeg", quality=30),
    "tiny.jpg": saved(noise(5, 7, 3), "jpeg"),
    "large.jpg": saved(noise(300, 401, 3), "jpeg", subsampling=0),
    "progressive.jpg": saved(noise(64, 64, 3), "jpeg", progressive=True),
    "turned.jpg": saved(noise(40, 70, 3), "jpeg", exif=TURNED),
    "grey.jpg": saved(noise(40, 60), "jpeg"),
    "cmyk.jpg": saved(noise(40, 60, 3), "jpeg", "CMYK"),
    "exact.png": saved(noise(32, 32, 3), "png"),
    "transparent.png": saved(noise(40, 60, 4), "png"),
    "palette.png": saved(noise(40, 60, 3), "png", "P", transparency=3),
    "bits.png": saved(noise(40, 60), "png", "1"),
    "grey with alpha.png": saved(noise(40, 60, 3), "png", "LA"),
    "one colour is transparent.png": saved(noise(40, 60, 3), "png", transparency=(0, 0, 0)),
    "sixteen.png": saved(noise(40, 60).astype(np.uint16) * 257, "png"),
    "a.webp": saved(noise(40, 60, 3), "webp"),
    "a.bmp": saved(noise(40, 60, 3), "bmp"),
    "a.gif": saved(noise(40, 60), "gif"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pictures")
    for name, content in FILES.items():
        (place / name).write_bytes(content)
    return place


def oracle(image: Image.Image, wanted: Preprocessing) -> torch.Tensor:
    """The whole of timm's transform, floats and normalisation included; of a grey input the mean of the colours."""
    mean, std = wanted.mean, wanted.std
    if wanted.channels == 1:
        mean, std = ((sum(values) / 3,) * 3 for values in (mean, std))
    own = {**vars(wanted), "input_size": (3, *wanted.input_size[1:]), "mean": mean, "std": std}
    floats = create_transform(**own, is_training=False)(image)
    return floats if wanted.channels == 3 else floats.mean(0, keepdim=True)


def picture(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return as_rgb(image)


def read(images: Images, wanted) -> dict[int, list[torch.Tensor]]:
    return {
        number: [inputs[row] for inputs in batch.inputs]
        for batch in images.read(wanted)
        for row, number in enumerate(batch.images)
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_every_picture_is_what_timm_makes_of_it(folder, workers):
    images = Images(str(folder), limit=None, batch=5, workers=workers)
    found = read(images, list(WANTED.values()))
    assert sorted(found) == list(range(len(FILES)))
    for number, inputs in found.items():
        own_picture = picture(folder / images.name(number))
        for (kind, wanted), own in zip(WANTED.items(), inputs, strict=True):
            assert torch.equal(own, oracle(own_picture, wanted)), f"{images.name(number)}, {kind}"


def test_photographs_are_what_timm_makes_of_them(assets):
    root = assets / "images" / "imagenet_sample"
    images = Images(str(root), limit=8, batch=4, workers=0)
    wanted = [
        Preprocessing((3, size, size), mean, std, interpolation, crop)
        for size, crop in ((224, 0.9), (224, 0.95), (384, 1.0), (64, 0.875))
        for interpolation in ("bicubic", "bilinear")
        for mean, std in (((0.5,) * 3, (0.5,) * 3), (PLAIN.mean, PLAIN.std))
    ]
    for number, inputs in read(images, wanted).items():
        photograph = picture(root / images.name(number))
        assert all(torch.equal(own, oracle(photograph, one)) for one, own in zip(wanted, inputs, strict=True))


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_floats_are_of_the_precision_that_torch_makes(folder, precision):
    torch.set_default_dtype(precision)
    try:
        images = Images(str(folder), workers=0)
        for number, (own,) in read(images, [PLAIN]).items():
            assert own.dtype == precision
            assert torch.equal(own, oracle(picture(folder / images.name(number)), PLAIN))
    finally:
        torch.set_default_dtype(torch.float32)


def test_bytes_are_handed_over_once_for_all_models_that_differ_in_normalisation(folder):
    wanted = [WANTED["usual"], WANTED["another normalisation"], WANTED["shades of grey"], WANTED["enlarged"]]
    (batch,) = Images(str(folder), workers=0).read(wanted)
    assert isinstance(batch.inputs, Inputs)
    assert [pixels.dtype for pixels in batch.inputs.pixels] == [torch.uint8] * 2
    sizes = sum(pixels.nbytes for pixels in batch.inputs.pixels)
    assert sizes == len(FILES) * 3 * (32 * 32 + 96 * 96)
    assert len(pickle.dumps(batch.inputs)) < sizes + 10_000
    assert len({one.framing for one in WANTED.values()}) == len(WANTED) - 3
    assert WANTED["with a border"].framing != WANTED["with a border of another colour"].framing


def test_every_input_is_its_own_copy(folder):
    """A model may write into what it is given, and others read the same pixels."""
    (batch,) = Images(str(folder), workers=0).read([PLAIN, PLAIN])
    first = batch.on(torch.device("cpu"), 0)
    before = first.clone()
    first.zero_()
    assert torch.equal(batch.inputs[1], before)
    assert torch.equal(batch.on(torch.device("cpu"), 0), before)


def test_inputs_lie_in_memory_as_they_always_did(folder):
    """Image by image and colour by colour: otherwise convolutions would take other ways, to other last digits."""
    (batch,) = Images(str(folder), workers=0).read([PLAIN, WANTED["shades of grey"]])
    assert all(own.is_contiguous() and own.stride()[-1] == 1 for own in batch.inputs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_floats_of_bytes(folder):
    (batch,) = Images(str(folder), batch=64, workers=2).read(list(WANTED.values()))
    assert all(pixels.is_pinned() for pixels in batch.inputs.pixels)
    for place, one in enumerate(WANTED.values()):
        own = batch.on(torch.device("cuda"), place)
        assert own.device.type == "cuda"
        if one.channels == 3:
            assert torch.equal(own.cpu(), batch.inputs[place])
        torch.testing.assert_close(own.cpu(), batch.inputs[place], rtol=0, atol=2**-21)  # sums of three


class Mixed(Dataset):
    """Pictures and tensors by turns."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, number):
        pixels = np.full((32, 32, 3), 40 * number, np.uint8)
        return torch.full((3, 32, 32), float(number)) if number % 2 else Image.fromarray(pixels)


def test_tensors_stay_as_they_are_beside_pictures():
    for number, (own, other) in read(
        replace(given(Mixed()), workers=0), [PLAIN, WANTED["as they are"]]
    ).items():
        if number % 2:
            assert (own == number).all()
            assert (other == number).all()
        else:
            plain = Image.fromarray(np.full((32, 32, 3), 40 * number, np.uint8))
            assert torch.equal(own, oracle(plain, PLAIN))
            assert torch.equal(other, oracle(plain, WANTED["as they are"]))


def test_a_tensor_is_stacked_once_for_all_models():
    (batch,) = given(torch.randn(4, 3, 8, 8)).read([PLAIN, WANTED["enlarged"]])
    assert batch.inputs[0] is batch.inputs[1]


def test_a_deviation_of_zero_is_refused():
    with pytest.raises(
        Refusal, match=r"divided by their standard deviation, and one of \(0\.5, 0\.0, 0\.5\) is zero"
    ):
        Preprocessing(std=(0.5, 0.0, 0.5))
