from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from doubles import song
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from vit_analysis.spelling import Refusal
from vit_analysis.tensors import similarity


def features(images: int, count: int, *, share: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(images, count)
    return x, share * x + (1 - share**2) ** 0.5 * torch.randn(images, count)


def cka(x: torch.Tensor, y: torch.Tensor) -> float:
    vectors = torch.stack([similarity.centred_gram(x), similarity.centred_gram(y)])
    return float(similarity.cka(similarity.hsic(vectors))[0, 1])


def plain_gram(x: torch.Tensor) -> np.ndarray:
    return (x.double() @ x.double().T).numpy()


@pytest.mark.parametrize(("images", "count"), [(4, 3), (5, 200), (64, 10), (33, 3000)])
def test_hsic_is_the_three_term_formula(images, count):
    x, y = features(images, count)
    vectors = torch.stack([similarity.centred_gram(x), similarity.centred_gram(y)])
    k, l = plain_gram(x), plain_gram(y)
    expected = [[song(k, k), song(k, l)], [song(l, k), song(l, l)]]
    scale = np.sqrt(expected[0][0] * expected[1][1])
    np.testing.assert_allclose(
        similarity.hsic(vectors).numpy() / scale, np.array(expected) / scale, atol=1e-6
    )


def test_u_centred_form_equals_the_formula_in_float64():
    x, y = features(50, 20)
    k, l = torch.from_numpy(plain_gram(x)), torch.from_numpy(plain_gram(y))
    inner = 2 * (similarity.u_centre(k) * similarity.u_centre(l)).sum() / (50 * 47)
    assert float(inner) == pytest.approx(song(k.numpy(), l.numpy()), rel=1e-10)


def test_u_centred_rows_sum_to_zero_off_the_diagonal():
    gram = torch.randn(3, 20, 20, dtype=torch.float64)
    gram = gram + gram.mT
    centred = torch.zeros(3, 20, 20, dtype=torch.float64)
    centred[:, *torch.triu_indices(20, 20, 1)] = similarity.u_centre(gram)
    assert (centred + centred.mT).sum(-1).abs().max() < 1e-12
    assert centred.abs().max() > 1


@pytest.mark.parametrize("images", [4, 16, 17, 32, 64, 65, 160, 200])
def test_the_symmetric_product_is_the_product(images):
    x = torch.randn(images, 300)
    expected = (x.double() @ x.double().T).numpy()
    np.testing.assert_allclose(similarity.gram(x).numpy(), expected, rtol=2e-6, atol=1e-4)


def test_a_layer_is_like_itself():
    x, _ = features(40, 300)
    assert cka(x, x) == pytest.approx(1, abs=1e-12)


@given(st.floats(-6, 6), st.integers(0, 1000))
def test_scale_rotation_and_order_of_features_do_not_matter(exponent, seed):
    torch.manual_seed(seed)
    x, y = features(24, 40)
    rotation = torch.linalg.qr(torch.randn(40, 40)).Q
    changed = 10**exponent * (x @ rotation)[:, torch.randperm(40)]
    assert cka(changed, y) == pytest.approx(cka(x, y), abs=1e-5)


def test_order_of_images_does_not_matter_if_it_is_the_same_for_both():
    x, y = features(24, 40)
    order = torch.randperm(24)
    assert cka(x[order], y[order]) == pytest.approx(cka(x, y), abs=1e-6)
    assert abs(cka(x[order], y)) < 0.2 < cka(x, y)


def test_independent_features_are_not_similar_however_many_there_are():
    # The biased estimator reads 0.97 here.
    batches = [
        torch.stack([similarity.centred_gram(torch.randn(128, 4000)) for _ in range(2)]) for _ in range(10)
    ]
    total = torch.stack([similarity.hsic(batch) for batch in batches]).sum(0)
    assert (
        abs(float(similarity.cka(total)[0, 1])) < 0.015
    )  # standard deviation: sqrt(2) / 128 / sqrt(10) = 0.0035


@pytest.mark.parametrize("offset", [0, 1, 10, 100, 1000])
def test_a_common_offset_does_not_matter(offset):
    x, y = features(64, 500)
    assert cka(x + offset, y) == pytest.approx(cka(x, y), abs=1e-4 if offset == 1000 else 1e-5)


def test_the_offset_is_what_breaks_a_plain_float32_gram():
    # What `gram` avoids: without removing the offset the same numbers are visibly wrong.
    x, y = features(64, 500)
    k = ((x + 1000) @ (x + 1000).T).double()
    broken = torch.stack([similarity.centred(k), similarity.centred_gram(y)])
    assert abs(float(similarity.cka(similarity.hsic(broken))[0, 1]) - cka(x, y)) > 0.01


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maps_may_lie_in_memory_either_way(layout):
    x = torch.randn(16, 8, 5, 5)
    y = x.flatten(1) + torch.randn(16, 200)
    assert cka(x.to(memory_format=layout), y) == pytest.approx(cka(x.flatten(1), y), abs=1e-7)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_and_are_not_copied_whole(layout):
    x = torch.randn(6, 8, 5, 5).to(memory_format=layout)
    rows = similarity._rows(x)
    assert rows.data_ptr() == x.data_ptr()
    assert rows.shape == (6, 200)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_before_the_product(dtype):
    x, y = features(64, 5000)
    halved = (30 * x).to(dtype)
    assert cka(halved, y) == pytest.approx(cka(halved.double().float(), y), abs=1e-6)


def test_autocast_and_lower_matmul_precision_do_not_reach_the_gram():
    x, y = features(32, 2000)
    expected = cka(x, y)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert cka(x, y) == expected
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("value", [0.0, 3.3, 1e8])
def test_a_constant_layer_is_undefined_not_zero(value):
    x, _ = features(16, 20)
    assert np.isnan(cka(torch.full((16, 20), value), x))
    assert np.isnan(cka(torch.randn(1, 50_000).expand(16, -1) * 7 + 3, x))


def test_a_layer_that_hardly_varies_is_not_taken_for_constant():
    x, y = features(64, 50)
    assert cka(1 + 1e-4 * x, y) == pytest.approx(cka(x, y), abs=0.01)


def test_non_finite_values_stay_visible():
    x, _ = features(8, 20)
    x[3, 4] = torch.inf
    assert not similarity.centred_gram(x).isfinite().all()


@pytest.mark.parametrize("images", [1, 2, 3])
def test_too_few_images_are_refused(images):
    with pytest.raises(Refusal, match=f"needs at least 4 images in a batch, got {images}"):
        similarity.centred_gram(torch.randn(images, 5))


@pytest.mark.parametrize("offset", [0, 1000])
def test_every_token_with_every_patch_is_hsic_of_that_pair(offset):
    tokens, patches = torch.randn(20, 5, 200) + offset, torch.randn(20, 3, 4)
    tokens[:, :3, :4] += patches.mean(1, keepdim=True)
    tokens[:, 4] = offset + torch.randn(200)  # constant over images, up to the rounding of a mean
    between, own, theirs = similarity.hsic_between(tokens, patches)
    for i in range(5):
        k = plain_gram(tokens[:, i].double() - offset)
        assert float(own[i]) == pytest.approx(song(k, k), rel=1e-3, abs=1e-9)
        for j in range(3):
            l = plain_gram(patches[:, j])
            assert float(theirs[j]) == pytest.approx(song(l, l), rel=1e-5)
            assert float(between[i, j]) == pytest.approx(song(k, l), abs=1e-3 * song(l, l))
    assert own[4] == 0


def test_the_biased_estimator_is_the_trace_of_the_double_centred_product():
    x, y = features(7, 3)
    x, y = torch.relu(x) + 3, y - 2
    centring = np.eye(7) - 1 / 7
    k, l = plain_gram(x), plain_gram(y)
    for one, other in product((k, l), repeat=2):
        v, w = (similarity.biased(torch.from_numpy(own)).double() for own in (one, other))
        expected = np.trace(centring @ one @ centring @ other) / 36
        assert float(v @ w) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_distances_of_images_are_those_of_a_loop_over_pairs(offset):
    x = torch.randn(6, 4).double() + offset
    x[4] = x[1]
    found = similarity.squared_distances(x @ x.T)
    for i, j in product(range(6), repeat=2):
        assert float(found[i, j]) == pytest.approx(float(((x[i] - x[j]) ** 2).sum()), abs=1e-9)
    assert not found.diagonal().any()
    far = torch.full((40, 4), 1e8).double() + torch.randn(40, 1)
    assert (similarity.squared_distances(far @ far.T) >= 0).all()  # rounding leaves none below


@pytest.mark.parametrize("count", [1, 4096])
def test_what_varies_less_than_float32_can_tell_is_constant_however_many_features_there_are(count):
    for bits, constant in ((23, True), (19, False)):
        x = 1 + 2.0**-bits * (torch.arange(16)[:, None] * torch.arange(1, count + 1) % 3 == 1)
        (own,) = similarity.hsic(similarity.centred_gram(x)[None]).flatten()
        _, of_token, of_patch = similarity.hsic_between(x[:, None], x[:, None])
        assert [float(one) == 0 for one in (own, of_token, of_patch)] == [constant] * 3


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return self.count["mm"] + self.count["bmm"]


IN_PIECES = {
    "hsic": (lambda: similarity.hsic(torch.randn(3, 40)), 1, 40),
    "tokens and patches": (
        # A product for all tokens, one for all patches and one for both; or one for each and each of 28 pairs of images.
        lambda: torch.cat(
            [own.flatten() for own in similarity.hsic_between(torch.randn(8, 5, 9), torch.randn(8, 3, 4))]
        ),
        3,
        5 + 3 + 28,
    ),
    "half precision": (lambda: similarity.gram(torch.randn(4, 40).half()), 1, 40),
    "a large offset": (lambda: similarity.gram(torch.randn(4, 40) + 1e4), 2, 41),  # one shows how large it is
}
"""What is computed in pieces, by how many products where all fits into one piece, and by how many where nothing does."""


@pytest.mark.parametrize("name", IN_PIECES)
def test_pieces_change_nothing_and_are_as_few_as_fit(name, monkeypatch):
    compute, fewest, most = IN_PIECES[name]
    found = {}
    for size, count in ((2**18, fewest), (1, most), (60, None)):
        monkeypatch.setattr(similarity, "CPU_PIECE", size)
        torch.manual_seed(3)
        with Products() as counted:
            found[size] = compute()
        assert fewest < counted.total < most if count is None else counted.total == count
        torch.testing.assert_close(found[size], found[2**18], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("vectors", [1, 2 * 200, 2**26])
def test_as_many_tokens_and_patches_are_held_as_there_is_room_for(vectors, monkeypatch):
    tokens, patches = torch.randn(20, 5, 9), torch.randn(20, 3, 4)
    expected = similarity.hsic_between(tokens, patches)
    monkeypatch.setattr(similarity, "VECTORS", vectors)
    held, grams = [], similarity._centred_grams
    monkeypatch.setattr(similarity, "_centred_grams", lambda own: held.append(own.shape[1]) or grams(own))
    for one, other in zip(similarity.hsic_between(tokens, patches), expected, strict=True):
        torch.testing.assert_close(one, other)
    assert max(held) == min(5, max(1, vectors // 200))


def test_a_gpu_works_on_more_at_once_than_a_cpu_and_on_less_than_its_memory():
    on_gpu, on_cpu = (similarity.piece(torch.device(name)) for name in ("cuda", "cpu"))
    assert 2**22 < 4 * on_cpu * 8 < 4 * on_gpu < 2**31


def test_grams_of_bf16_on_a_gpu_are_those_of_its_numbers(monkeypatch):
    """On a CPU, where only the product that takes bfloat16 and gives float32 is missing."""
    monkeypatch.setattr(torch, "mm", lambda one, other, out_dtype: one.to(out_dtype) @ other.to(out_dtype))
    for columns, offset in product((2**17, 7), (0, 8)):
        monkeypatch.setattr(similarity, "COLUMNS", columns)
        x = (torch.randn(12, 50) + offset).bfloat16()
        rows = x.double() - x.double().mean(0)
        torch.testing.assert_close(similarity._gram_of_bf16(x), rows @ rows.T, rtol=0, atol=1e-2)
    assert not similarity._gram_of_bf16(torch.full((12, 50), 3.3).bfloat16()).any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_agrees_with_the_cpu():
    x, y = features(64, 5000)
    assert cka((x + 10).cuda(), y.cuda()) == pytest.approx(cka(x, y), abs=1e-5)
