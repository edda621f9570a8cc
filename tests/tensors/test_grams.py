"""Gram matrices of choices of tokens that need no product of their own are those of the definition."""

import weakref

import numpy as np
import pytest
import torch

from vit_analysis.tensors import grams, similarity
from vit_analysis.tensors.grams import Grams
from vit_analysis.tensors.tokens import SELECTIONS, Layout

VIT = Layout(spatial=9, prefix=2, class_token=True)
SHAPES = {"tokens": (40, 11, 8), "patches": (40, 9, 8), "map": (40, 8, 3, 3), "vector": (40, 8)}


def activation(kind: str, *, massive: bool = False, offset: float = 1.0) -> torch.Tensor:
    x = torch.randn(SHAPES[kind]) + offset * torch.randn(SHAPES[kind][1:])
    if massive:
        x[3] *= 100
    return x


def by_definition(selection: str, x: torch.Tensor) -> torch.Tensor:
    """In float64, whole."""
    rows = SELECTIONS[selection](x, VIT).double().flatten(1)
    rows = rows - rows.mean(0)  # which is taken away in any case, and then in float64
    return rows @ rows.T


def assert_same_when_centred(own: torch.Tensor, other: torch.Tensor, within: float = 1e-5) -> None:
    own, other = similarity.u_centre(own), similarity.u_centre(other)
    np.testing.assert_allclose(own, other, atol=within * float(other.abs().max()))


