"""Trains the lab's models: `python -m vit_analysis.train lab/vit`.

AdamW, a linear warm-up and a cosine decay (timm's factories), gradients clipped at norm 1, bfloat16 where the processor has
it. The batch of a step follows from the step's number alone, not from the state of a generator, so a run that was killed goes
on from its last checkpoint and ends with the weights of an unbroken one, on a CPU bit for bit. The checkpoint's name
holds a digest of the settings, the initial weights, the code and the versions of its libraries: nothing else picks it up.
"""

if __name__ == "__main__":  # before anything heavy is imported
    from vit_analysis.shell import running

    running.begin("train")


import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from vit_analysis import command
from vit_analysis.images import UNSEEN, Images, Preprocessing, as_input
from vit_analysis.lab import scenes, zoo
from vit_analysis.loading import checkpoint, fitting
from vit_analysis.loading.conventions import renamed
from vit_analysis.models import digest
from vit_analysis.spelling import Refusal
from vit_analysis.table import code, versions, write_whole
from vit_analysis.typed import UNLIMITED

logger = logging.getLogger(__name__)

Batch = tuple[Float[Tensor, "image 3 row column"], Int[Tensor, " image"]]

TESTED = 10_000  # unseen scenes
HELD_OUT = 10  # every tenth image of a folder is kept for the test
INPUT = Preprocessing(input_size=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=1.0)
WEIGHT_DECAY = 0.05
WARM_UP = 100  # steps
HEADS = ("head.", "fc.")  # where the lab's models keep their classification head
CHECKPOINT_EVERY = 200  # steps
RUNS = Path("runs")


@runtime_checkable
class Data(Protocol):
    """Labelled images: a batch to learn from for each training step, by its number, and others for the test."""

    @property
    def images(self) -> Images:
        """The images, how many to a batch, and the seed of their order."""

    @property
    def target(self) -> str:
        """The meaning of the labels: ``shape`` or ``class``."""

    @property
    def classes(self) -> list[str]:
        """Names of the labels."""

    def batches(self, steps: range) -> Iterator[Batch]:
        """Yield the images and labels of each of these steps."""

    def unseen(self) -> Iterator[Batch]:
        """Yield images and labels that no step learns from."""


@dataclass(frozen=True)
class SceneData:
    """The lab's scenes, labelled with their shape: `images.limit` different ones, repeated as often as needed."""

    images: Images
    device: str = "cpu"
    target: ClassVar[str] = "shape"
    classes: ClassVar[list[str]] = list(scenes.SHAPES)

    def __post_init__(self) -> None:
        if self.images.seed >= UNSEEN:
            raise Refusal(f"scenes of seeds from {UNSEEN} on are kept for tests, got {self.images.seed}")

    def batches(self, steps: range) -> Iterator[Batch]:
        """Draw the scenes of each of these steps when they are needed."""
        for step in steps:
            numbers = order(step, self.images.limit or UNLIMITED, self.images.batch, self.images.seed)
            yield self.draw(numbers, self.images.seed)

    def unseen(self) -> Iterator[Batch]:
        """Draw scenes of the seed that analyses draw from, which no step learns from."""
        for numbers in torch.arange(TESTED).split(500):
            yield self.draw(numbers, UNSEEN)

    def draw(self, numbers: Int[Tensor, " image"], seed: int) -> Batch:
        """Draw scenes as a model's input, with their shapes as labels."""
        drawn = scenes.draw(numbers, seed=seed, size=INPUT.input_size[1], device=self.device)
        return as_input(drawn.image, INPUT), drawn.shape


