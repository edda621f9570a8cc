"""Trains the lab's models: `python -m vit_analysis.train lab/vit`.

AdamW, a linear warm-up and a cosine (timm's factories), gradients clipped at norm 1, bfloat16 where the processor has
it. The batch of a step follows from the step's number, not from a stream with a history, so a run that was killed goes
on from its last checkpoint and ends with the weights of an unbroken one, on a CPU bit for bit. The checkpoint's name
holds a digest of the settings: no other command picks it up.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from vit_analysis import command, models
from vit_analysis.images import LAB, Images
from vit_analysis.lab import zoo
from vit_analysis.labelled import INPUT, UNLIMITED, Batch, Data, Files, Scenes, provenance
from vit_analysis.table import VERSIONS, write_whole

logger = logging.getLogger(__name__)

WEIGHT_DECAY = 0.05
WARM_UP = 100  # steps
HEADS = ("head.", "fc.")  # of the lab's models
CHECKPOINT_EVERY = 200  # steps


@dataclass(frozen=True)
class Plan:
    """How long, how fast and where to train, and the seed of the weights."""

    steps: int
    learning_rate: float = 1e-3
    seed: int = 0
    device: str = "cpu"


def fit(model: nn.Module, data: Data, plan: Plan, checkpoint: Path | None = None) -> None:
    """Trains the model in place, and goes on from the checkpoint if there is one."""
    model.train().to(plan.device).to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=plan.learning_rate, weight_decay=WEIGHT_DECAY)
    warm_up = min(WARM_UP, plan.steps // 10)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        num_epochs=plan.steps,
        warmup_epochs=warm_up,
        warmup_lr=plan.learning_rate / WARM_UP,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    start = resume(checkpoint, parts) if checkpoint is not None and checkpoint.exists() else 0
    bar = tqdm(total=plan.steps, initial=start, unit="step", disable=None)
    fuse(model, plan.device != "cpu")
    for step, batch in enumerate(data.batches(range(start, plan.steps)), start):
        scheduler.step_update(step)
        loss = learn(model, optimizer, batch)
        if step % 50 == 0:
            report(bar, step, loss, plan)
        if checkpoint is not None and (step + 1) % CHECKPOINT_EVERY == 0:
            save(checkpoint, parts, step + 1)
        bar.update()
    bar.close()
    fuse(model, True)
    model.eval()


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> Float[Tensor, ""]:
    """One step; returns its loss."""
    images, labels = batch
    with torch.autocast(images.device.type, torch.bfloat16, enabled=has_bfloat16(images.device)):
        logits = model(images)
    loss = F.cross_entropy(logits.float(), labels)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def report(bar: "tqdm[Any]", step: int, loss: Float[Tensor, ""], plan: Plan) -> None:
    """Shows the loss, now and then because it waits for the device.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    if not loss.isfinite():
        raise FloatingPointError(
            f"the loss is {loss.item()} at step {step}: lower the learning rate, now {plan.learning_rate:g}"
        )
    bar.set_postfix(loss=f"{loss.item():.3f}")
    logger.debug("step %d of %d: loss %.3f", step, plan.steps, loss.item())


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 pays: on a CPU that multiplies it, a step of lab/resnet is 2.3 times as fast as in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def fuse(model: nn.Module, fused: bool) -> None:
    """Attention in one kernel or not: on a CPU a step of lab/vit in bfloat16 is 2.6 times as fast without (torch 2.15)."""
    attentions: list[Any] = [module for module in model.modules() if hasattr(module, "fused_attn")]
    for attention in attentions:
        attention.fused_attn = fused


@torch.inference_mode()
def accuracy(model: nn.Module, batches: Iterator[Batch]) -> tuple[float, int]:
    """Share of the images whose label the model finds, and their number."""
    right = torch.cat([model(images).argmax(dim=1) == labels for images, labels in batches])
    return right.float().mean().item(), len(right)


def save(path: Path, parts: Mapping[str, Any], step: int) -> None:
    """Everything that decides the steps from this one on."""
    state = {name: part.state_dict() for name, part in parts.items()}
    state |= {"step": step, "random": torch.get_rng_state()}
    write_whole(path, lambda file: torch.save(state, file))


