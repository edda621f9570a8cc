"""The study: which model plays which part, what is measured of them in as few passes as can be, and tables that are kept.

Every analysis that only reads activations shares one pass: each image goes once through each model. Receptive fields need
gradients and lesions change the models, so they have passes of their own; probes learn from images of their own. Tables are
written beside the pictures with a key of all that they depend on, and are read again as long as it is the same; with another
key they are replaced. A table of that name without a key is that of another command, and is put aside.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
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
    frequency,
    layers,
    lesions,
    localization,
    models,
    probe,
    receptive_field,
    skip,
    soft_nearest_neighbor,
    table,
    tokens,
)
from vit_analysis.images import Images
from vit_analysis.lab import zoo
from vit_analysis.models import Model
from vit_analysis.probe import Shots
from vit_analysis.reading import measure, processes, state
from vit_analysis.reading.measure import Measurement, covers
from vit_analysis.spelling import Refusal
from vit_analysis.study import parts as parts_of_study
from vit_analysis.study.controls import ALL, VIEWS
from vit_analysis.study.evidence import Study
from vit_analysis.study.parts import LAB_PARTS, Parts, parts_wanted
from vit_analysis.tensors import measures, similarity
from vit_analysis.typed import Choice, Machine

logger = logging.getLogger(__name__)

IMAGES, TRAIN, SAME = map(Images.of, (parts_of_study.IMAGES, parts_of_study.TRAIN, parts_of_study.SAME))
FIELDS = 32  # images for receptive fields, as in the paper
CHANNELS = 4  # drawn for each image: most of the width of an interval comes from the images
LESIONED = 320  # images for lesions: each goes through the model once for every block
SHOTS = 20  # per class of scenes: 10 do not tell a linear classifier what a texture is, 100 take longer than all else
FEW = 10  # per class of anything else, as in the paper
SINGLE = 10  # shots of the probes on single tokens, of which there are hundreds


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
    def load(cls, parts: Parts, machine: Machine = Machine(), *, twins: bool = True) -> "Cast":  # noqa: B008  (frozen)
        """Load the models named, and the untrained twins of the first ones; lab models without weights are left out."""
        there = parts.change(_there)
        names = there.runs()
        loaded = dict(
            zip(
                names, models.load_all(names, device=machine.device, precision=machine.precision), strict=True
            )
        )
        own = {model.name: model for model in loaded.values()}
        for name in (*there.names("vit")[:1], *there.names("cnn")[:1]) if twins else ():
            if models.twin(name) not in names:
                twin = models.load_twin(name, device=machine.device, precision=machine.precision)
                own[models.twin(loaded[name].name)] = replace(twin, name=models.twin(loaded[name].name))
        return cls(there.change(lambda name: loaded[name].name), own)

    def of(self, *parts: str) -> list[Model]:
        """The models of these parts, the first run of each."""
        return [self.models[name] for name in self.parts.names(*parts)]

    def runs(self, *parts: str) -> list[Model]:
        """The models of these parts, every training run."""
        return [self.models[name] for name in self.parts.runs(*parts)]

    @property
    def twins(self) -> list[Model]:
        """The untrained twins that are loaded."""
        names = (name for name in self.parts.twins() if name not in self.parts.runs())
        return [self.models[name] for name in names if name in self.models]


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
        wanted: names of tables; None is all of `plans`.
        labelled: images with classes, for probes and the soft nearest neighbour loss in place of ``images``.
    """
    missing = dict[str, str]()
    todo: dict[str, list[Measurement[Any]]] = {}
    own = balanced(images)
    known = balanced(labelled) if labelled.source else own
    for name, plan in plans(cast, images, own, train, known).items():
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
    cast: Cast, unchosen: Images, images: Images, train: Images, labelled: Images
) -> dict[str, Callable[[], list[Measurement[Any]]]]:
    """The plans of all tables, by name; the rows of several measurements make one table, one below the other.

    Args:
        cast: the models.
        unchosen: the images in their own order, of which receptive fields take the first few.
        images: the same images, `balanced`.
        train: the images that probes learn from.
        labelled: images of the same classes, `balanced`, for what is asked of classes.
    """
    vits, cnns = cast.of("vit"), cast.of("cnn")
    main = cast.runs("vit", "cnn")
    grids = cast.of("vit", "gap", "cnn")
    probed = cast.runs("vit", "gap", "less_data", "cnn", "cnn_less_data")
    shots = Shots(train, SHOTS if train.endless else FEW)
    layered = _once([*cast.runs("vit", "cnn", "local"), *cast.of("gap", "no_skip", "mixer"), *cast.twins])
    few = unchosen.only(unchosen.order[:FIELDS], batch=8)
    fields = cache(lambda: receptive_field.plan_with_maps([*main, *cast.twins], few, channels=CHANNELS))
    return {
        "cka": lambda: [cka.plan(layered, images, pairs=_pairs(cast))],
        "cka_controls": lambda: _controls(cast, images),
        "attention_distance": lambda: [
            attention_distance.plan(
                _once(
                    [
                        *_some(cast.runs("vit"), parts_wanted("vit")),
                        *cast.runs("gap", "less_data", "tuned"),
                        *_twins_of(cast, "vit"),
                    ]
                ),
                images,
            )
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
        "lesions": lambda: [
            lesions.plan(model, mixed(images, LESIONED))
            for model in _some([own for own in main if _classifies(own)], "a model with a classifier")
        ],
        "lesions_trained": lambda: _without_skips(cast, images),
        "localization": lambda: [
            localization.plan([*cast.runs("vit", "gap", "cnn", "flat"), *cast.twins], images)
        ],
        "localization_penultimate": lambda: [localization.plan(grids, images, layers="penultimate")],
        "localization_units": lambda: [
            localization.plan(cnn, images, layers=_earlier_units(cnn))
            for cnn in _some(cnns[:1], parts_wanted("cnn"))
        ],
        "localization_normalized": lambda: [
            localization.plan([*grids, *cast.of("flat"), *cast.twins], images, tokens="normalized")
        ],
        "probe": lambda: [probe.plan(probed, labelled, _learnable(shots, labelled))],
        "probe_tokens": lambda: [
            probe.plan(
                cast.runs("vit", "gap", "cnn"),
                labelled,
                _learnable(replace(shots, count=SINGLE, draws=3), labelled),
                tokens=[*probe.AGGREGATES, probe.EACH],
            )
        ],
        "soft_nearest_neighbor": lambda: [soft_nearest_neighbor.plan(main, labelled)],
        "soft_nearest_neighbor_normalized": lambda: [
            soft_nearest_neighbor.plan(main, labelled, tokens="normalized")
        ],
        "tokens": lambda: [
            tokens.plan(
                _once([*_some(cast.runs("vit"), parts_wanted("vit")), *_twins_of(cast, "vit")]), images
            )
        ],
        "frequency": lambda: [frequency.plan([*main, *cast.twins], images)],
    }


def _classifies(model: Model) -> bool:
    """Return whether a model's output can be an answer; that of timm's networks without a head is features."""
    return getattr(model.module, "num_classes", None) != 0


def _twins_of(cast: Cast, part: str) -> list[Model]:
    """The untrained twins of the models of a part."""
    twins = {models.twin(name) for name in cast.parts.names(part)}
    return [twin for twin in cast.twins if twin.name in twins]


def _controls(cast: Cast, images: Images) -> list[Any]:
    """Block outputs under every view; of further training runs only what compares runs, and only as the paper does."""
    compared = cast.of("vit", "cnn", "less_data", "other_seed", "mixer", "tuned", "local")
    twins = [twin.name for twin in cast.twins]
    views = {
        name: view
        for name, view in VIEWS.items()
        if view.measure != "mutual_knn"
        or images.batch >= measures.NEAR  # images.batch decides what a neighbour is
    }
    plans: list[Any] = [
        cka.plan_controls(
            _some([*compared, *cast.twins], "a model"),
            images,
            views,
            twins=twins,
            pairs=_compared(cast.parts),
        )
    ]
    pairs = [pair for parts in cast.parts.each_run() for pair in _retrained(parts)]
    new = list(dict.fromkeys(pair for pair in pairs if pair not in _compared(cast.parts)))
    if new:
        there = list(dict.fromkeys(name for pair in new for name in pair))
        plans.append(
            cka.plan_controls([cast.models[name] for name in there], images, {ALL: VIEWS[ALL]}, pairs=new)
        )
    return plans


def _compared(parts: Parts) -> list[tuple[str, str]]:
    """Pairs of models whose block outputs are compared: what claims about their similarity ask for."""
    main = parts.names("vit", "cnn")
    within = [(name, name) for name in (*main, *parts.twins(), *parts.names("local"))]
    across = [*product(parts.names("vit"), parts.names("cnn")), *product(parts.names("mixer"), main)]
    return [*within, *across, *_retrained(parts)]


def _retrained(parts: Parts) -> list[tuple[str, str]]:
    """The first Vision Transformer and the same architecture trained otherwise."""
    return list(product(parts.names("vit")[:1], parts.names("less_data", "other_seed", "tuned")))


def _without_skips(cast: Cast, images: Images) -> list[Any]:
    """Each run of the first Vision Transformer, and the same run of those trained without some skip connections."""
    _some(cast.of("vit"), parts_wanted("vit"))
    _some(cast.of("no_skip"), parts_wanted("no_skip"))
    plans, done = [], set[str]()
    for parts in cast.parts.each_run():
        changed = [name for name in parts.names("no_skip") if name not in done]
        done.update(changed)
        if changed:
            intact, *lacking = (cast.models[name] for name in (parts.names("vit")[0], *changed))
            plans.append(lesions.plan_trained(intact, lacking, images))
    return plans


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


def _once(several: list[Model]) -> list[Model]:
    """Each model once, though it may play several parts."""
    return list({model.name: model for model in several}.values())


# Two tables of the same sums: whoever wants one gets both, as the other would take the same pass again.
TWO_OF_ONE = {"receptive_field": ("receptive_field_maps",), "receptive_field_maps": ("receptive_field",)}
FIRST_TOKENS = 50  # those that figure E.1 shows
TABLES = tuple(plans(Cast(Parts(), {}), IMAGES, IMAGES, TRAIN, IMAGES))


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


def _earlier_units(cnn: Model) -> list[str]:
    """The unit in the middle of a CNN and the first one of its last stage, which figure D.3 shows."""
    units = layers.blocks(cnn)
    stage = units[-1].rpartition(".")[0]
    return list(
        dict.fromkeys(
            [units[(len(units) - 1) // 2], *[unit for unit in units if unit.rpartition(".")[0] == stage][:1]]
        )
    )


def _learnable(shots: Shots, images: Images) -> Shots:
    if shots.images.endless and not images.endless:
        raise Refusal(
            "needs images to learn from, with the classes of --images.source or --labelled.source (--train.source)"
        )
    return shots


def _pairs(cast: Cast) -> list[tuple[str, str]]:
    """Pairs of models whose layers are compared: each with itself, and what figures 2, B.1, G.2 and H.2 show."""
    parts, twins = cast.parts, [twin.name for twin in cast.twins]
    runs = parts.each_run()
    layered = [*parts.runs("vit", "cnn", "local"), *parts.names("gap", "no_skip", "mixer"), *twins]
    within = [(name, name) for name in layered]
    vits = parts.names("vit", "gap")
    across = [pair for own in runs for pair in product(own.names("vit"), own.names("cnn"))]
    mixed = [pair for own in runs for pair in product(own.names("mixer"), own.names("vit", "cnn"))]
    return list(dict.fromkeys([*within, *across, *combinations(vits, 2), *combinations(twins, 2), *mixed]))


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