class FileData:
    """Images from a folder, a tar or a data set of timm's, not augmented; every tenth is kept for the test."""

    target = "class"

    def __init__(self, images: Images, device: str = "cpu") -> None:
        self.images, self.device, self.classes = images, device, images.classes
        if not self.classes:
            raise Refusal(f"{images.source!r} has no classes to learn: it needs a folder for each")
        self.tested = images.order[::HELD_OUT]
        self.unreadable = set[str]()
        self.learned = [number for place, number in enumerate(images.order) if place % HELD_OUT]

    def batches(self, steps: range) -> Iterator[Batch]:
        """Yield the batch of each of these steps, which the workers decode ahead of the step.

        Raises:
            OSError: no image of a step can be read, or more than 1 % of all images cannot.
        """
        places = (order(step, len(self.learned), self.images.batch, self.images.seed) for step in steps)
        numbers = [[self.learned[place] for place in batch.tolist()] for batch in places]
        for batch in self.read(numbers):
            if batch is None:
                raise OSError(
                    f"no image of a batch of {self.images.batch} can be read, see above; choose larger batches"
                )
            yield batch

    def unseen(self) -> Iterator[Batch]:
        """Yield the images kept for the test."""
        numbers = [batch.tolist() for batch in torch.tensor(self.tested).split(self.images.batch)]
        return (batch for batch in self.read(numbers) if batch is not None)

    def read(self, numbers: list[list[int]]) -> Iterator[Batch | None]:
        """Yield batches of images by their number, as a model's input; None in place of one of which no image can be read.

        Raises:
            OSError: more than 1 % of all images cannot be read, or one where ``strict``.
        """
        for batch in self.images.made(numbers, (INPUT,)):
            new = [name for name in dict.fromkeys(batch.unreadable) if name not in self.unreadable]
            self.unreadable.update(new)
            if new:
                self.images.refuse_unreadable(new, len(self.unreadable))
            if batch.images:
                yield batch.on(torch.device(self.device), 0), batch.labels.to(self.device)
            else:
                yield None


