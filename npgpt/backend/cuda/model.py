"""Between the model's layers, on a GPU: a loss, and its gradient in the logits' place."""

from npgpt.backend.cuda.loss import loss_and_gradient_in_place


def loss_and_dlogits(logits, targets, scale, smoothing=0.0):
    return loss_and_gradient_in_place(logits, targets, scale, smoothing)
