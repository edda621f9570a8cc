"""Files of ``torch.save``, read without importing or running anything that they name."""

import pickle
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable
from io import BufferedIOBase, BufferedReader, BytesIO
from pathlib import Path
from typing import Any, ClassVar

import torch

from vit_analysis.loading.foreign import is_zip

LEGACY_HEAD = 4  # pickles of a legacy file up to the object: magic number, protocol, system, object

# What runs, opens or fetches things. No file of weights needs it, so a file that asks for it is not read at all.
CODE_MODULES = {
    *(
        "os",
        "posix",
        "nt",
        "sys",
        "subprocess",
        "shutil",
        "runpy",
        "socket",
        "importlib",
        "pty",
        "ctypes",
        "code",
    ),
    *("timeit", "pdb", "bdb", "webbrowser", "commands", "pip"),
}
CODE_NAMES = {
    *(
        "builtins.eval",
        "builtins.exec",
        "builtins.open",
        "builtins.compile",
        "builtins.__import__",
        "builtins.input",
    ),
    *("builtins.breakpoint", "builtins.exit", "_io.open", "_io.FileIO", "io.open", "io.FileIO"),
}


class Inert:
    """Stands for an object that was left unread; its class has the object's name, and ``state`` what it held."""

    name: ClassVar[str] = ""
    met: ClassVar[set[str]] = set()
    state: Any = None

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Note that an object of this name was met."""
        cls.met.add(cls.name)
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @property
    def is_module(self) -> bool:
        """Return whether the file held a whole ``nn.Module``."""
        return isinstance(self.state, dict) and "_modules" in self.state


def load(path: Path) -> tuple[Any, list[str]]:
    """Return what the file holds, with `Inert` for what is neither data nor a tensor, and the names of these.

    Dictionaries and lists of other classes (``defaultdict``, Lightning's ``AttributeDict``) become plain ones. The file is
    read by ``torch.load(weights_only=True)``, which gets stand-ins for all names that it does not know.

    Raises:
        pickle.UnpicklingError: it is broken, or asks for code.
    """
    kinds: dict[str, str] = {}
    for pickles in _run(lambda: _pickles(path)):
        with pickles as stream:
            for _ in range(LEGACY_HEAD if isinstance(stream, BufferedReader) else 1):
                _run(_Rehearsal(stream, kinds).load)
    asked = [name for name in kinds if name.partition(".")[0] in CODE_MODULES or name in CODE_NAMES]
    if asked:
        raise pickle.UnpicklingError(f"it holds {asked[0]} where weights are expected")
    met: set[str] = set()
    stand_ins: list[Any] = [(_stand_in(name, kind, met), name) for name, kind in kinds.items()]
    allowed = torch.serialization.safe_globals(stand_ins)
    with path.open("rb") as file, allowed, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old storages and other protocols
        content = _run(lambda: torch.load(file, map_location="cpu", weights_only=True))
    return content, sorted(met)


def _run(unpickle: Callable[[], Any]) -> Any:
    try:
        return unpickle()
    except Exception as error:  # an unpickler may raise anything when a file is broken
        raise pickle.UnpicklingError(str(error) or type(error).__name__) from error


def _pickles(path: Path) -> list[BufferedIOBase]:
    """Open what is pickled in a file: a legacy file itself, or the records of an archive."""
    if not is_zip(path):
        return [path.open("rb")]
    with zipfile.ZipFile(path) as archive:
        return [BytesIO(archive.read(name)) for name in archive.namelist() if name.endswith("/data.pkl")]


class _Rehearsal(pickle._Unpickler):  # the one in Python, whose memory a broken file cannot exhaust
    """Unpickles with a stand-in for every name, and notes whether it is used as a dictionary, a list or neither."""

    def __init__(self, stream: BufferedIOBase, kinds: dict[str, str]) -> None:
        super().__init__(stream)
        self.kinds = kinds

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in; nothing is ever imported."""
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full, kinds = f"{module}.{name}", self.kinds
        kinds.setdefault(full, "object")

        class Noted(Inert):
            def __setitem__(self, *_: Any) -> None:
                kinds[full] = "dictionary"

            def append(self, _: Any) -> None:
                kinds[full] = "list"

            def extend(self, _: Any) -> None:
                kinds[full] = "list"

        return Noted

    def persistent_load(self, pid: Any) -> None:
        """Leave storages where they are."""


def _stand_in(name: str, kind: str, seen: set[str]) -> type:
    """The class that torch may make instead of the one with this name."""
    if kind == "object":
        return type("Inert", (Inert,), {"name": name, "met": seen})
    plain: Any = OrderedDict if kind == "dictionary" else list
    return type("Plain", (), {"__new__": lambda *_, **__: plain()})
