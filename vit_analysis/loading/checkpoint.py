"""A checkpoint's tensors, whatever file, folder or nested dictionary holds them."""

import json
import pickle
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from vit_analysis.loading import foreign, jax, pickled
from vit_analysis.loading.choice import first
from vit_analysis.loading.foreign import unsafe
from vit_analysis.loading.unwrapping import unwrapped
from vit_analysis.spelling import did_you_mean

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# The first that is there is read.
IN_A_FOLDER = ("model.safetensors", INDEXES[0], "pytorch_model.bin", INDEXES[1])
ENDINGS = frozenset((".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".npz", ".json"))

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
        folder = path.parent if _is(path.parent, Path.is_dir) else None
        nothing = (
            f"no file of weights lies in {str(folder)!r}" if folder else f"no folder {str(path.parent)!r}"
        )
        near = did_you_mean(str(path), beside) if beside else nothing
        raise FileNotFoundError(f"no checkpoint {str(path)!r}; {near}")
    if path.name.endswith(".index.json"):
        return _shards(path)
    if what := foreign.kind(path):
        raise unsafe(path, f"it is {what}")
    if path.suffix == ".npz":
        return Checkpoint(*_npz(path))
    if _is_safetensors(path) or (path.suffix == ".safetensors" and not foreign.is_zip(path)):
        try:
            return Checkpoint(safetensors.torch.load_file(path), ())
        except (SafetensorError, ValueError, KeyError) as error:
            raise unsafe(path, _reason(error)) from error
    try:
        content, unread = pickled.load(path)
    except pickle.UnpicklingError as error:
        raise unsafe(path, _reason(error)) from error
    tensors, said = unwrapped(path, content, unread)
    return Checkpoint(tensors, tuple(said))


def _folder(path: Path) -> Checkpoint:
    for name in IN_A_FOLDER:
        if (path / name).is_file():
            tensors, said = read(path / name)
            return Checkpoint(tensors, (f"{name!r} of the folder", *said))
    inside = sorted(file.name for file in _files(path))
    if any(name.endswith(".distcp") for name in inside):
        raise unsafe(path, f"it is {foreign.ENDINGS['.distcp']}")
    if "adapter_config.json" in inside:
        raise unsafe(path, "it holds an adapter only; merge it into its model and save that")
    if "saved_model.pb" in inside or "checkpoint" in inside:
        raise unsafe(path, f"it is a TensorFlow checkpoint; {foreign.ANOTHER}")
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
        raise unsafe(index, "it is no index with a 'weight_map'") from error
    if strange := [name for name in files if not isinstance(name, str) or Path(name).name != name]:
        raise unsafe(index, f"it names {strange[0]!r}, which is no file beside it")
    if gone := [name for name in files if not (index.parent / name).is_file()]:
        raise FileNotFoundError(
            f"{str(index)!r} names {len(files)} files, of which {len(gone)} are not beside it: {first(gone)}"
        )
    tensors: dict[str, Tensor] = {}
    for name in files:
        tensors |= read(index.parent / name).tensors
    if lost := [name for name in parts if name not in tensors]:
        raise unsafe(index, f"{len(lost)} of its {len(parts)} tensors are in no part, such as {lost[0]!r}")
    return Checkpoint(tensors, (f"{len(files)} parts",))


def _npz(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    except Exception as error:  # numpy and zipfile raise errors of many kinds when an archive is broken
        raise unsafe(path, _reason(error)) from error
    return jax.renamed(tensors) if jax.is_known(tensors) else (tensors, ())


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
