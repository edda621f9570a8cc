from collections import OrderedDict
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import Given, Layers
from torch import Tensor, nn

from vit_analysis import features, models, running
from vit_analysis.running import Sums


@dataclass(frozen=True)
class Total(Sums):
    total: Tensor
    images: Tensor


def fold(batch: features.Pass) -> Total:
    (value,) = batch.seen["mine"].values()
    return Total(value.double(), torch.tensor(batch.size))


def reading(images: Given, module: nn.Module | None = None) -> features.Reading:
    module = module or Layers(out=lambda x: x)
    return features.Reading(
        models.named({"mine": module}), images, {"mine": ["out"]}, lambda _model, _layer, x: x.sum(0)
    )


@pytest.fixture
def images() -> Given:
    return Given(batch=4, pixels=torch.randn(22, 3))


def test_every_batch_counts_once(images):
    total = features.measure(reading(images), fold, Total, None)
    assert int(total.images) == 22
    torch.testing.assert_close(total.total, images.pixels.double().sum(0))


def test_no_inference_mode_leaks_between_batches(images):
    passes = [features.stream(reading(images)), features.stream(reading(images))]
    for stream in passes:
        next(stream)
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
    for stream in passes:
        stream.close()
    assert not torch.is_inference_mode_enabled()


def test_models_are_evaluated_and_given_back_as_they_were(images):
    module = Layers(out=lambda x: x).train()
    modes = []
    module.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    features.measure(reading(images, module), fold, Total, None)
    assert modes == [False] * 6
    assert module.training
    assert not module.out._forward_hooks


class Killed(BaseException):
    """What a kill looks like from within."""


@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_killed_run_goes_on_and_ends_with_the_same_sums(images, tmp_path, monkeypatch, after):
    monkeypatch.setattr(features, "SAVE_EVERY", 0.0)
    unbroken = features.measure(reading(images), fold, Total, None)
    folded = []

    def dying(batch: features.Pass) -> Total:
        if len(folded) == after:
            raise Killed
        folded.append(batch.number)
        return fold(batch)

    if after < images.batches:
        with pytest.raises(Killed):
            features.measure(reading(images), dying, Total, tmp_path / "run")
        assert len(list(tmp_path.iterdir())) == 1
    resumed = features.measure(
        reading(images), lambda batch: folded.append(batch.number) or fold(batch), Total, tmp_path / "run"
    )
    assert folded == list(range(6))
    assert torch.equal(resumed.total, unbroken.total)
    assert list(tmp_path.iterdir()) == []


def test_another_command_does_not_pick_up_the_state(images, tmp_path):
    own = features._state_path(tmp_path / "run", reading(images), Total)
    changed = [
        reading(replace(images, seed=1)),
        reading(images, nn.Sequential(OrderedDict(out=nn.Linear(3, 3)))),
        replace(reading(images), taps={"mine": ["out", "more"]}),
    ]
    others = {features._state_path(tmp_path / "run", other, Total) for other in changed}
    assert len({own, *others}) == 4
    assert features._state_path(tmp_path / "run", reading(images), Total) == own


def test_fewer_batches_than_processes_are_refused_before_anything_waits(images, monkeypatch):
    monkeypatch.setattr(running, "processes", lambda: (0, 7))
    with pytest.raises(
        ValueError, match=r"7 processes need at least 7 batches, there are 6; lower images.batch"
    ):
        features.measure(reading(images), fold, Total, None)


def test_nothing_usable_is_an_error(images):
    with pytest.raises(ValueError, match="no batch of 6 could be used"):
        features.measure(reading(images), lambda _: None, Total, None)
