"""What accuracy, and similarity across a block, lose without the block's skip connections (figure 8).

Two different experiments ask this. `measure` removes them from a trained model, which never learned to do without; it takes
Vision Transformers and ResNets alike, so the two can be compared. `trained_without_skips` is the paper's experiment
(Raghu et al. 2021, section 5): models that were trained without both skip connections of one block.

    python -m vit_analysis.lesions
    python -m vit_analysis.lesions vit_base_patch16_224 resnet50 --images.source ~/imagenet/val --out figures/lesions
"""

if __name__ == "__main__":  # before anything heavy is imported
    from vit_analysis.shell import running

    running.begin("lesions")


import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from vit_analysis import layers
from vit_analysis.images import AnyImages, given
from vit_analysis.layers import Branch, Tap
from vit_analysis.models import Model, Models, classes_of_labels, named
from vit_analysis.reading.capture import Layer
from vit_analysis.reading.intervals import Interval, jackknife
from vit_analysis.reading.intervene import Repeated, without_skips
from vit_analysis.reading.measure import Measurement, in_passes
from vit_analysis.reading.resume import prove
from vit_analysis.reading.state import Grouped
from vit_analysis.reading.stream import Activation, Pass, Reading, prepared
from vit_analysis.spelling import Refusal
from vit_analysis.table import WITHOUT, column, with_provenance
from vit_analysis.tensors import similarity

logger = logging.getLogger(__name__)

# Of several values that a model of transformers returns, the one that its classes are read from; the others are features.
ANSWERS, FEATURES = ("", "[logits]", "[pooler_output]", "[image_embeds]"), ("[last_hidden_state]",)
OUTPUT = ("", "model")  # path of a model's own output, by itself and where it runs under several changes
TRAINED = tuple(f"lab/vit_no_skip_{where}" for where in ("first", "middle", "last"))


@dataclass(frozen=True)
class RunSums(Grouped):
    """The sums over batches that compare runs with and without some skip connections, of models with equally many blocks."""

    hsic: Float64[Tensor, "group run layer layer"]
    """The layers are the input of the first block, then every block's output."""
    right: Float64[Tensor, "group run"]


def measure(models: Models, images: AnyImages, *, state: Path | None = None) -> pd.DataFrame:
    """Remove the skip connections of each block of trained models in turn; measure accuracy and similarity across the block.

    Accuracy is by the images' labels where the model's classes are known to hold them (`models.classes_of_labels`), otherwise
    agreement with the intact model; `reference` says which. Similarity across is the mean CKA between what is before the block
    (the outputs of earlier blocks, and the input of the first) and what is after (its own output and those of later blocks).

    Args:
        models: loaded models or names, one or several, or any modules under names of your own.
        images: which images: `Images`, a path, a torch data set or a tensor.
        state: where the run saves its sums, so that a killed run can go on from there; None saves nothing.

    Returns:
        Columns model, block, reference, accuracy with its 95 % interval accuracy_low, accuracy_high, drop (intact less
        accuracy) with its interval low, high; across, across_intact, and their difference across_drop with its interval
        across_low, across_high; of drop and across_drop also the values
        without each group of batches (``drop_without``, ``across_drop_without``).

    Examples:
        >>> table = measure(["lab/vit", "lab/resnet"], Images(limit=256))    # doctest: +SKIP
    """
    images = given(images)
    passes = [{"": plan(model, images)} for model in named(models).values()]
    parts = [tables[""] for tables in in_passes(passes, state)]
    digests = {name: digest for part in parts for name, digest in part.attrs["models"].items()}
    facts = {"models": digests, "images": images.facts()}
    return with_provenance(pd.concat(parts, ignore_index=True), "lesions", **facts)


