"""The whole study of `--cast paper`, or of another cast, with random weights at small size: no figure or verdict may fail.

    python benchmarks/cast.py                              # every figure, finding and the report, of 11 networks
    python benchmarks/cast.py --cast small --out runs/cast

The networks are those of the cast, made small by settings of their constructors: images of a few patches, few channels, few
blocks; the ResNets keep all of their units and read images of 96 px. Probes, lesions and receptive fields take fewer images.
Nothing is downloaded. It prints which figures were drawn and which verdicts were given; a fault ends it with its traceback.
Numbers of random weights mean nothing.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from torch import nn

from vit_analysis.images import Preprocessing
from vit_analysis.makers import of_timm
from vit_analysis.shell import figures, running
from vit_analysis.study import casts, plans
from vit_analysis.study.casts import Named
from vit_analysis.typed import Choice

BLOCKS = 4
SIDE = 96  # px of what a ResNet reads, which takes any size


def small(model: str, seed: int = 0) -> str:
    """The same network, untrained, of few channels and, but for a ResNet, on small images."""
    name = model.partition(",")[0]
    patch = 14 if "patch14" in name else 32 if "patch32" in name else 16
    if name.startswith("vit"):
        return f"{name},img_size={4 * patch},embed_dim=48,num_heads=12,depth={BLOCKS},num_classes=10@random:{seed}"
    if name.startswith("mixer"):
        return f"{name},img_size={4 * patch},num_classes=10@random:{seed}"
    if name.startswith("resnetv2"):
        return f"{name},channels=(128,128,128,128),stem_chs=32,num_classes=10@random:{seed}"
    return f"{name},num_classes=10@random:{seed}"


def less_to_read(usual: Callable[[nn.Module], Preprocessing]) -> Callable[[nn.Module], Preprocessing]:
    """The preprocessing that timm gives for a network, but smaller for one that takes images of any size."""

    def preprocessing(module: nn.Module) -> Preprocessing:
        own = usual(module)
        return replace(own, input_size=(3, SIDE, SIDE)) if own.input_size[1] == 224 else own

    return preprocessing


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cast", default="paper", choices=[*casts.CASTS])
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--out", type=Path, default=Path("runs/cast"))
    own = parser.parse_args()
    names = casts.CASTS[own.cast].parts.runs()
    parts = casts.CASTS[own.cast].parts.change(lambda name: small(name, names.index(name) + 1))
    plans.SHOTS, plans.SINGLE, plans.LESIONED, plans.FIELDS, plans.CHANNELS = 3, 3, 8, 8, 2
    of_timm.preprocessing = less_to_read(of_timm.preprocessing)
    running.speak(running.Manner())
    figures.main(
        cast=Named(own.cast),
        parts=parts,
        images=Choice(limit=own.images, batch=16),
        train=Choice(limit=4000, seed=1),
        out=own.out,
        note="These networks have random weights; nothing is learned from their numbers",
        device="cpu",
    )


if __name__ == "__main__":
    main()
