"""The precision of the forward pass: set for the models alone, kept in the key, and what it changes is measured and said."""

import contextlib
import logging
from dataclasses import replace

import pytest
import tiny
import torch

from vit_analysis import cka, models
from vit_analysis.images import Images
from vit_analysis.reading import rounding
from vit_analysis.spelling import Refusal
from vit_analysis.tensors.precision import _older, as_precise_as_features, computing, full_float32

IMAGES = Images(limit=32, batch=32)
CPU = torch.device("cpu")
NEWER = hasattr(torch.backends, "fp32_precision")


def settings() -> list[str | bool]:
    """Of products and of convolutions, as a user would ask for them."""
    if not NEWER:
        return [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32]
    own = torch.backends
    return [own.cuda.matmul.fp32_precision, own.cudnn.conv.fp32_precision, own.mkldnn.matmul.fp32_precision]


def test_float32_is_full_also_for_convolutions_and_settings_come_back():
    before = settings()
    with computing("float32", CPU):
        assert settings() == (["ieee"] * 3 if NEWER else ["highest", False])
    assert settings() == before
    with computing("tf32", CPU):
        assert settings() == (["tf32", "tf32", "ieee"] if NEWER else ["high", True])
    assert settings() == before
    with contextlib.suppress(ZeroDivisionError), computing("tf32", CPU):
        raise ZeroDivisionError
    assert settings() == before


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_models_that_ask_for_the_older_settings_are_answered(precision):
    """Some put `cudnn.flags` around a layer, and torch.export asks for them; a setting of its own is no answer to them."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with computing(precision, CPU):
        assert torch.get_float32_matmul_precision() == ("high" if precision == "tf32" else "highest")
        assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
        with torch.backends.cudnn.flags(enabled=False):
            assert not torch.backends.cudnn.enabled
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize("before", [("highest", False), ("high", True), ("medium", True), ("highest", True)])
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_where_there_are_the_older_settings_alone_they_are_set_and_come_back(before, precision):
    def told() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    plain = told()
    try:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
        with contextlib.suppress(ZeroDivisionError), _older(precision):
            assert told() == (("high", True) if precision == "tf32" else ("highest", False))
            raise ZeroDivisionError
        assert told() == before
    finally:
        torch.set_float32_matmul_precision(plain[0])
        torch.backends.cudnn.allow_tf32 = plain[1]


def test_bf16_is_autocast_and_sums_within_it_are_not():
    x = torch.randn(8, 8)
    with computing("bf16", CPU):
        assert (x @ x).dtype == torch.bfloat16
        with full_float32(CPU):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
    assert (x @ x).dtype == torch.float32


def test_a_model_runs_in_its_precision_and_the_others_in_theirs():
    seen = {}
    loaded = [
        models.load(f"lab/vit@random:{number}", device="cpu", precision=own)
        for number, own in enumerate(("bf16", None))
    ]
    for model in loaded:

        def see(_module, _given, out, name=model.name) -> None:
            seen.setdefault(name, out.dtype)

        model.module.get_submodule("blocks.0.attn").register_forward_hook(see)
    cka.measure(loaded, IMAGES)
    assert list(seen.values()) == [torch.bfloat16, torch.float32]


def test_tables_of_another_precision_have_another_key():
    keys = set()
    for precision in (None, "float32", "bf16"):
        vit = models.load("lab/vit@random", device="cpu", precision=precision)
        keys.add(cka.plan(vit, IMAGES).key())
        assert cka.plan(vit, IMAGES).table().attrs.get("precision") == (
            {vit.name: precision} if precision else None
        )
    assert len(keys) == 3


def test_what_bf16_changes_is_what_two_tables_show():
    vit = models.load("lab/vit", device="cpu", precision="bf16")
    changed = rounding.changes({vit.name: vit}, IMAGES)
    tables = [
        cka.measure(own, IMAGES, layers="blocks")["cka"] for own in (vit, replace(vit, precision="float32"))
    ]
    expected = (tables[0] - tables[1]).abs()
    assert 0 < expected.max() < 0.03
    torch.testing.assert_close(changed.flatten(), torch.tensor(expected.to_numpy()), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(("precision", "told"), [("bf16", True), ("float32", False), (None, False)])
def test_it_is_said_where_the_precision_is_lower(precision, told, caplog):
    vit = models.load("lab/vit@random", device="cpu", precision=precision)
    with caplog.at_level(logging.INFO, "vit_analysis"):
        cka.measure(vit, IMAGES)
    assert ("bf16 changes CKA of block outputs by" in caplog.text) == told


def test_where_blocks_are_not_known_it_is_said_that_the_change_is_not(caplog):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    own = replace(models.own(module, "mine"), precision="bf16")
    with caplog.at_level(logging.INFO, "vit_analysis"):
        cka.measure(own, torch.rand(8, 3, 32, 32), layers="0")
    assert "what bf16 changes is not known" in caplog.text


def test_tf32_is_refused_where_there_is_none():
    with pytest.raises(Refusal, match=r"no tf32 on 'cpu'.*choose float32 or bf16"):
        models.load("lab/vit", device="cpu", precision="tf32")


@pytest.mark.filterwarnings("ignore:.*CUDA is not available.*")
@pytest.mark.parametrize(
    ("forward", "device", "expected"),
    [("float32", "cuda", False), ("tf32", "cuda", True), ("bf16", "cuda", True), ("bf16", "cpu", False)],
)
def test_products_of_features_are_as_precise_as_these(forward, device, expected):
    inside = "tf32" if NEWER else "high"
    with computing(forward, CPU), as_precise_as_features(torch.device(device)):
        assert (settings()[0] == inside) == expected
        assert not torch.is_autocast_enabled(device)
    with as_precise_as_features(torch.device("cuda")):  # where nobody has said how models compute
        assert settings()[0] != inside


@pytest.fixture
def four():
    """A tiny model in four precisions, and images in batches that are smaller and larger than they are."""
    vit = tiny.made(24, 12).vit
    return {str(own): replace(vit, name=str(own), precision=own) for own in (None, "tf32", "float32", "bf16")}


@pytest.mark.parametrize(("images", "batch", "first"), [(24, 12, 12), (24, 100, 24)])
def test_what_is_said_is_the_median_and_the_most_of_what_is_known_on_the_images_of_a_batch(
    four, images, batch, first, monkeypatch, caplog
):
    apart = torch.tensor([[0.01, torch.nan, 0.3], [0.02, 0.01, 0.02]]).double()
    monkeypatch.setattr(rounding, "changes", lambda models, _: apart if models is four else None)
    with caplog.at_level(logging.INFO, "vit_analysis"):
        rounding.say(four, tiny.images(images, batch))
    assert caplog.messages == [
        f"bf16 and tf32 changes CKA of block outputs by 0.02 (median) and 0.3 (most) on the first {first} images"
    ]


def test_precisions_are_said_in_an_order_that_no_run_changes(four, monkeypatch, caplog):
    """Whatever the hashes of their names are in a process: of eight that there are not, as there are but two."""
    for name in "hcaegdbf":
        four[name] = replace(four["bf16"], name=name)
        object.__setattr__(four[name], "precision", name)
    monkeypatch.setattr(rounding, "changes", lambda *_: torch.zeros(1, 1).double())
    with caplog.at_level(logging.INFO, "vit_analysis"):
        rounding.say({name: four[name] for name in "hcaegdbf"}, tiny.images(24, 12))
    assert caplog.messages[0].startswith("a and b and c and d and e and f and g and h changes CKA")


@pytest.mark.parametrize(
    ("names", "level"),
    [(("None", "float32"), logging.INFO), (("bf16",), logging.WARNING), ((), logging.INFO)],
)
def test_nothing_is_measured_where_nothing_is_lower_or_nobody_hears_it(
    four, names, level, monkeypatch, caplog
):
    monkeypatch.setattr(rounding, "changes", lambda *_: pytest.fail("measured"))
    with caplog.at_level(level, "vit_analysis"):
        rounding.say({name: four[name] for name in names}, tiny.images(24, 12))
    assert not caplog.records


def test_why_it_is_not_known_is_said(four, monkeypatch, caplog):
    def refuse(*_):
        raise Refusal("blocks are not known")

    monkeypatch.setattr(rounding, "changes", refuse)
    with caplog.at_level(logging.INFO, "vit_analysis"):
        rounding.say(four, tiny.images(24, 12))
    assert caplog.messages == ["what bf16 and tf32 changes is not known: blocks are not known"]


def test_a_change_is_the_distance_from_full_precision_whatever_its_sign(four, monkeypatch):
    of = {None: 0.5, "tf32": 0.4, "bf16": 0.9, "float32": 0.6}

    def similarities(models, _):
        return torch.tensor([of[own.precision] for own in models.values()]).double().expand(4, 4)

    monkeypatch.setattr(rounding, "_similarities", similarities)
    found = rounding.changes(four, tiny.images(24, 12))
    torch.testing.assert_close(found, torch.tensor([0.1, 0.2, 0.0, 0.3]).double().expand(4, 4))
    assert [own.precision for own in four.values()] == [None, "tf32", "float32", "bf16"]


def test_similarities_of_the_first_batch_are_those_of_a_table_of_it():
    own = tiny.made(24, 12)
    found = rounding._similarities({one.name: one for one in own.pair}, own.images)
    first = replace(own.images, pixels=own.images.pixels[:12], labels=own.images.labels[:12])
    table = cka.measure(own.pair, first, layers="blocks")
    torch.testing.assert_close(found.flatten(), torch.tensor(table["cka"].to_numpy()), rtol=1e-6, atol=1e-9)
    assert len(found) == 4 + 5
