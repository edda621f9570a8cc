"""Attention in windows against the attention matrix of the whole image, built token by token."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from doubles import Given
from test_attention_distance import spread
from torch import Tensor, nn

from vit_analysis import attention_distance, layers
from vit_analysis.anatomy.places import Tap
from vit_analysis.anatomy.windows import Partition, windows
from vit_analysis.attention_distance import head_distances, head_subsets, measure
from vit_analysis.models import named
from vit_analysis.reading.capture import Capture
from vit_analysis.reading.heads import Heads
from vit_analysis.reading.scales import of_windows
from vit_analysis.spelling import Refusal
from vit_analysis.tensors.attention import Scale

STAGES: dict[str, Any] = {"depths": (2, 2), "num_heads": (2, 3), "embed_dim": 24, "num_classes": 5}
SWINS = {
    "windows": ("swin_tiny_patch4_window7_224", STAGES | {"img_size": 56}),
    "windows of another shape": ("swin_tiny_patch4_window7_224", STAGES | {"img_size": 32, "window_size": (2, 4)}),
    "patches of another size": ("swin_tiny_patch4_window7_224", STAGES | {"img_size": 32, "window_size": 4, "patch_size": 2}),
    "padded": ("swin_tiny_patch4_window7_224", STAGES | {"img_size": 24, "window_size": 4}),
    "oblong": ("swin_tiny_patch4_window7_224", STAGES | {"img_size": (32, 64), "window_size": 4}),
    "merged with padding": ("swin_tiny_patch4_window7_224", STAGES | {"img_size": (20, 28), "window_size": 3}),
    "norm after": ("swinv2_tiny_window8_256", STAGES | {"img_size": 32, "window_size": 4}),
    "norm after, padded": ("swinv2_tiny_window8_256", STAGES | {"img_size": 24, "window_size": 4}),
}  # fmt: skip


def swin(name: str) -> nn.Module:
    torch.manual_seed(0)
    architecture, config = SWINS[name]
    module = timm.create_model(architecture, **config).eval()
    with torch.no_grad():  # attention that is far from uniform
        for path, parameter in module.named_parameters():
            if path.endswith("qkv.weight"):
                parameter.mul_(8)
            if path.endswith(("relative_position_bias_table", "qkv.bias", "q_bias")):
                parameter.normal_()
    return module


def images(module: nn.Module, count: int = 2) -> Given:
    return Given(batch=2, pixels=torch.randn(count, 3, *module.patch_embed.img_size))


def scores(block: nn.Module, apart: tuple[int, int], queries: Tensor, keys: Tensor) -> Tensor:
    """The score of one query and one key (each head x feature), ``apart`` rows and columns of the map."""
    attention, (high, wide) = block.attn, block.attn.window_size
    row, column = apart[0] + high - 1, apart[1] + wide - 1
    if hasattr(attention, "logit_scale"):
        bias = 16 * torch.sigmoid(attention.cpb_mlp(attention.relative_coords_table[0, row, column]))
        cosine = nn.functional.cosine_similarity(queries, keys, dim=-1)
        return cosine * attention.logit_scale.flatten().clamp(max=float(np.log(100))).exp() + bias
    bias = attention.relative_position_bias_table[row * (2 * wide - 1) + column]
    return (queries * keys).sum(-1) * queries.shape[-1] ** -0.5 + bias


def whole(block: nn.Module, map: Tensor) -> Tensor:
    """The attention of all tokens of one image to all tokens and to the padding: head x token x (token and padding).

    ``map`` is row x column x channel. It is rolled, then padded with zeros, and cut into windows; what is rolled around the
    edge of the padded map is kept apart by scores of -100.
    """
    (high, wide), (down, right) = block.window_size, block.shift_size
    rows, columns, channels = map.shape
    padded = rows + -rows % high, columns + -columns % wide
    value = torch.zeros(*padded, channels)
    token = np.full(padded, -1)
    for row in range(rows):
        for column in range(columns):
            at = (row - down) % rows, (column - right) % columns
            value[at] = map[row, column]
            token[at] = row * columns + column
    attention = block.attn
    bias = attention.qkv.bias
    if hasattr(attention, "q_bias"):
        bias = torch.cat([attention.q_bias, torch.zeros(channels), attention.v_bias])
    qkv = nn.functional.linear(value, attention.qkv.weight, bias).unflatten(-1, (3, attention.num_heads, -1))
    pads = iter(range(rows * columns, padded[0] * padded[1]))
    number = {at: int(token[at]) if token[at] >= 0 else next(pads) for at in np.ndindex(*padded)}

    def region(place: int, size: int, window: int, shift: int) -> int:
        return 0 if place < size - window or not shift else 1 if place < size - shift else 2

    found = torch.full((attention.num_heads, rows * columns, padded[0] * padded[1]), -torch.inf)
    for query in np.ndindex(*padded):
        if token[query] < 0:
            continue
        for key in np.ndindex(*padded):
            if (query[0] // high, query[1] // wide) != (key[0] // high, key[1] // wide):
                continue
            apart = query[0] - key[0], query[1] - key[1]
            score = scores(block, apart, qkv[query][0], qkv[key][1])
            sides = [
                region(query[axis], padded[axis], (high, wide)[axis], (down, right)[axis])
                == region(key[axis], padded[axis], (high, wide)[axis], (down, right)[axis])
                for axis in (0, 1)
            ]
            if (down or right) and not all(sides):
                score = score - 100
            found[:, number[query], number[key]] = score
    return found.softmax(-1)


def expected(block: nn.Module, maps: Tensor, stride: tuple[float, float]) -> np.ndarray:
    """The five statistics of each head, averaged over images, from the attention of all tokens."""
    _, rows, columns, _ = maps.shape
    place = np.array(
        [(row * stride[0], column * stride[1]) for row in range(rows) for column in range(columns)]
    )
    far = np.linalg.norm(place[:, None] - place, axis=-1)
    found = []
    for map in maps:
        for head in whole(block, map).double().numpy():
            own = head[:, : rows * columns]
            share = own.sum(1, keepdims=True)
            raw = (own * far).sum(1)
            found.append([(raw / share[:, 0]).mean(), 1 - share.mean(), raw.mean(), *spread(own / share)])
    return np.mean(np.reshape(found, (len(maps), -1, 5)), axis=0)


@pytest.mark.parametrize("name", SWINS)
def test_it_is_the_attention_of_the_whole_image_with_all_windows_and_masks(name):
    module = swin(name)
    given = images(module)
    table = measure({"m": module}, given)
    blocks = layers.blocks(module)
    taps = [f"{block}:in" if "after" in name else f"{block}.norm1" for block in blocks]
    with Capture(module, taps) as run, torch.no_grad():
        seen = run(given.pixels)
        shifted = 0
        for block, tap in zip(blocks, taps, strict=True):
            maps, own = seen[tap], module.get_submodule(block)
            patch, stage = module.patch_embed.patch_size, int(block.split(".")[1])
            stride = patch[0] * 2.0**stage, patch[1] * 2.0**stage
            rows = table[table["block"] == block]
            found = rows[["distance_px", "prefix_mass", "raw_distance_px", "entropy", "nmi"]].to_numpy()
            np.testing.assert_allclose(found, expected(own, maps, stride), rtol=2e-4, atol=2e-4)
            np.testing.assert_allclose(rows["uniform_entropy"], np.log(maps.shape[1] * maps.shape[2]))
            shifted += any(own.shift_size)
        assert shifted


def test_a_real_swin_looks_as_far_as_its_windows_at_the_stride_of_each_stage():
    torch.manual_seed(0)
    module = timm.create_model("swin_tiny_patch4_window7_224").eval()
    table = measure({"m": module}, Given(batch=2, pixels=torch.randn(2, 3, 224, 224)))
    of_block = table.groupby("block", sort=False)[["distance_px", "uniform_px", "uniform_entropy"]].mean()
    offsets = np.arange(7)
    apart = np.hypot(*np.meshgrid(offsets[:, None] - offsets, offsets[:, None] - offsets)).mean()
    assert len(of_block) == 12
    for block, row in of_block.iterrows():
        stage, number = int(str(block).split(".")[1]), int(str(block)[-1])
        stride, side = 4 * 2**stage, 56 // 2**stage
        assert row["uniform_px"] == pytest.approx(
            layers.Grid(side, side, float(stride), float(stride)).uniform()
        )
        assert row["uniform_entropy"] == pytest.approx(2 * np.log(side))
        whole = (
            number % 2 == 0 or side == 7
        )  # an odd block shifts its windows, and is kept from looking around the edge
        assert (
            row["distance_px"] == pytest.approx(apart * stride, rel=0.01)
            if whole
            else row["distance_px"] < 0.98 * apart * stride
        )


def test_uniform_attention_in_windows_knows_the_window_and_no_more():
    heads = Heads(torch.zeros(8, 3, 4, 2), torch.zeros(8, 3, 4, 2), None, None, 1.0)
    numbers = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
    scale = of_windows(layers.Grid(8, 8, 5.0, 5.0), numbers)
    assert (scale.windows, scale.places, scale.pixels.ndim, scale.real) == (4, 16, 2, None)
    found = head_distances(heads, scale)
    assert found.shape == (2, 3, 5)
    distance = 10 * (2 + 2**0.5) / 4
    for row in found.flatten(0, 1).tolist():
        assert row == pytest.approx([distance, 0, distance, np.log(4), 0.5], abs=1e-5)


def test_a_map_that_is_not_one_of_merged_patches_is_refused():
    with pytest.raises(Refusal, match="a map of 9 tokens is not one of 8 x 8 patches merged two by two"):
        of_windows(layers.Grid(8, 8, 4.0, 4.0), torch.arange(9)[None])


def test_padding_is_neither_query_nor_key():
    numbers = torch.tensor([[0, -1], [1, 2]])
    scale = of_windows(layers.Grid(1, 3, 1.0, 1.0), numbers)
    scores = torch.zeros(2, 1, 2, 2)
    found = head_distances(Heads(scores, torch.eye(2).expand(2, 1, 2, 2), None, None, 1.0), scale)[0, 0]
    mass = 1 - (0.5 + 1 + 1) / 3
    nmi = (np.log(3) - 2 / 3 * np.log(2)) / np.log(3)
    assert found.tolist() == pytest.approx([1 / 3, mass, 1 / 3, 2 / 3 * np.log(2), nmi], abs=1e-6)


@pytest.mark.parametrize("name", ["windows", "padded"])
@pytest.mark.parametrize("piece", [1, 3000, 2**30])
def test_pieces_of_windows_and_heads_do_not_matter(name, piece, monkeypatch):
    module = swin(name)
    given = images(module)
    table = measure({"m": module}, given)
    monkeypatch.setattr(attention_distance, "CPU_PIECE", piece)
    other = measure({"m": module}, given)
    for column in ("distance_px", "prefix_mass", "entropy", "nmi"):
        np.testing.assert_allclose(other[column], table[column], rtol=1e-5, atol=1e-6)


def test_some_blocks_are_those_of_all():
    module = swin("windows")
    given = images(module)
    table = measure({"m": module}, given)
    last = measure({"m": module}, given, blocks=[-1])
    own = table[table["block"] == "layers.1.blocks.1"].reset_index(drop=True)
    np.testing.assert_allclose(last["distance_px"], own["distance_px"], rtol=1e-6)
    assert last["depth"].tolist() == own["depth"].tolist() == [1.0] * 3


def test_models_in_half_precision_have_the_same_windows():
    module = swin("padded")
    paths = layers.partitions(module)
    assert list(paths) == layers.blocks(module)
    pixels = torch.zeros(1, 3, 24, 24)
    found, half = windows(module, paths, pixels), windows(module.bfloat16(), paths, pixels.bfloat16())
    for block, own in found.items():
        torch.testing.assert_close(half[block], own)
    assert found["layers.0.blocks.0"][0, :6].tolist() == [0, 1, 2, 3, 6, 7]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


class Odd(nn.Module):
    """A block whose windows are not those of the map."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.norm1, self.attn = kind, nn.LayerNorm(8), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        given = self.norm1(x).flatten(1, 2)
        if self.kind == "half":
            given = given[:, ::2]
        if self.kind == "twice":
            given = torch.cat([given, given], dim=1)
        if self.kind == "windows first":
            given = given.unflatten(1, (2, -1)).transpose(0, 1).flatten(0, 1)
        if self.kind == "mixed":
            given = given.mean(1, keepdim=True) + given
        self.attn(given)
        return x


