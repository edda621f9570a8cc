"""What a file is, is found out from the file; what is no file of weights is refused with a sentence, and never run."""

import argparse
import builtins
import io
import json
import os
import pickle
import random
import subprocess
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_networks import hugging_face, resnet, vit
from torch import nn

from vit_analysis.loading.checkpoint import read


def refused(path) -> str:
    """The one plain line that refuses a file."""
    with pytest.raises(OSError, match=r".") as error:
        read(path)
    told = str(error.value)
    assert "\n" not in told
    assert "\x1b" not in told
    assert str(path) in told
    assert told.count("(") == told.count(")")
    return told


# Code -------------------------------------------------------------------------------------------------------------


class Payload:
    """Runs a function when it is unpickled freely."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def harmful(ran):
    return {
        "posix.system": Payload(os.system, f"touch {ran}"),
        "builtins.eval": Payload(eval, f"open({str(ran)!r}, 'w')"),
        "builtins.exec": Payload(exec, f"open({str(ran)!r}, 'w')"),
        "io.open": Payload(open, str(ran), "w"),
        "builtins.__import__": Payload(builtins.__import__, "this"),
        "subprocess.Popen": Payload(subprocess.Popen, ["touch", str(ran)]),
    }


PLACES = {
    "as weights": lambda evil, _: {"state_dict": evil},
    "among weights": lambda evil, state: {"state_dict": state | {"a.weight": evil}},
    "beside weights": lambda evil, state: {"state_dict": state, "args": evil},
    "in arguments": lambda evil, state: {"model": state, "args": argparse.Namespace(deep=[{"a": (evil,)}])},
    "in a call": lambda evil, state: {"model": state, "x": Payload(argparse.Namespace, evil)},
    "the whole file": lambda evil, _: evil,
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("place", PLACES)
def test_code_is_refused_by_its_name_and_not_run(tmp_path, place, legacy):
    state = resnet().state_dict()
    for name, evil in harmful(tmp_path / "ran").items():
        file = tmp_path / "evil.pth"
        torch.save(PLACES[place](evil, state), file, _use_new_zipfile_serialization=not legacy)
        told = refused(file)
        assert told.endswith(
            f"evil.pth' is not a file of weights that can be read safely: it holds {name} where weights are expected"
        )
        assert not (tmp_path / "ran").exists()


class Imported:
    """A class of the user's, which must not even be made."""

    def __init__(self):
        self.a = 1

    def __setstate__(self, state):
        raise AssertionError("was run")

    def __reduce__(self):
        return Imported, (), {"a": 1}


def test_objects_are_neither_made_nor_kept(tmp_path):
    state = resnet().state_dict()
    torch.save({"model": state, "cfg": Imported(), "list": [Imported()]}, tmp_path / "a.pth")
    tensors, said = read(tmp_path / "a.pth")
    assert tensors.keys() == state.keys()
    assert said == ("weights under 'model'", "a test_checkpoint.Imported was left unread")


