"""How much skip connections carry: norm ratios (figures 7 and E.1), cosines (E.2), and what happens without them (8).

Raghu et al. (2021, section 5): per token, |z| / |f(z)|, with z what enters on the skip connection (after its projection) and
f(z) what the long branch returns: attention or MLP with their LayerNorm and LayerScale, or a ResNet unit up to its last norm.
What goes on must be z + f(z), which is checked; so a block of another kind is refused, not misread.

Two experiments ask what skip connections are for, and they are not the same. `lesions` removes those of one block from a
trained model, which was never asked to do without. `trained_without_skips` is the paper's: models that were trained without.

    python -m vit_analysis.skip
    python -m vit_analysis.skip vit_base_patch16_224 resnet50 --images.source ~/imagenet/val --out figures/skip
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from vit_analysis import command, features, layers, plot, similarity, zoo
from vit_analysis.images import Images
from vit_analysis.intervene import Branch, Repeated, without_skips
from vit_analysis.models import Model, load, load_all, named, truth
from vit_analysis.running import Sums, in_group, jackknife
from vit_analysis.table import column, with_provenance
from vit_analysis.tokens import Layout, as_tokens

logger = logging.getLogger(__name__)

Models = Sequence[Model] | Mapping[str, nn.Module]

FIRST = 9  # tokens that figure 7 shows one by one
# Medians are read from counts in bins of a 32nd of an octave, from 2^-12 to 2^12: right to 1.1 %, and nothing is stored.
OCTAVES, BINS = 12, 32
# z + f(z) may differ from what goes on by rounding.
ROUNDING = 1e-2
TRAINED = tuple(f"lab/vit_no_skip_{where}" for where in ("first", "middle", "last"))
MEANS = ("norm_ratio", "cosine", "cosine_branches", "cosine_long", "skip_norm", "long_norm")


@dataclass(frozen=True)
class RatioSums(Sums):
    """What norm ratios need of any number of batches."""

    totals: Float64[Tensor, "group place statistic"]
    """Over images, the statistics of `MEANS`."""
    counts: Float64[Tensor, "place bin"]
    """Ratios of single tokens."""
    images: Float64[Tensor, " group"]
    places: list[list[str]]
    """[model, block, sublayer, token] of each row."""


@dataclass(frozen=True)
class RunSums(Sums):
    """What is compared between runs of models with equally many blocks, with and without some skip connections."""

    hsic: Float64[Tensor, "group run layer layer"]
    """The input of the first block, then every block's output."""
    right: Float64[Tensor, "group run"]
    images: Float64[Tensor, " group"]


def norm_ratios(
    models: Models, images: Images, *, first: int = FIRST, state: Path | None = None
) -> pd.DataFrame:
    """Norm of what skips each branch over the norm of what the branch adds, per token; means over tokens, then over images.

    Args:
        models: loaded models, or any modules under names of your own: Vision Transformers, or ResNets (positions are tokens).
        images: which images.
        first: of a Vision Transformer, how many tokens have a row of their own, counted with the prefix tokens.
        state: where a killed run leaves its sums, to go on from; None leaves nothing.

    Returns:
        Columns model, block, sublayer (attention, mlp, unit), token (``cls``, ``spatial`` for the mean over all spatial
        tokens, or a number); norm_ratio with its 95 % interval low, high, and its median over images and tokens; cosine of
        z + f(z) and z, cosine_branches of z and f(z), cosine_long of z + f(z) and f(z); skip_norm, long_norm of z and f(z).
        The ratio is infinite where a branch adds nothing.

    >>> table = norm_ratios([load("lab/vit"), load("lab/resnet")], Images(limit=256))    # doctest: +SKIP
    """
    loaded = named(models)
    branches = {name: layers.branches(model.module) for name, model in loaded.items()}
    readers = {name: _Reader(model.module, branches[name], first) for name, model in loaded.items()}
    taps = {
        name: [tap for one in own for tap in (one.skip, one.long, one.joined)]
        for name, own in branches.items()
    }
    reading = features.Reading(loaded, images, taps, lambda model, tap, x: readers[model](tap, x))
    fold = partial(
        _fold_ratios, branches={name: {one.joined: one for one in own} for name, own in branches.items()}
    )
    state = state and state.with_name(f"{state.name}.{first}")  # other rows are another state
    sums = features.measure(reading, fold, RatioSums, state)
    return with_provenance(_ratio_rows(sums), "skip", **reading.facts())


