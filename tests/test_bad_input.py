"""What a user can hand in that is broken, odd or hostile, and the sentence that he sees."""

import io
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import timm
import torch
from doubles import Given, Labelled
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from vit_analysis import (
    attention_distance,
    cka,
    layers,
    models,
    plot,
    probe,
    skip,
    soft_nearest_neighbor,
    table,
)
from vit_analysis.images import Images, Preprocessing, as_rgb
from vit_analysis.lab import zoo
from vit_analysis.layers import Tap
from vit_analysis.makers.request import HUBS
from vit_analysis.shell.analyses import ANALYSES
from vit_analysis.spelling import Refusal

SMALL = Preprocessing(input_size=(3, 16, 16), mean=(0.0,) * 3, std=(1.0,) * 3, crop_pct=1.0)
RAMP = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
EIGHT_BITS = np.round(RAMP / 257).astype(np.uint8)
COLOUR = np.stack([EIGHT_BITS, EIGHT_BITS.T, 255 - EIGHT_BITS], axis=-1)
PIXELS = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TWO_KINDS = Labelled(batch=64, pixels=PIXELS, labels=torch.arange(64) % 2)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def opened(content: bytes) -> np.ndarray:
    return np.asarray(as_rgb(Image.open(io.BytesIO(content))))


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says that it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rest = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rest


def folder_of(root: Path, files: dict[str, bytes]) -> Images:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return Images(str(root), workers=0, batch=4)


# Images of every kind ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "tiff", "ppm"])
def test_sixteen_bits_of_grey_are_scaled_and_not_cut_off(kind):
    content = saved(Image.fromarray(RAMP), kind)
    found = opened(content)
    for colour in range(3):
        np.testing.assert_array_equal(found[..., colour], EIGHT_BITS)
    cut_off = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert (cut_off == 255).mean() > 0.9  # what PIL makes of it


def test_numbers_without_a_white_are_refused():
    floats = saved(Image.fromarray(np.linspace(-1, 2, 256, dtype=np.float32).reshape(16, 16)), "tiff")
    with pytest.raises(
        OSError, match=r"pixels are numbers from -1 to 2 \(mode F\), and what is white is not known"
    ):
        opened(floats)
    integers = Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32))
    with pytest.raises(OSError, match=r"from 70000 to 70000 \(mode I\).*save it with 8 or 16 bits"):
        opened(saved(integers, "tiff"))


def test_every_kind_of_image_is_its_colours():
    colour = Image.fromarray(COLOUR)
    transparent = np.dstack([COLOUR, np.where(EIGHT_BITS > 99, 255, 0).astype(np.uint8)])
    palette = Image.fromarray(np.full((16, 16, 3), (10, 200, 30), dtype=np.uint8)).quantize(4)
    exact = {
        "colour": saved(colour, "png"),
        "transparent": saved(Image.fromarray(transparent), "png"),
        "animated": saved(colour, "png", save_all=True, append_images=[Image.fromarray(255 - COLOUR)]),
    }
    for name, content in exact.items():
        np.testing.assert_array_equal(opened(content), COLOUR, err_msg=name)
    np.testing.assert_array_equal(opened(saved(Image.fromarray(EIGHT_BITS), "png"))[..., 1], EIGHT_BITS)
    assert (opened(saved(palette, "png")) == (10, 200, 30)).all()
    cmyk = opened(saved(Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).convert("CMYK"), "jpeg"))
    assert abs(cmyk.astype(int) - 200).max() <= 2
    black_and_white = opened(saved(Image.fromarray(np.eye(16, dtype=bool)), "png"))
    np.testing.assert_array_equal(black_and_white[..., 2], 255 * np.eye(16))


