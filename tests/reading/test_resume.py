"""When a model may resume: only where everything that is read is the same, to rounding, in order, and once."""

import logging

import networks
import pytest
import tiny
import torch
from doubles import Given
from torch import Tensor, nn

from vit_analysis import lesions, models
from vit_analysis.layers import Tap
from vit_analysis.reading import resume
from vit_analysis.reading.measure import Measurement
from vit_analysis.reading.resume import _close, _equal, _refuse_twice, _seen
from vit_analysis.spelling import Refusal


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_rounding_is_relative_to_the_largest_value_of_a_layer(size):
    one = size * torch.tensor([[1.0, -8.0], [2.0, 0.0]]).double()
    assert _close(one, one.clone())
    assert _close(one[:0], one[:0])
    for place in ((0, 0), (1, 1)):
        for sign in (1, -1):
            other = one.clone()
            other[place] += sign * 7e-6 * size
            assert _close(one, other)
            other[place] += sign * 2e-6 * size
            assert not _close(one, other)
    assert not _close(one, -one)
    assert not _close(one, one.float())
    assert not _close(one, one[:1])
    assert not _close(one, one * torch.nan)


def test_all_tensors_have_to_be_the_same_under_the_same_names_in_the_same_order():
    a, b = ("a", torch.ones(2)), ("b", torch.zeros(3))
    assert _equal([a, b], [a, b])
    for other in (
        [b, a],
        [a],
        [a, b, b],
        [("a", torch.ones(2)), ("c", torch.zeros(3))],
        [a, ("b", torch.ones(3))],
    ):
        assert not _equal([a, b], other)
    assert not _equal([a, b], [("a", torch.zeros(2)), b])


@pytest.mark.parametrize("runs", [1, 3])
def test_a_block_runs_once_under_each_change_or_is_named(runs):
    model = models.named({"m": nn.Linear(2, 2)})["m"]
    seen = [(f"model.{tap}", torch.ones(1)) for tap in ("blocks.0", "blocks.1:in", "blocks.2")] * runs
    _refuse_twice(model, seen, runs)
    for extra, name in ((1, "blocks.1"), (2, "blocks.2")):
        with pytest.raises(Refusal, match=rf"^'{name}' of m runs several times for an image, so"):
            _refuse_twice(model, [*seen, seen[extra]], runs)


class Writes(nn.Module):
    """Writes into what it was given and into what it returned before."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Identity(), nn.Identity()
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes += [torch.is_grad_enabled(), torch.is_inference_mode_enabled()]
        y = self.one(x * 2)
        y.add_(1)
        x.zero_()
        return self.two(y)


def test_what_passes_is_kept_as_it_was_and_neither_the_images_nor_the_mode_are_changed():
    module, pixels = Writes(), torch.randn(2, 3)
    before, taps = pixels.clone(), [Tap("one"), Tap("two"), Tap("two", "in")]
    with torch.inference_mode():
        seen = _seen(resume.Capture(module, []), taps, pixels)
    assert [name for name, _ in seen] == ["one", "two:in", "two"]
    for (_, own), expected in zip(seen, (2 * before, 2 * before + 1, 2 * before + 1), strict=True):
        assert torch.equal(own, expected)
    assert torch.equal(pixels, before)
    assert module.modes == [False, False]
    assert not module.one._forward_hooks


def planned() -> Measurement:
    torch.manual_seed(0)
    model = models.named({"m": networks.timm_vit(depth=2)})["m"]
    return lesions.plan(model, Given(batch=2, pixels=torch.randn(4, 3, 32, 32)))


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_tried_is_first_inside_of_blocks_then_where_they_begin_then_never(failures, monkeypatch, caplog):
    """Of two images, that are each other's mirror images."""
    plan, tried, given = planned(), [], []
    true, answers = resume._equal, [False] * failures + [True] * 2
    tape = resume.Tape

    def equal(anew, resumed) -> bool:
        own = true(anew, resumed)
        assert own  # this network resumes anywhere
        return answers[len(tried) - 1]

    def make(network, blocks, places):
        tried.append([bool(place.branches) for place in places])
        return tape(network, blocks, places)

    def seen(run, taps, pixels):
        given.append(pixels)
        return _seen(run, taps, pixels)

    monkeypatch.setattr(resume, "_equal", equal)
    monkeypatch.setattr(resume, "Tape", make)
    monkeypatch.setattr(resume, "_seen", seen)
    with caplog.at_level(logging.INFO, "vit_analysis"):
        plan.prepare()
    (repeated,) = plan.reading.models.values()
    assert [set(own) for own in tried] == [{True}, {False}][: failures + 1]
    assert all(len(own) == len(repeated.module.changes) - 1 for own in tried)
    assert (repeated.module.tape is None) == (failures == 2)
    assert ("m cannot resume in the middle, so it runs as a whole for each block" in caplog.text) == (
        failures == 2
    )
    for pixels in given:
        assert torch.equal(pixels[:1], plan.reading.images.pixels[:1])
        assert len(pixels) == 2
        for column in range(32):
            assert torch.equal(pixels[1, ..., column], pixels[0, ..., 31 - column])


def test_a_network_whose_blocks_have_one_branch_each_resumes():
    own = tiny.made(4, 2)
    plan = lesions.plan(own.cnn, own.images)
    plan.prepare()
    (repeated,) = plan.reading.models.values()
    assert repeated.module.tape is not None


def test_a_tape_that_fails_is_no_reason_to_end(monkeypatch, caplog):
    plan = planned()

    def fail(*_):
        raise TypeError("what a odd holds is not known")

    monkeypatch.setattr(resume, "_equal", fail)
    with caplog.at_level(logging.DEBUG, "vit_analysis"):
        plan.prepare()
    (repeated,) = plan.reading.models.values()
    assert repeated.module.tape is None
    assert caplog.text.count("m does not resume: what a odd holds is not known") == 2
