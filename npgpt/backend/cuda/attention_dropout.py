"""Attention with weights that are dropped, on a GPU: the tiles of attention.py, under a mask."""

from npgpt.backend.cuda import attention
from npgpt.backend.cuda.dropout import mask_of


def dropped_attention_forward(q, k, v, rate, key, start=0):
    if not 0.0 <= rate < 1.0:
        return NotImplemented
    done = attention.forward(q, k, v, mask_of(rate, key, start))
    if done is NotImplemented:
        return NotImplemented
    y, cache = done
    return y, (*cache, rate, key, start)


def dropped_attention_backward(dy, cache):
    *kept, rate, key, start = cache
    return attention.backward(dy, kept, mask_of(rate, key, start))
