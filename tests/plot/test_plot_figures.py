"""The paper's figures from made-up tables: what stands where, one scale where panels are compared, no text over text."""

from collections.abc import Iterator
from functools import cache
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from vit_analysis import plot
from vit_analysis.study import rules

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


LOOKS = {  # colour, marker, and whether it is filled
    "reproduced": ("#1f4e9c", "o", True),
    "reproduced, smaller than claimed": ("#1f4e9c", "o", False),
    "architectural": ("#5b6bb5", "^", False),
    "fragile": ("#b07d12", "D", False),
    "not reproduced": ("#b3261e", "s", True),
    "inconclusive": ("0.4", "D", True),
}


def findings() -> pd.DataFrame:
    columns = ["id", "claim", "value", "low", "high", "tau", "verdict", "runs", "difference"]
    claim = "Layers of the Vision Transformer are more alike than those of the CNN are, from the first one to the last"
    return pd.DataFrame(
        [
            ("F1a", claim, 0.3, 0.2, 0.4, 0.0, "reproduced", [], 1),
            ("F2a", claim, 0.6, 0.55, 0.65, 0.5, "not reproduced", [], 1),
            ("F5", claim, -0.7, -0.9, -0.5, -0.8, "inconclusive", [], 2),
            ("F3e", "No threshold", 0.5, 0.4, 0.6, np.nan, "inconclusive", [0.5, 0.4], 2),
            ("F7a", claim, 2.0, 1.5, 2.5, 1.0, "reproduced, smaller than claimed", [2.0, 1.2, -1.0], 3),
            ("F9a", "Short", 1.0, 1.0, 1.0, 0.0, "architectural", [], 4),
            ("F9b", "Short", 0.25, 0.2, 0.3, 0.2, "fragile", [0.25, 0.15], 4),
            ("F12a", "Not measured", np.nan, np.nan, np.nan, 0.0, "not measured", [], 5),
            ("H1", "No interval", 0.5, np.nan, np.nan, 0.0, "inconclusive", [], np.nan),
        ],
        columns=columns,
    )


def panels(figure: Figure) -> list:
    return [ax for ax in figure.axes if ax.images]


def scales(figure: Figure) -> set[tuple[float, float]]:
    return {(image.norm.vmin, image.norm.vmax) for ax in panels(figure) for image in ax.images}


def written(figure: Figure) -> Iterator[Text]:
    """All text that is drawn."""
    hidden = set()
    for ax in figure.axes:
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
    assert scales(figure) == {(0, 1)}


def test_all_steps_of_a_branch_stand_in_order_in_at_most_eight_columns():
    maps = receptive_fields({"vit": 12, "resnet": 16})
    figure = plot.fields(maps, branch="long", steps=None)
    assert steps(figure) == [
        *(f"{kind} {place + 1}" for place in range(12) for kind in ("attention", "MLP")),
        *(f"unit {place + 1}" for place in range(16)),
    ]
    columns = {ax.get_subplotspec().colspan.start for ax in panels(figure)}
    assert columns == set(range(8))


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
    left, right = figure.axes[:2]
    cells = left.images[0].get_array()
    assert cells.shape == (3, 9)
    np.testing.assert_allclose(cells[:, 0], [7.5, 15, 22.5])
    np.testing.assert_allclose(cells[:, 1], [1.5, 3, 4.5])
    assert left.get_title() == "a, mean of attention and MLP"
    assert left.get_xticklabels()[0].get_text() == "0 (cls)"
    lines = {line.get_label(): line.get_ydata().tolist() for line in right.lines}
    assert lines == {
        "a: attention, class token": [5, 10, 15],
        "a: attention, spatial tokens": [1, 2, 3],
        "a: MLP, class token": [10, 20, 30],
        "a: MLP, spatial tokens": [2, 4, 6],
        "cnn: residual units": [2, 3, 4, 5],
    }
    assert len(plot.norm_ratios(skips({"cnn": (4, 0)})).axes) == 1


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


def test_a_massive_token_does_not_take_the_colours():
    table = skips({"a": (3, 9)})
    table.loc[(table["token"] == "4") & (table["block"] == "blocks.1"), "norm_ratio"] = 1e6
    figure = plot.token_norm_ratios(table)
    ((least, most),) = scales(figure)
    assert (least, most) == (1, 30 * table.loc[table["token"].str.isdigit(), "norm_ratio"].median())
    (bar,) = [ax for ax in figure.axes if not ax.images]
    assert bar.get_ylabel() == "norm of skip / norm of long branch"


def test_figure_e2_has_the_cosines():
    (ax,) = plot.cosines(skips({"a": (3, 4), "cnn": (2, 0)})).axes
    lines = {line.get_label(): line.get_ydata().tolist() for line in ax.lines}
    assert lines["cnn: residual units"] == pytest.approx([1 / 3, 1 / 4])
    assert len(lines) == 5
    assert ax.get_ylabel() == "cosine of output and skip"


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


