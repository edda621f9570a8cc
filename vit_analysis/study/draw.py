"""How each figure is drawn from the evidence: which models, which rows, which picture.

Each function takes the evidence, or returns a function that does; `drawings` lists the figures that are drawn so. A `Refusal`
says what a figure would need.
"""

from collections.abc import Callable, Collection
from itertools import combinations, product
from typing import Any

import pandas as pd

from vit_analysis import plot
from vit_analysis.spelling import Refusal
from vit_analysis.study.controls import controlled
from vit_analysis.study.evidence import Evidence
from vit_analysis.study.parts import parts_wanted

Panels = list[tuple[str, str]]
"""The pairs of models that heat maps compare."""


def of_models(table: pd.DataFrame, models: Collection[str]) -> pd.DataFrame:
    """Return the rows of some models, in the order of the models.

    Raises:
        Refusal: there is none.
    """
    parts = [table[table["model"] == model] for model in models]
    rows = pd.concat([table.iloc[:0], *parts], ignore_index=True)
    if rows.empty:
        raise Refusal("needs a model that this was measured of")
    rows.attrs = table.attrs
    return rows


def with_runs(e: Evidence, name: str, *parts: str) -> pd.DataFrame:
    """Return the rows of a table that are of some parts: of each model the first training run, then the further ones.

    Runs may have any names; here they are called what pictures know to be one, ``MODEL:1``, ``MODEL:2`` ...

    Raises:
        Refusal: there is no such table, or nothing of these parts in it.
    """
    table = e.table(name)
    called = {
        run: f"{runs[0]}:{number}" if number else run
        for runs in e.parts.members(*parts)
        for number, run in enumerate(runs)
    }
    rows = of_models(table, list(called))
    by_model = {
        key: {called.get(model, model): told for model, told in table.attrs[key].items()}
        for key in ("native", "grids", "models")
        if key in table.attrs
    }
    rows = rows.assign(model=rows["model"].map(called))
    rows.attrs = table.attrs | by_model
    return rows


def itself(*parts: str) -> Callable[[Evidence], Panels]:
    """The models of some parts, each with itself."""

    def panels(e: Evidence) -> Panels:
        found = e.parts.names(*parts)
        if not found:
            raise Refusal(f"needs {parts_wanted(parts[0])}")
        return [(name, name) for name in found]

    return panels


def first_pair(e: Evidence) -> Panels:
    """The first Vision Transformer with the first CNN."""
    return [(e.one("vit"), e.one("cnn"))]


def further_pairs(e: Evidence) -> Panels:
    """The further Vision Transformers with themselves, and every further pair of a Vision Transformer and a CNN."""
    pairs = [*product(e.all("vit"), e.all("cnn"))][1:]
    if not pairs:
        raise Refusal("needs a second Vision Transformer or CNN (--vit A B --cnn C D)")
    return [*((name, name) for name in e.all("vit")[1:]), *pairs]


def two_vits(e: Evidence) -> Panels:
    """Every pair of Vision Transformers; where there is one, that with the model trained with average pooling."""
    pairs = [*combinations(e.all("vit"), 2)] or [(e.one("vit"), name) for name in e.parts.names("gap")]
    if not pairs:
        raise Refusal("needs a second Vision Transformer (--vit A B, or --gap)")
    return pairs


def confined(e: Evidence) -> Panels:
    """The first Vision Transformer, the one with attention to near patches alone, and the first CNN, each with itself."""
    e.one("local")
    return [(name, name) for part in ("vit", "local", "cnn") for name in e.parts.names(part)[:1]]


def sizes(e: Evidence) -> Any:
    """Figure G.2: Vision Transformers of several sizes, or what stands in their place."""
    alone = "In the place of the paper's model sizes: one size, trained with a class token and with average pooling."
    panels = two_vits(e)
    return plot.heatmaps(e.table("cka"), panels=panels, note="" if len(e.all("vit")) > 1 else alone)


def twins(e: Evidence) -> Panels:
    """The untrained twins, each with itself."""
    return [(name, name) for name in e.parts.twins()]


def mixed(e: Evidence) -> Panels:
    """The MLP-Mixer with the first Vision Transformer and with the first CNN."""
    return [(e.one("mixer"), name) for name in (*e.parts.names("vit")[:1], *e.parts.names("cnn")[:1])]


def without_skips(e: Evidence) -> Any:
    """The first Vision Transformer as it is, then trained without the skip connections of each block."""
    models = e.all("no_skip")
    try:
        known = e.table("lesions_trained").set_index("model")["block"].to_dict()
    except Refusal:  # which block it is, is not known
        known = {}
    return plot.without_skips(
        e.table("cka"), intact=e.one("vit"), changed={model: known.get(model, "") for model in models}
    )


def reach(*parts: str) -> Callable[[Evidence], Any]:
    """Draw how far the heads of some parts look; the last part must be there."""

    def draw(e: Evidence) -> Any:
        e.one(parts[-1])
        return plot.attention_distance(with_runs(e, "attention_distance", *parts))

    return draw


