"""From a pass over the images to tables: resumable sums, on one process or many, of one measurement or several at once.

A `Measurement` is an analysis before any image is read. Several measurements of the same images share one pass:
every image goes once through every model, and what each measurement reads there is reduced and summed by itself.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Generic

import pandas as pd
from torch import Tensor

from vit_analysis.layers import Tap
from vit_analysis.models import Model
from vit_analysis.reading import briefing, processes, progress, rounding
from vit_analysis.reading import state as states
from vit_analysis.reading.capture import Layer
from vit_analysis.reading.state import Sums, SumsType
from vit_analysis.reading.stream import Activation, Pass, Reading, dealt, stream
from vit_analysis.spelling import Refusal
from vit_analysis.table import code, versions
from vit_analysis.tensors.similarity import SMALLEST_BATCH

logger = logging.getLogger(__name__)

SAVE_EVERY = 10.0  # seconds between two writings of the sums; at most that much work is lost


@dataclass(frozen=True)
class Measurement(Generic[SumsType]):
    """The plan of an analysis: what it reads, how that is summed, and how sums become a table.

    Attributes:
        reading: what is read of which models on which images.
        fold: function from a batch to its sums; None leaves the batch out.
        kind: type of the sums.
        finish: function from the sums of all batches to the table.
        prepare: what has to be done before the pass.
        alone: whether it changes or differentiates its models, so that no other measurement can share its pass.
    """

    reading: Reading
    fold: Callable[[Pass], SumsType | None]
    kind: type[SumsType]
    finish: Callable[[SumsType], pd.DataFrame]
    prepare: Callable[[], None] = lambda: None
    alone: bool = False

    @property
    def sums(self) -> tuple[Any, ...]:
        """The identity of the sums: the same for measurements that differ in ``finish`` alone, which are summed once."""
        return id(self.reading), self.fold, self.kind, self.prepare, self.alone

    def key(self) -> str:
        """A digest (sixteen hexadecimal digits) of all that the sums depend on: models, images, taps, settings."""
        facts = {
            **self.reading.facts(),
            "names": list(self.reading.models),  # the order of rows
            "taps": {name: [str(tap) for tap in taps] for name, taps in self.reading.taps.items()},
            "sums": self.kind.__name__,
            "settings": dict(self.reading.settings),
            "prepared": {name: repr(own.preprocessing) for name, own in self.reading.models.items()},
            "told": {name: repr(own.told) for name, own in self.reading.models.items()},
            "code": code(),
            # With one more file in a folder, the same seed chooses other files.
            "order": hashlib.sha256(str(self.reading.images.order).encode()).hexdigest(),
        }
        return _digest(facts)

    def identity(self) -> dict[str, Any]:
        """What `key` depends on, model by model, so that it is seen whether a table of more models has this one's rows.

        Returns:
            shared: a digest of all that is the same for every model; models: one of each model; pairs: those of models whose
            rows the table holds, None for all.
        """
        reading, settings = self.reading, dict(self.reading.settings)
        pairs = settings.pop("pairs", None)
        shared = {
            **{"images": reading.images.facts(), "sums": self.kind.__name__, "settings": settings},
            **{"code": code(), "order": hashlib.sha256(str(reading.images.order).encode()).hexdigest()},
        }
        own = {
            name: [
                model.digest,
                [str(tap) for tap in reading.taps[name]],
                repr(model.preprocessing),
                repr(model.told),
                model.precision,
            ]
            for name, model in reading.models.items()
        }
        return {
            "shared": _digest(shared),
            "models": {name: _digest(facts) for name, facts in own.items()},
            "pairs": pairs,
        }

    @property
    def analysis(self) -> str:
        """The name of the analysis that it is of: of the module that its sums are from."""
        return self.kind.__module__.rpartition(".")[2]

    def table(self, state: Path | None = None) -> pd.DataFrame:
        """Measure, in a pass of its own over the images; see `tables`."""
        ((table,),) = (own.values() for own in in_passes([{"": self}], state))
        return table


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def covers(kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Return whether the table of one `Measurement.identity` holds the rows of another."""
    same = kept["shared"] == wanted["shared"] and wanted["models"].items() <= kept["models"].items()
    if not same or kept["pairs"] is None:
        return same
    return wanted["pairs"] is not None and {*map(tuple, wanted["pairs"])} <= {*map(tuple, kept["pairs"])}


def in_passes(
    passes: Sequence[Mapping[str, Measurement[Any]]], state: Path | None = None
) -> Iterator[dict[str, pd.DataFrame]]:
    """Yield the tables of pass after pass, after some lines of the log on what will be done; see `tables`."""
    say(passes, f"{state}.*" if state else "")
    for title, measurements in zip(titles(passes), passes, strict=True):
        yield tables(measurements, state, title)


