"""The claims: what the paper and the course notes say, the number that decides it, and what that has to be. Data only.

V is the first Vision Transformer, R the first CNN, M a heat map of CKA on a grid of 24 x 24 depths without its diagonal.
Thresholds are proposals of this project unless the paper gives a number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vit_analysis.study import numbers as q
from vit_analysis.study.controls import (
    MEAN_NORMS,
    MEDIAN,
    NORMALIZED,
    OF_BLOCKS,
    OF_CKA,
    OF_PAIRED_TWINS,
    OF_PAIRS,
    RAW,
    UNTRAINED,
    Control,
)
from vit_analysis.study.estimates import (
    Estimator,
    bootstrap,
    correlation,
    jackknife,
    largest,
    over_runs,
    share,
    smallest,
)
from vit_analysis.study.evidence import Evidence
from vit_analysis.study.printed import (
    Printed,
    alike_at,
    blocks_kept,
    farthest_head,
    massive_from,
    nearest_head,
)
from vit_analysis.study.rules import Above, Below, Described, Falling, Near, Rule, Within

SIGN, SIZED = "0 is no difference", "0 is no difference; the size is proposed here"
PROPOSED, PAPER = "proposed here", "the paper's number"
OF_PIXELS = "proposed here; the paper shows heads from about 20 to 40 px, and up to 100, where uniform attention has 117"


@dataclass(frozen=True)
class Claim:
    """A statement about the models that a measurement can contradict.

    Attributes:
        id: its short name, such as ``F1a``.
        figure: the drawing that shows it, such as ``1`` or ``notes``.
        claim: the statement, in our own words.
        paper: what the paper says of it, in words.
        statistic: the number, in words.
        compute: function from the evidence to the number.
        tables: names of the tables that the number is computed from.
        rule: what the number has to be for the claim to be reproduced.
        controls: conditions under which it is measured again.
        difference: which of the course notes' five differences it supports; 0 for none.
        interval: how its interval is found, by the kind of number that it is.
        rests_on: ids of claims without which it says nothing.
        of_architecture: whether it is about the architecture, so that untrained models should meet it as well.
        of_training: whether it compares models by how they were trained, so that the training run is its unit.
        threshold_from: where threshold and size are from, if not from what the rule says: 0 is no difference.
        printed: the number that the paper, or whoever makes the claim, prints; None where there is only the words.
    """

    id: str
    figure: str
    claim: str
    paper: str
    statistic: str
    compute: Callable[[Evidence], Any]
    tables: tuple[str, ...]
    rule: Rule
    controls: tuple[Control, ...] = ()
    difference: int = 0
    interval: Estimator = jackknife
    rests_on: tuple[str, ...] = ()
    of_architecture: bool = False
    of_training: bool = False
    threshold_from: str = ""
    printed: Printed | None = None

    @property
    def origin(self) -> str:
        """Say where threshold and size are from."""
        return self.threshold_from or (SIGN if getattr(self.rule, "size", None) is None else SIZED)


CLAIMS = (
    Claim(
        "F1a", "1", "Layers of a Vision Transformer are more alike than those of a ResNet",
        "much more uniform similarity, no number", "mean(M of V) - mean(M of R)",
        q.uniform, ("cka",), Above(0.0, 0.1), OF_CKA, 1,
    ),
    Claim(
        "F1b", "1", "Its lowest and highest layers are more alike than those of a ResNet",
        "much greater similarity of lower and higher layers, no number", "mean M of lowest with highest third, V - R",
        lambda e: q.far(q.itself(e, "vit")) - q.far(q.itself(e, "cnn")), ("cka",), Above(0.0, 0.1), OF_CKA, 1,
    ),
    Claim(
        "F1c", "1", "A ResNet's similarity divides into stages, a Vision Transformer's does not",
        "stages in the ResNet only, no number",
        "pairs of layers inside a stage - pairs as far apart across a boundary, R - the same of V's quarters",
        q.stage_contrast, ("cka",), Above(0.0, 0.05), OF_CKA,
    ),
    Claim(
        "F1d", "1", "A Vision Transformer's heat map is a grid with the period of a block",
        "a clear grid-like structure, no number", "autocorrelation of rows at one block - mean at shorter lags",
        lambda e: q.periodicity(q.itself(e, "vit")), ("cka",), Above(0.0), (UNTRAINED,),
    ),
    Claim(
        "F1x", "1 untrained", "The lead in uniformity over the ResNet grows by training",
        "not a claim of the paper; untrained residual streams are uniform already", "F1a - F1a of the untrained twins",
        q.trained_uniform, ("cka",), Above(0.0), OF_PAIRED_TWINS,
    ),
    Claim(
        "J1a", "1 local", "Without global attention, at least half of the lead in uniformity over the ResNet is gone",
        "the notes: layers are alike because every layer sees the whole image",
        "mean(M) halfway between V and R - mean(M) of V with attention to near patches alone",
        lambda e: q.halfway(e, q.uniformity), ("cka",), Above(0.0), OF_PAIRED_TWINS, of_training=True,
        threshold_from="proposed here: half of the lead of V over R",
    ),
    Claim(
        "J1b", "1 local", "Without global attention, at least half of the lead of lowest and highest layers is gone",
        "the same", "mean M of lowest with highest third, the same of the three models",
        lambda e: q.halfway(e, q.far), ("cka",), Above(0.0), OF_PAIRED_TWINS, of_training=True,
        threshold_from="proposed here: half of the lead of V over R",
    ),
    Claim(
        "F2a", "2", "The lower half of a ResNet is like the lowest quarter of a Vision Transformer",
        "about 0.25 of the depth of V at 0.5 of R; equal depths would be 0.5",
        "CKA of V at depth r/2 with R at depth r - CKA at equal depths, mean over r up to 1/2",
        lambda e: q.lower_line(q.crossed(e), slice(0, q.GRID // 2)), ("cka",), Above(0.0, 0.05), OF_PAIRS, 1,
        printed=Printed(0.25, 0.25, "of the depth of V", "the paper: ViT-L/16 and ViT-H/14 at half the depth of ResNet50x1 (0.34 for ViT-B/32)", alike_at(0.5)),
    ),
    Claim(
        "F2b", "2", "The upper half of a ResNet is like the second quarter of a Vision Transformer",
        "about 0.58 of the depth of V at the end of R",
        "CKA of V at depth r/2 with R at depth r - CKA at equal depths, mean over r above 1/2",
        lambda e: q.lower_line(q.crossed(e), slice(q.GRID // 2, None)), ("cka",), Above(0.0, 0.05), OF_PAIRS,
        printed=Printed(0.58, 0.58, "of the depth of V", "the paper: ViT-L/16 and ViT-H/14 at the end of ResNet50x1, a quarter and the next third", alike_at(1.0)),
    ),
    Claim(
        "F2c", "2", "The last third of a Vision Transformer is like no layer of a ResNet",
        "less similar to all ResNet layers, no number", "mean over V of best match in R, lower two thirds - last third",
        q.top_unlike, ("cka",), Above(0.0, 0.05), OF_PAIRS,
    ),
    Claim(
        "F3a", "3", "In the lowest blocks there are heads that look near",
        "local heads, from about 20 to 40 px", "min over heads of blocks 0, 1 of distance / uniform",
        lambda e: q.reach(e, e.one("vit"), q.LOWEST), ("attention_distance",), Below(0.5), (RAW, UNTRAINED), 2,
        interval=smallest, threshold_from=OF_PIXELS,
        printed=Printed(20.0, 40.0, "px", "the paper: the most local heads of ViT-H/14 and ViT-L/16, first block, 224 px", nearest_head),
    ),
    Claim(
        "F3b", "3", "In the lowest blocks there are heads that look everywhere",
        "global heads, about 100 px", "max over heads of blocks 0, 1 of distance / uniform",
        lambda e: q.reach(e, e.one("vit"), q.LOWEST), ("attention_distance",), Above(0.8), (RAW, UNTRAINED), 2,
        interval=largest, rests_on=("F3a",), threshold_from=OF_PIXELS,
        printed=Printed(100.0, 100.0, "px", "the paper: the most global heads of ViT-L/16 and ViT-H/14, first block, 224 px", farthest_head),
    ),
    Claim(
        "F3c", "3", "In the highest blocks all heads look everywhere",
        "all self-attention heads are global", "min over heads of the last two blocks of distance / uniform",
        lambda e: q.reach(e, e.one("vit"), q.HIGHEST), ("attention_distance",), Above(0.75), (RAW, UNTRAINED),
        interval=smallest, rests_on=("F3a",), threshold_from=OF_PIXELS,
    ),
    Claim(
        "F4a", "4", "With less data the lowest blocks do not learn to look near",
        "lower layers do not attend locally", "mean of the 4 smallest distance / uniform of blocks 0, 1, less data - V",
        q.fewer_local, ("attention_distance",), Above(0.0, 0.15), (RAW,), 2, of_training=True,
    ),
    Claim(
        "F4b", "C.5", "A small Vision Transformer learns to look near even with less data",
        "true of ViT-B/32 on ImageNet alone", "F3a of the model trained on the least data",
        lambda e: q.reach(e, e.one("less_data"), q.LOWEST), ("attention_distance",), Below(0.5), (RAW,),
        interval=smallest, of_training=True, threshold_from=OF_PIXELS,
    ),
    Claim(
        "F5", "5", "The farther a subset of heads looks, the less it is like the lower units of a ResNet",
        "a monotonic decrease, for every unit", "largest rank correlation, over units of R, of distance and CKA",
        q.subsets, ("head_subsets",), Falling(), interval=bootstrap, threshold_from="a monotonic decrease; 0.8 is a proposal",
    ),
    Claim(
        "F6a", "6", "The first attention sees more of the image than the third unit of a ResNet",
        "larger receptive fields in lower layers", "radius after attention 1 of V - after unit 3 of R, px",
        lambda e: q.first_radius_less(e, 3), ("receptive_field",), Above(0.0), (UNTRAINED,), 2, of_architecture=True,
    ),
    Claim(
        "F6i", "6", "The first attention sees more of the image than the first convolution of a ResNet",
        "the same, of the first layers of both", "radius after attention 1 of V - after the first convolution of R, px",
        lambda e: q.first_radius_less(e, 0), ("receptive_field",), Above(0.0), (UNTRAINED,), of_architecture=True,
    ),
    Claim(
        "F6b", "6", "A Vision Transformer's fields are global midway, a ResNet's grow to the end",
        "much more global midway through the network", "radius at depth 0.5 / radius at depth 1, V - R",
        lambda e: q.midway(e, "vit") - q.midway(e, "cnn"), ("receptive_field",), Above(0.0), (UNTRAINED,),
    ),
    Claim(
        "F6c", "6", "A token of the last layer still depends strongly on its own patch",
        "strong dependence on the centre patch", "share of the field in the own patch / share of a constant field, last of V",
        lambda e: q.field(e, "vit", "centre_share", 1.0) / q.field(e, "vit", "uniform_centre_share", 1.0),
        ("receptive_field",), Above(3.0), (UNTRAINED,), threshold_from=PROPOSED,
    ),
    Claim(
        "C4", "C.4", "That dependence comes with the skip connections, more than in a ResNet",
        "far less dependence before the addition; in ResNets the difference is small",
        "share in the own patch after - before the addition, late attentions of V - late units of R",
        q.centred_by_skips, ("receptive_field",), Above(0.0, 0.1), (UNTRAINED,),
    ),
    Claim(
        "F7a", "7", "The class token is carried by skip connections first and rewritten later; spatial tokens the other way",
        "a striking phase transition in the middle",
        "min of mean log(ratio cls / ratio spatial) in the first half, and minus that in the second",
        q.transition, ("skip",), Above(0.0), (MEDIAN, MEAN_NORMS, UNTRAINED), 3, interval=smallest,
    ),
    Claim(
        "F7b", "7", "Skip connections carry more in a Vision Transformer than in a ResNet",
        "much higher ratios throughout", "median over blocks of log(norm of skip / norm of branch), V - R",
        q.skips_carry, ("skip",), Above(0.0, 0.4), (MEDIAN, MEAN_NORMS, UNTRAINED), 3,
    ),
    Claim(
        "F8a", "8", "Trained without the skip connections of a block, representations divide there",
        "very little similarity across the block", "mean CKA across the middle block, intact - trained without its skip connections",
        lambda e: q.middle_trained(e, "across_drop"), ("lesions_trained",), Above(0.0, 0.2), (), 3, of_training=True,
    ),
    Claim(
        "F8b", "8 accuracy", "Trained without them, a model loses accuracy",
        "4 % for middle blocks", "accuracy, intact - trained without those of the middle block, points",
        lambda e: 100 * q.middle_trained(e, "drop"), ("lesions_trained",), Near(2.0, 6.0), (), 3, of_training=True, interval=over_runs, threshold_from=PAPER + ", give or take 2 points",
        printed=Printed(4.0, 4.0, "points", "the paper: middle blocks; it does not say of which model"),
    ),
    Claim(
        "L8", "8 lesions", "Removed from the trained model, they cost a Vision Transformer more than a ResNet",
        "another experiment than figure 8; the notes say more influential than in a CNN",
        "mean over blocks of accuracy lost without their skip connections, V - R, points",
        q.lesions, ("lesions",), Above(0.0), (), 3,
    ),
    Claim(
        "F9a", "9", "Tokens of the last block stand out at their own patch",
        "ViT tokens are most similar to their own patch", "CKA with the own patch - mean of the others, interior tokens of V",
        lambda e: q.own_less_others(e, "vit")[0], ("localization",), Above(0.0, 0.05), (NORMALIZED, UNTRAINED), 4,
    ),
    Claim(
        "F9b", "9", "Tokens of the last block know their place better than in a ResNet",
        "ResNet's much less, no number", "CKA with the own patch - mean of the others, on the coarser grid of both, V - R",
        lambda e: -float(np.diff(q.own_less_others(e, "vit", "cnn"))[0]),
        ("localization",), Above(0.0, 0.05), (NORMALIZED, UNTRAINED), 4,
    ),
    Claim(
        "F9c", "9", "Tokens at the edge are like other patches at the edge",
        "similar to other edge positions", "CKA of edge tokens with other edge patches - with interior patches",
        lambda e: q.located(e, "vit", "edge_effect"), ("localization",), Above(0.0), (NORMALIZED, UNTRAINED),
    ),
    Claim(
        "F10", "10", "Trained with average pooling, a Vision Transformer loses the place of things",
        "significantly less localization", "CKA with the own patch - mean of the others, class token - average pooling",
        lambda e: -float(np.diff(q.own_less_others(e, "vit", "gap"))[0]),
        ("localization",), Above(0.0, 0.05), (NORMALIZED,), 4, of_training=True,
    ),
    Claim(
        "J4a", "9 flat", "Without downsampling, a ResNet gets at least halfway to a Vision Transformer in keeping the place",
        "the notes: a ResNet loses the place because it downsamples",
        "CKA with the own patch - mean of the others, R without downsampling - halfway between V and R",
        q.place_without_downsampling, ("localization",), Above(0.0), (NORMALIZED,), of_training=True,
        threshold_from="proposed here: half of the lead of V over R",
    ),
    Claim(
        "J4b", "9 flat", "Without downsampling, but read by average pooling, it keeps the place less than tokens beside a class token",
        "the paper: average pooling loses the place", "CKA with the own patch - mean of the others, V - R without downsampling",
        lambda e: -float(np.diff(q.own_less_others(e, "vit", "flat"))[0]),
        ("localization",), Above(0.0, 0.05), (NORMALIZED,), of_training=True,
    ),
    Claim(
        "F9p", "F", "A probe of what its head reads tells where things are better than one of a ResNet",
        "not asked by the paper; the notes say that the place of things is kept", "accuracy of probes of position in the last block, V - R, points",
        q.position_read, ("probe",), Above(0.0), (), 4,
    ),
    Claim(
        "F11a", "11", "Single spatial tokens of the last block say more where the head reads their average",
        "about 57 % against 6 to 10 %", "accuracy of probes on single tokens, average pooling - class token, points",
        q.tokens_apart, ("probe_tokens",), Above(0.0, 47.0), of_training=True,
        threshold_from="0 is no difference; the size is the paper's number",
        printed=Printed(47.0, 52.0, "points", "the paper: ViT-B/32, 57 to 58 % against 6 to 10 %"),
    ),
    Claim(
        "F11b", "11", "Each read as its own head reads it, the two models are alike",
        "very similar", "difference at the last block, points",
        q.heads_alike, ("probe_tokens",), Within(3.0), of_training=True, threshold_from=PROPOSED,
    ),
    Claim(
        "F11c", "11", "Only in the last blocks does the class token leave the pooled spatial tokens behind",
        "equal until the last several layers", "lead of the class token at the end - at depth 0.6, points",
        q.pooled_falls_behind, ("probe_tokens",), Above(0.0, 5.0),
    ),
    Claim(
        "F11d", "11", "With average pooling one token says nearly what the average says at the end",
        "almost matches", "accuracy of the average - of the first token at the last block, points",
        q.first_token, ("probe_tokens",), Below(3.0), threshold_from=PROPOSED,
    ),
    Claim(
        "F12a", "12", "Lower layers need little data to be what they are with much, higher layers need more",
        "lower layers very similar even with 3 % (or 10 %) of the data",
        "CKA with V block by block, lowest third - highest third, least data - the same of another seed on all data",
        q.little_data_below, ("cka_controls",), Above(0.0, 0.15), OF_BLOCKS, of_training=True,
    ),
    Claim(
        "F12b", "12", "Larger models need more data",
        "ViT-L/16 more than ViT-B/32", "CKA of the highest third, small - large model at the same share of data",
        q.two_sizes, ("cka_controls",), Above(0.0),
    ),
    Claim(
        "F12c", "12", "The more data, the more alike the higher layers",
        "3 < 10 < 30 %", "smallest gain in CKA of the highest third from one amount of data to the next",
        q.monotone, ("cka_controls",), Above(0.0), OF_BLOCKS, interval=smallest, of_training=True,
    ),
    Claim(
        "F13a", "13a", "With more data the middle layers say more",
        "a 30 % gap in absolute accuracy", "mean gain in accuracy of probes at depths 0.4 to 0.7, V - less data, points",
        q.data_in_the_middle, ("probe",), Above(0.0, 30.0), (), 5, of_training=True,
        threshold_from="0 is no difference; the size is the paper's number",
        printed=Printed(30.0, 30.0, "points", "the paper: ViT-L/16 and ViT-H/14, JFT-300M against ImageNet"),
    ),
    Claim(
        "F13b", "13b", "The middle layers of a Vision Transformer say more than those of a ResNet",
        "much stronger intermediate representations", "mean accuracy of probes at depths 0.4 to 0.8, V - R, points",
        q.better_in_the_middle, ("probe",), Above(0.0, 5.0), (), 5,
    ),
    Claim(
        "E1", "E.1", "Later blocks rewrite the class token mostly by their MLPs",
        "mostly via MLP blocks", "share of MLPs in what the second half of blocks writes into the class token",
        lambda e: q.updates_by_mlp(e, "cls"), ("skip",), Above(0.5), (UNTRAINED,), threshold_from="mostly is more than half",
    ),
    Claim(
        "E1s", "E.1", "They do so more than for spatial tokens",
        "said of the class token alone", "that share, class token - spatial tokens",
        lambda e: q.updates_by_mlp(e, "cls") - q.updates_by_mlp(e, "spatial"), ("skip",), Above(0.0), (UNTRAINED,),
    ),
    Claim(
        "G1", "G.1", "Fine-tuning leaves the first blocks as they were",
        "the first four to five layers very well preserved", "CKA before and after, first 5/12 of blocks - second half",
        q.tuned, ("cka_controls",), Above(0.0, 0.05), OF_BLOCKS,
        printed=Printed(4.0, 5.0, "blocks", "the paper: ViT-B/32 to ViT-H/14, very well preserved, which here is a CKA of at least 0.9", blocks_kept),
    ),
    Claim(
        "H1", "H.2", "An MLP-Mixer is more like a Vision Transformer than like a ResNet",
        "more similar to ViT than to ResNets", "mean over Mixer layers of best match, in V - in R",
        q.mixer, ("cka",), Above(0.0, 0.03), OF_PAIRS[:-1],
    ),
    Claim(
        "S1", "notes", "In a ResNet the soft nearest neighbour loss falls at the end",
        "the notes, after Frosst et al.: high in all but the last layer",
        "share of its fall from chance that the last unit of R takes - an even share of all units",
        q.last_falls, ("soft_nearest_neighbor",), Above(0.0, 0.5), (NORMALIZED,), 5, interval=share,
        threshold_from="0 is an even share; half of the fall, a jump, is proposed here",
    ),
    Claim(
        "S2", "notes", "That loss falls more at the end of a ResNet than of a Vision Transformer",
        "the notes; not in the paper", "fall of the loss in the last block, as a share of chance, R - V",
        q.falls_more, ("soft_nearest_neighbor",), Above(0.0, 0.1), (NORMALIZED,), 5,
    ),
    Claim(
        "S3", "notes", "Where the loss falls, accuracy rises",
        "the notes; an association in one network", "rank correlation over units of R of gain in accuracy and fall of the loss",
        q.together, ("probe", "soft_nearest_neighbor"), Above(0.0), (NORMALIZED,), interval=correlation,
    ),
    Claim(
        "B1", "tokens", "Massive tokens appear beyond a third of the depth",
        "Darcet et al. (2024): around layer 15 of 40", "share of massive tokens of V beyond a third of the depth - before, points",
        q.massive_appear, ("tokens",), Above(0.0), (UNTRAINED,),
        printed=Printed(0.375, 0.375, "of the depth of V", "Darcet et al. (2024): DINOv2-g, around layer 15 of 40", massive_from),
    ),
    Claim(
        "B2", "frequency", "A Vision Transformer damps what is fine with depth",
        "Park and Kim (2022): attention is low-pass", "log amplitude of the finest pattern, last third of V - first third",
        lambda e: q.finer(e, "vit"), ("frequency",), Below(0.0), (UNTRAINED,),
    ),
    Claim(
        "B3", "frequency", "A ResNet raises what is fine with depth",
        "Park and Kim (2022): convolutions are high-pass", "log amplitude of the finest pattern, last third of R - first third",
        lambda e: q.finer(e, "cnn"), ("frequency",), Above(0.0), (UNTRAINED,),
    ),
    Claim(
        "SEED1", "notes", "A ResNet needs more layers than a Vision Transformer for a representation of the middle",
        "the notes say 70 against 40; the paper has no such number", "layers until CKA with the other's middle is 90 % of its maximum, R - V",
        q.layers_needed, ("cka",), Described(), interval=partial(bootstrap, step=1.0),
        threshold_from="none: the notes' counts are not in the paper, and depend on how layers are counted",
        printed=Printed(30.0, 30.0, "layers", "the notes: 70 layers of a CNN against 40 of a Vision Transformer; no number of the paper"),
    ),
)  # fmt: skip
