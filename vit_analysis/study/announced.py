"""What is said of a cast before anything is loaded: whom its models stand for, how much is downloaded, how long it takes.

The time is that of forward and backward passes alone: floating-point operations, counted once for every model, by the rate at
which this machine does those of a small Vision Transformer now. Reading images, similarities and solving probes come on top,
convolutions of few channels are slower than that rate and large products faster, so it is right to a factor of two or three.
"""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields

import torch

from vit_analysis import models
from vit_analysis.makers import of_timm
from vit_analysis.reading import briefing
from vit_analysis.study import casts, plans
from vit_analysis.study.casts import Casting, Member
from vit_analysis.study.parts import Parts
from vit_analysis.typed import Choice

logger = logging.getLogger(__name__)

YARDSTICK, ITS_GFLOP, ITS_BATCH = "vit_small_patch16_224@random", 9.2, 8
CLASSES = 1000  # that probes learn to tell apart: ImageNet's
ALL = 50_000  # images where no limit is said: ImageNet's validation set
LESION = 0.55  # of a forward pass: what a block later is run anew
FIELD = 0.5  # of a forward pass: the mean way back from a layer to the image, weights left out
PROBED = ("vit", "gap", "less_data", "cnn", "cnn_less_data")
DRAWS, DRAWS_BY_TOKEN = 6, 4  # of examples for probes, with the one that chooses penalties
SUBLAYERS = {"vit": 2, "cnn": 1}  # maps of the receptive field that are drawn of every block


@dataclass(frozen=True)
class Asked:
    """What is asked of a cast.

    Attributes:
        parts: the models, the user's own among them.
        images: the images that all is measured on.
        train: the images that probes learn from.
        wanted: names of the tables that are measured; None is all.
    """

    parts: Parts
    images: Choice
    train: Choice
    wanted: Collection[str] | None = None

    def of(self, *tables: str) -> bool:
        """Return whether one of these tables is measured."""
        return self.wanted is None or bool({*tables} & {*self.wanted})


def say(cast: Casting, asked: Asked, device: str | None) -> None:
    """Say it in the log, if it is a cast of public models."""
    if cast.members and logger.isEnabledFor(logging.INFO):
        logger.info("%s", "\n".join(lines(cast, asked, measured(device))))


def lines(cast: Casting, asked: Asked, rate: float) -> list[str]:
    """The lines of it, at so many floating-point operations in a second (in units of 10^9); see `say`."""
    parts = asked.parts
    known = casts.members(parts.names())
    played = [part.name for part in fields(parts) if parts.names(part.name)]
    told = [f"{name} for {one.paper}. Here: {one.instead}" for name, one in known.items()]
    own = [name for name in parts.names() if name not in known]
    absent = casts.absent(known, played)
    hours = sum(work(asked).values()) / rate / 3600
    return [
        *briefing.listed("cast", [f"{cast.name}, {cast.what}", *told]),
        *(briefing.listed("yours", [", ".join(own), *_relatives(cast, parts)]) if own else []),
        *(briefing.listed("nobody", [f"{part}: {why}" for part, why in absent.items()]) if absent else []),
        *briefing.listed("fetch", [download(known)]),
        *briefing.listed("time", [_time(hours, rate, own)]),
        *(briefing.listed("note", [SCENES]) if asked.images.endless else []),
    ]


SCENES = "these models learned from photographs, and the images are the lab's drawings: say --images.source and --train.source"


def _relatives(cast: Casting, parts: Parts) -> list[str]:
    """Say which models of the cast are still trained like its first Vision Transformer, where the user has another."""
    if parts.names("vit")[:1] == cast.parts.names("vit")[:1]:
        return []
    kin = cast.parts.names("gap", "less_data", "other_seed", "tuned")
    still = [name for name in kin if name in parts.names("gap", "less_data", "other_seed", "tuned")]
    first = cast.parts.names("vit")[0]
    return [f"{', '.join(still)}: still chosen beside {first}; name your own"] if still else []


def download(known: Mapping[str, Member]) -> str:
    """How much is downloaded, as far as that is known without asking a network."""
    size = sum(one.megabytes for one in known.values())
    missing = sum(one.megabytes for name, one in known.items() if not of_timm.cached(name))
    several = "" if len(known) == 1 else "s"
    count = f"{len(known)} checkpoint{several} of {size / 1000:.2g} GB ({casts.BYTES} bytes a parameter)"
    return (
        f"{missing / 1000:.2g} GB; {count}, of which the rest lies in the cache of the hub"
        if missing < size
        else count
    )


def work(asked: Asked) -> dict[str, float]:
    """Floating-point operations of a study by model, in units of 10^9; nothing of models that are in no cast."""
    parts = asked.parts
    count = ALL if asked.images.limit is None else asked.images.limit
    main, first = parts.names("vit", "cnn"), [*parts.names("vit")[:1], *parts.names("cnn")[:1]]
    probed, by_token = parts.names(*PROBED), parts.names("vit", "gap", "cnn")
    shots = 0 if asked.train.endless else CLASSES * plans.FEW
    draws, draws_by_token = DRAWS * asked.of("probe"), DRAWS_BY_TOKEN * asked.of("probe_tokens")
    lesioned = plans.LESIONED * asked.of("lesions")
    drawn = plans.FIELDS * asked.of("receptive_field", "receptive_field_maps")
    done = {}
    for name, one in casts.members(parts.names()).items():
        steps = SUBLAYERS["vit" if name in parts.names("vit") else "cnn"] * one.blocks
        maps = drawn * (1 + FIELD * plans.CHANNELS * steps)
        runs = float(count) + shots * (draws * (name in probed) + draws_by_token * (name in by_token))
        runs += lesioned * (1 + LESION * one.blocks) + maps if name in main else 0
        runs += count + maps if name in first else 0  # its untrained twin
        done[name] = one.gflop * runs
    return done


def measured(device: str | None) -> float:
    """Floating-point operations in a second, in units of 10^9, of a small Vision Transformer on this machine now."""
    model = models.load(YARDSTICK, device=device)
    pixels = torch.zeros(ITS_BATCH, 3, 224, 224, device=model.device)
    with torch.inference_mode():
        model.module(pixels)  # the first is slower
        start = time.perf_counter()
        model.module(pixels).sum().item()  # waits for a GPU
    return ITS_GFLOP * ITS_BATCH / (time.perf_counter() - start)


def _time(hours: float, rate: float, own: Sequence[str]) -> str:
    number = f"{hours:.2g}"
    told = f"{number} hour{'s' * (number != '1')}" if hours >= 1 else f"{max(1, round(60 * hours))} min"
    without = f", without {', '.join(own)}" if own else ""
    return (
        f"about {told}, right to a factor of 2 or 3{without}: the passes of these models at {rate:.0f} GFLOP/s, measured now "
        f"on a batch of {YARDSTICK}; reading images and solving probes come on top, tables that are kept take nothing"
    )
