"""Fine-tune a model on a folder of images: what figure G.1 compares with the model as it was.

    python benchmarks/tune.py vit_tiny_patch16_224@FILE --train imagenette/train --out tuned.safetensors
    python -m vit_analysis.figures --vit vit_tiny_patch16_224@FILE --tuned vit_tiny_patch16_224@tuned.safetensors ...

A new head for the folder's classes, all weights trained with AdamW, cosine learning rate with one tenth of the steps to warm
up, images mirrored at random. On one CPU core 1,000 images take a ViT-Ti/16 about two minutes each time.
"""

import logging
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from vit_analysis import models
from vit_analysis.images import Images
from vit_analysis.shell import running

logger = logging.getLogger(__name__)


def tune(module: nn.Module, images: Images, preprocessing, epochs: int, rate: float, seed: int) -> None:
    """Train all weights of a model on images in another order each time."""
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.05)
    generator = np.random.default_rng(seed)
    steps = epochs * (len(images.order) // images.batch)
    step = 0
    for epoch in range(epochs):
        order = generator.permutation(images.order).tolist()
        for batch in images.only(order, batch=images.batch).read([preprocessing]):
            if step == steps or len(batch.labels) < images.batch:
                continue
            warm = min(1.0, (step + 1) / (0.1 * steps))
            for group in optimizer.param_groups:
                group["lr"] = rate * warm * (1 + math.cos(math.pi * step / steps)) / 2
            mirrored = torch.from_numpy(generator.random(len(batch.labels)) < 0.5)
            pixels = torch.where(mirrored[:, None, None, None], batch.inputs[0].flip(3), batch.inputs[0])
            loss = functional.cross_entropy(module(pixels), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            step += 1
        logger.info("epoch %d of %d: loss %.3f", epoch + 1, epochs, loss.item())


def accuracy(module: nn.Module, images: Images, preprocessing) -> float:
    """Share of images whose class is told."""
    right = count = 0
    with torch.inference_mode():
        for batch in images.read([preprocessing]):
            right += int((module(batch.inputs[0]).argmax(1) == batch.labels).sum())
            count += len(batch.labels)
    return right / count


def main(
    model: str,
    /,
    *,
    train: str,
    test: str | None = None,
    out: Path = Path("tuned.safetensors"),
    epochs: int = 3,
    rate: float = 1e-4,
    batch: int = 32,
    seed: int = 0,
) -> None:
    """Fine-tune MODEL on the images of a folder with one folder per class.

    Args:
        model: NAME[@WEIGHTS].
        train: folder of the images to learn from.
        test: folder of images to tell the accuracy on.
        out: file of the weights.
        epochs: how often every image is seen.
        rate: largest learning rate.
        batch: images per step.
        seed: of the head's weights and of the order of images.
    """
    if out.exists():
        raise SystemExit(f"{out} exists")
    loaded = models.load(model, device="cpu")
    images = Images(source=train, limit=None, batch=batch)
    classes = len(set(images.truth(images.order)[next(iter(images.targets))].tolist()))
    torch.manual_seed(seed)
    module = loaded.module.requires_grad_(True)
    module.reset_classifier(classes)
    module.train()
    tune(module, images, loaded.preprocessing, epochs, rate, seed)
    module.eval()
    if test is not None:
        found = accuracy(module, Images(source=test, limit=None, batch=batch), loaded.preprocessing)
        logger.info("%.1f %% right on %s", 100 * found, test)
    save_file(module.state_dict(), out)
    logger.info("wrote %s", out)


if __name__ == "__main__":
    running.run(main)
