"""Second measures of similarity: against oracles that share no code, on independent data, and what may not change them."""

import numpy as np
import pytest
import torch
from doubles import u_centred
from scipy.stats import rankdata

from vit_analysis.spelling import Refusal
from vit_analysis.tensors import measures, similarity
from vit_analysis.tensors.measures import MEASURES


def grams(batches: list[torch.Tensor]) -> list[torch.Tensor]:
    return [similarity.gram(batch) for batch in batches]


def similar(name: str, xs: list[torch.Tensor], ys: list[torch.Tensor]) -> float:
    """Ratio of sums over batches."""
    vectors = [[MEASURES[name](gram).double() for gram in grams(own)] for own in (xs, ys)]
    both, one, other = (
        sum(float(v @ w) for v, w in zip(a, b, strict=True))
        for a, b in (vectors, (vectors[0], vectors[0]), (vectors[1], vectors[1]))
    )
    return both / (one * other) ** 0.5


def related(n: int, batches: int, features: int = 300) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    xs = [torch.randn(n, features) for _ in range(batches)]
    return xs, [0.6 * x + 0.8 * torch.randn(n, features) for x in xs]


def test_rank_cka_is_the_correlation_of_ranks_of_u_centred_entries():
    (x,), (y,) = related(20, 1)
    ranks = [rankdata(u_centred(own.double().numpy())) for own in (x, y)]
    assert similar("rank_cka", [x], [y]) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-5)


def test_equal_entries_have_the_mean_of_their_ranks():
    gram = torch.eye(6).double()
    gram[0, 1] = gram[1, 0] = 3
    entries = similarity.centred(gram).numpy()
    expected = rankdata(entries.round(6))
    assert np.allclose(
        measures.ranked(gram).numpy() * len(entries) ** 1.5, expected - expected.mean(), atol=1e-5
    )


def test_mutual_neighbours_are_those_of_a_naive_count():
    (x,), (y,) = related(64, 1)

    def near(rows: np.ndarray) -> list[set[int]]:
        n, entries = len(rows), np.zeros((len(rows), len(rows)))
        entries[np.triu_indices(n, 1)] = u_centred(rows)
        entries += entries.T
        norms = np.linalg.norm(rows - rows.mean(0), axis=1)
        return [
            set(sorted((j for j in range(n) if j != i), key=lambda j: -entries[i, j] / norms[j])[:4])
            for i in range(n)
        ]

    overlap = np.mean(
        [len(a & b) / 4 for a, b in zip(near(x.double().numpy()), near(y.double().numpy()), strict=True)]
    )
    chance = 4 / 63
    assert similar("mutual_knn", [x], [y]) == pytest.approx((overlap - chance) / (1 - chance), abs=1e-6)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("n", [16, 48, 160])