def lesions(models: Models, images: Images, *, state: Path | None = None) -> pd.DataFrame:
    """Each block of trained models in turn without its skip connections: what becomes of accuracy and of similarity across it.

    Accuracy is by the images' labels where the model's classes are known to hold them (`models.truth`), and else agreement
    with the intact model; `reference` says which. Similarity across is the mean CKA between what is before the block (the
    outputs of earlier blocks, and the input of the first) and what is after (its own output and those of later blocks).

    Returns:
        Columns model, block, reference, accuracy, drop (intact less accuracy) with its 95 % interval low, high; across,
        across_intact, and their difference across_drop with across_low, across_high.
    """
    tables, facts = [], dict[str, Any]()
    for name, model in named(models).items():
        parts: dict[str, list[Branch]] = {}
        for branch in layers.branches(model.module):
            parts.setdefault(branch.block, []).append(branch)
        changes: list[Any] = [nullcontext, *(partial(without_skips, branches=own) for own in parts.values())]
        repeated = replace(model, module=Repeated(model.module, changes))
        taps = [f"model.{tap}" for tap in _outputs(model.module)] + ["model"]
        reading = features.Reading({name: repeated}, images, {name: taps}, _keep_gram_or_choice("model"))
        known = truth(model, images)
        sums = features.measure(reading, partial(_fold_runs, known=known, split=_by_number), RunSums, state)
        tables.append(_run_rows(sums, layers.blocks(model.module), list(parts)).assign(model=name))
        tables[-1]["reference"] = _reference(known)
        facts = {**reading.facts(), "models": {**facts.get("models", {}), **reading.facts()["models"]}}
    return with_provenance(_ordered(pd.concat(tables, ignore_index=True)), "skip_lesions", **facts)


def trained_without_skips(
    intact: Model, trained: Sequence[Model], images: Images, *, state: Path | None = None
) -> pd.DataFrame:
    """Models trained without the skip connections of one block (figure 8) against one that has them all.

    Returns:
        The columns of `lesions`, where model is the one trained without, and block the one that lacks them.

    Raises:
        ValueError: a model lacks none or more than one block's, or has more or fewer blocks than the intact one.
    """
    loaded = named([intact, *trained])
    blocks = layers.blocks(intact.module)
    lacking = [layers.without_skips(model.module) for model in trained]
    for model, lacks in zip(trained, lacking, strict=True):
        if len(lacks) != 1 or layers.blocks(model.module) != blocks:
            raise ValueError(
                f"{model.name} has {len(layers.blocks(model.module))} blocks, and {len(lacks)} without skip connections; "
                f"wanted are {len(blocks)}, as {intact.name} has, and 1"
            )
    taps = {name: [*_outputs(model.module), ""] for name, model in loaded.items()}
    reading = features.Reading(loaded, images, taps, _keep_gram_or_choice(""))
    known = truth(intact, images)
    fold = partial(_fold_runs, known=known, split=lambda seen: [list(own.values()) for own in seen.values()])
    sums = features.measure(reading, fold, RunSums, state)
    table = _run_rows(sums, blocks, [lacks[0] for lacks in lacking])
    table = table.assign(model=[model.name for model in trained], reference=_reference(known))
    return with_provenance(_ordered(table), "skip_trained", **reading.facts(), intact=intact.name)


def partition(table: pd.DataFrame, model: str, block: str) -> float:
    """Mean CKA between a model's layers before a block and those from its output on: how far the block divides them.

    Args:
        table: of CKA: columns model, layer, other_model, other_layer, cka.
        model: whose layers.
        block: its output, such as ``blocks.3``, must be among them; layers inside it count for neither side.
    """
    within = table[(column(table, "model") == model) & (column(table, "other_model") == model)]
    names = list(dict.fromkeys(within["layer"]))
    if block not in names:
        raise ValueError(f"the table holds no layer {block!r} of {model}, only {', '.join(names[:8])} ...")
    inside = [name for name in names if name.startswith(f"{block}.") or name == block]
    before, after = names[: names.index(inside[0])], names[names.index(block) :]
    return float(within[within["layer"].isin(before) & within["other_layer"].isin(after)]["cka"].mean())


