"""Tokens of all layers in portions: all of them, in order, as many at a time as there is room for."""

import random

import pytest
import torch
from doubles import Given, Labelled, Layers

from vit_analysis import models
from vit_analysis.layers import Tap
from vit_analysis.reading import portions
from vit_analysis.reading.capture import Layer
from vit_analysis.reading.portions import dealt, gathered, held
from vit_analysis.reading.stream import Reading

IMAGES = 5
BYTES = 4 * IMAGES  # of one feature of all images


def place(model: str, tap: str) -> tuple[str, Layer]:
    return model, Layer(Tap(tap))


def sizes_of(seed: int) -> dict[tuple[str, Layer], tuple[int, int]]:
    chance = random.Random(seed)
    return {
        place(f"m{number % 2}", f"layer {number}"): (chance.randint(0, 6), chance.randint(1, 9))
        for number in range(5)
    }


@pytest.mark.parametrize("seed", range(20))
def test_each_token_is_dealt_once_and_a_portion_ends_where_the_next_does_not_fit(seed, monkeypatch):
    room = random.Random(seed).choice([1, 4, 9, 10, 23, 40, 1000]) * BYTES
    monkeypatch.setattr(portions, "ROOM", room)
    sizes = sizes_of(seed)
    found = dealt(sizes, IMAGES)
    # Token by token, in order: another portion begins where there is no room for one more.
    expected: list[list[tuple[str, Layer, int]]] = [[]]
    taken = 0
    for (model, layer), (tokens, features) in sizes.items():
        for token in range(tokens):
            if taken + BYTES * features > room and expected[-1]:
                expected.append([])
                taken = 0
            expected[-1].append((model, layer, token))
            taken += BYTES * features
    told = [
        [(*own, token) for own, part in portion.items() for token in range(part.start, part.stop)]
        for portion in found
    ]
    assert told == expected
    of_each = [sum(BYTES * sizes[model, layer][1] for model, layer, _ in own) for own in expected]
    assert held(found, sizes, IMAGES) == max(of_each)
    assert all(size <= room or len(own) == 1 for size, own in zip(of_each, expected, strict=True))


def test_what_is_gathered_is_what_the_layers_pass_on_part_by_part(monkeypatch):
    pixels = torch.randn(7, 3, 4)
    modules = {name: Layers(one=lambda x: x, two=lambda x: 2 * x, no=lambda x: x) for name in ("a", "b", "c")}
    asked: list[str] = []

    def reduce(own):
        asked.append(str(own))
        return None if own.layer.tap.path == "no" else own.values

    taps = {name: [Tap(tap) for tap in ("one", "two", "no")] for name in modules}
    reading = Reading(
        models.named(modules), Labelled(batch=3, pixels=pixels, labels=torch.zeros(7)), taps, reduce
    )
    wanted = {place("a", "one"): (3, 4), place("a", "no"): (3, 4), place("b", "two"): (3, 4)}
    called, gather = [], portions.gather
    monkeypatch.setattr(portions, "gather", lambda own, name: called.append((name, own)) or gather(own, name))
    for tokens, parts in ((100, 1), (5, 2), (2, 5)):
        called.clear()
        monkeypatch.setattr(portions, "ROOM", tokens * 4 * 7 * 4)
        dealt_now = dealt(wanted, 7)
        assert len(dealt_now) == parts
        found: dict[tuple[str, Layer], list[torch.Tensor]] = {}
        for own, values in gathered(reading, dealt_now, "learning"):
            found.setdefault(own, []).append(values)
        assert list(found) == [place("a", "one"), place("b", "two")]
        assert torch.equal(torch.cat(found[place("a", "one")], 1), pixels)
        assert torch.equal(torch.cat(found[place("b", "two")], 1), 2 * pixels)
        numbers = [""] if parts == 1 else [f", part {number} of {parts}" for number in range(1, parts + 1)]
        assert [name for name, _ in called] == [f"learning{number}" for number in numbers]
        # What is not in a portion is neither run nor read.
        for portion, (_, own) in zip(dealt_now, called, strict=True):
            assert list(own.models) == list(own.taps) == list(dict.fromkeys(model for model, _ in portion))
            assert {(model, tap) for model, taps_of in own.taps.items() for tap in taps_of} == {
                (model, layer.tap) for model, layer in portion
            }
    assert not any("of c" in one or "'two' of a" in one for one in asked)


def test_a_gathered_layer_is_given_up_when_it_is_used(monkeypatch):
    """Else all of a portion stays until its end."""
    kept: list[dict[tuple[str, Layer], torch.Tensor]] = []
    monkeypatch.setattr(
        portions,
        "gather",
        lambda *_: (
            kept.append({place("a", "one"): torch.ones(1), place("a", "two"): torch.ones(1)}) or kept[-1]
        ),
    )
    reading = Reading(
        models.named({"a": Layers(one=lambda x: x)}),
        Given(batch=1, pixels=torch.ones(1, 1)),
        {"a": []},
        lambda own: own,
    )
    left = [len(kept[-1]) for _ in gathered(reading, [{place("a", "one"): slice(0, 1)}], "")]
    assert left == [1, 0]


def test_what_probes_usually_learn_from_is_one_portion():
    """Class token, mean and mean of patches of twelve blocks, for ten examples of a thousand classes in ten draws, are not."""
    usual = {place("m", f"blocks.{number}"): (3, 768) for number in range(12)}
    assert len(dealt(usual, 10 * 100)) == 1
    assert 2 <= len(dealt(usual, 10 * 10 * 1000)) <= 36
