"""The one loop over images: batch by batch through every model, with what the taps see reduced inside the hooks."""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vit_analysis import layers
from vit_analysis.anatomy.modes import evaluating
from vit_analysis.anatomy.positions import positions
from vit_analysis.images import AnyImages, Images, Listed, given
from vit_analysis.layers import Tap
from vit_analysis.models import Model, Models, named
from vit_analysis.reading import graphs, processes, progress
from vit_analysis.reading.capture import Capture, Layer, trouble
from vit_analysis.reading.intervene import channels_last
from vit_analysis.reading.state import Sums
from vit_analysis.spelling import Refusal
from vit_analysis.tensors.grams import Grams
from vit_analysis.tensors.precision import computing
from vit_analysis.tensors.tokens import Grid, Layout
from vit_analysis.typed import as_they_are

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Activation:
    """One activation of one batch of images, as a reducer is given it.

    Attributes:
        model: the model that it comes from.
        layer: where it was read.
        values: a tensor, or `heads.Heads` where the tap asks for heads.
        layout: how the model arranges its tokens and channels.
    """

    model: Model
    layer: Layer
    values: Any
    layout: Layout

    @cached_property
    def grams(self) -> Grams:
        """Its Gram matrices, each made once for all measurements that share the pass."""
        return Grams(self.values, self.layout)

    def __str__(self) -> str:
        return f"{str(self.layer)!r} of {self.model.name}"


class Pass(NamedTuple):
    """One batch, seen by every model.

    Attributes:
        number: which batch it is among all batches of the run.
        size: number of images in it.
        seen: what each activation was reduced to, by model name and layer, in order of execution.
        labels: classes of the images, -1 where there are none.
        images: numbers of the images in their source.
    """

    number: int
    size: int
    seen: Mapping[str, Mapping[Layer, Any]]
    labels: Tensor
    images: list[int]

    def kept(self) -> list[tuple[str, Layer, Any]]:
        """List (model name, layer, what was kept of it), model after model."""
        return [(model, layer, kept) for model, own in self.seen.items() for layer, kept in own.items()]

    def refuse_not_finite(self, values: Tensor, names: Sequence[str]) -> None:
        """Check that numbers, with a row for each name, are finite before they are added to others.

        Raises:
            Refusal: some are not finite; it gives the name of the first such row.
        """
        finite = values.flatten(1).isfinite().all(1) if values.ndim > 1 else values.isfinite()
        if not finite.all():
            first = names[int(finite.logical_not().nonzero()[0])]
            raise Refusal(f"{first} has values that are not finite in batch {self.number}")


@dataclass(frozen=True)
class Reading:
    """The input of every analysis: what is read of which models on which images.

    Attributes:
        models: the models, by name.
        images: the images.
        taps: places to read, by model name.
        reduce: function from an activation to what is kept of it, called inside the hook; None leaves the layer out.
        differentiate: function from a model, the numbers of the images, its input and what was kept, to what is kept instead.
            Where it is given, models run with gradients with respect to their input.
        settings: what else the sums depend on, in types that JSON has, so that no run goes on from the sums of another.
        steady: whether the same is done to every batch, so that a GPU may be told of it once (`graphs`).
        whole: whether it asks for Gram matrices of whole batches, of which others can then cut out what they need.
    """

    models: Mapping[str, Model]
    images: Images
    taps: Mapping[str, Sequence[Tap]]
    reduce: Callable[[Activation], Any]
    differentiate: Callable[[Model, list[int], Tensor, Mapping[Layer, Any]], Mapping[Layer, Any]] | None = (
        None
    )
    settings: Mapping[str, Any] = field(default_factory=dict)
    steady: bool = False
    whole: bool = False

    @classmethod
    def of(
        cls,
        models: Models,
        images: AnyImages,
        chosen: str | Sequence[str],
        reduce: Callable[[Activation], Any],
        **settings: Any,
    ) -> "Reading":
        """Read the chosen layers (`layers.choose`) of models and images in any form that an analysis takes."""
        loaded, images = prepared(models, images)
        taps = layers.choose(loaded, chosen)
        return cls(loaded, images, taps, reduce, settings=settings)

    def facts(self) -> dict[str, Any]:
        """Return what a table's provenance says of models and images, and what decides whether saved sums fit."""
        models = {name: model.digest for name, model in self.models.items()}
        precision = {name: model.precision for name, model in self.models.items() if model.precision}
        return {
            "models": models,
            "images": self.images.facts(),
            **({"precision": precision} if precision else {}),
        }