def test_classes_that_are_not_installed_are_no_hindrance(tmp_path):
    torch.save({"model": resnet().state_dict(), "cfg": argparse.Namespace(a=1)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as given, zipfile.ZipFile(tmp_path / "b.pth", "w") as made:
        for name in given.namelist():
            content = given.read(name)
            if name.endswith("data.pkl"):
                content = content.replace(b"cargparse\nNamespace\n", b"comegaconf.dictconfig\nDictConfig\n")
            made.writestr(name, content)
    assert read(tmp_path / "b.pth").said[1] == "an omegaconf.dictconfig.DictConfig was left unread"


def test_objects_in_the_place_of_weights_are_refused(tmp_path):
    for held, told in {
        "Namespace": (
            {"state_dict": argparse.Namespace(a=1)},
            "it holds argparse.Namespace where weights are expected",
        ),
        "array": (
            {"model": {"a.weight": np.ones(3)}},
            "holds 'a.weight' (numpy._core.multiarray._reconstruct) where tensors by name",
        ),
        "one of many": (
            {"model": {"a.weight": torch.ones(3), "a.bias": torch.ones(3), "b.weight": np.ones(3)}},
            "numpy._core.multiarray._reconstruct where weights are expected, at 'b.weight'",
        ),
        "nothing": ({}, "holds nothing where tensors by name are expected; save the model's state_dict()"),
        "numbers": ({"epoch": 3, "lr": 0.1}, "holds 'epoch' (int), 'lr' (float) where tensors by name"),
        "a list": ([torch.ones(3)], "holds list, not a dictionary of tensors"),
        "a tensor": (torch.ones(3), "holds Tensor, not a dictionary of tensors"),
        "an optimizer": (
            torch.optim.AdamW(nn.Linear(2, 2).parameters()).state_dict(),
            "where tensors by name are expected",
        ),
    }.values():
        torch.save(held, tmp_path / "a.pth")
        assert told in refused(tmp_path / "a.pth")


def test_whole_modules_are_refused_with_what_to_save(tmp_path):
    for held in (resnet(), {"model": resnet()}, {"ema": resnet(), "epoch": 3}):
        torch.save(held, tmp_path / "whole.pt")
        assert (
            "it holds a whole pickled module (timm.models.resnet.ResNet, instead of its state_dict())"
            in refused(tmp_path / "whole.pt")
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_quantised_weights_are_refused(tmp_path):
    small = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), {nn.Linear}
    )
    torch.save({"model": small.state_dict()}, tmp_path / "int8.pth")
    assert "its weights are quantised (0._packed_params" in refused(tmp_path / "int8.pth")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_programs_are_refused(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "a.pt")
    assert refused(tmp_path / "a.pt").endswith("it is a TorchScript program; save the model's state_dict()")
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "a.pt2")
    assert "it is a program of torch.export; save" in refused(tmp_path / "a.pt2")


# Other files ------------------------------------------------------------------------------------------------------


FILES = {
    "empty.pth": (b"", "it is empty"),
    "a.h5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file, as Keras writes; convert it to PyTorch first"),
    "renamed.pth": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
    "a.onnx": (b"\x08\x07\x12\x07pytorch", "an ONNX graph; convert it to PyTorch first"),
    "model.ckpt-9.index": (b"\0\0\1", "part of a TensorFlow checkpoint"),
    "model.ckpt.data-00000-of-00001": (b"\0\0\1", "part of a TensorFlow checkpoint"),
    "flax_model.msgpack": (b"\x81\xa6params", "a Flax checkpoint"),
    "a.gguf": (b"GGUF\3\0\0\0", "a GGUF file"),
    "lfs.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a pointer of Git LFS"),
    "page.pth": (
        b"\n<!DOCTYPE html><html>",
        "a page of text (HTML or XML), not weights; the download probably failed",
    ),
    "a.pth.gz": (b"\x1f\x8b\x08\0", "compressed by gzip; unpack it first"),
    "a.npy": (b"\x93NUMPY\1\0", "a single array of NumPy"),
    "noise.pth": (bytes(range(1, 200)), "is not a file of weights that can be read safely: "),
    "short.safetensors": (b"\x08\0\0", "is not a file of weights"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_others_are_named(tmp_path, name):
    content, told = FILES[name]
    (tmp_path / name).write_bytes(content)
    assert told in refused(tmp_path / name)


def test_a_zip_of_other_things_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("folder/model.pth", b"1")
    assert "a zip archive of 'model.pth'; unpack it first" in refused(tmp_path / "a.zip")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_was_cut_short_is_refused(tmp_path, legacy):
    torch.save(
        {"model": resnet().state_dict()}, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy
    )
    whole = (tmp_path / "a.pth").read_bytes()
    for share in (0.001, 0.1, 0.5, 0.9):
        (tmp_path / "cut.pth").write_bytes(whole[: int(len(whole) * share)])
        assert "is not a file of weights that can be read safely: " in refused(tmp_path / "cut.pth")


def told(file) -> dict[str, torch.Tensor] | str:
    """What is read of a file, or the sentence that refuses it."""
    try:
        return read(file).tensors
    except OSError as error:
        return str(error)


@pytest.mark.parametrize("kind", ["zip", "before 1.6", "npz", "safetensors"])
def test_a_damaged_file_is_read_or_refused(tmp_path, kind):
    state = {f"blocks.{i}.weight": torch.ones(3, 3) for i in range(3)}
    held = {"model": state, "args": argparse.Namespace(a=1), "best": np.float64(1)}
    file = tmp_path / ("a.npz" if kind == "npz" else "a.pth")
    if kind == "npz":
        np.savez(file, **{name: value.numpy() for name, value in state.items()})
    elif kind == "safetensors":
        save_file(state, file)
    else:
        torch.save(held, file, _use_new_zipfile_serialization=kind == "zip")
    whole, chance = file.read_bytes(), random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 3, 20])):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        file.write_bytes(damaged)
        found = told(file)
        if isinstance(found, str):
            assert str(file) in found  # refused in a sentence of ours
        else:
            assert found
            assert all(isinstance(value, torch.Tensor) for value in found.values())


