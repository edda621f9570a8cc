"""The study: which model plays which part, what is measured of them in as few passes as can be, and tables that are kept.

Every analysis that only reads activations shares one pass: each image goes once through each model. Receptive fields need
gradients and lesions change the models, so they have passes of their own; probes learn from images of their own. Tables are
written beside the pictures with a key of all that they depend on, and are read again as long as it is the same.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vit_analysis import (
    attention_distance,
    cka,
    command,
    lesions,
    localization,
    models,
    probe,
    receptive_field,
    skip,
    soft_nearest_neighbor,
    table,
)
from vit_analysis.images import LAB, Images
from vit_analysis.lab import zoo
from vit_analysis.models import Model
from vit_analysis.probe import Shots
from vit_analysis.reading import measure, processes, state
from vit_analysis.reading.measure import Measurement
from vit_analysis.spelling import Refusal
from vit_analysis.study.controls import SELECTIONS
from vit_analysis.study.evidence import Study
from vit_analysis.study.parts import LAB_PARTS, Parts, parts_wanted
from vit_analysis.tensors import similarity

logger = logging.getLogger(__name__)

IMAGES = Images(limit=2000, batch=160)  # about 11 batches of 16 scenes of each shape
TRAIN = Images(limit=100_000, seed=1)
FIELDS, CHANNELS = 32, 8  # images for receptive fields, as in the paper, and channels drawn for each image
LESIONED = 320  # images for lesions: each goes through the model once for every block
SHOTS = 20  # per class of scenes: 10 do not tell a linear classifier what a texture is, 100 take longer than all else
SINGLE = 10  # shots of the probes on single tokens, of which there are hundreds


def of(
    parts: Parts,
    images: Images,
    train: Images,
    out: Path,
    *,
    wanted: Collection[str] | None = None,
    device: str | None = None,
) -> "Study":
    """Run the study of these models, or of the lab's where none is named; see `run`."""
    cast = Cast.load(parts if parts.names() else LAB_PARTS, device)
    return run(cast, images, train, out, wanted)


@dataclass(frozen=True)
class Cast:
    """The models of a study.

    Attributes:
        parts: the models by the part they play, under the names that tables use.
        models: the loaded models, by that name, untrained twins included.
    """

    parts: Parts
    models: Mapping[str, Model]

    @classmethod
    def load(cls, parts: Parts, device: str | None = None) -> "Cast":
        """Load the models named; models of the lab whose weights are not there are left out, with a warning."""
        there = parts.change(_there)
        names = [*there.names(), *there.twins()]
        loaded = dict(zip(names, models.load_all(names, device=device), strict=True))
        own = {model.name: model for model in loaded.values()}
        return cls(there.change(lambda name: loaded[name].name), own)

    def of(self, *parts: str) -> list[Model]:
        """The models of these parts."""
        return [self.models[name] for name in self.parts.names(*parts)]

    @property
    def twins(self) -> list[Model]:
        """The untrained twins."""
        return [model for name, model in self.models.items() if name not in self.parts.names()]


def run(cast: Cast, images: Images, train: Images, out: Path, wanted: Collection[str] | None = None) -> Study:
    """Make every table that these models and images allow: measured or, if nothing changed, read again.

    Args:
        cast: the models.
        images: the images that everything is measured on.
        train: the images that probes learn from.
        out: folder of the tables, `NAME.parquet` each.
        wanted: names of tables; None is all of `plans`.
    """
    missing = dict[str, str]()
    todo: dict[str, list[Measurement[Any]]] = {}
    for name, plan in plans(cast, images, balanced(images), train).items():
        if wanted is not None and not {name, *TWO_OF_ONE.get(name, ())} & set(wanted):
            continue
        try:
            todo[name] = plan()
        except Refusal as error:  # an analysis that does not apply says so before it reads an image
            missing[name] = str(error)
        except Exception as fault:
            fault.add_note(f"in the plan of the table {name!r}")
            raise
    kept = {name: _kept(out / f"{name}.parquet", _key(own)) for name, own in todo.items()}
    tables = {
        name: own
        for name, own in kept.items()
        if own is not None and all(kept[other] is not None for other in TWO_OF_ONE.get(name, ()))
    }
    for group in _passes({name: own for name, own in todo.items() if name not in tables}):
        tables |= _measured(group, out)
    return Study(cast.parts, {name: tables[name] for name in todo}, missing)