def say(passes: Sequence[Mapping[str, Measurement[Any]]], results: str) -> None:
    """Say in the log what these passes will do; ``results`` is where results will lie."""
    told = []
    for title, measurements in zip(titles(passes), passes, strict=True):
        different = {one.sums: one for one in measurements.values()}
        reading = merged({str(number): one for number, one in enumerate(different.values())})
        settings = {name: value for one in different.values() for name, value in one.reading.settings.items()}
        told.append((title, replace(reading, settings=settings), [one.kind for one in different.values()]))
    briefing.say(told, results)
    if not told:
        return  # every table is kept already
    models = {name: own for _, reading, _ in told for name, own in reading.models.items()}
    rounding.say(models, told[0][1].images)


def titles(passes: Sequence[Mapping[str, Measurement[Any]]]) -> list[str]:
    """What each pass is, in words, with its number where there are several."""
    of = f" of {len(passes)}" if len(passes) > 1 else ""
    return [f"pass {number}{of}: {title(one)}" if of else title(one) for number, one in enumerate(passes, 1)]


def title(measurements: Mapping[str, Measurement[Any]]) -> str:
    """What a pass is, in words: lesions of lab/vit, or activations of 25 models for 14 tables."""
    models = list(dict.fromkeys(name for one in measurements.values() for name in one.reading.models))
    what = list(dict.fromkeys(one.analysis for one in measurements.values()))
    who = " and ".join(models) if len(models) < 3 else f"{len(models)} models"
    if len(what) == 1:
        return f"{what[0]} of {who}"
    return f"activations of {who} for {len(measurements)} tables"


def tables(
    measurements: Mapping[str, Measurement[Any]], state: Path | None = None, called: str = ""
) -> dict[str, pd.DataFrame]:
    """The tables of several measurements of the same images, in one pass over them.

    Args:
        measurements: by names of your own.
        state: where a killed run leaves its sums, to go on from; None leaves nothing.
        called: what the pass is called while it runs; empty finds words.

    Raises:
        Refusal: the measurements are of different images, or call different models by the same name.
    """
    sums, finished = total(measurements, state, called), {}
    for name, measurement in measurements.items():
        with _naming(f"in the table of {name or measurement.kind.__name__}"):
            finished[name] = measurement.finish(sums[name])
    return finished


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Add to any error raised inside a note that says where it happened."""
    try:
        yield
    except Exception as fault:
        fault.add_note(place)
        raise


def total(
    measurements: Mapping[str, Measurement[Any]], state: Path | None = None, called: str = ""
) -> dict[str, Any]:
    """Return the sums over all batches and processes; after a kill, the same call goes on from the sums last written.

    Args:
        measurements: by names of your own, of the same images. Those with equal ``sums`` are summed once.
        state: where to write the sums meanwhile, removed when all is done; None never writes. A digest of all that the sums
            depend on is added to the name, so that no other command picks them up.
        called: what the pass is called while it runs; empty finds words.

    Raises:
        Refusal: there is no batch for some process, or none that counts for some measurement.
        ConnectionError: another process failed or died.
    """
    first = {measurements[name].sums: name for name in reversed(list(measurements))}
    different = {name: one for name, one in measurements.items() if first[one.sums] == name}
    reading = merged(different)
    dealt(reading.images)
    path = state_path(state, different) if state else None
    for name, measurement in different.items():
        with _naming(f"before the pass of {name or measurement.kind.__name__}"):
            measurement.prepare()
    sums = _read(reading, different, path, called or title(measurements))
    place = next(iter(reading.models.values())).device
    merged_sums = {name: processes.over_processes(sums.get(name), place) for name in different}
    if any(own is None for own in merged_sums.values()):
        count, size = len(reading.images.order), reading.images.batch
        raise Refusal(
            f"none of the {reading.images.batches} batches could be used: {count} images in batches of {size}, and "
            f"similarities need at least {SMALLEST_BATCH} images in a batch"
        )
    if path:
        states.finish(path)
    return {name: merged_sums[first[one.sums]] for name, one in measurements.items()}


def _read(
    reading: Reading, measurements: Mapping[str, Measurement[Any]], path: Path | None, called: str
) -> dict[str, Sums]:
    """Return the sums of this process's batches, going on from those written to ``path``."""
    (rank, of), batches = processes.rank_and_size(), reading.images.batches
    sums, start = _restored(path, measurements, reading)
    numbers = range(rank, batches, of)
    left = [number for number in numbers if number >= start]
    written, kept = time.monotonic(), start
    try:
        each = len(reading.images.order), reading.images.batch
        count, done = (
            sum(_size(number, *each) for number in own) for own in (numbers, set(numbers) - {*left})
        )
        with progress.told(called, count, done) as tell:
            for batch in stream(reading, start=start):
                processes.company.heed()
                _add(sums, measurements, batch)
                tell(batch.size)
                last = batch.number == left[-1]
                if path and sums and (last or time.monotonic() - written > SAVE_EVERY):
                    states.save(path, sums, batch.number + 1)
                    written, kept = time.monotonic(), batch.number + 1
    except KeyboardInterrupt as stop:
        if path:
            done = len(range(rank, kept, of))
            stop.add_note(f"the same command goes on after {done} of {len(numbers)} batches")
        raise
    return sums