def ratios(skip: Tensor, long: Tensor, layout: Layout, first: int) -> tuple[list[str], Tensor, Tensor]:
    """Statistics of one branch in one batch, from z and f(z): tokens, or maps whose positions are tokens.

    Returns:
        The names of the rows; of each the sum over images of `MEANS`; of each the counts of ratios of single tokens.
        The cosine of a vector of zeros is 0, and a token that is zero in both has no ratio.
    """
    z, f = as_tokens(skip, layout).float(), as_tokens(long, layout).float()
    zz, ff, zf = (torch.linalg.vecdot(x, y).double() for x, y in ((z, z), (f, f), (z, f)))
    total = (zz + 2 * zf + ff).clamp(min=0)
    cosines = [(zz + zf) / (zz * total).sqrt(), zf / (zz * ff).sqrt(), (zf + ff) / (ff * total).sqrt()]
    ratio = (zz / ff).sqrt()
    values = torch.stack([ratio, *(x.nan_to_num(0, 0, 0) for x in cosines), zz.sqrt(), ff.sqrt()], dim=-1)
    bins = ((ratio.log2() + OCTAVES) * BINS).nan_to_num(0).clamp(0, 2 * OCTAVES * BINS - 1).long()
    rows = dict(_rows(layout, layout.prefix_of(skip), min(first, z.shape[1]) if skip.ndim == 3 else 0))
    counts = values.new_zeros(len(rows), 2 * OCTAVES * BINS)
    for count, tokens in zip(counts, rows.values(), strict=True):
        found = bins[:, tokens].flatten()
        count.index_add_(0, found, torch.ones_like(found, dtype=count.dtype))
    return list(rows), torch.stack([values[:, tokens].nanmean(1).sum(0) for tokens in rows.values()]), counts


def _rows(layout: Layout, prefix: int, first: int) -> Iterator[tuple[str, slice]]:
    if layout.class_token and prefix:
        yield "cls", slice(0, 1)
    yield "spatial", slice(prefix, None)
    yield from ((str(number), slice(number, number + 1)) for number in range(first))


class _Reader:
    """Reduces the branches of one model inside its hooks; z and f(z) are held until both are there.

    They are not copied: both must be whole until they are added, and are read before that.
    """

    def __init__(self, model: nn.Module, branches: Sequence[Branch], first: int) -> None:
        self.model, self.branches, self.first = model, branches, first
        self.layout = layers.layout(model)
        self.held: dict[str, Tensor] = {}
        self.totals: dict[Branch, Tensor] = {}
        self.found: dict[Branch, Any] = {}
        self.checked: set[Branch] = set()

    def __call__(self, tap: str, activation: Tensor) -> Any:
        result = None
        for branch in self.branches:
            if tap == branch.joined:
                self._check(branch, activation)
                result = self.found.pop(branch)
            if tap in (branch.skip, branch.long):
                self.held[tap] = activation
                if branch.skip in self.held and branch.long in self.held:
                    self._reduce(branch, self.held.pop(branch.skip), self.held.pop(branch.long))
        return result

    def _reduce(self, branch: Branch, skip: Tensor, long: Tensor) -> None:
        self.found[branch] = ratios(skip, long, self.layout, self.first)
        if branch not in self.checked:
            self.totals[branch] = skip[:1] + long[:1]

    def _check(self, branch: Branch, joined: Tensor) -> None:
        """Of one image of the run: z + f(z) is what goes on."""
        if branch in self.checked:
            return
        expected = as_tokens(branch.join(self.model, self.totals.pop(branch)), self.layout)
        found = as_tokens(joined[:1], self.layout)
        if expected.shape != found.shape or (expected - found).norm() > ROUNDING * found.norm():
            raise ValueError(
                f"what goes on after {branch.long!r} is not z + f(z) with z from {branch.skip!r}: its block adds in another "
                f"way (parallel branches, a norm after the addition), and such skip connections are not known"
            )
        self.checked.add(branch)


