"""One look per model in all pictures of a study, told apart with every kind of colour blindness; names as a paper has them."""

import threading
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from vit_analysis import plot
from vit_analysis.plot.style import MARKERS, PALETTE, display_name, look, page_width, points

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
BLINDNESS = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
    "none": np.eye(3),
}
# Sharma, Wu and Dalal (2005), table 1: two colours in L*a*b* and their CIEDE2000 distance.
PUBLISHED = [
    ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
    ((50.0, 3.1571, -77.2803), (50.0, 0.0, -82.7485), 2.8615),
    ((50.0, -1.3802, -84.2814), (50.0, 0.0, -82.7485), 1.0),
    ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
    ((50.0, 2.49, -0.001), (50.0, -2.49, 0.0009), 7.1792),
    ((50.0, 2.49, -0.001), (50.0, -2.49, 0.0011), 7.2195),
    ((50.0, 2.5, 0.0), (50.0, 0.0, -2.5), 4.3065),
    ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
    ((50.0, 2.5, 0.0), (61.0, -5.0, 29.0), 22.8977),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((22.7233, 20.0904, -46.694), (23.0331, 14.973, -42.5619), 2.0373),
    ((90.8027, -2.0831, 1.441), (91.1528, -1.6435, 0.0447), 1.4441),
    ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
]


def lab(colour: str, blindness: list) -> np.ndarray:
    """A colour as it is seen, in L*a*b* of D65."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(blindness) @ linear, 0, 1)
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.072175],
        [0.0193339, 0.119192, 0.9503041],
    ]
    x, y, z = np.array(to_xyz) @ seen / [0.95047, 1.0, 1.08883]
    x, y, z = (v ** (1 / 3) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in (x, y, z))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def ciede2000(one: np.ndarray, other: np.ndarray) -> float:
    """The distance of two colours, with hues as complex numbers."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    chroma = (abs(complex(a1, b1)) + abs(complex(a2, b2))) / 2
    stretch = 1 + 0.5 * (1 - np.sqrt(chroma**7 / (chroma**7 + 25**7)))
    first, second = complex(stretch * a1, b1), complex(stretch * a2, b2)
    c1, c2 = abs(first), abs(second)
    mean_l, mean_c = (l1 + l2) / 2, (c1 + c2) / 2
    h1, h2 = (np.degrees(np.angle(value)) % 360 for value in (first, second))
    turn = (h2 - h1 + 180) % 360 - 180 if c1 * c2 else 0.0
    hue = (h1 + turn / 2) % 360 if c1 * c2 else h1 + h2
    if c1 * c2 and abs(h1 - h2) > 180:  # the mean of the hues, as the authors' programme has it
        hue = ((h1 + h2 + 360) / 2) if h1 + h2 < 360 else ((h1 + h2 - 360) / 2)
    t = (
        1
        - 0.17 * np.cos(np.radians(hue - 30))
        + 0.24 * np.cos(np.radians(2 * hue))
        + 0.32 * np.cos(np.radians(3 * hue + 6))
        - 0.20 * np.cos(np.radians(4 * hue - 63))
    )
    s_l = 1 + 0.015 * (mean_l - 50) ** 2 / np.sqrt(20 + (mean_l - 50) ** 2)
    lightness = (l2 - l1) / s_l
    saturation = (c2 - c1) / (1 + 0.045 * mean_c)
    tone = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn) / 2) / (1 + 0.015 * mean_c * t)
    rotation = (
        -2
        * np.sqrt(mean_c**7 / (mean_c**7 + 25**7))
        * np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2))))
    )
    return float(np.sqrt(lightness**2 + saturation**2 + tone**2 + rotation * saturation * tone))


@pytest.mark.parametrize(("one", "other", "distance"), PUBLISHED)
def test_the_distance_of_colours_is_the_published_one(one, other, distance):
    assert ciede2000(np.array(one), np.array(other)) == pytest.approx(distance, abs=1e-4)
    assert ciede2000(np.array(other), np.array(one)) == pytest.approx(distance, abs=1e-4)


@pytest.mark.parametrize("kind", BLINDNESS)
@pytest.mark.parametrize(("first", "least"), [(6, 14), (len(PALETTE), 13)])
def test_any_two_models_are_told_apart_with_every_kind_of_colour_blindness(kind, first, least):
    seen = [lab(colour, BLINDNESS[kind]) for colour in PALETTE[:first]]
    assert min(ciede2000(one, other) for one, other in combinations(seen, 2)) >= least


