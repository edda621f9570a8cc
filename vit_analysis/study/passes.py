"""The study: every table of its `plans`, measured in as few passes as can be, or read again where nothing has changed.

Every analysis that only reads activations shares one pass: each image goes once through each model. Receptive fields need
gradients and lesions change the models, so they have passes of their own; probes learn from images of their own. Tables are
written beside the pictures with a key of all that they depend on, and are read again as long as it is the same; with another
key they are replaced. A table of that name without a key is that of another command, and is put aside.
"""

import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from vit_analysis import command, table
from vit_analysis.images import Images
from vit_analysis.reading import measure, processes, state
from vit_analysis.reading.measure import Measurement, covers
from vit_analysis.spelling import Refusal
from vit_analysis.study import parts as parts_of_study
from vit_analysis.study import plans
from vit_analysis.study.evidence import Study
from vit_analysis.study.loaded import Cast
from vit_analysis.study.parts import LAB_PARTS, Parts
from vit_analysis.study.plans import TABLES, TWO_OF_ONE
from vit_analysis.typed import Choice, Machine

logger = logging.getLogger(__name__)

IMAGES, TRAIN, SAME = map(Images.of, (parts_of_study.IMAGES, parts_of_study.TRAIN, parts_of_study.SAME))


def of(
    parts: Parts,
    images: Choice,
    train: Choice,
    out: Path,
    *,
    labelled: Choice = SAME,
    wanted: Collection[str] | None = None,
    twins: bool = True,
    machine: Machine = Machine(),  # noqa: B008  (frozen)
) -> "Study":
    """Run the study of these models, or of the lab's where none is named, with their untrained twins or without; see `run`."""
    cast = Cast.load(parts if parts.names() else LAB_PARTS, machine, twins=twins)
    return run(cast, Images.of(images), Images.of(train), out, wanted, Images.of(labelled))


def run(
    cast: Cast,
    images: Images,
    train: Images,
    out: Path,
    wanted: Collection[str] | None = None,
    labelled: Images = SAME,
) -> Study:
    """Make every table that these models and images allow: measured or, if nothing changed, read again.

    Args:
        cast: the models.
        images: the images that everything is measured on.
        train: the images that probes learn from.
        out: folder of the tables, `NAME.parquet` each.
        wanted: names of tables; None is all of `plans.TABLES`.
        labelled: images with classes, for probes and the soft nearest neighbour loss in place of ``images``.
    """
    missing = dict[str, str]()
    todo: dict[str, list[Measurement[Any]]] = {}
    own = plans.balanced(images)
    known = plans.balanced(labelled) if labelled.source else own
    for name, plan in plans.by_table(cast, images, own, train, known).items():
        if not _asked(name, wanted):
            continue
        try:
            todo[name] = plan()
        except Refusal as error:  # an analysis that does not apply says so before it reads an image
            missing[name] = str(error)
        except Exception as fault:
            fault.add_note(f"in the plan of the table {name!r}")
            raise
    kept = {name: _kept(out, name, own, whole=wanted is None) for name, own in todo.items()}
    tables = {
        name: own
        for name, own in kept.items()
        if own is not None and all(kept[other] is not None for other in TWO_OF_ONE.get(name, ()))
    }
    groups = [
        _split(group) for group in _passes({name: own for name, own in todo.items() if name not in tables})
    ]
    passes = [one for group in groups for one in group]
    measure.say(passes, f"{out}{os.sep}")
    called = iter(measure.titles(passes))
    for group in groups:
        tables |= _measured(group, todo, out, called)
    return Study(cast.parts, {name: tables[name] for name in todo}, missing)


def files(out: Path, wanted: Collection[str] | None = None) -> list[Path]:
    """The files of the tables that `run` writes to a folder, if these are wanted."""
    return [out / f"{name}.parquet" for name in TABLES if _asked(name, wanted)]


def _asked(name: str, wanted: Collection[str] | None) -> bool:
    return wanted is None or bool({name, *TWO_OF_ONE.get(name, ())} & set(wanted))


