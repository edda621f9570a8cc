"""The loop over images: what is said of them, what is kept of all of them, and what is refused before it fills the memory."""

import logging
from dataclasses import replace

import pytest
import torch
from doubles import Given, Labelled, Layers
from torch import Tensor, nn

from vit_analysis import models
from vit_analysis.anatomy.roles import Anatomy
from vit_analysis.images import Images, Preprocessing
from vit_analysis.layers import Tap
from vit_analysis.models import Model
from vit_analysis.reading import graphs, processes, stream
from vit_analysis.reading.capture import Layer
from vit_analysis.reading.stream import Pass, Reading, gather, one_image, places, prepared
from vit_analysis.spelling import Refusal


def own(module: nn.Module, **known) -> Model:
    return models.own(module, "m", preprocessing=Preprocessing(**known))


def reading(images: Given, module: nn.Module | None = None, **more) -> Reading:
    known = own(module or Layers(out=lambda x: x))
    return Reading({"m": known}, images, {"m": [Tap("out")]}, lambda one: one.values, **more)


def labelled(count: int, batch: int) -> Labelled:
    return Labelled(batch=batch, pixels=torch.randn(count, 2, 3), labels=torch.arange(count))


# What is not finite ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2)])
def test_the_first_row_in_which_any_number_is_not_finite_is_named(value, shape):
    one = Pass(7, 2, {}, torch.zeros(2), [0, 1])
    values, names = torch.zeros(shape), list("abcd")
    one.refuse_not_finite(values, names)
    for row in (3, 1):
        values[row].view(-1)[-1] = value
        with pytest.raises(Refusal, match=f"^{names[row]} has values that are not finite in batch 7$"):
            one.refuse_not_finite(values, names)


# Facts -------------------------------------------------------------------------------------------------------------------


def test_facts_say_models_images_and_precisions_that_are_not_their_own():
    plain = reading(labelled(4, 2))
    other = replace(plain.models["m"], name="n", precision="bf16")
    both = replace(plain, models={**plain.models, "n": other})
    digest = plain.models["m"].digest
    assert plain.facts() == {"models": {"m": digest}, "images": plain.images.facts()}
    assert both.facts() == {
        "models": {"m": digest, "n": digest},
        "images": plain.images.facts(),
        "precision": {"n": "bf16"},
    }
    assert not plain.steady
    assert not plain.whole
    assert plain.differentiate is None


# Sizes and preprocessing that nobody told ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(5, 9), (6, 4)])
def test_images_that_go_in_as_they_are_decide_the_size(size):
    models_of, images = prepared({"m": own(nn.Identity(), input_size=(3, 6, 4))}, torch.zeros(4, 3, *size))
    assert models_of["m"].preprocessing.input_size == (3, *size)
    pixels = one_image(images, models_of["m"])
    assert pixels.shape == (1, 3, *size)
    assert not pixels.is_inference()
    with torch.inference_mode():
        assert not one_image(images, models_of["m"]).is_inference()


def test_vectors_have_no_size_and_leave_that_of_the_model():
    models_of, _ = prepared(
        {"m": own(nn.Identity(), input_size=(3, 6, 4))}, Given(batch=2, pixels=torch.zeros(4, 5))
    )
    assert models_of["m"].preprocessing.input_size == (3, 6, 4)


def test_images_of_a_source_leave_the_model_s_size_and_are_not_read():
    model, images = own(nn.Identity(), input_size=(3, 6, 4)), Images(source="nowhere", limit=4)
    assert prepared({"m": model}, images) == ({"m": model}, images)


@pytest.mark.parametrize(
    ("data", "assumed", "told"), [(False, True, True), (False, False, False), (True, True, False)]
)
def test_what_is_assumed_of_images_is_said_unless_they_go_in_as_they_are(data, assumed, told, caplog):
    images: Given = labelled(4, 2)
    if data:
        object.__setattr__(images, "data", torch.zeros(1))
    plain = reading(images)
    known = Preprocessing(input_size=(3, 6, 4), mean=(0.125, 0.25, 0.5), std=(0.625, 0.75, 1.0))
    model = replace(plain.models["m"], preprocessing=known, assumed=assumed)
    list(stream.stream(replace(plain, models={"m": model})))
    said = "assumed are 6 x 4 pixels, mean 0.125, 0.25, 0.5, standard deviation 0.625, 0.75, 1; say it with"
    assert (said in caplog.text) == told
    assert (caplog.text != "") == told