def _size(number: int, images: int, batch: int) -> int:
    """The number of images in a batch."""
    return min(batch, images - number * batch)


def merged(measurements: Mapping[str, Measurement[Any]]) -> Reading:
    """Merge all readings into one, which reduces a layer to a mapping from measurement to what that one keeps.

    Raises:
        Refusal: they are of different images, call different models by the same name, or one cannot share a pass.
    """
    readings = {name: measurement.reading for name, measurement in measurements.items()}
    first = next(iter(readings.values()))
    if any(reading.images.facts() != first.images.facts() for reading in readings.values()):
        raise Refusal(f"measurements of different images cannot share a pass: {', '.join(readings)}")
    if len(readings) > 1 and (alone := [name for name, one in measurements.items() if one.alone]):
        raise Refusal(f"{', '.join(alone)} changes or differentiates its models and cannot share a pass")
    models = _models(readings)
    taps = {
        model: list(
            dict.fromkeys(tap for reading in readings.values() for tap in reading.taps.get(model, ()))
        )
        for model in models
    }

    @cache
    def asking(model: str, tap: Tap) -> list[str]:
        own = [name for name, reading in readings.items() if tap in reading.taps.get(model, ())]
        return sorted(own, key=lambda name: not readings[name].whole)

    def reduce(activation: Activation) -> dict[str, Any] | None:
        asked = asking(activation.model.name, activation.layer.tap)
        kept = {}
        for name in asked:
            try:
                kept[name] = readings[name].reduce(activation)
            except (
                Exception
            ) as fault:  # no `_naming`: a context for every layer, batch and measurement costs time
                fault.add_note(f"in what {name or 'the measurement'} keeps")
                raise
        return {name: value for name, value in kept.items() if value is not None} or None

    steady = not any(one.alone for one in measurements.values())
    return Reading(models, first.images, taps, reduce, _differentiate(readings), steady=steady)


def _models(readings: Mapping[str, Reading]) -> dict[str, Model]:
    models: dict[str, Model] = {}
    for reading in readings.values():
        for name, model in reading.models.items():
            if models.setdefault(name, model).module is not model.module:
                raise Refusal(f"two different models are called {name!r} in one pass")
    return models


def _differentiate(
    readings: Mapping[str, Reading],
) -> Callable[[Model, list[int], Tensor, Mapping[Layer, Any]], dict[Layer, Any]] | None:
    """Make ``differentiate`` of the merged reading; only a measurement that is alone in its pass has one."""
    ((name, reading), *_) = readings.items()
    own = reading.differentiate
    if own is None:
        return None

    def differentiate(
        model: Model, images: list[int], pixels: Tensor, seen: Mapping[Layer, Any]
    ) -> dict[Layer, Any]:
        plain = {layer: kept[name] for layer, kept in seen.items()}
        return {layer: {name: kept} for layer, kept in own(model, images, pixels, plain).items()}

    return differentiate


def _add(sums: dict[str, Sums], measurements: Mapping[str, Measurement[Any]], batch: Pass) -> None:
    """Add a batch to the sums of every measurement for which it counts."""
    for name, measurement in measurements.items():
        seen = {
            model: {layer: kept[name] for layer, kept in batch.seen[model].items() if name in kept}
            for model in measurement.reading.models
        }
        with _naming(f"in the sums of {name or measurement.kind.__name__} of batch {batch.number}"):
            own = measurement.fold(batch._replace(seen=seen))
        if own is not None:
            sums[name] = sums[name] + own if name in sums else own


def _restored(
    path: Path | None, measurements: Mapping[str, Measurement[Any]], reading: Reading
) -> tuple[dict[str, Sums], int]:
    if path is None or not path.exists():
        return {}, 0
    place = next(iter(reading.models.values())).device
    try:
        sums, done = states.restore(path, {name: one.kind for name, one in measurements.items()}, place)
    except OSError as error:
        aside = path.with_suffix(".unreadable")
        path.replace(aside)
        logger.warning(
            "the sums in %s cannot be read (%s): put aside as %s; beginning again", path, error, aside.name
        )
        return {}, 0
    logger.info("going on after batch %d of %d", done, reading.images.batches)
    return sums, done


def state_path(state: Path, measurements: Mapping[str, Measurement[Any]]) -> Path:
    """The file in which this process, of so many, keeps the sums of these measurements during the pass."""
    keys = {name: one.key() for name, one in measurements.items()}
    facts = [keys, processes.rank_and_size(), versions()]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return state.with_name(f"{state.name}.{digest}.state")
