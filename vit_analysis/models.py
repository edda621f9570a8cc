"""Models by name: ``NAME[@WEIGHTS]``, with their preprocessing and a digest of their weights."""

import hashlib
import json
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.data import ImageNetInfo, resolve_model_data_config
from timm.models import clean_state_dict
from torch import Tensor, nn

from vit_analysis.images import Images, Preprocessing
from vit_analysis.lab import scenes, zoo
from vit_analysis.spelling import Refusal, did_you_mean

RANDOM = "random"
HUBS = ("hf-hub:", "hf_hub:", "local-dir:")
# The input of a lab model that no checkpoint describes, such as an untrained twin.
LAB_INPUT = {"input_size": "[3, 32, 32]", "mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]"}
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # keys of weights in checkpoints


@dataclass(frozen=True)
class Model:
    """A module with what an analysis has to know about it.

    Attributes:
        name: its name in tables and pictures, with a checkpoint but without the checkpoint's folder.
        module: the module, in evaluation mode and on its device.
        preprocessing: how an image becomes its input.
        digest: digest of names and values of its weights.
    """

    name: str
    module: nn.Module
    preprocessing: Preprocessing
    digest: str

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return next(self.module.parameters(), torch.empty(0)).device


Models = str | Model | Sequence[str | Model] | Mapping[str, str | Model | nn.Module]
"""What every analysis takes as its models, see `named`."""


def load(name: str, *, seed: int = 0, device: str | torch.device | None = None) -> Model:
    """Load the model that ``NAME[@WEIGHTS]`` names.

    Args:
        name: NAME is ``lab/...`` or any timm name. WEIGHTS is a checkpoint (safetensors, or a ``torch.save`` file read with
            ``weights_only=True``), or ``random`` for the untrained twin; without it, the lab's or timm's trained weights.
        seed: random seed of an untrained twin's weights.
        device: where to put it; None is the GPU if there is one.

    Raises:
        Refusal: unknown name, or weights that do not fit.
        FileNotFoundError: no such checkpoint.
        OSError: timm's weights cannot be had, or the file is no checkpoint.
    """
    base, at, weights = name.rpartition("@")
    if at and not weights:
        raise Refusal(f"{name!r} names no weights after the @; give a checkpoint file, {RANDOM!r}, or no @")
    if not at or (base.startswith("hf-hub:") and weights != RANDOM and not _is_file(_path(weights))):
        base, weights = name, ""  # a hub name may carry a revision of its own
    if base.startswith("lab/"):
        module, preprocessing = _lab(base, weights, seed)
    else:
        module = _timm(base, weights, seed)
        preprocessing = _preprocessing(module)
    module = module.eval().requires_grad_(False)
    place = torch.device(device) if device else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Model(_short(name, base, weights), module.to(place), preprocessing, digest(module))


def twin(name: str) -> str:
    """The name of the untrained twin of ``NAME[@WEIGHTS]``."""
    base, at, weights = name.rpartition("@")
    known = at and (weights == RANDOM or Path(weights).expanduser().is_file() or not base.startswith(HUBS))
    return f"{base if known else name}@{RANDOM}"


def load_all(names: Sequence[str], *, device: str | None = None) -> list[Model]:
    """Load several models; if two short names would be the same, all models keep the names as given."""
    loaded = [load(name, device=device) for name in names]
    short = [model.name for model in loaded]
    if len(set(short)) == len(short):
        return loaded
    return [replace(model, name=name) for name, model in zip(names, loaded, strict=True)]


