"""What bfloat16 saves, and what it costs: CKA of all pairs with the models under autocast, against float32.

    python benchmarks/half_precision.py vit_tiny_patch16_224@FILE resnet50.tv_in1k@FILE --images.source FOLDER

Gram matrices are float32 either way. Printed are the CPU seconds (the wall clock on a GPU), and how far CKA is from that of
float32, beside half the width of its 95 % intervals.
"""

import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import tyro

from vit_analysis import cka
from vit_analysis.images import Images
from vit_analysis.models import load_all
from vit_analysis.shell.running import keep_memory


def main(
    models: tuple[str, ...] = ("lab/vit", "lab/resnet"),
    /,
    *,
    images: Images = Images(limit=160, batch=32),  # noqa: B008  (frozen)
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Measure and print.

    Args:
        models: which.
        images: which.
        device: cpu or cuda.
    """
    keep_memory()
    loaded = load_all(models, device=device)
    clock = time.process_time if device == "cpu" else time.perf_counter
    tables, seconds = [], []
    for half in (False, True):
        start = clock()
        with torch.autocast(device, torch.bfloat16, enabled=half):
            tables.append(cka.measure(loaded, images))
        seconds.append(clock() - start)
    whole, half = (table["cka"] for table in tables)
    apart = (half - whole).abs()
    interval = (tables[0]["high"] - tables[0]["low"]) / 2
    print(
        f"{seconds[0]:.1f} s in float32, {seconds[1]:.1f} s in bfloat16, {seconds[1] / seconds[0]:.2f} of it"
    )
    print(
        f"CKA apart by {apart.median():.4f} (median), {apart.max():.4f} (most); intervals are +- {interval.median():.3f}"
    )


if __name__ == "__main__":
    tyro.cli(main)