def test_a_palette_with_transparency_is_read_without_a_warning():
    transparent = np.dstack([COLOUR, np.full((16, 16), 255, np.uint8)])
    transparent[0, 0, 3] = 0
    palette = Image.fromarray(transparent).quantize(16)
    assert isinstance(Image.open(io.BytesIO(saved(palette, "png"))).info["transparency"], bytes)
    assert opened(saved(palette, "png")).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (saved(Image.fromarray(COLOUR), "jpeg")[:-60], "truncated"),
        (b"", "cannot identify image file"),
        (b"<html>no image</html>", "cannot identify image file"),
        (bomb(30_000), r"900000000 pixels\) exceeds limit"),
        (saved(Image.fromarray(np.eye(4, dtype=np.float32)), "tiff"), r"numbers from 0 to 1 \(mode F\)"),
    ],
    ids=["truncated", "empty", "no image", "bomb", "floats"],
)
def test_what_cannot_be_an_image_is_named_with_the_reason(tmp_path, caplog, content, said):
    images = folder_of(tmp_path, {"a/good.png": saved(Image.fromarray(COLOUR), "png"), "a/bad.png": content})
    with pytest.raises(
        OSError, match=r"1 of 2 images cannot be read, more than 1%; the last is a/bad.png \("
    ):
        list(images.read([SMALL]))
    assert re.search(said, caplog.text, re.IGNORECASE)


def test_a_batch_of_which_nothing_can_be_read_is_left_out(tmp_path):
    whole = saved(Image.fromarray(COLOUR), "png")
    images = folder_of(tmp_path, {f"a/{number:03d}.png": whole for number in range(120)} | {"a/bad.png": b""})
    single = Images(images.source, workers=0, batch=1)
    batches = list(single.read([SMALL]))
    assert len(batches) == 120
    assert all(len(batch.inputs[0]) == 1 for batch in batches)


# Folders and tars ----------------------------------------------------------------------------------------------------


@contextmanager
def without_permission(folder: Path) -> Iterator[None]:
    """A folder that may not be looked into, and a user who is bound by that."""
    folder.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


def test_a_folder_that_cannot_be_read_is_no_class_less():
    with tempfile.TemporaryDirectory() as made:  # pytest's own is closed to others
        root = Path(made)
        root.chmod(0o755)
        images = folder_of(root, {f"{name}/0.png": saved(Image.fromarray(COLOUR), "png") for name in "abc"})
        for path in root.rglob("*"):
            path.chmod(0o755)
        assert images.classes == ["a", "b", "c"]
        with (
            without_permission(root / "b"),
            pytest.raises(OSError, match=r"cannot read the folder .*/b' \(Perm"),
        ):
            _ = Images(images.source).classes


@pytest.mark.parametrize(
    ("files", "source", "said"),
    [
        ({"notes.txt": b"no image"}, "", "no images in .*Found 0 images"),
        ({"a.tar": b"no tar at all"}, "a.tar", "is no tar of images that can be read"),
        ({"a.tar": b""}, "a.tar", "is no tar of images that can be read"),
        ({"photo.png": saved(Image.fromarray(COLOUR), "png")}, "photo.png", "no images in .*photo.png'"),
        ({}, "../<b>'\"$x_$", r"no images at .*<b>"),
        ({}, "a\0b", "no images at .*x00b"),
    ],
    ids=["no image in it", "no tar", "an empty tar", "one image", "markup", "no name of a file"],
)
def test_a_source_without_images_says_what_is_there(tmp_path, files, source, said):
    folder_of(tmp_path, files)
    with pytest.raises(OSError, match=said):
        _ = Images(str(tmp_path / source)).order


def test_nobodys_home_is_no_source():
    with pytest.raises(FileNotFoundError, match="no images at '~nobody-at-all/x'"):
        _ = Images("~nobody-at-all/x").order
    with pytest.raises(FileNotFoundError, match="no checkpoint '~nobody-at-all/x'"):
        models.load("resnet10t@~nobody-at-all/x")


