"""How far attention reaches, from queries and keys, without ever holding all of it."""

from typing import NamedTuple

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from vit_analysis.capture import Heads
from vit_analysis.similarity import full_float32

# Attention is computed for so many numbers at once: 1 MB stays in a CPU core's cache between product, softmax and sums, which
# takes a third less time than whole batches; a GPU only has to have the memory.
CPU_PIECE, GPU_PIECE = 2**18, 2**27


class Scale(NamedTuple):
    """Where a model's tokens lie."""

    pixels: Float64[Tensor, "query key"]
    prefix: int


def head_distances(heads: Heads, scale: Scale) -> Float64[Tensor, "image head 3"]:
    """Of each head and image, means over the spatial queries: distance, attention to prefix tokens, distance without scaling.

    A query whose attention to all patches together is 0 in float32 has no distance and is left out of the first mean.
    """
    queries = heads.query[:, :, scale.prefix :]
    pixels = scale.pixels.float()
    count = queries.shape[1] * queries.shape[2] * heads.key.shape[2]
    images = max(1, (GPU_PIECE if queries.is_cuda else CPU_PIECE) // count)
    memory = queries.new_empty(images, *queries.shape[1:3], heads.key.shape[2], dtype=torch.float32)
    found = []
    with full_float32(queries.device):
        for start in range(0, len(queries), images):
            part = slice(start, start + images)
            attention = _attention(heads, queries[part].float(), part, memory)[..., scale.prefix :]
            share = attention.sum(-1)
            raw = torch.linalg.vecdot(attention, pixels)
            means = [(raw / share).nanmean(-1), 1 - share.mean(-1), raw.mean(-1)]
            found.append(torch.stack(means, dim=-1).double())
    return torch.cat(found)


def _attention(
    heads: Heads, queries: Float32[Tensor, "image head query feature"], part: slice, memory: Tensor
) -> Float32[Tensor, "image head query key"]:
    """Softmax over all keys, in memory that is used again and again: fresh memory costs a third of the time."""
    memory = memory[: len(queries)]
    torch.matmul(queries * heads.scale, heads.key[part].float().mT, out=memory)
    if heads.bias is not None:
        bias = (
            heads.bias.expand(len(heads.query), *heads.bias.shape[-3:]) if heads.bias.ndim > 2 else heads.bias
        )
        bias = bias[part] if bias.ndim > 2 else bias
        memory += bias[..., -queries.shape[2] :, :]
    return torch.softmax(memory, dim=-1, out=memory)
