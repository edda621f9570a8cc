"""Linear classifiers in closed form, thousands at once: ridge regression onto targets -1 and +1.

For features X (image feature) and targets Y (image answer), both centred, and a penalty on the squared norm of the weights,

    W = (X'X + penalty I)^-1 X'Y = X'(XX' + penalty I)^-1 Y,

whichever matrix is the smaller. Features are standardised with the mean and deviation of the examples, so that a penalty means
the same for any feature; the bias is not penalised.
"""

from collections.abc import Sequence

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor
from torch.nn import functional

# The range of the few-shot grids of the Vision Transformer's authors, every second power.
PENALTIES = tuple(4.0**power for power in range(-5, 10))
# A feature whose deviation is below this share of its mean, about float32's resolution, counts as constant.
CONSTANT = 2.0**-20
# Numbers in one solve, 64 MB in float64 and a few times that for what comes in between: thousands of classifiers are solved
# in pieces that fit into any memory.
PIECE = 2**23


def solve(
    x: Float64[Tensor, "probe image feature"], y: Float64[Tensor, "image answer"], penalties: Sequence[float]
) -> Float64[Tensor, "probe penalty feature answer"]:
    """Weights for centred features and targets: all probes and penalties are one batched solve."""
    wide = x.shape[2] >= x.shape[1]
    gram = x @ x.mT if wide else x.mT @ x
    right = y.expand(len(x), -1, -1) if wide else x.mT @ y
    eye = torch.eye(gram.shape[1], dtype=x.dtype, device=x.device)
    added = torch.tensor(penalties, dtype=x.dtype, device=x.device)[:, None, None] * eye
    solved = torch.cholesky_solve(right[:, None], torch.linalg.cholesky(gram[:, None] + added))
    return _each_penalty(x.mT, solved) if wide else solved


def fit(
    features: Float[Tensor, "layer image token feature"],
    draws: Int[Tensor, "draw example"],
    labels: Int[Tensor, " example"],
    answers: int,
) -> tuple[
    Float32[Tensor, "layer token learned feature answer"], Float32[Tensor, "layer token learned answer"]
]:
    """Weights and biases of a classifier per layer, token and draw; each has the penalty most accurate on the last draw.

    Args:
        features: features of all images; they are standardised here.
        draws: which images are the examples of each draw; the last one is held out, so there is no classifier of it.
        labels: labels of the examples, the same for every draw.
        answers: how many different labels there are.
    """
    (layer, _, token, width), learned = features.shape, len(draws) - 1
    where = torch.cartesian_prod(torch.arange(layer), torch.arange(token), torch.arange(learned))
    order = min(width, draws.shape[1])
    size = max(1, PIECE // (len(PENALTIES) * max(order * order, width * answers)))
    pieces = []
    for one, at, draw in (piece.T for piece in where.to(features.device).split(size)):
        examples, held_out = (
            features[one[:, None], images, at[:, None]].double() for images in (draws[draw], draws[-1:])
        )
        pieces.append(best(examples, held_out, labels, answers))
    weight, bias = (torch.cat(part).float() for part in zip(*pieces, strict=True))
    shape = {"layer": layer, "token": token, "draw": learned}
    return (
        rearrange(weight, "(layer token draw) feature answer -> layer token draw feature answer", **shape),
        rearrange(bias, "(layer token draw) answer -> layer token draw answer", **shape),
    )


def best(
    examples: Float64[Tensor, "probe example feature"],
    held_out: Float64[Tensor, "#probe example feature"],
    labels: Int[Tensor, " example"],
    answers: int,
) -> tuple[Float64[Tensor, "probe feature answer"], Float64[Tensor, "probe answer"]]:
    """Weights and biases, for features as they are, with the penalty most accurate on held-out images of the same labels.

    Of equally accurate penalties the strongest is taken. A feature that is constant over the examples gets the weight 0.
    """
    y = 2 * functional.one_hot(labels, answers).double() - 1
    deviation, mean = torch.std_mean(examples, dim=1, keepdim=True, correction=0)
    scale = torch.where(deviation > CONSTANT * mean.abs(), 1 / deviation, 0.0)
    weights = solve((examples - mean) * scale, y - y.mean(0), PENALTIES)
    logits = _each_penalty((held_out - mean) * scale, weights) + y.mean(0)
    right = reduce((logits.argmax(-1) == labels).double(), "probe penalty example -> probe penalty", "mean")
    chosen = len(PENALTIES) - 1 - right.flip(1).argmax(1)
    weight = scale.mT * weights[torch.arange(len(chosen), device=chosen.device), chosen]
    return weight, y.mean(0) - (mean @ weight)[:, 0]


def _each_penalty(
    x: Float64[Tensor, "probe row inner"], by_penalty: Float64[Tensor, "probe penalty inner answer"]
) -> Float64[Tensor, "probe penalty row answer"]:
    """Compute ``x @ by_penalty`` with the penalties side by side, as broadcasting would copy `x` for each of them."""
    penalties = by_penalty.shape[1]
    product = x @ rearrange(by_penalty, "probe penalty inner answer -> probe inner (penalty answer)")
    return rearrange(product, "probe row (penalty answer) -> probe penalty row answer", penalty=penalties)