def test_one_folder_is_no_classes_to_tell_apart(tmp_path):
    images = folder_of(tmp_path, {f"a/{n}.png": saved(Image.fromarray(COLOUR), "png") for n in range(8)})
    module = {"m": zoo.build("resnet", zoo.RESNET)}
    with pytest.raises(Refusal, match="has no classes to probe: it needs a folder for each"):
        probe.measure(module, images, probe.Shots(images, 1, 1))
    with pytest.raises(Refusal, match="has no classes: it needs a folder for each"):
        soft_nearest_neighbor.measure(module, images)


@pytest.mark.parametrize(("setting", "value"), [("seed", -1), ("workers", -2), ("batch", -5)])
def test_settings_below_their_range_are_refused(setting, value):
    with pytest.raises(Refusal, match=rf"images.{setting} must be at least \d, got {value}"):
        Images(**{setting: value})


# Checkpoints ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return timm.create_model("resnet10t").state_dict()


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.99])
def test_a_truncated_checkpoint_is_no_file_of_weights(tmp_path, state, kind, share):
    path = tmp_path / f"cut.{kind}"
    save = safetensors.torch.save_file if kind == "safetensors" else torch.save
    save(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(OSError, match=rf"cut.{kind}' is not a file of weights that can be read safely: \w"):
        models.load(f"resnet10t@{path}", device="cpu")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "holds list, not a dictionary of tensors"),
        ({}, "holds nothing where tensors by name are expected"),
        ({"a": torch.ones(2), "epoch": 3}, r"holds 'epoch' \(int\) where tensors by name are expected"),
        ({"state_dict": {"a": 1.5}}, r"holds 'a' \(float\)"),
    ],
)
def test_a_checkpoint_of_something_else_says_what(tmp_path, content, said):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(OSError, match=said):
        models.load(f"resnet10t@{tmp_path / 'odd.pth'}", device="cpu")


def test_weights_that_are_not_numbers_are_named(tmp_path, state):
    broken = {key: value.clone() for key, value in state.items()}
    broken["fc.weight"][3, 4] = torch.nan
    safetensors.torch.save_file(broken, tmp_path / "nan.safetensors")
    with pytest.raises(Refusal, match=r"nan.safetensors' does not fit .*: 1 not numbers \(fc.weight\)"):
        models.load(f"resnet10t@{tmp_path / 'nan.safetensors'}", device="cpu")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"config": "__import__('os').system('true')"}, "says of itself what cannot be"),
        ({"config": '{"img_size": 32}'}, "missing a required argument|missing 5 required"),
        ({"input_size": "[3, 32"}, "says of itself what cannot be"),
    ],
)
def test_a_lab_checkpoint_that_lies_about_itself_is_refused(tmp_path, facts, said):
    weights = zoo.build("vit", zoo.RECIPES["vit"].config).state_dict()
    safetensors.torch.save_file(weights, tmp_path / "x.safetensors", metadata=facts)
    with pytest.raises(OSError, match=said):
        models.load(f"lab/vit@{tmp_path / 'x.safetensors'}", device="cpu")


# Models --------------------------------------------------------------------------------------------------------------


def test_a_model_of_one_channel_sees_shades_of_grey(tmp_path):
    colours = timm.create_model("resnet10t").eval()
    grey = timm.create_model("resnet10t", in_chans=1).eval()
    wanted = models.named({"colours": colours, "grey": grey})
    assert [model.preprocessing.channels for model in wanted.values()] == [3, 1]
    images = folder_of(tmp_path, {f"a/{n}.png": saved(Image.fromarray(EIGHT_BITS), "png") for n in range(2)})
    for source in (images, Images(limit=2)):
        (batch,) = source.read([model.preprocessing for model in wanted.values()])
        three, one = batch.inputs
        assert (three.shape[1], one.shape[1]) == (3, 1)
        config = wanted["grey"].preprocessing
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
        pixels = (three * std + mean).mean(1, keepdim=True)
        torch.testing.assert_close(one * std.mean() + mean.mean(), pixels, atol=1e-5, rtol=0)
    assert len(cka.measure({"grey": grey}, Images(limit=4), layers="blocks")) == 16


