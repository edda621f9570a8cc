"""Gram matrices of one activation, under any choice of its tokens, with as few matrix products as possible.

Nearly all of the cost is in products over all features. Several choices need no product of their own:

    spatial tokens      what all tokens give, less what the prefix tokens give: a Gram matrix is a sum over features
    inliers             what all tokens give, where no token is massive
    typical images      T K T', where T puts the mean of the ordinary images in the place of the others
    first images        rows and columns of K

The first and the third are used where they are precise; elsewhere the choice gets a product of its own.

Different measurements ask for the same Gram matrices of the same activation, so each is made once and kept as long as the
activation.

The cost of a Gram matrix per image grows with the number of images, and what an unbiased similarity is of does not depend on
it. So similarities are of *parts* of a batch: the blocks along the diagonal of its Gram matrix, which are cut out where
somebody needs the whole matrix, and are all that is made where nobody does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

from vit_analysis.tensors import similarity, tokens
from vit_analysis.tensors.tokens import SELECTIONS, Layout

Gram = Float64[Tensor, "image image"]

# The number of images in a part of a batch, about. Products make time per image grow with it, and the variance of an
# interval falls with it: in time x width squared 160 is better than 80 with the lab's small networks, and 54 and fewer are
# worse (benchmarks/parts.py). Between them, as products weigh more in large networks; it was not tried itself.
PART = 120
# Tokens are scaled in pieces of so many numbers, 16 MB: larger ones do not stay near a core, smaller ones make short products.
SCALED = 2**22
# The choices of tokens in which an image is seen beside all others of its batch.
OF_BATCH = ("inliers", "typical")


def sizes(images: int) -> list[int]:
    """The sizes of the parts of a batch: nearly equal, so that none is too small, and as near to `PART` as can be."""
    count = max(1, round(images / PART))
    return [images // count + (number < images % count) for number in range(count)]


@dataclass
class _Made:
    """What was made of an activation so far."""

    grams: dict[str, Gram | None] = field(default_factory=dict)
    norms: Float32[Tensor, "image token"] | None = None


class Grams:
    """Gram matrices of an activation, made when first asked for, and up to what centring takes away (`similarity.gram`)."""

    def __init__(self, activation: Tensor, layout: Layout, within: tuple[_Made, slice] | None = None) -> None:
        self.activation, self.layout = activation, layout
        self._made, self._within = _Made(), within
        self._some: dict[tuple[int, int], Grams] = {}

    def of(self, selection: str) -> Gram | None:
        """The Gram matrix of one of `tokens.SELECTIONS`; None where the activation has no such tokens."""
        made = self._made.grams
        if selection not in made:
            whole, rows = self._within or (_Made(), slice(0))
            if selection in whole.grams and selection not in OF_BATCH:
                gram = whole.grams[selection]
                made[selection] = None if gram is None else gram[rows, rows]
            else:
                made[selection] = (
                    DERIVED[selection](self) if selection in DERIVED else self.product(selection)
                )
        return made[selection]

    def product(self, selection: str) -> Gram | None:
        """The Gram matrix of a selection by its definition."""
        chosen = SELECTIONS[selection](self.activation, self.layout)
        return None if chosen is None else similarity.gram(chosen)

    @property
    def all(self) -> Gram:
        """The Gram matrix of the whole activation, which always exists."""
        whole = self.of("all")
        assert whole is not None
        return whole

    @property
    def parts(self) -> list["Grams"]:
        """The Gram matrices of each part of the batch, one part after the other (`sizes`)."""
        own = sizes(len(self.activation))
        cuts = [(end - size, end) for size, end in zip(own, accumulate(own), strict=True)]
        return [self._cut(*cut) for cut in cuts] if len(cuts) > 1 else [self]

    def first(self, images: int) -> "Grams":
        """The Gram matrices of the first images alone."""
        return self if images >= len(self.activation) else self._cut(0, images)

    def _cut(self, start: int, end: int) -> "Grams":
        """The Gram matrices of some images alone, cut out of those already made."""
        if (start, end) not in self._some:
            rows = slice(start, end)
            self._some[start, end] = Grams(self.activation[rows], self.layout, (self._made, rows))
        return self._some[start, end]

    @property
    def norms(self) -> Float32[Tensor, "image token"]:
        """The norm of every token, or of every position of a map."""
        if self._made.norms is None:
            whole, rows = self._within or (_Made(), slice(0))
            self._made.norms = (
                tokens.norms(tokens.as_tokens(self.activation, self.layout))
                if whole.norms is None
                else whole.norms[rows]
            )
        return self._made.norms

    @cached_property
    def massive(self) -> Bool[Tensor, "image token"]:
        """The tokens that are massive activations, as a mask."""
        return tokens.massive(self.norms)


def _spatial(grams: Grams) -> Gram | None:
    """The Gram matrix of the spatial tokens, as a difference where that is precise.

    On a GPU always a product of its own, as checking the precision would stall the device.
    """
    activation = grams.activation
    prefix = grams.layout.prefix_of(activation)
    if not prefix:
        return grams.all
    if prefix == activation.shape[1] or activation.is_cuda:
        return grams.product("spatial")
    own = similarity.gram(activation[:, :prefix])
    rest = grams.all - own
    precise = all(similarity.is_precise(rest, larger) for larger in (grams.all, own))
    # Squared distances use the diagonal, too, so it has to be as precise.
    if precise and (grams.all.diagonal() <= similarity.OFFSET * rest.diagonal()).all():
        return rest
    return grams.product("spatial")


def _inliers(grams: Grams) -> Gram | None:
    """The Gram matrix with massive tokens replaced: that of all tokens where none is massive.

    On a GPU always a product of its own, as checking for massive tokens would stall the device.
    """
    if grams.activation.is_cuda or grams.massive.any():
        return grams.product("inliers")
    return grams.all


def _typical(grams: Grams) -> Gram | None:
    """The Gram matrix with dominant images replaced, as T K T' where that is precise.

    Distances of images from their mean follow from the Gram matrix K, and so do inner products of any mixture of images. Where
    a dominant image hid a common offset from `similarity.gram`, entries of the other images are rounded to the size of that
    offset. On a GPU always a product of its own, as checking the precision would stall the device.
    """
    if grams.activation.is_cuda:
        return grams.product("typical")
    own = grams.all
    far = tokens.dominant(own.diagonal() - 2 * own.mean(1))
    ordinary = torch.ones(len(own), dtype=torch.float64, device=own.device).index_fill(0, far, 0)
    mixed = torch.diag(ordinary).index_copy(0, far, (ordinary / ordinary.sum()).expand(len(far), -1))
    found = mixed @ own @ mixed.T
    if len(own) >= similarity.SMALLEST_BATCH and similarity.is_precise(found, found):
        return found
    return grams.product("typical")


def _normalized(grams: Grams) -> Gram:
    """The Gram matrix of tokens scaled to norm 1, piece by piece so that the activation is never copied as a whole."""
    own = tokens.as_tokens(grams.activation, grams.layout)
    scale = 1 / grams.norms.clamp(min=tokens.TINY)
    images, count, channels = own.shape
    size = max(1, max(SCALED, similarity.piece(own.device)) // (images * channels))
    total = torch.zeros(images, images, dtype=torch.float64, device=own.device)
    scratch = torch.empty(0, device=own.device)
    for start in range(0, count, size):
        part = own[:, start : start + size]
        scaled = torch.mul(part, scale[:, start : start + size, None], out=scratch.resize_(part.shape))
        total += similarity.gram(scaled)
    return total


DERIVED: Mapping[str, Callable[[Grams], Gram | None]] = {
    "spatial": _spatial,
    "inliers": _inliers,
    "typical": _typical,
    "normalized": _normalized,
}
