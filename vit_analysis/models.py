"""Models by name, ``[SOURCE/]NAME[,KEY=VALUE...][@WEIGHTS]``, or as modules: with preprocessing, anatomy and a digest."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn

from vit_analysis.anatomy import describing, find, probing
from vit_analysis.anatomy.roles import Anatomy
from vit_analysis.images import Images, Preprocessing
from vit_analysis.lab import scenes, zoo
from vit_analysis.loading import checkpoint, conventions, fitting
from vit_analysis.loading.digest import digest
from vit_analysis.makers import of_lab, of_timm, of_torchvision, of_transformers, processors
from vit_analysis.makers.making import Maker, seeded
from vit_analysis.makers.request import RANDOM, Request, twin
from vit_analysis.spelling import Refusal
from vit_analysis.typed import Precision

logger = logging.getLogger(__name__)

MAKERS: Mapping[str, Maker] = {
    of_torchvision.PREFIX: of_torchvision.Torchvision(),
    of_transformers.PREFIX: of_transformers.Transformers(),
}
"""Sources of networks by the beginning of a name; without one of these it is timm's, or the lab's."""
# Modules that only pass on to the one inside them; torch.compile's is asked for by name, as importing it takes long.
WRAPPERS = (
    "DataParallel",
    "DistributedDataParallel",
    "OptimizedModule",
    "AveragedModel",
    "ModelEmaV2",
    "ModelEmaV3",
)
INSIDE = ("_orig_mod", "module")


@dataclass(frozen=True)
class Model:
    """A module with what an analysis has to know about it.

    Attributes:
        name: its name in tables and pictures, with a checkpoint but without the checkpoint's folder.
        module: the module, in evaluation mode and on its device.
        preprocessing: how an image becomes its input.
        digest: digest of names and values of its weights.
        told: what its user says of its anatomy.
        assumed: whether the preprocessing is not known but assumed.
        precision: of its products, see `tensors.precision.computing`; None is as torch is set.
    """

    name: str
    module: nn.Module
    preprocessing: Preprocessing
    digest: str
    told: Anatomy = field(default_factory=Anatomy)
    assumed: bool = False
    precision: Precision | None = None

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return next(self.module.parameters(), torch.empty(0)).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights, and so of the images that it takes."""
        layers = (own for own in self.module.modules() if isinstance(own, nn.Conv2d | nn.Linear))
        weights = (*(getattr(own, "weight", None) for own in layers), *self.module.parameters())
        floats = (own.dtype for own in weights if isinstance(own, Tensor) and own.is_floating_point())
        return next(floats, torch.float32)

    @cached_property
    def anatomy(self) -> Anatomy:
        """Which parts play which roles: as found, as measured where the module does not tell, as its user says."""
        size = self.preprocessing.input_size
        path, network = find.inner(self.module)
        if find.is_network(network) and (not path or probing.passage(self.module, path, size).once):
            return describing.anatomy(self.module, size[1:]).with_told(self.told)
        told = describing.of_network(self.module, size[1:])
        return probing.measured(self.module, told, size).with_told(self.told)


Models = str | Model | Sequence[str | Model] | Mapping[str, str | Model | nn.Module]
"""What every analysis takes as its models, see `named`."""


def load(
    name: str,
    *,
    seed: int = 0,
    device: str | torch.device | None = None,
    precision: Precision | None = None,
) -> Model:
    """Load the model that ``[SOURCE/]NAME[,KEY=VALUE...][@WEIGHTS]`` names.

    Args:
        name: SOURCE is ``lab``, ``torchvision`` or ``transformers`` (a folder or a name of its hub); NAME without one is
            timm's. KEY=VALUE goes to the constructor, as in ``vit_tiny_patch16_224,img_size=32,patch_size=4``; what a
            checkpoint itself shows (classes, size and number of patches, registers) need not be said. WEIGHTS is a checkpoint
            (safetensors, or a ``torch.save`` file read with ``weights_only=True``) of any common trainer or codebase, or
            ``random`` for the untrained twin, ``random:3`` for one of another seed; without it, the trained weights that the
            source has.
        seed: random seed of an untrained twin's weights, where the name gives none.
        device: where to put it; None is the GPU if there is one.
        precision: of its products, see `tensors.precision.computing`; None is as torch is set.

    Raises:
        Refusal: unknown name, settings that the network does not take, or weights that do not fit.
        FileNotFoundError: no such checkpoint.
        OSError: trained weights cannot be had, or the file is no checkpoint.
    """
    place = usable(device, precision)
    request = Request.of(name, seed)
    if request.name.startswith(zoo.PREFIX):
        module, preprocessing = of_lab.make(request)
    else:
        maker = _maker(request)
        module = _made(maker, request)
        preprocessing = maker.preprocessing(request.name, module)
    module = module.eval().requires_grad_(False)
    return Model(request.short(name), module.to(place), preprocessing, digest(module), precision=precision)