def test_other_channels_are_refused():
    with pytest.raises(Refusal, match="images have 3 channels, or 1 as shades of grey; the model takes 12"):
        Preprocessing(input_size=(12, 32, 32))


def test_a_model_built_for_another_size_gets_images_of_that_size():
    module = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=2).eval()
    assert models.named({"m": module})["m"].preprocessing.input_size == (3, 32, 48)
    assert len(attention_distance.measure({"m": module}, Images(limit=4))) == 6
    free = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, dynamic_img_size=True)
    assert models.named({"m": free})["m"].preprocessing.input_size == (3, 224, 224)


def test_images_of_a_size_that_the_model_does_not_take_are_refused():
    module = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1).eval()
    with pytest.raises(Refusal, match=r"VisionTransformer does not take images of 3 x 48 x 48: .*height"):
        cka.measure({"m": module}, Given(batch=4, pixels=torch.randn(4, 3, 48, 48)))


# What an analysis needs beside models and images, to be quick.
SETTINGS = {"receptive_field": {"channels": 1}, "probe": {"shots": probe.Shots(TWO_KINDS, 1, 1)}}


@pytest.mark.parametrize("analysis", ANALYSES, ids=lambda one: one.name)
def test_a_model_whose_activations_are_not_finite_is_said_to_be_one(analysis):
    module = zoo.build("vit", {**zoo.RECIPES["vit"].config, "depth": 2}).eval()
    with torch.no_grad():
        module.blocks[1].attn.qkv.weight[:] = torch.nan
    with pytest.raises(Refusal, match=r"m has (values|gradients) that are not finite"):
        analysis.module.measure({"m": module}, TWO_KINDS, **SETTINGS.get(analysis.name, {}))


def test_a_model_without_attention_is_sent_elsewhere():
    parallel = nn.Module()
    parallel.patch_embed = timm.layers.PatchEmbed(32, 16)
    parallel.blocks = nn.Sequential(nn.Sequential(), timm.layers.Mlp(4))
    with pytest.raises(Refusal, match="m has no attention in its blocks, where it is looked for as 'attn'"):
        attention_distance.measure({"m": parallel}, Images(limit=4))


def test_names_with_markup_reach_tables_and_pictures_as_they_are(tmp_path):
    name = "../<b>\"'$x_$\\frac</b>"
    module = zoo.build("resnet", zoo.RESNET).eval()
    found = cka.measure({name: module}, Given(batch=8, pixels=torch.randn(8, 3, 32, 32)), layers="blocks")
    assert set(found["model"]) == {name}
    table.write(found, tmp_path / "a.parquet")
    assert set(table.read(tmp_path / "a.parquet")["model"]) == {name}
    plot.cka(found).savefig(tmp_path / "a.png")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.parquet", "a.png"]


def test_the_number_of_tokens_told_one_by_one_is_not_negative():
    with pytest.raises(Refusal, match="first must be at least 0, got -1"):
        skip.measure({"m": zoo.build("resnet", zoo.RESNET)}, Images(limit=4), first=-1)


# Anything at all -----------------------------------------------------------------------------------------------------

anything = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
quickly = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quickly
@given(st.binary(max_size=400), st.integers(0, 3000))
def test_bytes_are_no_table_and_are_said_to_be_none(tmp_path, content, kept):
    path = tmp_path / "whole.parquet"
    if not path.exists():
        table.write(table.with_provenance(pd.DataFrame({"cka": [0.5]}), "cka"), path)
    whole = path.read_bytes()
    for broken in (
        content,
        whole[: min(kept, len(whole) - 1)],
        whole[:kept] + content + whole[kept:] + b"\0",
    ):
        (tmp_path / "broken.parquet").write_bytes(broken)
        with pytest.raises(OSError, match=r"broken.parquet is no table that can be read: \w"):
            table.read(tmp_path / "broken.parquet")


