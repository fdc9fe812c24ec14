"""A run: everything that train.py's loop works on, made anew or brought back from a checkpoint."""

import functools
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from npgpt import plan
from npgpt.backend import to_host
from npgpt.checkpoint import save_checkpoint, write_atomic
from npgpt.data import ahead, check_length, get_batch
from npgpt.errors import UserError
from npgpt.evaluate import document_starts, evaluate
from npgpt.model import GPTConfig, Parameters, count_parameters, init_parameters
from npgpt.optim import AdamW
from npgpt.parallel import Workers, available_threads
from npgpt.prepare import prepare
from npgpt.runlog import finite
from npgpt.runs import check_new_run, find_run, load_run, make_run_dir, typed
from npgpt.sampling import generate, sample_rngs
from npgpt.settings import FREE_ON_RESUME, Settings, dashed
from npgpt.token_files import SUFFIXES, TokenFile, link_tokens, open_tokens, token_sizes
from npgpt.tokenizer import load_tokenizer


@dataclass
class Run:
    """One training run; `new_run` and `resumed_run` make it."""

    dir: Path
    settings: Settings
    config: GPTConfig
    tokenizer: object
    train: TokenFile
    valid: TokenFile
    bytes_per_token: float  # of the validation text
    floor: float | None  # nats a token under the true source, where it is known
    params: Parameters
    grads: Parameters
    optimizer: AdamW
    workers: Workers
    xp: object  # the array module, numpy or cupy
    step: int = 0  # optimizer steps taken
    saved: int = -1  # the step of the newest checkpoint
    seconds: float = 0.0  # spent in steps so far
    valid_loss: float = math.nan  # the last one measured

    @property
    def train_tokens(self):
        return self.train.tokens  # (N,)

    @property
    def valid_tokens(self):
        return self.valid.tokens  # (M,)

    @functools.cached_property
    def valid_starts(self):
        """Where the documents of the validation text begin: see evaluate.document_starts."""
        end = self.tokenizer.end_of_text
        return document_starts(self.valid_tokens, end, self.config.block_size)

    def batches(self):
        """The batches of the steps that are left, prepared while the steps before are taken.

        Returns: an iterator of (ids, targets), as get_batch; to be closed.
        """
        s = self.settings
        rows = s.batch_size * s.accumulate
        self.train.expect_random_reads()

        def batch(step):
            return get_batch(self.train_tokens, s.seed, step, rows, s.block_size)

        return ahead(batch, range(self.step, s.steps), threads=4)

    def validate(self, log, max_tokens=None):
        """Measure the loss over the validation text, or over its beginning, and log it."""
        result = evaluate(
            self.params, self.config, self.valid_tokens, self.bytes_per_token,
            batch_size=self.settings.batch_size, max_tokens=max_tokens,
            starts=self.valid_starts, xp=self.xp, map=self.workers.map,
        )  # fmt: skip
        self.valid_loss = result.loss
        log.record(
            step=self.step, valid_loss=result.loss, perplexity=result.perplexity,
            bits_per_byte=result.bits_per_byte, valid_tokens=result.num_tokens,
            floor=self.floor, title=self.title(),
        )  # fmt: skip
        floor = "" if self.floor is None else f", {self.floor:.3f} is the floor"
        log.say(
            f"validation at step {self.step}: {result.loss:.4f} nats a token{floor}; "
            f"perplexity {result.perplexity:.2f}, {result.bits_per_byte:.3f} bits per byte"
        )

    def write_sample(self, log):
        """Let the model write: shown, and kept in samples.txt."""
        s = self.settings
        end = self.tokenizer.end_of_text
        first = int(self.train_tokens[0]) if end is None else end  # a document begins after an end
        ids = generate(
            self.params, self.config, np.array([[first]]), s.sample_tokens,
            sample_rngs(s.seed, [self.step]), temperature=0.8, end_of_text=end,
        )  # fmt: skip
        ids = [int(i[0]) for i in ids]
        text = self.tokenizer.decode([i for i in ids if i != end]).strip()
        log.say(f"sample at step {self.step}:\n    {text}\n")
        path, head = self.dir / "samples.txt", f"--- step {self.step}\n"
        earlier = path.read_text("utf-8") if path.exists() else ""
        # What an attempt that was killed wrote from this step on is written once more.
        write_atomic(path, f"{earlier.partition(head)[0]}{head}{text}\n\n".encode())

    def save(self):
        """Save all that the run needs to go on bit for bit, unless this step is saved already."""
        if self.saved == self.step:
            return
        state = {
            "settings": _plain(self.settings),
            "config": asdict(self.config),
            "optimizer_step": self.optimizer.step,
            # Batches and samples are pure functions of these two; no other random state exists.
            "random": {"seed": self.settings.seed, "step": self.step},
            "data_sha256": [self.train.facts["sha256"], self.valid.facts["sha256"]],
            "bytes_per_token": self.bytes_per_token,
            "floor": self.floor,
            "seconds": self.seconds,
            "valid_loss": finite(self.valid_loss),
        }
        arrays = {
            "model": {name: to_host(w) for name, w in self.params.items()},
            "optimizer": {"m": to_host(self.optimizer.m), "v": to_host(self.optimizer.v)},
        }
        folder = self.dir / "tokenizer"
        files = {f"tokenizer/{f.name}": f.read_bytes() for f in sorted(folder.iterdir())}
        try:
            save_checkpoint(self.dir, self.step, arrays, state, files, self.settings.keep)
        except UserError as error:
            if self.saved < 0:
                raise
            raise UserError(
                f"{error}; the checkpoint of step {self.saved} is whole, so go on "
                f"with python train.py --resume --run {typed(self.dir)}"
            ) from error
        self.saved = self.step

    def title(self):
        c = self.config
        return (
            f"{self.dir.name}: {plan.human_count(count_parameters(c))} parameters, "
            f"{c.n_layer} layers, {c.n_embd} channels, context {c.block_size}"
        )


