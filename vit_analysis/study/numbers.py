"""Small functions from tables to one number each, by which claims of the paper and of the course notes are decided.

V is the first Vision Transformer, R the first CNN. Heat maps are compared on a grid of 24 x 24 depths, so that a model with
more layers does not count for more. `claims` says what each number stands for.
"""

import re
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
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


def stage_contrast_of(matrix: Matrix, stages: np.ndarray) -> float:
    """Mean similarity of pairs of layers inside a stage, less that of pairs as far apart across a boundary of stages.

    Layers that are nearer resemble each other more whether or not there are stages, so pairs are compared at equal lag: of
    every lag that both kinds have, weighted by the number of pairs of the rarer kind.
    """
    inside, across, weights = [], [], []
    for lag in range(1, len(stages)):
        values = matrix.values.diagonal(lag)
        same = (stages[:-lag] == stages[lag:]) & ~np.isnan(values)
        other = (stages[:-lag] != stages[lag:]) & ~np.isnan(values)
        if same.any() and other.any():
            inside.append(values[same].mean())
            across.append(values[other].mean())
            weights.append(min(same.sum(), other.sum()))
    if not weights:
        raise Refusal("needs several layers in a stage (--layers paper)")
    return float(np.average(np.subtract(inside, across), weights=weights))


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


