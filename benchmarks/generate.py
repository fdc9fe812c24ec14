"""Writing with a model, a token at a time: how near the memory's speed, and beside PyTorch.

    python -m benchmarks.generate
    python -m benchmarks.generate --preset gpt2-124m
    python -m benchmarks.generate --model stories260K.bin --tokenizer-file tok512.bin --text t.txt

The model is that of a preset with random weights; tinystories-40m's are 155 MB in float32. To
write a token takes all of them, so no program can be faster than the memory. That limit is
measured in the same run, with the same threads, on as many bytes, by two programs that do nothing
else: a sum, and a product of one matrix with one vector; the faster one counts. (On as many
bytes, because a processor with a large cache may keep a part of the weights there.)

llama.cpp takes part where llama-cpp-python and gguf are installed: see llama_cpp_decoder.py.
It and PyTorch race with tinystories-40m only, which the bars are for; other presets race with the
lecture's own text.

With a model of llama2.c, its tokenizer and a text, the price of bf16 and int8 is measured too: by
how much they change the likelihood of that text.

On a machine with more processors than --threads, keep all on the same ones:
taskset -c 0,1 python -m benchmarks.generate.
"""

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

# Before NumPy and PyTorch are imported: threads that wait should leave the processor to others.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import numpy as np

from benchmarks.preset_model import preset_model
from benchmarks.report import Report, alternate, option_parser, ratio, say
from npgpt.backend.cpu.compile import REORDER, kernel
from npgpt.backend.cpu.dots import multiply
from npgpt.backend.cpu.team import Team, share
from npgpt.model import init_parameters
from npgpt.presets import PRESETS
from npgpt.sampling import Decoder, KVCache, choose_token, make_decoder

ROOT = Path(__file__).resolve().parents[1]
RACE = "tinystories-40m"
DTYPES = ("float32", "bf16", "int8")
PROMPT, TOKENS = 32, 24  # tokens read at once, and then written one by one
OF_MEMORY = {"float32": 0.85, "bf16": 0.80}  # bars, of the memory's speed
OVER_TORCH = {"float32": 5.0, "bf16": 4.0}  # times as fast as PyTorch in the same precision
LIKELIHOOD = 0.002  # by how much int8 may change it
HELP_SECONDS, FIRST_TOKEN_SECONDS = 0.5, 2.0


def main(argv=None):
    parser = option_parser(__doc__)
    parser.add_argument("--threads", type=int, default=2, help="how many compute (default: 2)")
    parser.add_argument("--preset", choices=sorted(PRESETS), default=RACE, help=f"default: {RACE}")
    parser.add_argument("--rounds", type=int, default=12, help="how often all take a turn")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 16], help="texts side by side")
    parser.add_argument("--model", help="a model of llama2.c, for the price of bf16 and int8")
    parser.add_argument("--tokenizer-file", help="its tokenizer")
    parser.add_argument("--text", help="what it is to read")
    options = parser.parse_args(argv)
    report = Report("a token at a time")
    config, _ = preset_model(options.preset)
    params = init_parameters(config, seed=1)
    for batch in options.batch:
        measure_decoding(report, params, config, batch, options)
    measure_choosing(report, config)
    if options.model:
        measure_likelihood(report, options)
    with tempfile.TemporaryDirectory() as folder:
        measure_start(report, params, config, folder)
    return report.finish(options)


# A token.