def new_run(settings, xp):
    """Read the data, learn the tokens, draw the weights; only then is anything written.

    Args:    settings, its preset applied; xp, numpy or cupy.
    Raises:  UserError for data or settings that don't fit, before anything is written.
    """
    s = replace(settings, threads=_threads(settings, xp))
    check_new_run(s.run)
    _config(s, max(1, s.vocab_size))  # a shape that can't be is refused before the long reading
    data = prepare(s)
    config = _config(s, data.tokenizer.vocab_size)
    valid_tokens = data.valid.tokens
    check_length(data.train.tokens, s.block_size, "training")
    if len(valid_tokens) < 2:  # nothing comes before the first, so it can't be predicted
        raise UserError(
            f"the validation text has {len(valid_tokens)} tokens, and two are the least: "
            "give more text, or a larger --valid-fraction"
        )
    # What the text and its nats are spread over: every token but the first.
    told = len(valid_tokens) - 1
    text_bytes = data.valid.facts["text_bytes"] - int(token_sizes(data.tokenizer)[valid_tokens[0]])

    params = Parameters(config, xp.asarray(init_parameters(config, s.seed).flat))
    grads, optimizer = params.zeros_like(), _new_optimizer(params, s)

    run_dir = make_run_dir(s.run, s.preset)
    write_atomic(run_dir / "settings.json", json.dumps(_plain(s), indent=1).encode())
    data.tokenizer.save(run_dir / "tokenizer")
    (run_dir / "tokens").mkdir(exist_ok=True)
    (run_dir / "samples.txt").unlink(missing_ok=True)  # of an attempt that never saved
    return Run(
        dir=run_dir, settings=s, config=config, tokenizer=data.tokenizer,
        train=link_tokens(data.train, run_dir / "tokens" / "train"),
        valid=link_tokens(data.valid, run_dir / "tokens" / "valid"),
        bytes_per_token=text_bytes / told,
        floor=None if data.nats is None else data.nats / told,
        params=params, grads=grads, optimizer=optimizer,
        workers=_workers(params, config, s, xp), xp=xp,
    )  # fmt: skip