def stream(reading: Reading, start: int = 0) -> Iterator[Pass]:
    """Yield every batch of this process from number ``start`` on, run through every model."""
    models, images = reading.models, reading.images
    wanted = list(dict.fromkeys(model.preprocessing for model in models.values()))
    rank, size = processes.rank_and_size()
    if not isinstance(getattr(images, "data", None), Tensor):  # tensors go in as they are
        _say_assumed(models.values())
    with ExitStack() as stack:
        runs = {name: stack.enter_context(hooked(reading, model)) for name, model in models.items()}
        for batch in images.read(wanted, rank=rank, of=size, start=start):
            seen = {}
            for name, model in models.items():
                pixels = batch.on(model.device, wanted.index(model.preprocessing))
                seen[name] = look(reading, model, runs[name], pixels, batch.images)
            yield Pass(batch.number, len(batch.labels), seen, batch.labels, batch.images)


def prepared(models: Models, images: AnyImages) -> tuple[dict[str, Model], Images]:
    """Models by name, and images, in any form that an analysis takes.

    Images that are given, and go in as they are, have a size of their own, which decides where a model's tokens lie.
    """
    loaded, images = named(models), given(images)
    if type(images) in (Images, Listed):
        return loaded, images
    sized = {}
    for name, model in loaded.items():
        shape, own = one_image(images, model).shape, model.preprocessing
        wanted = (own.channels, *shape[2:])
        same = len(shape) != 4 or own.input_size == wanted
        sized[name] = model if same else replace(model, preprocessing=replace(own, input_size=wanted))
    return sized, images


def _say_assumed(models: Iterable[Model]) -> None:
    for model in models:
        if model.assumed:
            own = model.preprocessing
            mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (own.mean, own.std))
            logger.warning(
                "%s: how its images are prepared is not known; assumed are %d x %d pixels, mean %s, standard deviation %s; "
                "say it with models.own(..., preprocessing=...)",
                *(model.name, *own.input_size[1:], mean, std),
            )


def one_image(images: Images, model: Model) -> Tensor:
    """The first of some images, as a model's input: for what has to be found out before all of them are read."""
    wanted, of = [model.preprocessing], images.batches  # batch by batch, as worker processes would read ahead
    batch = next(batch for rank in range(of) for batch in images.read(wanted, rank=rank, of=of))
    with torch.inference_mode(False):
        return as_input_of(model, batch.inputs[0][:1])


def places(images: Images, model: Model) -> dict[tuple[int, int], Grid]:
    """Find where the positions of a model's maps lie in its input.

    Raises:
        Refusal: the model does not take such images.
    """
    pixels = one_image(images, model)
    try:
        return positions(model.module, pixels)
    except (Refusal, OSError):
        raise
    except Exception as error:
        raise trouble(model.module, pixels, error) from error


def as_input_of(model: Model, pixels: Tensor) -> Tensor:
    """The images on the model's device and in its precision: a copy, as it may write into it and others read the same."""
    own = pixels.to(model.device, model.dtype, non_blocking=True)
    return own.clone() if own is pixels else own


@contextmanager
def hooked(reading: Reading, model: Model) -> Iterator[Capture]:
    """Make a model ready to be read: in evaluation mode, its convolutions tuned, hooks on its taps."""
    layout = layers.layout(model)

    def reduce(layer: Layer, values: Any) -> Any:
        activation = Activation(model, layer, values, layout)
        try:
            return reading.reduce(activation)
        except Exception as fault:
            fault.add_note(f"in what is kept of {activation}")
            raise

    tuned = layers.is_convolutional(model) and not as_they_are()
    many = reading.steady and reading.images.batches >= graphs.WORTH
    kind = graphs.Recorded if many and model.device.type == "cuda" and not as_they_are() else Capture
    with (
        evaluating(model.module),
        channels_last(model.module) if tuned else nullcontext(),
        kind(model.module, reading.taps[model.name], reduce) as run,
    ):
        yield run


