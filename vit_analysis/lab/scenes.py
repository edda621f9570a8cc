"""Scenes drawn by code: a textured shape on a grating, with its ground truth (the lab's data set).

No public data set says where in a network texture (local), shape (global) and position (spatial) live; these
images do, because each factor is drawn independently of the others and returned beside the image. Scene `i` of a
seed is always the same scene, in whatever batch, at whatever size and on whatever device it is drawn: its numbers
come from hashing (seed, i), not from a generator that keeps state. Scenes never seen before are those of another seed.

    scenes = draw(range(256), seed=1)
    scenes.image      # [256, 3, 32, 32] in [0, 1]
    scenes.shape      # [256], SHAPES[shape] is its name

Coordinates run from -1 (top, left) to 1 (bottom, right) and lengths are shares of half the image. The object is
brighter than its background: where either may be the brighter one, a small Vision Transformer stays at chance for
60,000 images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, Int32, UInt64
from torch import Tensor

from vit_analysis.spelling import Refusal

# Every scene has one independent number in [0, 1) for each of these names.
FACTORS = (
    *("shape", "texture", "row", "column", "scale", "angle", "noise"),
    *("texture_angle", "texture_wavelength", "texture_phase_u", "texture_phase_v"),
    *("grating_angle", "grating_wavelength", "grating_phase"),
    *("object_red", "object_green", "object_blue", "ground_red", "ground_green", "ground_blue"),
)
RADIUS = (0.35, 0.65)
REACH = 0.45  # centres lie within +-REACH: only the largest objects are cut, by at most 1.6 of 32 pixels
TEXTURE_WAVELENGTH = (0.26, 0.38)  # 4 to 6 pixels of 32
GRATING_WAVELENGTH = (0.5, 1.2)
OBJECT_COLOUR, TEXTURE_CONTRAST = (0.66, 0.86), 0.14  # both together: 0.52 to 1.0
GROUND_COLOUR, GRATING_CONTRAST = (0.08, 0.32), 0.08  # both together: 0.0 to 0.4
NOISE = 0.04  # the largest deviation; uniform, independent in each channel

# A texture is a sin(u) + b sin(v) + c sin(u) sin(v) + d with u, v along its own two axes: (a, b, c, d).
WAVES = {
    "plain": (0.0, 0.0, 0.0, 0.0),
    "stripes": (1.0, 0.0, 0.0, 0.0),
    "checker": (0.0, 0.0, 1.5, 0.0),
    "dots": (1.0, 1.0, 0.0, -0.4),
}
TEXTURES: tuple[str, ...] = tuple(WAVES)
STEEPNESS = 2.5  # factor on a texture before it is cut to [-1, 1], which steepens its flanks

Column = Float[Tensor, "image 1 1"]
Plane = Float[Tensor, "image size size"]


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes and their ground truth."""

    image: Float[Tensor, "image 3 size size"]
    """Red, green and blue in [0, 1]."""
    shape: Int[Tensor, " image"]
    """Index into `SHAPES`."""
    texture: Int[Tensor, " image"]
    """Index into `TEXTURES`."""
    position: Float[Tensor, "image 2"]
    """Row and column of the object's centre of mass: 0 is the top or left edge, 1 the bottom or right edge."""
    scale: Float[Tensor, " image"]
    """Radius of the object, as a share of half the image."""


def draw(
    indices: Sequence[int] | Int[Tensor, " image"],
    *,
    seed: int = 0,
    size: int = 32,
    device: torch.device | str = "cpu",
) -> Scenes:
    """Draw the scenes with these numbers, `size` pixels wide, on `device`."""
    if size < 1:
        raise Refusal(f"a scene is at least 1 pixel wide, got size={size}")
    numbers = uniforms(np.asarray(indices, dtype=np.int64).astype(np.uint64), seed)
    shape = torch.from_numpy((numbers["shape"] * len(SHAPES)).astype(np.int64)).to(device)
    texture = torch.from_numpy((numbers["texture"] * len(TEXTURES)).astype(np.int64)).to(device)
    key = torch.from_numpy((numbers["noise"] * 2**31).astype(np.int32)).to(device)
    factors = {
        name: torch.from_numpy(u.astype(np.float32)).to(device)[:, None, None] for name, u in numbers.items()
    }

    centre = within((-REACH, REACH), torch.stack([factors["row"], factors["column"]]))
    scale = within(RADIUS, factors["scale"])
    covered = coverage(shape, centre, scale, 2 * torch.pi * factors["angle"], size)
    figure = colour("object", factors) + TEXTURE_CONTRAST * pattern(texture, factors, size)[:, None]
    ground = colour("ground", factors) + GRATING_CONTRAST * grating(factors, size)[:, None]
    image = torch.lerp(ground, figure, covered[:, None]).add_(noise(key, size), alpha=NOISE).clamp_(0, 1)
    return Scenes(
        image,
        shape,
        texture,
        rearrange((centre + 1) / 2, "coordinate image 1 1 -> image coordinate"),
        scale.flatten(),
    )


