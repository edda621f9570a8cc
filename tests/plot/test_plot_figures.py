"""The paper's figures from made-up tables: what stands where, one scale where panels are compared, no text over text."""

from collections.abc import Iterator
from functools import cache
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from plot_tables import findings

from vit_analysis import plot

VIT, CNN = "vit_huge_patch14_224.orig_in21k_ft_in1k", "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k"
RUN = "vit_base_patch16_224.augreg_in21k_ft_in1k@checkpoints/seed_1.safetensors"


def similarities(pairs: list[tuple[str, str]], depths: dict[str, int]) -> pd.DataFrame:
    """CKA that tells which cell it is: 1 / (1 + row + 2 column)."""
    parts = []
    for model, other in pairs:
        row, column = np.divmod(np.arange(depths[model] * depths[other]), depths[other])
        names = {"model": model, "layer": [f"blocks.{place}" for place in row]}
        others = {"other_model": other, "other_layer": [f"blocks.{place}" for place in column]}
        part = pd.DataFrame(names | others).assign(
            depth=row / max(row.max(), 1), cka=1 / (1 + row + 2 * column)
        )
        parts.append(part.assign(other_depth=column / max(column.max(), 1)))
    table = pd.concat(parts, ignore_index=True)
    table.attrs.update(analysis="cka", tokens="normalized")
    return table.assign(low=table["cka"] - 0.1, high=table["cka"] + 0.2)


def skips(models: dict[str, tuple[int, int]]) -> pd.DataFrame:
    """Norm ratios of models with so many blocks and numbered tokens (0: a CNN); MLP twice those of attention."""
    rows = []
    for model, (blocks, tokens) in models.items():
        for block in range(blocks):
            if not tokens:
                rows.append((model, f"unit.{block}", "unit", "spatial", 2.0 + block))
            for sublayer in ("attention", "mlp") if tokens else ():
                for token in ("cls", "spatial", *map(str, range(tokens))):
                    ratio = (
                        (1 + block) * (2 if sublayer == "mlp" else 1) * (5 if token in ("cls", "0") else 1)
                    )
                    rows.append((model, f"blocks.{block}", sublayer, token, ratio))
    table = pd.DataFrame(rows, columns=["model", "block", "sublayer", "token", "norm_ratio"])
    return table.assign(
        low=table["norm_ratio"], high=table["norm_ratio"], cosine=1 / (1 + table["norm_ratio"])
    )


def receptive_fields(models: dict[str, int]) -> pd.DataFrame:
    rows = []
    for model, blocks in models.items():
        cnn = ["initial conv", *(f"unit {place + 1}" for place in range(blocks))]
        vit = [f"{kind} {place + 1}" for place in range(blocks) for kind in ("attention", "MLP")]
        for place, step in enumerate(cnn if "resnet" in model else vit):
            branches = ["residual"] if step == "initial conv" else ["long", "residual"]
            rows += [(model, step, name, 10.0 + place, 4, 4, np.arange(1.0, 17.0)) for name in branches]
    return pd.DataFrame(rows, columns=["model", "step", "branch", "radius_px", "rows", "columns", "map"])


def probes(models: dict[str, tuple[int, int]]) -> pd.DataFrame:
    """Accuracy in % of models with so many layers and tokens to a side: the layer's number and a tenth of the token's."""
    rows = [
        (model, f"blocks.{layer}", "class", str(token), draw, (layer + token / 10) / 100)
        for model, (layers, side) in models.items()
        for layer in range(layers)
        for token in range(side**2)
        for draw in range(2)
    ]
    table = pd.DataFrame(rows, columns=["model", "layer", "target", "tokens", "draw", "accuracy"])
    table.attrs.update(grids={model: [side, side] for model, (_, side) in models.items()})
    return table