def test_a_folder_is_no_table(tmp_path):
    (tmp_path / "a.parquet").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no table .*a.parquet"):
        table.read(tmp_path / "a.parquet")


STARTS = ["", "lab/", "lab/vit", "resnet10t@", "vit@", "@", "../", "'<b>"]
ENDS = ["", "@", "@random ", "@x/../y", "@~z"]
names = st.builds("{}{}{}".format, st.sampled_from(STARTS), anything, st.sampled_from(ENDS))


def untrained(name: str, *, pretrained: bool = False, create=timm.create_model, **settings) -> nn.Module:
    """timm, where nothing can be downloaded."""
    if pretrained:
        raise OSError("nothing can be downloaded here")
    return create(name, **settings)


def is_shipped(name: str) -> bool:
    try:
        return zoo.lab_file(name).is_file()
    except (Refusal, FileNotFoundError):
        return False


@quickly
@example("lab/vit@")  # such as of an empty variable of the shell: not the trained weights without a word
@example("lab/vit:1@")
@example("@")
@given(names)
def test_a_name_is_a_model_or_a_sentence(name):
    if is_shipped(name) or name.startswith(HUBS):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", untrained)
        with pytest.raises((Refusal, OSError), match=r"\w"):
            models.load(name, device="cpu")


def oracle(pattern: str) -> re.Pattern[str]:
    """Of a path with a dot before each component: ``**`` is any number of them, ``*`` any part of one, ``?`` a character."""
    signs = {"*": "[^.]*", "?": "[^.]"}
    parts = ["".join(signs.get(sign, re.escape(sign)) for sign in part) for part in pattern.split(".")]
    some = "".join(r"(\.[^.]+)*" if part == "[^.]*[^.]*" else rf"\.{part}" for part in parts)
    return re.compile(some)


TREE = nn.Sequential()
for _path in ("a", "a.b", "a.b.a", "a.ab", "ab", "ab.b", "ab.b.a.b", "b.a", "bab.0.a", "bab.1.ab"):
    _parent = TREE
    for _part in _path.split("."):
        if _part not in dict(_parent.named_children()):
            _parent.add_module(_part, nn.Sequential())
        _parent = _parent.get_submodule(_part)
PATHS = [path for path, _ in TREE.named_modules() if path]


def one_star(part: str) -> str:
    """Two stars mean something only as a whole component."""
    return re.sub(r"\*+", "*", part)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(st.just("**"), st.text("ab01*?", min_size=1, max_size=4).map(one_star)),
        min_size=1,
        max_size=5,
    )
)
def test_a_pattern_matches_what_a_regular_expression_does(parts):
    pattern = ".".join(parts)
    expected = [path for path in PATHS if oracle(pattern).fullmatch(f".{path}")]
    if expected:
        assert layers.choose({"m": TREE}, pattern) == {"m": [Tap(path) for path in expected]}
        inputs = [Tap(path, "in") for path in expected]
        assert layers.choose({"m": TREE}, f"{pattern}:in") == {"m": inputs}
    else:
        with pytest.raises(Refusal, match="no layer of m matches"):
            layers.choose({"m": TREE}, pattern)


@quickly
@given(st.one_of(anything, st.text("ab.*?[]!:in#", max_size=300)))
def test_any_pattern_is_layers_or_a_sentence(pattern):
    if pattern in ("paper", "blocks", *layers.ENDS):
        return
    found: list[Tap] = []
    with suppress(Refusal):
        found = layers.choose({"m": TREE}, pattern)["m"]
        assert found
    assert {tap.path for tap in found} <= set(PATHS)
    assert {tap.at for tap in found} <= {"out", "in"}


def test_many_stars_take_no_time():
    deep = nn.Sequential()
    parent = deep
    for _ in range(12):
        parent.add_module("a", nn.Sequential())
        parent = parent.a
    assert len(layers.choose({"m": deep}, ".".join(["**"] * 40))["m"]) == 12