@pytest.mark.parametrize("selection", list(SELECTIONS))
@pytest.mark.parametrize("kind", list(SHAPES))
@pytest.mark.parametrize("massive", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_selection_is_what_its_definition_gives(selection, kind, massive, dtype):
    x = activation(kind, massive=massive).to(dtype)
    own = Grams(x, VIT).of(selection)
    if kind == "patches" and selection == "cls":
        assert own is None
    else:
        assert_same_when_centred(own, by_definition(selection, x))


def test_biased_hsic_and_distances_are_those_of_the_definition_too():
    x = activation("tokens")
    own, plain = Grams(x, VIT).of("spatial"), by_definition("spatial", x)
    np.testing.assert_allclose(similarity.biased(own), similarity.biased(plain), atol=1e-4)
    rows = x[:, 2:].flatten(1).double()
    np.testing.assert_allclose(
        similarity.squared_distances(own), torch.cdist(rows, rows).square(), rtol=1e-4, atol=1e-9
    )


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
def test_spatial_tokens_are_right_beside_a_class_token_that_outweighs_them(size):
    x = activation("tokens")
    x[:, 0] *= size
    assert_same_when_centred(Grams(x, VIT).of("spatial"), by_definition("spatial", x))


@pytest.mark.parametrize("offset", [3, 10, 30])
@pytest.mark.parametrize("size", [10, 100, 1000])
def test_ordinary_images_are_right_beside_one_that_outweighs_them_and_hides_an_offset(offset, size):
    x = activation("tokens", offset=offset)
    x[3] *= size
    # Up to `similarity.OFFSET` times the rounding of float32; without looking, the worst of these is wrong by a fifth.
    assert_same_when_centred(Grams(x, VIT).of("typical"), by_definition("typical", x.double()), within=5e-5)


def test_spatial_tokens_have_a_product_where_the_class_token_alone_keeps_an_offset(monkeypatch):
    # That of the spatial tokens is so large that all tokens lose theirs; what is left is small beside the class token's.
    x = activation("tokens", offset=1e4)
    x[:, :2] = 3 * (4 + torch.randn(40, 2, 8))
    asked = []
    product = Grams.product
    monkeypatch.setattr(Grams, "product", lambda own, which: asked.append(which) or product(own, which))
    assert_same_when_centred(Grams(x, VIT).of("spatial"), by_definition("spatial", x))
    assert asked == ["all", "spatial"]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_distances_of_spatial_tokens_are_right_where_a_class_token_is_large_on_the_diagonal_alone(scale):
    x = torch.randn(32, 11, 64)
    x[:, 0] = 1e4 * torch.eye(32, 64)
    x *= scale
    rows = x[:, 2:].flatten(1).double()
    own = similarity.squared_distances(Grams(x, VIT).of("spatial"))
    np.testing.assert_allclose(own, torch.cdist(rows, rows).square(), rtol=1e-4, atol=1e-9 * scale**2)


def test_spatial_tokens_are_none_where_all_tokens_are_prefix():
    assert Grams(torch.randn(8, 2, 5), VIT).of("spatial") is None


def test_what_needs_no_product_makes_none(monkeypatch):
    made = []
    own = Grams(activation("map"), VIT)
    monkeypatch.setattr(similarity, "gram", lambda x, gram=similarity.gram: made.append(x.shape) or gram(x))
    for selection in ("all", "spatial", "inliers", "typical"):
        own.of(selection)
    own.first(16).of("inliers")
    assert made == [SHAPES["map"]]
    Grams(activation("tokens"), VIT).first(16).of("inliers")
    assert made[1:] == [(16, *SHAPES["tokens"][1:])]


def test_the_first_images_are_those_of_a_shorter_batch():
    x = activation("tokens")
    for selection in ("all", "normalized", "typical"):
        assert_same_when_centred(Grams(x, VIT).first(16).of(selection), by_definition(selection, x[:16]))


@pytest.mark.parametrize("piece", [1, 100, 10**6])
def test_normalized_tokens_may_come_in_pieces(monkeypatch, piece):
    monkeypatch.setattr(similarity, "CPU_PIECE", 1)
    monkeypatch.setattr(grams, "SCALED", piece)
    x = activation("tokens").half()
    assert_same_when_centred(Grams(x, VIT).of("normalized"), by_definition("normalized", x))


def test_whoever_asks_again_gets_what_was_made_and_nothing_stays():
    x = activation("tokens")
    grams = Grams(x, VIT)
    own = grams.of("all")
    assert grams.of("all") is grams.all is own
    # Of another activation, or one that is arranged in another way, it is another one.
    assert Grams(x, Layout()).of("spatial") is not grams.of("spatial")
    assert Grams(x.clone(), VIT).of("all") is not own
    gone = weakref.ref(own)
    del own, grams
    assert gone() is None
    assert not torch.equal(Grams(2 * x, VIT).of("all"), Grams(x, VIT).of("all"))


def test_parts_are_nearly_equal_and_lose_no_image():
    for images in range(1, 1500):
        own = grams.sizes(images)
        assert sum(own) == images
        assert max(own) - min(own) <= 1
        assert min(own) >= min(images, 2 * grams.PART // 3)
    for images in (5, 160, 256, 400):
        parts = Grams(torch.randn(images, 2), Layout()).parts
        assert [len(part.activation) for part in parts] == grams.sizes(images)
    assert grams.sizes(256) == [128, 128]
    assert grams.sizes(160) == [160]
    assert grams.sizes(37) == [37]


@pytest.mark.parametrize("selection", list(SELECTIONS))
@pytest.mark.parametrize("first", ["whole", "parts"])
def test_parts_are_what_their_images_alone_give_whether_or_not_the_whole_was_made(
    selection, first, monkeypatch
):
    monkeypatch.setattr(grams, "PART", 13)
    x = activation("tokens", massive=True)
    own = Grams(x, VIT)
    if first == "whole":
        own.of(selection)
    assert [len(part.activation) for part in own.parts] == [14, 13, 13]
    for part, images in zip(own.parts, x.split([14, 13, 13]), strict=True):
        assert_same_when_centred(part.of(selection), by_definition(selection, images))
    assert_same_when_centred(own.of(selection), by_definition(selection, x))


@pytest.mark.parametrize("selection", ["all", "normalized"])
def test_parts_are_cut_out_of_the_whole_without_a_product(selection, monkeypatch):
    monkeypatch.setattr(grams, "PART", 13)
    own = Grams(activation("tokens"), VIT)
    whole = own.of(selection)
    monkeypatch.setattr(similarity, "gram", None)
    assert torch.equal(own.parts[1].of(selection), whole[14:27, 14:27])
    assert torch.equal(own.parts[1].norms, own.norms[14:27])
