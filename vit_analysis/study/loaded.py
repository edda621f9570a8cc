"""The models of a study, loaded, each under the name that tables give it and in the part it plays."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from vit_analysis import models
from vit_analysis.lab import zoo
from vit_analysis.models import Model
from vit_analysis.study.parts import Parts
from vit_analysis.typed import Machine

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cast:
    """The models of a study.

    Attributes:
        parts: the models by the part they play, under the names that tables use.
        models: the loaded models, by that name, untrained twins included.
    """

    parts: Parts
    models: Mapping[str, Model]

    @classmethod
    def load(cls, parts: Parts, machine: Machine = Machine(), *, twins: bool = True) -> "Cast":  # noqa: B008  (frozen)
        """Load the models named, and the untrained twins of the first ones; lab models without weights are left out."""
        there = parts.change(_there)
        names = there.runs()
        loaded = dict(
            zip(
                names, models.load_all(names, device=machine.device, precision=machine.precision), strict=True
            )
        )
        own = {model.name: model for model in loaded.values()}
        for name in (*there.names("vit")[:1], *there.names("cnn")[:1]) if twins else ():
            if models.twin(name) not in names:
                twin = models.load_twin(name, device=machine.device, precision=machine.precision)
                own[models.twin(loaded[name].name)] = replace(twin, name=models.twin(loaded[name].name))
        return cls(there.change(lambda name: loaded[name].name), own)

    def of(self, *parts: str) -> list[Model]:
        """The models of these parts, the first run of each."""
        return [self.models[name] for name in self.parts.names(*parts)]

    def runs(self, *parts: str) -> list[Model]:
        """The models of these parts, every training run."""
        return [self.models[name] for name in self.parts.runs(*parts)]

    @property
    def twins(self) -> list[Model]:
        """The untrained twins that are loaded."""
        names = (name for name in self.parts.twins() if name not in self.parts.runs())
        return [self.models[name] for name in names if name in self.models]


def _there(name: str) -> str | None:
    known = [zoo.PREFIX + own for own in zoo.RECIPES]
    if name.partition(":")[0] in known and not zoo.home(name).exists():
        logger.warning("no weights of %r yet: train it with python -m vit_analysis.train %s", name, name)
        return None
    return name
