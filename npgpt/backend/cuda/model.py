"""Between the model's layers, on a GPU: a loss, and its gradient in the logits' place."""

from npgpt.backend.cuda import loss


def loss_and_dlogits(logits, targets, scale, smoothing=0.0):
    if not logits.flags.c_contiguous:
        return NotImplemented
    forward = loss.smooth_cross_entropy_forward(logits, targets, smoothing)
    if forward is NotImplemented:
        return NotImplemented
    mean, cache = forward
    return mean, loss.backward_in_place(scale, cache)
