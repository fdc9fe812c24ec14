"""Do npgpt and PyTorch learn alike? Two loss curves from the same weights and batches.

    python -m benchmarks.curve --preset shakespeare-char --data input.txt --check
    python -m benchmarks.curve --preset small-gpt --batch-size 2 --accumulate 1

Both begin with the same weights, see the same batches, and drop the same channels (torch is handed
npgpt's masks), all in float32: with the preset's model, loss, schedule, AdamW and clipping.

In float32 each operation rounds, the two round in another order, and each step starts from what
the rounding of the last one left. So the curves must part in the end; the question is whether
they part for any other reason. The measure is a third curve, torch's in float64, which rounds so
little that it counts as the true one. npgpt may be three times as far from it as torch is.

(Torch with the rows of each batch in the opposite order would be no measure: much of the rounding
stays as it was, and it can lie nearer to its other self than both lie to the truth.)

Without --data the text is one that is made up: after each token come three others, at 70, 20
and 10 %. Batches are cut down by --batch-size and --accumulate to what a processor can do in
minutes, and large models by the options after them; a warm-up longer than the run would hardly
begin, so it can be cut as well.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the threads are ours: see train.py

import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.report import Report, option_parser, say
from npgpt.corpus.prepare import prepare
from npgpt.data import get_batch
from npgpt.layers import dropout_forward, dropout_key
from npgpt.model import Chance, Parameters, init_parameters
from npgpt.optim import clip_gradient, cosine_schedule
from npgpt.parallel import Workers
from npgpt.plan import assumed_tokens, rows_at_once
from npgpt.presets import PRESETS
from npgpt.settings import Settings, with_preset
from npgpt.training import model_config, new_optimizer

TIMES = 3.0  # as far from the curve in float64 as torch is
TESTS = Path(__file__).resolve().parents[1] / "tests"  # torch_reference.py is there


def main(argv=None):
    parser = option_parser(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="shakespeare-char")
    parser.add_argument("--data", help="a text, as of train.py (default: one that is made up)")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps (default: 300)")
    parser.add_argument("--batch-size", type=int, default=2, help="rows of a batch (default: 2)")
    parser.add_argument("--accumulate", type=int, default=1, help="batches a step (default: 1)")
    parser.add_argument("--vocab-size", type=int, help="tokens (default: the preset's)")
    for name in ("block-size", "n-layer", "warmup-steps"):
        parser.add_argument(f"--{name}", type=int, help="(default: the preset's)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--curves", metavar="FILE", help="keep all three curves in FILE, as JSON")
    options = parser.parse_args(argv)
    s, config, tokens = start(options)
    rows = s.batch_size * s.accumulate
    batches = [get_batch(tokens, s.seed, t, rows, s.block_size) for t in range(s.steps)]

    say(f"{options.preset}: {s.steps} steps of {rows} x {s.block_size} tokens; npgpt ...")
    curves = {"npgpt": npgpt_losses(s, config, batches)}
    for name, dtype in (("torch", np.float32), ("torch in float64", np.float64)):
        say(f"{name} ...")
        curves[name] = torch_losses(s, config, batches, dtype)
    report = Report(f"{options.preset}: loss curves of npgpt and torch")
    apart = {name: np.abs(curves[name] - curves["torch in float64"]) for name in ("npgpt", "torch")}
    last = max(1, s.steps // 10)
    report.add("first loss, npgpt", curves["npgpt"][0], "nats")
    for name, curve in curves.items():
        report.add(f"mean loss of the last {last} steps, {name}", np.mean(curve[-last:]), "nats")
    for name, distances in apart.items():
        report.add(f"{name} from float64, at the worst step", np.max(distances), "nats")
        report.add(f"{name} from float64, mean", np.mean(distances), "nats")
    report.add("npgpt from torch, mean", np.mean(np.abs(curves["npgpt"] - curves["torch"])), "nats")
    floor = float(np.spacing(np.float32(curves["torch"][0])))  # a loss's last bit: one rounding
    ours, theirs = (np.mean(distances) for distances in apart.values())
    share = ours / (theirs + floor)
    report.add("npgpt's mean distance, over torch's and one rounding", share, "x", at_most=TIMES)
    if options.curves:
        Path(options.curves).write_text(json.dumps({n: c.tolist() for n, c in curves.items()}))
    return report.finish(options)


def start(options):
    """Settings, the model's configuration, and the tokens to learn."""
    given = dict(
        preset=options.preset, steps=options.steps, batch_size=options.batch_size,
        accumulate=options.accumulate, threads=options.threads,
    )  # fmt: skip
    for name in ("vocab_size", "block_size", "n_layer", "warmup_steps", "data"):
        if getattr(options, name) is not None:
            given[name] = getattr(options, name)
    s = with_preset(Settings(**given), set(given))
    if options.data:
        data = prepare(s)
        return s, model_config(s, data.tokenizer.vocab_size), data.train.tokens
    vocab_size = assumed_tokens(s)
    return s, model_config(s, vocab_size), markov_text(vocab_size, 200_000)