def plan(model: Model, images: AnyImages) -> Measurement[RunSums]:
    """Plan what `measure` computes for one model; a pass of its own, as no other analysis can read the changed model."""
    images = given(images)
    branches: dict[str, list[Branch]] = {}
    for branch in layers.branches(model):
        branches.setdefault(branch.block, []).append(branch)
    changes: list[Any] = [nullcontext, *(partial(without_skips, branches=own) for own in branches.values())]
    repeated = replace(model, module=Repeated(model.module, changes))
    taps = [tap._replace(path=f"model.{tap.path}".rstrip(".")) for tap in _outputs(model)]
    reduce = _reducer(taps[-1])

    def changed(activation: Activation) -> Tensor | None:
        return None if repeated.module.unchanged else reduce(activation)

    reading = Reading({model.name: repeated}, images, {model.name: taps}, changed)
    known, blocks = classes_of_labels(model, images), layers.blocks(model)

    def finish(sums: RunSums) -> pd.DataFrame:
        table = _run_rows(sums, blocks, list(branches)).assign(model=model.name, reference=_reference(known))
        return with_provenance(_ordered(table), "lesions", **reading.facts())

    fold = partial(_fold_runs, known=known, split=_by_number)
    prepare = partial(prove, repeated, reading, model, list(branches.values()))
    return Measurement(reading, fold, RunSums, finish, prepare, alone=True)


def trained_without_skips(
    intact: Model, trained: Sequence[Model], images: AnyImages, *, state: Path | None = None
) -> pd.DataFrame:
    """Compare models trained without the skip connections of one block (figure 8) with one that has them all.

    Returns:
        The columns of `measure`, where model is the one trained without skip connections, and block the one that lacks them.

    Raises:
        Refusal: a model lacks the skip connections of no block or of several, or has other blocks than the intact one.
    """
    return plan_trained(intact, trained, images).table(state)


def plan_trained(intact: Model, trained: Sequence[Model], images: AnyImages) -> Measurement[RunSums]:
    """Plan what `trained_without_skips` computes without running it, so that one pass can serve several analyses."""
    loaded, images = prepared([intact, *trained], images)
    blocks = layers.blocks(intact)
    lacking = [layers.without_skips(model) for model in trained]
    for model, lacks in zip(trained, lacking, strict=True):
        if len(lacks) != 1 or layers.blocks(model) != blocks:
            raise Refusal(
                f"{model.name} has {len(layers.blocks(model))} blocks, and {len(lacks)} without skip connections; "
                f"wanted are {len(blocks)}, as {intact.name} has, and 1"
            )
    taps = {name: _outputs(model) for name, model in loaded.items()}
    reading = Reading(loaded, images, taps, _reducer(Tap("")))
    known = classes_of_labels(intact, images)
    fold = partial(_fold_runs, known=known, split=lambda seen: [list(own.values()) for own in seen.values()])
    changed = [lacks[0] for lacks in lacking]

    def finish(sums: RunSums) -> pd.DataFrame:
        table = _run_rows(sums, blocks, changed)
        table = table.assign(model=[model.name for model in trained], reference=_reference(known))
        return with_provenance(_ordered(table), "lesions_trained", **reading.facts(), intact=intact.name)

    return Measurement(reading, fold, RunSums, finish)


def partition(table: pd.DataFrame, model: str, block: str) -> float:
    """Mean CKA between a model's layers before a block and those from its output on: how far the block divides them.

    Args:
        table: a table of CKA, with columns model, layer, other_model, other_layer, cka.
        model: name of the model.
        block: path of the block, such as ``blocks.3``; its output must be in the table, and layers inside it count for neither
            side.
    """
    within = table[(column(table, "model") == model) & (column(table, "other_model") == model)]
    names = list(dict.fromkeys(within["layer"]))
    if block not in names:
        raise Refusal(f"the table holds no layer {block!r} of {model}, only {', '.join(names[:8])} ...")
    inside = [name for name in names if name.startswith(f"{block}.") or name == block]
    before, after = names[: names.index(inside[0])], names[names.index(block) :]
    return float(within[within["layer"].isin(before) & within["other_layer"].isin(after)]["cka"].mean())


def _outputs(model: Model) -> list[Tap]:
    """The taps of the first block's input, of every block's output and of the model's output."""
    blocks = layers.blocks(model)
    return [Tap(blocks[0], "in"), *map(Tap, blocks), Tap("")]