def lower_line(matrix: Matrix, depths: slice) -> float:
    """Measure how much more R at depth r is like V at depth r / 2 than like V at depth r, on average over some depths r.

    Along these two lines, rather than at the most similar layer: which layer is most similar changes in steps.
    """
    values, places = resampled(matrix), np.arange(GRID)
    half = (values[places // 2, places] + values[(places + 1) // 2, places]) / 2
    return float((half - values.diagonal())[depths].mean())


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


def halfway(e: Evidence, statistic: Callable[[Matrix], float]) -> float:
    """The mean of V and R in a number of a heat map, less the number of V without global attention.

    Above 0, confining attention takes away at least half of what V has more than R.
    """
    vit, cnn, local = (statistic(itself(e, part)) for part in ("vit", "cnn", "local"))
    return (vit + cnn) / 2 - local


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
    vit, cnn = e.study.parts.twins()
    untrained = uniformity(e.cka(vit, vit)) - uniformity(e.cka(cnn, cnn))
    return uniform(e) - untrained


def stage_contrast(e: Evidence) -> float:
    """F1c: how much more R divides into its stages than V into quarters of its depth."""
    vit, cnn = itself(e, "vit"), itself(e, "cnn")
    return stage_contrast_of(cnn, stages(cnn)) - stage_contrast_of(vit, quarters(vit))


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


def little_data_below(e: Evidence) -> float:
    """F12a: how much more alike the lowest third of blocks is than the highest after less data, beyond the ceiling.

    The ceiling is the same difference for a model trained on all data from another seed: similarity falls with depth without
    any change of data.
    """
    fall = third_down(blocks_alike(e, e.one("less_data")))
    return fall - third_down(blocks_alike(e, e.one("other_seed")))


def monotone(e: Evidence) -> Float64[np.ndarray, " step"]:
    """F12c: the gains in similarity of the highest third from one amount of data to the next."""
    return np.diff([third_top(blocks_alike(e, name)) for name in e.all("less_data", 2)])


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
    chosen = of_blocks(e, model, blocks)
    return (chosen["distance_px"] / chosen["uniform_px"]).to_numpy()


def of_blocks(e: Evidence, model: str, blocks: slice) -> pd.DataFrame:
    """The rows of attention distances of some blocks of a model, one row per head."""
    rows = e.rows("attention_distance", model=model)
    return rows[rows["block"].isin(rows["block"].unique()[blocks])]


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


def first_radius_less(e: Evidence, step: int) -> float:
    """F6a, F6i: radius of the field of the first attention less that of a step of R (0 is its first convolution, 3 unit 3)."""
    name = f"unit {step}" if step else "initial conv"
    rows = e.rows("receptive_field", model=e.one("cnn"), branch="residual")
    rows = rows[rows["step"] == name]
    if rows.empty:
        raise Refusal(f"needs a CNN with the step {name!r}")
    return field(e, "vit", "radius_px", 0.0) - float(rows["radius_px"].iloc[0])


def midway(e: Evidence, part: str) -> float:
    """Radius of the field at depth 0.5 divided by that at depth 1."""
    return field(e, part, "radius_px", 0.5) / field(e, part, "radius_px", 1.0)


def centred_by_skips(e: Evidence) -> float:
    """C4: how much more the skip connections of V centre the field on the own patch than those of R do."""
    return centre_gained(e, "vit") - centre_gained(e, "cnn")


def centre_gained(e: Evidence, part: str) -> float:
    """Share of the field in the own patch after the addition less that before it, mean over late attentions or units."""
    rows = e.rows("receptive_field", model=e.one(part))
    late = rows[(rows["depth"] >= 0.5) & ~rows["step"].str.startswith("MLP")]
    share = late.pivot(index="step", columns="branch", values="centre_share")
    if not {"residual", "long"} <= set(share):
        raise Refusal(f"needs blocks whose skip connections are known: {e.one(part)} has none")
    return float((share["residual"] - share["long"]).mean())


# Skip connections (figures 7, 8, E.1).


def log_ratios(e: Evidence, model: str, token: str) -> Float64[np.ndarray, " block"]:
    """Log of (norm of skip / norm of long branch) of every block, the mean over its sublayers."""
    rows = e.rows("skip", model=model, token=token)
    logs = np.log(rows["norm_ratio"].where(np.isfinite(rows["norm_ratio"]) & (rows["norm_ratio"] > 0)))
    return logs.groupby(rows["block"], sort=False).mean().to_numpy()


def transition(e: Evidence) -> Float64[np.ndarray, "2"]:
    """F7a: lead of the class token's log ratio in the first half of blocks, and minus that in the second."""
    vit = e.one("vit")
    relative = log_ratios(e, vit, "cls") - log_ratios(e, vit, "spatial")
    half = len(relative) // 2
    return np.array([relative[:half].mean(), -relative[half:].mean()])


def skips_carry(e: Evidence) -> float:
    """F7b: log of how much larger the ratio of skip to long branch is in V than in R."""
    vit, cnn = (log_ratios(e, e.one(part), "spatial") for part in ("vit", "cnn"))
    if np.isnan(vit).all() or np.isnan(cnn).all():
        return float("nan")  # a branch that adds nothing, as in an untrained ResNet, has no finite ratio
    return float(np.nanmedian(vit) - np.nanmedian(cnn))


def updates_by_mlp(e: Evidence, token: str) -> float:
    """E1, E1s: share of what later blocks write into a token that their MLPs write, mean over the second half of blocks."""
    rows = e.rows("skip", model=e.one("vit"), token=token)
    norms = rows.pivot(index="block", columns="sublayer", values="long_norm").loc[rows["block"].unique()]
    share = (norms["mlp"] / norms.sum(axis=1)).to_numpy()
    return float(share[len(share) // 2 :].mean())


def middle_trained(e: Evidence, column: str) -> float:
    """F8a, F8b: a column of the table of models trained without skip connections, of the one that lacks the middle block's."""
    lacking, rows = e.all("no_skip"), e.rows("lesions_trained")
    blocks = rows["block"].str.extract(r"(\d+)$")[0].astype(int).to_numpy()
    each = np.unique(blocks)
    middle = (blocks == each[(len(each) - 1) // 2]) & rows["model"].isin(lacking).to_numpy()
    if not middle.any():
        raise Refusal("needs a model trained without the skip connections of the middle block (--no-skip)")
    return float(rows[column].to_numpy()[middle][0])


def lesions(e: Evidence) -> float:
    """L8: mean accuracy lost when a block's skip connections are removed from the trained V, less that of R, in points."""
    vit, cnn = (e.rows("lesions", model=e.one(part))["drop"].mean() for part in ("vit", "cnn"))
    return 100 * float(vit - cnn)


# Localization (figures 9, 10).


def located(e: Evidence, part: str, statistic: str) -> float:
    """One of `localization.STATISTICS`, of the last block."""
    maps, size = localization.grid_maps(e.rows("localization", model=e.one(part)))
    return localization.statistics(maps, *size)[localization.STATISTICS.index(statistic)].item()


def own_less_others(e: Evidence, *parts: str) -> Float64[np.ndarray, " part"]:
    """CKA of tokens with their own patch less the mean of all others, of the last block of each part, on a common grid.

    The grid is the coarsest of theirs: what a token stands out by depends on how many others there are. Over interior tokens.
    """
    found = [localization.grid_maps(e.rows("localization", model=e.one(part))) for part in parts]
    rows, columns = (min(size[axis] for _, size in found) for axis in (0, 1))
    _, edge = localization.neighbours(rows, columns)
    stand = []
    for maps, size in found:
        coarse = localization.coarser(maps, size, (rows, columns))
        own = torch.eye(len(coarse), dtype=torch.bool)
        out = coarse.diagonal() - torch.where(own, torch.nan, coarse).nanmean(1)
        stand.append(float((out if edge.all() else out[~edge]).nanmean()))
    return np.array(stand)


def place_without_downsampling(e: Evidence) -> float:
    """By how much R without downsampling keeps the place better than halfway from R to V."""
    vit, cnn, flat = own_less_others(e, "vit", "cnn", "flat")
    return float(flat - (vit + cnn) / 2)


# Probes and the soft nearest neighbour loss (figures 11, 13, and the notes).


def probed(
    e: Evidence, table: str, model: str, tokens: str = "native", target: str | None = None
) -> pd.Series:
    """Accuracy of probes by depth, in percent, mean over draws, for a target, by default the first.

    ``native`` tokens are what the model's own head reads.
    """
    asked = {"model": model, "target": e.first(table, "target", model=model) if target is None else target}
    read = e.study.tables[table].attrs["native"][model] if tokens == "native" else tokens
    try:
        own = e.rows(table, **asked) if tokens == "each" else e.rows(table, **asked, tokens=read)
    except Refusal as error:
        raise Refusal(f"needs probes of {read} tokens of {model}") from error
    own = own[own["tokens"].str.isdigit()] if tokens == "each" else own
    if own.empty:
        raise Refusal(f"needs probes of {read} tokens of {model}")
    return 100 * own.groupby("depth")["accuracy"].mean()


def at(series: pd.Series, depth: float) -> float:
    """The value of a series at a depth, linearly interpolated."""
    return float(np.interp(depth, series.index.to_numpy(dtype=float), series.to_numpy()))


def between(series: pd.Series, low: float, high: float) -> pd.Series:
    """The values of a series at depths from ``low`` to ``high``."""
    return series[(series.index >= low) & (series.index <= high)]


def position_read(e: Evidence) -> float:
    """F9p: how much better a probe of the last block of V tells where things are than one of R, in points."""
    if "position" not in set(e.rows("probe", model=e.one("vit"))["target"]):
        raise Refusal("needs images of which it is known where things are: scenes")
    vit, cnn = (probed(e, "probe", e.one(part), target="position").iloc[-1] for part in ("vit", "cnn"))
    return float(vit - cnn)


def tokens_apart(e: Evidence) -> float:
    """F11a: accuracy of single tokens of the last block, average pooling less class token, in points."""
    gap, cls = (probed(e, "probe_tokens", e.one(part), "each").iloc[-1] for part in ("gap", "vit"))
    return float(gap - cls)


def heads_alike(e: Evidence) -> float:
    """F11b: difference in accuracy of class token and average pooling, each model read as its own head reads it, in points."""
    own = [probed(e, "probe_tokens", e.one(part)).iloc[-1] for part in ("vit", "gap")]
    return float(own[0] - own[1])


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
    """F13a: the mean gain by more data at depths 0.4 to 0.7, in points."""
    gain = probed(e, "probe", e.one("vit")) - probed(e, "probe", e.one("less_data"))
    return float(between(gain, 0.4, 0.7).mean())


def better_in_the_middle(e: Evidence) -> float:
    """F13b: accuracy at depths 0.4 to 0.8, V less R, in points."""
    vit, cnn = (between(probed(e, "probe", e.one(part)), 0.4, 0.8).mean() for part in ("vit", "cnn"))
    return float(vit - cnn)


def entangled(e: Evidence, part: str) -> pd.DataFrame:
    """The soft nearest neighbour loss of every block or unit of a part, and the loss of features that tell no class."""
    return e.rows("soft_nearest_neighbor", model=e.one(part))


def last_falls(e: Evidence) -> tuple[float, float]:
    """S1: share of the fall of R's loss from chance that its last unit takes, and an even share."""
    rows = entangled(e, "cnn")
    loss, chance = rows["loss"].to_numpy(), rows["chance"].to_numpy()
    if len(loss) < 3:
        raise Refusal("needs a CNN with three units or more")
    if loss[-1] >= chance[-1]:
        raise Refusal("needs a CNN whose loss falls below chance")
    return float((loss[-2] - loss[-1]) / (chance[-1] - loss[-1])), 1 / (len(loss) - 1)


def falls_more(e: Evidence) -> float:
    """S2: how much the loss falls in the last block, as a share of chance, R less V."""
    cnn, vit = (
        float((rows["loss"].iloc[-2] - rows["loss"].iloc[-1]) / rows["chance"].iloc[-1])
        for rows in (entangled(e, part) for part in ("cnn", "vit"))
    )
    return cnn - vit


def together(e: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """S3: over the units of R after the first, the gain in accuracy and the fall of the loss."""
    accuracy = probed(e, "probe", e.one("cnn")).to_numpy()
    loss = entangled(e, "cnn")["loss"].to_numpy()
    if len(accuracy) != len(loss):
        raise Refusal("needs probes and losses of the same layers")
    return np.diff(accuracy), -np.diff(loss)


# Beyond the paper: tokens (Darcet et al. 2024) and frequencies (Park and Kim 2022).


def massive_appear(e: Evidence) -> float:
    """Share of tokens of V that are massive, in layers beyond a third of the depth less in those before, percent."""
    rows = e.rows("tokens", model=e.one("vit"))
    if not (rows["massive_tokens"] > 0).any():
        raise Refusal("needs a Vision Transformer with massive tokens; this one has none in any layer")
    late = rows["depth"] > 1 / 3
    return float(100 * (rows.loc[late, "massive_tokens"].mean() - rows.loc[~late, "massive_tokens"].mean()))


def finer(e: Evidence, part: str) -> float:
    """Log amplitude of the finest pattern in the last third of the depth less that in the first, of a part's first model."""
    rows = e.rows("frequency", model=e.one(part))
    finest = rows[rows["frequency"] == 1]
    first, last = (
        finest.loc[own, "log_amplitude"].mean()
        for own in (finest["depth"] <= 1 / 3, finest["depth"] >= 2 / 3)
    )
    return float(last - first)
