"""What is said of a run before it and during it."""

import contextlib
import logging
from dataclasses import replace

import pytest
import torch

from vit_analysis import cka, lesions, models, skip, tokens
from vit_analysis.images import Images
from vit_analysis.reading import briefing, measure, progress
from vit_analysis.reading.progress import EVERY, Lines
from vit_analysis.reading.state import Sums


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "vit_analysis")

    def lines() -> list[str]:
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    return lines


def test_without_a_terminal_a_pass_says_each_minute_how_far_it_is(clock, said):
    lines = Lines("pass 2 of 5: lesions of m", 1000, clock=clock)
    assert said() == ["pass 2 of 5: lesions of m: 1000 images"]
    for _ in range(5):  # every 15 seconds 50 images
        clock.now += 15
        lines.update(50)
    assert said() == ["pass 2 of 5: lesions of m: 200 of 1000 images, 3.33 images/s, 4 min 0 s left"]
    for _ in range(15):
        clock.now += 15
        lines.update(50)
    assert len(said()) == 3
    lines.end()
    assert said() == ["pass 2 of 5: lesions of m: done, 1000 images in 5 min 0 s, 3.33 images/s"]


def test_images_of_an_earlier_run_are_not_counted_as_speed(clock, said):
    lines = Lines("cka of m", 1000, 900, clock)
    assert said() == ["cka of m: 1000 images, 900 of them done before"]
    clock.now = 2 * EVERY
    lines.update(50)
    assert said() == ["cka of m: 950 of 1000 images, 2.4 s per image, 2 min 0 s left"]


def test_a_batch_that_takes_long_says_what_is_done_inside_of_it(clock, said, monkeypatch):
    monkeypatch.setattr(progress, "NOW", [Lines("receptive_field of m", 8, clock=clock)])
    said()
    for _ in progress.within("abcd", "layers of m"):
        clock.now += 40
    assert said() == [
        "receptive_field of m: 0 of 8 images; layers of m: 2 of 4",
        "receptive_field of m: 0 of 8 images; layers of m: 4 of 4",
    ]


def test_only_the_first_process_tells(said, monkeypatch):
    monkeypatch.setattr(progress.processes, "rank_and_size", lambda: (1, 2))
    with progress.told("cka of m", 10) as tell:
        tell(10)
        assert list(progress.within("ab", "layers")) == ["a", "b"]
    assert said() == []


def test_a_terminal_gets_a_bar_with_the_name_of_the_pass_unless_it_is_to_be_quiet(capsys, monkeypatch, said):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with progress.told("pass 2 of 5: lesions of m", 10) as tell:
        tell(10)
    assert "pass 2 of 5: lesions of m: 100%" in capsys.readouterr().err
    assert said() == []
    monkeypatch.setattr(logging.getLogger("vit_analysis"), "level", logging.WARNING)
    assert not progress.shows_bars()


# Before a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> list[models.Model]:
    return models.load_all(["lab/vit@random", "lab/resnet@random"], device="cpu")


def test_a_run_says_what_it_will_do_before_it_reads_an_image(pair, said):
    images = Images(limit=20, batch=8)
    both = [{"": lesions.plan(model, images)} for model in pair]
    measure.say([{"cka": cka.plan(pair, images), "skip": skip.plan(pair, images)}, *both], "out/")
    (block,) = said()
    lines = block.splitlines()
    assert lines[0].startswith(f"models:  lab/vit@random (ViT, 0.907 M parameters, {pair[0].digest[:8]}), ")
    assert lines[1].startswith(
        f"         lab/resnet@random (ResNet, 0.711 M parameters, {pair[1].digest[:8]}), "
    )
    assert lines[2] == "images:  20 of lab, in 3 batches of 8, the last of 4"
    assert lines[3].startswith("on:      cpu, ")
    assert lines[4:7] == [
        "passes:  pass 1 of 3: activations of lab/vit@random and lab/resnet@random for 2 tables",
        "         pass 2 of 3: lesions of lab/vit@random",
        "         pass 3 of 3: lesions of lab/resnet@random",
    ]
    assert lines[7].startswith("memory:  about ")
    assert lines[8] == "results: out/"


def test_layers_are_counted_as_tables_have_them(pair):
    plan = cka.plan(pair[:1], Images(limit=8, batch=8), layers="blocks")
    (line, *_) = briefing.lines([("", plan.reading, [plan.kind])], "")
    assert line.endswith(", 8 layers")


def test_a_single_pass_has_no_number_and_many_models_are_counted(pair):
    plan = cka.plan(pair, Images(limit=8))
    assert measure.titles([{"": plan}]) == ["cka of lab/vit@random and lab/resnet@random"]
    two = skip.plan(pair, Images(limit=8)), tokens.plan(pair, Images(limit=8))
    for count, who in ((1, "m0"), (2, "m0 and m1"), (3, "3 models"), (5, "5 models")):
        many = {f"m{number}": pair[0] for number in range(count)}
        plan, other = (replace(one, reading=replace(one.reading, models=many)) for one in two)
        assert measure.title({"": plan}) == f"skip of {who}"
        both = {"": plan, "more": other, "same": plan}
        assert measure.title(both) == f"activations of {who} for 3 tables"
        assert measure.titles([both, {"": plan}]) == [
            f"pass 1 of 2: activations of {who} for 3 tables",
            f"pass 2 of 2: skip of {who}",
        ]