def places(models: list[tuple[str, str, int]]) -> pd.DataFrame:
    parts = []
    for model, layer, side in models:
        token, patch = np.divmod(np.arange(side**4), side**2)
        own = pd.DataFrame({"token": token, "cka": np.where(token == patch, 0.9, 0.1) / side})
        where = {"token_row": token // side, "token_col": token % side}
        patches = {"patch_row": patch // side, "patch_col": patch % side}
        parts.append(own.assign(model=model, layer=layer, **where, **patches))
    return pd.concat(parts, ignore_index=True)


IMAGES = {"source": "lab", "count": 1760}


def reaches(models: dict[str, float], blocks: int = 12, heads: int = 6) -> pd.DataFrame:
    """Distances of heads: the first head of the first block is as near as said, in units of uniform attention's 100 px."""
    rows = [
        (
            model,
            f"blocks.{block}",
            head,
            100 * (least + (1 - least) * (block * heads + head) / (blocks * heads)),
        )
        for model, least in models.items()
        for block in range(blocks)
        for head in range(heads)
    ]
    table = pd.DataFrame(rows, columns=["model", "block", "head", "distance_px"])
    table.attrs = {"analysis": "attention_distance", "images": IMAGES}
    table = table.assign(low=table["distance_px"] - 1, high=table["distance_px"] + 1, uniform_px=100.0)
    depth = table["block"].str.removeprefix("blocks.").astype(int) / max(1, blocks - 1)
    table = table.assign(
        depth=depth, entropy=table["distance_px"] / 20, uniform_entropy=5.0, nmi=0.3 * (1 - depth)
    )
    for name in ("entropy", "nmi"):
        table = table.assign(**{f"{name}_low": table[name] - 0.02, f"{name}_high": table[name] + 0.02})
    return table


def subsets(distances: list[float], units: tuple[str, ...] = ("layer1.0", "layer2.0")) -> pd.DataFrame:
    rows = [
        ("v", "r", unit, distance, 0.5 - place / 20 - number / 100)
        for number, unit in enumerate(units)
        for place, distance in enumerate(distances)
    ]
    table = pd.DataFrame(rows, columns=["vit", "cnn", "layer", "distance_px", "cka"])
    table.attrs = {"analysis": "head_subsets", "images": IMAGES}
    return table.assign(low=table["cka"] - 0.02, high=table["cka"] + 0.02)


def radii(models: dict[str, int]) -> pd.DataFrame:
    """Radii and shares of the steps of `receptive_fields`."""
    table = receptive_fields(models).drop(columns=["rows", "columns", "map"])
    table = table.assign(
        depth=table.groupby(["model", "branch"]).cumcount() / 10, centre_share=0.5, centre_low=0.4
    )
    table = table.assign(low=table["radius_px"] - 1, high=table["radius_px"] + 1, centre_high=0.6)
    for number, share in enumerate((20, 30, 50, 99)):
        side = 2 * (table["radius_px"] + 5 * number) + 1
        table = table.assign(
            **{f"side_{share}_px": side, f"side_{share}_low": side - 3, f"side_{share}_high": side + 2}
        )
    table.attrs = {"analysis": "receptive_field", "images": IMAGES}
    return table.assign(uniform_centre_share=0.01)


def removals(models: dict[str, int], analysis: str = "lesions") -> pd.DataFrame:
    """Accuracy and similarity without the skip connections of each block."""
    rows = [
        (model, f"blocks.{block}", block / 20) for model, blocks in models.items() for block in range(blocks)
    ]
    table = pd.DataFrame(rows, columns=["model", "block", "drop"]).assign(reference="labels")
    table = table.assign(accuracy=1 - table["drop"], accuracy_low=1 - table["drop"] - 0.1, accuracy_high=1.0)
    table = table.assign(low=table["drop"] - 0.02, high=table["drop"] + 0.02, across=0.3, across_intact=0.5)
    table.attrs = {"analysis": analysis, "images": IMAGES, "intact": "v"}
    return table.assign(across_drop=0.2, across_low=0.15, across_high=0.25)


def read(models: dict[str, tuple[str, float]], targets: tuple[str, ...] = ("shape",)) -> pd.DataFrame:
    """Accuracies of what heads read, of one kind of tokens and as good as said in the last of four layers."""
    rows = [
        (model, f"blocks.{layer}", layer / 3, target, tokens, draw, 5, best * (layer + 1) / 4 - draw / 100)
        for model, (tokens, best) in models.items()
        for target in targets
        for layer in range(4)
        for draw in range(3)
    ]
    names = ["model", "layer", "depth", "target", "tokens", "draw", "shots", "accuracy"]
    table = pd.DataFrame(rows, columns=names)
    table.attrs = {"analysis": "probe", "images": IMAGES, "chance": dict.fromkeys(targets, 0.1)}
    table.attrs |= {"native": {model: tokens for model, (tokens, _) in models.items()}}
    return table


def losses(models: list[str]) -> pd.DataFrame:
    rows = [
        (model, depth / 4, 2 - depth / 4 - number / 10)
        for number, model in enumerate(models)
        for depth in range(5)
    ]
    table = pd.DataFrame(rows, columns=["model", "depth", "loss"]).assign(layer="blocks.0", chance=2.3)
    table.attrs = {"analysis": "soft_nearest_neighbor", "images": IMAGES, "tokens": "all", "massive": []}
    return table.assign(low=table["loss"] - 0.1, high=table["loss"] + 0.1, loss_fixed=2.2)


def panels(figure: Figure) -> list:
    return [ax for ax in figure.axes if ax.images]


def scales(figure: Figure) -> set[tuple[float, float]]:
    return {(image.norm.vmin, image.norm.vmax) for ax in panels(figure) for image in ax.images}


def written(figure: Figure) -> Iterator[Text]:
    """All text that is drawn."""
    hidden = set()
    for ax in [*figure.axes, *(child for parent in figure.axes for child in parent.child_axes)]:
        if not ax.axison:
            hidden |= {id(text) for text in [*ax.xaxis.findobj(Text), *ax.yaxis.findobj(Text)]}
        for axis in (ax.xaxis, ax.yaxis):
            least, most = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not least - 1e-9 <= tick.get_loc() <= most + 1e-9:
                    hidden |= {id(tick.label1), id(tick.label2)}
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden:
            yield text


S = similarities(
    list(combinations([VIT, RUN, CNN], 2)) + [(m, m) for m in (VIT, RUN, CNN)], {VIT: 32, RUN: 12, CNN: 50}
)
K = skips({VIT: (32, 65), RUN: (12, 9), CNN: (50, 0)})
R = receptive_fields({VIT: 32, CNN: 16})
P = probes({VIT: (12, 16), CNN: (16, 7)})
FIGURES = {
    "heatmaps within": lambda: plot.heatmaps(S, panels=[(VIT, VIT), (RUN, RUN), (CNN, CNN), (VIT, CNN)]),
    "heatmaps across": lambda: plot.heatmaps(S, panels=[(VIT, CNN), (RUN, CNN)]),
    "cka": lambda: plot.cka(S),
    "corresponding": lambda: plot.corresponding(S, pairs=[(VIT, RUN), (VIT, CNN), (RUN, CNN)]),
    "fields": lambda: plot.fields(R, branch="residual"),
    "fields all": lambda: plot.fields(R[R["model"] == CNN], branch="long", steps=None),
    "norm ratios": lambda: plot.norm_ratios(K),
    "token norm ratios": lambda: plot.token_norm_ratios(K),
    "cosines": lambda: plot.cosines(K),
    "accuracy maps": lambda: plot.accuracy_maps(P),
    "localization": lambda: plot.localization(
        places([(VIT, "blocks.31", 16), (RUN, "blocks.10", 7), (CNN, "layer4.2", 7)])
    ),
    "verdicts": lambda: plot.verdicts(findings()),
    "five differences": lambda: plot.five_differences(findings()),
    "attention distance": lambda: plot.attention_distance(reaches({VIT: 0.2, RUN: 0.9, f"{VIT}:1": 0.3})),
    "head subsets": lambda: plot.head_subsets(subsets([15.0, 15.1, 15.3])),
    "receptive field": lambda: plot.receptive_field(radii({VIT: 12, f"{VIT}@random": 12, CNN: 16})),
    "receptive field maps": lambda: plot.receptive_field_maps(R),
    "skip": lambda: plot.skip(K),
    "lesions": lambda: plot.lesions(removals({VIT: 12, CNN: 16})),
    "lesions trained": lambda: plot.lesions(removals({VIT: 3}, "lesions_trained")),
    "without skips": lambda: plot.without_skips(S, intact=VIT, changed={RUN: "blocks.5"}),
    "probe": lambda: plot.probe(read({VIT: ("cls", 0.9), CNN: ("mean", 0.8)}), groups=[[VIT, CNN]]),
    "probe of more": lambda: plot.probe(
        read({VIT: ("cls", 0.9), CNN: ("mean", 0.8)}, ("texture", "position"))
    ),
    "probe tokens": lambda: plot.probe_tokens(read({VIT: ("cls", 0.9), CNN: ("mean", 0.8)})),
    "soft nearest neighbour": lambda: plot.soft_nearest_neighbor(losses([VIT, CNN]), losses([VIT, CNN])),
}


@cache
def drawn(name: str) -> Figure:
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    return figure


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_covers_another_or_is_cut_off_or_too_small(name):
    figure = drawn(name)
    texts = list(written(figure))
    assert texts
    boxes = [text.get_window_extent() for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert text.get_fontsize() >= 7, text
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert box.y1 <= figure.bbox.y1 + 1, text
    for (text, box), (other, beside) in combinations(zip(texts, boxes, strict=True), 2):
        apart = (
            min(box.x1, beside.x1) - max(box.x0, beside.x0) <= 1
            or min(box.y1, beside.y1) - max(box.y0, beside.y0) <= 1
        )
        assert apart, (text, other)


@pytest.mark.parametrize("name", FIGURES)
def test_no_legend_or_title_covers_a_panel(name):
    figure = drawn(name)
    legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]
    titles = [ax.title for ax in figure.axes if ax.get_title()]
    for thing in (*legends, *titles):
        box = thing.get_window_extent()
        for ax in figure.axes:
            if ax.axison:
                frame = ax.get_window_extent()
                assert min(box.x1, frame.x1) - max(box.x0, frame.x0) <= 1 or (
                    min(box.y1, frame.y1) - max(box.y0, frame.y0) <= 1
                ), thing


def test_squares_show_the_pairs_asked_for_whichever_way_the_table_holds_them():
    table = similarities([("a", "b"), ("a", "a")], {"a": 2, "b": 3})
    figure = plot.heatmaps(table, panels=[("a", "b"), ("b", "a"), ("a", "a")])
    first, turned, own = panels(figure)
    assert [ax.get_title() for ax in (first, turned, own)] == ["a and b", "b and a", "a"]
    np.testing.assert_allclose(first.images[0].get_array(), [[1, 1 / 3, 1 / 5], [1 / 2, 1 / 4, 1 / 6]])
    np.testing.assert_allclose(turned.images[0].get_array(), first.images[0].get_array().T)
    assert (turned.get_ylabel(), turned.get_xlabel()) == ("b: depth (3 layers)", "a: depth (2 layers)")
    assert scales(figure) == {(0, 1)}
    assert [ax.get_ylabel() for ax in figure.axes if not ax.images] == ["CKA (normalized tokens)"]
    with pytest.raises(ValueError, match="does not compare 'b' with 'b'; it has a and b, a and a"):
        plot.heatmaps(table, panels=[("b", "b")])


def test_a_table_of_some_pairs_only_is_drawn():
    table = similarities([("a", "b"), ("a", "a"), ("c", "a")], {"a": 2, "b": 3, "c": 2})
    assert [ax.get_title() for ax in panels(plot.cka(table))] == ["a", "a and c", "a and b"]
    values = plot.heatmap(table).images[0].get_array()
    assert values.shape == (4, 5)  # a and c up, b and a to the right
    assert np.isnan(np.asarray(values.filled(np.nan))[2:, :3]).all()


def test_massive_tokens_are_told_of_the_models_shown_alone():
    table = similarities([("a", "b"), ("a", "a")], {"a": 2, "b": 3})
    table.attrs.update(
        tokens="all", massive=[{"model": m, "layer": "blocks.1", "hsic": 0.9} for m in ("a", "b")]
    )
    (told,) = [text.get_text() for text in plot.heatmaps(table, panels=[("a", "a")]).texts]
    assert told.replace("\n", " ").endswith("a: 1 of 2 layers.")
    (told,) = [text.get_text() for text in plot.heatmaps(table, panels=[("a", "b")]).texts]
    assert told.replace("\n", " ").endswith("a: 1 of 2 layers; b: 1 of 3 layers.")


def test_corresponding_blocks_with_their_intervals():
    table = similarities([("a", "b"), ("c", "a")], {"a": 3, "b": 2, "c": 3})
    ax = plot.corresponding(table, pairs=[("a", "b"), ("a", "c")], labels=["3 %", "10 %"]).axes[0]
    shorter, whole = ax.lines
    np.testing.assert_allclose(shorter.get_ydata(), [1, 1 / 4])
    np.testing.assert_allclose(whole.get_ydata(), [1, 1 / 4, 1 / 7])
    assert whole.get_xdata().tolist() == [0, 1, 2]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["3 %", "10 %"]
    assert shorter.get_marker() != whole.get_marker()
    band = ax.collections[1].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((1 / 7 - 0.1, 1.2))
    with pytest.raises(ValueError, match="1 labels for 2 pairs"):
        plot.corresponding(table, pairs=[("a", "b"), ("a", "c")], labels=["3 %"])


def steps(figure: Figure) -> list[str]:
    return [ax.get_title().split("\n")[0] for ax in panels(figure)]


def test_figure_6_has_the_papers_attentions_and_a_title_for_each_model():
    figure = plot.fields(receptive_fields({VIT: 12, "resnet": 16}), branch="residual")
    assert steps(figure) == [
        *(f"attention {place}" for place in (1, 3, 6, 9, 12)),
        *("initial conv", "unit 4", "unit 8", "unit 12", "unit 16"),
    ]
    assert [part.get_suptitle() for part in figure.subfigs[:2]] == [
        f"{VIT}, after the addition",
        "resnet, after the addition",
    ]
    first = panels(figure)[0]
    assert first.get_title() == "attention 1\n10.0 px"
    np.testing.assert_allclose(first.images[0].get_array().flatten(), np.arange(1, 17) / 16)
    assert scales(figure) == {(0.001, 1)}


def rows_of(figure: Figure) -> list[list[str]]:
    """Titles of maps, row by row."""
    found: dict[int, list[str]] = {}
    for ax in panels(figure):
        found.setdefault(ax.get_subplotspec().rowspan.start, []).append(ax.get_title().split("\n")[0])
    return [found[row] for row in sorted(found)]


def test_all_steps_of_a_transformer_are_rows_of_attentions_above_rows_of_mlps_block_under_block():
    attention, mlp = ([f"{kind} {place}" for place in range(1, 13)] for kind in ("attention", "MLP"))
    figure = plot.fields(receptive_fields({"vit": 12}), branch="long", steps=None)
    assert rows_of(figure) == [attention[:6], mlp[:6], attention[6:], mlp[6:]]


def test_all_units_of_a_cnn_are_a_row_per_stage_with_the_stem_in_the_first():
    maps = receptive_fields({"resnet": 16})
    stages = np.repeat([1, 2, 3, 4], [3, 4, 6, 3])
    layer = {"initial conv": "relu"} | {
        f"unit {n + 1}": f"layer{stage}.{n}" for n, stage in enumerate(stages)
    }
    figure = plot.fields(maps.assign(layer=maps["step"].map(layer)), branch="residual", steps=None)
    assert rows_of(figure) == [
        ["initial conv", "unit 1", "unit 2", "unit 3"],
        *([f"unit {n}" for n in numbers] for numbers in (range(4, 8), range(8, 14), range(14, 17))),
    ]
    labels = [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()]
    assert labels == ["layer1", "layer2", "layer3", "layer4"]


def test_a_field_has_its_radius_as_a_circle_around_its_brightest_place():
    values = np.full((9, 9), 0.01)
    values[4:6, 2:4] = 1.0
    row = pd.Series({"step": "unit 1", "radius_px": 2.5, "rows": 9, "columns": 9, "map": values.ravel()})
    (circle,) = plot.field(row).patches
    assert (circle.center, circle.radius) == ((2.5, 4.5), 2.5)


def test_a_choice_of_long_branches_has_both_sublayers():
    maps = receptive_fields({"vit": 12})
    assert steps(plot.fields(maps, branch="long")) == [
        "attention 1",
        "MLP 3",
        "attention 6",
        "MLP 9",
        "attention 12",
    ]
    assert steps(plot.fields(maps, branch="residual", steps=3)) == [
        "attention 1",
        "attention 6",
        "attention 12",
    ]
    with pytest.raises(ValueError, match="no receptive fields of branch 'short'"):
        plot.fields(maps, branch="short")


def test_figure_7_has_the_mean_of_both_sublayers_and_lines_of_the_first_transformer_and_the_cnn():
    figure = plot.norm_ratios(skips({"a": (3, 12), "b": (2, 4), "cnn": (4, 0)}))
    left, mlp, attention = figure.axes[:3]
    cells = left.images[0].get_array()
    assert cells.shape == (3, 9)
    np.testing.assert_allclose(cells[:, 0], [7.5, 15, 22.5])
    np.testing.assert_allclose(cells[:, 1], [1.5, 3, 4.5])
    assert left.get_title() == "a, mean of attention and MLP"
    assert left.get_xticklabels()[0].get_text() == "0 (cls)"
    assert [ax.get_title() for ax in (mlp, attention)] == ["MLP", "attention"]
    for ax, times in ((mlp, 2), (attention, 1)):
        lines = {line.get_label(): line.get_ydata().tolist() for line in ax.lines}
        assert lines == {
            "a: class token": [5 * times, 10 * times, 15 * times],
            "a: spatial tokens": [times, 2 * times, 3 * times],
            "cnn: residual units": [2, 3, 4, 5],
        }
    assert mlp.get_ylim() == attention.get_ylim()
    colours = {line.get_label()[0]: line.get_color() for line in mlp.lines}
    assert len(set(colours.values())) == 2  # one for each model
    assert {line.get_color() for line in mlp.lines if line.get_label()[0] == "a"} == {colours["a"]}
    assert len(plot.norm_ratios(skips({"cnn": (4, 0)})).axes) == 2


def test_figure_e1_has_mlp_and_attention_of_each_transformer_on_one_scale():
    figure = plot.token_norm_ratios(skips({"a": (3, 50), "cnn": (4, 0), "b": (2, 4)}))
    shown = panels(figure)
    assert [ax.get_title() for ax in shown] == ["a, MLP", "a, attention", "b, MLP", "b, attention"]
    assert shown[0].images[0].get_array().shape == (3, 50)
    assert scales(figure) == {(1, 30)}
    marks = [label.get_text() for label in shown[0].get_xticklabels()]
    assert marks == ["0 (cls)", "10", "20", "30", "40"]
    with pytest.raises(ValueError, match="no numbered tokens"):
        plot.token_norm_ratios(skips({"cnn": (4, 0)}))


def test_the_class_token_is_wider_among_many():
    ax = panels(plot.token_norm_ratios(skips({"a": (3, 257)})))[0]
    whole, first = ax.images
    np.testing.assert_array_equal(first.get_array(), whole.get_array()[:, :1])
    assert first.get_extent() == [-8.5, -0.5, -0.5, 2.5]
    assert ax.get_xlim() == (-8.5, 256.5)


def dots(ax: Axes) -> list[tuple[float, float]]:
    """Token and block of the cells that have a dot."""
    return [
        (float(token), float(block))
        for line in ax.lines
        if line.get_marker() == "."
        for token, block in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]


def notes(figure: Figure) -> str:
    return " ".join(text.get_text().replace("\n", " ") for text in figure.texts)


def test_a_massive_token_does_not_take_the_colours_and_is_marked_and_named():
    table = skips({"a": (3, 9)}).astype({"norm_ratio": float})
    usual = scales(plot.token_norm_ratios(table))
    table.loc[(table["token"] == "4") & (table["block"] == "blocks.1"), "norm_ratio"] = 1e6
    table.loc[(table["token"] == "7") & (table["block"] == "blocks.2"), "norm_ratio"] = 1e-3
    figure = plot.token_norm_ratios(table)
    assert scales(figure) == usual == {(1, 30)}
    for ax in panels(figure):
        assert sorted(dots(ax)) == [(4, 1), (7, 2)]
    assert "beyond the colour scale: a, tokens 4, 7 (0.001 to 1e+06)" in notes(figure)
    (bar,) = [ax for ax in figure.axes if not ax.images]
    assert bar.get_ylabel() == "norm of skip / of long branch"


def test_the_class_token_is_never_beyond_the_colours():
    table = skips({"a": (3, 9)})
    table.loc[(table["token"] == "0") & (table["block"] == "blocks.1"), "norm_ratio"] = 1e3
    figure = plot.token_norm_ratios(table)
    assert scales(figure) == {(1, 1e3)}
    assert not any(dots(ax) for ax in panels(figure))
    assert "beyond" not in notes(figure)


def test_figure_e2_has_the_cosines():
    mlp, attention = plot.cosines(skips({"a": (3, 4), "cnn": (2, 0)})).axes
    for ax in (mlp, attention):
        lines = {line.get_label(): line.get_ydata().tolist() for line in ax.lines}
        assert lines["cnn: residual units"] == pytest.approx([1 / 3, 1 / 4])
        assert len(lines) == 3
    assert mlp.get_ylabel() == "cosine of output and skip"


def test_figure_d4_has_five_layers_of_each_model_on_one_scale_with_their_range():
    figure = plot.accuracy_maps(probes({"a": (9, 3), "b": (3, 2)}))
    shown = panels(figure)
    assert [ax.get_title().split("\n")[0] for ax in shown] == [
        *(f"blocks.{place}" for place in (0, 2, 4, 6, 8)),
        *(f"blocks.{place}" for place in (0, 1, 2)),
    ]
    np.testing.assert_allclose(shown[1].images[0].get_array(), 2 + np.arange(9).reshape(3, 3) / 10)
    assert shown[1].get_title() == "blocks.2\n2.0\N{EN DASH}2.8 %"
    assert [ax.get_ylabel() for ax in shown if ax.get_ylabel()] == ["a", "b"]
    ((least, most),) = scales(figure)
    assert (least, most) == pytest.approx((0, 8.8))
    with pytest.raises(ValueError, match="no single tokens in this table"):
        plot.accuracy_maps(probes({"a": (2, 3)}).assign(tokens="mean"))


def test_localization_has_one_scale_and_says_how_far_the_own_patch_stands_out():
    """Scales per row showed a model with a fifth of another's similarity as bright as it."""
    figure = plot.localization(places([("a", "blocks.1", 7), ("a", "blocks.0", 7), ("b", "layer4.2", 4)]))
    rows = list(zip(*[iter(panels(figure))] * 4, strict=True))
    assert scales(figure) == {(0, 0.9 / 4)}
    labels = [row[0].texts[0].get_text() for row in rows]
    assert labels == ["a, blocks.1: +0.114", "a, blocks.0: +0.114", "b, layer4.2: +0.200"]
    tokens = [[ax.get_xlabel().split("\n")[0] for ax in row] for row in rows]
    assert tokens[0] == [f"token {place}" for place in ((0, 0), (2, 1), (4, 2), (4, 4))]
    assert {ax.get_xlabel().split("\n")[1] for ax in rows[2]} == {"+0.200"}  # the others are all alike: no z
    for row, names in zip(rows, tokens, strict=True):
        for ax, name in zip(row, names, strict=True):
            (own,) = ax.patches
            assert f"token ({own.get_y() + 0.5:g}, {own.get_x() + 0.5:g})" == name


def test_what_a_patch_stands_out_by_is_in_standard_deviations_of_the_others():
    table = places([("a", "blocks.1", 2)])
    token = table[table["token"] == 3].assign(cka=[0.1, 0.2, 0.3, 0.6])
    assert plot.patch_map(token).get_xlabel() == "token (1, 1)\n+0.400 (z = 4.0)"


def test_further_training_runs_stand_beside_the_first_and_have_no_row():
    table = places([("a", "blocks.1", 4), ("a:1", "blocks.1", 4), ("a@random", "blocks.1", 4)])
    table.loc[table["model"] == "a:1", "cka"] *= 2
    figure = plot.localization(table)
    labels = [ax.texts[0].get_text() for ax in panels(figure)[::4]]
    assert labels == ["a, blocks.1: +0.200 (+0.400)", "a@random, blocks.1: +0.200"]


def test_tokens_without_a_similarity_are_drawn_as_undefined():
    figure = plot.localization(places([("a", "blocks.1", 4)]).assign(cka=np.nan))
    assert all(ax.images[0].get_array().mask.all() for ax in panels(figure))


def lines_of(ax: Axes) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in ax.lines if not str(line.get_label()).startswith("_")}


def thin(ax: Axes) -> list[Line2D]:
    return [line for line in ax.lines if line.get_linewidth() == 0.7]


def test_distances_of_heads_are_sorted_and_in_units_of_uniform_attention_with_pixels_at_the_right():
    table = reaches({"a": 0.9}, blocks=4, heads=3)
    shuffled = table.sample(frac=1, random_state=0).sort_values("block", kind="stable")
    ax = plot.head_distances(shuffled)
    lines = lines_of(ax)
    assert list(lines) == [
        *("first block (blocks.0)", "second block (blocks.1)", "last block but one (blocks.2)"),
        *("last block (blocks.3)", "uniform attention"),
    ]
    first = lines["first block (blocks.0)"].get_ydata()
    np.testing.assert_allclose(first, [0.9, 0.9 + 0.1 / 12, 0.9 + 0.2 / 12])
    assert len({line.get_marker() for line in lines.values()}) == 5
    assert len({line.get_color() for line in lines.values()}) == 5
    (right,) = ax.child_axes
    ax.figure.draw_without_rendering()
    assert right.get_ylim() == pytest.approx(tuple(100 * end for end in ax.get_ylim()))


def test_entropy_and_information_stand_beside_distance_over_depth_in_units_of_uniform_attention():
    table = reaches({"a": 0.5, "a:1": 0.6, "b": 0.9}, blocks=4, heads=3)
    figure = plot.attention_spread(table)
    distance, entropy, nmi = (ax for ax in figure.axes if ax.axison)
    for ax, value in (
        (distance, table["distance_px"] / 100),
        (entropy, table["entropy"] / 5),
        (nmi, table["nmi"]),
    ):
        own = value[table["model"] == "a"].groupby(table["block"]).mean()
        lines = lines_of(ax)
        assert list(lines) == ["a", "b"]
        np.testing.assert_allclose(lines["a"].get_xydata(), np.stack([np.arange(4) / 3, own], axis=1))
        assert len(thin(ax)) == 1  # the further run
        assert [len(container.lines[0].get_xdata()) for container in ax.containers] == [12, 12]
        low, high = ax.containers[0].lines[2][0].get_segments()[0][:, 1]
        assert high - low == pytest.approx({distance: 0.02, entropy: 0.008, nmi: 0.04}[ax])
    assert "Points: heads. Lines: their mean." in notes(figure)
    assert "Bars: 95 % intervals" in notes(figure)


def test_blocks_of_a_shallow_model_are_shown_once():
    assert len(lines_of(plot.head_distances(reaches({"a": 0.5}, blocks=2)))) == 3
    assert len(lines_of(plot.head_distances(reaches({"a": 0.5}, blocks=1)))) == 2


@pytest.mark.parametrize(("least", "starts"), [(0.88, 0.87), (0.6, 0.56), (0.3, 0.0)])
def test_no_panel_of_distances_is_mostly_empty_and_all_have_one_scale(least, starts):
    figure = plot.attention_distance(reaches({"a": least, "b": 0.95}, blocks=4))
    first, second = figure.axes
    assert first.get_ylim() == second.get_ylim()
    bottom, top = first.get_ylim()
    assert bottom == pytest.approx(starts, abs=0.05)
    held = [line.get_ydata() for ax in figure.axes for line in ax.lines]
    if bottom:  # what is not shown is said
        assert (np.concatenate(held).max() - np.concatenate(held).min()) / (top - bottom) > 0.7
    assert ("No head of these blocks looks nearer than" in notes(figure)) == bool(bottom)
    assert "95 % intervals" in notes(figure)
    assert "1,760 images of the lab" in notes(figure)


def test_many_models_are_put_into_rows_and_runs_into_the_panel_of_their_model():
    names = ["a", "a:1", "a:2", "b", "c", "d", "d@random"]
    figure = plot.attention_distance(reaches(dict.fromkeys(names, 0.8)))
    shown = [ax for ax in figure.axes if ax.axison]
    assert [ax.get_title() for ax in shown] == ["a", "b", "c", "d", "d@random"]
    assert max(ax.get_subplotspec().colspan.stop for ax in shown) <= 3
    assert [len(thin(ax)) for ax in shown] == [8, 0, 0, 0, 0]  # four blocks of two further runs
    assert "Thin lines: further training runs." in notes(figure)


@pytest.mark.parametrize(
    ("distances", "told"),
    [
        ([15.0, 15.1, 15.4], ["distances differ by 0.4 px", "3 subsets of heads"]),
        ([20.0, 50.0, 80.0], ["3 subsets of heads"]),
        ([15.0 + place / 20 for place in range(8)], ["distances differ by 0.3 px"]),
        ([20.0 + 10 * place for place in range(8)], []),
    ],
)
def test_subsets_of_heads_that_tell_nothing_say_so(distances, told):
    ax = plot.subset_similarity(subsets(distances))
    said = (
        " ".join(text.get_text() for text in ax.texts).replace("\n", " ").replace("\N{NO-BREAK SPACE}", " ")
    )
    assert said.startswith("Not measured: ") == bool(told)
    for words in ("distances differ", "subsets of heads"):
        assert (words in said) == any(words in one for one in told)
    assert all(one in said for one in told)
    for text in ax.texts:  # above all lines
        ax.figure.draw_without_rendering()
        lowest = ax.transData.inverted().transform(text.get_window_extent())[0, 1]
        assert lowest > max(line.get_ydata().max() for line in ax.lines)


def test_radii_have_a_column_per_kind_of_layer_and_twins_are_dashed():
    figure = plot.receptive_field(radii({"a": 4, "a:1": 4, "a@random": 4, "resnet": 4}))
    upper = figure.axes[:3]
    assert [ax.get_title() for ax in upper] == ["after the addition", "attention or unit alone", "MLP alone"]
    lines = lines_of(upper[0])
    assert list(lines) == ["a", "a@random", "resnet"]
    assert (lines["a"].get_linestyle(), lines["a@random"].get_linestyle()) == ("-", "--")
    assert lines["a"].get_color() == lines["a@random"].get_color() != lines["resnet"].get_color()
    assert [line.get_color() for line in thin(upper[0])] == [lines["a"].get_color()]
    assert list(lines_of(upper[2])) == ["a", "a@random"]  # a CNN has no MLP
    assert len(upper[0].collections) == 3  # a band for each but the further run
    assert all(ax.get_ylim()[0] == 0 for ax in upper)


def test_accuracy_without_skips_has_its_band_and_the_intact_model_dashed():
    figure = plot.lesions(removals({"a": 4, "a:1": 4, "cnn": 3}))
    left, right = figure.axes
    assert list(lines_of(left)) == ["a", "cnn"]
    assert (len(thin(left)), len(thin(right))) == (1, 1)
    assert len([line for line in left.lines if line.get_linestyle() == "--"]) == 2
    band = left.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() <= 1
    assert left.get_ylim()[0] <= 0 < 1 <= left.get_ylim()[1]
    assert "Dashed: the intact models." in notes(figure)


def test_what_training_without_skips_costs_is_in_points_by_block_with_runs_as_circles():
    table = removals({"late": 1, "early": 1, "early:1": 1}, "lesions_trained")
    table["block"] = ["blocks.10", "blocks.2", "blocks.2"]
    table["drop"] = [0.04, 0.01, 0.1]
    left, right = plot.lesions(table).axes
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["blocks.2", "blocks.10"]
    values = [(float(x), float(y)) for line in left.lines if line.get_marker() == "o"
              for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]  # fmt: skip
    np.testing.assert_allclose(values, [(0, 1), (0.12, 10), (1, 4)])
    assert left.get_ylabel() == "accuracy lost (percentage points)"
    assert {"the paper's 4", "intact"} == {text.get_text() for text in left.texts}
    assert [text.get_text() for text in left.figure.legends[0].get_texts()] == [
        "intact model",
        "without the block's skip connections",
    ]
    assert right.get_ylim()[0] == 0


def test_the_intact_model_comes_first_and_lines_mark_the_changed_block():
    table = similarities([("v", "v"), ("w", "w"), ("u", "u")], {"v": 6, "w": 6, "u": 6})
    for side in ("layer", "other_layer"):  # two layers to a block
        table[side] = table[side].map(
            lambda name: f"blocks.{int(name[7:]) // 2}{('.attn', '')[int(name[7:]) % 2]}"
        )
    figure = plot.without_skips(table, intact="v", changed={"w": "blocks.1", "u": ""})
    intact, changed, unknown = panels(figure)
    assert [ax.get_title() for ax in (intact, changed, unknown)] == [
        "all skip connections",
        "none in blocks.1",
        "u",
    ]

    def marks(ax: Axes) -> list[float]:
        return [
            float(line.get_xdata()[0])
            for line in ax.lines
            if line.get_linestyle() == "--" and line.get_ydata() == [0, 1]
        ]

    assert marks(changed) == [1.5, 3.5]
    assert marks(intact) == marks(unknown) == []


def test_groups_of_probes_stand_beside_what_the_first_is_better_by_draw_by_draw():
    table = read({"a": ("cls", 0.8), "few": ("cls", 0.4), "r": ("mean", 0.6), "a:1": ("cls", 0.7)})
    figure = plot.probe(table, groups=[["a", "few"], ["r"]])
    first, second, below, _ = figure.axes
    assert [name for name in lines_of(first) if name in ("a", "few", "r")] == [
        "a",
        "few",
        "r",
    ]  # the legend is of all
    assert len(thin(first)) == 1
    assert [line.get_label() for line in second.lines if len(line.get_xdata()) == 4] == ["r"]
    (gap,) = lines_of(below).values()
    assert gap.get_label() == "a \N{MINUS SIGN} few"
    np.testing.assert_allclose(gap.get_ydata(), [10, 20, 30, 40])
    vertices = below.collections[0].get_paths()[0].vertices
    assert np.ptp(vertices[np.isclose(vertices[:, 0], 1), 1]) == pytest.approx(
        0, abs=1e-9
    )  # draws are paired


def test_accuracies_have_room_but_no_more():
    low = plot.probe(read({"a": ("cls", 0.3)}, ("texture", "position")), note="In the place of CIFAR.")
    np.testing.assert_allclose([ax.get_ylim() for ax in low.axes], [(0, 34.5)] * 2)
    assert "In the place of CIFAR." in notes(low)
    assert "Bands: from the worst to the best draw" in notes(low)
    uneven = read({"a": ("cls", 0.3)}, ("texture", "position"))
    uneven.loc[uneven["target"] == "position", "accuracy"] *= 2
    np.testing.assert_allclose([ax.get_ylim()[1] for ax in plot.probe(uneven).axes], [34.5, 69])
    high = plot.probe(read({"a": ("cls", 1.0)}))
    assert {ax.get_ylim() for ax in high.axes} == {(0, 102)}
    assert all("chance" in lines_of(ax) for ax in (*low.axes, *high.axes))


def test_each_model_has_a_panel_of_its_representations_told_apart_by_dashes_and_markers():
    parts = [read({"a": (tokens, 0.5)}) for tokens in ("cls", "mean", "mean_spatial", "0", "1")]
    table = pd.concat([*parts, read({"b": ("mean", 0.5)}), read({"b": ("0", 0.5)})], ignore_index=True)
    table.attrs = parts[0].attrs | {"native": {"a": "cls", "b": "mean"}}
    figure = plot.probe_tokens(table)
    single, first, second = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["single tokens, on average", "a", "b"]
    assert list(lines_of(single)) == ["a", "b", "chance"]
    lines = lines_of(first)
    assert list(lines) == ["class token", "mean of all tokens", "mean without the class token", "chance"]
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines.values()}) == 4
    widths = {name: line.get_linewidth() for name, line in lines.items()}
    assert max(widths, key=lambda name: widths[name]) == "class token"
    assert list(lines_of(second)) == ["mean of all tokens", "first token", "chance"]


