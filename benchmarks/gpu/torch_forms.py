"""The peer: the same GPT in PyTorch, in each of the forms that make it fast on a GPU."""

import time
from contextlib import ExitStack

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.part import preset
from benchmarks.gpu.steps import LR, batch
from benchmarks.torch_baseline import BaselineGPT
from npgpt.model import init_parameters

ATTENTION = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


class TorchSteps:
    """PyTorch's training step.

    Args:    rows; mode, "eager" or one of torch.compile's; attention, "flash" or "cudnn";
             rounding, "autocast", or "masters" for weights in bf16 beside float32 ones.
    """

    def __init__(self, rows, mode, attention, rounding):
        torch.set_float32_matmul_precision("high")
        config = preset()
        model = BaselineGPT(config, init_parameters(config, seed=1)).cuda()
        self.autocast, self.attention = rounding == "autocast", ATTENTION[attention]
        self.masters = None
        if not self.autocast:
            self.masters = [w.detach().clone().requires_grad_() for w in model.parameters()]
            model = model.bfloat16()
        self.weights = list(model.parameters())
        self.optimizer = self._optimizer(model)
        self.loss = model
        if mode != "eager":
            self.loss = torch.compile(model, mode=None if mode == "default" else mode)
        self.batch = [torch.from_numpy(part).cuda() for part in batch(config, rows)]
        torch.cuda.reset_peak_memory_stats()

    def _optimizer(self, model):
        """AdamW on the masters where there are some."""
        if self.masters is None:
            return model.optimizer(LR)
        decayed = [w for w in self.masters if w.ndim > 1]
        free = [w for w in self.masters if w.ndim == 1]
        groups = [dict(params=decayed, weight_decay=0.1), dict(params=free, weight_decay=0.0)]
        return torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8, fused=True)

    def step(self):
        torch.compiler.cudagraph_mark_step_begin()
        with ExitStack() as stack:
            stack.enter_context(sdpa_kernel(self.attention))
            if self.autocast:
                stack.enter_context(torch.autocast("cuda", torch.bfloat16))
            loss = self.loss(*self.batch)
        loss.backward()
        if self.masters is not None:
            grads = [w.grad for w in self.weights]
            if self.masters[0].grad is None:
                for w in self.masters:
                    w.grad = torch.empty_like(w)
            torch._foreach_copy_([w.grad for w in self.masters], grads)
        torch.nn.utils.clip_grad_norm_(self.masters or self.weights, 1.0)
        self.optimizer.step()
        if self.masters is not None:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.masters)
        for w in self.weights:
            w.grad = None
        return loss

    def run(self, steps):
        """Take some steps: seconds for one, and the last loss."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            loss = self.step()
        last = float(loss.detach())
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / steps, last

    def memory(self):
        return torch.cuda.max_memory_reserved()
