import numpy as np
import pytest
import torch
from doubles import song
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_agrees_with_the_cpu():
    x, y = features(64, 5000)
    assert cka((x + 10).cuda(), y.cuda()) == pytest.approx(cka(x, y), abs=1e-5)