def fields(
    models: Callable[[Evidence], Collection[str]], branch: str, steps: int | None
) -> Callable[[Evidence], Any]:
    """Draw the receptive fields of some models, of one branch, at some steps or at all."""
    return lambda e: plot.fields(
        of_models(e.table("receptive_field_maps"), models(e)), branch=branch, steps=steps
    )


def attentions_alone(e: Evidence) -> Any:
    """Every attention and every unit before the addition, as the claim is about attention."""
    table = of_models(e.table("receptive_field_maps"), e.parts.names("vit", "cnn"))
    rows = table[~table["step"].str.startswith("MLP")].reset_index(drop=True)
    rows.attrs = table.attrs
    return plot.fields(rows, branch="long", steps=None)


def second(part: str) -> Callable[[Evidence], list[str]]:
    """The models of a part but the first."""

    def models(e: Evidence) -> list[str]:
        found = e.all(part)[1:]
        if not found:
            raise Refusal(f"needs a second model: {parts_wanted(part)}")
        return found

    return models


def places(table: str, *parts: str) -> Callable[[Evidence], Any]:
    """Draw what patches the tokens of some parts resemble; the last part must be there."""

    def draw(e: Evidence) -> Any:
        e.one(parts[-1])
        return plot.localization(with_runs(e, table, *parts))

    return draw


def last_two(e: Evidence) -> Any:
    """The last two blocks of the second Vision Transformer."""
    larger = second("vit")(e)
    tables = [of_models(e.table(f"localization{end}"), larger) for end in ("", "_penultimate")]
    rows = pd.concat(tables, ignore_index=True)
    rows.attrs = tables[0].attrs
    return plot.localization(rows)


def more_data(e: Evidence) -> Any:
    """Figure 13a: the first Vision Transformer, and the first CNN, each beside those trained on less data."""
    e.one("less_data")
    groups = [
        [e.one(part), *e.parts.names(f"{prefix}less_data")]
        for part, prefix in (("vit", ""), ("cnn", "cnn_"))
        if e.parts.names(part) and e.parts.names(f"{prefix}less_data")
    ]
    rows = with_runs(e, "probe", "vit", "less_data", "cnn", "cnn_less_data")
    return plot.probe(_task(rows), groups=groups)


def architectures(e: Evidence) -> Any:
    """Figure 13b: Vision Transformers and CNNs, and how much better the first one is than each CNN."""
    vits, cnns = e.all("vit"), e.all("cnn")
    rows = _task(with_runs(e, "probe", "vit", "cnn"))
    return plot.probe(rows, groups=[[vits[0], *cnns, *vits[1:]]])


def other_tasks(e: Evidence) -> Any:
    """Figure F: other classes of the same images, in the place of other data sets."""
    e.one("cnn")
    rows = with_runs(e, "probe", "vit", "cnn")
    tasks = list(dict.fromkeys(rows["target"]))
    if len(tasks) == 1:
        raise Refusal("needs other classes to tell; here there is one task, that of figure 13")
    return plot.probe(
        _task(rows, *tasks[1:]),
        note=f"In the place of the paper's CIFAR-10 and CIFAR-100: {' and '.join(tasks[1:])} of the images of figure 13.",
    )


def _task(rows: pd.DataFrame, *targets: str) -> pd.DataFrame:
    """The probes of some targets, or of the first."""
    chosen = rows[rows["target"].isin(targets or rows["target"].iloc[:1])]
    chosen.attrs = rows.attrs
    return chosen


def less_data(e: Evidence) -> Any:
    """Figure 12: from the least data to the most, and as the ceiling the model trained again on all data."""
    return alike(e, "less_data", "other_seed")


def fine_tuned(e: Evidence) -> Any:
    """Figure G.1: each block before and after fine-tuning."""
    return alike(e, "tuned")


def alike(e: Evidence, part: str, ceiling: str = "") -> Any:
    """Each block of the first Vision Transformer with the same block of the models of a part, and of a ceiling."""
    vit, blocks = e.one("vit"), controlled(e.table("cka_controls"), "all")
    pairs = [(vit, name) for name in e.all(part)]
    top = (vit, e.parts.names(ceiling)[0]) if ceiling and e.parts.names(ceiling) else None
    held = set(zip(blocks["model"], blocks["other_model"], strict=True))
    further: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for run in e.further():
        others = [
            (run.one("vit"), name)
            for name in (*run.all(part), *(run.parts.names(ceiling) if ceiling else ()))
        ]
        for pair, other in zip([*pairs, *([top] if top else [])], others, strict=True):
            if other != pair and other in held:
                further.setdefault(pair, []).append(other)
    return plot.corresponding(blocks, pairs=pairs, ceiling=top, further=further)


def entangled(e: Evidence) -> Any:
    """The loss of all tokens and, where it was measured, of normalized ones."""
    tables: list[pd.DataFrame] = []
    for name in ("soft_nearest_neighbor", "soft_nearest_neighbor_normalized"):
        if name in e.study.tables or not tables:
            tables.append(with_runs(e, name, "vit", "cnn"))
    return plot.soft_nearest_neighbor(*tables)


def of(table: str, picture: Callable[[pd.DataFrame], Any], *parts: str) -> Callable[[Evidence], Any]:
    """Draw the rows of a table that are of some parts."""
    return lambda e: picture(with_runs(e, table, *parts))