def resumed_run(settings, given, xp):
    """Bring back the newest whole checkpoint of a run.

    Args:    settings and given, the names on the command line; xp, numpy or cupy.
    Raises:  UserError if there is none, or a setting that decides the weights was changed.
    """
    run_dir = find_run(settings.run)
    checkpoint = load_run(run_dir)
    state = checkpoint.state
    saved = dict(state["settings"])
    for name in sorted(given - FREE_ON_RESUME):
        wanted = _plain(settings)[name]
        if wanted != saved[name]:
            raise UserError(
                f"{run_dir} was trained with {dashed(name)} {saved[name]}, not {wanted}: "
                "leave it out to resume, or start a new run with it"
            )
    changed = {name: getattr(settings, name) for name in given & FREE_ON_RESUME}
    s = replace(settings, **{**saved, **changed, "run": str(run_dir), "resume": True})
    s = replace(s, threads=_threads(s, xp))
    if checkpoint.step >= s.steps:
        raise UserError(
            f"{run_dir} has finished its {checkpoint.step} steps: give more with --steps, "
            f"or hear it with python generate.py --run {typed(run_dir)}"
        )
    config = GPTConfig(**state["config"])
    tokenizer = load_tokenizer(checkpoint.path / "tokenizer")
    train, valid = (_run_tokens(run_dir, name, tokenizer) for name in ("train", "valid"))
    if [train.facts["sha256"], valid.facts["sha256"]] != state["data_sha256"]:
        raise UserError(f"{run_dir / 'tokens'} has changed since the checkpoint: start a new run")

    params = restored_parameters(checkpoint, xp)
    optimizer = _new_optimizer(params, s)
    for name, memory in (("m", optimizer.m), ("v", optimizer.v)):
        saved_memory = checkpoint.arrays["optimizer"][name]
        if saved_memory.shape != memory.shape:
            raise UserError(
                f"{checkpoint.path} belongs to another configuration: its optimizer remembers "
                f"{saved_memory.size:,} parameters of {memory.size:,}; choose another checkpoint"
            )
        memory[...] = xp.asarray(saved_memory)
    optimizer.step = state["optimizer_step"]
    return Run(
        dir=run_dir, settings=s, config=config, tokenizer=tokenizer, train=train, valid=valid,
        bytes_per_token=state["bytes_per_token"], floor=state["floor"],
        params=params, grads=params.zeros_like(), optimizer=optimizer,
        workers=_workers(params, config, s, xp), xp=xp,
        step=checkpoint.step, saved=checkpoint.step,
        seconds=state["seconds"],
        valid_loss=math.nan if state["valid_loss"] is None else state["valid_loss"],
    )  # fmt: skip


def restored_parameters(checkpoint, xp=np):
    """The parameters of a checkpoint, on the device of xp.

    Raises:  UserError if its arrays are not those that its own configuration asks for.
    """
    config = GPTConfig(**checkpoint.state["config"])
    params = Parameters(config, np.empty(count_parameters(config), np.float32))
    arrays = checkpoint.arrays["model"]
    for name, w in params.items():
        if name not in arrays or arrays[name].shape != w.shape or len(arrays) != len(params):
            found = arrays[name].shape if name in arrays else "nothing"
            raise UserError(
                f"{checkpoint.path} belongs to another configuration: its settings need "
                f"{name} {w.shape}, and it holds {found}; choose another checkpoint"
            )
        w[...] = arrays[name]
    return Parameters(config, xp.asarray(params.flat))


def _run_tokens(run_dir, name, tokenizer):
    """The TokenFile of a run, in the form that it was given in."""
    paths = [run_dir / "tokens" / f"{name}{suffix}" for suffix in SUFFIXES]
    path = next((path for path in paths if path.is_symlink() or path.exists()), paths[0])
    return open_tokens(path, tokenizer, "start a new run")


def _config(s, vocab_size):
    return GPTConfig(
        vocab_size=vocab_size, block_size=s.block_size, n_layer=s.n_layer, n_head=s.n_head,
        n_kv_head=s.n_kv_head, n_embd=s.n_embd, n_hidden=s.n_hidden, tie=s.tie,
    )  # fmt: skip


def _new_optimizer(params, s):
    return AdamW.for_parameters(params, beta1=s.beta1, beta2=s.beta2, weight_decay=s.weight_decay)


def _workers(params, config, s, xp):
    """The threads of a run; a processor's take few rows at a time, a GPU all of them."""
    return Workers(params, s.threads, plan.rows_at_once(config) if xp is np else None)


def _threads(s, xp):
    """How many threads a run uses: on a GPU one, which launches what others compute."""
    return min(s.threads or available_threads(), s.batch_size) if xp is np else 1


def _plain(settings):
    """Settings as JSON knows them: paths are strings."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()}
