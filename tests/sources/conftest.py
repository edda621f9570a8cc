"""Data sets as libraries keep them."""

import pickle

import numpy as np
import pytest
import torchvision


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """CIFAR-10 in torchvision's format, of four images in each file."""
    root = tmp_path / "data"
    (root / "cifar-10-batches-py").mkdir(parents=True)
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        pixels = np.repeat(np.arange(4, dtype=np.uint8)[:, None], 3072, axis=1)
        own = {"data": pixels, "labels": [3, 1, 0, 2]}
        (root / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(own))
    names = {"label_names": ["plane", "car", "bird", "cat"]}
    (root / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps(names))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda _: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    return root


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    library = pytest.importorskip("datasets")
    library.disable_progress_bars()
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return library