def balanced(images: Images) -> Images:
    """Arrange the images in batches with equally many of every class, where a batch has room for all classes.

    So the soft nearest neighbour loss, which needs such batches, shares the pass of the other analyses. In a batch that has
    every class anyway, balance changes the share of pairs of the same class, 1 / classes, by less than 1 / images.
    """
    targets = images.targets
    if not targets:
        return images
    first = next(iter(targets))
    if len(targets[first]) * soft_nearest_neighbor.MATES > images.batch:
        return images
    try:
        return soft_nearest_neighbor.balanced(images, first)
    except Refusal:  # too few images of a class
        return images


def plans(
    cast: Cast, unchosen: Images, images: Images, train: Images
) -> dict[str, Callable[[], list[Measurement[Any]]]]:
    """The plans of all tables, by name; the rows of several measurements make one table, one below the other.

    Args:
        cast: the models.
        unchosen: the images in their own order, of which receptive fields take the first few.
        images: the same images, `balanced`.
        train: the images that probes learn from.
    """
    vits, cnns = cast.of("vit"), cast.of("cnn")
    main = cast.of("vit", "cnn")
    grids = cast.of("vit", "gap", "cnn")
    others = cast.of("gap", "less_data")
    probed = cast.of("vit", "gap", "less_data", "cnn", "cnn_less_data")
    shots = Shots(train, SHOTS if train.source == LAB else 10)
    layered = [*cast.of("vit", "cnn", "gap", "no_skip", "mixer"), *cast.twins]
    compared = cast.of("vit", "cnn", "less_data", "other_seed", "mixer", "tuned")
    few = replace(unchosen, limit=min(FIELDS, unchosen.limit or FIELDS), batch=8)
    fields = cache(lambda: receptive_field.plan_with_maps(main, few, channels=CHANNELS))
    return {
        "cka": lambda: [cka.plan(layered, images, pairs=_pairs(cast))],
        "cka_controls": lambda: [cka.plan_controls(compared, images, SELECTIONS)],
        "attention_distance": lambda: [
            attention_distance.plan([*_some(vits, parts_wanted("vit")), *others, *cast.twins[:1]], images)
        ],
        "head_subsets": lambda: [
            attention_distance.plan_subsets(vit, cnn, images)
            for vit, cnn in _some(
                list(product(vits, cnns)), f"{parts_wanted('vit')} and {parts_wanted('cnn')}"
            )
        ],
        "skip": lambda: [skip.plan([*main, *cast.twins], images, first=FIRST_TOKENS)],
        "receptive_field": lambda: [fields()[0]],
        "receptive_field_maps": lambda: [fields()[1]],
        "lesions": lambda: [lesions.plan(model, mixed(images, LESIONED)) for model in main],
        "lesions_trained": lambda: [
            lesions.plan_trained(
                _some(vits, parts_wanted("vit"))[0],
                _some(cast.of("no_skip"), parts_wanted("no_skip")),
                images,
            )
        ],
        "localization": lambda: [localization.plan([*grids, *cast.twins], images)],
        "localization_penultimate": lambda: [localization.plan(grids, images, layers="penultimate")],
        "localization_normalized": lambda: [localization.plan(grids, images, tokens="normalized")],
        "probe": lambda: [probe.plan(probed, images, _learnable(shots, images))],
        "probe_tokens": lambda: [
            probe.plan(
                grids,
                images,
                _learnable(replace(shots, count=SINGLE, draws=3), images),
                tokens=[*probe.AGGREGATES, probe.EACH],
            )
        ],
        "soft_nearest_neighbor": lambda: [soft_nearest_neighbor.plan(main, images)],
        "soft_nearest_neighbor_normalized": lambda: [
            soft_nearest_neighbor.plan(main, images, tokens="normalized")
        ],
    }


