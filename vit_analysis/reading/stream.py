"""The one loop: images through models, batch by batch, what the taps saw reduced inside the hooks."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from vit_analysis import layers
from vit_analysis.images import Images
from vit_analysis.models import Model
from vit_analysis.reading import processes
from vit_analysis.reading.capture import Run, capture
from vit_analysis.reading.intervene import channels_last, evaluating
from vit_analysis.reading.state import Sums


class Pass(NamedTuple):
    """One batch, seen by every model.

    Attributes:
        number: of the batch among all batches of the run.
        size: images in it.
        seen: by model name and layer, what the activation was reduced to, in order of execution.
        labels: classes of the images, -1 where there are none.
        images: numbers of the images in their source.
    """

    number: int
    size: int
    seen: dict[str, dict[str, Any]]
    labels: Tensor
    images: list[int]


@dataclass(frozen=True)
class Reading:
    """What is read of which models on which images: the input of every analysis.

    Attributes:
        models: by name.
        images: which images.
        taps: places to read, by model name.
        reduce: from (model name, layer, activation) to what is kept of it; called inside the hook.
        differentiate: from (model name, numbers of the images, the model's input, what was kept) to what is kept instead.
            Where it is given, models run with gradients with respect to their input.
        settings: what else the sums depend on, so that no run goes on from the sums of another; JSON's types.
    """

    models: Mapping[str, Model]
    images: Images
    taps: Mapping[str, Sequence[str]]
    reduce: Callable[[str, str, Tensor], Any]
    differentiate: Callable[[str, list[int], Tensor, dict[str, Any]], dict[str, Any]] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """What a table says of its origin, and what decides whether a state fits."""
        models = {name: model.digest for name, model in self.models.items()}
        return {"models": models, "images": self.images.facts()}


def stream(reading: Reading, start: int = 0) -> Iterator[Pass]:
    """Every batch of this process from number ``start`` on, through every model."""
    models, images = reading.models, reading.images
    wanted = list(dict.fromkeys(model.preprocessing for model in models.values()))
    rank, of = processes.processes()
    with ExitStack() as stack:
        runs = {}
        for name, model in models.items():
            stack.enter_context(evaluating(model.module))
            if layers.is_convolutional(model.module) and not as_they_are():
                stack.enter_context(channels_last(model.module))
            runs[name] = stack.enter_context(
                capture(model.module, reading.taps[name], partial(reading.reduce, name))
            )
        for batch in images.read(wanted, rank=rank, of=of, start=start):
            seen = {}
            for name, model in models.items():
                pixels = batch.inputs[wanted.index(model.preprocessing)].to(model.device, non_blocking=True)
                seen[name] = _look(reading, name, runs[name], pixels, batch.images)
            yield Pass(batch.number, len(batch.labels), seen, batch.labels, batch.images)


def as_they_are() -> bool:
    """Whether the user asks (VIT_ANALYSIS_PLAIN=1) that convolutions and the allocator are not tuned."""
    return os.environ.get("VIT_ANALYSIS_PLAIN", "0") not in ("", "0")


def _look(reading: Reading, name: str, run: Run, pixels: Tensor, images: list[int]) -> dict[str, Any]:
    """One batch through one model. The gradient mode ends here: held across the yield, it would leak to the caller."""
    if reading.differentiate is None:
        with torch.inference_mode():
            return run(pixels)
    with torch.inference_mode(False), torch.enable_grad():
        pixels = pixels.clone().requires_grad_()
        return reading.differentiate(name, images, pixels, run(pixels))


@dataclass(frozen=True)
class _Rows(Sums):
    """What was kept of every image, one row each; zeros for images that other processes read."""

    kept: Tensor


def gather(reading: Reading) -> dict[tuple[str, str], Tensor]:
    """What ``reading.reduce`` keeps, a row per image, of all images at once: for few images and little of each.

    Returns:
        By model and layer, in order of execution; rows in the order of ``reading.images.order``, in every process.

    Raises:
        ValueError: there is no batch for some process.
        OSError: an image cannot be read.
        MemoryError: what is kept of all images is more than the free memory of its device.
    """
    rank, of = dealt(reading.images)
    images = reading.images
    parts: list[tuple[slice, dict[str, dict[str, Any]]]] = []
    with tqdm(total=len(range(rank, images.batches, of)), unit="batch", disable=quiet(rank)) as bar:
        for batch in stream(reading):
            processes.company.heed()
            first = batch.number * images.batch
            if batch.images != images.order[first:][: images.batch]:
                raise OSError(
                    "every one of these images is needed, and one of them cannot be read: it is named above"
                )
            if not parts:
                _refuse_too_large(batch, len(images.order))
            parts.append((slice(first, first + batch.size), batch.seen))
            bar.update()
    gathered = {}
    for model, layer in [(model, layer) for model, seen in parts[0][1].items() for layer in seen]:
        pieces = [(rows, seen[model].pop(layer)) for rows, seen in parts]
        whole = pieces[0][1].new_zeros(len(images.order), *pieces[0][1].shape[1:])
        for rows, piece in pieces:
            whole[rows] = piece
        rows_of_all = processes.over_processes(_Rows(whole), whole.device)
        assert rows_of_all  # every process has a batch
        gathered[model, layer] = rows_of_all.kept
    return gathered


def _refuse_too_large(batch: Pass, images: int) -> None:
    """Known after the first batch; what is kept is there twice for a moment, when it is put in one place."""
    needed: dict[torch.device, int] = {}
    for kept in (kept for seen in batch.seen.values() for kept in seen.values()):
        needed[kept.device] = needed.get(kept.device, 0) + 2 * kept.nbytes * images // batch.size
    for device, size in needed.items():
        if size > (free := _free_memory(device)):
            raise MemoryError(
                f"what is kept of {images} images takes {size / 1e9:.1f} GB on {device}, and {free / 1e9:.1f} GB are free; "
                f"choose fewer images (shots, draws), layers or tokens"
            )


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    # Pages that hold files count as taken here although they would be given up, so half of all memory is always allowed.
    page, known = os.sysconf("SC_PAGE_SIZE"), os.sysconf_names
    free = os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in known else 0
    return page * max(free, os.sysconf("SC_PHYS_PAGES") // 2)


def dealt(images: Images) -> tuple[int, int]:
    """(rank of this process, number of processes), of which each must have a batch.

    Raises:
        ValueError: there are fewer batches than processes.
    """
    rank, of = processes.processes()
    if images.batches < of:
        raise ValueError(
            f"{of} processes need at least {of} batches, there are {images.batches}; lower images.batch"
        )
    return rank, of


def quiet(rank: int) -> bool | None:
    """No progress bar but on the first process, and there only in a terminal."""
    return True if rank else None
