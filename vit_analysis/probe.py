"""What a linear classifier can read from each layer, from few examples: linear probes (figures 11, 13, D.4 and F.1-F.3).

Raghu et al. (2021, appendix): frozen features, ridge regression onto targets -1 and +1 in closed form (`ridge`), ten images
per class, argmax; the penalty of each probe is chosen on held-out training images. A Vision Transformer's layer is a block's
raw output, of which a probe reads the class token, a mean over tokens, or one token; a CNN's map is first brought to the size
of its last one (`tokens.aligned`) and then averaged, or read position by position.

On the lab's scenes the same images have three targets: shape (10 classes), texture (4) and position (in which of 3 x 3 equally
likely cells the object's centre lies, so that all three are classifications).

    python -m vit_analysis.probe
    python -m vit_analysis.probe vit_base_patch16_224 resnet50 --train.source ~/imagenet/train --images.source ~/imagenet/val
"""

if __name__ == "__main__":  # before anything heavy is imported
    from vit_analysis.shell import running

    running.begin("probe")


import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float32, Float64, Int
from torch import Tensor

from vit_analysis import layers
from vit_analysis.anatomy.modes import evaluating
from vit_analysis.images import AnyImages, Images
from vit_analysis.layers import Tap, choose
from vit_analysis.models import Model, Models
from vit_analysis.reading import portions
from vit_analysis.reading.capture import Capture
from vit_analysis.reading.intervals import jackknife
from vit_analysis.reading.measure import Measurement
from vit_analysis.reading.portions import Place
from vit_analysis.reading.state import Grouped
from vit_analysis.reading.stream import Activation, Pass, Reading, one_image, prepared, refuse_beyond_memory
from vit_analysis.spelling import Refusal, did_you_mean
from vit_analysis.table import WITHOUT, placed, with_provenance
from vit_analysis.tensors import ridge
from vit_analysis.tensors.precision import full_float32
from vit_analysis.tensors.tokens import Layout, aligned, as_tokens, channels_first

logger = logging.getLogger(__name__)

AGGREGATES = ("cls", "mean", "mean_spatial")
EACH = "each"
# Scenes cost nothing, and ten examples per class do not teach a linear classifier what a texture is.
FREE_SHOTS, FEW_SHOTS = 100, 10
SCENES = Images(limit=100_000, seed=1)


@dataclass(frozen=True)
class Shots:
    """The examples that probes learn from.

    Attributes:
        images: the images to choose from.
        count: examples per class.
        draws: independent choices of examples, no image in two of them; one more is held out, to choose penalties on.
    """

    images: Images
    count: int = 10
    draws: int = 5

    def chosen(self) -> dict[str, Int[Tensor, "draw example"]]:
        """Choose the examples of each target, by image number: ``count`` of each class in turn; the last draw is held out.

        Raises:
            Refusal: there are no classes, or too few images of one.
        """
        if min(self.count, self.draws) < 1:
            raise Refusal(f"a probe needs at least 1 shot and 1 draw, got {self.count} and {self.draws}")
        if not self.images.targets:
            raise Refusal(f"{self.images.source!r} has no classes to probe: it needs a folder for each")
        truth = self.images.truth(self.images.order)
        return {target: self._draws(self.images.targets[target], labels) for target, labels in truth.items()}

    def _draws(self, answers: Sequence[str], labels: Int[Tensor, " pool"]) -> Int[Tensor, "draw example"]:
        pool, needed, found = torch.tensor(self.images.order), (self.draws + 1) * self.count, []
        for label, answer in enumerate(answers):
            own = pool[labels == label][:needed]
            if len(own) < needed:
                raise Refusal(
                    f"{self.draws} draws of {self.count} shots and as many held out need {needed} images of each class; of "
                    f"{answer!r} there are {len(own)} among {len(pool)}; lower shots or draws, or raise train.limit"
                )
            found.append(own.view(self.draws + 1, self.count))
        return torch.cat(found, dim=1)


@dataclass(frozen=True)
class Correct(Grouped):
    """The sums over batches of the images that each probe classifies correctly."""

    correct: Float64[Tensor, "group probe draw"]
    probes: list[list[str]]
    """[model, layer, target, tokens] of each probe, in order of execution."""


