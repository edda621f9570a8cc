"""Sources of images: images a second and memory of the same images in a folder, a tar, shards and parquet files.

    python benchmarks/sources.py
    python benchmarks/sources.py --images 500 --rounds 1 --entries 1000 5000

Speed is wall-clock time of reading alone (decode, resize, crop and normalise for one model), in random order as every analysis
reads, with no and with one worker process, the best of some rounds. Memory is how much the peak of a process of its own grows
between an index of the smaller and of the larger number of entries, with labels and the digest for its key; one small image is
repeated, so that nothing but the index grows.
"""

import io
import multiprocessing
import re
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from PIL import Image

from vit_analysis.images import Images, Preprocessing

CLASSES = 10
IN_A_SHARD = 500
IN_A_GROUP = 100  # rows, as the library datasets writes them
SMALL = Preprocessing(input_size=(3, 64, 64))

Make = Callable[[Path, int, Callable[[int], bytes]], str]


def main(
    *, images: int = 2000, side: int = 128, rounds: int = 3, entries: tuple[int, int] = (10_000, 100_000)
) -> None:
    """Measure and print a Markdown table.

    Args:
        images: how many for the speed.
        side: their width and height in pixels.
        rounds: the best of so many is told.
        entries: how many for the memory, fewer and more.
    """
    print(f"{images} JPEGs of {side} x {side} pixels; {entries[0]:,} and {entries[1]:,} entries\n")
    print(
        "| | images/s, no worker | images/s, one worker | opened in | index, bytes per image |\n|---|--:|--:|--:|--:|"
    )
    with tempfile.TemporaryDirectory() as root:
        places = {name: Path(root) / name for name in KINDS}
        for place in places.values():
            place.mkdir()
        made = {name: make(places[name], images, jpegs(side)) for name, make in KINDS.items()}
        rates = {workers: rates_of(made, workers, rounds) for workers in (0, 1)}
        opened = {name: seconds(lambda own=own: Images(own).facts()) for name, own in made.items()}
    for name, make in KINDS.items():
        few, many = (peak(make, count) for count in entries)
        each = (many - few) / (entries[1] - entries[0])
        speeds = " | ".join(f"{rates[workers][name]:.0f}" for workers in rates)
        print(f"| {name} | {speeds} | {opened[name] * 1e3:.0f} ms | {each:.0f} |", flush=True)


def jpegs(side: int) -> Callable[[int], bytes]:
    """Different images, each as smooth as a photograph is."""

    def made(number: int) -> bytes:
        coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
        return file.getvalue()

    return made


def rates_of(sources: Mapping[str, str], workers: int, rounds: int) -> dict[str, float]:
    """Images a second of each source, the best of some rounds, in which they take turns: a machine is not always as fast."""
    best = dict.fromkeys(sources, 0.0)
    for _ in range(rounds):
        for name, source in sources.items():
            images = Images(source, limit=None, workers=workers)
            read = seconds(lambda images=images: sum(len(batch.images) for batch in images.read([SMALL])))
            best[name] = max(best[name], len(images.order) / read)
    return best


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock time."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak(make: Make, count: int) -> int:
    """The largest memory, in bytes, of a process that opens a source of so many entries."""
    one = jpegs(8)(0)
    with tempfile.TemporaryDirectory() as place, multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(opened_in, (make(Path(place), count, lambda _: one),))


def opened_in(source: str) -> int:
    """Open a source as an analysis does before its first batch, read one image, and return this process' largest memory."""
    images = Images(source, limit=64, workers=0)
    forget_peak()
    assert images.facts()
    assert images.targets
    next(images.read([SMALL]))
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status)[1])


def forget_peak() -> None:
    """Let the largest memory be that from now on: importing takes more for a moment. Linux only."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def folder(place: Path, count: int, image: Callable[[int], bytes]) -> str:
    """A folder for each class."""
    for number in range(count):
        path = place / f"{number % CLASSES}" / f"{number:08d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image(number))
    return str(place)


def one_tar(place: Path, count: int, image: Callable[[int], bytes]) -> str:
    """One tar with a folder for each class."""
    packed(
        place / "all.tar",
        [(f"{number % CLASSES}/{number:08d}.jpg", image(number)) for number in range(count)],
    )
    return str(place / "all.tar")


def tars(place: Path, count: int, image: Callable[[int], bytes]) -> str:
    """WebDataset's shards, with the class beside each image."""
    for shard in shards(count):
        own = [
            (f"{number:08d}.{kind}", data)
            for number in shard
            for kind, data in (("jpg", image(number)), ("cls", b"%d" % (number % CLASSES)))
        ]
        packed(place / f"train-{shard.start // IN_A_SHARD:06d}.tar", own)
    return str(place)


def parquets(place: Path, count: int, image: Callable[[int], bytes]) -> str:
    """Parquet files as the Hugging Face hub stores them."""
    for shard in shards(count):
        rows = {
            "image": [{"bytes": image(number), "path": f"{number:08d}.jpg"} for number in shard],
            "label": [number % CLASSES for number in shard],
        }
        name = place / f"train-{shard.start // IN_A_SHARD:06d}.parquet"
        pq.write_table(pa.table(rows), name, row_group_size=IN_A_GROUP)
    return str(place)


def shards(count: int) -> Iterator[range]:
    """The numbers of the images in each shard."""
    for start in range(0, count, IN_A_SHARD):
        yield range(start, min(start + IN_A_SHARD, count))


def packed(path: Path, files: list[tuple[str, bytes]]) -> None:
    """Write a tar."""
    with tarfile.open(path, "w") as made:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))


KINDS: dict[str, Make] = {"folder": folder, "tar": one_tar, "shards": tars, "parquet": parquets}

if __name__ == "__main__":
    tyro.cli(main)