# One image -----------------------------------------------------------------------------------------------------------------


class Writes(nn.Module):
    """Writes into what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x.zero_()


def test_a_model_that_writes_into_its_images_changes_nobody_else_s():
    images = labelled(4, 4)
    before = images.pixels.clone()
    model = own(Writes())
    given = stream.as_input_of(model, images.pixels)
    given.zero_()
    assert torch.equal(images.pixels, before)
    assert torch.equal(one_image(images, model), before[:1])
    assert stream.as_input_of(replace(model, module=nn.Linear(2, 2).double()), before).dtype == torch.float64


@pytest.mark.parametrize("error", [ValueError("odd"), Refusal("mine"), FileNotFoundError("gone")])
def test_a_model_that_fails_where_places_are_looked_for_is_said_to(error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(stream, "positions", fail)
    kind = Refusal if type(error) is ValueError else type(error)
    said = "Identity does not take images of 2 x 3: odd" if type(error) is ValueError else str(error)
    with pytest.raises(kind, match=f"^{said}$"):
        places(labelled(4, 4), own(nn.Identity()))


# Hooks -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [graphs.WORTH - 1, graphs.WORTH, graphs.WORTH + 1])
@pytest.mark.parametrize("steady", [True, False])
@pytest.mark.parametrize("plain", ["", "1"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_passes_are_recorded_on_a_gpu_where_many_batches_are_read_alike(
    batches, steady, plain, device, monkeypatch
):
    monkeypatch.setenv("VIT_ANALYSIS_PLAIN", plain)
    monkeypatch.setattr(Model, "device", torch.device(device))
    recorded = []

    class Recorded(stream.Capture):
        def __init__(self, *args) -> None:
            recorded.append(1)
            super().__init__(*args)

    monkeypatch.setattr(graphs, "Recorded", Recorded)
    one = reading(Given(batch=1, pixels=torch.zeros(batches, 2)), steady=steady)
    with stream.hooked(one, one.models["m"]):
        pass
    assert bool(recorded) == (steady and device == "cuda" and not plain and batches >= graphs.WORTH)


def test_gradients_are_on_where_they_are_asked_for_and_only_there():
    modes = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled(), x.requires_grad))
            return x * 1

    module, seen = nn.ModuleDict({"out": Watched()}), []
    module.forward = lambda x: module["out"](x)

    def differentiate(model, images, pixels, kept):
        seen.append(
            (
                model.name,
                images,
                pixels.is_leaf,
                {str(layer): one.requires_grad for layer, one in kept.items()},
            )
        )
        return {Layer(Tap("out")): torch.autograd.grad(next(iter(kept.values())).sum(), pixels)[0]}

    for given in (None, differentiate):
        modes.clear()
        with torch.inference_mode():
            one = reading(labelled(5, 3), module, differentiate=given)
            passes = list(stream.stream(one))
        wanted = given is not None
        assert modes[2:] == [(wanted, False, wanted)] * 2
        expected = torch.ones(3, 2, 3) if wanted else one.images.pixels[:3]
        assert torch.equal(passes[0].seen["m"][Layer(Tap("out"))], expected)
    assert seen == [("m", [0, 1, 2], True, {"out": True}), ("m", [3, 4], True, {"out": True})]


# What is kept of all images ------------------------------------------------------------------------------------------------


def test_rows_of_all_images_lie_in_the_order_of_the_images_and_batches_are_counted(monkeypatch):
    images, told = labelled(8, 3), []

    class Teller:
        def __init__(self, called: str, count: int) -> None:
            told.append((called, count))

        def __enter__(self):
            return told.append

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(stream.progress, "told", Teller)
    found = gather(reading(images), "a pass")
    assert list(found) == [("m", Layer(Tap("out")))]
    assert torch.equal(found["m", Layer(Tap("out"))], images.pixels)
    assert told == [("a pass", 8), 3, 3, 2]


@pytest.mark.parametrize(("rank", "own_rows"), [(0, [0, 1, 2, 6, 7]), (1, [3, 4, 5])])
def test_a_process_keeps_its_own_rows_and_zeros_for_those_of_others(rank, own_rows, monkeypatch):
    images, told = labelled(8, 3), []
    monkeypatch.setattr(processes, "rank_and_size", lambda: (rank, 2))
    monkeypatch.setattr(processes, "over_processes", lambda sums, _: sums)
    plain = stream.progress.told
    monkeypatch.setattr(
        stream.progress, "told", lambda called, count: told.append(count) or plain(called, count)
    )
    (rows,) = gather(reading(images), "").values()
    assert torch.equal(rows[own_rows], images.pixels[own_rows])
    assert rows.flatten(1).any(1).nonzero().flatten().tolist() == own_rows
    assert told == [len(own_rows)]


def test_every_process_has_to_have_a_batch(monkeypatch):
    for of, enough in ((3, True), (4, False)):
        monkeypatch.setattr(processes, "rank_and_size", lambda of=of: (of - 1, of))
        if enough:
            assert stream.dealt(labelled(8, 3)) == (2, 3)
        else:
            with pytest.raises(Refusal, match="4 processes need at least 4 batches, there are 3"):
                stream.dealt(labelled(8, 3))


def test_an_image_that_cannot_be_read_is_missed():
    class Lacking(Labelled):
        def read(self, *args, **kwargs):
            for batch in super().read(*args, **kwargs):
                yield batch._replace(images=[*batch.images[:-1]])

    with pytest.raises(OSError, match="every one of these images is needed, and one of them cannot be read"):
        gather(reading(Lacking(**vars(labelled(8, 3)))), "")


@pytest.mark.parametrize("room", [8 * 6 * 4 - 1, 8 * 6 * 4])
def test_what_is_kept_of_all_images_fits_into_the_memory_to_the_last_byte_or_is_refused(room, monkeypatch):
    """Of eight images six numbers of four bytes; of several layers the sum."""
    images = labelled(8, 3)
    two = Layers(out=lambda x: x[:, :1], more=lambda x: x[:, 1:])
    one = replace(reading(images, two), taps={"m": [Tap("out"), Tap("more")]})
    monkeypatch.setattr(stream, "_free_memory", lambda _: room)
    if room < 8 * 6 * 4:
        with pytest.raises(
            Refusal, match=r"what is kept of 8 images takes 0\.0 GB on cpu, and 0\.0 GB are free"
        ):
            gather(one, "")
    else:
        assert sum(rows.nbytes for rows in gather(one, "").values()) == room


@pytest.mark.parametrize(("free", "expected"), [(30, 50), (70, 70)])
def test_half_of_the_memory_is_always_free_as_the_system_gives_up_its_cache(free, expected, monkeypatch):
    pages = {"SC_PAGE_SIZE": 4096, "SC_AVPHYS_PAGES": free, "SC_PHYS_PAGES": 100}
    monkeypatch.setattr(stream.os, "sysconf", pages.__getitem__, raising=False)
    monkeypatch.setattr(stream.os, "sysconf_names", pages, raising=False)
    assert stream._free_memory(torch.device("cpu")) == 4096 * expected
    monkeypatch.setattr(stream.os, "sysconf_names", {}, raising=False)
    assert stream._free_memory(torch.device("cpu")) == 4096 * 50
    monkeypatch.setattr(stream.torch.cuda, "mem_get_info", lambda _: (7, 9))
    assert stream._free_memory(torch.device("cuda")) == 7


def test_the_anatomy_of_a_model_is_that_of_what_is_read(caplog):
    """An error in a reducer says of which layer and model it is."""
    module = Layers(out=lambda x: x)
    model = models.own(module, "mine", preprocessing=Preprocessing(), anatomy=Anatomy(prefix=1))

    def reduce(one):
        assert one.layout.prefix == 1
        raise ZeroDivisionError

    broken = Reading({"mine": model}, labelled(4, 2), {"mine": [Tap("out")]}, reduce)
    with caplog.at_level(logging.INFO), pytest.raises(ZeroDivisionError) as raised:
        list(stream.stream(broken))
    assert raised.value.__notes__ == ["in what is kept of 'out' of mine"]