@dataclass(frozen=True)
class Reader:
    """The representations that are probed in a model's activations.

    Attributes:
        tokens: as given to `measure`.
        layout: how the model arranges its tokens and channels.
        last: channels, rows and columns of the model's last map; None where it has none.
    """

    tokens: tuple[str, ...]
    layout: Layout
    last: tuple[int, int, int] | None = None

    def __call__(self, activation: Tensor) -> dict[str, Float32[Tensor, "image feature"]]:
        """Return the representations by name; single tokens are named by their number, row by row."""
        prefix = self.layout.prefix_of(activation)
        if activation.ndim == 4 and self.last:
            activation = aligned(channels_first(activation, self.layout), self.last[0], self.last[1:])
        every = as_tokens(activation, self.layout).float()
        spatial = every[:, prefix:]
        parts: dict[str, Tensor] = {}
        for token in self.tokens:
            if token == "cls" and self.layout.has_class_token(activation):
                parts[token] = every[:, 0]
            elif token == "mean" or (token == "mean_spatial" and prefix and spatial.shape[1]):
                parts[token] = (every if token == "mean" else spatial).mean(1)
            elif token == EACH:
                parts |= {str(place): one for place, one in enumerate(spatial.unbind(1))}
            elif token.isdigit() and int(token) < spatial.shape[1]:
                parts[token] = spatial[:, int(token)]
        return parts


