import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.preprocessing import StandardScaler

from vit_analysis.tensors import ridge

ANSWERS = 4


def task(
    features: int, images: int = 60, layers: int = 1, tokens: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features that tell four classes apart, but not too well, on scales from 1e-3 to 1e3 and with an offset."""
    labels = torch.arange(images) % ANSWERS
    means = torch.randn(ANSWERS, tokens, features)
    x = 0.4 * means[labels] + torch.randn(layers, images, tokens, features)
    return x * torch.logspace(-3, 3, features) + 10, labels


@pytest.mark.parametrize("features", [pytest.param(7, id="primal"), pytest.param(300, id="dual")])
def test_weights_are_those_of_sklearn_for_every_penalty(features):
    x, y = torch.randn(3, 40, features).double(), torch.randn(40, 5).double()
    x, y = x - x.mean(1, keepdim=True), y - y.mean(0)
    solved = ridge.solve(x, y, (0.01, 1.0, 100.0))
    assert solved.shape == (3, 3, features, 5)
    for own, weights in zip(x, solved, strict=True):
        for penalty, weight in zip((0.01, 1.0, 100.0), weights, strict=True):
            oracle = Ridge(alpha=penalty).fit(own.numpy(), y.numpy())
            np.testing.assert_allclose(weight.T, oracle.coef_, atol=1e-8)
            np.testing.assert_allclose(oracle.intercept_, 0, atol=1e-9)


@pytest.mark.parametrize("features", [pytest.param(8, id="primal"), pytest.param(120, id="dual")])
def test_answers_are_those_of_sklearn_with_the_penalty_that_is_best_on_held_out_images(features):
    x, labels = task(features, images=120, layers=2, tokens=2)
    draws = torch.arange(120).view(3, 40)
    weight, bias = ridge.fit(x, draws, labels[:40], ANSWERS)
    assert weight.shape == (2, 2, 2, features, ANSWERS)
    unseen, _ = task(features, images=50)
    for layer, token, draw in np.ndindex(2, 2, 2):
        examples, held_out = x[layer, draws[draw], token].numpy(), x[layer, draws[-1], token].numpy()
        scaler = StandardScaler().fit(examples.astype(np.float64))
        fitted = [
            RidgeClassifier(alpha=penalty).fit(scaler.transform(examples), labels[:40])
            for penalty in ridge.PENALTIES
        ]
        right = [own.score(scaler.transform(held_out), labels[:40]) for own in fitted]
        best = fitted[max(range(len(right)), key=lambda place: (right[place], place))]
        logits = unseen[0, :, 0] @ weight[layer, token, draw] + bias[layer, token, draw]
        decision = best.decision_function(scaler.transform(unseen[0, :, 0].numpy()))
        np.testing.assert_allclose(logits, decision, atol=2e-3)


def test_scale_and_offset_of_features_do_not_matter():
    x, labels = task(30, images=120)
    draws = torch.arange(120).view(3, 40)
    factor, offset = torch.logspace(3, -3, 30), torch.randn(30)
    weight, bias = ridge.fit(x, draws, labels[:40], ANSWERS)
    other, other_bias = ridge.fit(x * factor + offset, draws, labels[:40], ANSWERS)
    logits = torch.einsum("lntf,ltdfc->lntdc", x.double(), weight.double()) + bias
    moved = torch.einsum("lntf,ltdfc->lntdc", (x * factor + offset).double(), other.double()) + other_bias
    torch.testing.assert_close(logits, moved, atol=1e-3, rtol=0)


def test_small_pieces_give_what_one_piece_gives(monkeypatch):
    x, labels = task(20, images=120, layers=3, tokens=2)
    draws = torch.arange(120).view(3, 40)
    whole = ridge.fit(x, draws, labels[:40], ANSWERS)
    monkeypatch.setattr(ridge, "PIECE", 1)
    for one, other in zip(whole, ridge.fit(x, draws, labels[:40], ANSWERS), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("value", [0.0, 1e-30, -0.3, 1000.1])  # 0 as of a unit that is never active
def test_a_constant_feature_has_no_weight(value):
    x, labels = task(10, images=80)
    x[..., 3] = value
    weight, bias = ridge.fit(x, torch.arange(80).view(2, 40), labels[:40], ANSWERS)
    assert weight[:, :, :, 3].abs().max() == 0
    assert weight.isfinite().all()
    assert bias.isfinite().all()


def test_penalties_are_every_second_power_of_two_of_the_few_shot_grid():
    assert tuple(2.0**power for power in range(-10, 20, 2)) == ridge.PENALTIES


@pytest.mark.parametrize(
    ("features", "answers", "numbers"),
    [(8, 4, 8 * 8), (90, 4, 20 * 20), (90, 20, 90 * 20), (6, 20, 6 * 20)],
    ids=["features by features", "images by images", "weights", "weights of few features"],
)
@pytest.mark.parametrize("fit", [1, 2, 5, 100])
def test_as_many_probes_are_solved_at_once_as_there_is_room_for_the_largest_of_what_they_need(
    features, answers, numbers, fit, monkeypatch
):
    """Matrices, or weights, of every penalty; 1 probe where there is no room for one."""
    x, labels = torch.randn(2, 60, 2, features), torch.arange(20) % answers
    at_once, best = [], ridge.best
    monkeypatch.setattr(ridge, "best", lambda own, *rest: at_once.append(len(own)) or best(own, *rest))
    for room in (0, 15 * numbers - 1):
        at_once.clear()
        monkeypatch.setattr(ridge, "PIECE", fit * 15 * numbers + room)
        ridge.fit(x, torch.arange(60).view(3, 20), labels, answers)
        assert sum(at_once) == 2 * 2 * 2
        assert at_once[0] == min(8, fit)
    monkeypatch.setattr(ridge, "PIECE", 15 * numbers - 1)
    at_once.clear()
    ridge.fit(x, torch.arange(60).view(3, 20), labels, answers)
    assert at_once == [1] * 8


def test_of_equally_good_penalties_the_strongest_is_taken():
    labels = torch.arange(40) % 2
    x = (labels * 2.0 - 1)[None, :, None, None] + 0.01 * torch.randn(1, 40, 1, 6)  # every penalty is right
    weight, _ = ridge.fit(x, torch.arange(40).view(2, 20), labels[:20], 2)
    examples = (x[0, :20, 0] - x[0, :20, 0].mean(0)) / x[0, :20, 0].std(0, correction=0)
    strongest = Ridge(alpha=ridge.PENALTIES[-1]).fit(examples, 2 * torch.eye(2)[labels[:20]] - 1)
    expected = strongest.coef_.T / x[0, :20, 0].std(0, correction=0)[:, None].numpy()
    np.testing.assert_allclose(weight[0, 0, 0], expected, rtol=1e-4)
