import re
from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from doubles import Given, Layers
from torch import Tensor, nn

from vit_analysis import models
from vit_analysis.layers import Tap
from vit_analysis.reading import measure, processes, state, stream
from vit_analysis.reading.capture import Layer
from vit_analysis.reading.state import Sums
from vit_analysis.spelling import Refusal
from vit_analysis.tensors import similarity


@dataclass(frozen=True)
class Total(Sums):
    total: Tensor
    images: Tensor


def fold(batch: stream.Pass) -> Total:
    (value,) = batch.seen["mine"].values()
    return Total(value.double(), torch.tensor(batch.size))


def reading(images: Given, module: nn.Module | None = None) -> stream.Reading:
    module = module or Layers(out=lambda x: x)
    return stream.Reading(
        models.named({"mine": module}), images, {"mine": [Tap("out")]}, lambda own: own.values.sum(0)
    )


def measured(own: stream.Reading, fold=fold, state=None) -> Total:
    one = measure.Measurement(own, fold, Total, lambda _: pd.DataFrame())
    return measure.total({"": one}, state)[""]


@pytest.fixture
def images() -> Given:
    return Given(batch=4, pixels=torch.randn(22, 3))


def test_every_batch_counts_once(images):
    total = measured(reading(images))
    assert int(total.images) == 22
    torch.testing.assert_close(total.total, images.pixels.double().sum(0))


