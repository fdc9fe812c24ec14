"""RoPE and attention in one, on a GPU: what is turned is never written to memory."""

from npgpt.backend.cuda.attention import MOST_BLOCKS, Views, plan_for, run_backward, run_forward
from npgpt.backend.cuda.compile import FLOAT32, contiguous, empty
from npgpt.backend.cuda.elementwise import cast


def rope_attention_forward(qkv, cos, sin, n_head):
    if not _fit(qkv, cos, sin, n_head):
        return NotImplemented
    whole, angles = contiguous(qkv), _angles(cos, sin)
    views = _views(whole, cos, n_head)
    y, lse = empty(views.q.shape, qkv.dtype), empty(views.lse_shape, FLOAT32)
    plan = plan_for(views, y, *angles, turn=True)
    if plan is None:
        return NotImplemented
    run_forward(views, plan, y, lse, angles)
    return y, (qkv, cos, sin, y, lse)


def rope_attention_backward(dy, cache):
    qkv, cos, sin, y, lse = cache
    n_head = y.shape[2]
    if dy.shape != y.shape or not _fit(qkv, cos, sin, n_head) or lse.dtype != FLOAT32:
        return NotImplemented
    whole, angles, dqkv = contiguous(qkv), _angles(cos, sin), empty(qkv.shape, qkv.dtype)
    views, grads = (_views(z, cos, n_head) for z in (whole, dqkv))
    dy, y = contiguous(dy), contiguous(y)
    plan = plan_for(views, dy, y, *grads[:3], *angles, turn=True)
    if plan is None:
        return NotImplemented
    run_backward(views, plan, dy, y, contiguous(lse), grads, angles)
    return dqkv


def _fit(qkv, cos, sin, n_head):
    """Whether qkv (B, T, (H + 2G)·D) is made of such heads, with an angle for each place."""
    if qkv.ndim != 3 or qkv.size == 0 or cos.ndim != 2 or cos.size == 0 or cos.shape != sin.shape:
        return False
    if max(qkv.shape[0], n_head) > MOST_BLOCKS:
        return False
    D = 2 * cos.shape[1]
    G, rest = divmod(qkv.shape[2] - n_head * D, 2 * D)
    return cos.shape[0] == qkv.shape[1] and rest == 0 and G > 0 and n_head % G == 0


def _views(qkv, cos, n_head):
    """q, k and v, as parts of an array without gaps."""
    B, T, channels = qkv.shape
    D = 2 * cos.shape[1]
    heads = qkv.reshape(B, T, channels // D, D)  # (B, T, H + 2G, D)
    first_value = (n_head + channels // D) // 2  # H + G
    parts = heads[:, :, :n_head], heads[:, :, n_head:first_value], heads[:, :, first_value:]
    return Views.of(*parts)


def _angles(cos, sin):
    """The tables in float32, without gaps."""
    return tuple(contiguous(cast(z, FLOAT32)) for z in (cos, sin))