def load_twin(
    name: str, *, device: str | torch.device | None = None, precision: Precision | None = None
) -> Model:
    """Load the untrained twin of a model: the same network, built as the model's weights show, without them.

    Args:
        name: the model's name, as `load` takes it.
        device: where to put it; None is the GPU if there is one.
        precision: of its products, as in `load`.
    """
    request = Request.of(name)
    if request.file is None or request.name.startswith(zoo.PREFIX):
        return load(twin(name), device=device, precision=precision)
    place = usable(device, precision)
    maker = _maker(request)
    module, _, _ = _shaped(maker, request)
    module = module.eval().requires_grad_(False)
    prepared = maker.preprocessing(request.name, module)
    return Model(twin(name), module.to(place), prepared, digest(module), precision=precision)


def _maker(request: Request) -> Maker:
    return next((own for start, own in MAKERS.items() if request.name.startswith(start)), of_timm.Timm())


def usable(device: str | torch.device | None, precision: Precision | None = None) -> torch.device:
    """Make sure that there is such a device, which has such a precision, and return it; None is the GPU if there is one.

    Raises:
        Refusal: there is none, or it has not.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # of torch, one kind for each device
        raise Refusal(f"cannot compute on --device {str(device)!r}: {str(error).splitlines()[0]}") from error
    place = torch.device(device)
    if precision == "tf32" and place.type != "cuda":
        raise Refusal(f"there is no tf32 on {str(place)!r}, it is of NVIDIA's GPUs; choose float32 or bf16")
    return place


def _made(maker: Maker, request: Request) -> nn.Module:
    """Make a network, with the weights that are asked for."""
    if not request.weights:
        return maker.trained(request.name, request.settings)
    if request.file is None:
        with seeded(request.seed):
            return maker.untrained(request.name, request.settings)
    module, tensors, told = _shaped(maker, request)
    told += fitting.fit(module, tensors, request.weights)
    if told:
        logger.info("%s: %s", request.file.name, "; ".join(told))
    return module


def _shaped(maker: Maker, request: Request) -> tuple[nn.Module, Mapping[str, Tensor], list[str]]:
    """A network of the shape that a checkpoint shows, still without its weights; these, by its own names; what was done."""
    assert request.file
    with seeded(request.seed):
        module = maker.untrained(request.name, request.settings)
    read = checkpoint.read(request.file)
    named = conventions.renamed(read.tensors, module)
    settings = {
        key: value
        for key, value in maker.settings(fitting.shown(named.tensors, module), module).items()
        if key not in request.settings
    }
    if settings:
        with seeded(request.seed):
            module = maker.untrained(request.name, {**settings, **request.settings})
    told = [*read.said, *named.said, *(f"{key}={value}" for key, value in settings.items())]
    return module, named.tensors, told


def load_all(
    names: Sequence[str], *, device: str | None = None, precision: Precision | None = None
) -> list[Model]:
    """Load several models, which tables call what `called` says."""
    loaded = [load(name, device=device, precision=precision) for name in names]
    return [replace(model, name=name) for name, model in zip(called(names), loaded, strict=True)]


def called(names: Sequence[str]) -> list[str]:
    """What tables call the models of these names: short ones or, if two of those would be the same, the names as given.

    Nothing is loaded.
    """
    short = [Request.of(name).short(name) for name in names]
    return short if len(set(short)) == len(short) else list(names)


def own(
    module: nn.Module,
    name: str,
    *,
    preprocessing: Preprocessing | None = None,
    anatomy: Anatomy = Anatomy(),  # noqa: B008  (frozen)
) -> Model:
    """Make a model of a module of your own.

    Args:
        module: the module. One that only wraps another (DataParallel, torch.compile, an average of weights, or a training
            task that gives a network of timm, torchvision or transformers what it is given and returns what that returns)
            stands for the one inside.
        name: its name in tables and pictures.
        preprocessing: how an image becomes its input; None takes that of the network, or of the only one inside the module.
            Where that is no more than usual (no configuration of timm's says it, or the module changes images before its
            network), a warning says so when images are prepared.
        anatomy: what is known of it and could not be found, such as ``Anatomy(prefix=1, class_token=True)``.

    Raises:
        Refusal: it is compiled to a script, in which there is nothing to see, or its weights have no values yet.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise Refusal(
            f"{name} is a TorchScript program, in which nothing can be read; give the module it was made of"
        )
    module = _unwrapped(module)
    path, network = find.inner(module)
    if preprocessing is not None:
        return Model(name, module, preprocessing, digest(module), anatomy)
    if not find.is_network(network):
        return Model(name, module, Preprocessing(), digest(module), anatomy, assumed=True)
    preprocessing = _preprocessing(network)
    known = bool(getattr(network, "pretrained_cfg", None))
    if path:
        passage = probing.passage(module, path, preprocessing.input_size)
        if passage.given and passage.returned:
            return Model(name, network, preprocessing, digest(network), anatomy, assumed=not known)
        known = known and passage.given
        logger.info("%s: images are prepared as for its %r, a %s", name, path, type(network).__name__)
    return Model(name, module, preprocessing, digest(module), anatomy, assumed=not known)


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module that torch's and timm's own wrappers stand for; itself if it is none."""
    if type(module).__name__ not in WRAPPERS:
        return module
    return _unwrapped(next(getattr(module, name) for name in INSIDE if hasattr(module, name)))


def _preprocessing(network: nn.Module) -> Preprocessing:
    home = type(network).__module__
    if home.startswith(find.TORCHVISION):
        return of_torchvision.preprocessing(network)
    if home.startswith(find.TRANSFORMERS):
        return processors.preprocessing(network)
    return of_timm.preprocessing(network)


def named(models: Models) -> dict[str, Model]:
    """Load or wrap models, in any form that an analysis takes, and return them by name.

    Args:
        models: a loaded model or the name of one, several of them, or modules under names of your own (see `own`).

    Raises:
        Refusal: it is none of these, there is no model, or the same name occurs twice.
    """
    if isinstance(models, Mapping):
        by_name = {name: _as_model(name, value) for name, value in models.items()}
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
        by_name = {model.name: model for model in loaded}
    if not by_name:
        raise Refusal("give one or more models, such as ['lab/vit', 'lab/resnet']; got none")
    return by_name


def _as_model(name: Any, value: Any) -> Model:
    if isinstance(value, str):
        value = load(value)
    if isinstance(value, Model):
        return replace(value, name=str(name))
    if not isinstance(value, nn.Module):
        raise _no_models(value)
    return own(value, str(name))


def _no_models(found: object) -> Refusal:
    kind = type(found).__name__
    line = (
        f"{{'my {kind}': module}}" if isinstance(found, nn.Module) else "['lab/vit', models.load('resnet50')]"
    )
    return Refusal(
        f"models are names, loaded models or modules under names of your own; got {kind}. Write measure({line}, images)"
    )


def classes_of_labels(model: Model, images: Images) -> list[int] | None:
    """The model's class for each label of the images: the lab's shapes for its models, ImageNet's 1000 by their WordNet ids.

    None where it is not known that the images' labels are among the model's classes.
    """
    lab = [zoo.PREFIX + name for name in zoo.RECIPES]
    names = [name.rpartition("/")[2] for name in images.classes]  # a class may be a folder in other folders
    trained, at, weights = model.name.partition("@")
    if trained.partition(":")[0] in lab and (not at or weights.partition(":")[0] == RANDOM):
        known = {shape: number for number, shape in enumerate(scenes.SHAPES)}
    elif _classes(model.module) == ImageNetInfo().num_classes():
        known = {wnid: number for number, wnid in enumerate(ImageNetInfo().label_names())}
    else:
        return None
    return [known[name] for name in names] if names and known.keys() >= set(names) else None


def _classes(module: nn.Module) -> int | None:
    """How many classes a network tells apart, where it says so."""
    for holder, name in ((module, "num_classes"), (getattr(module, "config", None), "num_labels")):
        if isinstance(count := getattr(holder, name, None), int):
            return count
    if not (type(module).__module__.startswith(find.TORCHVISION) and find.is_network(module)):
        return None
    return [part for part in module.modules() if isinstance(part, nn.Linear)][-1].out_features