@pytest.mark.parametrize("kind", ["half", "twice", "windows first", "mixed"])
def test_windows_that_are_not_all_tokens_once_image_by_image_are_refused(kind):
    module = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), Maps(), Odd(kind))
    with pytest.raises(Refusal, match=r"which tokens '3.attn' is given together is not known"):
        windows(module, {"3": Partition("3", "3.norm1", "3.attn")}, torch.zeros(1, 3, 16, 16))


class Maps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mT.unflatten(1, (4, 4))


def test_heads_in_windows_are_compared_with_a_cnn_as_all_their_tokens():
    loaded = named({"vit": swin("windows"), "cnn": timm.create_model("resnet18").eval()})
    given = Given(batch=8, pixels=torch.randn(8, 3, 56, 56))
    table = head_subsets(loaded["vit"], loaded["cnn"], given)
    assert table["cka"].between(-1, 1).all()
    (first,) = (layers.attentions(loaded["vit"])["layers.0.blocks.0"],)
    assert first == Tap("layers.0.blocks.0.attn", "heads")
    own = measure([loaded["vit"]], given, blocks=[0])["distance_px"]
    assert sorted(set(table["distance_px"].round(4))) == sorted(own.round(4))
    after = named({"vit": swin("norm after")})["vit"]
    with pytest.raises(Refusal, match="does not tell its values"):
        head_subsets(after, loaded["cnn"], Given(batch=8, pixels=torch.randn(8, 3, 32, 32)))


def test_a_scale_of_the_whole_image_counts_its_places():
    assert Scale(torch.zeros(6, 6).double(), 2).places == 6
    assert layers.Grid(3, 5, 2.0, 7.0).uniform() == pytest.approx(
        layers.Grid(3, 5, 2.0, 7.0).distances().mean().item()
    )
