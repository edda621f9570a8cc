"""What is kept of all images at once, such as every token of every layer, in portions for which there is room.

The images go through the models once for each portion: time is spent so that memory is bounded.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import Tensor

from vit_analysis.reading.capture import Layer
from vit_analysis.reading.stream import Activation, Reading, gather

Place = tuple[str, Layer]  # name of the model, layer

# Bytes of float32 that are held at a time, or those of one token if they are more.
ROOM = 2**30


def dealt(sizes: Mapping[Place, tuple[int, int]], images: int) -> list[dict[Place, slice]]:
    """Deal the tokens of all layers, in order, into portions.

    Args:
        sizes: of each layer the number of tokens, and that of features of each.
        images: how many images there are.
    """
    portions: list[dict[Place, slice]] = [{}]
    room = ROOM
    for place, (tokens, features) in sizes.items():
        each, first = 4 * images * features, 0
        while first < tokens:
            if room < each and portions[-1]:
                portions.append({})
                room = ROOM
            count = min(tokens - first, max(1, room // each))
            portions[-1][place] = slice(first, first + count)
            room, first = room - count * each, first + count
    return portions


def held(portions: list[dict[Place, slice]], sizes: Mapping[Place, tuple[int, int]], images: int) -> int:
    """Bytes of the largest portion."""
    return max(
        sum(4 * images * sizes[place][1] * (own.stop - own.start) for place, own in portion.items())
        for portion in portions
    )


def gathered(
    reading: Reading, portions: list[dict[Place, slice]], called: str
) -> Iterator[tuple[Place, Tensor]]:
    """Yield what is kept of all images, ``image token feature``, layer by layer; of a layer, part by part in order.

    Args:
        reading: its reducer keeps ``image token feature`` of a layer.
        portions: see `dealt`.
        called: what a pass is called while it runs.
    """
    for number, portion in enumerate(portions, 1):
        part = f", part {number} of {len(portions)}" if len(portions) > 1 else ""
        found = gather(_of(reading, portion), called + part)
        for place in list(found):
            yield place, found.pop(place)  # given up here, so that what it was used for frees it


def _of(reading: Reading, portion: Mapping[Place, slice]) -> Reading:
    def reduce(activation: Activation) -> Tensor | None:
        own = portion.get((activation.model.name, activation.layer))
        values = None if own is None else reading.reduce(activation)
        return None if own is None or values is None else values[:, own]

    wanted = {(name, layer.tap) for name, layer in portion}
    taps = {name: [tap for tap in own if (name, tap) in wanted] for name, own in reading.taps.items()}
    there = {name: own for name, own in taps.items() if own}
    return replace(reading, models={name: reading.models[name] for name in there}, taps=there, reduce=reduce)
