import numpy as np
import pytest
from matplotlib.colors import to_rgb
from plot_tables import of_frequencies, of_tokens

from vit_analysis import plot
from vit_analysis.plot.depths import STATISTICS

MODELS = ["vit", "cnn", "vit@random"]


def lines(ax) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_ydata() for line in ax.lines}


def test_every_statistic_of_tokens_has_a_panel_with_a_line_per_model():
    figure = plot.tokens(of_tokens(MODELS))
    panels = [ax for ax in figure.axes if ax.lines]
    assert len(panels) == len(STATISTICS)
    titles = [ax.get_title().replace("\n", " ") for ax in panels]
    assert titles == [words.replace("\n", " ") for words in STATISTICS.values()]
    for ax, name in zip(panels, STATISTICS, strict=True):
        shown = {label for label in lines(ax) if not label.startswith("_")}
        assert shown == ({"vit"} if name == "class_cosine" else set(MODELS))  # the others have no class token


def test_shares_are_in_percent_and_the_largest_norm_is_dotted_beside_the_median():
    table = of_tokens(MODELS[:1])
    norm, massive = (plot.over_depth(table, name) for name in ("norm", "massive_tokens"))
    np.testing.assert_allclose(lines(massive)["vit"], [0, 0, 2, 2])
    assert [line.get_linestyle() for line in norm.lines] == ["-", ":"]
    np.testing.assert_allclose(norm.lines[1].get_ydata(), [20, 20, 500, 500])
    assert norm.get_yscale() == "log"


def test_layers_by_frequency_go_from_light_to_dark_and_panels_share_their_scale():
    figure = plot.frequency(of_frequencies(MODELS))
    panels = [ax for ax in figure.axes if ax.get_title() in MODELS]
    assert [ax.get_title() for ax in panels] == MODELS
    assert len({ax.get_ylim() for ax in panels}) == 1
    light = [sum(to_rgb(line.get_color())) for line in panels[0].lines]
    assert light == sorted(light, reverse=True)


def test_the_finest_pattern_falls_where_what_is_fine_is_damped():
    shown = lines(plot.finest(of_frequencies(MODELS)))
    assert list(shown) == MODELS
    assert (np.diff(shown["vit"]) < 0).all()
    assert (np.diff(shown["cnn"]) > 0).all()


def test_a_table_of_another_kind_is_refused_by_its_name():
    with pytest.raises(ValueError, match=r"draw it with plot.tokens or plot.over_depth"):
        plot.frequency(of_tokens(MODELS))
