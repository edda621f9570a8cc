"""Networks of timm: the codebase of every name without a source."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import timm
from huggingface_hub import try_to_load_from_cache
from timm.data import resolve_model_data_config
from timm.models import get_pretrained_cfg, model_entrypoint
from torch import nn

from vit_analysis.images import Preprocessing
from vit_analysis.lab import zoo
from vit_analysis.loading.fitting import Shown
from vit_analysis.makers.making import built, keys_of, no_weights
from vit_analysis.makers.request import HUBS
from vit_analysis.spelling import Refusal, did_you_mean


class Timm:
    """timm's networks, `timm.create_model`."""

    def untrained(self, name: str, settings: Mapping[str, Any]) -> nn.Module:
        """Make a network without trained weights.

        Raises:
            Refusal: timm knows no such name, or it does not take the settings.
        """
        _refuse_unknown(name)
        return built(
            name, lambda **own: timm.create_model(name, pretrained=False, **own), settings, _keys(name)
        )

    def trained(self, name: str, settings: Mapping[str, Any]) -> nn.Module:
        """Make a network with timm's weights.

        Raises:
            Refusal: timm knows no such name.
            OSError: the weights did not come.
        """
        _refuse_unknown(name)
        if settings and not name.startswith(HUBS):
            self.untrained(name, settings)  # a misspelt setting is no fault of the hub
        try:
            return timm.create_model(name, pretrained=True, **settings)
        except (
            Exception
        ) as error:  # hub clients raise errors of many libraries; all mean that the weights did not come
            raise no_weights(name, error) from error

    def settings(self, shown: Shown, module: nn.Module) -> dict[str, Any]:
        """Say with which settings a network would be as a checkpoint shows, of those in which it is not."""
        found: dict[str, Any] = {}
        if shown.classes is not None and shown.classes != getattr(module, "num_classes", None):
            found["num_classes"] = shown.classes
        first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
        if shown.channels is not None and first is not None and shown.channels != first.in_channels:
            found["in_chans"] = shown.channels
        found |= self._of_tokens(shown, module)
        return found

    def _of_tokens(self, shown: Shown, module: nn.Module) -> dict[str, Any]:
        found: dict[str, Any] = {}
        embed: Any = getattr(module, "patch_embed", None)
        if shown.patch and hasattr(embed, "patch_size") and tuple(embed.patch_size) != shown.patch:
            found["patch_size"] = shown.patch if shown.patch[0] != shown.patch[1] else shown.patch[0]
        if shown.grid and getattr(embed, "grid_size", None):
            patch = shown.patch or tuple(embed.patch_size)
            if tuple(embed.grid_size) != shown.grid or "patch_size" in found:
                size = tuple(count * side for count, side in zip(shown.grid, patch, strict=True))
                found["img_size"] = size if size[0] != size[1] else size[0]
        if shown.registers is not None and shown.registers != getattr(module, "num_reg_tokens", 0):
            found["reg_tokens"] = shown.registers
        if shown.class_token is False and getattr(module, "cls_token", None) is not None:
            found |= {"class_token": False, "global_pool": "avg"}
        if shown.average and getattr(module, "global_pool", None) == "token":
            found["global_pool"] = "avg"
        return found

    def preprocessing(self, name: str, module: nn.Module) -> Preprocessing:  # noqa: ARG002
        """Say how an image becomes the network's input: timm's data configuration."""
        return preprocessing(module)


def preprocessing(module: nn.Module) -> Preprocessing:
    """The preprocessing that timm gives for a model, but with the image size and channels that the model was built for."""
    config = resolve_model_data_config(module)
    known = {field.name for field in fields(Preprocessing)}
    channels, *size = config["input_size"]
    embed = getattr(module, "patch_embed", getattr(module, "stem", None))  # a Mixer's is its stem
    if getattr(embed, "strict_img_size", True) and isinstance(own := getattr(embed, "img_size", None), tuple):
        size = list(own)
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    if first is not None and first.in_channels == 1 and getattr(module, "pretrained_cfg", None):
        channels = 1
    config["input_size"] = (channels, *size)
    return Preprocessing(**{key: value for key, value in config.items() if key in known})


def cached(name: str) -> bool:
    """Return whether timm's trained weights of this name lie in the cache of the hub; no network is asked."""
    config = get_pretrained_cfg(name.partition(",")[0])
    if config is None or not config.hf_hub_id:
        return False
    files = (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin")
    found = (try_to_load_from_cache(config.hf_hub_id, file) for file in files if file)
    return any(isinstance(own, str) for own in found)


def _refuse_unknown(name: str) -> None:
    if not name.startswith(HUBS) and not timm.is_model(name.partition(".")[0]):
        everything = [
            *(zoo.PREFIX + own for own in zoo.RECIPES),
            *timm.list_models(),
            *timm.list_pretrained(),
            "torchvision/resnet50",
            "torchvision/vit_b_16",
        ]
        raise Refusal(f"no model {name!r}; {did_you_mean(name, everything)}")


def _keys(name: str) -> set[str]:
    common = {
        "num_classes",
        "in_chans",
        "img_size",
        "patch_size",
        "global_pool",
        "drop_rate",
        "drop_path_rate",
    }
    if name.startswith(HUBS):
        return common
    entry = model_entrypoint(name.partition(".")[0])
    home = __import__(entry.__module__, fromlist=["_"])
    classes = [
        kind
        for kind in vars(home).values()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == entry.__module__
    ]
    return common.union(*(keys_of(kind.__init__) for kind in classes))