def resume(path: Path, parts: Mapping[str, Any]) -> int:
    """Puts back what `save` wrote; returns the step to go on with."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    torch.set_rng_state(state["random"])
    logger.info("going on from step %d of %s", state["step"], path)
    return state["step"]


def train(recipe: zoo.Recipe, data: Data, plan: Plan, out: Path, init: Path | None = None) -> None:
    """From a recipe to a file of weights; where the same call was stopped, it goes on."""
    start = hashlib.sha256(init.read_bytes()).hexdigest() if init else None
    settings = {"recipe": asdict(recipe), "plan": asdict(plan), "images": asdict(data.images), "init": start}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]
    checkpoint = out.with_name(f"{out.stem}.{digest}.checkpoint")

    torch.manual_seed(plan.seed)
    model = zoo.build(recipe.architecture, recipe.config)
    if init is not None:
        start_from(model, init)
    fit(model, data, plan, checkpoint)
    ship(model, recipe, data, plan, out)
    checkpoint.unlink(missing_ok=True)


def start_from(model: nn.Module, init: Path) -> None:
    """Weights to go on from; a head of other classes stays as it is, untrained.

    Raises:
        ValueError: anything else does not fit.
    """
    own, given = model.state_dict(), models.read_checkpoint(init)
    other = [
        name
        for name in own
        if name in given and name.startswith(HEADS) and given[name].shape != own[name].shape
    ]
    if other:
        logger.info("%s tells %d other classes: its head is not taken", init, len(given[other[0]]))
    models.fit(model, given | {name: own[name] for name in other}, str(init))


def ship(model: nn.Module, recipe: zoo.Recipe, data: Data, plan: Plan, out: Path) -> None:
    """Rounds the weights to half precision, tests them on images never seen and writes both."""
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(halves)
    share, tested = accuracy(model, data.unseen())
    logger.info("%s: %.2f %% right on %d images never seen", out, 100 * share, tested)
    facts = {
        "architecture": recipe.architecture,
        "config": json.dumps(dict(recipe.config)),
        "input_size": json.dumps(INPUT.input_size),
        "mean": json.dumps(INPUT.mean),
        "std": json.dumps(INPUT.std),
        "classes": json.dumps(data.classes),
        "data": json.dumps(provenance(data)),
        "seed": str(plan.seed),
        "steps": str(plan.steps),
        "images_seen": str(plan.steps * data.images.batch),
        "learning_rate": str(plan.learning_rate),
        "accuracy": json.dumps({data.target: share, "images": tested}),
        "versions": json.dumps({name: version(name) for name in VERSIONS}),
    }
    weights = {name: tensor.cpu().contiguous() for name, tensor in halves.items()}
    write_whole(out, lambda file: save_file(weights, file, metadata=facts))


def main(
    name: str,
    /,
    *,
    images: Images = Images(limit=UNLIMITED),  # noqa: B008
    seen: int = 320_000,
    learning_rate: float = 1e-3,
    seed: int | None = None,
    init: Path | None = None,
    out: Path | None = None,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Train a lab model: on scenes, to tell their shapes, or on the classes of other images.

    Args:
        name: which model, such as lab/vit.
        images: what to learn from; their limit is the number of distinct images.
        seen: images to learn from, repetitions counted.
        learning_rate: the largest, after the warm-up.
        seed: of the weights; None is the model's own, 0 for most.
        init: weights to start from, such as the shipped ones; None starts from nothing.
        out: where the weights are written; None is where the lab's own lie.
        device: cpu or cuda.
    """
    if seen < 1:
        raise ValueError(f"--seen is at least 1 image, got {seen}")
    recipe, out = zoo.recipe(name), out or zoo.home(name)
    images = replace(images, limit=min(images.limit or UNLIMITED, recipe.distinct or UNLIMITED))
    if images.source != LAB and out == zoo.home(name):
        raise ValueError(f"--out FILE is needed: {name} learned from scenes, and would be overwritten")
    data = Scenes(images, device) if images.source == LAB else Files(images, device)
    recipe = replace(recipe, config={**recipe.config, "num_classes": len(data.classes)})
    train(
        recipe,
        data,
        Plan(-(-seen // images.batch), learning_rate, recipe.seed if seed is None else seed, device),
        out,
        init,
    )


if __name__ == "__main__":
    command.run(main)
