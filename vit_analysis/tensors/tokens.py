"""Which part of a layer's activation is compared: all of it, spatial tokens, the class token, a mean, or robust variants.

A *token layer* is ``image token channel``, with ``prefix`` tokens (class, distillation, registers) before the spatial ones.
A *map* is ``image channel row col`` (or channels last); its positions count as spatial tokens. Any other
activation is compared whole.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float32, Float64, Int
from torch import Tensor
from torch.nn import functional

from vit_analysis.spelling import Refusal

# A token is massive if its norm is above this many times the median of its layer. On an ImageNet ViT-Ti/16 the massive tokens
# stand at 30-50 times the median and ordinary ones reach 2, so any number between 4 and 20 finds the same tokens.
MASSIVE = 5.0
DOMINANT_IMAGES = 0.01  # share of the images of a batch
# How to say what is not known of a module of one's own.
TELL = "models.own(module, 'NAME', anatomy=Anatomy({}))"
TINY = 1e-12  # tokens are divided by their norm or by this, whichever is larger


@dataclass(frozen=True)
class Grid:
    """The cells of spatial tokens in the input: row by row from the top left, each ``height`` x ``width`` pixels.

    The first cell begins at pixel (``top``, ``left``): before the image (a negative number) where a network pads it. Pixels
    that are left over at the right and at the bottom are in no cell.
    """

    rows: int
    columns: int
    height: float
    width: float
    top: float = 0.0
    left: float = 0.0

    def middle(self) -> tuple[float, float]:
        """Row and column of the pixel in the middle of the cell at the middle position."""
        row, column = (
            count // 2 * side for count, side in ((self.rows, self.height), (self.columns, self.width))
        )
        return self.top + row + (self.height - 1) / 2, self.left + column + (self.width - 1) / 2

    def distances(self) -> Float64[Tensor, "query key"]:
        """Distances between the centres of all pairs of tokens, in pixels of the input."""
        row, column = torch.meshgrid(torch.arange(self.rows), torch.arange(self.columns), indexing="ij")
        place = torch.stack([row.flatten() * self.height, column.flatten() * self.width], dim=1).double()
        return torch.linalg.vector_norm(place[:, None] - place, dim=-1)

    def uniform(self) -> float:
        """The mean of `distances`, from how often each offset occurs: they need not be held."""
        down, across = (torch.arange(1 - count, count).double() for count in (self.rows, self.columns))
        times = (self.rows - down.abs())[:, None] * (self.columns - across.abs())
        apart = torch.hypot(down[:, None] * self.height, across * self.width)
        return float((times * apart).sum() / (self.rows * self.columns) ** 2)


@dataclass(frozen=True)
class Layout:
    """The way a model arranges its activations.

    Attributes:
        spatial: number of spatial tokens of a token layer; None for a model without a fixed token grid.
        prefix: number of prefix tokens before them; None if that is not known.
        class_token: whether the first prefix token is a class token; None if that is not known.
        channels_last: whether maps are ``image row col channel``.
        by_shape: whether a square map's shape decides instead of `channels_last`: two equal axes are its rows and columns.
        grid: rows and columns of the spatial tokens of a token layer, where there is a fixed grid.
        counted: whether token layers have these numbers of tokens and no others.
    """

    spatial: int | None = None
    prefix: int | None = 0
    class_token: bool | None = False
    channels_last: bool = False
    by_shape: bool = False
    grid: tuple[int, int] | None = None
    counted: bool = False

    def prefix_of(self, activation: Tensor) -> int:
        """The number of prefix tokens in this activation; a patch embedding, before the class token is added, has none.

        Raises:
            Refusal: it is not known, or these are neither the spatial tokens nor those with the prefix before them.
        """
        if activation.ndim != 3 or activation.shape[1] == self.spatial:
            return 0
        tokens = activation.shape[1]
        if self.prefix is None:
            raise Refusal(
                f"how many of these {activation.shape[1]} tokens stand before the spatial ones (class token, registers) is "
                f"not known; say it: {TELL.format('prefix=1, class_token=True')}"
            )
        if self.counted and self.spatial and tokens > self.prefix and tokens != self.spatial + self.prefix:
            raise Refusal(
                f"these {tokens} tokens are neither the {self.spatial} of the grid nor those with the {self.prefix} tokens "
                f"before them (class token, registers), so which of them have a place in the image is not known; say it: "
                f"{TELL.format('prefix=1, class_token=True')}"
            )
        return min(self.prefix, tokens)

    def has_class_token(self, activation: Tensor) -> bool:
        """Return whether this activation has a class token, which is then its first token.

        Raises:
            Refusal: it is not known.
        """
        if not self.prefix_of(activation):
            return False
        if self.class_token is None:
            raise Refusal(
                f"whether the first of these {activation.shape[1]} tokens is a class token is not known; say it, as in "
                f"{TELL.format('class_token=True')}"
            )
        return self.class_token

    def ends_with_channels(self, map: Float[Tensor, "image a b c"]) -> bool:
        """Return whether this map is ``image row col channel``: some models have such blocks and do not declare it."""
        _, first, middle, last = map.shape
        if self.grid and ((first, middle) == self.grid) != ((middle, last) == self.grid):
            return (first, middle) == self.grid
        if self.by_shape and (first == middle) != (middle == last):
            return first == middle
        return self.channels_last


def everything(activation: Tensor, layout: Layout) -> Tensor:  # noqa: ARG001
    """All values: every token, class token included, and every channel (the choice of the authors' released code)."""
    return activation


def spatial(activation: Tensor, layout: Layout) -> Tensor | None:
    """The spatial tokens; None for a token layer that has none. A map is returned whole."""
    if activation.ndim != 3:
        return activation
    prefix = layout.prefix_of(activation)
    return activation[:, prefix:] if prefix < activation.shape[1] else None


def class_token(activation: Tensor, layout: Layout) -> Tensor | None:
    """The class token; None for a token layer that has none. Maps and vectors are returned whole."""
    if activation.ndim != 3:
        return activation
    return activation[:, 0] if layout.has_class_token(activation) else None


def mean(activation: Tensor, layout: Layout) -> Tensor:
    """Mean over all tokens, or over all positions of a map: one vector of channels per image."""
    return as_tokens(activation, layout).mean(1)


def normalized(activation: Tensor, layout: Layout) -> Tensor:
    """Each token, or each position of a map, scaled to norm 1, so that no token can outweigh another."""
    return torch.nn.functional.normalize(as_tokens(activation.float(), layout), dim=-1, eps=TINY)


def standardized(activation: Tensor, layout: Layout) -> Tensor:
    """Each token standardised over its channels, as a LayerNorm without weights does."""
    tokens = as_tokens(activation.float(), layout)
    return torch.nn.functional.layer_norm(tokens, tokens.shape[-1:])


def inliers(activation: Tensor, layout: Layout) -> Tensor:
    """All tokens, with each massive one replaced by the mean over the batch of the ordinary tokens at its place.

    After centring over images the replacement contributes nothing, which is what dropping a token from a Gram matrix means.
    """
    tokens = as_tokens(activation.float(), layout)
    ordinary = ~massive(norms(tokens))[..., None]
    typical = (tokens * ordinary).sum(0) / ordinary.sum(0).clamp(min=1)
    return torch.where(ordinary, tokens, typical)


def typical(activation: Tensor, layout: Layout) -> Tensor:  # noqa: ARG001
    """All images, with the 1 % (at least one) farthest from the mean of the batch replaced by the mean of the others.

    After centring they contribute next to nothing, which is what dropping them from a Gram matrix means. A few dominant images
    can make up a layer's similarity (Nguyen et al. 2022).
    """
    rows = activation.flatten(1).float()
    far = dominant(torch.linalg.vector_norm(rows - rows.mean(0), dim=1))
    ordinary = torch.ones(len(rows), 1, device=rows.device).index_fill(0, far, 0)
    return torch.where(ordinary > 0, rows, (rows * ordinary).sum(0) / ordinary.sum())


SELECTIONS: Mapping[str, Callable[[Tensor, Layout], Tensor | None]] = {
    "all": everything,
    "spatial": spatial,
    "cls": class_token,
    "mean": mean,
    "normalized": normalized,
    "standardized": standardized,
    "inliers": inliers,
    "typical": typical,
}


def as_tokens(activation: Tensor, layout: Layout) -> Float[Tensor, "image token channel"]:
    """Any activation as tokens: a map's positions, or a vector as one token."""
    if activation.ndim == 4:
        last = layout.ends_with_channels(activation)
        axes = "image row col channel" if last else "image channel row col"
        return rearrange(activation, f"{axes} -> image (row col) channel")
    return activation if activation.ndim == 3 else activation.flatten(1)[:, None]


def channels_first(
    map: Float[Tensor, "image a b c"], layout: Layout
) -> Float[Tensor, "image channel row col"]:
    """A map as ``image channel row col``, however the model arranges it."""
    if not layout.ends_with_channels(map):
        return map
    return rearrange(map, "image row col channel -> image channel row col")


def aligned(
    activation: Float[Tensor, "image channel row col"], channels: int, grid: tuple[int, int]
) -> Float[Tensor, "image token feature"]:
    """A map brought to the size of another, so that layers of one network can be compared (Raghu et al. 2021, appendix).

    Patches are flattened into channels until there are about as many channels as wanted, then rows and columns are pooled. In
    a ResNet-50, whose last maps are 2048 channels of 7 x 7, that is 2 x 4 patches in stage 1, 2 x 2 in stage 2 and 1 x 2 in
    stage 3.

    Args:
        activation: the map, channels first.
        channels: number of channels of the other map.
        grid: rows and columns of the other map.
    """
    patch, size = [1, 1], activation.shape[2:]
    while activation.shape[1] * patch[0] * patch[1] * 2 <= channels:
        side = 1 if patch[1] == patch[0] else 0  # columns first: 1 x 2, 2 x 2, 2 x 4
        if size[side] % (2 * patch[side]) or size[side] // (2 * patch[side]) < grid[side]:
            break
        patch[side] *= 2
    axes = "image channel (row down) (col across) -> image (channel down across) row col"
    unfolded = rearrange(activation, axes, down=patch[0], across=patch[1])
    return rearrange(
        functional.adaptive_avg_pool2d(unfolded, grid), "image feature row col -> image (row col) feature"
    )


def on_grid(activation: Tensor, layout: Layout, layer: str) -> Float[Tensor, "image row col channel"]:
    """The spatial tokens of a token layer, or the positions of a map, at their rows and columns; a view, not a copy.

    Raises:
        Refusal: the layer is neither.
    """
    if activation.ndim == 4:
        return activation if layout.ends_with_channels(activation) else activation.permute(0, 2, 3, 1)
    tokens = spatial(activation, layout) if activation.ndim == 3 else None
    if tokens is not None and layout.grid and tokens.shape[1] == layout.grid[0] * layout.grid[1]:
        return tokens.unflatten(1, layout.grid)
    expected = f"{layout.grid[0]} x {layout.grid[1]} tokens" if layout.grid else "tokens of a fixed grid"
    raise Refusal(
        f"{layer} is {' x '.join(map(str, activation.shape))}, neither image x token x channel with {expected} nor a map "
        f"image x channel x row x col, so nothing in it has a place in the image; choose another layer"
    )


def norms(tokens: Float[Tensor, "image token channel"]) -> Float32[Tensor, "image token"]:
    """The norm of every token, in float32; half precision is never widened as a whole."""
    precision = torch.promote_types(tokens.dtype, torch.float32)
    return torch.linalg.vector_norm(tokens, dim=-1, dtype=precision).float()


def massive(norms: Float[Tensor, "image token"]) -> Bool[Tensor, "image token"]:
    """Return which tokens are massive (Darcet et al. 2024; Sun et al. 2024): norm above 5 times the batch's median."""
    return norms > MASSIVE * norms.median()


def dominant(distances: Float[Tensor, " image"]) -> Int[Tensor, " far"]:
    """The numbers of the 1 % of images, at least one, that are farthest from the mean."""
    return distances.topk(max(1, round(DOMINANT_IMAGES * len(distances)))).indices
