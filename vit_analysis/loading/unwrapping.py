"""The weights among all that a ``torch.save`` file holds: which of its nested dictionaries, and which of several networks."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vit_analysis.loading import choice, foreign
from vit_analysis.loading.choice import counted, first
from vit_analysis.loading.foreign import unsafe
from vit_analysis.loading.pickled import Inert

WRAPPERS = {
    *(
        "state_dict",
        "model_state_dict",
        "model_state",
        "model",
        "net",
        "network",
        "module",
        "weights",
        "params",
    ),
    *("state_dict_ema", "model_ema", "ema_model", "ema", "teacher", "student", "backbone", "encoder"),
}
"""Keys under which nothing but weights is expected. Weights under any other key are found too."""
NO_WEIGHTS = re.compile(
    r"optimi[sz]er|scheduler|^(opts?|optim|optims|scaler|amp|amp_scaler|grad_scaler|callbacks|loops)$|rng_state|random_state"
)
"""Keys of a trainer's own state, in which tensors are no weights."""
DEEPEST = 8  # dictionaries in each other
SAME = 0.9  # share of names that two sets of weights have in common if they are of one network


def unwrapped(path: Path, content: Any, unread: list[str]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights among all that a ``torch.save`` file holds."""
    _refuse_what_is_no_dictionary(path, content)
    sets = dict(_sets(content))
    objects = {place: value for place, value in _objects(content) if place.rpartition(".")[2] in WRAPPERS}
    if objects and not any(sets):
        raise unsafe(path, f"it holds {_what(next(iter(objects.values())))} where weights are expected")
    if not sets:
        found = [
            f"{key!r} ({_what(value)})"
            for key, value in _innermost(content).items()
            if not isinstance(value, Tensor)
        ]
        raise OSError(
            f"{str(path)!r} holds {first(found) or 'nothing'} where tensors by name are expected; {foreign.SAVE}"
        )
    for place, own in sets.items():
        _refuse_what_is_no_tensor(path, place, own)
    weights = {
        at: {k: v.detach() for k, v in own.items() if isinstance(v, Tensor)} for at, own in sets.items()
    }
    main = _main(weights)
    chosen, said = _chosen(main)
    odd = [_join(at, name) for at in main for name in sets[at] if name not in weights[at]]
    aside = [_join(at, name) for at in weights if at not in main for name in weights[at]]
    if odd:
        said.append(f"{len(odd)} of its entries, which are no tensors, left aside ({first(odd)})")
    if aside:
        said.append(f"{counted(len(aside), 'tensor')} elsewhere left aside ({first(aside)})")
    return chosen, [*said, *([f"{_listed(unread)} left unread"] if unread else [])]


def _chosen(main: Mapping[str, dict[str, Tensor]]) -> tuple[dict[str, Tensor], list[str]]:
    """One of the sets if all are of one network, else all, with their places before their names."""
    best = choice.preferred(main) if _are_alike(main) else None
    if best is None:
        return {_join(at, name): value for at, own in main.items() for name, value in own.items()}, []
    others = [f"{at!r}" if at else "the top" for at in main if at != best]
    not_taken = f", not under {', '.join(others)}" if others else ""
    return main[best], [f"weights under {best!r}{not_taken}"] if best or others else []


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _sets(
    content: Mapping[Any, Any], place: str = "", depth: int = 0
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dictionary that holds tensors itself, with the keys that lead to it, but for a trainer's own state."""
    if "param_groups" in content:
        return
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    own = {key: value for key, value in named.items() if not isinstance(value, Mapping)}
    tensors = sum(isinstance(value, Tensor) for value in own.values())
    if 2 * tensors > len(own):  # a loss among settings is no weight
        yield place, own
    if depth < DEEPEST:
        for key, value in named.items():
            if isinstance(value, Mapping) and not NO_WEIGHTS.search(key):
                yield from _sets(value, _join(place, key), depth + 1)


def _objects(content: Mapping[Any, Any], place: str = "", depth: int = 0) -> Iterator[tuple[str, Inert]]:
    """Every object in the nested dictionaries that was left unread, with the keys that lead to it."""
    for key, value in content.items():
        at = _join(place, str(key))
        if isinstance(value, Inert):
            yield at, value
        elif isinstance(value, Mapping) and depth < DEEPEST:
            yield from _objects(value, at, depth + 1)


def _innermost(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """What stands where weights are expected: below the keys of wrappers."""
    below = next(
        (value for key, value in content.items() if key in WRAPPERS and isinstance(value, Mapping)), None
    )
    return content if below is None else _innermost(below)


def _main(weights: Mapping[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """The sets of weights that may be a network's; a loss, a counter or a queue beside them is none."""
    largest = max(len(own) for own in weights.values())
    return {place: own for place, own in weights.items() if len(own) * 10 >= largest}


def _are_alike(weights: Mapping[str, dict[str, Tensor]]) -> bool:
    """Return whether all sets have the names of one network."""
    names = [{re.sub(r"\b(module|_orig_mod)\.", "", name) for name in own} for own in weights.values()]
    return all(len(a & b) >= SAME * max(len(a), len(b)) for a in names for b in names)


def _refuse_what_is_no_dictionary(path: Path, content: Any) -> None:
    if isinstance(content, Inert):
        raise unsafe(path, f"it holds {_what(content)} where weights are expected")
    if not isinstance(content, Mapping):
        raise OSError(
            f"{str(path)!r} holds {type(content).__name__}, not a dictionary of tensors; {foreign.SAVE}"
        )


def _refuse_what_is_no_tensor(path: Path, place: str, own: Mapping[str, Any]) -> None:
    """Refuse an object in the place of a tensor; numbers, words and a trainer's settings are no weights and left out."""
    if packed := [name for name in own if "_packed_params" in name]:
        raise unsafe(
            path, f"its weights are quantised ({packed[0]}); save the weights before they are quantised"
        )
    for name, value in own.items():
        is_object = isinstance(value, Inert) and not name.endswith("_extra_state")
        if is_object and ("." in name or place.rpartition(".")[2] in WRAPPERS):
            raise unsafe(path, f"it holds {_what(value)} where weights are expected, at {name!r}")


def _what(value: Any) -> str:
    if not isinstance(value, Inert):
        return type(value).__name__
    if value.is_module:
        return f"a whole pickled module ({value.name}, instead of its state_dict())"
    return value.name


def _listed(names: list[str]) -> str:
    if len(names) == 1:
        return f"{'an' if names[0][0] in 'aeiou' else 'a'} {names[0]} was"
    return f"{len(names)} kinds of objects ({first(names)}) were"
