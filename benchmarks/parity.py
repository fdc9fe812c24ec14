"""One checkpoint, many programs: do they all say the same?

    python -m benchmarks.parity RUN
    python -m benchmarks.parity RUN --transformers4 PYTHON --transformers5 PYTHON --llama-cpp PYTHON

The reference is npgpt's lecture text in float64. It writes texts, always taking the likeliest
token, each as long as the context, until there are 1,000 tokens. Then every contestant reads
these texts, and is asked at each place: which scores does it give, which token is the likeliest?

    text, float32        the lecture text, as train.py runs without Numba
    kernels, float32     the compiled kernels that train.py runs, a whole text at a time
    decoder              what generate.py runs: one token at a time, with keys and values kept
    kernels, on a GPU    those that train.py --backend cupy --dtype float32 runs
    torch, float64       an independent PyTorch model (tests/torch_reference.py)
    transformers, ...    the folder of npgpt.export --format hf, in their own programs
    llama.cpp            the file of npgpt.export --format gguf

If the likeliest token is the same at every place, then a text that the contestant wrote by itself
would be the same text: at each step both have read the same. Where two tokens are nearly as
likely, rounding may decide; so a place counts as a tie, and not against anybody, if the
reference's best two scores are nearer to each other than the bar for the scores is.

Differences are relative to the largest score. transformers computes norms and RoPE in float32
whatever it is told, and llama.cpp sums in another order: float32 rounding is what all can be
held to, and float64 is what the PyTorch model is held to. One exception: llama.cpp takes GELU out
of a table of float16 numbers, so a GPT-2 has a bar of its own there.

Each program that needs an interpreter of its own is named by an option; without it, it is tried
in this one, and is reported as not run if it is not there.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.report import Report, option_parser, say
from npgpt.backend import select_backend, to_host
from npgpt.errors import UserError
from npgpt.model import GPTConfig, Parameters, forward
from npgpt.runs import find_run, load_run
from npgpt.sampling import Decoder, KVCache, generate, make_decoder, sample_rngs
from npgpt.tokenizer import load_tokenizer
from npgpt.training import restored_parameters

ROOT = Path(__file__).resolve().parents[1]
PEER = Path(__file__).with_name("parity_peer.py")
FLOAT32, FLOAT64 = 2e-5, 1e-12  # bars for the largest difference of scores, relative
GELU_TABLE = 1e-3  # the same for llama.cpp's GELU, which is rounded to float16
LONGEST = 256  # tokens of one text, at most: longer ones take long in float64
ROWS = 8  # texts that go through a model at a time


def main(argv=None):
    parser = option_parser(__doc__)
    parser.add_argument("run", nargs="?", help="a run, by name or folder (default: the newest)")
    parser.add_argument("--tokens", type=int, default=1000, help="how many (default: 1000)")
    for name, peer in (("transformers4", "transformers 4"), ("transformers5", "transformers 5"),
                       ("llama-cpp", "llama-cpp-python")):  # fmt: skip
        parser.add_argument(f"--{name}", metavar="PYTHON", help=f"an interpreter that has {peer}")
    options = parser.parse_args(argv)
    try:
        run_dir = find_run(options.run)
        checkpoint = load_run(run_dir, groups=("model",))
    except UserError as error:
        parser.error(str(error))
    config = GPTConfig(**checkpoint.state["config"])
    params, tok = restored_parameters(checkpoint), load_tokenizer(checkpoint.path / "tokenizer")
    report = Report(f"one checkpoint in many programs: {run_dir.name}")
    precise = Parameters(config, params.flat.astype(np.float64))
    ids = write_texts(precise, config, tok, options.tokens)
    say(f"{run_dir}: {ids.shape[0]} texts of {ids.shape[1]} tokens, in float64")
    reference = Reference(read_all(precise, config, ids), report)
    reference.compare("npgpt text, float32", text_only(params, config, ids), FLOAT32)
    reference.compare("npgpt kernels, float32", read_all(params, config, ids), FLOAT32)
    reference.compare("npgpt decoder, float32", decode_all(params, config, ids), FLOAT32)
    scores, why = gpu_scores(params, config, ids)
    reference.compare("npgpt kernels, float32, on a GPU", scores, FLOAT32, why)
    scores = torch_scores(precise, config, ids)
    reference.compare("torch, float64", scores, FLOAT64, "PyTorch is not installed")
    with tempfile.TemporaryDirectory() as folder:
        for name, python in (
            ("transformers 4", options.transformers4),
            ("transformers 5", options.transformers5),
            ("llama.cpp", options.llama_cpp),
        ):
            scores, why = ask(name, python, Path(folder), ids, config, params, tok)
            rough = name == "llama.cpp" and config.mlp == "gelu_tanh"
            reference.compare(f"{name}, float32", scores, GELU_TABLE if rough else FLOAT32, why)
    return report.finish(options)


def write_texts(params, config, tok, count):
    """Greedy texts of the model, each from another first token.

    Returns: ids (N, T), N · (T − 1) at least count.
    """
    T = min(config.block_size, LONGEST)
    N = -(-count // (T - 1))
    first = np.arange(N)[:, None] * 97 % config.vocab_size
    if tok.end_of_text is not None:
        first[0] = tok.end_of_text
    steps = generate(params, config, first, T - 1, sample_rngs(0, range(N)), temperature=0.0)
    return np.concatenate([first, np.stack(list(steps), axis=1)], axis=1)


def read_all(params, config, ids):
    """The scores (N, T, V) of forward, a few texts at a time."""
    parts = [forward(params, ids[n : n + ROWS], config)[0] for n in range(0, len(ids), ROWS)]
    return np.concatenate(parts)


def text_only(params, config, ids):
    """The same by the lecture text alone, in a process of its own: kernels are chosen at import."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("flat.npy", "ids.npy", "out.npy")]
        np.save(paths[0], params.flat)
        np.save(paths[1], ids)
        code = (
            "import sys, numpy as np\n"
            "from benchmarks.parity import GPTConfig, Parameters, read_all\n"
            f"config = {config!r}\n"
            "params = Parameters(config, np.load(sys.argv[1]))\n"
            "np.save(sys.argv[3], read_all(params, config, np.load(sys.argv[2])))\n"
        )
        environment = {**os.environ, "NPGPT_KERNELS": "off"}
        command = [sys.executable, "-c", code, *map(str, paths)]
        subprocess.run(command, check=True, cwd=ROOT, env=environment)
        return np.load(paths[2])


