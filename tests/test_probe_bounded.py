"""Probes learn from as much at a time as there is room for, and learn the same."""

import logging

import pandas as pd
import pytest
import torch
from doubles import Labelled
from torch import Tensor, nn

from vit_analysis import models, probe
from vit_analysis.anatomy.roles import Anatomy
from vit_analysis.reading import portions, stream
from vit_analysis.spelling import Refusal
from vit_analysis.tensors.tokens import Grid

KINDS, TOKENS = 3, 9


class Network(nn.Module):
    """Two layers of nine tokens, the second wider, and how often the first one ran."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.runs = nn.Linear(4, 6), nn.Linear(6, 10), 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.two(self.one(x.unflatten(-1, (3, 2)).flatten(1).unflatten(1, (TOKENS, 4)))).mean(1)


def labelled(images: int, seed: int) -> Labelled:
    noise = torch.Generator().manual_seed(seed)
    labels = torch.randint(KINDS, (images,), generator=noise)
    pixels = torch.randn(images, 1, 6, 6, generator=noise) + 0.7 * labels[:, None, None, None]
    return Labelled(pixels=pixels, labels=labels, seed=seed, batch=50)


def measured() -> tuple[pd.DataFrame, int]:
    network = Network()
    anatomy = Anatomy(prefix=0, class_token=False, grid=Grid(3, 3, 2.0, 2.0), reads="mean")
    model = models.own(network, "m", anatomy=anatomy)
    shots = probe.Shots(labelled(300, seed=1), 5, 3)
    tokens = [*probe.AGGREGATES, probe.EACH]
    table = probe.measure(model, labelled(100, seed=2), shots, layers=["one", "two"], tokens=tokens)
    return table, network.runs


@pytest.mark.parametrize(("room", "times"), [(10**6, 1), (4 * 60 * 6 * 10, 3), (4 * 60 * 10 * 4, 5), (1, 20)])
def test_whatever_there_is_room_for_probes_are_the_same(room, times, monkeypatch, caplog):
    expected, once = measured()
    monkeypatch.setattr(portions, "ROOM", room)
    with caplog.at_level(logging.INFO):
        table, runs = measured()
    pd.testing.assert_frame_equal(table, expected)
    assert len(table) == 2 * (TOKENS + 1) * 3
    assert f"go through models {times} times" in caplog.text if times > 1 else "once" in caplog.text
    batches, learning_axes = 60 // 50 + 1, 2
    assert runs - once == (times - 1) * (batches + learning_axes)


def test_no_more_is_held_at_a_time_than_there_is_room_for(monkeypatch):
    held = []
    plain = portions.gather

    def gather(*args):
        found = plain(*args)
        held.append(sum(values.nbytes for values in found.values()))
        return found

    monkeypatch.setattr(portions, "gather", gather)
    monkeypatch.setattr(portions, "ROOM", 20_000)
    measured()
    assert max(held) <= 20_000
    assert sum(held) == 4 * 60 * (TOKENS + 1) * (6 + 10)


def test_weights_beyond_the_memory_are_refused_before_an_example_is_read(monkeypatch):
    monkeypatch.setattr(stream, "_free_memory", lambda _: 5_000)
    with pytest.raises(
        Refusal, match=r"what probes have learnt takes 0.0 GB on cpu, and 0.0 GB are free; choose fewer"
    ):
        measured()