def order(step: int, distinct: int, batch: int, seed: int) -> Int[Tensor, " image"]:
    """Return which of the distinct images a step learns from: steps take all in one order, then all in another, and so on."""
    places = torch.arange(step * batch, (step + 1) * batch)
    if places[-1] < distinct and distinct >= UNLIMITED:
        return places
    parts = []
    for turn in (places // distinct).unique().tolist():
        shuffled = torch.randperm(distinct, generator=torch.Generator().manual_seed(1_000_003 * seed + turn))
        parts.append(shuffled[places[places // distinct == turn] % distinct])
    return torch.cat(parts)


def provenance(data: Data) -> dict[str, Any]:
    """Return what is needed to have the same images again, but not the path where they lay."""
    images = data.images
    distinct = images.limit if images.limit and images.limit < UNLIMITED else None
    return {
        "source": Path(images.source).name,
        "distinct": distinct,
        "seed": images.seed,
        "batch": images.batch,
    }


@dataclass(frozen=True)
class Plan:
    """The number of training steps, the learning rate, the seed of the weights and the device to train on."""

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
    """Train on one batch; returns its loss."""
    images, labels = batch
    with torch.autocast(images.device.type, torch.bfloat16, enabled=has_bfloat16(images.device)):
        logits = model(images)
    loss = F.cross_entropy(logits.float(), labels)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def report(bar: Any, step: int, loss: Float[Tensor, ""], plan: Plan) -> None:
    """Show the loss; only for some steps, because reading it waits for the device.

    Raises:
        Refusal: the loss is not finite.
    """
    if not loss.isfinite():
        raise Refusal(
            f"the loss is {loss.item()} at step {step}: lower the learning rate, now {plan.learning_rate:g}"
        )
    bar.set_postfix(loss=f"{loss.item():.3f}")
    logger.debug("step %d of %d: loss %.3f", step, plan.steps, loss.item())


def has_bfloat16(device: torch.device) -> bool:
    """Return whether bfloat16 is faster: on a CPU that multiplies it a step of lab/resnet takes 1/2.3 of float32's time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict[str, Any])()  # not before torch 2.7
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16", False))


def fuse(model: nn.Module, fused: bool) -> None:
    """Switch fused attention on or off: on a CPU a step of lab/vit in bfloat16 is 2.6 times as fast without (torch 2.15)."""
    attentions: list[Any] = [module for module in model.modules() if hasattr(module, "fused_attn")]
    for attention in attentions:
        attention.fused_attn = fused


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterator[Batch]) -> tuple[float, int]:
    """Share of the images that the model classifies correctly, and the number of images."""
    right = torch.cat([model(images).argmax(dim=1) == labels for images, labels in batches])
    return right.float().mean().item(), len(right)


def save(path: Path, parts: Mapping[str, Any], step: int) -> None:
    """Save everything that decides the steps from this one on."""
    state = {name: part.state_dict() for name, part in parts.items()}
    state |= {"step": step, "random": torch.get_rng_state()}
    write_whole(path, lambda file: torch.save(state, file))


def resume(path: Path, parts: Mapping[str, Any]) -> int:
    """Load what `save` wrote into ``parts``; returns the step to go on with."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    torch.set_rng_state(state["random"])
    logger.info("going on from step %d of %s", state["step"], path)
    return state["step"]


def train(
    recipe: zoo.Recipe,
    data: Data,
    plan: Plan,
    out: Path,
    init: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Train the model of a recipe and write its weights to ``out``; where the same call was stopped, it goes on.

    Weights that are at ``out`` in the end stay, unless ``overwrite``; the new ones then lie beside, as NAME.1.safetensors ...
    """
    torch.manual_seed(plan.seed)
    model = zoo.build(recipe.architecture, recipe.config)
    if init is not None:
        start_from(model, init)
    images = asdict(data.images) | data.images.contents()
    settings = {"recipe": asdict(recipe), "plan": asdict(plan), "images": images, "start": digest(model)}
    settings |= {"code": code(), "versions": versions()}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]
    checkpoint = checkpoint_beside(out, key)
    fit(model, data, plan, checkpoint)
    ship(model, recipe, data, plan, out, overwrite)
    checkpoint.unlink(missing_ok=True)


def checkpoint_beside(out: Path, key: str) -> Path:
    """Return where a run leaves what it goes on from after a kill."""
    return out.with_name(f"{out.stem}.{key}.checkpoint")


def place(name: str, out: Path | None, seed: int | None, *, ship: bool) -> Path:
    """Return where the weights go: where the user says, or under runs/; into the package only if that is asked for.

    Raises:
        Refusal: two places are asked for.
    """
    if ship and out:
        raise Refusal(f"--ship writes to the lab's own file of {name}, and --out to another; say one of them")
    if ship or out:
        return out or zoo.home(name)
    run = f"{name.removeprefix(zoo.PREFIX).replace(':', '.seed')}" + (f".seed{seed}" if seed else "")
    return RUNS / f"{run}.safetensors"


def data(images: Images, device: str) -> Data:
    """What a model learns from: the lab's scenes, or files.

    Raises:
        Refusal: they have no classes, or none is left to learn from.
    """
    if images.endless:
        return SceneData(images, device)
    found = FileData(images, device)
    if not found.learned:
        raise Refusal(
            f"{images.source!r} has no image to learn from: one of {HELD_OUT}, the first too, is kept for the test, and "
            f"of {len(found.tested)} none is left; raise --images.limit or choose other images"
        )
    return found


def start_from(model: nn.Module, init: Path) -> None:
    """Load the weights that training starts from; a head for another number of classes is left untrained.

    Raises:
        Refusal: any other weights do not fit.
    """
    own, given = model.state_dict(), renamed(checkpoint.read(init).tensors, model).tensors
    other = [
        name
        for name in own
        if name in given and name.startswith(HEADS) and given[name].shape != own[name].shape
    ]
    if other:
        logger.info("%s tells %d other classes: its head is not taken", init, len(given[other[0]]))
    fitting.fit(model, given | {name: own[name] for name in other}, str(init))


def ship(
    model: nn.Module, recipe: zoo.Recipe, data: Data, plan: Plan, out: Path, overwrite: bool = False
) -> None:
    """Round the weights to half precision, test them on images never seen, and write them with the accuracy.

    Beside ``out`` as NAME.1.safetensors, 2 ..., if something is there by now; ``overwrite`` replaces it.
    """
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
        "versions": json.dumps(versions()),
    }
    weights = {name: tensor.cpu().contiguous() for name, tensor in halves.items()}
    if out.exists() and not overwrite:
        taken, out = out, command.free(out)
        logger.warning("%s appeared during the training and stays as it is; writing %s", taken, out)
    write_whole(out, lambda file: save_file(weights, file, metadata=facts))
