"""On a GPU: what is kept of a layer is made there, and nothing waits for the device layer by layer.

Without a GPU this is seen with fake tensors, which know their device, refuse to meet those of another, and have no values that
anyone could wait for; what is sent to the device layer by layer is not seen. With a GPU, tables are those of the CPU.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from vit_analysis import attention_distance, cka, frequency, models
from vit_analysis.images import Images
from vit_analysis.layers import Branch
from vit_analysis.models import Model
from vit_analysis.probe import Shots
from vit_analysis.reading import measure, stream
from vit_analysis.reading.measure import Measurement
from vit_analysis.shell.analyses import ANALYSES
from vit_analysis.spelling import Refusal
from vit_analysis.study.controls import VIEWS
from vit_analysis.tensors import similarity
from vit_analysis.tensors.tokens import Grid
from vit_analysis.typed import Precision

IMAGES = Images(limit=320, batch=160)
# Outside the package, as autocast says it of any device that is not there.
pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available.*")


@pytest.fixture(autouse=True)
def _no_fake_tensor_stays():
    yield
    for cached in (similarity._above, cka._shuffle, frequency._waves):
        cached.cache_clear()


def on_fake_gpu(module: nn.Module) -> None:
    """Weights without values."""
    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            for name, tensor in kept.items():
                if tensor is not None:
                    kept[name] = torch.empty_like(tensor, device="cuda")


EXTRAS = {
    "controls": lambda vit, cnn: cka.plan_controls([vit, cnn], IMAGES, VIEWS),
    "head_subsets": lambda vit, cnn: attention_distance.plan_subsets(vit, cnn, IMAGES),
}


def plan(name: str, vit: Model, cnn: Model) -> Measurement:
    """Of an analysis or of an extra table, with both models where it takes both."""
    if name in EXTRAS:
        return EXTRAS[name](vit, cnn)
    (module,) = (one.module for one in ANALYSES if one.name == name)
    own = {"attention_distance": [vit], "lesions": vit}.get(name, [vit, cnn])
    few = {"probe": [Shots(Images(limit=400, batch=50, seed=1), 2, 2)]}
    if hasattr(module, "plan"):
        return module.plan(own, IMAGES, *few.get(name, []))
    return module.plan_with_maps(own, IMAGES)[0]


def only_reads(measurement: Measurement) -> bool:
    """It changes no model and needs no gradients."""
    return not measurement.alone and measurement.reading.differentiate is None


def two(device: str, suffix: str = "", precision: Precision = "float32") -> list[Model]:
    own = {"device": device, "precision": precision}
    return [models.load(f"{name}{suffix}", **own) for name in ("lab/vit", "lab/resnet")]


READ = [
    name
    for name in [*(one.name for one in ANALYSES), *EXTRAS]
    if name != "probe" and only_reads(plan(name, *two("cpu", "@random")))  # probes learn before the pass
]


def look(name: str, *, late: bool) -> dict[str, dict[str, torch.Tensor]]:
    """What one batch leaves of every model; planned with real weights, or late, where a plan sends something to the device."""
    both = two("cpu", "@random")
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    planned: Measurement | None = None if late else plan(name, *both)
    if planned:
        planned.prepare()
    with mode:
        for model in both:
            on_fake_gpu(model.module)
        reading = measure.merged({"": planned or plan(name, *both)})
        seen = {}
        for own, model in reading.models.items():
            pixels = torch.empty(160, 3, 32, 32, device="cuda")
            with stream.hooked(reading, model) as run:
                kept = stream.look(reading, model, run, pixels, [])
            seen[own] = {str(layer): parts[""] for layer, parts in kept.items()}
        return seen


def tensors(kept) -> list[torch.Tensor]:
    """All of them, however they are put together."""
    if isinstance(kept, torch.Tensor):
        return [kept]
    parts = kept.values() if isinstance(kept, dict) else kept if isinstance(kept, tuple | list) else ()
    return [one for part in parts for one in tensors(part)]


@pytest.mark.parametrize("name", READ)
def test_what_is_kept_is_made_on_the_device_and_nothing_waits_for_it(name, monkeypatch):
    monkeypatch.setattr(Branch, "is_sum", lambda *_: True)  # looked at once in a run
    monkeypatch.setattr(Grid, "uniform", lambda _: 1.0)  # found out before the run
    try:
        seen = look(name, late=name in ("attention_distance", "head_subsets"))
    except (RuntimeError, Refusal) as error:
        if "CUDA driver" not in str(error):
            raise
        pytest.skip("this torch (2.6) asks for a driver even of fake tensors")
    kept = [tensor for own in seen.values() for one in own.values() for tensor in tensors(one)]
    assert kept
    assert all(tensor.device.type == "cuda" for tensor in kept)


def test_most_analyses_only_read():
    assert {"cka", "attention_distance", "skip", "localization", "soft_nearest_neighbor", *EXTRAS} <= set(
        READ
    )
    assert not {"lesions", "receptive_field"} & set(READ)  # change or differentiate their models


def test_what_waits_would_be_seen():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.empty(3, device="cuda").sum().item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("precision", "most"), [("float32", 1e-3), ("tf32", 3e-3), ("bf16", 3e-2)])
def test_cka_on_a_gpu_is_that_of_the_cpu(precision, most):
    images = Images(limit=640, batch=64)
    exact = cka.measure(two("cpu"), images)
    found = cka.measure(two("cuda", precision=precision), images)
    assert (found["cka"] - exact["cka"]).abs().max() < most


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", READ)
def test_nothing_waits_for_a_gpu_layer_by_layer(name):
    if name == "tokens":
        pytest.skip("a solver of eigenvalues looks at what it found")
    measurement = plan(name, *two("cuda"))
    measurement.prepare()
    reading = measure.merged({"": measurement})
    for model in reading.models.values():
        pixels = torch.rand(160, 3, 32, 32, device="cuda")
        with stream.hooked(reading, model) as run:
            stream.look(reading, model, run, pixels, [])  # what is found out once
            torch.cuda.set_sync_debug_mode("error")
            try:
                kept = stream.look(reading, model, run, pixels, [])
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert kept


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_gram_matrices_of_a_gpu_are_exact(dtype, offset):
    x = (torch.randn(160, 40_000, device="cuda") + offset).to(dtype)
    y = (x.float() + torch.randn(160, 40_000, device="cuda")).to(dtype)
    found, exact = (
        similarity.cka(similarity.hsic(torch.stack([similarity.centred(make(own)) for own in (x, y)])))[0, 1]
        for make in (similarity.gram, lambda own: own.double() @ own.double().T)
    )
    # What bfloat16 makes of 30 + x is apart from that of x by 0.06 in every feature.
    assert abs(found - exact) < (1e-3 if dtype == torch.bfloat16 and offset else 1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", READ)
def test_every_table_of_a_gpu_is_that_of_the_cpu(name):
    tables = {}
    for device in ("cpu", "cuda"):
        tables[device] = plan(name, *two(device)).table().select_dtypes("number")
    torch.testing.assert_close(
        torch.from_numpy(tables["cuda"].to_numpy()),
        torch.from_numpy(tables["cpu"].to_numpy()),
        rtol=1e-3,
        atol=1e-3,
        equal_nan=True,
    )


class Odd(nn.Module):
    """A network that does not do the same to every batch, or waits for it."""

    def __init__(self, waits: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 1)
        self.waits, self.calls = waits, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        even = bool(x.mean() > 0.5) if self.waits else self.calls % 2 == 0
        return self.second(self.first(x) ** (2 if even else 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("odd", [None, "waits", "alternates"])
def test_recorded_passes_give_the_tables_of_plain_ones(odd, monkeypatch):
    if odd:
        torch.manual_seed(0)
        own = replace(models.own(Odd(odd == "waits").cuda(), "odd"), precision="float32")
        chosen = {"models": own, "layers": ["first", "second"]}
    else:
        chosen = {"models": two("cuda")}
    tables = {}
    for plain in ("0", "1"):
        monkeypatch.setenv("VIT_ANALYSIS_PLAIN", plain)
        tables[plain] = cka.measure(images=Images(limit=32 * 8 + 7, batch=32), **chosen)["cka"]
    # What alternates has no table of its own: it also ran to be recorded and checked.
    if odd != "alternates":
        assert (tables["0"] - tables["1"]).abs().max() < 1e-4
    assert tables["0"].notna().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_constant_layer_of_a_gpu_has_no_similarity(dtype):
    x = torch.randn(1, 200_000, device="cuda").expand(48, -1).to(dtype).contiguous()
    assert not similarity.centred(similarity.gram(x)).any()