def markov_text(vocab_size, length):
    """Tokens with something to learn: after each come three others, at 70, 20 and 10 %."""
    rng = np.random.default_rng(1)
    followers = rng.integers(vocab_size, size=(vocab_size, 3))
    choices = rng.choice(3, size=length, p=[0.7, 0.2, 0.1])
    text = np.zeros(length, np.int64)
    for i in range(1, length):
        text[i] = followers[text[i - 1], choices[i]]
    return text


def rate(s, step):
    """The learning rate of a step, as train.py has it."""
    return cosine_schedule(
        step, s.warmup_steps, s.steps, s.lr, s.min_lr, s.restart_steps, s.restart_growth
    )


def npgpt_losses(s, config, batches):
    """The losses of the steps, as train.py takes them."""
    params = init_parameters(config, s.seed, init=s.init)
    grads, adamw = params.zeros_like(), new_optimizer(params, s)
    workers, losses = Workers(params, s.threads, rows_at_once(config)), []
    for step, (ids, targets) in enumerate(batches):
        loss = 0.0
        for first in range(0, len(ids), s.batch_size):
            part = slice(first, first + s.batch_size)
            loss += workers.loss_and_gradients(
                params, grads, ids[part], targets[part], config, 1.0 / s.accumulate,
                Chance(s.seed, step, first), s.label_smoothing, anew=first == 0,
            )  # fmt: skip
        clip_gradient(grads.flat, s.clip, workers.map)
        adamw.update(params.flat, grads.flat, rate(s, step), workers.map)
        losses.append(float(loss) / s.accumulate)
    return np.array(losses)


def torch_losses(s, config, batches, dtype):
    """The same in torch, in float32 or float64."""
    sys.path.insert(0, str(TESTS))
    import torch
    from torch_reference import load_parameters

    torch.set_num_threads(s.threads)
    flat = init_parameters(config, s.seed, init=s.init).flat  # the same numbers in both
    model = load_parameters(Parameters(config, flat.astype(dtype)), config)
    tables = set() if s.decay_embeddings else {"embed.weight", "places.weight"}
    groups = {True: [], False: []}
    for name, p in model.named_parameters():
        groups[p.ndim >= 2 and name not in tables].append(p)
    adamw = torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": s.weight_decay},
         {"params": groups[False], "weight_decay": 0.0}],
        betas=(s.beta1, s.beta2), eps=1e-8,
    )  # fmt: skip
    losses = []
    for step, (ids, targets) in enumerate(batches):
        for group in adamw.param_groups:
            group["lr"] = rate(s, step)
        adamw.zero_grad()
        total = 0.0
        for first in range(0, len(ids), s.batch_size):
            part = slice(first, first + s.batch_size)
            loss = model.loss(
                torch.tensor(ids[part]), torch.tensor(targets[part]), s.label_smoothing,
                same_masks(config, Chance(s.seed, step, first)),
            )  # fmt: skip
            (loss / s.accumulate).backward()
            total += loss.item()
        if s.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), s.clip)
        adamw.step()
        losses.append(total / s.accumulate)
    return np.array(losses)


def same_masks(config, chance):
    """Dropout for torch_reference, with npgpt's masks.

    Returns: drop(x, layer, place); place 2 are the weights of attention: see torch_reference.
    """
    import torch

    def drop(x, layer, place):
        rate = config.attention_dropout if place == 2 else config.dropout
        if not rate:
            return x
        key = dropout_key(chance.seed, chance.step, layer, place)
        start = chance.row * (x.numel() // x.shape[0])
        mask, _ = dropout_forward(np.ones(x.shape, np.float32), rate, key, start)
        return x * torch.tensor(mask)

    return drop


if __name__ == "__main__":
    sys.exit(main())
