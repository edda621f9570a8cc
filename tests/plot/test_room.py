"""Every picture in every layout, of models with long names, in a column and on a page: nothing is cut off or covered."""

from functools import cache
from itertools import combinations

import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from plot_tables import findings, of_frequencies, of_tokens
from test_plot_figures import (
    IMAGES,
    losses,
    places,
    probes,
    radii,
    reaches,
    read,
    receptive_fields,
    removals,
    similarities,
    skips,
    subsets,
    written,
)

from vit_analysis import plot
from vit_analysis.plot.fitting import folded, images, width

VIT = "vit_huge_patch14_clip_quickgelu_378.dfn5b_ft_in21k_ft_in1k@checkpoints/of_a_long_run/last.safetensors"
CNN = "resnetv2_152x2_bit_" + 2 * "withoutanyseparator"
PAIRS = [(VIT, VIT), (CNN, CNN), (VIT, CNN)]


def tables() -> dict[str, pd.DataFrame]:
    """A table of every kind, of models with long names."""
    cka = similarities(PAIRS, {VIT: 12, CNN: 16})
    cka.attrs.update(tokens="all", massive=[{"model": VIT, "layer": "blocks.1", "hsic": 0.9}], images=IMAGES)
    places_of = places([(VIT, "blocks.11", 8), (CNN, "layer4.2", 4)])
    each = probes({VIT: (6, 4), CNN: (6, 4)})
    made = {
        "cka": cka,
        "cka_controls": cka.assign(control="all"),
        "attention_distance": reaches({VIT: 0.2, f"{VIT}:1": 0.3}),
        "head_subsets": subsets([15.0, 25.0, 40.0]).replace({"v": VIT, "r": CNN}),
        "receptive_field": radii({VIT: 12, CNN: 16}),
        "receptive_field_maps": receptive_fields({VIT: 12, CNN: 16}),
        "skip": skips({VIT: (12, 17), CNN: (16, 0)}),
        "lesions": removals({VIT: 12, CNN: 16}),
        "lesions_trained": removals({VIT: 3}, "lesions_trained"),
        "localization": places_of,
        "probe": read({VIT: ("cls", 0.9), CNN: ("mean", 0.8)}),
        "soft_nearest_neighbor": losses([VIT, CNN]),
        "tokens": of_tokens([VIT, CNN]),
        "frequency": of_frequencies([VIT, CNN]),
        "findings": findings(),
    }
    made["probe/accuracy_maps"] = each
    for name, table in made.items():
        table.attrs = {**made[name].attrs, "analysis": name.split("/")[0], "images": IMAGES}
    return made


LAYOUTS = [(kind, name) for kind, layouts in plot.LAYOUTS.items() for name in layouts]


@cache
def drawn(kind: str, name: str, wide: float | None) -> Figure:
    held = tables()
    table = held.get(f"{kind}/{name}", held[kind])
    with plot.style(width=wide):
        figure = plot.LAYOUTS[kind][name](table)
    figure.draw_without_rendering()
    return figure


def test_there_is_a_table_of_every_kind():
    assert {name for name in tables() if "/" not in name} == set(plot.LAYOUTS) == set(plot.PICTURES)


@pytest.mark.parametrize("wide", [None, 3.25, 6.75])
@pytest.mark.parametrize(("kind", "name"), LAYOUTS)
def test_a_picture_is_as_wide_as_asked_and_nothing_is_cut_off_or_too_small(kind, name, wide):
    figure = drawn(kind, name, wide)
    assert wide is None or figure.get_figwidth() == wide
    for text in written(figure):
        box = text.get_window_extent()
        assert text.get_fontsize() >= 6, text
        assert min(box.x0, box.y0) >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert box.y1 <= figure.bbox.y1 + 1, text


@pytest.mark.parametrize("wide", [None, 3.25, 6.75])
@pytest.mark.parametrize(("kind", "name"), LAYOUTS)
def test_titles_labels_and_captions_do_not_cover_each_other(kind, name, wide):
    figure = drawn(kind, name, wide)
    own = [text for ax in figure.axes if ax.axison for text in (ax.title, ax.xaxis.label, ax.yaxis.label)]
    shown: list[Text] = [text for text in (*own, *figure.texts) if text.get_text().strip()]
    boxes = [text.get_window_extent() for text in shown]
    for (text, box), (other, beside) in combinations(zip(shown, boxes, strict=True), 2):
        across = min(box.x1, beside.x1) - max(box.x0, beside.x0)
        assert across <= 1 or min(box.y1, beside.y1) - max(box.y0, beside.y0) <= 1, (text, other)


@pytest.mark.parametrize(("kind", "name"), LAYOUTS)
def test_every_picture_says_how_many_images_of_what(kind, name):
    told = " ".join(text.get_text().replace("\n", " ") for text in drawn(kind, name, None).texts)
    assert "1,760 images of the lab" in told


@pytest.mark.parametrize("text", ["a" * 60, "resnet50.tv_in1k@resnet50", "", " ", "a b " * 20, "--"])
@pytest.mark.parametrize("inches", [0.3, 1.0, 2.0])
def test_folded_lines_are_as_wide_as_there_is_room_and_lose_nothing(text, inches):
    lines = folded(text, inches, 8).split("\n")
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(width(line, 8) <= inches or len(line) <= 1 for line in lines)


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"source": "lab", "count": 1760}, "1,760 images of the lab."),
        ({"source": "/home/somebody/imagenet/val", "count": 1000}, "1,000 images of val."),
        ({"source": "hfds/org/name", "count": 5}, "5 images of name."),
        ({"count": 5}, "5 images."),
        ({}, ""),
    ],
)
def test_images_are_named_without_the_users_folders(facts, told):
    table = pd.DataFrame()
    table.attrs["images"] = facts
    assert images(table) == told
