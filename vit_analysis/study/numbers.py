"""Small functions from tables to one number each, by which claims of the paper and of the course notes are decided.

V is the first Vision Transformer, R the first CNN. Heat maps are compared on a grid of 24 x 24 depths, so that a model with
more layers does not count for more. `claims` says what each number stands for.
"""

import re
from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Float64
from scipy.optimize import isotonic_regression
from scipy.stats import spearmanr

from vit_analysis import localization
from vit_analysis.spelling import Refusal
from vit_analysis.study.evidence import Evidence, Matrix

GRID = 24
STAGE = re.compile(r"(?:layer|stages?\.|layers\.)(\d+)")
BLOCK = re.compile(r"blocks\.(\d+)(?:\.|$|:)")


# Similarity of layers (figures 1, 2, 8, 12, B.1, G.1, H).


def resampled(matrix: Matrix) -> Float64[np.ndarray, "24 24"]:
    """The matrix on a common grid of depths, linearly interpolated."""
    places = np.linspace(0, 1, GRID)

    def weights(depth: np.ndarray) -> np.ndarray:
        return np.stack([np.interp(places, depth, own) for own in np.eye(len(depth))], axis=1)

    return weights(matrix.depth) @ matrix.values @ weights(matrix.other_depth).T


def uniformity(matrix: Matrix) -> float:
    """Mean similarity of different depths."""
    values = resampled(matrix)
    return float(values[~np.eye(GRID, dtype=bool)].mean())


def far(matrix: Matrix) -> float:
    """Mean similarity of the lowest third of depths with the highest."""
    third = GRID // 3
    return float(resampled(matrix)[:third, -third:].mean())


def contrast(matrix: Matrix, stages: np.ndarray) -> float:
    """Mean similarity of different layers of the same stage less that of layers of different stages."""
    same, itself = stages[:, None] == stages, np.eye(len(stages), dtype=bool)
    return float(np.nanmean(matrix.values[same & ~itself]) - np.nanmean(matrix.values[~same]))


def stages(matrix: Matrix) -> np.ndarray:
    """The stage of every layer, by its name; what comes before the first is a stage of its own."""
    found = [STAGE.match(layer) for layer in matrix.layers]
    numbers = np.array([int(match[1]) if match else -1 for match in found])
    if len(set(numbers)) < 3:
        raise Refusal("needs a CNN with stages")
    return numbers


def quarters(matrix: Matrix) -> np.ndarray:
    """The quarter of the depth that every layer lies in."""
    return np.minimum((4 * matrix.depth).astype(int), 3)


