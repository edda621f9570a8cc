"""Files that are no weights of PyTorch: what they are, by their first bytes, contents or ending, and what to do."""

import zipfile
from pathlib import Path

from vit_analysis.loading.choice import first

SAVE = "save the model's state_dict()"
ANOTHER = "convert it to PyTorch first"

BYTES = {
    b"\x89HDF": f"an HDF5 file, as Keras writes; {ANOTHER}",
    b"GGUF": f"a GGUF file; {ANOTHER}",
    b"\x93NUMPY": "a single array of NumPy; give the model's weights by name",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`",
    b"<": "a page of text (HTML or XML), not weights; the download probably failed",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"7z\xbc\xaf": "compressed by 7-zip; unpack it first",
    b"\xfd7zXZ": "compressed by xz; unpack it first",
    b"BZh": "compressed by bzip2; unpack it first",
}
ENDINGS = {
    ".onnx": f"an ONNX graph; {ANOTHER}",
    ".h5": f"a Keras file; {ANOTHER}",
    ".keras": f"a Keras file; {ANOTHER}",
    ".pb": f"a TensorFlow graph; {ANOTHER}",
    ".tflite": f"a TensorFlow Lite file; {ANOTHER}",
    ".index": f"part of a TensorFlow checkpoint; {ANOTHER}",
    ".meta": f"part of a TensorFlow checkpoint; {ANOTHER}",
    ".msgpack": f"a Flax checkpoint; {ANOTHER}",
    ".engine": "a TensorRT engine; give the checkpoint it was made of",
    ".mlmodel": "a Core ML model; give the checkpoint it was made of",
    ".distcp": "one part of a distributed checkpoint; turn its folder into one file with "
    "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE`",
}
MEMBERS = {
    "constants.pkl": f"a TorchScript program; {SAVE}",
    "model.weights.h5": f"a Keras file; {ANOTHER}",
    "archive_format": f"a program of torch.export; {SAVE}",
    "serialized_exported_program.json": f"a program of torch.export; {SAVE}",
    "coremldata.bin": "a Core ML model; give the checkpoint it was made of",
}
TORCH = "data.pkl"


def kind(path: Path) -> str | None:
    """What a file is that holds no weights of PyTorch, with what to do; None if it may hold some."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "empty"
    if ".data-00000-of-" in path.name:
        return ENDINGS[".index"]
    by_ending = ENDINGS.get(path.suffix.lower())
    by_bytes = next((what for magic, what in BYTES.items() if start.lstrip().startswith(magic)), None)
    if by_bytes or by_ending:
        return by_bytes or by_ending
    if not is_zip(path):
        return None
    members = _members(path)
    if members is None:
        return "a broken zip archive; fetch or save it again"
    if found := next((what for name, what in MEMBERS.items() if name in members), None):
        return found
    if TORCH not in members and not all(name.endswith(".npy") for name in members):
        return f"a zip archive of {first(map(repr, members))}; unpack it first"
    return None


def is_zip(path: Path) -> bool:
    """Return whether a file starts as a zip archive does, which is how torch knows its own."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _members(archive: Path) -> list[str] | None:
    """The names of files in an archive, without their folders; None if it is broken."""
    try:
        with zipfile.ZipFile(archive) as opened:
            return [name.rpartition("/")[2] for name in opened.namelist()]
    except Exception:  # zipfile raises errors of many kinds when an archive is broken
        return None


def unsafe(path: Path, reason: str) -> OSError:
    """The error that refuses a file."""
    return OSError(f"{str(path)!r} is not a file of weights that can be read safely: {reason}")
