"""Gram matrices, unbiased HSIC and linear CKA: exact where it matters, one matrix product for all pairs of layers.

For a layer with features X (n images), K = X X' . Song et al. (2012, eq. 5) give an unbiased estimator of HSIC(K, L). Székely
and Rizzo's U-centring is the same estimator as an inner product,

    A_ij = K_ij - m_i - m_j  (i != j),   m_i = sum_j K_ij / (n - 2) - sum_ij K_ij / (2 (n - 1)(n - 2)),   K_ii = 0,
    HSIC(K, L) = sum_{i != j} A_ij B_ij / (n (n - 3)),

so once every layer is the vector of its U-centred entries, all pairs of all layers of all models are one product V V'. The
biased estimator of the paper's text is here as a control only (`biased`): on independent features it reads 0.97 where the
truth is 0 (128 images, 4,000 features).

Precision: Grams are formed in float32 with TF32 and autocast off, centred in float64, kept in float32 and multiplied in
float64. On a GPU beside a coarser forward pass they are formed in TF32, or of bfloat16 as it is (`precision`). What float32
does not tolerate is a common offset, which centring cancels only after rounding; `gram` removes it.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from vit_analysis.spelling import Refusal
from vit_analysis.tensors.precision import as_precise_as_features, full_float32

# With fewer images U-centring is undefined.
SMALLEST_BATCH = 4
# Float32 rounds each entry of a Gram matrix to about 1e-7 of its size. Where the centred entries are this many times smaller
# than the raw ones, that rounding would reach 1e-5 of what is left, so the offset is removed before the product. Trained
# models on photographs stay below 65 (ViT-Ti/16, ResNet-50, every sublayer); untrained ones on noise reach 2,000.
OFFSET = 100.0
# Variation of features below float32's resolution of their size (2^-21, squared) is rounding: the layer is constant.
RESOLUTION = 2.0**-42
# Features are centred in pieces: about 1 MB stays in a CPU core's cache between reading, centring and multiplying, where whole
# tensors would travel through memory three times. On a GPU pieces need only be small beside the activation itself.
CPU_PIECE, GPU_PIECE = 2**18, 2**27
# Columns of bfloat16 whose products are added in float32, before those sums are added in float64.
COLUMNS = 2**17
WIDENS = hasattr(torch.ops.aten.mm, "dtype")  # since torch 2.8 bfloat16 is multiplied into float32
# Rows in a strip of a symmetric product: narrow strips waste little at the diagonal, wide ones keep the product fast.
NARROW, WIDE = 16, 48
# Numbers in the Gram vectors of tokens that `hsic_between` holds at once, and as many of patches: 256 MB each.
VECTORS = 2**26


def centred_gram(features: Float[Tensor, "image ..."]) -> Float32[Tensor, " pair"]:
    """U-centred Gram matrix of a layer as a vector; see `gram` and `centred`.

    Raises:
        Refusal: fewer than 4 images.
    """
    return centred(gram(features))


def gram(features: Float[Tensor, "image ..."]) -> Float64[Tensor, "image image"]:
    """Inner products of all pairs of images, up to what centring takes away: a large common offset may have been removed.

    On a CPU the offset is removed only where it dominates, as checking costs nothing there. On a GPU checking would stall the
    device, and centring is cheap beside a float32 product, so it is always removed.
    """
    rows = _rows(features)
    if rows.is_cuda:
        return _gram_of_bf16(rows) if rows.dtype == torch.bfloat16 and WIDENS else _gram_without_offset(rows)
    plain = _gram(rows)
    return plain if len(rows) >= SMALLEST_BATCH and is_precise(plain, plain) else _gram_without_offset(rows)


def is_precise(gram: Float64[Tensor, "image image"], rounded: Float64[Tensor, "image image"]) -> bool:
    """Return whether a Gram matrix with the rounding of another, larger one is right to 1e-5 when centred (see `OFFSET`)."""
    above = _above(len(gram), gram.device).place
    return bool(rounded.take(above).norm() <= OFFSET * u_centre(gram).norm())


def centred(gram: Float64[Tensor, "*layer image image"]) -> Float32[Tensor, "*layer pair"]:
    """`u_centre`, scaled so that ``v @ w`` is the unbiased HSIC of two layers: times sqrt(2 / (n (n - 3))).

    A constant layer gives zeros, a non-finite one non-finite values.

    Raises:
        Refusal: fewer than 4 images.
    """
    n = gram.shape[-1]
    if n < SMALLEST_BATCH:
        raise Refusal(f"unbiased HSIC needs at least {SMALLEST_BATCH} images in a batch, got {n}")
    return (u_centre(gram) * (2 / (n * (n - 3))) ** 0.5).float()


def biased(gram: Float64[Tensor, "image image"]) -> Float32[Tensor, " pair"]:
    """Double-centred Gram matrix as a vector, scaled so that ``v @ w`` is the biased HSIC that Raghu et al. (2021) print.

    Entry (i, j), i <= j, of HKH / (n - 1), with H = I - 11' / n, times sqrt(2) off the diagonal. As a control only.
    """
    n = len(gram)
    means = gram.mean(0)
    both = gram - means - means[:, None] + means.mean()
    rows, columns = torch.triu_indices(n, n, device=gram.device)
    weights = torch.where(rows == columns, 1.0, 2**0.5) / (n - 1)
    return (both[rows, columns] * weights).float()


def squared_distances(gram: Float64[Tensor, "image image"]) -> Float64[Tensor, "image image"]:
    """Squared Euclidean distance of every pair of images; a common offset of the images cancels."""
    squares = gram.diagonal()
    distances = squares[:, None] + squares[None, :] - 2 * gram
    return distances.clamp(min=0).fill_diagonal_(0)


def u_centre(gram: Float64[Tensor, "*layer image image"]) -> Float64[Tensor, "*layer pair"]:
    """Székely and Rizzo's U-centring: the entries A_ij with i < j, row by row. The diagonal of the Gram matrix is not used."""
    means = u_means(gram)
    above = _above(gram.shape[-1], gram.device)
    entries = gram.flatten(-2).index_select(-1, above.place)
    return entries - means.index_select(-1, above.row) - means.index_select(-1, above.column)