def _reducer(output: Tap) -> Callable[[Activation], Tensor | None]:
    """Return a reducer that keeps the predicted classes of the model's output, and the Gram vector of any other layer."""

    def reduce(activation: Activation) -> Tensor | None:
        answer = activation.layer.tap == output and activation.layer.key in ANSWERS
        if activation.layer.tap == output and activation.layer.key in FEATURES:
            return None
        if activation.layer.key and not answer:
            raise Refusal(
                f"{activation} is one of several values that its block passes on, and what comes before and after "
                f"such blocks is not known; choose a Vision Transformer or a ResNet"
            )
        values = activation.values
        if activation.layer.tap == output:
            answers = values.flatten(1)
            if answers.shape[1] != values.shape[1]:
                raise Refusal(
                    f"{activation.model.name} returns {' x '.join(map(str, values.shape))} and no classes, so nothing it says "
                    f"can be compared; choose a classifier"
                )
            return answers.argmax(1)
        enough = len(values) >= similarity.SMALLEST_BATCH
        return similarity.centred_gram(values) if enough else values.new_zeros(0)

    return reduce


def _by_number(seen: Mapping[str, Mapping[Layer, Tensor]]) -> list[list[Tensor]]:
    """Group what was kept of the one model by run; the predicted classes of each run come last.

    What a run lacks it has in common with the first one.
    """
    (own,) = seen.values()
    runs: dict[int, dict[Layer, Tensor]] = {}
    for layer, kept in own.items():
        runs.setdefault(layer.run, {})[layer._replace(run=1)] = kept
    return [list({**runs[1], **run}.values()) for run in runs.values()]


def _fold_runs(
    batch: Pass,
    known: Sequence[int] | None,
    split: Callable[[Mapping[str, Mapping[Layer, Tensor]]], list[list[Tensor]]],
) -> RunSums | None:
    if batch.size < similarity.SMALLEST_BATCH:
        return None
    for name, seen in batch.seen.items():
        if not any(layer.tap.path in OUTPUT for layer in seen):
            raise Refusal(
                f"{name} returns features and no classes, so nothing it says can be compared; choose a classifier"
            )
    runs = split(batch.seen)
    hsic = torch.stack([similarity.hsic(torch.stack(grams)) for *grams, _ in runs])
    batch.refuse_not_finite(hsic[None], [" or ".join(batch.seen)])
    choices = torch.stack([choices for *_, choices in runs])
    expected = choices[0] if known is None else torch.tensor(known)[batch.labels].to(choices.device)
    return RunSums.of_batch(
        batch.number,
        batch.size,
        hsic=batch.size * hsic,
        right=(choices == expected).sum(1).double(),
    )


def _run_rows(sums: RunSums, blocks: Sequence[str], changed: Sequence[str]) -> pd.DataFrame:
    """Return one row per run, with the block that lacks its skip connections; the first run is intact and has no row."""
    places = [blocks.index(block) + 1 for block in changed]

    def statistic(own: RunSums) -> Tensor:
        cka = similarity.cka(own.hsic.sum(0))
        accuracy = own.right.sum(0) / own.images.sum()
        across = torch.stack([cka[run, :at, at:].nanmean() for run, at in enumerate(places, 1)])
        whole = torch.stack([cka[0, :at, at:].nanmean() for at in places])
        return torch.stack([accuracy[1:], accuracy[0] - accuracy[1:], across, whole, whole - across])

    interval = jackknife(statistic, sums.to("cpu"))
    _, _, across, across_intact, _ = interval.value.numpy()
    rows = Interval(*(part.transpose(-1, -2) for part in interval))  # a row per block
    own = rows.of(0).of_share(float(sums.images.sum())).columns("accuracy", "accuracy_low", "accuracy_high")
    del own[f"accuracy{WITHOUT}"]
    return pd.DataFrame({"block": list(changed), "across": across}).assign(
        **own,
        **rows.of(1).columns("drop"),
        across_intact=across_intact,
        **rows.of(4).columns("across_drop", "across_low", "across_high"),
    )


def _reference(known: Sequence[int] | None) -> str:
    return "intact model" if known is None else "labels"


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    columns = [
        "model",
        "block",
        "reference",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "drop",
        "low",
        "high",
    ]
    columns += ["across", "across_intact", "across_drop", "across_low", "across_high"]
    return table[[*columns, f"drop{WITHOUT}", f"across_drop{WITHOUT}"]]