def test_normalized_tokens_have_a_panel_of_the_loss_where_they_were_measured():
    titles = [ax.get_title() for ax in plot.soft_nearest_neighbor(losses(["a", "b"])).axes]
    assert titles == ["best temperature", "temperature = median squared distance"]
    normalized = losses(["a", "b"])
    normalized.attrs["tokens"] = "normalized"
    figure = plot.soft_nearest_neighbor(losses(["a", "b", "a:1"]), normalized)
    assert [ax.get_title().replace("\n", " ") for ax in figure.axes] == [
        *(
            "best temperature",
            "best temperature (normalized tokens)",
            "temperature = median squared distance",
        ),
    ]
    assert [len(thin(ax)) for ax in figure.axes] == [1, 0, 1]


def test_a_model_has_one_look_in_all_pictures_of_a_study():
    with plot.style(cast=["a", "b", "c"], names={"c": "The third"}):
        colours = [
            lines_of(plot.probe(read({"c": ("cls", 0.5)})).axes[0])["The third"].get_color(),
            lines_of(plot.soft_nearest_neighbor(losses(["c", "a"])).axes[0])["The third"].get_color(),
            lines_of(plot.receptive_field(radii({"c": 4})).axes[0])["The third"].get_color(),
            lines_of(plot.lesions(removals({"c": 4})).axes[0])["The third"].get_color(),
        ]
    assert len(set(colours)) == 1


@pytest.mark.parametrize(
    "name",
    [
        "attention distance",
        "localization",
        "fields",
        "norm ratios",
        "probe",
        "probe tokens",
        "lesions",
        "lesions trained",
    ],
)
def test_a_picture_has_the_width_of_a_column_if_asked(name):
    with plot.style(width=3.25):
        figure = FIGURES[name]()
    assert figure.get_figwidth() == 3.25
    figure.draw_without_rendering()
    for text in written(figure):
        assert text.get_window_extent().x1 <= figure.bbox.x1 + 1, text