def _key(measurements: list[Measurement[Any]]) -> str:
    facts = [[measurement.key() for measurement in measurements], table.versions()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _kept(out: Path, name: str, measurements: list[Measurement[Any]], *, whole: bool) -> pd.DataFrame | None:
    """The table of an earlier run, if nothing that it depends on has changed.

    Of a part of the study, a table of more models serves as well: figures take the rows that they need.
    """
    own = [one.identity() for one in measurements]
    for path in (out / f"{name}.parquet", *(() if whole else [_of_few(out, name)])):
        facts = table.facts(path) if path.is_file() else {}
        there = facts.get("made_of", ())
        served = not whole and all(any(covers(more, one) for more in there) for one in own)
        if facts.get("key") == _key(measurements) or served:
            logger.info("kept %s", path)
            return table.read(path)
    return None


def _of_few(out: Path, name: str) -> Path:
    """Return where the table of a few models lies, if one of more models has the plain name."""
    return out / f"{name}_of_few.parquet"


def _passes(todo: Mapping[str, list[Measurement[Any]]]) -> list[dict[str, list[Measurement[Any]]]]:
    """Group the tables that share a pass: all of the same images, but for those that cannot share one."""
    groups: dict[str, dict[str, list[Measurement[Any]]]] = {}
    for name, measurements in todo.items():
        first = measurements[0]
        own = [one.key() for one in measurements] if first.alone else first.reading.images.facts()
        groups.setdefault(json.dumps(own, sort_keys=True), {})[name] = measurements
    return list(groups.values())


def _split(group: Mapping[str, list[Measurement[Any]]]) -> list[dict[str, Measurement[Any]]]:
    """The passes of one group: one or, for measurements that cannot share one, several; by the table's name and a number."""
    passes: dict[Any, dict[str, Measurement[Any]]] = {}
    for name, own in group.items():
        for number, one in enumerate(own):
            passes.setdefault(one.sums if one.alone else (), {})[f"{name} {number}"] = one
    return list(passes.values())


@state.keeping()
def _measured(
    passes: list[dict[str, Measurement[Any]]],
    todo: Mapping[str, list[Measurement[Any]]],
    out: Path,
    called: Iterator[str],
) -> dict[str, pd.DataFrame]:
    """Measure and write the tables of one group of passes; each takes the next of the names that passes are called by."""
    parts: dict[str, list[pd.DataFrame]] = {}
    for together in passes:
        for place, part in measure.tables(together, out / "study", next(called)).items():
            parts.setdefault(place.rpartition(" ")[0], []).append(part)
    tables = {}
    for name, own in parts.items():
        tables[name] = _joined(own)
        _write(tables[name], out, name, todo[name])
    return tables


def _joined(parts: list[pd.DataFrame]) -> pd.DataFrame:
    whole = pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]
    digests = {name: digest for part in parts for name, digest in part.attrs["models"].items()}
    whole.attrs = parts[0].attrs | table.light({"models": digests})
    return whole


def _write(result: pd.DataFrame, out: Path, name: str, measurements: list[Measurement[Any]]) -> None:
    """Write a table; one of more models that is there stays, and that of a few lies beside until more are measured."""
    if processes.rank_and_size()[0]:
        return
    made_of = [one.identity() for one in measurements]
    facts = {"key": _key(measurements), "command": command.line(), "made_of": made_of}
    result.attrs.update(table.light(facts))
    path, few = out / f"{name}.parquet", _of_few(out, name)
    there = _models(table.facts(path).get("made_of", ())) if path.is_file() else set()
    if there > _models(made_of):
        path = few
    elif few.is_file() and "key" in table.facts(few):
        few.unlink()
    command.make_room(path, lambda own: "key" in table.facts(own))
    table.write(result, path)
    logger.info("wrote %s", path)


def _models(made_of: Iterable[Mapping[str, Any]]) -> set[str]:
    """The names of the models that a table holds."""
    return {name for one in made_of for name in one["models"]}