def u_means(gram: Float64[Tensor, "*layer image image"]) -> Float64[Tensor, "*layer image"]:
    """Return what U-centring takes from the entries of each image."""
    n = gram.shape[-1]
    sums = gram.sum(-1) - gram.diagonal(dim1=-2, dim2=-1)
    return (sums - sums.sum(-1, keepdim=True) / (2 * (n - 1))) / (n - 2)


def hsic(vectors: Float32[Tensor, "layer pair"]) -> Float64[Tensor, "layer layer"]:
    """Unbiased HSIC of every pair of layers, from their `centred_gram` vectors: one product, in float64."""
    total = torch.zeros(len(vectors), len(vectors), dtype=torch.float64, device=vectors.device)
    for part in vectors.split(max(1, piece(vectors.device) // len(vectors)), dim=1):
        exact = part.double()
        total += exact @ exact.T
    return total


def hsic_between(
    tokens: Float[Tensor, "image token channel"], patches: Float[Tensor, "image patch pixel"]
) -> tuple[Float64[Tensor, "token patch"], Float64[Tensor, " token"], Float64[Tensor, " patch"]]:
    """Unbiased HSIC of every token with every patch, of every token with itself and of every patch with itself.

    As many Gram vectors of tokens and of patches are held at once as fit `VECTORS`; if not all patches fit, those of tokens
    are made again for each part of the patches.
    """
    most = max(1, VECTORS // (len(tokens) ** 2 // 2))
    between, own, theirs = [], [], []
    for some in patches.split(most, dim=1):
        columns = _centred_grams(some)
        theirs.append(columns.double().square().sum(1))
        rows = []
        for part in tokens.split(most, dim=1):
            vectors = _centred_grams(part)
            rows.append(_products(vectors, columns))
            if len(theirs) == 1:
                own.append(vectors.double().square().sum(1))
        between.append(torch.cat(rows))
    return torch.cat(between, dim=1), torch.cat(own), torch.cat(theirs)


def cka(hsic: Float64[Tensor, "*group layer layer"]) -> Float64[Tensor, "*group layer layer"]:
    """CKA from HSIC: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), never clamped; NaN where a layer is constant (0 / 0)."""
    scale = hsic.diagonal(dim1=-2, dim2=-1).sqrt()
    return hsic / scale[..., :, None] / scale[..., None, :]


def piece(device: torch.device) -> int:
    """Return how many numbers to work on at once."""
    return GPU_PIECE if device.type == "cuda" else CPU_PIECE


def _rows(features: Float[Tensor, "image ..."]) -> Float[Tensor, "image feature"]:
    """Return one row per image, uncopied where the memory layout allows: a Gram matrix ignores the order of features."""
    if features.ndim == 4 and features.is_contiguous(memory_format=torch.channels_last):
        features = features.permute(0, 2, 3, 1)
    return features.flatten(1)


def _gram(rows: Float[Tensor, "image feature"]) -> Float64[Tensor, "image image"]:
    with full_float32(rows.device):
        if rows.dtype == torch.float32:
            return _product(rows)
        total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
        for part in _pieces(rows):  # half precision is never widened as a whole
            total += _product(part)
    return total


def _gram_without_offset(rows: Float[Tensor, "image feature"]) -> Float64[Tensor, "image image"]:
    n = len(rows)
    total = torch.zeros(n, n, dtype=torch.float64, device=rows.device)
    offset = torch.zeros((), dtype=torch.float64, device=rows.device)
    scratch = torch.empty(0, device=rows.device)  # one buffer for all pieces: fresh ones cost page faults
    with as_precise_as_features(rows.device):
        for part in _pieces(rows):
            mean = part.mean(0)
            total += _product(torch.sub(part, mean, out=scratch.resize_(part.shape)))
            offset += n * mean.square().sum()
    return _varying(total, offset)


def _gram_of_bf16(rows: Float[Tensor, "image feature"]) -> Float64[Tensor, "image image"]:
    """The Gram matrix of bfloat16 on a GPU, centred afterwards, so that features are read once and never widened.

    Their products are exact in float32, and rounding the sums of these adds less than rounding the features has done: with an
    offset of R times what varies, R^2 2^-24 of an entry against R^2 2^-18.
    """
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    with full_float32(rows.device):
        for part in rows.split(COLUMNS, dim=1):
            total += torch.mm(part, part.T, out_dtype=torch.float32)
    means = total.mean(0)
    offset = means.mean()
    return _varying(total - means - means[:, None] + offset, len(rows) * offset)


def _varying(
    gram: Float64[Tensor, "*layer image image"], offset: Float64[Tensor, "*layer"]
) -> Float64[Tensor, "*layer image image"]:
    """The Gram matrix, or zeros where what is left without the offset is only its rounding."""
    size = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    varies = (size > RESOLUTION * (size + offset)) | ~size.isfinite()
    return torch.where(varies[..., None, None], gram, torch.zeros_like(gram))


def _product(rows: Float32[Tensor, "image feature"]) -> Float64[Tensor, "image image"]:
    """Inner products of all pairs of rows; on a CPU strip by strip below the diagonal, copied to above it.

    Strips take 65 % of the time of the whole product for 160 images of 60,000 features, 76 % for 32 images.
    """
    if rows.is_cuda:
        return (rows @ rows.T).double()
    n = len(rows)
    strip = NARROW if n <= 4 * NARROW else WIDE
    whole = rows.new_empty(n, n)
    for start in range(0, n, strip):
        end = start + strip
        part = rows[start:] @ rows[start:end].T
        whole[start:, start:end] = part
        whole[start:end, start:] = part.T
    return whole.double()


def _pieces(rows: Float[Tensor, "image feature"]) -> Iterator[Float32[Tensor, "image piece"]]:
    for part in rows.split(max(1, piece(rows.device) // len(rows)), dim=1):
        yield part.float()


def _centred_grams(features: Float[Tensor, "image place feature"]) -> Float32[Tensor, "place pair"]:
    """`centred_gram` of every token or patch by itself, as many in one product as stay in a core's cache."""
    n, places, _ = features.shape
    found = torch.empty(places, n * (n - 1) // 2, device=features.device)
    size = max(1, piece(features.device) // n**2)
    for start in range(0, places, size):
        own = features[:, start : start + size].transpose(0, 1).float()
        mean = own.mean(1, keepdim=True)
        own = own - mean
        with as_precise_as_features(own.device):
            grams = (own @ own.mT).double()
        found[start : start + size] = centred(_varying(grams, n * mean.double().square().sum((1, 2))))
    return found


def _products(
    rows: Float32[Tensor, "row pair"], columns: Float32[Tensor, "column pair"]
) -> Float64[Tensor, "row column"]:
    """Inner products of every row with every column, in float64, piece by piece."""
    size = max(1, piece(rows.device) // (len(rows) + len(columns)))
    pieces = zip(rows.split(size, dim=1), columns.split(size, dim=1), strict=True)
    total = torch.zeros(len(rows), len(columns), dtype=torch.float64, device=rows.device)
    for row, column in pieces:
        total += row.double() @ column.double().T
    return total


class _Above(NamedTuple):
    """The entries above the diagonal of a square matrix, row by row."""

    row: Int64[Tensor, " pair"]
    column: Int64[Tensor, " pair"]
    place: Int64[Tensor, " pair"]
    """The entry's index in the flattened matrix."""


@lru_cache(maxsize=64)
def _above(n: int, device: torch.device) -> _Above:
    row, column = torch.triu_indices(n, n, 1, device=device)
    return _Above(row, column, row * n + column)
