"""Recorded passes: what a replay gives is copied, and a replay that does something else is not believed.

Without a GPU the graph is a stand-in, which replays or fails to. With one, `tests/test_device.py` compares tables.
"""

import contextlib
from typing import NamedTuple

import pytest
import torch
from torch import nn

from vit_analysis.reading import graphs
from vit_analysis.reading.capture import Capture


class Pair(NamedTuple):
    number: int
    tensor: torch.Tensor


class Graph:
    """Stands for a CUDA graph; ``recorded`` is set by the test."""

    recorded: graphs.Recorded
    works = True
    replays = 0

    def replay(self) -> None:
        type(self).replays += 1
        if self.works:
            for layer, kept in Capture.__call__(self.recorded, self.recorded._given).items():
                for own, new in zip(self.recorded._kept[layer][1], kept[1], strict=True):
                    if isinstance(own, torch.Tensor):
                        own.copy_(new)


@pytest.fixture
def graph(monkeypatch):
    """A new stand-in in the place of torch's graphs."""
    own = type("Own", (Graph,), {"works": True, "replays": 0})
    monkeypatch.setattr(torch.cuda, "CUDAGraph", own)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(graphs, "_waiting_refused", contextlib.nullcontext)
    return own


def recorded(graph, module: nn.Module) -> graphs.Recorded:
    run = graphs.Recorded(module, ["0"], lambda _, own: ["kept", Pair(len(own), own.sum(1))])
    graph.recorded = run
    return run


@pytest.mark.parametrize("works", [True, False])
def test_every_batch_is_what_a_plain_run_gives(graph, works):
    graph.works = works
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    batches = [torch.randn(size, 4) for size in (5, 5, 5, 5, 5, 2)]
    with recorded(graph, module) as run, torch.no_grad():
        kept = [run(batch)["0"] for batch in batches]
    for batch, (_, own) in zip(batches, kept, strict=True):
        assert own.number == len(batch)
        torch.testing.assert_close(own.tensor, module[0](batch).sum(1))
    # Two batches and that of another size run plainly, the third is compared; a replay that did something else is the last.
    assert graph.replays == (3 if works else 1)


def test_a_model_may_write_into_its_images(graph):
    """Batches are run twice to be recorded and checked, each time as they were given."""

    class Halving(nn.Module):
        def forward(self, x):
            return x.div_(2)

    batches = [torch.randn(5, 4) for _ in range(5)]
    with recorded(graph, nn.Sequential(Halving())) as run, torch.no_grad():
        kept = [run(batch.clone())["0"][1].tensor for batch in batches]
    for batch, own in zip(batches, kept, strict=True):
        torch.testing.assert_close(own, batch.sum(1) / 2)
    assert graph.replays == 3


def test_what_cannot_be_recorded_runs_plainly(graph, monkeypatch):
    class Refusing:
        def __enter__(self):
            raise RuntimeError("called a synchronizing CUDA operation")

        def __exit__(self, *_):
            return False

    monkeypatch.setattr(graphs, "_waiting_refused", Refusing)
    module = nn.Sequential(nn.Linear(4, 3))
    with recorded(graph, module) as run, torch.no_grad():
        for _ in range(4):
            batch = torch.randn(3, 4)
            torch.testing.assert_close(run(batch)["0"][1].tensor, module(batch).sum(1))
    assert graph.replays == 0


def test_nests_are_copied_and_compared():
    kept = {"a": [torch.ones(2), None], "b": Pair(3, torch.tensor([1, 2]))}
    copy = graphs.copied(kept)
    assert graphs.alike(kept, copy)
    kept["a"][0][0] = 5
    assert copy["a"][0][0] == 1
    assert not graphs.alike(kept, copy)
    assert not graphs.alike({"a": torch.ones(2)}, {"a": torch.ones(3)})
    assert not graphs.alike([torch.tensor([1])], [torch.tensor([2])])
    assert graphs.alike(torch.tensor([float("nan"), 1.0]), torch.tensor([float("nan"), 1.0 + 1e-6]))
    with pytest.raises(TypeError, match="object cannot be copied"):
        graphs.copied([object()])
