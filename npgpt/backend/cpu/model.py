"""Between the model's layers on a CPU: what can be written or added to where it is made."""

from npgpt.backend.cpu.embedding import add_rows
from npgpt.backend.cpu.loss import loss_and_gradient_in_place


def embedding_backward_into(dx, cache, g):
    return add_rows(dx, cache, g)


def loss_and_dlogits(logits, targets, scale, smoothing=0.0):
    return loss_and_gradient_in_place(logits, targets, scale, smoothing)