def measure_decoding(report, params, config, batch, options):
    """Decoding steps of all contestants, and reading of as many bytes, by turns."""
    say(f"{batch} text{'s' if batch > 1 else ''}, {options.threads} threads ...")
    contestants, size = {}, {}
    team = Team(options.threads)
    for dtype in DTYPES:
        decoder = make_decoder(params, config, dtype, options.threads)
        size[dtype] = decoder.bytes_per_token
        contestants[dtype] = Npgpt(decoder, batch)
        if batch == 1:
            rows = np.ones((size[dtype] // 2048, 512), np.float32)
            contestants[f"sum {dtype}"] = lambda rows=rows: team.run(team.most, add_all, rows)
            contestants[f"product {dtype}"] = Product(team, rows)
    contestants["text"] = Npgpt(Decoder(params, config), batch)
    races = options.preset == RACE
    if races and importlib.util.find_spec("torch"):
        for dtype in ("float32", "bf16"):
            contestants[f"torch {dtype}"] = Torch(params, config, batch, dtype, options.threads)
    if races and batch == 1 and all(map(importlib.util.find_spec, ("llama_cpp", "gguf"))):
        for dtype in DTYPES:
            contestants[f"llama.cpp {dtype}"] = LlamaCpp(params, config, dtype, options.threads)
    for run in contestants.values():
        run()  # compiles, and warms up
    seconds = alternate(contestants, options.rounds)

    title = f"batch {batch}, "
    for dtype in DTYPES:
        rate = batch * TOKENS / statistics.median(seconds[dtype])
        report.add(f"{title}{dtype}", rate, "tokens/s")
        if batch == 1:
            limit = [
                min(pair) for pair in zip(seconds[f"sum {dtype}"], seconds[f"product {dtype}"])
            ]
            shares = [TOKENS * read / step for read, step in zip(limit, seconds[dtype])]
            memory = size[dtype] / statistics.median(limit) / 1e9
            report.add(f"{title}{dtype}: memory delivers", memory, "GB/s")
            report.add(f"{title}{dtype}: of that", statistics.median(shares), "",
                       at_least=OF_MEMORY.get(dtype) if races else None)  # fmt: skip
    report.add(
        f"{title}text float32", batch * TOKENS / statistics.median(seconds["text"]), "tokens/s"
    )
    report.add(f"{title}float32 over text", ratio(seconds, "text", "float32"), "x")
    for peer in [name for name in contestants if name.startswith(("torch", "llama.cpp"))]:
        library, dtype = peer.split()
        bar = OVER_TORCH[dtype] if library == "torch" and batch == 1 else None
        report.add(f"{title}{peer}", batch * TOKENS / statistics.median(seconds[peer]), "tokens/s")
        report.add(f"{title}{dtype} over {peer}", ratio(seconds, peer, dtype), "x", at_least=bar)


class Npgpt:
    """Read a prompt once; then, each time, write some tokens after it, always the likeliest."""

    def __init__(self, decoder, batch):
        self.decoder, self.batch = decoder, batch
        self.cache = KVCache(decoder.config, batch, like=decoder.params["norm"])
        decoder.read(np.ones((batch, PROMPT), np.int64), self.cache)

    def __call__(self):
        self.cache.length = PROMPT
        ids = np.ones((self.batch, 1), np.int64)
        for _ in range(TOKENS):
            ids = np.argmax(self.decoder.read(ids, self.cache), axis=1)[:, None]


class Torch:
    """The same in eager PyTorch."""

    def __init__(self, params, config, batch, dtype, threads):
        import torch

        from benchmarks.torch_decoder import TorchDecoder

        torch.set_num_threads(threads)
        kind = {"float32": torch.float32, "bf16": torch.bfloat16}[dtype]
        self.decoder, self.batch = TorchDecoder(params, config, batch, kind), batch

    def __call__(self):
        self.decoder.length = PROMPT
        ids = np.ones(self.batch, np.int64)
        for _ in range(TOKENS):
            ids = np.argmax(self.decoder.read(ids), axis=1)


class LlamaCpp:
    """The same in llama.cpp; its 8-bit format has a scale for each 32 weights."""

    def __init__(self, params, config, dtype, threads):
        from benchmarks.llama_cpp_decoder import LlamaCppDecoder, write_gguf

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.gguf")
            write_gguf(path, params, config, dtype)
            self.decoder = LlamaCppDecoder(path, config, threads)
        self.decoder.read([1] * PROMPT)

    def __call__(self):
        self.decoder.go_back(PROMPT)
        token = 1
        for _ in range(TOKENS):
            token = int(np.argmax(self.decoder.read([token])))


class Product:
    """One large matrix times one vector, on all threads."""

    def __init__(self, team, rows):
        self.team, self.rows = team, rows
        self.scale = np.ones(len(rows), np.float32)
        self.vector, self.step = np.ones((1, rows.shape[1]), np.float32), np.ones(1, np.float32)
        self.y = np.zeros((1, len(rows)), np.float32)

    def __call__(self):
        self.team.run(
            self.team.most, multiply_some, self.rows, self.scale, self.vector, self.step, self.y
        )


@kernel
def multiply_some(thread, threads, meeting, rows, scale, vector, step, y):
    first, last = share(len(rows), thread, threads)
    multiply(rows, scale, vector, step, np.zeros_like(step), y, first, last)


@kernel(fastmath=REORDER)
def add_all(thread, threads, meeting, rows):
    first, last = share(len(rows), thread, threads)
    some, total = rows[first:last].ravel(), np.float32(0)
    for i in range(len(some)):
        total += some[i]
    return total


def measure_choosing(report, config):
    """What it takes to draw a token from the scores, with the settings of generate.py."""
    rng = np.random.default_rng(0)
    # As peaked as a trained model's: the n-th likeliest has about n^−1.6 of the first's chance.
    logits = -1.6 * np.log(np.arange(1, config.vocab_size + 1)) + rng.standard_normal()
    logits = rng.permutation(logits.astype(np.float32))
    runs = alternate({"draw": lambda: choose_token(logits, rng, 0.8, 0, 0.95)}, 100, pause=0.0)
    report.add("to draw a token, top-p 0.95", 1e6 * statistics.median(runs["draw"]), "µs")


# The price of fewer bits.


def measure_likelihood(report, options):
    """The mean −log probability of a text, in each dtype, read by decoding steps alone."""
    from npgpt.interchange.llama2c import Llama2cTokenizer, load_llama2c

    config, params = load_llama2c(options.model)
    tok = Llama2cTokenizer.load(options.tokenizer_file)
    ids = tok.encode(Path(options.text).read_text("utf-8")[:200_000], allowed_special="all")
    length = min(config.block_size, 256)
    rows = min(32, len(ids) // length)
    ids = np.array(ids[: rows * length]).reshape(rows, length)  # (B, T)
    nats = {}
    for dtype in DTYPES:
        decoder = make_decoder(params, config, dtype, options.threads)
        cache = KVCache(config, rows, like=params["norm"])
        total = 0.0
        for t in range(length - 1):
            z = decoder.read(ids[:, t : t + 1], cache).astype(np.float64)  # (B, V)
            z -= np.max(z, axis=1, keepdims=True)
            total += np.sum(np.log(np.sum(np.exp(z), axis=1)) - z[np.arange(rows), ids[:, t + 1]])
        nats[dtype] = total / (rows * (length - 1))
        report.add(f"{Path(options.model).name}, {dtype}", nats[dtype], "nats")
    for dtype in ("bf16", "int8"):
        report.add(f"{dtype} changes the likelihood by", abs(nats[dtype] / nats["float32"] - 1), "",
                   at_most=LIKELIHOOD)  # fmt: skip


# From the command line.


def measure_start(report, params, config, folder):
    """How long it takes until --help is there, and until the first token is."""
    from dataclasses import asdict

    from npgpt.checkpoint import save_checkpoint
    from npgpt.tokenizer import CharTokenizer

    letters = "".join(map(chr, range(0x20000, 0x20000 + config.vocab_size)))
    tok = CharTokenizer.train([letters])
    tok.save(Path(folder, "tokenizer"))
    files = {
        f"tokenizer/{path.name}": path.read_bytes() for path in Path(folder, "tokenizer").iterdir()
    }
    run = Path(folder, "run")
    save_checkpoint(run, 1, {"model": dict(params)}, {"config": asdict(config)}, files)
    write = ["--run", str(run), "--prompt", letters[:2], "--max-new-tokens"]
    commands = {"--help": ["--help"], "1 token": [*write, "1"], "2 tokens": [*write, "2"]}
    contestants = {
        name: lambda argv=argv: subprocess.run(
            [sys.executable, ROOT / "generate.py", *argv], check=True, capture_output=True
        )
        for name, argv in commands.items()
    }
    for start in contestants.values():
        start()
    seconds = {name: statistics.median(s) for name, s in alternate(contestants, 5).items()}
    report.add("generate.py --help", seconds["--help"], "s", at_most=HELP_SECONDS)
    report.add("to the first token, kernels compiled before", seconds["1 token"], "s",
               at_most=FIRST_TOKEN_SECONDS)  # fmt: skip
    report.add("to the second, by the compiled step", seconds["2 tokens"], "s")


if __name__ == "__main__":
    sys.exit(main())