def _fold_ratios(batch: features.Pass, branches: Mapping[str, Mapping[str, Branch]]) -> RatioSums:
    places, totals, counts = [], [], []
    for model, seen in batch.seen.items():
        for tap, (tokens, total, count) in seen.items():
            branch = branches[model][tap]
            places += [[model, branch.block, branch.sublayer, token] for token in tokens]
            totals.append(total)
            counts.append(count)
    means = torch.cat(totals)
    finite = means[:, -2:].isfinite().all(1)
    if not finite.all():
        model, block, sublayer, _ = places[int(finite.logical_not().nonzero()[0])]
        raise ValueError(
            f"{block} ({sublayer}) of {model} has values that are not finite in batch {batch.number}"
        )
    images = in_group(means.new_tensor(float(batch.size)), batch.number)
    return RatioSums(in_group(means, batch.number), torch.cat(counts), images, places)


def _ratio_rows(sums: RatioSums) -> pd.DataFrame:
    groups = torch.cat([sums.totals.flatten(1), sums.images[:, None]], dim=1)
    interval = jackknife(lambda total: (total[:-1] / total[-1]).view(-1, len(MEANS)), groups, sums.images > 0)
    table = pd.DataFrame(sums.places, columns=["model", "block", "sublayer", "token"])
    means = dict(zip(MEANS, interval.value.T.cpu().numpy(), strict=True))
    median, low, high = (
        x.cpu().numpy() for x in (medians(sums.counts), interval.low[:, 0], interval.high[:, 0])
    )
    table = table.assign(
        norm_ratio=means.pop("norm_ratio"), median=median, cosine=means.pop("cosine"), low=low, high=high
    )
    nothing = table[np.isinf(table["norm_ratio"])]
    if not nothing.empty:
        told = ", ".join(dict.fromkeys(f"{row.block} of {row.model}" for row in nothing.itertuples()))
        logger.warning(
            "the long branch adds nothing to some tokens, so their norm ratio is infinite: %s", told
        )
    return table.assign(**means)


def medians(counts: Float64[Tensor, "place bin"]) -> Float64[Tensor, " place"]:
    """Medians from counts, as if values were evenly spread within a bin; 0 or infinite beyond the last one."""
    below = counts.cumsum(1)
    half = below[:, -1:] / 2
    place = (below < half).sum(1, keepdim=True)
    inside = (half - below.gather(1, place)) / counts.gather(1, place) + 1
    value = 2 ** ((place + inside)[:, 0] / BINS - OCTAVES)
    ends = torch.where(place == 0, 0.0, torch.inf)[:, 0]
    return torch.where((place[:, 0] > 0) & (place[:, 0] < counts.shape[1] - 1), value, ends)


def _outputs(model: nn.Module) -> list[str]:
    blocks = layers.blocks(model)
    return [f"{blocks[0]}:in", *blocks]


def _keep_gram_or_choice(output: str) -> Callable[[str, str, Tensor], Tensor]:
    """Of a model's output the chosen classes; of other layers their Gram vector."""

    def reduce(model: str, layer: str, activation: Tensor) -> Tensor:  # noqa: ARG001
        if layer.partition("#")[0] == output:
            return activation.argmax(-1)
        enough = len(activation) >= similarity.SMALLEST_BATCH
        return similarity.centred_gram(activation) if enough else activation.new_zeros(0)

    return reduce


def _by_number(seen: Mapping[str, Mapping[str, Tensor]]) -> list[list[Tensor]]:
    """What each run of the one model left, its choices last."""
    (own,) = seen.values()
    runs: dict[str, list[Tensor]] = {}
    for layer, kept in own.items():
        runs.setdefault(layer.partition("#")[2], []).append(kept)
    return list(runs.values())


def _fold_runs(
    batch: features.Pass,
    known: Sequence[int] | None,
    split: Callable[[Mapping[str, Mapping[str, Tensor]]], list[list[Tensor]]],
) -> RunSums | None:
    if batch.size < similarity.SMALLEST_BATCH:
        return None
    runs = split(batch.seen)
    hsic = torch.stack([similarity.hsic(torch.stack(grams)) for *grams, _ in runs])
    if not hsic.isfinite().all():
        raise ValueError(f"{' or '.join(batch.seen)} has values that are not finite in batch {batch.number}")
    choices = torch.stack([choices for *_, choices in runs])
    expected = choices[0] if known is None else torch.tensor(known)[batch.labels].to(choices.device)
    return RunSums(
        hsic=in_group(batch.size * hsic, batch.number),
        right=in_group((choices == expected).sum(1).double(), batch.number),
        images=in_group(hsic.new_tensor(float(batch.size)), batch.number),
    )


