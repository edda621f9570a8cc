"""The whole study of `--cast paper`, or of another cast, with random weights at small size: no figure or verdict may fail.

    python benchmarks/cast.py                              # every figure, finding and the report, of 11 networks
    python benchmarks/cast.py --cast small --out runs/cast

The networks are those of the cast, made small by settings of their constructors: images of a few patches, few channels, few
blocks; the ResNets keep all of their units. Probes, lesions and receptive fields take fewer images. Nothing is downloaded. It
prints which figures were drawn and which verdicts were given; a fault ends it with its traceback. Numbers of random weights
mean nothing.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from vit_analysis.shell import figures, running
from vit_analysis.study import casts, passes
from vit_analysis.study.casts import Named
from vit_analysis.typed import Choice

BLOCKS = 4


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


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cast", default="paper", choices=[*casts.CASTS])
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--out", type=Path, default=Path("runs/cast"))
    own = parser.parse_args()
    names = casts.CASTS[own.cast].parts.runs()
    parts = casts.CASTS[own.cast].parts.change(lambda name: small(name, names.index(name) + 1))
    passes.SHOTS, passes.SINGLE, passes.LESIONED, passes.FIELDS = 4, 4, 40, 8
    running.speak(running.Manner())
    figures.main(
        cast=Named(own.cast),
        parts=parts,
        images=Choice(limit=own.images, batch=32),
        train=Choice(limit=4000, seed=1),
        out=own.out,
        note="These networks have random weights; nothing is learned from their numbers",
        device="cpu",
    )


if __name__ == "__main__":
    main()
