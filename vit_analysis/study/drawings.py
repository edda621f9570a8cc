"""The figures of the paper, one by one: what each is drawn from, how, and what the paper says with it, in our own words."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import pandas as pd

from vit_analysis import plot
from vit_analysis.spelling import Refusal
from vit_analysis.study.controls import controlled
from vit_analysis.study.evidence import Evidence
from vit_analysis.study.parts import parts_wanted

Panels = list[tuple[str, str]]


@dataclass(frozen=True)
class Drawing:
    """A figure of the paper.

    Attributes:
        id: its number in the paper, with a second word where we draw several.
        title: what it shows, in few words.
        claim: what the paper says with it.
        tables: names of the tables that it is drawn from.
        draw: function from the evidence to a matplotlib Figure; a `Refusal` says what it would need.
        alternative: what it looks like, for those who cannot see it.
        panels: for heat maps, function from the evidence to the pairs of models that are compared.
    """

    id: str
    title: str
    claim: str
    tables: tuple[str, ...]
    draw: Callable[[Evidence], Any]
    alternative: str
    panels: Callable[[Evidence], Panels] | None = None


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


def _squares(panels: Callable[[Evidence], Panels]) -> Callable[[Evidence], Any]:
    return lambda e: plot.heatmaps(e.table("cka"), panels=panels(e))


def _heatmaps(
    id: str, title: str, claim: str, panels: Callable[[Evidence], Panels], alternative: str
) -> Drawing:
    return Drawing(id, title, claim, ("cka",), _squares(panels), alternative, panels)


def _itself(*parts: str) -> Callable[[Evidence], Panels]:
    def panels(e: Evidence) -> Panels:
        found = e.parts.names(*parts)
        if not found:
            raise Refusal(f"needs {parts_wanted(parts[0])}")
        return [(name, name) for name in found]

    return panels


def _first_pair(e: Evidence) -> Panels:
    return [(e.one("vit"), e.one("cnn"))]


def _further_pairs(e: Evidence) -> Panels:
    pairs = [*product(e.all("vit"), e.all("cnn"))][1:]
    if not pairs:
        raise Refusal("needs a second Vision Transformer or CNN (--vit A B --cnn C D)")
    return [*((name, name) for name in e.all("vit")[1:]), *pairs]


def _two_vits(e: Evidence) -> Panels:
    pairs = [*combinations(e.all("vit"), 2)] or [(e.one("vit"), name) for name in e.parts.names("gap")]
    if not pairs:
        raise Refusal("needs a second Vision Transformer (--vit A B, or --gap)")
    return pairs


def _confined(e: Evidence) -> Panels:
    e.one("local")
    return [(name, name) for part in ("vit", "local", "cnn") for name in e.parts.names(part)[:1]]


def _sizes(e: Evidence) -> Any:
    """Figure G.2: Vision Transformers of several sizes, or what stands in their place."""
    alone = "In the place of the paper's model sizes: one size, trained with a class token and with average pooling."
    panels = _two_vits(e)
    return plot.heatmaps(e.table("cka"), panels=panels, note="" if len(e.all("vit")) > 1 else alone)


def _twins(e: Evidence) -> Panels:
    return [(name, name) for name in e.parts.twins()]


def _mixed(e: Evidence) -> Panels:
    return [(e.one("mixer"), name) for name in (*e.parts.names("vit")[:1], *e.parts.names("cnn")[:1])]


def _without_skips(e: Evidence) -> Any:
    """The first Vision Transformer as it is, then trained without the skip connections of each block."""
    models = e.all("no_skip")
    try:
        known = e.table("lesions_trained").set_index("model")["block"].to_dict()
    except Refusal:  # which block it is, is not known
        known = {}
    return plot.without_skips(
        e.table("cka"), intact=e.one("vit"), changed={model: known.get(model, "") for model in models}
    )


def _reach(*parts: str) -> Callable[[Evidence], Any]:
    def draw(e: Evidence) -> Any:
        e.one(parts[-1])
        return plot.attention_distance(with_runs(e, "attention_distance", *parts))

    return draw


def _fields(
    models: Callable[[Evidence], Collection[str]], branch: str, steps: int | None
) -> Callable[[Evidence], Any]:
    return lambda e: plot.fields(
        of_models(e.table("receptive_field_maps"), models(e)), branch=branch, steps=steps
    )


def _attentions_alone(e: Evidence) -> Any:
    """Every attention and every unit before the addition, as the claim is about attention."""
    table = of_models(e.table("receptive_field_maps"), e.parts.names("vit", "cnn"))
    rows = table[~table["step"].str.startswith("MLP")].reset_index(drop=True)
    rows.attrs = table.attrs
    return plot.fields(rows, branch="long", steps=None)


def _second(part: str) -> Callable[[Evidence], list[str]]:
    def models(e: Evidence) -> list[str]:
        found = e.all(part)[1:]
        if not found:
            raise Refusal(f"needs a second model: {parts_wanted(part)}")
        return found

    return models


def _places(table: str, *parts: str) -> Callable[[Evidence], Any]:
    def draw(e: Evidence) -> Any:
        e.one(parts[-1])
        return plot.localization(with_runs(e, table, *parts))

    return draw


def _last_two(e: Evidence) -> Any:
    """The last two blocks of the second Vision Transformer."""
    larger = _second("vit")(e)
    tables = [of_models(e.table(f"localization{end}"), larger) for end in ("", "_penultimate")]
    rows = pd.concat(tables, ignore_index=True)
    rows.attrs = tables[0].attrs
    return plot.localization(rows)


def _more_data(e: Evidence) -> Any:
    """Figure 13a: the first Vision Transformer, and the first CNN, each beside those trained on less data."""
    e.one("less_data")
    groups = [
        [e.one(part), *e.parts.names(f"{prefix}less_data")]
        for part, prefix in (("vit", ""), ("cnn", "cnn_"))
        if e.parts.names(part) and e.parts.names(f"{prefix}less_data")
    ]
    rows = with_runs(e, "probe", "vit", "less_data", "cnn", "cnn_less_data")
    return plot.probe(_task(rows), groups=groups)


def _architectures(e: Evidence) -> Any:
    """Figure 13b: Vision Transformers and CNNs, and how much better the first one is than each CNN."""
    vits, cnns = e.all("vit"), e.all("cnn")
    rows = _task(with_runs(e, "probe", "vit", "cnn"))
    return plot.probe(rows, groups=[[vits[0], *cnns, *vits[1:]]])


def _other_tasks(e: Evidence) -> Any:
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


def _less_data(e: Evidence) -> Any:
    """Figure 12: from the least data to the most, and as the ceiling the model trained again on all data."""
    return _alike(e, "less_data", "other_seed")


def _fine_tuned(e: Evidence) -> Any:
    return _alike(e, "tuned")


def _alike(e: Evidence, part: str, ceiling: str = "") -> Any:
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


def _entangled(e: Evidence) -> Any:
    """The loss of all tokens and, where it was measured, of normalized ones."""
    tables: list[pd.DataFrame] = []
    for name in ("soft_nearest_neighbor", "soft_nearest_neighbor_normalized"):
        if name in e.study.tables or not tables:
            tables.append(with_runs(e, name, "vit", "cnn"))
    return plot.soft_nearest_neighbor(*tables)


def _of(table: str, picture: Callable[[pd.DataFrame], Any], *parts: str) -> Callable[[Evidence], Any]:
    return lambda e: picture(with_runs(e, table, *parts))


DRAWINGS = (
    _heatmaps(
        "1", "Similarity of all layers within a model",
        "Layers of a Vision Transformer resemble each other from the lowest to the highest, in a grid; those of a ResNet fall into "
        "a lower and a higher part.",
        _itself("vit", "cnn"), "Square heat maps of CKA, one per model; both axes are layers from input to output.",
    ),
    _heatmaps(
        "1 untrained", "The same before training (a control that the paper does not show)",
        "Not in the paper. A residual stream alone makes layers alike, so trained and untrained belong side by side.",
        _twins, "Square heat maps of CKA of the untrained twins; both axes are layers from input to output.",
    ),
    _heatmaps(
        "1 local", "The same without global attention (an experiment that the paper does not show)",
        "Not in the paper. The notes say that layers are alike because each sees the whole image; here one model may attend to near "
        "patches and the class token only.",
        _confined, "Square heat maps of CKA of a Vision Transformer, of one that attends to near patches alone, and of a CNN.",
    ),
    _heatmaps(
        "2", "Similarity of layers across models",
        "The lower half of a ResNet resembles about the lowest quarter of a Vision Transformer, its upper half the next third; the "
        "last third of the Vision Transformer resembles no layer of it.",
        _first_pair, "Heat map of CKA: layers of the CNN from left to right, of the Vision Transformer from bottom to top.",
    ),
    Drawing(
        "3", "How far heads look",
        "In the lowest blocks some heads look near and others far; in the highest all look far.",
        ("attention_distance",), _reach("vit"),
        "Lines of mean attention distance of the sorted heads in units of uniform attention's, for the two lowest and highest blocks.",
    ),
    Drawing(
        "4", "How far heads look after training on less data",
        "Without enough data the lowest blocks do not learn to look near.",
        ("attention_distance",), _reach("less_data"),
        "Lines of mean attention distance of the sorted heads, as in figure 3, of models trained on less data.",
    ),
    Drawing(
        "5", "Heads that look near resemble lower ResNet layers most",
        "The farther a subset of heads of the first block looks, the less it resembles the lower units of a ResNet. To tell, subsets "
        "have to look differently far, and there have to be eight of them; where not, the picture says so.",
        ("head_subsets",), lambda e: plot.head_subsets(e.table("head_subsets")),
        "Lines of CKA with each lower unit of the CNN, falling or not with the mean distance of the subset of heads; a box says where "
        "this cannot be told.",
    ),
    Drawing(
        "6", "Effective receptive fields",
        "Lower layers of a Vision Transformer see more than those of a ResNet, whose fields grow layer by layer; the own patch stays "
        "prominent because of skip connections.",
        ("receptive_field_maps",), _fields(lambda e: e.parts.names("vit", "cnn"), "residual", 5),
        "Maps of the mean gradient of the centre position with respect to the image, five steps of each model; circles show the radius.",
    ),
    Drawing(
        "7", "What skip connections carry",
        "The class token is carried along in the first half and rewritten in the second, spatial tokens the other way round; ratios "
        "are higher than in a ResNet throughout.",
        ("skip",), _of("skip", plot.norm_ratios, "vit", "cnn"),
        "Left, a heat map of the norm ratio by token and block; right, lines of it over blocks by kind of token, of MLPs and attentions.",
    ),
    Drawing(
        "8", "Similarity in models trained without the skip connections of one block",
        "Before and after the block without skip connections representations have little in common.",
        ("cka", "lesions_trained"), _without_skips,
        "Square heat maps of CKA: the intact model, then one per model trained without the skip connections of one block, "
        "which lines mark.",
        _itself("vit", "no_skip"),
    ),
    Drawing(
        "8 accuracy", "What training without them costs",
        "A middle block without skip connections costs 4 % of accuracy.",
        ("lesions_trained",), _of("lesions_trained", plot.lesions, "no_skip"),
        "Left, points of accuracy lost by block; right, similarity across the block, with and without its skip connections.",
    ),
    Drawing(
        "8 lesions", "What removing them from a trained model costs",
        "Not in the paper, and not to be compared with its 4 %: a trained model was never asked to do without.",
        ("lesions",), _of("lesions", plot.lesions, "vit", "cnn"),
        "Accuracy, and similarity across the block, of trained models with one block's skip connections removed.",
    ),
    Drawing(
        "9", "What part of the image a token resembles",
        "Tokens of the last block of a Vision Transformer resemble their own patch, those at the edge also other edges; a ResNet's "
        "positions much less.",
        ("localization",), _places("localization", "vit", "cnn"),
        "Heat maps over the patches of the image on one scale, one per token: CKA of the token with each patch; its own is outlined.",
    ),
    Drawing(
        "9 flat", "The same without downsampling (an experiment that the paper does not show)",
        "Not in the paper. The notes say that a ResNet loses the place because it downsamples; here one does not.",
        ("localization",), _places("localization", "vit", "cnn", "flat"),
        "Heat maps over the patches of the image, one per token, of a Vision Transformer, a CNN, and one without downsampling.",
    ),
    Drawing(
        "10", "The same with average pooling instead of a class token",
        "Trained with average pooling a Vision Transformer loses much of the place.",
        ("localization",), _places("localization", "vit", "gap"),
        "Heat maps over the patches of the image, one per token, of models with a class token and with average pooling.",
    ),
    Drawing(
        "11", "What single tokens and pooled tokens say",
        "Single tokens say much at the end where the head reads their average, little where it reads the class token; each model read "
        "as its own head does, they are alike.",
        ("probe_tokens",), _of("probe_tokens", plot.probe_tokens, "vit", "gap", "cnn"),
        "Lines of the accuracy of linear probes over depth: single tokens on average, and a panel of representations per model.",
    ),
    Drawing(
        "12", "How much data a layer needs to be what it is with much",
        "Lower layers are nearly the same with 3 % of the data (the caption says 10 %), higher ones need far more.",
        ("cka_controls",), _less_data,
        "Lines of CKA of each block with the same block of the model trained on all data, from light to dark; the ceiling is dashed.",
    ),
    Drawing(
        "13a", "Linear probes: more data",
        "With more data even middle layers are far better, by 30 points.",
        ("probe",), _more_data,
        "Lines of the accuracy of linear probes over depth, of models trained on more and on less data; below, how many points more.",
    ),
    Drawing(
        "13b", "Linear probes: architectures",
        "Larger Vision Transformers have much better middle layers than ResNets.",
        ("probe",), _architectures,
        "Lines of the accuracy of linear probes over depth, of Vision Transformers and CNNs; below, by how many points the first leads.",
    ),
    Drawing(
        "notes", "Soft nearest neighbour loss",
        "The notes, after Frosst et al. (2019), not the paper: in a CNN classes stay entangled until the last layers, where the loss "
        "falls and accuracy jumps.",
        ("soft_nearest_neighbor",), _entangled,
        "Lines of the loss over depth, with the best temperature, the same of normalized tokens, and with a fixed one.",
    ),
    _heatmaps(
        "B.1", "Similarity of more pairs",
        "60 of the lowest layers of a ResNet-50 are like about 25 of a ViT-B/32; 100 of a ResNet-152 like 30 of a ViT-H/14.",
        _further_pairs, "Heat maps of CKA of further models and pairs.",
    ),
    Drawing(
        "C.1", "Receptive fields of all sublayers",
        "The full version of figure 6.",
        ("receptive_field_maps",), _fields(lambda e: [e.one("vit")], "residual", None),
        "Maps of the mean gradient of the centre position, rows of attentions above rows of MLPs; circles show the radius.",
    ),
    Drawing(
        "C.2", "Receptive fields of all units of a CNN",
        "The full version of figure 6.",
        ("receptive_field_maps",), _fields(lambda e: [e.one("cnn")], "residual", None),
        "Maps of the mean gradient of the centre position, a row per stage of the CNN; circles show the radius.",
    ),
    Drawing(
        "C.3", "Receptive fields of a larger Vision Transformer",
        "As figure C.1.",
        ("receptive_field_maps",), _fields(_second("vit"), "residual", None),
        "Maps of the mean gradient of the centre position, every sublayer.",
    ),
    Drawing(
        "C.4", "Receptive fields before the skip connection is added",
        "Later attentions alone are not dominated by their own patch; in a ResNet the difference is small.",
        ("receptive_field_maps",), _attentions_alone,
        "Maps of the mean gradient of the centre position of the long branch alone, every attention and every unit.",
    ),
    Drawing(
        "C.5", "How far heads of a small model look, with more and with less data",
        "ViT-B/32 looks near in its lowest blocks with either.",
        ("attention_distance",), _reach("vit", "less_data"),
        "Lines of mean attention distance of the sorted heads, of models trained on more and on less data.",
    ),
    Drawing(
        "C.6", "How far heads look before fine-tuning",
        "As after it.",
        ("attention_distance",), _reach("vit", "tuned"),
        "Lines of mean attention distance of the sorted heads, before and after fine-tuning.",
    ),
    Drawing(
        "D.1", "Places in the last two blocks of a larger Vision Transformer",
        "Well localised in both.",
        ("localization", "localization_penultimate"), _last_two,
        "Heat maps over the patches of the image, one per token of the last two blocks.",
    ),
    Drawing(
        "D.2", "Places in the block before the last",
        "Localised there too.",
        ("localization_penultimate",), _places("localization_penultimate", "vit"),
        "Heat maps over the patches of the image, one per token of the block before the last.",
    ),
    Drawing(
        "D.3", "Places in earlier units of a CNN",
        "Better than in the last one, and still worse than in a Vision Transformer.",
        ("localization_units",), _of("localization_units", plot.localization, "cnn"),
        "Heat maps over the patches of the image, one per position of the unit in the middle and of the first of the last stage.",
    ),
    Drawing(
        "D.4", "What single tokens say, where they lie",
        "At the end 57 to 58 % anywhere with average pooling, 6 to 10 % with a class token.",
        ("probe_tokens",), _of("probe_tokens", plot.accuracy_maps, "vit", "gap", "cnn"),
        "Heat maps of the accuracy of a probe on each token, where it lies, in five layers of each model.",
    ),
    Drawing(
        "E.1", "Norm ratios of all tokens",
        "As figure 7, for MLPs and attentions by themselves.",
        ("skip",), _of("skip", plot.token_norm_ratios, "vit"),
        "Heat maps of the norm ratio by token and block, of MLPs and of attentions; dots mark massive tokens beyond the scale.",
    ),
    Drawing(
        "E.2", "Cosine of what goes on with what skipped",
        "Outputs of later blocks are very similar to what their skip connections carry.",
        ("skip",), _of("skip", plot.cosines, "vit", "cnn"),
        "Lines of the mean cosine of a block's output with what its skip connection carried, over blocks.",
    ),
    Drawing(
        "F", "Linear probes of other classes of the same images (the paper: of CIFAR)",
        "In the paper the same holds of CIFAR-10 and CIFAR-100. Here other classes of the images of figure 13 are in their place: of "
        "the lab's scenes the texture and the position of the shape.",
        ("probe",), _other_tasks,
        "Lines of the accuracy of linear probes over depth, one panel per task.",
    ),
    Drawing(
        "G.1", "What fine-tuning changes",
        "The first four or five layers are well preserved, on most data sets.",
        ("cka_controls",), _fine_tuned,
        "Line of CKA of each block before and after fine-tuning.",
    ),
    Drawing(
        "G.2", "Similarity of two Vision Transformers (the paper: of two sizes)",
        "Shown without a claim, in the paper for pairs of a ViT-B/32, a ViT-L/16 and a ViT-H/14. Where a study has one size, as in the "
        "lab, a class token and average pooling are compared in their place: two models of one size.",
        ("cka",), _sizes, "Heat maps of CKA of pairs of Vision Transformers.", _two_vits,
    ),
    _heatmaps(
        "H.1", "Similarity within an MLP-Mixer",
        "Distinct blocks: a small early one and a larger later one, whatever the size.",
        _itself("mixer"), "Square heat map of CKA of the Mixer's layers.",
    ),
    _heatmaps(
        "H.2", "An MLP-Mixer with a Vision Transformer and with a CNN",
        "Overall more like the Vision Transformer.",
        _mixed, "Heat maps of CKA of the Mixer with each.",
    ),
    Drawing(
        "tokens", "Beyond the paper: norms, massive tokens and ranks",
        "Not in the paper. In large Vision Transformers a few tokens have norms far above all others from about a third of the depth on "
        "and hold global information (Darcet et al. 2024); a similarity of such layers is a similarity of these tokens.",
        ("tokens",), lambda e: plot.tokens(of_models(e.table("tokens"), [e.one("vit"), *e.parts.twins()[:1]])),
        "Lines over depth: norms, share of massive tokens, cosines and ranks of tokens, trained and untrained.",
    ),
    Drawing(
        "frequency", "Beyond the paper: how fine feature maps are",
        "Not in the paper. Attention damps high frequencies, convolutions raise them (Park and Kim 2022).",
        ("frequency",),
        lambda e: plot.frequency(of_models(e.table("frequency"), [*e.parts.names("vit", "cnn"), *e.parts.twins()])),
        "Lines of log amplitude by frequency, one per layer, and of the finest pattern over depth, trained and untrained.",
    ),
)  # fmt: skip