def named(models: Models) -> dict[str, Model]:
    """Load or wrap models, in any form that an analysis takes, and return them by name.

    Args:
        models: a loaded model or the name of one, several of them, or modules under names of your own. A module that timm
            did not make gets timm's default preprocessing: 224 px, ImageNet statistics.

    Raises:
        Refusal: it is none of these, there is no model, or the same name occurs twice.
    """
    if isinstance(models, Mapping):
        own = {name: _as_model(name, value) for name, value in models.items()}
    else:
        several = [models] if isinstance(models, str | Model | nn.Module) else models
        if not isinstance(several, Iterable):
            raise _no_models(models)
        loaded = [load(one) if isinstance(one, str) else one for one in several]
        if wrong := [one for one in loaded if not isinstance(one, Model)]:
            raise _no_models(wrong[0])
        names = [model.name for model in loaded]
        if len(set(names)) < len(names):
            raise Refusal(
                f"give different models, or names of your own as in {{'a': model, 'b': model}}; got {names}"
            )
        own = {model.name: model for model in loaded}
    if not own:
        raise Refusal("give one or more models, such as ['lab/vit', 'lab/resnet']; got none")
    return own


def _as_model(name: Any, value: Any) -> Model:
    if isinstance(value, str):
        value = load(value)
    if isinstance(value, Model):
        return replace(value, name=str(name))
    if not isinstance(value, nn.Module):
        raise _no_models(value)
    return Model(str(name), value, _preprocessing(value), digest(value))


def _no_models(found: object) -> Refusal:
    kind = type(found).__name__
    line = (
        f"{{'my {kind}': module}}" if isinstance(found, nn.Module) else "['lab/vit', models.load('resnet50')]"
    )
    return Refusal(
        f"models are names, loaded models or modules under names of your own; got {kind}. Write measure({line}, images)"
    )


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors or ``torch.save`` file. A pickle is read as weights only, never executed.

    Raises:
        FileNotFoundError: there is no such file; it names the checkpoints in that folder.
        OSError: the file is neither, or holds something other than weights.
    """
    if not _is_file(path):
        beside = [
            str(file)
            for file in path.parent.glob("*")
            if file.suffix in {".safetensors", ".pt", ".pth", ".bin"}
        ]
        raise FileNotFoundError(f"no checkpoint {str(path)!r}; {did_you_mean(str(path), beside)}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(f"{str(path)!r} is not a file of weights that can be read safely: {reason}") from error
    wrapper = next(
        (key for key in WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)), None
    )
    content = content[wrapper] if wrapper else content
    if not isinstance(content, dict):
        raise OSError(f"{str(path)!r} holds {type(content).__name__}, not a dictionary of tensors")
    others = [
        f"{key!r} ({type(value).__name__})" for key, value in content.items() if not isinstance(value, Tensor)
    ]
    if others or not content:
        told = f"{', '.join(others[:3])}{', ...' if len(others) > 3 else ''}" or "nothing"
        raise OSError(
            f"{str(path)!r} holds {told} where tensors by name are expected; save the model's state_dict()"
        )
    return clean_state_dict(content)


def fit(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights that must fit exactly.

    Raises:
        Refusal: they do not; it says which keys are missing, unexpected, of another shape or not numbers, and how many.
    """
    own = module.state_dict()
    faults = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
        "not numbers": [key for key in own if key in state and state[key].isnan().any()],
    }
    told = [
        f"{len(keys)} {fault} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for fault, keys in faults.items()
        if keys
    ]
    if told:
        raise Refusal(
            f"{source!r} does not fit {type(module).__name__} of {len(own)} tensors: {'; '.join(told)}"
        )
    module.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()})


def classes_of_labels(model: Model, images: Images) -> list[int] | None:
    """The model's class for each label of the images: the lab's shapes for its models, ImageNet's 1000 by their WordNet ids.

    None where it is not known that the images' labels are among the model's classes.
    """
    lab = [zoo.PREFIX + name for name in zoo.RECIPES]
    names = [name.rpartition("/")[2] for name in images.classes]  # a class may be a folder in other folders
    if model.name.removesuffix(f"@{RANDOM}").partition(":")[0] in lab:
        known = {shape: number for number, shape in enumerate(scenes.SHAPES)}
    elif getattr(model.module, "num_classes", None) == ImageNetInfo().num_classes():
        known = {wnid: number for number, wnid in enumerate(ImageNetInfo().label_names())}
    else:
        return None
    return [known[name] for name in names] if names and known.keys() >= set(names) else None