def test_localization_has_a_scale_per_row():
    figure = plot.localization(places([("a", "blocks.1", 7), ("a", "blocks.0", 7), ("b", "layer4.2", 4)]))
    rows = list(zip(*[iter(panels(figure))] * 4, strict=True))
    assert [row[0].get_ylabel() for row in rows] == ["a\nblocks.1", "a\nblocks.0", "b\nlayer4.2"]
    assert [ax.get_title() for ax in rows[0]] == [
        f"token {place}" for place in ((0, 0), (2, 1), (4, 2), (4, 4))
    ]
    for row, side in zip(rows, (7, 7, 4), strict=True):
        assert {ax.images[0].get_clim() for ax in row} == {(0, 0.9 / side)}


def test_tokens_without_a_similarity_are_drawn_as_undefined():
    figure = plot.localization(places([("a", "blocks.1", 4)]).assign(cka=np.nan))
    assert all(ax.images[0].get_array().mask.all() for ax in panels(figure))


def marked(ax: Axes) -> list[tuple[Line2D, Line2D, Line2D]]:
    """Interval, dots of training runs and mark of the value of every row, from top to bottom."""
    values = [line for line in ax.lines if line.get_marker() not in ("None", ".")]
    bars = [line for line in ax.lines if line.get_linewidth() == 2.2]
    dots = [line for line in ax.lines if line.get_marker() == "."]
    return list(zip(bars, dots, values, strict=True))


def words(ax: Axes) -> list[Text]:
    """The verdicts as they are written, from top to bottom."""
    return [text for text in ax.texts if text.get_text() in (*LOOKS, "weather")]


def test_verdicts_have_a_row_for_each_measured_finding_on_its_own_scale():
    ax = plot.verdicts(findings()).axes[0]
    bars, _, values = zip(*marked(ax), strict=True)
    assert [mark.get_xdata()[0] for mark in values] == pytest.approx([0.75, 2 / 3, 1 / 3, 0.5, 1, 0.5, 1])
    np.testing.assert_allclose(
        [bar.get_xdata() for bar in bars],
        [[0.5, 1], [1 / 3, 1], [-1 / 3, 1], [0.25, 0.75], [1, 1], [0, 1], [np.nan, np.nan]],
        atol=1e-12,
    )
    heights = [mark.get_ydata()[0] for mark in values]
    assert all(above < below for above, below in pairwise(heights))
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first row is at the top
    assert [text.get_text() for text in words(ax)] == [
        *("reproduced", "not reproduced", "inconclusive", "reproduced, smaller than claimed"),
        *("architectural", "fragile", "inconclusive"),
    ]
    assert {"-0.7 [-0.9, -0.5]", "0.5"} <= {text.get_text() for text in ax.texts}


def test_findings_without_a_number_or_a_threshold_are_left_out():
    table = findings()
    told = " ".join(text.get_text() for text in plot.verdicts(table).axes[0].texts)
    assert [name for name in table["id"] if f"{name}  " not in told] == ["F3e", "F12a"]
    assert "nan" not in told


def test_training_runs_are_dots_on_the_scale_of_their_row():
    drawn_runs = [dots for _, dots, _ in marked(plot.verdicts(findings()).axes[0])]
    runs = [dots.get_xdata() for dots in drawn_runs]
    assert [len(own) for own in runs] == [0, 0, 0, 3, 0, 2, 0]
    np.testing.assert_allclose(runs[3], [0.5, 0.1, -1])  # the farthest run is the edge
    np.testing.assert_allclose(runs[5], [0.5, -0.5])


def test_a_table_that_knows_of_no_training_runs_is_drawn_without_dots():
    table = findings().drop(columns="runs")
    assert [len(dots.get_xdata()) for _, dots, _ in marked(plot.verdicts(table).axes[0])] == [0] * 7


@pytest.mark.parametrize(("word", "look"), [*LOOKS.items(), ("weather", LOOKS["inconclusive"])])
def test_a_verdict_has_its_look_and_one_that_is_not_known_a_neutral_one(word, look):
    colour, marker, filled = look
    table = findings().assign(verdict=word)
    ax = plot.verdicts(table[table["id"] == "F9b"]).axes[0]
    ((bar, dots, value),) = marked(ax)
    assert value.get_marker() == marker
    assert value.get_markerfacecolor() == (colour if filled else "white")
    (written_word,) = words(ax)
    assert {own.get_color() for own in (bar, dots, value, written_word)} == {colour}


def test_verdicts_are_told_apart_without_colour():
    assert set(LOOKS) == set(rules.WORDS) - {rules.UNKNOWN}
    assert len({(marker, filled) for _, marker, filled in LOOKS.values()}) == len(LOOKS)


def test_verdicts_are_grouped_by_difference_or_else_by_verdict():
    def titles(table: pd.DataFrame) -> list[str]:
        texts = plot.verdicts(table).axes[0].texts
        return [text.get_text() for text in texts if text.get_fontweight() == "bold"]

    table = findings()
    assert [title[:2] for title in titles(table)] == ["1.", "2.", "3.", "4.", "Ot"]
    table.loc[0, "verdict"] = "weather"
    assert titles(table.drop(columns="difference")) == [
        *("Reproduced, smaller than claimed", "Architectural", "Fragile", "Not reproduced", "Inconclusive"),
        "Weather",
    ]
    assert titles(table[:0]) == []
