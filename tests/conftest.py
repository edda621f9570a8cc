"""Settings and fixtures of all tests. Imports neither torch nor timm, for the tests that need neither.

Slow tests are marked by the time that was measured of them: `make slow` writes tests/slow.txt.
"""

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A shared machine may stall for a second: how long an example takes says nothing. Where changes are judged, examples are the
# same each time; a developer's are new ones.
settings.register_profile("unhurried", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("unhurried")

ASSETS = Path(__file__).parents[2] / "shared" / "assets"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def _settings_of_torch_stay() -> Iterator[None]:
    """A test that leaves one of them changed fails itself, and not some other that runs after it in the same process."""
    if "torch" not in sys.modules:
        yield
        return
    torch = sys.modules["torch"]
    asked = (
        torch.get_num_threads,
        torch.is_grad_enabled,
        torch.get_default_dtype,
        torch.get_float32_matmul_precision,
        lambda: torch.backends.cudnn.allow_tf32,
        lambda: torch.backends.cudnn.enabled,
        lambda: torch.backends.mkldnn.enabled,
        torch.are_deterministic_algorithms_enabled,
    )
    before = [ask() for ask in asked]
    yield
    assert [ask() for ask in asked] == before


@pytest.fixture(autouse=True)
def _loggers_stay() -> Iterator[None]:
    """A command that runs inside a test sets what is said, and no other test may hear more or less by that."""
    before = {name: logger.level for name, logger in _loggers()}
    yield
    for name, logger in _loggers():
        logger.setLevel(before.get(name, logging.NOTSET))


def _loggers() -> Iterator[tuple[str, logging.Logger]]:
    known = logging.root.manager.loggerDict
    for name in [name for name in known if name.startswith("vit_analysis")]:
        yield name, logging.getLogger(name)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real weights and images; tests that need it are skipped elsewhere."""
    if not ASSETS.is_dir():
        pytest.skip("needs real weights and images, which are not part of the project")
    return ASSETS


SLOW = Path(__file__).with_name("slow.txt")
# Of CPU, its children's too, as that is the same on a busy machine; a test that took more is slow.
SECONDS = 0.1

_spent: dict[str, dict[str, float]] = {"setup": {}, "call": {}}
_shared: dict[str, set[tuple[str, str]]] = {}
"""By test, the fixtures that it shares with others, with the file that defines them."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-slow", action="store_true", help="measure all tests and write tests/slow.txt")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    known = {line.split(maxsplit=1)[1] for line in SLOW.read_text(encoding="utf-8").splitlines()}
    for item in items:
        fixtures = getattr(item, "_fixtureinfo").name2fixturedefs  # noqa: B009  (pytest has no public way)
        _shared[item.nodeid] = {
            (own[-1].baseid, name)
            for name, own in fixtures.items()
            if own[-1].scope in ("module", "session") and own[-1].baseid  # pytest's own cost nothing
        }
        if item.nodeid.removeprefix("tests/") in known:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    start = sum(os.times()[:4])
    yield
    _spent["setup"][item.nodeid] = sum(os.times()[:4]) - start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    start = sum(os.times()[:4])
    yield
    _spent["call"][item.nodeid] = sum(os.times()[:4]) - start


def pytest_terminal_summary(config: pytest.Config) -> None:
    if not config.getoption("--write-slow"):
        return
    total = dict(_spent["call"])
    # What a fixture takes is measured of the first test that asks for it, and would be paid by the next.
    for first, time in _spent["setup"].items():
        if time > SECONDS:
            for other in (name for name, own in _shared.items() if own & _shared[first] and name in total):
                total[other] += time
    slow = sorted((name.removeprefix("tests/"), time) for name, time in total.items() if time > SECONDS)
    SLOW.write_text("".join(f"{time:.1f} {name}\n" for name, time in slow), encoding="utf-8")
