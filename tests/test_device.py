"""On a GPU: what is kept of a layer is made there, and nothing waits for the device layer by layer.

Without a GPU this is seen with fake tensors, which know their device, refuse to meet those of another, and have no values that
anyone could wait for; what is sent to the device layer by layer is not seen. With a GPU, tables are those of the CPU.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from vit_analysis import attention_distance, cka, localization, models, skip, soft_nearest_neighbor
from vit_analysis.images import Images
from vit_analysis.reading import measure, stream
from vit_analysis.reading.intervene import Branch
from vit_analysis.reading.measure import Measurement
from vit_analysis.tensors import similarity

IMAGES = Images(limit=320, batch=160)
# Outside the package, as autocast says it of any device that is not there.
pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available.*")


@pytest.fixture(autouse=True)
def _no_fake_tensor_stays():
    yield
    similarity._above.cache_clear()
    cka._shuffle.cache_clear()


def on_fake_gpu(module: nn.Module) -> None:
    """Weights without values."""
    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            for name, tensor in kept.items():
                if tensor is not None:
                    kept[name] = torch.empty_like(tensor, device="cuda")


def look(plan, *, late: bool) -> dict[str, dict[str, torch.Tensor]]:
    """What one batch leaves of every model; planned with real weights, or late, where a plan sends something to the device."""
    both = [models.load("lab/vit@random", device="cpu"), models.load("lab/resnet@random", device="cpu")]
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    planned: Measurement | None = None if late else plan(*both)
    with mode:
        for model in both:
            on_fake_gpu(model.module)
        reading = measure.merged({"": planned or plan(*both)})
        seen = {}
        for name, model in reading.models.items():
            pixels = torch.empty(160, 3, 32, 32, device="cuda")
            with stream.capture(
                model.module, reading.taps[name], lambda *what, name=name: reading.reduce(name, *what)
            ) as run:
                seen[name] = {
                    layer: kept[""] for layer, kept in stream._look(reading, name, run, pixels, []).items()
                }
        return seen


def tensors(kept) -> list[torch.Tensor]:
    """All of them, however they are put together."""
    if isinstance(kept, torch.Tensor):
        return [kept]
    return [one for part in kept for one in tensors(part)] if isinstance(kept, tuple | list) else []


PLANS = {
    "cka": lambda vit, cnn: cka.plan([vit, cnn], IMAGES),
    "controls": lambda vit, cnn: cka.plan_controls([vit, cnn], IMAGES),
    "attention_distance": lambda vit, _: attention_distance.plan([vit], IMAGES),
    "head_subsets": lambda vit, cnn: attention_distance.plan_subsets(vit, cnn, IMAGES),
    "localization": lambda vit, cnn: localization.plan([vit, cnn], IMAGES),
    "soft_nearest_neighbor": lambda vit, cnn: soft_nearest_neighbor.plan([vit, cnn], IMAGES),
    "skip": lambda vit, cnn: skip.plan([vit, cnn], IMAGES),
}


@pytest.mark.parametrize("name", PLANS)
def test_what_is_kept_is_made_on_the_device_and_nothing_waits_for_it(name, monkeypatch):
    monkeypatch.setattr(Branch, "is_sum", lambda *_: True)  # looked at once in a run
    seen = look(PLANS[name], late=name in ("attention_distance", "head_subsets"))
    kept = [tensor for own in seen.values() for one in own.values() for tensor in tensors(one)]
    assert kept
    assert all(tensor.device.type == "cuda" for tensor in kept)


def test_what_waits_would_be_seen():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.empty(3, device="cuda").sum().item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_cka_on_a_gpu_is_that_of_the_cpu(precision):
    tables = {}
    for device in ("cpu", "cuda"):
        both = [models.load(name, device=device) for name in ("lab/vit", "lab/resnet")]
        with torch.autocast(device, precision, enabled=precision != torch.float32 and device == "cuda"):
            tables[device] = cka.compare(both, Images(limit=640, batch=64))
    worst = (tables["cuda"]["cka"] - tables["cpu"]["cka"]).abs().max()
    assert worst < (1e-3 if precision == torch.float32 else 3e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", PLANS)
def test_every_table_of_a_gpu_is_that_of_the_cpu(name):
    tables = {}
    for device in ("cpu", "cuda"):
        both = [models.load(model, device=device) for model in ("lab/vit", "lab/resnet")]
        tables[device] = measure.table(PLANS[name](*both)).select_dtypes("number")
    torch.testing.assert_close(
        torch.from_numpy(tables["cuda"].to_numpy()),
        torch.from_numpy(tables["cpu"].to_numpy()),
        rtol=1e-3,
        atol=1e-3,
        equal_nan=True,
    )
