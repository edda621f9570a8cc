"""Settings and fixtures of all tests. Imports neither torch nor timm, for the tests that need neither."""

import sys
from pathlib import Path

import pytest
from hypothesis import settings

# A shared machine may stall for a second: how long an example takes says nothing.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

ASSETS = Path(__file__).parents[2] / "shared" / "assets"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real weights and images; tests that need it are skipped elsewhere."""
    if not ASSETS.is_dir():
        pytest.skip("needs real weights and images, which are not part of the project")
    return ASSETS