@pytest.mark.parametrize("kind", BLINDNESS)
def test_every_colour_is_seen_on_white(kind):
    white = lab("white", BLINDNESS[kind])
    assert min(ciede2000(lab(colour, BLINDNESS[kind]), white) for colour in PALETTE) >= 20


def test_a_palette_of_old_would_fail():
    """The test can: red and green, as they stood in pictures before."""
    seen = [lab(colour, BLINDNESS["deuteranopia"]) for colour in ("#b3261e", "#2e7d32")]
    assert ciede2000(*seen) < 14


def test_a_model_has_its_look_wherever_it_is_drawn():
    cast = ["lab/vit", "lab/vit:1", "lab/resnet", "lab/mixer"]
    few = pd.DataFrame({"model": ["lab/mixer"]})
    with plot.style(cast=cast):
        assert look("lab/mixer", few) == look("lab/mixer")
        assert look("lab/vit").colour == PALETTE[0]
        assert look("lab/resnet").colour == PALETTE[1]  # a training run takes no colour
    assert look("lab/mixer", few).colour == PALETTE[0]  # alone
    few.attrs["models"] = {"lab/vit": "", "lab/mixer": ""}
    assert look("lab/mixer", few).colour == PALETTE[1]  # the order of what was measured


def test_twins_and_runs_are_seen_together_with_their_model():
    with plot.style(cast=["v", "r"]):
        models = [look(name) for name in ("r", "r@random", "r@random:3", "r:1")]
    assert {(own.colour, own.marker) for own in models} == {(PALETTE[1], MARKERS[1])}
    assert [own.dashes for own in models] == ["-", "--", "--", ":"]
    assert [own.filled for own in models] == [True, False, False, True]
    assert models[1].line()["markerfacecolor"] == "white"


def test_the_twin_of_a_checkpoint_is_its_model():
    with plot.style({"vit@runs/1.pt": "ViT"}, ["r", "vit@runs/1.pt"]):
        assert look("vit@random").colour == look("vit@runs/1.pt").colour == PALETTE[1]
        assert display_name("vit@random") == "ViT, untrained"


def test_beyond_the_palette_looks_still_differ():
    cast = [f"model_{place}" for place in range(3 * len(PALETTE))]
    with plot.style(cast=cast):
        looks = [look(name) for name in cast]
    assert len(set(looks)) == len(cast)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("lab/vit", "ViT"),
        ("lab/vit@random", "ViT, untrained"),
        ("lab/vit@random:2", "ViT, untrained, seed 2"),
        ("lab/vit:1", "ViT, run 2"),
        ("lab/vit:1@random", "ViT, run 2, untrained"),
        ("lab/vit_gap", "lab/vit_gap"),
        ("lab/vit:2", "the third"),
        ("hf-hub:org/name", "hf-hub:org/name"),
    ],
)
def test_names_are_as_a_paper_would_have_them(model, name):
    with plot.style({"lab/vit": "ViT", "lab/vit:2": "the third"}):
        assert display_name(model) == name
    assert display_name(model) == model


def test_a_style_ends_and_is_its_threads_own():
    elsewhere = []
    with plot.style({"a": "A"}, width=3.25):
        thread = threading.Thread(target=lambda: elsewhere.append((display_name("a"), page_width(7))))
        thread.start()
        thread.join()
        with plot.style({"a": "B"}):
            assert (display_name("a"), page_width(7)) == ("B", 7)
        assert (display_name("a"), page_width(7)) == ("A", 3.25)
    assert (display_name("a"), page_width(7)) == ("a", 7)
    assert elsewhere == [("a", 7)]


def test_letters_of_a_column_are_smaller_and_never_too_small():
    with plot.style(width=3.25):
        assert [points(size) for size in (9, 8, 7)] == [7.5, 6.5, 6]
    with plot.style(width=6.75):
        assert [points(size) for size in (9, 8, 7)] == [9, 8, 7]


@pytest.mark.parametrize("width", [0, -1.0, float("inf"), float("nan")])
def test_a_width_that_is_none_is_refused(width):
    with pytest.raises(ValueError, match="a picture cannot be"), plot.style(width=width):
        pass