def decode_all(params, config, ids):
    """The scores of the decoder that generate.py uses, which reads one token after the other."""
    decoder = make_decoder(params, config)
    cache, scores = KVCache(config, len(ids), like=params["norm"]), []
    if type(decoder) is Decoder:
        say("  the decoder is not compiled on this machine: forward with keys and values kept")
    for t in range(ids.shape[1]):
        scores.append(decoder.read(ids[:, t : t + 1], cache))
    return np.stack(scores, axis=1)


def gpu_scores(params, config, ids):
    """The scores of forward on a GPU.

    Returns: scores (N, T, V), or None and why not.
    """
    try:
        xp = select_backend("cupy")
    except UserError as error:
        return None, str(error)
    there = Parameters(config, xp.asarray(params.flat))
    return to_host(read_all(there, config, xp.asarray(ids))), None


def torch_scores(params, config, ids):
    """The scores of tests/torch_reference.py in float64; None without PyTorch."""
    try:
        import torch
    except ImportError:
        return None
    sys.path.insert(0, str(ROOT / "tests"))
    from torch_reference import load_parameters

    with torch.no_grad():
        return load_parameters(params, config)(torch.from_numpy(ids)).numpy()


def ask(name, python, folder, ids, config, params, tok):
    """The scores of another program, run beside this one.

    Returns: scores (N, T, V), or None and why not.
    """
    from npgpt.interchange.gguf_model import save_gguf
    from npgpt.interchange.hugging_face import save_folder

    kind, _, version = name.partition(" ")
    model, out = folder / ("m.gguf" if kind == "llama.cpp" else "hf"), folder / f"{name}.npy"
    try:
        if kind == "transformers":
            model.mkdir(exist_ok=True)
            save_folder(model, config, params, tok)
        elif kind == "llama.cpp":
            save_gguf(model, config, params, tok, "parity")
    except UserError as error:
        return None, str(error)
    np.save(folder / "ids.npy", ids)
    command = [python or sys.executable, str(PEER), kind, str(model), str(folder / "ids.npy")]
    try:
        done = subprocess.run([*command, str(out)], capture_output=True, text=True)
    except OSError as error:
        return None, f"{python}: {error.strerror}"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        option = name.replace(" ", "").replace(".", "-")
        return None, last if python else f"{last}; name a Python that has it with --{option}"
    found = done.stdout.strip().splitlines()[-1]
    if version and not found.startswith(version):
        return None, f"this Python has version {found}"
    return np.load(out), None


class Reference:
    """The scores that all others are compared with.

    Args:    scores (N, T, V) float64; report, which gets the figures.
    """

    def __init__(self, scores, report):
        self.scores, self.report = scores, report
        self.largest = np.max(np.abs(scores))
        best = np.partition(scores, -2, axis=-1)[..., -2:]  # (N, T, 2)
        self.lead = best[..., 1] - best[..., 0]  # (N, T)

    def compare(self, name, scores, bar, why=None):
        """Report how far a contestant is from the reference, or why it did not run.

        Args:    name; scores (N, T, V), or None; bar for the difference; why.
        """
        if scores is None:
            print(f"{name:56s} not run: {why}", flush=True)
            return
        difference = np.max(np.abs(scores - self.scores)) / self.largest
        self.report.add(f"{name}: largest difference of scores", difference, at_most=bar)
        same = np.argmax(scores, axis=-1) == np.argmax(self.scores, axis=-1)  # (N, T)
        tie = self.lead <= 2 * bar * self.largest
        good = np.mean(same[:, :-1] | tie[:, :-1])  # the last place writes no token
        self.report.add(f"{name}: share of tokens that agree", good, at_least=1.0)


if __name__ == "__main__":
    sys.exit(main())