def periodicity(matrix: Matrix) -> float:
    """Autocorrelation of rows at the lag of one block less the mean at shorter lags from 2 on, over the layers of blocks.

    Rows change with depth whether or not there is a grid, so their running mean over one block is taken away first.
    """
    numbers = [int(match[1]) if (match := BLOCK.match(layer)) else -1 for layer in matrix.layers]
    period = numbers.count(1)
    if period < 4:
        raise Refusal("needs several layers of each block (--layers paper)")
    inside = np.array(numbers) >= 0
    rows = matrix.values[inside][:, inside]
    windows = np.lib.stride_tricks.sliding_window_view(rows, period, axis=1)
    rest = rows[:, period // 2 : period // 2 + windows.shape[1]] - windows.mean(axis=2)
    power = np.square(rest).mean(axis=1)
    lags = [(rest[:, :-lag] * rest[:, lag:]).mean(axis=1) / power for lag in range(2, period + 1)]
    return float(np.nanmean(lags[-1] - np.mean(lags[:-1], axis=0)))


def matched(matrix: Matrix, depth: float) -> float:
    """The depth of the rows' model that is most like a depth of the columns' model, made to rise with it (isotonic fit)."""
    best = matrix.depth[np.nan_to_num(matrix.values, nan=-np.inf).argmax(axis=0)]
    return float(np.interp(depth, matrix.other_depth, isotonic_regression(best).x))


def nearest(matrix: Matrix) -> Float64[np.ndarray, " row"]:
    """The largest similarity in every row."""
    return np.nanmax(matrix.values, axis=1)


def layers_until(matrix: Matrix, middle: float = 0.5) -> int:
    """The number of the rows' layers until one is nearly (90 %) as like the other's middle layer as any is."""
    column = matrix.values[:, np.abs(matrix.other_depth - middle).argmin()]
    return int((column >= 0.9 * np.nanmax(column)).argmax()) + 1


def blocks_alike(e: Evidence, model: str) -> Float64[np.ndarray, " block"]:
    """CKA of every block of V with the same block of a model of the same depth."""
    values = e.cka(e.one("vit"), model, "cka_controls", control="all").values
    if values.shape[0] != values.shape[1]:
        raise Refusal(
            f"needs a model with as many blocks as V: {model} has {values.shape[1]}, not {len(values)}"
        )
    return values.diagonal()


def third_down(values: np.ndarray) -> float:
    """Mean of the lowest third of blocks less that of the highest."""
    third = max(1, len(values) // 3)
    return float(values[:third].mean() - values[-third:].mean())


def itself(e: Evidence, part: str) -> Matrix:
    """CKA of the layers of a part's first model with each other."""
    return e.cka(e.one(part), e.one(part))


def crossed(e: Evidence) -> Matrix:
    """CKA of the layers of V (rows) with those of R (columns)."""
    return e.cka(e.one("vit"), e.one("cnn"))


def uniform(e: Evidence) -> float:
    """F1a: how much more uniform V is than R."""
    return uniformity(itself(e, "vit")) - uniformity(itself(e, "cnn"))


def trained_uniform(e: Evidence) -> float:
    """F1x: how much more uniform V is than R, less the same of their untrained twins."""
    e.one("vit"), e.one("cnn")
    vit, cnn = e.parts.twins()
    untrained = uniformity(e.cka(vit, vit)) - uniformity(e.cka(cnn, cnn))
    return uniform(e) - untrained


def stage_contrast(e: Evidence) -> float:
    """F1c: how much more R divides into its stages than V into quarters of its depth."""
    vit, cnn = itself(e, "vit"), itself(e, "cnn")
    return contrast(cnn, stages(cnn)) - contrast(vit, quarters(vit))


def top_unlike(e: Evidence) -> float:
    """F2c: how much less the last third of V is like any layer of R than the rest is."""
    matrix = crossed(e)
    top = matrix.depth >= 2 / 3
    return float(nearest(matrix)[~top].mean() - nearest(matrix)[top].mean())


def layers_needed(e: Evidence) -> float:
    """SEED1: layers of R that it takes to resemble the middle of V, less layers of V for the middle of R."""
    matrix = crossed(e)
    turned = Matrix(matrix.values.T, [], matrix.other_depth, matrix.depth)
    return float(layers_until(turned) - layers_until(matrix))


def monotone(e: Evidence) -> float:
    """F12c: the smallest gain in similarity of the highest third from one amount of data to the next."""
    tops = [third_top(blocks_alike(e, name)) for name in e.all("less_data", 2)]
    return float(np.diff(tops).min())


def third_top(values: np.ndarray) -> float:
    """Mean of the highest third of blocks."""
    return float(values[-max(1, len(values) // 3) :].mean())


def two_sizes(e: Evidence) -> float:
    """F12b: always a refusal, as no part stands for models of two sizes trained on the same share of data."""
    e.all("vit", 2)
    raise Refusal("needs two sizes of Vision Transformer, each also trained on the same share of its data")


def tuned(e: Evidence) -> float:
    """G1: how much less fine-tuning changes the first blocks than the second half."""
    alike = blocks_alike(e, e.one("tuned"))
    return float(alike[: max(1, 5 * len(alike) // 12)].mean() - alike[len(alike) // 2 :].mean())


def mixer(e: Evidence) -> float:
    """H1: how much more like V than like R a Mixer is."""
    to = [float(nearest(e.cka(e.one("mixer"), e.one(part))).mean()) for part in ("vit", "cnn")]
    return to[0] - to[1]


# Attention (figures 3, 4, 5).


def reach(e: Evidence, model: str, blocks: slice) -> Float64[np.ndarray, " head"]:
    """Mean distance of every head of some blocks, as a multiple of that of uniform attention."""
    rows = e.rows("attention_distance", model=model)
    chosen = rows[rows["block"].isin(rows["block"].unique()[blocks])]
    return (chosen["distance_px"] / chosen["uniform_px"]).to_numpy()


LOWEST, HIGHEST = slice(0, 2), slice(-2, None)


def fewer_local(e: Evidence) -> float:
    """F4a: how much farther the four most local heads of the two lowest blocks look after less data."""
    few, many = (np.sort(reach(e, name, LOWEST))[:4].mean() for name in (e.one("less_data"), e.one("vit")))
    return float(few - many)


def subsets(e: Evidence) -> float:
    """F5: the largest rank correlation, over units of R, of similarity with distance of subsets of heads."""
    rows = e.rows("head_subsets", vit=e.one("vit"), cnn=e.one("cnn"))
    count = rows["subset"].nunique()
    if count < 8:
        raise Refusal(f"needs 8 subsets of heads for a rank correlation; the first block of V has {count}")
    return max(spearmanr(own["distance_px"], own["cka"]).statistic for _, own in rows.groupby("layer"))


# Receptive fields (figures 6, C.4).


def field(e: Evidence, part: str, column: str, depth: float) -> float:
    """A column of the table of receptive fields, of the residual stream at a depth, linearly interpolated."""
    rows = e.rows("receptive_field", model=e.one(part), branch="residual")
    return float(np.interp(depth, rows["depth"], rows[column]))


def third_unit(e: Evidence) -> float:
    """F6a: radius of the field of the first attention less that of the third unit of R."""
    rows = e.rows("receptive_field", model=e.one("cnn"), branch="residual")
    if len(rows) < 4:
        raise Refusal("needs a CNN with three units or more")
    return field(e, "vit", "radius_px", 0.0) - float(rows["radius_px"].iloc[3])


def midway(e: Evidence, part: str) -> float:
    """Radius of the field at depth 0.5 divided by that at depth 1."""
    return field(e, part, "radius_px", 0.5) / field(e, part, "radius_px", 1.0)


def centred_by_skips(e: Evidence) -> float:
    """C4: share of the field in the own patch after the addition less that before it, mean over late attentions."""
    rows = e.rows("receptive_field", model=e.one("vit"))
    late = rows[(rows["depth"] >= 0.5) & ~rows["step"].str.startswith("MLP")]
    share = late.pivot(index="step", columns="branch", values="centre_share")
    return float((share["residual"] - share["long"]).mean())


# Skip connections (figures 7, 8, E.1).


def log_ratios(e: Evidence, model: str, token: str) -> Float64[np.ndarray, " block"]:
    """Log of (norm of skip / norm of long branch) of every block, the mean over its sublayers."""
    rows = e.rows("skip", model=model, token=token)
    logs = np.log(rows["norm_ratio"].where(np.isfinite(rows["norm_ratio"]) & (rows["norm_ratio"] > 0)))
    return logs.groupby(rows["block"], sort=False).mean().to_numpy()


def transition(e: Evidence) -> float:
    """F7a: lead of the class token's log ratio in the first half of blocks, or minus that in the second, if smaller."""
    vit = e.one("vit")
    relative = log_ratios(e, vit, "cls") - log_ratios(e, vit, "spatial")
    half = len(relative) // 2
    return float(min(relative[:half].mean(), -relative[half:].mean()))


def skips_carry(e: Evidence) -> float:
    """F7b: log of how much larger the ratio of skip to long branch is in V than in R."""
    vit, cnn = (log_ratios(e, e.one(part), "spatial") for part in ("vit", "cnn"))
    if np.isnan(vit).all() or np.isnan(cnn).all():
        return float("nan")  # a branch that adds nothing, as in an untrained ResNet, has no finite ratio
    return float(np.nanmedian(vit) - np.nanmedian(cnn))


def updates_by_mlp(e: Evidence) -> float:
    """E1: how much more of the class token is written by MLPs in the second half of blocks than in the first."""
    rows = e.rows("skip", model=e.one("vit"), token="cls")
    norms = rows.pivot(index="block", columns="sublayer", values="long_norm").loc[rows["block"].unique()]
    share = (norms["mlp"] / norms.sum(axis=1)).to_numpy()
    half = len(share) // 2
    return float(share[half:].mean() - share[:half].mean())


def partitioned(e: Evidence) -> float:
    """F8a: similarity across a block lost by training without its skip connections."""
    e.one("no_skip")
    return float(e.rows("lesions_trained")["across_drop"].mean())


def accuracy_lost(e: Evidence) -> float:
    """F8b: accuracy lost by training without the skip connections of the middle block, in points."""
    e.one("no_skip")
    rows = e.rows("lesions_trained")
    blocks = rows["block"].str.extract(r"(\d+)$")[0].astype(int)
    middle = (blocks - blocks.median()).abs().argmin()
    return 100 * float(rows["drop"].iloc[middle])


def lesions(e: Evidence) -> float:
    """L8: mean accuracy lost when a block's skip connections are removed from the trained V, less that of R, in points."""
    vit, cnn = (e.rows("lesions", model=e.one(part))["drop"].mean() for part in ("vit", "cnn"))
    return 100 * float(vit - cnn)


# Localization (figures 9, 10).


def located(e: Evidence, part: str, statistic: str) -> float:
    """One of `localization.STATISTICS` of the last block; hit rates are rescaled so that guessing has 0 and perfection 1."""
    maps, size = localization.grid_maps(e.rows("localization", model=e.one(part)))
    place = localization.STATISTICS.index(statistic)
    value, chance = (
        localization.statistics(maps, *size)[place].item(),
        localization.chances(*size)[place],
    )
    return (value - chance) / (1 - chance) if "hit" in statistic else value


def v_less_r(statistic: str) -> Callable[[Evidence], float]:
    """Make a function that returns one of `localization.STATISTICS` of V less that of R."""
    return lambda e: located(e, "vit", statistic) - located(e, "cnn", statistic)


# Probes and the soft nearest neighbour loss (figures 11, 13, and the notes).


def probed(e: Evidence, table: str, model: str, tokens: str = "native") -> pd.Series:
    """Accuracy of probes by depth, in percent, mean over draws, for the first target; ``native`` is what the head reads."""
    rows = e.rows(table, model=model)
    rows = rows[rows["target"] == rows["target"].iloc[0]]
    read = e.study.tables[table].attrs["native"][model] if tokens == "native" else tokens
    own = rows[rows["tokens"].str.isdigit()] if tokens == "each" else rows[rows["tokens"] == read]
    if own.empty:
        raise Refusal(f"needs probes of {read} tokens of {model}")
    return 100 * own.groupby("depth")["accuracy"].mean()


def at(series: pd.Series, depth: float) -> float:
    """The value of a series at a depth, linearly interpolated."""
    return float(np.interp(depth, series.index.to_numpy(dtype=float), series.to_numpy()))


def between(series: pd.Series, low: float, high: float) -> pd.Series:
    """The values of a series at depths from ``low`` to ``high``."""
    return series[(series.index >= low) & (series.index <= high)]


def tokens_apart(e: Evidence) -> float:
    """F11a: accuracy of single tokens of the last block, average pooling less class token, in points."""
    gap, cls = (probed(e, "probe_tokens", e.one(part), "each").iloc[-1] for part in ("gap", "vit"))
    return float(gap - cls)


def heads_alike(e: Evidence) -> float:
    """F11b: difference in accuracy of class token and average pooling, each model read as its own head reads it, in points."""
    own = [probed(e, "probe_tokens", e.one(part)).iloc[-1] for part in ("vit", "gap")]
    return abs(float(own[0] - own[1]))


def pooled_falls_behind(e: Evidence) -> float:
    """F11c: lead of the class token over pooled spatial tokens in the last block less that at depth 0.6."""
    vit = e.one("vit")
    lead = probed(e, "probe_tokens", vit, "cls") - probed(e, "probe_tokens", vit, "mean_spatial")
    return float(lead.iloc[-1]) - at(lead, 0.6)


def first_token(e: Evidence) -> float:
    """F11d: of the model with average pooling, accuracy of the mean less that of its first token."""
    mean, first = (probed(e, "probe_tokens", e.one("gap"), tokens).iloc[-1] for tokens in ("mean", "0"))
    return float(mean - first)


def data_in_the_middle(e: Evidence) -> float:
    """F13a: the largest gain by more data at depths 0.4 to 0.7, in points."""
    gain = probed(e, "probe", e.one("vit")) - probed(e, "probe", e.one("less_data"))
    return float(between(gain, 0.4, 0.7).max())


def better_in_the_middle(e: Evidence) -> float:
    """F13b: accuracy at depths 0.4 to 0.8, V less R, in points."""
    vit, cnn = (between(probed(e, "probe", e.one(part)), 0.4, 0.8).mean() for part in ("vit", "cnn"))
    return float(vit - cnn)


def _entangled(e: Evidence, part: str) -> np.ndarray:
    return e.rows("soft_nearest_neighbor", model=e.one(part))["loss"].to_numpy()


def last_falls(e: Evidence) -> float:
    """S1: loss of the last unit of R less the smallest before."""
    loss = _entangled(e, "cnn")
    return float(loss[-1] - loss[:-1].min())


def falls_more(e: Evidence) -> float:
    """S2: share of the loss that the last block takes away, R less V."""
    falls = [(loss[-2] - loss[-1]) / loss[-2] for loss in (_entangled(e, "cnn"), _entangled(e, "vit"))]
    return float(falls[0] - falls[1])


def together(e: Evidence) -> float:
    """S3: rank correlation, over units of R, of the gain in accuracy with the fall of the loss."""
    accuracy = probed(e, "probe", e.one("cnn")).to_numpy()
    loss = _entangled(e, "cnn")
    if len(accuracy) != len(loss):
        raise Refusal("needs probes and losses of the same layers")
    return float(spearmanr(np.diff(accuracy), -np.diff(loss)).statistic)