@pytest.mark.parametrize("count", [1, 3, 4, 5, 22])
def test_batches_are_told_with_the_images_that_they_hold(count):
    pixels = torch.randn(count, 3)
    told = [measure._size(number, count, 4) for number in range(-(-count // 4))]
    assert told == [batch.size for batch in stream.stream(reading(Given(batch=4, pixels=pixels)))]
    assert sum(told) == count


def test_no_inference_mode_leaks_between_batches(images):
    passes = [stream.stream(reading(images)), stream.stream(reading(images))]
    for batches in passes:
        next(batches)
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
    for batches in passes:
        batches.close()
    assert not torch.is_inference_mode_enabled()


def test_models_are_evaluated_and_given_back_as_they_were(images):
    module = Layers(out=lambda x: x).train()
    modes = []
    module.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    measured(reading(images, module))
    assert modes == [False] * (6 + 2)  # two more tell the axis of images
    assert module.training
    assert not module.out._forward_hooks


@pytest.mark.parametrize("plain", ["", "1"])
def test_convolutions_run_with_channels_last_unless_the_environment_says_no(monkeypatch, plain):
    monkeypatch.setenv("VIT_ANALYSIS_PLAIN", plain)
    module, strides = nn.Sequential(nn.Conv2d(3, 4, 2)), []
    module[0].register_forward_pre_hook(lambda conv, _: strides.append(conv.weight.stride()))
    monkeypatch.setattr(stream.layers, "is_convolutional", lambda _: True)
    own = stream.Reading(
        models.named({"mine": module}),
        Given(batch=2, pixels=torch.randn(2, 3, 5, 5)),
        {"mine": [Tap("0")]},
        lambda own: own.values.sum(0),
    )
    next(stream.stream(own))
    assert set(strides) == {(12, 4, 2, 1) if plain else (12, 1, 6, 3)}


class Killed(BaseException):
    """What a kill looks like from within."""


def dying(after: int):
    """Folds so many batches."""
    folded = []

    def die(batch: stream.Pass) -> Total:
        if len(folded) == after:
            raise Killed
        folded.append(batch.number)
        return fold(batch)

    return die


@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_killed_run_goes_on_and_ends_with_the_same_sums(images, tmp_path, monkeypatch, after):
    monkeypatch.setattr(measure, "SAVE_EVERY", 0.0)
    unbroken = measured(reading(images))
    folded = []

    def dying(batch: stream.Pass) -> Total:
        if len(folded) == after:
            raise Killed
        folded.append(batch.number)
        return fold(batch)

    if after < images.batches:
        with pytest.raises(Killed):
            measured(reading(images), dying, tmp_path / "run")
        assert len(list(tmp_path.iterdir())) == 1
    resumed = measured(
        reading(images), lambda batch: folded.append(batch.number) or fold(batch), tmp_path / "run"
    )
    assert folded == list(range(6))
    assert torch.equal(resumed.total, unbroken.total)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_run_tells_how_many_images_there_are_and_how_many_were_done_before(
    images, tmp_path, monkeypatch, after
):
    monkeypatch.setattr(measure, "SAVE_EVERY", 0.0)
    told, plain = [], measure.progress.told
    tell = lambda called, count, done: told.append((called, count, done)) or plain(called, count, done)  # noqa: E731
    monkeypatch.setattr(measure.progress, "told", tell)
    with pytest.raises(Killed):
        measured(reading(images), dying(after), tmp_path / "run")
    measured(reading(images), state=tmp_path / "run")
    assert [(count, done) for _, count, done in told] == [(22, 0), (22, 4 * after)]


def test_what_needs_whole_matrices_is_reduced_before_what_cuts_parts_out_of_them(images):
    reduced, first = [], reading(images)
    plans = {
        name: measure.Measurement(
            replace(first, reduce=lambda _, name=name: reduced.append(name), whole=name in "bd"),
            fold,
            Total,
            pd.DataFrame,
        )
        for name in "abcd"
    }
    merged = measure.merged(plans)
    next(stream.stream(merged))
    assert "".join(reduced[-4:]) == "bdac"


def test_precision_is_said_of_the_first_pass_alone(images, monkeypatch):
    said = []
    monkeypatch.setattr(measure.briefing, "say", lambda told, _: said.append(len(told)))
    monkeypatch.setattr(measure.rounding, "say", lambda *_: said.append("precision"))
    plan = {"": measure.Measurement(reading(images), fold, Total, pd.DataFrame)}
    for passes in ([plan], [plan] * 2, [plan] * 3):
        measure.say(passes, "")
    assert said == [1, "precision", 2, "precision", 3, "precision"]


def test_a_key_has_sixteen_digits(images):
    plan = measure.Measurement(reading(images), fold, Total, pd.DataFrame)
    for digest in (plan.key(), plan.identity()["shared"], *plan.identity()["models"].values()):
        assert re.fullmatch(r"[0-9a-f]{16}", digest)


def test_another_command_does_not_pick_up_the_state(images, tmp_path):
    def place(own: stream.Reading):
        return measure.state_path(tmp_path / "run", {"": measure.Measurement(own, fold, Total, pd.DataFrame)})

    changed = [
        reading(replace(images, seed=1)),
        reading(images, nn.Sequential(OrderedDict(out=nn.Linear(3, 3)))),
        replace(reading(images), taps={"mine": [Tap("out"), Tap("more")]}),
        replace(reading(images), settings={"tokens": "cls"}),
    ]
    assert len({place(own) for own in [reading(images), *changed]}) == 5
    assert place(reading(images)) == place(reading(images))


@pytest.mark.parametrize("damage", ["empty", "cut", "one bit", "more batches", "of other sums"])
def test_a_damaged_state_is_named_put_aside_and_not_believed(images, tmp_path, monkeypatch, caplog, damage):
    monkeypatch.setattr(measure, "SAVE_EVERY", 0.0)
    with pytest.raises(Killed):
        measured(reading(images), dying(3), tmp_path / "run")
    (state,) = tmp_path.iterdir()
    contents = bytearray(state.read_bytes())
    if damage == "empty":
        contents.clear()
    elif damage == "cut":
        del contents[len(contents) // 2 :]
    elif damage == "one bit":
        contents[-3] ^= 1
    elif damage == "more batches":
        contents = contents.replace(b'"done":"3"', b'"done":"5"')
    else:
        contents = bytearray(safetensors.torch.save({"a": torch.ones(1)}))
    state.write_bytes(contents)
    total = measured(reading(images), state=tmp_path / "run")
    assert torch.equal(total.total, measured(reading(images)).total)
    assert re.search(
        rf"the sums in {state} cannot be read \(.+\): put aside as {state.stem}.unreadable; beginning again",
        caplog.text,
    )
    (aside,) = tmp_path.iterdir()
    assert aside.name == f"{state.stem}.unreadable"
    assert aside.read_bytes() == contents


def test_what_is_made_of_the_sums_can_be_written_before_they_go(images, tmp_path):
    def killed_after_the_pass() -> None:
        with state.keeping():
            measured(reading(images), state=tmp_path / "run")
            raise Killed

    with pytest.raises(Killed):
        killed_after_the_pass()
    assert len(list(tmp_path.iterdir())) == 1
    with state.keeping():
        never = measured(reading(images), lambda _: pytest.fail("read again"), tmp_path / "run")
    assert int(never.images) == 22
    assert list(tmp_path.iterdir()) == []


def test_one_file_more_in_a_folder_is_another_state():
    @dataclass(frozen=True)
    class Choice(Given):
        whole: int = 0

        @property
        def order(self) -> list[int]:
            return torch.randperm(self.whole, generator=torch.Generator().manual_seed(0))[:8].tolist()

    def key(whole: int) -> str:
        own = reading(Choice(batch=4, pixels=torch.zeros(8, 3), whole=whole))
        return measure.Measurement(own, fold, Total, pd.DataFrame).key()

    assert key(100) != key(101)
    assert key(100) == key(100)


def test_fewer_batches_than_processes_are_refused_before_anything_waits(images, monkeypatch):
    monkeypatch.setattr(processes, "rank_and_size", lambda: (0, 7))
    with pytest.raises(
        Refusal, match=r"7 processes need at least 7 batches, there are 6; lower images.batch"
    ):
        measured(reading(images))


def test_nothing_usable_is_an_error(images):
    with pytest.raises(Refusal, match="none of the 6 batches could be used"):
        measured(reading(images), lambda _: None)


def finish(sums: Total) -> pd.DataFrame:
    return pd.DataFrame({"mean": (sums.total / sums.images).numpy()})


def test_measurements_share_a_pass_and_each_gets_what_it_would_alone(images):
    # Three of the same images: two that read the same layer differently, one that reads another layer of another model.
    looked = []
    layers = Layers(out=lambda x: x, twice=lambda x: 2 * x)
    layers.register_forward_hook(lambda *_: looked.append(1))
    mine, other = models.named({"mine": layers, "other": Layers(out=lambda x: -x)}).values()

    def one(model: models.Model, tap: str, reduce) -> measure.Measurement:
        def own(batch: stream.Pass) -> Total:
            ((name, seen),) = batch.seen.items()
            assert (name, list(seen)) == (model.name, [Layer(Tap(tap))])
            return Total(seen[Layer(Tap(tap))].double(), torch.tensor(batch.size))

        taps = {model.name: [Tap(tap)]}
        read = stream.Reading({model.name: model}, images, taps, lambda own: reduce(own.values))
        return measure.Measurement(read, own, Total, finish)

    wanted = {
        "sum": one(mine, "out", lambda x: x.sum(0)),
        "squares": one(mine, "out", lambda x: x.square().sum(0)),
        "twice": one(mine, "twice", lambda x: x.sum(0)),
        "negative": one(other, "out", lambda x: x.sum(0)),
    }
    together = measure.tables(wanted)
    assert len(looked) == images.batches + 2  # two more tell the axis of images
    for name, measurement in wanted.items():
        pd.testing.assert_frame_equal(together[name], measurement.table())
    pd.testing.assert_frame_equal(together["twice"], 2 * together["sum"])
    pd.testing.assert_frame_equal(together["negative"], -together["sum"])


@pytest.mark.parametrize("alone", [False, True])
def test_two_tables_of_the_same_sums_take_one_pass(images, alone):
    folded = []
    table = measure.Measurement(
        reading(images), lambda batch: folded.append(batch.number) or fold(batch), Total, finish, alone=alone
    )
    count = replace(table, finish=lambda sums: pd.DataFrame({"images": [int(sums.images)]}))
    both = measure.tables({"mean": table, "count": count})
    assert folded == list(range(images.batches))
    assert both["count"]["images"].item() == 22
    np.testing.assert_allclose(both["mean"]["mean"], images.pixels.double().mean(0))


def test_a_measurement_that_keeps_nothing_of_a_layer_does_not_hide_it_from_others(images):
    shared = reading(images)

    def own(layer_kept: bool) -> measure.Measurement:
        def count(batch: stream.Pass) -> Total:
            return Total(torch.tensor([float(len(batch.seen["mine"]))]), torch.tensor(1))

        read = replace(shared, reduce=lambda own: own.values.sum() if layer_kept else None)
        return measure.Measurement(read, count, Total, finish)

    together = measure.tables({"kept": own(True), "dropped": own(False)})
    assert (together["kept"]["mean"].item(), together["dropped"]["mean"].item()) == (1, 0)


def test_what_cannot_share_a_pass_says_why(images):
    def plain(own: stream.Reading, alone: bool = False) -> measure.Measurement:
        return measure.Measurement(own, fold, Total, finish, alone=alone)

    same = reading(images)
    with pytest.raises(Refusal, match="measurements of different images cannot share a pass: a, b"):
        measure.tables({"a": plain(same), "b": plain(replace(same, images=replace(images, batch=5)))})
    with pytest.raises(Refusal, match="two different models are called 'mine' in one pass"):
        measure.tables({"a": plain(same), "b": plain(reading(images))})
    with pytest.raises(Refusal, match="b changes or differentiates its models and cannot share a pass"):
        measure.tables({"a": plain(same), "b": plain(same, alone=True)})


def test_what_a_measurement_needs_before_the_pass_is_done_before_it(images):
    done = []
    own = replace(reading(images), reduce=lambda own: done.append("read") or own.values.sum(0))
    measure.Measurement(own, fold, Total, finish, prepare=lambda: done.append("prepared")).table()
    assert done[0] == "prepared"
    assert done.count("prepared") == 1


def fault(*_):
    """A plain ValueError of numpy, which says nothing to a user."""
    return np.zeros(2) + np.zeros(3)


@pytest.mark.parametrize(
    ("place", "name", "note"),
    [
        ("reduce", "mine", r"'out' of mine"),
        ("fold", "mine", r"^in the sums of mine of batch 0$"),
        ("fold", "", r"^in the sums of Total of batch 0$"),
        ("finish", "mine", r"^in the table of mine$"),
        ("finish", "", r"^in the table of Total$"),
    ],
)
def test_a_fault_comes_out_as_it_is_and_says_where_it_happened(images, place, name, note):
    own = reading(images)
    if place == "reduce":
        own = replace(own, reduce=fault)
    parts = {"fold": fold, "finish": finish} | ({place: fault} if place != "reduce" else {})
    broken = measure.Measurement(own, parts["fold"], Total, parts["finish"])
    with pytest.raises(ValueError, match="could not be broadcast") as raised:
        measure.tables({name: broken})
    assert type(raised.value) is ValueError
    assert any(re.search(note, told) for told in getattr(raised.value, "__notes__", [])), "no such note"


def test_a_refusal_of_a_measurement_stays_one_sentence(images):
    def refuse(*_):
        raise Refusal("choose other images")

    for broken in (
        measure.Measurement(replace(reading(images), reduce=refuse), fold, Total, finish),
        measure.Measurement(reading(images), refuse, Total, finish),
        measure.Measurement(reading(images), fold, Total, refuse),
    ):
        with pytest.raises(Refusal) as refused:
            broken.table()
        assert str(refused.value) == "choose other images"


def test_a_model_that_does_not_take_the_images_is_told_with_their_shape(images):
    module = nn.Sequential(OrderedDict(out=nn.Linear(5, 5)))
    with pytest.raises(Refusal, match="Sequential does not take images of 3: "):
        measured(reading(images, module))


def test_a_reducer_is_told_what_it_reads(images):
    told = []
    module = Layers(out=lambda x: x, pair=lambda x: x)
    module.pair.register_forward_hook(lambda *_: (torch.ones(len(_[2]), 2), torch.zeros(len(_[2]), 3)))
    own = replace(
        reading(replace(images, pixels=images.pixels[:4]), module),
        taps={"mine": [Tap("pair"), Tap("out", "in")]},
        reduce=lambda own: told.append((own.model.name, own.layer, str(own), tuple(own.values.shape))),
    )
    next(stream.stream(own))
    pair = Tap("pair")
    assert told == [
        ("mine", Layer(Tap("out", "in")), "'out:in' of mine", (4, 3)),
        ("mine", Layer(pair, key="[0]"), "'pair[0]' of mine", (4, 2)),
        ("mine", Layer(pair, key="[1]"), "'pair[1]' of mine", (4, 3)),
    ]


def test_what_was_kept_is_listed_model_after_model(images):
    own = models.named({"mine": Layers(a=lambda x: x, b=lambda x: x), "other": Layers(a=lambda x: x)})
    taps = {"mine": [Tap("b"), Tap("a")], "other": [Tap("a")]}
    batch = next(stream.stream(stream.Reading(own, images, taps, lambda own: str(own.layer) * 2)))
    assert [(name, str(layer), kept) for name, layer, kept in batch.kept()] == [
        ("mine", "a", "aa"),
        ("mine", "b", "bb"),
        ("other", "a", "aa"),
    ]


def test_numbers_that_are_not_finite_are_told_by_the_first_name_that_has_some():
    batch = stream.Pass(3, 4, {}, torch.full((4,), -1), [0, 1, 2, 3])
    names = ["a", "b", "c"]
    for values in (torch.ones(3), torch.ones(3, 2), torch.ones(3, 2, 2)):
        batch.refuse_not_finite(values, names)
        values[1:] = torch.tensor([torch.nan, torch.inf]).view(-1, *[1] * (values.ndim - 1))
        with pytest.raises(Refusal, match=r"^b has values that are not finite in batch 3$"):
            batch.refuse_not_finite(values, names)


def test_measurements_that_share_a_pass_share_the_products_of_an_activation(images, monkeypatch):
    made = []
    real = similarity.gram
    monkeypatch.setattr(similarity, "gram", lambda x: made.append(x.shape) or real(x))

    def one(*selections: str) -> measure.Measurement:
        def reduce(own: stream.Activation) -> Tensor:
            return torch.stack([own.grams.of(name).sum(1) for name in selections]).sum(0)

        def own(batch: stream.Pass) -> Total:
            (value,) = batch.seen["mine"].values()
            return Total(value.sum()[None], torch.tensor(batch.size))

        return measure.Measurement(replace(shared, reduce=reduce), own, Total, finish)

    shared = reading(images)
    alone = one("all", "all").table()
    assert len(made) == images.batches
    made.clear()
    together = measure.tables({"a": one("all"), "b": one("all"), "twice": one("all", "all")})
    assert (
        len(made) == images.batches
    )  # and another batch, whose tensor may lie at the same place, has another
    pd.testing.assert_frame_equal(together["twice"], alone)
    pd.testing.assert_frame_equal(together["a"], together["b"])


def test_a_reading_with_gradients_gives_what_is_made_of_them(images):
    def gradients(model, numbers, pixels, seen):
        assert (model.name, len(numbers)) == ("mine", len(pixels))
        ((layer, value),) = seen.items()
        (gradient,) = torch.autograd.grad(value.square().sum(), pixels)
        return {layer: gradient.sum(0)}

    own = replace(reading(images), reduce=lambda own: own.values, differentiate=gradients)
    total = measured(own)
    torch.testing.assert_close(total.total, 2 * images.pixels.double().sum(0), rtol=1e-5, atol=1e-5)


def test_tables_and_states_of_other_code_are_not_picked_up(images, monkeypatch):
    """A fault that is mended must not live on in what was kept; nor do sums of the old code add to those of the new."""
    key = measured_key(images)
    assert measured_key(images) == key
    monkeypatch.setattr("vit_analysis.reading.measure.code", lambda: "other code")
    assert measured_key(images) != key


def measured_key(images) -> str:
    return measure.Measurement(reading(images), lambda _: None, Total, lambda _: pd.DataFrame()).key()
