"""Tokens a second with a memory of keys and values, beside the same in eager PyTorch.

Greedy, so that both do the same: the scores of a token come to the host, which chooses the next.
"""

import time

import numpy as np

from benchmarks.gpu.part import preset, run

TOKENS, ROUNDS = 100, 3
AT_LEAST = 3.0  # times as fast as PyTorch, one text at a time


def write(read, batch, tokens=TOKENS):
    """Write some tokens with a function from ids (B,) to scores (B, V): seconds for each."""
    ids = np.arange(1, batch + 1)
    start = time.perf_counter()
    for _ in range(tokens):
        ids = read(ids).argmax(-1)
    return (time.perf_counter() - start) / tokens


def npgpt_writer(params, config, batch, dtype):
    """npgpt on the GPU; each call begins a new text."""
    from npgpt.sampling import KVCache, make_decoder

    decoder = make_decoder(params, config, dtype)

    def go():
        cache = KVCache(config, batch, like=decoder.params["norm"])
        return write(lambda ids: decoder.read(ids[:, None], cache), batch)

    return go


def torch_writer(params, config, batch, dtype):
    """PyTorch on the GPU; each call begins a new text."""
    import torch

    from benchmarks.torch_decoder import TorchDecoder

    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    decoder = TorchDecoder(params, config, batch, kind, "cuda")

    def go():
        decoder.length = 0
        return write(decoder.read, batch)

    return go


def measure(report, wishes):
    import cupy

    from npgpt.backend.cuda.runtime import Runtime
    from npgpt.model import Parameters, init_parameters

    Runtime()
    config = preset()
    host = init_parameters(config, seed=1)
    device = Parameters(config, cupy.asarray(host.flat))
    for batch in (1, 16):
        seconds = {}
        for dtype in ("float32", "bf16"):
            for name, make, params in (
                ("npgpt", npgpt_writer, device), ("torch eager", torch_writer, host)
            ):  # fmt: skip
                try:
                    go = make(params, config, batch, dtype)
                    go()
                    seconds[name, dtype] = min(go() for _ in range(ROUNDS))
                    report.add(f"{batch} texts: {name}, {dtype}", batch / seconds[name, dtype],
                               "tok/s")  # fmt: skip
                except Exception as error:
                    report.failed(f"{batch} texts: {name}, {dtype}", error, name == "npgpt")
        ours = [t for (name, _), t in seconds.items() if name == "npgpt"]
        peers = [t for (name, _), t in seconds.items() if name != "npgpt"]
        if ours and peers:
            report.add(f"{batch} texts: faster than torch eager", min(peers) / min(ours), "x",
                       at_least=AT_LEAST if batch == 1 else None)  # fmt: skip


if __name__ == "__main__":
    run("Sampling on a GPU", measure)