def test_independent_features_have_none_and_a_layer_with_itself_has_one(name, n):
    xs, ys = ([torch.randn(n, 500) for _ in range(2000 // n)] for _ in range(2))
    assert abs(similar(name, xs, ys)) < 0.04
    assert similar(name, xs, xs) == pytest.approx(1)


@pytest.mark.parametrize(("name", "size"), [("rank_cka", 1 / 12), ("mutual_knn", 1.0)])
@pytest.mark.parametrize("n", [16, 31, 32, 100])
def test_a_batch_counts_for_the_same_however_large_it_is(name, size, n):
    """Batches are weighted by their images, so similarity within one has to be of one size."""
    own = MEASURES[name](similarity.gram(torch.randn(n, 500))).double()
    expected = size - n // 16 / (n - 1) if name == "mutual_knn" else size  # less what chance gives
    assert float(own @ own) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_value_that_is_not_finite_shows(name, value):
    x = torch.randn(32, 5)
    x[3, 2] = value
    gram = torch.eye(32).double()
    gram[3, 5] = gram[5, 3] = value
    for own in (similarity.gram(x), gram):
        assert not MEASURES[name](own).isfinite().all()


@pytest.mark.parametrize("name", MEASURES)
def test_rotation_scale_offset_and_order_of_images_change_nothing(name):
    (x,), (y,) = related(48, 1, features=40)
    rotation = torch.linalg.qr(torch.randn(40, 40)).Q
    order = torch.randperm(48)
    first = similar(name, [x], [y])
    assert similar(name, [3 * x @ rotation + 5], [y]) == pytest.approx(first, abs=2e-3)
    assert similar(name, [x[order]], [y[order]]) == pytest.approx(first, abs=1e-5)


def test_a_few_shared_outliers_make_up_cka_and_neither_ranks_nor_neighbours():
    xs, ys = ([torch.randn(64, 300) for _ in range(8)] for _ in range(2))
    for x, y in zip(xs, ys, strict=True):
        x[:3] += 40 * (shared := torch.randn(300))
        y[:3] += 40 * shared
    assert similar("cka", xs, ys) > 0.9
    assert abs(similar("rank_cka", xs, ys)) < 0.3
    assert abs(similar("mutual_knn", xs, ys)) < 0.2


def test_common_norms_of_images_are_no_similarity():
    norms = [torch.rand(48, 1) * 4 + 0.2 for _ in range(30)]
    xs, ys = ([norm * torch.randn(48, 300) for norm in norms] for _ in range(2))
    for name in MEASURES:
        assert abs(similar(name, xs, ys)) < 0.06


@pytest.mark.parametrize("name", MEASURES)
def test_a_constant_layer_gives_zeros(name):
    assert not MEASURES[name](similarity.gram(torch.ones(32, 5))).any()


def test_given_is_the_partial_correlation():
    """Of scalars it is the textbook formula; what is among the others is gone; a constant other takes nothing away."""
    a, b, z = torch.randn(3, 1000, dtype=torch.float64)
    a, b = a + z, b + 2 * z
    vectors = torch.stack([a, b, z, torch.zeros_like(z)])
    products = vectors @ vectors.T
    left = measures.given(products, [2])
    projected = [x - (x @ z) / (z @ z) * z for x in (a, b)]
    expected = float(projected[0] @ projected[1])
    assert float(left[0, 1]) == pytest.approx(expected, rel=1e-9)
    assert torch.allclose(measures.given(products, [2, 3])[:2, :2], left[:2, :2])
    assert torch.allclose(measures.given(products, [3]), products[:3, :3])


def test_layers_that_share_pixels_alone_are_unlike_given_pixels():
    batches = []
    for _ in range(60):
        pixels = torch.randn(48, 200)
        x, y = (pixels + 0.3 * torch.randn(48, 200) for _ in range(2))
        vectors = torch.stack([similarity.centred_gram(own) for own in (pixels, x, y)])
        batches.append(similarity.hsic(vectors))
    hsic = sum(batches)
    assert float(similarity.cka(hsic)[1, 2]) > 0.7
    assert abs(float(similarity.cka(measures.given(hsic, [0]))[0, 1])) < 0.1


def test_too_few_images_for_a_neighbour_are_refused():
    with pytest.raises(Refusal, match="need at least 16 images in a batch, got 15"):
        measures.neighbours(torch.eye(15).double())


@pytest.mark.parametrize("unit", [1e-30, 1e-8, 1e12])
def test_what_is_taken_away_does_not_depend_on_its_units_and_leaves_nothing_of_itself(unit):
    vectors = torch.randn(4, 200).double()
    vectors[3] = vectors[0] + vectors[1]  # all of it is in the others
    scaled = vectors * torch.tensor([unit, 1.0, 1.0, 1.0]).double()[:, None]
    left, small = (measures.given(own @ own.T, [0, 1]) for own in (vectors, scaled))
    torch.testing.assert_close(left, small)
    assert left[1].abs().max() == 0
    assert left[0, 0] > 0