def digest(module: nn.Module) -> str:
    """Sixteen hexadecimal digits that change when any weight does."""
    total = hashlib.sha256()
    for key, value in module.state_dict().items():
        total.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def _short(name: str, base: str, weights: str) -> str:
    """NAME@WEIGHTS without the file's folder and ending, and without the file if it has the model's name."""
    if not weights or weights == RANDOM:
        return name
    file = Path(weights).stem
    return base if file == base else f"{base}@{file}"


def _lab(name: str, weights: str, seed: int) -> tuple[nn.Module, Preprocessing]:
    recipe = zoo.recipe(name)
    checkpoint = _path(weights) if weights not in ("", RANDOM) else None
    file = checkpoint or (zoo.home(name) if weights == RANDOM else zoo.lab_file(name))
    state = None if weights == RANDOM else read_checkpoint(file)
    facts = _metadata(file) if file.is_file() else {}
    try:
        config = json.loads(facts["config"]) if "config" in facts else recipe.config
        size, mean, std = (tuple(json.loads(facts.get(key, default))) for key, default in LAB_INPUT.items())
        preprocessing = Preprocessing(size, mean, std, crop_pct=1.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = zoo.build(recipe.architecture, config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise OSError(f"{str(file)!r} says of itself what cannot be: {error}") from error
    if state is not None:
        fit(module, state, weights or name)
    return module, preprocessing


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # the home of an unknown user
        raise FileNotFoundError(f"no checkpoint {name!r}: {error}") from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # too long, or in a folder that may not be looked into
        return False


def _metadata(file: Path) -> dict[str, str]:
    if file.suffix != ".safetensors":
        return {}
    with safe_open(file, framework="pt") as shipped:
        return shipped.metadata() or {}


def _timm(name: str, weights: str, seed: int) -> nn.Module:
    architecture = name.partition(".")[0]
    if not name.startswith(HUBS) and not timm.is_model(architecture):
        everything = [
            *(zoo.PREFIX + own for own in zoo.RECIPES),
            *timm.list_models(),
            *timm.list_pretrained(),
        ]
        raise Refusal(f"no model {name!r}; {did_you_mean(name, everything)}")
    if not weights:
        return _pretrained(name)
    state = None if weights == RANDOM else read_checkpoint(_path(weights))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = timm.create_model(name, pretrained=False)
    if state is None:
        return module
    config: Any = module.pretrained_cfg
    classifier = state.get(f"{config.get('classifier')}.weight")
    if classifier is not None and len(classifier) != module.num_classes:
        module = timm.create_model(
            name, pretrained=False, num_classes=len(classifier)
        )  # fine-tuned to other classes
    fit(module, state, weights)
    return module


def _pretrained(name: str) -> nn.Module:
    remedy = f"give a checkpoint file ({name}@FILE) or the untrained twin ({name}@{RANDOM})"
    try:
        module = timm.create_model(name, pretrained=True)
    except (
        Exception
    ) as error:  # hub clients raise errors of many libraries; all mean that the weights did not come
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(f"no trained weights for {name!r}: {reason}; {remedy}") from error
    return module


def _preprocessing(module: nn.Module) -> Preprocessing:
    """The preprocessing that timm gives for a model, but with the image size and channels that the module was built for."""
    config = resolve_model_data_config(module)
    known = {field.name for field in fields(Preprocessing)}
    channels, *size = config["input_size"]
    embed = getattr(module, "patch_embed", None)
    if getattr(embed, "strict_img_size", True) and isinstance(own := getattr(embed, "img_size", None), tuple):
        size = list(own)
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    if first is not None and first.in_channels == 1 and getattr(module, "pretrained_cfg", None):
        channels = 1
    config["input_size"] = (channels, *size)
    return Preprocessing(**{key: value for key, value in config.items() if key in known})