def truth(
    indices: Sequence[int] | Int[Tensor, " image"], *, seed: int = 0
) -> dict[str, Int[Tensor, " image"]]:
    """Return the class of each of `TARGETS` without drawing: which shape, which texture, and in which cell its centre lies.

    The cells are `CELLS` x `CELLS` equal parts of the square where centres may lie, so all are equally likely.
    """
    numbers = uniforms(np.asarray(indices, dtype=np.int64).astype(np.uint64), seed)
    kinds = {"shape": len(SHAPES), "texture": len(TEXTURES), "row": CELLS, "column": CELLS}
    found = {
        name: torch.from_numpy((numbers[name] * count).astype(np.int64)) for name, count in kinds.items()
    }
    position = CELLS * found["row"] + found["column"]
    return {"shape": found["shape"], "texture": found["texture"], "position": position}


# The numbers that decide what a scene looks like.


def uniforms(indices: UInt64[np.ndarray, " image"], seed: int) -> dict[str, Float[np.ndarray, " image"]]:
    """One number in [0, 1) per factor and scene, hashed from the seed, the scene's number and the factor's."""
    keys = mixed(mixed(np.array([seed % 2**64], dtype=np.uint64)) + indices)
    return {
        name: (mixed(keys + np.uint64(1 + i)) >> np.uint64(11)) / 2.0**53 for i, name in enumerate(FACTORS)
    }


def mixed(counter: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """The counter-th output of the generator splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    z = counter * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def within(bounds: tuple[float, float], uniform: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Numbers in [0, 1) stretched to lie between the bounds."""
    low, high = bounds
    return low + (high - low) * uniform


# The object: signed distances, negative inside, to outlines of radius about 1 around their centre of mass.


def disk(x: Plane, y: Plane) -> Plane:
    """Filled circle."""
    return torch.hypot(x, y) - 1


def ring(x: Plane, y: Plane) -> Plane:
    """Circle with a hole of half its radius."""
    return (torch.hypot(x, y) - 0.75).abs() - 0.25


def half_disk(x: Plane, y: Plane) -> Plane:
    """Half a circle, whose centre of mass lies 4 / (3 pi) from the cut."""
    y = y + 4 / (3 * torch.pi)
    return torch.maximum(torch.hypot(x, y) - 1, -y)


def crescent(x: Plane, y: Plane) -> Plane:
    """Circle less a circle of 3/4 of its radius; its centre of mass, like the heart's, was found by counting pixels."""
    x = x - 0.337
    return torch.maximum(torch.hypot(x, y) - 1, 0.75 - torch.hypot(x - 0.55, y))


def square(x: Plane, y: Plane) -> Plane:
    """Square with sides of 1.5."""
    return torch.maximum(x.abs(), y.abs()) - 0.75


def bar(x: Plane, y: Plane) -> Plane:
    """Rectangle three times as long as it is wide."""
    return torch.maximum(x.abs() - 1, y.abs() - 0.33)


def cross(x: Plane, y: Plane) -> Plane:
    """Two bars at a right angle."""
    return torch.minimum(bar(x, y), bar(y, x))


def triangle(x: Plane, y: Plane) -> Plane:
    """Equilateral triangle."""
    return torch.maximum(3**0.5 / 2 * x.abs() - y / 2, y) - 0.5


def star(x: Plane, y: Plane) -> Plane:
    """Star of five points: folded along its axes of symmetry onto a tenth of itself, which has one straight edge."""
    x, cosine, sine = x.abs(), 0.8090, 0.5878  # of 36 degrees
    for side in (1, -1):
        beyond = 2 * (side * cosine * x - sine * y).clamp(min=0)
        x, y = x - side * beyond * cosine, y + beyond * sine
    return 0.923 * x.abs() + 0.384 * (y - 1)


def heart(x: Plane, y: Plane) -> Plane:
    """A square on its tip with half disks on its upper sides."""
    x, y = 1.2 * x.abs(), 1.2 * y - 0.313
    return torch.minimum((x + y.abs() - 1) / 2**0.5, torch.hypot(x - 0.5, y + 0.5) - 0.5**0.5) / 1.2


OUTLINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    outline.__name__: outline
    for outline in (disk, ring, half_disk, crescent, square, bar, cross, triangle, star, heart)
}
SHAPES: tuple[str, ...] = tuple(OUTLINES)

