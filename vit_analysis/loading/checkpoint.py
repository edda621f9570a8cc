"""A checkpoint's tensors, whatever file, folder or nested dictionary holds them."""

import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from vit_analysis.loading import choice, foreign, jax, pickled
from vit_analysis.loading.choice import counted, first
from vit_analysis.spelling import did_you_mean

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
IN_A_FOLDER = (
    "model.safetensors",
    INDEXES[0],
    "pytorch_model.bin",
    INDEXES[1],
)  # the first that is there is read
ENDINGS = frozenset((".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".npz", ".json"))

WRAPPERS = frozenset(
    (
        *(
            "state_dict",
            "state_dict_ema",
            "model",
            "model_ema",
            "ema",
            "ema_model",
            "model_state_dict",
            "model_state",
        ),
        *("net", "network", "module", "weights", "params", "teacher", "student", "backbone", "encoder"),
    )
)
"""Keys under which nothing but weights is expected. Weights under any other key are found too."""
NO_WEIGHTS = re.compile(
    r"optim|scheduler|scaler|callbacks|loops|\brng|random|\bamp\b|_metrics?\b|param_groups"
)
"""Keys of a trainer's own state, in which tensors are no weights."""
DEEPEST = 8  # dictionaries in each other
SAME = 0.9  # share of names that two sets of weights have in common if they are of one network
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Checkpoint(NamedTuple):
    """Tensors by name.

    Attributes:
        tensors: the weights.
        said: what was done with the file to get them, in fragments of a sentence.
    """

    tensors: dict[str, Tensor]
    said: tuple[str, ...]


def read(path: Path) -> Checkpoint:
    """Read the weights that a file or folder holds. Nothing that a pickle names is imported or run.

    Known are safetensors, ``torch.save`` of any age, both in several parts with an index, a folder as Hugging Face's trainer
    leaves it, and NumPy's ``.npz`` of JAX. Nested dictionaries are taken apart. Of several sets of weights of one network the
    one that `choice` prefers is taken; sets that differ all stay, with their places before their names, and the names decide.

    Raises:
        FileNotFoundError: there is no such file; it names the checkpoints in that folder.
        OSError: it is no file of weights, or holds something else where weights are expected.
    """
    if _is(path, Path.is_dir):
        return _folder(path)
    if not _is(path, Path.is_file):
        beside = [str(file) for file in _files(path.parent) if file.suffix in ENDINGS]
        raise FileNotFoundError(f"no checkpoint {str(path)!r}; {did_you_mean(str(path), beside)}")
    if path.name.endswith(".index.json"):
        return _shards(path)
    if what := foreign.kind(path):
        raise _unsafe(path, f"it is {what}")
    if path.suffix == ".npz":
        return Checkpoint(*_npz(path))
    if _is_safetensors(path) or (path.suffix == ".safetensors" and not zipfile.is_zipfile(path)):
        try:
            return Checkpoint(safetensors.torch.load_file(path), ())
        except (SafetensorError, ValueError, KeyError) as error:
            raise _unsafe(path, _reason(error)) from error
    try:
        content, unread = pickled.load(path)
    except pickle.UnpicklingError as error:
        raise _unsafe(path, _reason(error)) from error
    return _taken(path, content, unread)


def _folder(path: Path) -> Checkpoint:
    for name in IN_A_FOLDER:
        if (path / name).is_file():
            tensors, said = read(path / name)
            return Checkpoint(tensors, (f"{name!r} of the folder", *said))
    inside = sorted(file.name for file in _files(path))
    if any(name.endswith(".distcp") for name in inside):
        raise _unsafe(path, f"it is {foreign.ENDINGS['.distcp']}")
    if "adapter_config.json" in inside:
        raise _unsafe(path, "it holds an adapter only; merge it into its model and save that")
    if "saved_model.pb" in inside or "checkpoint" in inside:
        raise _unsafe(path, f"it is a TensorFlow checkpoint; {foreign.ANOTHER}")
    raise FileNotFoundError(
        f"no {', '.join(IN_A_FOLDER)} in the folder {str(path)!r}, which holds "
        f"{first(inside, 5) or 'nothing'}; give the file of weights"
    )


def _shards(index: Path) -> Checkpoint:
    """Read the parts that an index of Hugging Face's names."""
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(parts.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unsafe(index, "it is no index with a 'weight_map'") from error
    if strange := [name for name in files if not isinstance(name, str) or Path(name).name != name]:
        raise _unsafe(index, f"it names {strange[0]!r}, which is no file beside it")
    if gone := [name for name in files if not (index.parent / name).is_file()]:
        raise FileNotFoundError(
            f"{str(index)!r} names {len(files)} files, of which {len(gone)} are not beside it: {first(gone)}"
        )
    tensors: dict[str, Tensor] = {}
    for name in files:
        tensors |= read(index.parent / name).tensors
    if lost := [name for name in parts if name not in tensors]:
        raise _unsafe(index, f"{len(lost)} of its {len(parts)} tensors are in no part, such as {lost[0]!r}")
    return Checkpoint(tensors, (f"{len(files)} parts",))


def _npz(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise _unsafe(path, _reason(error)) from error
    return jax.renamed(tensors) if jax.is_known(tensors) else (tensors, ())


def _taken(path: Path, content: Any, unread: list[str]) -> Checkpoint:
    """The weights among all that a ``torch.save`` file holds."""
    _refuse_what_is_no_dictionary(path, content)
    sets = dict(_sets(content))
    objects = {place: value for place, value in _objects(content) if place.rpartition(".")[2] in WRAPPERS}
    if objects and not any(sets):
        raise _unsafe(path, f"it holds {_what(next(iter(objects.values())))} where weights are expected")
    if not sets:
        found = [
            f"{key!r} ({_what(value)})"
            for key, value in _innermost(content).items()
            if not isinstance(value, Tensor)
        ]
        raise OSError(
            f"{str(path)!r} holds {first(found) or 'nothing'} where tensors by name are expected; {foreign.SAVE}"
        )
    for place, own in sets.items():
        _refuse_what_is_no_tensor(path, place, own)
    weights = {
        place: {k: v.detach() for k, v in own.items() if isinstance(v, Tensor)} for place, own in sets.items()
    }
    main = _main(weights)
    said = [f"{_listed(unread)} left unread"] if unread else []
    if aside := [
        f"{place}.{name}" if place else name for place in weights.keys() - main for name in weights[place]
    ]:
        said.append(f"{counted(len(aside), 'tensor')} elsewhere left aside ({first(aside)})")
    best = choice.preferred(main) if _are_alike(main) else None
    if best is None:
        flat = {
            f"{at}.{name}" if at else name: value for at, own in main.items() for name, value in own.items()
        }
        return Checkpoint(flat, tuple(said))
    others = ", ".join(f"{at!r}" if at else "the top" for at in main if at != best)
    if best or others:
        said.insert(0, f"weights under {best!r}{', not under ' if others else ''}{others}")
    return Checkpoint(main[best], tuple(said))


def _main(weights: Mapping[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """The sets of weights that may be a network's; a loss, a counter or a queue beside them is none."""
    largest = max(len(own) for own in weights.values())
    return {place: own for place, own in weights.items() if len(own) * 10 >= largest}


def _are_alike(weights: Mapping[str, dict[str, Tensor]]) -> bool:
    """Whether all sets have the names of one network."""
    names = [{re.sub(r"\b(module|_orig_mod)\.", "", name) for name in own} for own in weights.values()]
    return all(len(a & b) >= SAME * max(len(a), len(b)) for a in names for b in names)


def _sets(
    content: Mapping[Any, Any], place: str = "", depth: int = 0
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dictionary that holds tensors itself, with the keys that lead to it, but for a trainer's own state."""
    if "param_groups" in content:
        return
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    own = {key: value for key, value in named.items() if not isinstance(value, Mapping)}
    if sum(isinstance(value, Tensor) for value in own.values()) * 2 > len(
        own
    ):  # a loss among settings is no weight
        yield place, own
    if depth < DEEPEST:
        for key, value in named.items():
            if isinstance(value, Mapping) and not NO_WEIGHTS.search(key):
                yield from _sets(value, f"{place}.{key}" if place else key, depth + 1)


def _innermost(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """What stands where weights are expected: below the keys of wrappers."""
    below = next(
        (value for key, value in content.items() if key in WRAPPERS and isinstance(value, Mapping)), None
    )
    return content if below is None else _innermost(below)


def _objects(
    content: Mapping[Any, Any], place: str = "", depth: int = 0
) -> Iterator[tuple[str, pickled.Inert]]:
    """Every object in the nested dictionaries that was left unread, with the keys that lead to it."""
    for key, value in content.items():
        at = f"{place}.{key}" if place else str(key)
        if isinstance(value, pickled.Inert):
            yield at, value
        elif isinstance(value, Mapping) and depth < DEEPEST:
            yield from _objects(value, at, depth + 1)


def _refuse_what_is_no_dictionary(path: Path, content: Any) -> None:
    if isinstance(content, pickled.Inert):
        raise _unsafe(path, f"it holds {_what(content)} where weights are expected")
    if not isinstance(content, Mapping):
        raise OSError(
            f"{str(path)!r} holds {type(content).__name__}, not a dictionary of tensors; {foreign.SAVE}"
        )


def _refuse_what_is_no_tensor(path: Path, place: str, own: Mapping[str, Any]) -> None:
    """Refuse an object in the place of a tensor; numbers, words and a trainer's settings are no weights and left out."""
    if packed := [name for name in own if "_packed_params" in name]:
        raise _unsafe(
            path, f"its weights are quantised ({packed[0]}); save the weights before they are quantised"
        )
    for name, value in own.items():
        is_object = isinstance(value, pickled.Inert) and not name.endswith("_extra_state")
        if is_object and ("." in name or place.rpartition(".")[2] in WRAPPERS):
            raise _unsafe(path, f"it holds {_what(value)} where weights are expected, at {name!r}")


def _what(value: Any) -> str:
    if not isinstance(value, pickled.Inert):
        return type(value).__name__
    if value.is_module:
        return f"a whole pickled module ({value.name}, instead of its state_dict())"
    return value.name


def _listed(names: list[str]) -> str:
    if len(names) == 1:
        return f"{'an' if names[0][0] in 'aeiou' else 'a'} {names[0]} was"
    return f"{len(names)} kinds of objects ({first(names)}) were"


def _unsafe(path: Path, reason: str) -> OSError:
    return OSError(f"{str(path)!r} is not a file of weights that can be read safely: {reason}")


def _reason(error: Exception) -> str:
    """What an exception says, as one line of plain text without torch's advice to trust the file."""
    text = ESCAPES.sub("", str(error))
    told = text.rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    line = told.splitlines()[0].strip()
    if line.startswith("Unsupported operand"):
        return (
            "it was pickled by another protocol than torch.save's own; save it again without pickle_protocol"
        )
    return line.removesuffix(".")


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _is(path: Path, question: Any) -> bool:
    try:
        return bool(question(path))
    except OSError:  # too long, or in a folder that may not be looked into
        return False


def _files(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
