"""What is said before a run, number by number."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
from doubles import Given, Layers
from jaxtyping import Float64
from torch import Tensor, nn

from vit_analysis import models
from vit_analysis.images import Preprocessing
from vit_analysis.layers import Tap
from vit_analysis.models import Model
from vit_analysis.reading import briefing, replay
from vit_analysis.reading.briefing import estimate, lines, listed
from vit_analysis.reading.intervene import Repeated
from vit_analysis.reading.state import GROUPS, Grouped
from vit_analysis.reading.stream import Reading


def model(module: nn.Module, name: str = "m", size: tuple[int, int, int] = (3, 8, 12)) -> Model:
    return models.own(module, name, preprocessing=Preprocessing(input_size=size))


def reading(*of: Model, images: int = 20, batch: int = 8, taps: int = 2, **settings) -> Reading:
    named = {own.name: own for own in of}
    given = Given(batch=batch, pixels=torch.zeros(images, 3))
    return Reading(
        named, given, {name: [Tap(f"t{n}") for n in range(taps)] for name in named}, len, settings=settings
    )


@dataclass(frozen=True)
class Small(Grouped):
    """Sums of which only the last two are of layers."""

    whole: Float64[Tensor, "group"]
    of_layers: Float64[Tensor, "group layer 4 run"]
    other: Float64[Tensor, "view layer"]
    places: list[list[str]]


@dataclass(frozen=True)
class Pairs(Grouped):
    """Sums of pairs of layers."""

    pairs: Float64[Tensor, "group view layer layer"]
    places: list[list[str]]


CONV, PATCHES = nn.Conv2d(3, 5, 3, stride=2), nn.Conv2d(3, 7, 8, stride=8)
ACTIVATIONS = {
    # Four copies of the first convolution's map, twice as wide in the middle of a block, eight times for tokens.
    "convolutions": (CONV, 4 * 2 * 4 * 8 * (8 * 12 // 4) * 5),
    "patches": (PATCHES, 4 * 8 * 4 * 8 * (8 * 12 // 64) * 7),
    "stride of 4": (nn.Conv2d(3, 7, 4, stride=4), 4 * 2 * 4 * 8 * (8 * 12 // 16) * 7),
    "none": (nn.Linear(3, 4), 4 * 8 * 4 * 8 * 3 * 8 * 12),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_memory_of_a_pass_is_that_of_its_images_sums_products_and_of_the_widest_model(name):
    module, activations = ACTIVATIONS[name]
    own = reading(model(nn.Sequential(nn.ReLU(), module)))
    pixels = 2 * 4 * 8 * 3 * 8 * 12
    assert estimate(own, []) == pixels + activations
    few = reading(model(module), images=4)  # fewer than a batch
    assert estimate(few, []) == (pixels + activations) // 2
    sums = 2 * 8 * (GROUPS * 2 * 4 + 1 * 2)
    assert estimate(own, [Small]) == pixels + activations + sums
    views = replace(own, settings={"views": ["a", "b", "c"]})
    assert estimate(views, [Small]) == pixels + activations + 2 * 8 * (GROUPS * 2 * 4 + 3 * 2)
    grams = 2 * 8**2 * 8
    of_pairs = 2 * 8 * GROUPS * 3 * 2 * 2
    assert estimate(views, [Pairs]) == pixels + activations + grams + of_pairs
    assert estimate(views, [Small, Pairs]) == estimate(views, [Small]) + grams + of_pairs
    both = reading(model(module), model(nn.Linear(3, 4), "n"))  # the images of both are the same ones
    assert estimate(both, []) == pixels + max(activations, ACTIVATIONS["none"][1])
    larger = reading(model(module), model(PATCHES, "n", (3, 4, 4)))
    assert estimate(larger, []) == pixels + 2 * 4 * 8 * 3 * 4 * 4 + activations


@pytest.mark.parametrize("most", [2**31, 1000])
def test_a_model_that_runs_under_changes_keeps_records_of_each_to_a_bound(most, monkeypatch):
    monkeypatch.setattr(replay, "MOST", most)
    plain = reading(model(CONV))
    changed = reading(model(Repeated(CONV, [nullcontext] * 3)))
    records = 2 * 3 * 4 * 8 * (8 * 12 // 4) * 5
    assert estimate(changed, []) - estimate(plain, []) == min(most, records)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        *[(0, "0 kB"), (1_600, "2 kB"), (999_400, "999 kB"), (10**6, "1 MB"), (1_250_000, "1.2 MB")],
        *[(99 * 10**6, "99 MB"), (123_400_000, "123 MB"), (10**9 - 1, "1000 MB"), (10**9, "1 GB")],
        *[(2_340_000_000, "2.3 GB"), (120 * 10**9, "120 GB")],
    ],
)
def test_bytes_are_said_to_two_digits_in_their_unit(count, words):
    assert briefing._size(count) == words


@pytest.mark.parametrize(
    ("images", "batch", "told"),
    [
        (20, 8, "20 of given, in 3 batches of 8, the last of 4"),
        (24, 8, "24 of given, in 3 batches of 8"),
        (8, 8, "8 of given, in 1 batch of 8"),
        (5, 8, "5 of given, in 1 batch of 5"),
        (9, 8, "9 of given, in 2 batches of 8, the last of 1"),
    ],
)
def test_batches_are_counted_and_a_smaller_last_one_told(images, batch, told):
    own = reading(model(CONV), images=images, batch=batch)
    own = replace(own, images=replace(own.images, source="given"))
    assert lines([("a pass", own, [])], "")[1] == f"images:  {told}"


@pytest.mark.parametrize(("of", "threads", "precision"), [(1, 1, None), (1, 4, "float32"), (3, 2, "bf16")])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_where_it_runs_is_said(of, threads, precision, device, monkeypatch):
    monkeypatch.setattr(briefing.processes, "rank_and_size", lambda: (of - 1, of))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(Model, "device", torch.device(device))
    told = "cpu" if device == "cpu" else "cuda (a card)"
    told += ", bf16" if precision == "bf16" else ""
    told += f", {threads} thread{'s' if threads > 1 else ''}" if device == "cpu" else ""
    told += f", {of} processes" if of > 1 else ""
    assert briefing._place(replace(model(CONV), precision=precision)) == told


@pytest.mark.parametrize("count", [1, 12, 13, 15])
def test_twelve_models_are_told_with_the_most_layers_read_of_them_and_others_counted(count):
    many = [model(nn.Linear(3, 4), f"m{number}") for number in range(count)]
    passes = [
        ("one", reading(*many, taps=2), []),
        ("two", reading(many[0], taps=5), []),
        ("three", reading(many[0], taps=1), []),
    ]
    found = lines(passes, "out/")
    whole = min(count, 12)
    for number, line in enumerate(found[:whole]):
        layers = 5 if number == 0 else 2
        start = "models:  " if number == 0 else " " * 9
        assert (
            line
            == f"{start}m{number} (Linear, 1.6e-05 M parameters, {many[number].digest[:8]}), {layers} layers"
        )
    rest = found[whole:]
    if count > 12:
        assert rest.pop(0) == f"         and {count - 12} more"
    assert rest[0].startswith("images:  20 of")  # of all passes the same, so once
    assert rest[1].startswith("on:      cpu, ")
    assert rest[2:5] == ["passes:  one", "         two", "         three"]
    assert rest[6:] == ["results: out/"]
    assert lines(passes, "")[-1].startswith("memory:  about ")


def test_weights_of_a_module_that_several_share_are_counted_once_and_the_largest_pass_counts():
    wide = nn.Linear(1000, 1000)
    shared, half = [model(wide, name) for name in "ab"], model(nn.Linear(1000, 1000, bias=False).half(), "c")
    passes = [("one", reading(*shared, batch=1), []), ("two", reading(half, batch=8), [])]
    weights = 4 * 1_001_000 + 2 * 1_000_000
    needed = max(estimate(own, []) for _, own, _ in passes)
    assert needed == estimate(passes[1][1], []) > estimate(passes[0][1], [])
    said = (
        f"memory:  about {briefing._size(needed + weights)}: 6 MB of weights, the rest sums and activations"
    )
    assert said in lines(passes, "")


def test_lines_below_each_other_have_one_name():
    assert listed("on", ["a", "b", "c"]) == ["on:      a", "         b", "         c"]
    assert listed("passes", []) == []


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.WARNING])
def test_it_is_said_at_its_level_and_of_no_pass_nothing(level, caplog):
    caplog.set_level(level, "vit_analysis")
    briefing.say([], "out/")
    assert not caplog.records
    briefing.say([("a pass", reading(model(Layers(t0=len, t1=len))), [])], "out/")
    assert [record.levelno for record in caplog.records] == [
        own for own in (logging.INFO, logging.DEBUG) if own >= level
    ]
    assert ("reads t0, t1" in caplog.text) == (level == logging.DEBUG)