@pytest.mark.parametrize("batch", [16, 64])
def test_the_estimate_of_sums_and_of_what_is_kept_of_a_batch_is_roughly_right(pair, batch):
    """Against what a pass really holds: both sums while they are added, and the Gram matrices of all layers."""
    plan = cka.plan(pair, Images(limit=2 * batch, batch=batch))
    held = {}

    def fold(one):
        sums = plan.fold(one)
        held["kept"] = sum(value.nbytes for _, _, kept in one.kept() for value in tensors(kept))
        held["sums"] = 2 * sum(value.nbytes for value in Sums.tensors(sums).values())
        return sums

    measure.total({"": measure.Measurement(plan.reading, fold, plan.kind, plan.finish)})
    activations = max(briefing._of_activations(model, batch) for model in pair)
    told = briefing.estimate(plan.reading, [plan.kind]) - activations
    assert 1 / 3 < told / (held["kept"] + held["sums"]) < 3


def tensors(kept: object) -> list[torch.Tensor]:
    """Every tensor that is kept of a layer, in tuples, mappings and dataclasses."""
    if isinstance(kept, torch.Tensor):
        return [kept]
    if isinstance(kept, dict):
        kept = list(kept.values())
    if isinstance(kept, tuple | list):
        return [value for part in kept for value in tensors(part)]
    return tensors(vars(kept)) if hasattr(kept, "__dict__") else []


# Times in words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *[(0.0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (61.0, "1 min 1 s"), (3599.0, "59 min 59 s")],
        *[(3599.6, "1 h 0 min"), (3600.0, "1 h 0 min"), (3661.0, "1 h 1 min"), (7260.0, "2 h 1 min")],
        *[(86_400.0, "24 h 0 min"), (10_799.0, "2 h 59 min")],
    ],
)
def test_a_time_has_two_units_at_most(seconds, words):
    assert progress._span(seconds) == words


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (0.0, "0 images/s"),
        (1.0, "1 images/s"),
        (123.456, "123 images/s"),
        (0.999, "1 s per image"),
        (0.25, "4 s per image"),
    ],
)
def test_a_rate_below_one_is_told_by_image(rate, words):
    assert progress._rate(rate) == words


def test_a_line_comes_after_a_minute_to_the_second_and_none_at_the_end(clock, said):
    lines = Lines("cka of m", 100, clock=clock)
    said()
    for now, images, expected in (
        (59.9, 10, 0),
        (60.0, 10, 1),
        (119.9, 10, 0),
        (120.0, 10, 1),
        (300.0, 60, 0),
    ):
        clock.now = now
        lines.update(images)
        assert len(said()) == expected
    lines.still("more")
    assert len(said()) == 1  # which does not wait for images
    clock.now = 359.9
    lines.still("more")
    assert said() == []
    clock.now = 360.0
    lines.still("layer 3 of 4")
    assert said() == ["cka of m: 100 of 100 images; layer 3 of 4"]
    lines.still("at once again")
    assert said() == []


def test_the_end_tells_what_this_run_did_and_in_no_time_it_is_done_at_once(clock, said):
    clock.now = 1000.0
    lines = Lines("cka of m", 1000, 900, clock)
    lines.end()
    assert said()[-1] == "cka of m: done, 900 images in 0 s, at once"
    clock.now += 0.5
    lines.update(50)
    lines.end()
    assert said()[-1] == "cka of m: done, 950 images in 0 s, 100 images/s"
    clock.now += 74.5
    lines.update(25)
    assert said() == ["cka of m: 975 of 1000 images, 1 images/s, 25 s left"]
    lines.update(25)
    lines.end()
    assert said()[-1] == "cka of m: done, 1000 images in 1 min 15 s, 1.33 images/s"


@pytest.mark.parametrize("fails", [True, False])
def test_passes_within_passes_are_told_and_forgotten_with_an_end_that_was_reached(fails, said, monkeypatch):
    monkeypatch.setattr(progress, "shows_bars", lambda: False)
    with contextlib.suppress(ZeroDivisionError), progress.told("outer", 10, 4) as outer:
        with progress.told("inner", 5) as inner:
            inner(3)
            assert [own.done for own in progress.NOW] == [4, 3]
            assert [own.title for own in progress.NOW] == ["outer", "inner"]
        assert [own.title for own in progress.NOW] == ["outer"]
        outer(6)
        assert progress.NOW[0].done == 10
        if fails:
            raise ZeroDivisionError
    assert progress.NOW == []
    told = said()
    assert told[0] == "outer: 10 images, 4 of them done before"
    assert sum(line.startswith("outer: done") for line in told) == (not fails)
    assert list(progress.within(iter("abc"), "letters")) == ["a", "b", "c"]  # outside of any pass too


@pytest.mark.parametrize(("terminal", "level", "expected"), [
    *[(True, logging.INFO, True), (True, logging.DEBUG, True), (True, logging.WARNING, False)],
    *[(False, logging.INFO, False), (False, logging.WARNING, False)],
])  # fmt: skip
def test_bars_are_for_a_terminal_that_is_not_to_be_quiet(terminal, level, expected, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(logging.getLogger("vit_analysis"), "level", level)
    assert progress.shows_bars() is expected


def test_a_bar_begins_where_an_earlier_run_ended_and_so_do_those_inside(capsys, monkeypatch):
    monkeypatch.setattr(progress, "shows_bars", lambda: True)
    with progress.told("a pass", 10, 4) as tell:
        tell(3)
    assert "a pass:  70%" in capsys.readouterr().err
    assert list(progress.within("ab", "layers")) == ["a", "b"]
    assert "layers: " in capsys.readouterr().err