@dataclass(frozen=True)
class Probe:
    """The probes of one layer and one target, one per token and draw: logits are ``(x - centre) @ weight + bias``."""

    centre: Float32[Tensor, "token feature"]
    weight: Float32[Tensor, "token draw feature answer"]
    bias: Float32[Tensor, "token draw answer"]

    @classmethod
    def joined(cls, parts: Sequence["Probe"]) -> "Probe":
        """The probes of several tokens, one after another."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat([getattr(part, own.name) for part in parts]) for own in fields(cls)))

    def __call__(self, x: Float32[Tensor, "image token feature"]) -> Int[Tensor, "image token draw"]:
        """Return the class that each probe predicts."""
        axes = "image token feature, token draw feature answer -> image token draw answer"
        with full_float32(x.device):
            return (einsum(x - self.centre, self.weight, axes) + self.bias).argmax(-1)


def measure(
    models: Models,
    images: AnyImages,
    shots: Shots | None = None,
    *,
    layers: str | Sequence[str] = "blocks",
    tokens: Sequence[str] = AGGREGATES,
    state: Path | None = None,
) -> pd.DataFrame:
    """Accuracy of linear probes on every layer of all models.

    Args:
        models: loaded models or names, one or several, or any modules under names of your own (then with layer patterns).
        images: which images the probes are judged on: `Images`, a path or a torch data set; those among them that are examples
            are left out.
        shots: which images the probes learn from; None takes 100 other scenes per class for scenes, otherwise 10 of the images
            per class.
        layers: ``paper``, ``blocks``, or one or several glob patterns over module paths.
        tokens: what of a layer is probed: ``cls``, ``mean`` (all tokens), ``mean_spatial`` (all but class token and registers;
            only where there are some), ``each`` (every spatial token on its own) or the number of one, row by row.
        state: where the run saves its sums, so that a killed run can go on from there; None saves nothing.

    Returns:
        Columns model, layer, depth, tokens, target, shots, draw, accuracy: one row per probe, in order of execution. ``attrs``
        has the chance level of each target, what each model's own head reads (``native``), and the rows and columns of single
        tokens (``grids``). accuracy_without holds the values without each group of batches.

    Raises:
        Refusal: images without classes, two sources with different classes, too few examples, or tokens that no layer has.

    Examples:
        >>> table = measure("lab/vit", Images(limit=512), Shots(Images(limit=10_000, seed=1)))    # doctest: +SKIP
    """
    return plan(models, images, shots, layers=layers, tokens=tokens).table(state)


def plan(
    models: Models,
    images: AnyImages,
    shots: Shots | None = None,
    *,
    layers: str | Sequence[str] = "blocks",
    tokens: Sequence[str] = AGGREGATES,
) -> Measurement[Correct]:
    """Plan what `measure` computes without running it, so that one pass over the images can serve several analyses.

    Before that pass, the probes learn from the examples in a pass of their own.
    """
    loaded, images = prepared(models, images)
    shots = shots or Shots(*((SCENES, FREE_SHOTS) if images.endless else (images, FEW_SHOTS)))
    chosen = shots.chosen()
    examples = shots.images.only(torch.cat([draws.flatten() for draws in chosen.values()]).unique().tolist())
    images = _judged(images, examples)
    taps = choose(loaded, layers)
    readers, names, sizes = _readers(loaded, taps, tokens, examples)
    probes: dict[Place, dict[str, Probe]] = {}

    def learn() -> None:
        probes.update(_learn(Reading(loaded, examples, taps, partial(_stack, readers)), sizes, chosen))

    settings = {"shots": shots.count, "draws": shots.draws, "tokens": list(tokens), "train": examples.facts()}
    reading = Reading(loaded, images, taps, partial(_answer, readers, probes), settings=settings)
    facts = {
        **settings,
        "layers": layers,
        "chance": {target: 1 / len(answers) for target, answers in images.targets.items()},
        "native": _native(loaded),
        "grids": _grids(loaded, readers),
    }

    def finish(sums: Correct) -> pd.DataFrame:
        return with_provenance(_table(sums, shots.count), "probe", **reading.facts(), **facts)

    return Measurement(reading, partial(_fold, images, names), Correct, finish, learn)


def _judged(images: Images, examples: Images) -> Images:
    """The images to judge on, without those that are examples."""
    if images.targets != examples.targets:
        raise Refusal(
            f"probes learn the classes of {examples.source!r} ({_told(examples.targets)}) and are judged on those of "
            f"{images.source!r} ({_told(images.targets)}); give train.source and images.source the same classes"
        )
    rest = images.without(examples)
    if rest == images.order:
        return images
    if not rest:
        raise Refusal(
            f"all {len(images.order)} images of {images.source!r} are examples; there are none to judge on"
        )
    return images.only(rest)


def _told(targets: Mapping[str, Sequence[str]]) -> str:
    """The number of classes and the first three names."""
    answers = next(iter(targets.values()), [])
    return (
        f"{len(answers)}: {', '.join(answers[:3])}{', ...' if len(answers) > 3 else ''}"
        if answers
        else "none"
    )


def _readers(
    models: Mapping[str, Model], taps: Mapping[str, Sequence[Tap]], tokens: Sequence[str], images: Images
) -> tuple[dict[str, Reader], dict[Place, list[str]], dict[Place, tuple[int, int]]]:
    """Return the reader of every model; of every layer the names of what it reads, and their number and that of features.

    They are found by running one image.
    """
    if unknown := [token for token in tokens if token not in (*AGGREGATES, EACH) and not token.isdigit()]:
        near = did_you_mean(unknown[0], (*AGGREGATES, EACH))
        raise Refusal(f"no tokens {unknown[0]!r} to probe; {near} Or the number of a spatial token")
    readers: dict[str, Reader] = {}
    names: dict[Place, list[str]] = {}
    sizes: dict[Place, tuple[int, int]] = {}
    for name, model in models.items():
        layout, read = layers.layout(model), [*taps[name], *map(Tap, layers.last_block(model))]
        with evaluating(model.module), torch.no_grad(), Capture(model.module, read) as run:
            pixels = one_image(images, model)
            run.learn_axes(pixels)
            seen = run(pixels)
        maps = [channels_first(value, layout) for value in seen.values() if value.ndim == 4]
        last = (maps[-1].shape[1], maps[-1].shape[2], maps[-1].shape[3]) if maps else None
        readers[name] = Reader(tuple(dict.fromkeys(tokens)), layout, last)
        for layer, value in seen.items():
            if parts := readers[name](value):
                names[name, layer] = list(parts)
                sizes[name, layer] = len(parts), next(iter(parts.values())).shape[1]
    if not names:
        raise Refusal(f"no chosen layer has any of the tokens {', '.join(tokens)}")
    return readers, names, sizes


def _stack(readers: Mapping[str, Reader], activation: Activation) -> Tensor | None:
    """Stack the representations of a batch, ``image token feature``; None where the layer has none of those wanted."""
    parts = readers[activation.model.name](activation.values)
    return torch.stack(list(parts.values()), dim=1) if parts else None


def _learn(
    reading: Reading, sizes: Mapping[Place, tuple[int, int]], chosen: Mapping[str, Tensor]
) -> dict[Place, dict[str, Probe]]:
    """Fit the probes of every layer and target, on as many tokens at a time as there is room for.

    Raises:
        Refusal: activations are not finite, or the weights of all probes are more than the free memory.
    """
    images = reading.images
    draws, answers = len(next(iter(chosen.values()))) - 1, [len(images.targets[target]) for target in chosen]
    weights = 4 * sum(draws * tokens * width * count for tokens, width in sizes.values() for count in answers)
    refuse_beyond_memory(weights, next(iter(reading.models.values())).device, "what probes have learnt")
    dealt = portions.dealt(sizes, len(images.order))
    logger.info(
        "probes: %.2g GB of weights, learnt from at most %.2g GB of activations at a time; %d examples go through models %s",
        weights / 1e9,
        portions.held(dealt, sizes, len(images.order)) / 1e9,
        len(images.order),
        f"{len(dealt)} times" if len(dealt) > 1 else "once",
    )
    parts: dict[Place, list[dict[str, Probe]]] = {}
    for place, values in portions.gathered(reading, dealt, "examples that probes learn from"):
        if not values.isfinite().all():
            raise Refusal(f"{str(place[1])!r} of {place[0]} has values that are not finite")
        parts.setdefault(place, []).append(_fitted(values, images, chosen))
    return {
        place: {target: Probe.joined([part[target] for part in own]) for target in chosen}
        for place, own in parts.items()
    }


def _fitted(
    values: Float32[Tensor, "image token feature"], images: Images, chosen: Mapping[str, Tensor]
) -> dict[str, Probe]:
    """Fit the probes of some tokens of one layer, by target; the values are overwritten."""
    row = {number: place for place, number in enumerate(images.order)}
    centre = values.mean(0)
    values -= centre
    probes = {}
    for target, draws in chosen.items():
        rows = torch.tensor(
            [[row[number] for number in draw] for draw in draws.tolist()], device=values.device
        )
        labels = images.truth(draws[0].tolist())[target].to(values.device)
        weight, bias = ridge.fit(values[None], rows, labels, len(images.targets[target]))
        probes[target] = Probe(centre, weight[0], bias[0])
    return probes


def _answer(
    readers: Mapping[str, Reader], probes: Mapping[Place, Mapping[str, Probe]], activation: Activation
) -> dict[str, Int[Tensor, "image token draw"]] | None:
    """Return the classes that the probes of a layer predict, by target; None where the layer is not probed."""
    values = _stack(readers, activation)
    if values is None:
        return None
    return {target: own(values) for target, own in probes[activation.model.name, activation.layer].items()}


def _fold(images: Images, names: Mapping[Place, Sequence[str]], batch: Pass) -> Correct:
    truth = images.truth(batch.images)
    rows: list[Tensor] = []
    probes: list[list[str]] = []
    for model, layer, answers in batch.kept():
        for target, answer in answers.items():
            right = answer == truth[target].to(answer.device)[:, None, None]
            rows.append(right.sum(0).double().to(rows[0].device if rows else answer.device))
            probes += [[model, str(layer), target, token] for token in names[model, layer]]
    correct = torch.cat(rows)
    return Correct.of_batch(batch.number, batch.size, correct=correct, probes=probes)


def _table(sums: Correct, shots: int) -> pd.DataFrame:
    interval = jackknife(lambda own: own.correct.sum(0).flatten() / own.images.sum(), sums)
    probes = placed(sums.probes, "target", "tokens")
    draws = sums.correct.shape[2]
    table = probes.loc[probes.index.repeat(draws)].reset_index(drop=True)
    table = table.assign(shots=shots, draw=list(range(draws)) * len(probes), **interval.columns("accuracy"))
    names = ["model", "layer", "depth", "tokens", "target", "shots", "draw", "accuracy"]
    return table[[*names, f"accuracy{WITHOUT}"]]


def _native(models: Mapping[str, Model]) -> dict[str, str]:
    return {name: layers.representation(model) for name, model in models.items()}


def _grids(models: Mapping[str, Model], readers: Mapping[str, Reader]) -> dict[str, list[int]]:
    """Rows and columns of the grid of each model's single tokens; models whose tokens have no place are left out."""
    grids = {}
    for name, model in models.items():
        if last := readers[name].last:
            grids[name] = list(last[1:])
        else:
            with contextlib.suppress(Refusal):
                grid = layers.grid(model)
                grids[name] = [grid.rows, grid.columns]
    return grids