def mixed(images: Images, count: int) -> Images:
    """Choose some images, in as many batches as an interval has groups, with images of several classes in each batch.

    The order of images may go by class, and a batch of one class would measure what differs within it. So classes take turns.
    """
    order = np.random.default_rng(images.seed).permutation(images.order).tolist()
    if targets := images.targets:
        turns: dict[int, list[int]] = {}
        for number, label in zip(order, images.truth(order)[next(iter(targets))].tolist(), strict=True):
            turns.setdefault(label, []).append(number)
        order = [number for turn in zip_longest(*turns.values()) for number in turn if number is not None]
    few = order[:count]
    return images.only(few, batch=max(similarity.SMALLEST_BATCH, len(few) // state.GROUPS))


# Two tables of the same sums: whoever wants one gets both, as the other would take the same pass again.
TWO_OF_ONE = {"receptive_field": ("receptive_field_maps",), "receptive_field_maps": ("receptive_field",)}
FIRST_TOKENS = 50  # those that figure E.1 shows
TABLES = tuple(plans(Cast(Parts(), {}), IMAGES, IMAGES, TRAIN))


def _some(needed: list[Any], what: str) -> list[Any]:
    if not needed:
        raise Refusal(f"needs {what}")
    return needed


def _there(name: str) -> str | None:
    known = [zoo.PREFIX + own for own in zoo.RECIPES]
    if name.partition(":")[0] in known and not zoo.home(name).exists():
        logger.warning("no weights of %r yet: train it with python -m vit_analysis.train %s", name, name)
        return None
    return name


def _learnable(shots: Shots, images: Images) -> Shots:
    if shots.images.source == LAB != images.source:
        raise Refusal("needs images to learn from, with the classes of --images.source (--train.source)")
    return shots


def _pairs(cast: Cast) -> list[tuple[str, str]]:
    """Pairs of models whose layers are compared: each with itself, and what figures 2, B.1, G.2 and H.2 show."""
    parts, twins = cast.parts, [twin.name for twin in cast.twins]
    within = [(name, name) for name in cast.models]
    vits = parts.names("vit", "gap")
    across = [*product(parts.vit, parts.cnn), *combinations(vits, 2), *combinations(twins, 2)]
    mixed = product(parts.names("mixer"), parts.names("vit", "cnn"))
    return [*within, *across, *mixed]


def _key(measurements: list[Measurement[Any]]) -> str:
    facts = [[measurement.key() for measurement in measurements], table.versions()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _kept(path: Path, key: str) -> pd.DataFrame | None:
    """The table of an earlier run, if nothing that it depends on has changed."""
    if not path.is_file():
        return None
    kept = table.read(path)
    if kept.attrs.get("key") != key:
        return None
    logger.info("kept %s", path)
    return kept


def _passes(todo: Mapping[str, list[Measurement[Any]]]) -> list[dict[str, list[Measurement[Any]]]]:
    """Group the tables that share a pass: all of the same images, but for those that cannot share one."""
    groups: dict[str, dict[str, list[Measurement[Any]]]] = {}
    for name, measurements in todo.items():
        first = measurements[0]
        own = [one.key() for one in measurements] if first.alone else first.reading.images.facts()
        groups.setdefault(json.dumps(own, sort_keys=True), {})[name] = measurements
    return list(groups.values())


@state.keeping()
def _measured(group: Mapping[str, list[Measurement[Any]]], out: Path) -> dict[str, pd.DataFrame]:
    """Measure and write the tables of one group, in one pass or, for measurements that cannot share one, in several."""
    each = {(name, number): one for name, own in group.items() for number, one in enumerate(own)}
    passes: dict[Any, dict[Any, Measurement[Any]]] = {}
    for place, one in each.items():
        passes.setdefault(one.sums if one.alone else (), {})[place] = one
    parts: dict[Any, pd.DataFrame] = {}
    for together in passes.values():
        named = {f"{name} {number}": one for (name, number), one in together.items()}
        parts |= zip(together, measure.tables(named, out / "study").values(), strict=True)
    tables = {}
    for name, own in group.items():
        tables[name] = _joined([parts[name, number] for number in range(len(own))])
        _write(tables[name], out / f"{name}.parquet", _key(own))
    return tables


def _joined(parts: list[pd.DataFrame]) -> pd.DataFrame:
    whole = pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]
    digests = {name: digest for part in parts for name, digest in part.attrs["models"].items()}
    whole.attrs = parts[0].attrs | {"models": digests}
    return whole


def _write(result: pd.DataFrame, path: Path, key: str) -> None:
    result.attrs |= {"key": key, "command": command.line()}
    if processes.rank_and_size()[0] == 0:
        table.write(result, path)
        logger.info("wrote %s", path)
