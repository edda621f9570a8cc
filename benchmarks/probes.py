"""Probes of every single token of every layer: CPU seconds of learning and judging, and memory beyond the model.

    python benchmarks/probes.py vit_tiny_patch16_224@vit.safetensors --train imagenette/train --images imagenette/val

The share of the examples' activations that is held at a time is `portions.ROOM`; with less room the examples go through the
model more often: --room 2e8. Extra memory is the peak over what stood before learning; see `alternating`.
"""

import argparse
import ctypes
import time
from dataclasses import replace
from pathlib import Path

import alternating

from vit_analysis.shell import running


def main() -> None:
    """Measure once, and print a row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--train", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--judged", type=int, default=256)
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--room", type=float)
    parser.add_argument("--out", type=Path, help="where the table is written, to compare it with another")
    arguments = parser.parse_args()
    running.keep_memory()
    from vit_analysis import models, probe, table
    from vit_analysis.images import Images
    from vit_analysis.reading import portions

    portions.ROOM = int(arguments.room or portions.ROOM)
    shots = probe.Shots(Images(source=arguments.train, limit=10**6), arguments.shots, arguments.draws)
    images = Images(source=arguments.images, limit=arguments.judged, batch=32)
    model = models.load(arguments.model, device="cpu")
    plan = probe.plan(model, images, shots, tokens=[*probe.AGGREGATES, probe.EACH])
    ctypes.CDLL(None).malloc_trim(0)
    before = alternating.memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start = time.process_time()
    plan.prepare()
    learnt, most = time.process_time(), alternating.memory("VmHWM")
    made = replace(plan, prepare=lambda: None).table()
    judged = time.process_time()
    print("| probes | learning s | judging s | extra MB, learning | extra MB, all |\n|--:|--:|--:|--:|--:|")
    extra = most - before, alternating.memory("VmHWM") - before
    print(f"| {len(made)} | {learnt - start:.1f} | {judged - learnt:.1f} | {extra[0]:.0f} | {extra[1]:.0f} |")
    if arguments.out:
        table.write(made, arguments.out)


if __name__ == "__main__":
    main()