def look(
    reading: Reading, model: Model, run: Capture, pixels: Tensor, images: list[int]
) -> Mapping[Layer, Any]:
    """Run one batch through one model; return what the taps saw.

    The gradient mode is set here and not in `stream`: held across its ``yield``, it would leak to the caller.
    """
    # No inference mode, not even the caller's: what a module caches in it could never be trained with.
    precise = computing(model.precision, model.device) if model.precision else nullcontext()
    with torch.inference_mode(False), torch.set_grad_enabled(reading.differentiate is not None), precise:
        pixels = as_input_of(model, pixels)
        if not run.axes:
            run.learn_axes(pixels)
        if reading.differentiate is None:
            return run(pixels)
        pixels.requires_grad_()
        # A copy, as nothing may write into what gradients are taken with respect to.
        return reading.differentiate(model, images, pixels, run(pixels.clone()))


@dataclass(frozen=True)
class _Rows(Sums):
    """What was kept of every image, one row each; zeros for images that other processes read."""

    kept: Tensor


def gather(reading: Reading, called: str) -> dict[tuple[str, Layer], Tensor]:
    """Collect what ``reading.reduce`` keeps of all images, one row per image: for few images and little of each.

    Args:
        reading: what is read of which models on which images.
        called: what the pass is called while it runs.

    Returns:
        Tensors by model and layer, in order of execution; rows in the order of ``reading.images.order``, in every process.

    Raises:
        Refusal: there is no batch for some process, or what is kept of all images is more than the free memory of its device.
        OSError: an image cannot be read.
    """
    rank, of = dealt(reading.images)
    images = reading.images
    gathered: dict[tuple[str, Layer], Tensor] = {}
    own = sum(
        min(images.batch, len(images.order) - number * images.batch)
        for number in range(rank, images.batches, of)
    )
    with progress.told(called, own) as tell:
        for batch in stream(reading):
            processes.company.heed()
            first = batch.number * images.batch
            if batch.images != images.order[first:][: images.batch]:
                raise OSError(
                    "every one of these images is needed, and one of them cannot be read: it is named above"
                )
            if (
                not gathered
            ):  # all of it at once, since what is kept batch by batch and then joined is there twice
                _refuse_too_large(batch, len(images.order))
                gathered = {
                    (name, layer): kept.new_zeros(len(images.order), *kept.shape[1:])
                    for name, layer, kept in batch.kept()
                }
            for name, layer, kept in batch.kept():
                gathered[name, layer][first : first + batch.size] = kept
            tell(batch.size)
    for place, rows in gathered.items():
        rows_of_all = processes.over_processes(_Rows(rows), rows.device)
        assert rows_of_all  # every process has a batch
        gathered[place] = rows_of_all.kept
    return gathered


def _refuse_too_large(batch: Pass, images: int) -> None:
    """Refuse, after the first batch, to keep more than fits into free memory."""
    needed: dict[torch.device, int] = {}
    for kept in (kept for seen in batch.seen.values() for kept in seen.values()):
        needed[kept.device] = needed.get(kept.device, 0) + kept.nbytes * images // batch.size
    for device, size in needed.items():
        refuse_beyond_memory(size, device, f"what is kept of {images} images")


def refuse_beyond_memory(size: int, device: torch.device, what: str) -> None:
    """Check that so many bytes fit into the free memory of a device.

    Raises:
        Refusal: they do not.
    """
    if size > (free := _free_memory(device)):
        raise Refusal(
            f"{what} takes {size / 1e9:.1f} GB on {device}, and {free / 1e9:.1f} GB are free; "
            f"choose fewer images (shots, draws), layers or tokens"
        )


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not hasattr(
        os, "sysconf"
    ):  # on Windows it is not told, and its own error for too little memory has to do
        return sys.maxsize
    # The page cache counts as taken here although the system would give it up, so half of all memory is always allowed.
    page, known = os.sysconf("SC_PAGE_SIZE"), os.sysconf_names
    free = os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in known else 0
    return page * max(free, os.sysconf("SC_PHYS_PAGES") // 2)


def dealt(images: Images) -> tuple[int, int]:
    """Return (rank of this process, number of processes), after a check that each has a batch.

    Raises:
        Refusal: there are fewer batches than processes.
    """
    rank, of = processes.rank_and_size()
    if images.batches < of:
        raise Refusal(
            f"{of} processes need at least {of} batches, there are {images.batches}; lower images.batch"
        )
    return rank, of
