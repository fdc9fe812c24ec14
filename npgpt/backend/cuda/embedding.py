"""The embedding on a GPU: its gradient is sorted by token first, so that a sum has one order."""

import numpy as np

from npgpt.backend.cuda.compile import (
    FLOAT32,
    ID_TYPES,
    MOST_THREADS,
    contiguous,
    empty,
    source,
    width_for,
    zeros,
)

# As in embedding.cu
CHUNK, BLOCK, THREADS = 32, 64, 256
INT32 = np.dtype(np.int32)


def embedding_forward(ids, w):
    if w.ndim != 2 or ids.dtype.name not in ID_TYPES or ids.size == 0 or w.size == 0:
        return NotImplemented
    V, C = w.shape
    flat, table, x = contiguous(ids), contiguous(w), empty((*ids.shape, C), w.dtype)
    _kernels(flat, C, table, x).launch(
        "embedding_forward", (ids.size,), (BLOCK,), (flat, table, x, V, C)
    )
    return x, (ids, w)


def embedding_backward(dx, cache):
    ids, w = cache
    V, C = w.shape
    if dx.shape != (*ids.shape, C) or ids.dtype.name not in ID_TYPES or dx.size == 0:
        return NotImplemented
    if ids.size >= MOST_THREADS - THREADS:
        return NotImplemented
    N, chunks = ids.size, -(-ids.size // CHUNK)
    ids, dx = contiguous(ids), contiguous(dx)
    counts, starts, next_place = zeros((V,), INT32), empty((V + 1,), INT32), empty((V,), INT32)
    places, ordered = empty((N,), INT32), empty((N,), INT32)
    dw, parts = empty((V, C), FLOAT32), empty((2, chunks, C), FLOAT32)
    kernels = _kernels(ids, C, dx, dw, parts)
    a_thread_each = (-(-N // THREADS),), (THREADS,)
    kernels.launch("embedding_count", *a_thread_each, (ids, counts, N, V))
    kernels.launch("embedding_scan", (1,), (1024,), (counts, starts, next_place, V))
    kernels.launch("embedding_place", *a_thread_each, (ids, next_place, places, N, V))
    kernels.launch("embedding_order", *a_thread_each, (ids, starts, places, ordered, V))
    kernels.launch(
        "embedding_chunks", (chunks,), (BLOCK,), (dx, ids, starts, ordered, dw, parts, V, C)
    )
    kernels.launch("embedding_rows", (V,), (BLOCK,), (starts, parts, dw, chunks, C))
    return dw


def _kernels(ids, C, *arrays):
    width = width_for(C, *arrays)
    return source("embedding.cu", arrays[0].dtype, WIDTH=width, ID=ID_TYPES[ids.dtype.name])
