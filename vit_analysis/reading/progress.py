"""How far a pass over the images is: a bar with a name in a terminal or notebook, elsewhere a line of the log now and then."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm.auto import tqdm

from vit_analysis.reading import processes

Item = TypeVar("Item")

logger = logging.getLogger(__name__)

EVERY = 60.0  # seconds between two lines of the log


class Lines:
    """Lines of the log about a pass: at its start, at least once a minute of work, and at its end.

    Args:
        title: what is done, as in "pass 2 of 5: lesions of lab/vit".
        total: images of the pass.
        done: images that an earlier run has done.
        clock: the time in seconds.
    """

    def __init__(
        self, title: str, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.title, self.total, self.before, self.done, self.clock = title, total, done, done, clock
        self.start = self.last = clock()
        logger.info("%s: %s", title, f"{total} images" + (f", {done} of them done before" if done else ""))

    def update(self, images: int) -> None:
        """Count images that are done; say so where the last line is a minute old."""
        self.done += images
        now = self.clock()
        if now - self.last >= EVERY and self.done < self.total:
            rate = (self.done - self.before) / (now - self.start)
            left = (self.total - self.done) / rate
            self.last = now
            logger.info(
                "%s: %d of %d images, %s, %s left",
                self.title,
                self.done,
                self.total,
                _rate(rate),
                _span(left),
            )

    def still(self, what: str) -> None:
        """Say what is done inside of a batch, where the last line is a minute old."""
        if self.clock() - self.last >= EVERY:
            self.last = self.clock()
            logger.info("%s: %d of %d images; %s", self.title, self.done, self.total, what)

    def end(self) -> None:
        """Say what it took."""
        took = self.clock() - self.start
        rate = _rate((self.done - self.before) / took) if took > 0 else "at once"
        logger.info("%s: done, %d images in %s, %s", self.title, self.done, _span(took), rate)


NOW: list[Lines] = []
"""The pass that is under way, if there is one that lines are written of."""


@contextmanager
def told(title: str, total: int, done: int = 0) -> Iterator[Callable[[int], object]]:
    """Tell how far a pass is: yields the function to be called with the number of images that were just done.

    Only the first of several processes tells, and of its own images.

    Args:
        title: what is done.
        total: images of this process.
        done: images that an earlier run has done.
    """
    if processes.rank_and_size()[0]:
        yield lambda images: None  # noqa: ARG005
    elif shows_bars():
        with tqdm(total=total, initial=done, desc=title, unit=" images") as bar:
            yield bar.update
    else:
        NOW.append(Lines(title, total, done))
        try:
            yield NOW[-1].update
            NOW[-1].end()
        finally:
            NOW.pop()


def within(items: Iterable[Item], title: str) -> Iterator[Item]:
    """Yield items of work inside a pass, with a bar in a terminal, and elsewhere a line where the last one is a minute old."""
    if processes.rank_and_size()[0]:
        yield from items
    elif shows_bars():
        yield from tqdm(items, desc=title, unit="", leave=False)
    else:
        own = list(items)
        for number, item in enumerate(own):
            yield item
            if NOW:
                NOW[-1].still(f"{title}: {number + 1} of {len(own)}")


def shows_bars() -> bool:
    """Return whether somebody sees a bar move: in a terminal, unless a command was asked to be quiet."""
    return sys.stderr.isatty() and logging.getLogger("vit_analysis").level <= logging.INFO


def _rate(images: float) -> str:
    """Images per second, or seconds per image where they are few."""
    return f"{images:.3g} images/s" if images >= 1 or images == 0 else f"{1 / images:.3g} s per image"


def _span(seconds: float) -> str:
    """A time in words: 40 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours = whole // 60, whole // 3600
    return f"{minutes} min {whole % 60} s" if not hours else f"{hours} h {minutes % 60} min"
