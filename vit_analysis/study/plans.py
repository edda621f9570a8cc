"""The plans of a study's tables: which models, which images, which pairs and settings each of them is measured of."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import combinations, product, zip_longest
from typing import Any

import numpy as np

from vit_analysis import (
    attention_distance,
    cka,
    frequency,
    layers,
    lesions,
    localization,
    models,
    probe,
    receptive_field,
    skip,
    soft_nearest_neighbor,
    tokens,
)
from vit_analysis.images import Images
from vit_analysis.models import Model
from vit_analysis.probe import Shots
from vit_analysis.reading import state
from vit_analysis.reading.measure import Measurement
from vit_analysis.spelling import Refusal
from vit_analysis.study.controls import ALL, VIEWS
from vit_analysis.study.loaded import Cast
from vit_analysis.study.parts import Parts, parts_wanted
from vit_analysis.tensors import measures, similarity

# The plan of a table; nothing is planned before it is called.
Plan = Callable[[], list[Measurement[Any]]]

FIELDS = 32  # images for receptive fields, as in the paper
CHANNELS = 4  # drawn for each image: 8 take half as long again, and narrow the intervals of a large CNN alone
LESIONED = 320  # images for lesions: each goes through the model once for every block
SHOTS = 20  # per class of scenes: 10 do not tell a linear classifier what a texture is, 100 take longer than all else
FEW = 10  # per class of anything else, as in the paper
FIRST_TOKENS = 50  # those that figure E.1 shows
SINGLE = 10  # shots of the probes on single tokens, of which there are hundreds


def by_table(
    cast: Cast, unchosen: Images, images: Images, train: Images, labelled: Images
) -> dict[str, Plan]:
    """The plans of all tables, by name; the rows of several measurements make one table, one below the other.

    Args:
        cast: the models.
        unchosen: the images in their own order, of which receptive fields take the first few.
        images: the same images, `balanced`.
        train: the images that probes learn from.
        labelled: images of the same classes, `balanced`, for what is asked of classes.
    """
    return {
        **_of_similarity(cast, images),
        **_of_attention(cast, images),
        "skip": lambda: [skip.plan([*_main(cast), *cast.twins], images, first=FIRST_TOKENS)],
        **_of_fields(cast, unchosen),
        **_of_lesions(cast, images),
        **_of_places(cast, images),
        **_of_classes(cast, train, labelled),
        "tokens": lambda: [tokens.plan(_once([*_vits(cast), *_twins_of(cast, "vit")]), images)],
        "frequency": lambda: [frequency.plan([*_main(cast), *cast.twins], images)],
    }


def _of_similarity(cast: Cast, images: Images) -> dict[str, Plan]:
    several = [*cast.runs("vit", "cnn", "local"), *cast.of("gap", "no_skip", "mixer"), *cast.twins]
    return {
        "cka": lambda: [cka.plan(_once(several), images, pairs=_pairs(cast))],
        "cka_controls": lambda: _controls(cast, images),
    }


def _of_attention(cast: Cast, images: Images) -> dict[str, Plan]:
    others = [*cast.runs("gap", "less_data", "tuned"), *_twins_of(cast, "vit")]
    both = list(product(cast.of("vit"), cast.of("cnn")))
    wanted = f"{parts_wanted('vit')} and {parts_wanted('cnn')}"
    return {
        "attention_distance": lambda: [attention_distance.plan(_once([*_vits(cast), *others]), images)],
        "head_subsets": lambda: [
            attention_distance.plan_subsets(vit, cnn, images) for vit, cnn in _some(both, wanted)
        ],
    }


def _of_fields(cast: Cast, unchosen: Images) -> dict[str, Plan]:
    few = unchosen.only(unchosen.order[:FIELDS], batch=8)
    both = cache(lambda: receptive_field.plan_with_maps([*_main(cast), *cast.twins], few, channels=CHANNELS))
    return {"receptive_field": lambda: [both()[0]], "receptive_field_maps": lambda: [both()[1]]}


def _of_lesions(cast: Cast, images: Images) -> dict[str, Plan]:
    answering = [own for own in _main(cast) if _classifies(own)]
    return {
        "lesions": lambda: [
            lesions.plan(model, mixed(images, LESIONED))
            for model in _some(answering, "a model with a classifier")
        ],
        "lesions_trained": lambda: _without_skips(cast, images),
    }


def _of_places(cast: Cast, images: Images) -> dict[str, Plan]:
    grids, twins = cast.of("vit", "gap", "cnn"), cast.twins
    every = [*cast.runs("vit", "gap", "cnn", "flat"), *twins]
    return {
        "localization": lambda: [localization.plan(every, images)],
        "localization_penultimate": lambda: [localization.plan(grids, images, layers="penultimate")],
        "localization_units": lambda: [
            localization.plan(cnn, images, layers=_earlier_units(cnn))
            for cnn in _some(cast.of("cnn")[:1], parts_wanted("cnn"))
        ],
        "localization_normalized": lambda: [
            localization.plan([*grids, *cast.of("flat"), *twins], images, tokens="normalized")
        ],
    }


def _of_classes(cast: Cast, train: Images, labelled: Images) -> dict[str, Plan]:
    shots = Shots(train, SHOTS if train.endless else FEW)
    single = replace(shots, count=SINGLE, draws=3)
    probed = cast.runs("vit", "gap", "less_data", "cnn", "cnn_less_data")
    each = [*probe.AGGREGATES, probe.EACH]
    return {
        "probe": lambda: [probe.plan(probed, labelled, _learnable(shots, labelled))],
        "probe_tokens": lambda: [
            probe.plan(cast.runs("vit", "gap", "cnn"), labelled, _learnable(single, labelled), tokens=each)
        ],
        "soft_nearest_neighbor": lambda: [soft_nearest_neighbor.plan(_main(cast), labelled)],
        "soft_nearest_neighbor_normalized": lambda: [
            soft_nearest_neighbor.plan(_main(cast), labelled, tokens="normalized")
        ],
    }


def _main(cast: Cast) -> list[Model]:
    """Every training run of the Vision Transformers and of the CNNs."""
    return cast.runs("vit", "cnn")


def _vits(cast: Cast) -> list[Model]:
    """Every training run of the Vision Transformers, of which there must be one."""
    return _some(cast.runs("vit"), parts_wanted("vit"))


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


def _some(needed: list[Any], what: str) -> list[Any]:
    if not needed:
        raise Refusal(f"needs {what}")
    return needed


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


# Two tables of the same sums: whoever wants one gets both, as the other would take the same pass again.
TWO_OF_ONE = {"receptive_field": ("receptive_field_maps",), "receptive_field_maps": ("receptive_field",)}
TABLES = tuple(by_table(Cast(Parts(), {}), *[Images()] * 4))