CELLS = 3
# What scenes can be classified by, with the names of the classes.
TARGETS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "texture": TEXTURES,
    "position": tuple(
        f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right")
    ),
}


def coverage(
    shape: Int[Tensor, " image"],
    centre: Float[Tensor, "2 image 1 1"],
    scale: Column,
    angle: Column,
    size: int,
) -> Plane:
    """Share of each pixel that the object covers, from the distance of the pixel's centre to the outline."""
    line = pixels(size, shape.device)
    y, x = (line[:, None] - centre[0]) / scale, (line - centre[1]) / scale
    x, y = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    distance = torch.empty_like(x)
    for kind, outline in enumerate(OUTLINES.values()):
        images = (shape == kind).nonzero().squeeze(1)
        distance[images] = outline(x[images], y[images])
    return (0.5 - distance * scale * (size / 2)).clamp_(0, 1)


# Its texture, the background, the colours and the noise.


def pixels(size: int, device: torch.device) -> Float[Tensor, " size"]:
    """Coordinates of the pixels' centres along one axis."""
    return (2 * torch.arange(size, device=device) + 1) / size - 1


def wave(angle: Column, wavelength: Column, phase: Column, size: int) -> Plane:
    """Plane sine wave that runs along `angle`."""
    line = pixels(size, angle.device)
    turns = 2 * torch.pi / wavelength
    return (turns * angle.cos() * line + (turns * angle.sin() * line[:, None] + 2 * torch.pi * phase)).sin_()


def pattern(texture: Int[Tensor, " image"], factors: dict[str, Tensor], size: int) -> Plane:
    """Brightness of the texture, between -1 and 1."""
    angle = 2 * torch.pi * factors["texture_angle"]
    wavelength = within(TEXTURE_WAVELENGTH, factors["texture_wavelength"])
    u = wave(angle, wavelength, factors["texture_phase_u"], size)
    v = wave(angle + torch.pi / 2, wavelength, factors["texture_phase_v"], size)
    weights = torch.tensor(list(WAVES.values()), device=texture.device)[texture]
    a, b, c, d = rearrange(weights, "image wave -> wave image 1 1")
    return (STEEPNESS * (a * u + b * v + c * u * v + d)).clamp_(-1, 1)


def grating(factors: dict[str, Tensor], size: int) -> Plane:
    """Brightness of the background, between -1 and 1."""
    wavelength = within(GRATING_WAVELENGTH, factors["grating_wavelength"])
    return wave(2 * torch.pi * factors["grating_angle"], wavelength, factors["grating_phase"], size)


def colour(name: str, factors: dict[str, Tensor]) -> Float[Tensor, "image 3 1 1"]:
    """Red, green and blue of the object or of the ground."""
    bounds = {"object": OBJECT_COLOUR, "ground": GROUND_COLOUR}[name]
    return within(
        bounds, torch.stack([factors[f"{name}_{each}"] for each in ("red", "green", "blue")], dim=1)
    )


def noise(key: Int32[Tensor, " image"], size: int) -> Float[Tensor, "image 3 size size"]:
    """Uniform noise between -1 and 1, ten bits a channel, the same on every device.

    The hash of 32 bits is one that Wellons found by search ("Prospecting for hash functions", 2018).
    """
    golden = -1640531527  # 2^32 / golden ratio
    z = key[:, None] + torch.arange(size * size, dtype=torch.int32, device=key.device) * golden
    z = (z ^ (z >> 16 & 0xFFFF)) * 0x7FEB352D
    z = (z ^ (z >> 15 & 0x1FFFF)) * -2073254261  # 0x846CA68B as a signed number
    z = z ^ (z >> 16 & 0xFFFF)
    bits = torch.stack([z, z >> 10, z >> 20], dim=1) & 1023
    return rearrange(bits, "image channel (row column) -> image channel row column", row=size) / 511.5 - 1