def test_a_plain_pickle_and_another_protocol(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": 1}))
    assert "is not a file of weights that can be read safely" in refused(tmp_path / "a.pkl")
    torch.save({"model": {"a": torch.ones(1)}}, tmp_path / "b.pth", pickle_protocol=4)
    assert "save it again without pickle_protocol" in refused(tmp_path / "b.pth")


def test_the_content_counts_and_not_the_ending(tmp_path):
    state = {name: value.contiguous() for name, value in resnet().state_dict().items()}
    torch.save(state, tmp_path / "a.safetensors")
    assert read(tmp_path / "a.safetensors").tensors.keys() == state.keys()
    save_file(state, tmp_path / "a.bin")
    assert read(tmp_path / "a.bin").tensors.keys() == state.keys()


def test_arrays_that_hold_objects_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([{"a": 1}], dtype=object))
    assert "is not a file of weights that can be read safely" in refused(tmp_path / "a.npz")


# Folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_without_weights_says_what_is_in_it(tmp_path):
    assert "which holds nothing; give the file" in refused(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "which holds config.json, tokenizer.json; give the file of weights" in refused(tmp_path)
    (tmp_path / "__0_0.distcp").write_text("")
    assert "dcp_to_torch" in refused(tmp_path)


def test_a_missing_file_names_those_beside_it(tmp_path):
    for name in ("small.safetensors", "last.ckpt", "notes.txt"):
        (tmp_path / name).write_bytes(b"1")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*; did you mean .*small.safetensors'"):
        read(tmp_path / "smal.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint"):
        read(tmp_path / "no folder" / "a.pth")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint"):
        read(tmp_path / ("long" * 999))


def test_an_index_is_held_to_its_word(tmp_path):
    network = hugging_face("ViT", "Model")
    network.save_pretrained(tmp_path, max_shard_size="50KB")
    index = tmp_path / "model.safetensors.index.json"
    parts = json.loads(index.read_text())
    assert read(tmp_path).tensors.keys() == parts["weight_map"].keys()
    assert len(parts["weight_map"]) == len(network.state_dict())
    first = parts["weight_map"]["layernorm.weight"]
    for change, told in {
        "elsewhere": (
            {"layernorm.weight": "../a.safetensors"},
            "it names '../a.safetensors', which is no file beside it",
        ),
        "lost": ({"more.weight": first}, "1 of its "),
        "gone": ({"layernorm.weight": "model-00009-of-00009.safetensors"}, "of which 1 are not beside it"),
    }.values():
        index.write_text(json.dumps({"weight_map": parts["weight_map"] | change}))
        assert told in refused(index)
    index.write_text("[]")
    assert "it is no index with a 'weight_map'" in refused(index)


def test_reading_twice_gives_the_same_and_leaves_torch_as_it_was(tmp_path):
    before = torch.serialization.get_safe_globals()
    buffer = io.BytesIO()
    torch.save({"model": vit().state_dict(), "args": argparse.Namespace(a=1)}, buffer)
    (tmp_path / "a.pth").write_bytes(buffer.getvalue())
    one, other = read(tmp_path / "a.pth"), read(tmp_path / "a.pth")
    assert one.said == other.said
    assert all(torch.equal(value, other.tensors[name]) for name, value in one.tensors.items())
    assert torch.serialization.get_safe_globals() == before


def test_where_no_weights_lie_it_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*a.pth'; no file of weights lies in "):
        read(tmp_path / "a.pth")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*a.pth'; no folder .*nowhere'"):
        read(tmp_path / "nowhere" / "a.pth")
