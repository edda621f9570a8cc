"""What a user asks for: ``[SOURCE/]NAME[,KEY=VALUE...][@WEIGHTS]``, taken apart once."""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_analysis.spelling import Refusal

RANDOM = "random"
HUBS = ("hf-hub:", "hf_hub:", "local-dir:")
SETTING = re.compile(r",(?=\s*\w+\s*=)")  # a comma inside a value, as in img_size=(224,448), ends nothing


@dataclass(frozen=True)
class Request:
    """A model name, taken apart.

    Attributes:
        base: the name before the @, settings included.
        name: SOURCE and NAME.
        settings: what goes to the constructor, by KEY.
        weights: a file; ``random`` for none, empty for the codebase's own trained weights.
        seed: random seed of weights that are not loaded.
    """

    base: str
    name: str
    settings: Mapping[str, Any]
    weights: str
    seed: int = 0

    @property
    def file(self) -> Path | None:
        """The file of weights, if one is asked for."""
        return path(self.weights) if self.weights and self.weights != RANDOM else None

    @classmethod
    def of(cls, name: str, seed: int = 0) -> "Request":
        """Take a model name apart.

        Raises:
            Refusal: nothing stands after the @, a setting is no KEY=VALUE or comes twice, or a seed is no number.
        """
        base, at, weights = name.rpartition("@")
        if at and not weights:
            raise Refusal(
                f"{name!r} names no weights after the @; give a checkpoint file, {RANDOM!r}, or no @"
            )
        untrained = re.fullmatch(rf"{RANDOM}(?::(.*))?", weights)
        if not at or (base.startswith(HUBS) and not untrained and not exists(path(weights))):
            base, weights = name, ""  # a hub name may carry a revision of its own
        if at and untrained:
            weights, seed = RANDOM, _seed(untrained[1], seed)
        first, *rest = SETTING.split(base)
        return cls(base, first.strip(), _settings(name, rest), weights, seed)

    def short(self, asked: str) -> str:
        """The name in tables and pictures: without folders and the file's ending, and without a file of the model's name."""
        _, slash, place = self.name.partition("/")
        if slash and exists(path(place)):  # a folder of transformers
            asked, base = (name.replace(place, Path(place).name) for name in (asked, self.base))
        else:
            base = self.base
        if not self.weights or self.weights == RANDOM:
            return asked
        file = Path(self.weights).stem
        return base if file == base else f"{base}@{file}"


def path(name: str) -> Path:
    """The path that a user wrote, with their home for ``~``."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # the home of an unknown user
        raise FileNotFoundError(f"no checkpoint {name!r}: {error}") from error


def exists(path: Path) -> bool:
    """Return whether something is there that may be looked at."""
    try:
        return path.exists()
    except OSError:  # too long, or in a folder that may not be looked into
        return False


def _seed(text: str | None, seed: int) -> int:
    if text is None:
        return seed
    if not (text.isascii() and text.isdigit()):
        raise Refusal(f"{RANDOM}:SEED takes a whole number, got {text!r}, as in {RANDOM}:3")
    return int(text)


def _settings(name: str, parts: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for part in parts:
        key, _, text = (piece.strip() for piece in part.partition("="))
        if key in settings:
            raise Refusal(f"{name!r} sets {key} twice")
        settings[key] = _value(text)
    return settings


def _value(text: str) -> Any:
    """A number, a tuple, True, False or None as Python writes them; anything else is a string."""
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return text


def twin(name: str) -> str:
    """The name of the untrained twin of ``NAME[@WEIGHTS]``."""
    base, at, weights = name.rpartition("@")
    known = at and (weights.partition(":")[0] == RANDOM or exists(path(weights)) or not base.startswith(HUBS))
    return f"{base if known else name}@{RANDOM}"