def _run_rows(sums: RunSums, blocks: Sequence[str], changed: Sequence[str]) -> pd.DataFrame:
    """One row per run but the first, which is the intact one, with the block that it lacks skip connections in."""
    shape = sums.hsic.shape[1:]
    size = shape.numel()
    places = [blocks.index(block) + 1 for block in changed]

    def statistic(total: Tensor) -> Tensor:
        cka = similarity.cka(total[:size].view(shape))
        accuracy = total[size:-1] / total[-1]
        across = torch.stack([cka[run, :at, at:].nanmean() for run, at in enumerate(places, 1)])
        whole = torch.stack([cka[0, :at, at:].nanmean() for at in places])
        return torch.stack([accuracy[1:], accuracy[0] - accuracy[1:], across, whole, whole - across])

    groups = torch.cat([sums.hsic.flatten(1), sums.right, sums.images[:, None]], dim=1).cpu()
    interval = jackknife(statistic, groups, sums.images.cpu() > 0)
    names = ("accuracy", "drop", "across", "across_intact", "across_drop")
    table = pd.DataFrame(dict(zip(names, interval.value.numpy(), strict=True))).assign(block=list(changed))
    low, high = interval.low.numpy(), interval.high.numpy()
    return table.assign(low=low[1], high=high[1], across_low=low[4], across_high=high[4])


def _reference(known: Sequence[int] | None) -> str:
    return "intact model" if known is None else "labels"


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    columns = ["model", "block", "reference", "accuracy", "drop", "low", "high"]
    return table[[*columns, "across", "across_intact", "across_drop", "across_low", "across_high"]]


def main(
    models: tuple[str, ...] = ("lab/vit", "lab/resnet"),
    /,
    *,
    images: Images = Images(),  # noqa: B008  (frozen)
    trained: tuple[str, ...] | None = None,
    first: int = FIRST,
    out: Path = Path("figures/skip"),
    device: str | None = None,
) -> None:
    """Norm ratios of skip connections, and what happens without them (figures 7, 8, E.1 and E.2 of Raghu et al. 2021).

    Args:
        models: NAME[@WEIGHTS] ...; NAME is lab/... or a timm name, WEIGHTS a checkpoint file or "random".
        images: which images.
        trained: models trained without the skip connections of one block, each against the first model; where that is lab/vit,
            the lab's unless said.
        first: how many tokens of a Vision Transformer are shown one by one.
        out: .parquet and .png are added; lesions and trained models stand beside, with _lesions and _trained in the name.
        device: cpu, cuda ...; the GPU if there is one.
    """
    loaded = load_all(models, device=device)
    table = norm_ratios(loaded, images, first=first, state=out)
    command.write(table, out)
    command.draw(table, out, plot.skip)
    beside = command.beside(out, "_lesions")
    removed = lesions(loaded, images, state=beside)
    command.write(removed, beside)
    command.draw(removed, beside, plot.lesions)
    others = _trained(models[0], trained, device)
    if others:
        beside = command.beside(out, "_trained")
        retrained = trained_without_skips(loaded[0], others, images, state=beside)
        command.write(retrained, beside)
        command.draw(retrained, beside, plot.lesions)


def _trained(intact: str, names: Sequence[str] | None, device: str | None) -> list[Model]:
    """The models named, or those of the lab that there are."""
    if names is not None or intact != "lab/vit":
        return load_all(names, device=device) if names else []
    missing = [name for name in TRAINED if not zoo.home(name).exists()]
    for name in missing:
        logger.warning(
            "no weights of %r yet, so it is left out; train it: python -m vit_analysis.train %s", name, name
        )
    return [load(name, device=device) for name in TRAINED if name not in missing]


if __name__ == "__main__":
    command.run(main)
