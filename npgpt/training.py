"""A run: everything that train.py's loop works on, made anew or brought back from a checkpoint."""

import functools
import json
import math
import textwrap
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from npgpt import plan
from npgpt.backend import kernels_enabled, to_host
from npgpt.checkpoint import list_checkpoints, newest_checkpoint, save_checkpoint, write_atomic
from npgpt.cli import harmless
from npgpt.corpus.prepare import prepare
from npgpt.corpus.token_files import SUFFIXES, TokenFile, link_tokens, open_tokens, token_sizes
from npgpt.data import ahead, check_length, get_batch
from npgpt.errors import UserError
from npgpt.evaluate import document_starts, evaluate
from npgpt.finetune import read_start, with_context
from npgpt.loss_scale import LossScale
from npgpt.model import GPTConfig, Parameters, count_parameters, init_parameters
from npgpt.optim import AdamW
from npgpt.parallel import Workers, available_threads
from npgpt.runlog import finite
from npgpt.runs import RUNS, check_new_run, claim, find_run, load_run, make_run_dir, run_path, typed
from npgpt.sampling import generate, sample_rngs
from npgpt.settings import FREE_ON_RESUME, Settings, dashed
from npgpt.tokenizer import load_tokenizer
from npgpt.tokenizer.files import saved_tokenizer

MOST_LAYERS, MOST_PARAMETERS = 1 << 16, 1 << 40  # beyond, a slip and not a wish
MOST_VALIDATED = 64  # rows at a time, in float32: a training batch of bf16 may be twice too large


@dataclass
class Run:
    """One training run; `new_run` and `resumed_run` make it."""

    dir: Path
    settings: Settings
    config: GPTConfig
    tokenizer: object
    tokenizer_files: dict  # its files as a checkpoint holds them: name → bytes
    train: TokenFile
    valid: TokenFile
    bytes_per_token: float  # of the validation text
    floor: float | None  # nats a token under the true source, where it is known
    params: Parameters
    grads: Parameters
    optimizer: AdamW
    workers: Workers
    xp: object  # the array module, numpy or cupy
    gpu: object = None  # npgpt.backend.cuda.steps.DeviceSteps, who takes the steps on a GPU
    loss_scale: LossScale | None = None  # of the next step, in fp16
    step: int = 0  # optimizer steps taken
    saved: int = -1  # the step of the newest checkpoint
    seconds: float = 0.0  # spent in steps so far
    valid_loss: float = math.nan  # the last one measured
    best_loss: float = math.inf  # the least so far, over the same part of the validation text
    best_step: int = 0  # when that was
    stalled: bool = False  # whether --patience is at its end

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
        # Each of a processor's threads makes logits of its own: as many as in training, no more.
        share = -(-self.settings.batch_size // self.workers.threads)
        rows = min(share, self.workers.most_rows or share, MOST_VALIDATED)
        result = evaluate(
            self.params, self.config, self.valid_tokens, self.bytes_per_token, batch_size=rows,
            max_tokens=max_tokens, starts=self.valid_starts, xp=self.xp, map=self.workers.map,
        )  # fmt: skip
        self.valid_loss = result.loss
        if max_tokens is not None:  # what is measured at the end, over more, does not compare
            if result.loss < self.best_loss:
                self.best_loss, self.best_step = result.loss, self.step
                if self.settings.keep_best:
                    self._write(self.dir / "best", keep=1)
            since = (self.step - self.best_step) // self.settings.eval_every
            patience = self.settings.patience
            self.stalled = patience is not None and since >= patience
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
        log.say(f"sample at step {self.step}:\n{textwrap.indent(harmless(text), ' ' * 4)}\n")
        path, head = self.dir / "samples.txt", f"--- step {self.step}\n"
        earlier = path.read_text("utf-8") if path.exists() else ""
        # What an attempt that was killed wrote from this step on is written once more.
        write_atomic(path, f"{earlier.partition(head)[0]}{head}{text}\n\n".encode())

    def save(self):
        """Save all that the run needs to go on bit for bit, unless this step is saved already."""
        if self.saved == self.step:
            return
        try:
            self._write(self.dir, self.settings.keep)
        except UserError as error:
            if self.saved < 0:
                raise
            raise UserError(
                f"{error}; the checkpoint of step {self.saved} is whole, so go on "
                f"with python train.py --resume --run {typed(self.dir)}"
            ) from error
        self.saved = self.step

    def _write(self, run_dir, keep):
        """Write a checkpoint into a run's folder, and keep so many."""
        state = {
            "settings": _plain(self.settings),
            "config": asdict(self.config),
            "optimizer_step": self.optimizer.step,
            "loss_scale": list(self.loss_scale) if self.loss_scale else None,
            # Batches and samples are pure functions of these two; no other random state exists.
            "random": {"seed": self.settings.seed, "step": self.step},
            "data_sha256": [self.train.facts["sha256"], self.valid.facts["sha256"]],
            "bytes_per_token": self.bytes_per_token,
            "floor": self.floor,
            "seconds": self.seconds,
            "valid_loss": finite(self.valid_loss),
            "best": [finite(self.best_loss), self.best_step],
            "stalled": self.stalled,
        }
        arrays = {
            "model": {name: to_host(w) for name, w in self.params.items()},
            "optimizer": {"m": to_host(self.optimizer.m), "v": to_host(self.optimizer.v)},
        }
        save_checkpoint(run_dir, self.step, arrays, state, self.tokenizer_files, keep)

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
    choose_dtype(s, xp)
    s, data, config, params = begin(s)
    # What the text and its nats are spread over: every token but the first.
    valid_tokens = data.valid.tokens
    told = len(valid_tokens) - 1
    text_bytes = data.valid.facts["text_bytes"] - int(token_sizes(data.tokenizer)[valid_tokens[0]])

    params = Parameters(config, xp.asarray(params.flat))
    grads, optimizer = params.zeros_like(), new_optimizer(params, s)
    gpu, loss_scale = _gpu_steps(params, grads, optimizer, config, s, xp)

    run_dir = make_run_dir(s.run, s.preset)
    claim(run_dir).close()  # before anything in it is changed; train.py claims it while it trains
    write_atomic(run_dir / "settings.json", json.dumps(_plain(s), indent=1).encode())
    data.tokenizer.save(run_dir / "tokenizer")
    (run_dir / "tokens").mkdir(exist_ok=True)
    (run_dir / "samples.txt").unlink(missing_ok=True)  # of an attempt that never saved
    return Run(
        dir=run_dir, settings=s, config=config, tokenizer=data.tokenizer,
        tokenizer_files=saved_tokenizer(run_dir / "tokenizer"),
        train=link_tokens(data.train, run_dir / "tokens" / "train"),
        valid=link_tokens(data.valid, run_dir / "tokens" / "valid"),
        bytes_per_token=text_bytes / told,
        floor=None if data.nats is None else data.nats / told,
        params=params, grads=grads, optimizer=optimizer,
        workers=_workers(params, config, s, xp), xp=xp,
        gpu=gpu, loss_scale=loss_scale,
    )  # fmt: skip


def begin(s):
    """The text of a run as tokens, and the model as it is before the first step.

    Args:    s, settings, the preset applied.
    Returns: settings, those that --init-from decides among them; data, a Prepared; config;
             params on the host.
    Raises:  UserError for data or settings that don't fit.
    """
    if s.init_from is None:
        model_config(s, max(1, s.vocab_size))  # a wrong shape is refused before the long reading
        data = prepare(s)
        config = model_config(s, data.tokenizer.vocab_size)
        params = None
    else:
        s, config, params, tokenizer = _start(s)
        data = prepare(s, tokenizer)
    check_length(data.train.tokens, s.block_size, "training")
    if len(data.valid.tokens) < 2:  # nothing comes before the first, so it can't be predicted
        raise UserError(
            f"the validation text has {len(data.valid.tokens)} tokens, and two are the least: "
            "give more text, or a larger --valid-fraction"
        )
    return s, data, config, params or init_parameters(config, s.seed, init=s.init)


def unfinished_run(settings):
    """The run that --auto-resume goes on with.

    Args:    settings, its preset applied.
    Returns: the folder of --run if that holds a checkpoint; without --run, that of the preset's
             newest run that is not finished; None if there is nothing to go on with.
    """
    if settings.run is not None:
        folder = run_path(settings.run)
        return folder if list_checkpoints(folder) else None
    for folder in sorted(RUNS.glob(f"{settings.preset}-[0-9]*"), reverse=True):
        checkpoint = newest_checkpoint(folder, groups=())
        if checkpoint is None:
            continue
        state = checkpoint.state
        if checkpoint.step < state["settings"]["steps"] and not state.get("stalled"):
            return folder
    return None


def resumed_run(settings, given, xp):
    """Bring back the newest whole checkpoint of a run.

    Args:    settings and given, the names on the command line; xp, numpy or cupy.
    Raises:  UserError if there is none, or a setting that decides the weights was changed.
    """
    run_dir = find_run(settings.run)
    checkpoint = load_run(run_dir)
    state = checkpoint.state
    if "settings" not in state:
        raise UserError(
            f"{run_dir} was trained elsewhere, and holds no training to go on with: begin one "
            f"with python train.py --init-from {typed(run_dir)} --data YOUR.txt"
        )
    saved = dict(state["settings"])
    for name in sorted(given - FREE_ON_RESUME):
        wanted = _plain(settings)[name]
        if wanted != saved.get(name):
            raise UserError(
                f"{run_dir} was trained with {dashed(name)} {saved.get(name)}, not {wanted}: "
                "leave it out to resume, or start a new run with it"
            )
    changed = {name: getattr(settings, name) for name in given & FREE_ON_RESUME}
    s = replace(settings, **{**saved, **changed, "run": str(run_dir), "resume": True})
    s = replace(s, threads=_threads(s, xp))
    choose_dtype(s, xp)
    if checkpoint.step >= s.steps:
        raise UserError(
            f"{run_dir} has finished its {checkpoint.step} steps: give more with --steps, "
            f"or hear it with python generate.py --run {typed(run_dir)}"
        )
    config = replace(GPTConfig(**state["config"]), recompute=s.checkpoint_activations)
    tokenizer = load_tokenizer(checkpoint.path / "tokenizer")
    train, valid = (run_tokens(run_dir, name, tokenizer) for name in ("train", "valid"))
    if [train.facts["sha256"], valid.facts["sha256"]] != state["data_sha256"]:
        raise UserError(f"{run_dir / 'tokens'} has changed since the checkpoint: start a new run")

    params = restored_parameters(checkpoint, xp)
    optimizer = new_optimizer(params, s)
    for name, memory in (("m", optimizer.m), ("v", optimizer.v)):
        saved_memory = checkpoint.arrays["optimizer"][name]
        if saved_memory.shape != memory.shape:
            raise UserError(
                f"{checkpoint.path} belongs to another configuration: its optimizer remembers "
                f"{saved_memory.size:,} parameters of {memory.size:,}; choose another checkpoint"
            )
        memory[...] = xp.asarray(saved_memory)
    optimizer.step = state["optimizer_step"]
    grads = params.zeros_like()
    gpu, loss_scale = _gpu_steps(
        params, grads, optimizer, config, s, xp, checkpoint.step, state.get("loss_scale")
    )
    best_loss, best_step = state.get("best", (None, checkpoint.step))
    return Run(
        dir=run_dir, settings=s, config=config, tokenizer=tokenizer,
        tokenizer_files=checkpoint.files, train=train, valid=valid,
        bytes_per_token=state["bytes_per_token"], floor=state["floor"],
        params=params, grads=grads, optimizer=optimizer,
        workers=_workers(params, config, s, xp), xp=xp,
        gpu=gpu, loss_scale=loss_scale,
        step=checkpoint.step, saved=checkpoint.step,
        seconds=state["seconds"],
        valid_loss=math.nan if state["valid_loss"] is None else state["valid_loss"],
        best_loss=math.inf if best_loss is None else best_loss, best_step=best_step,
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


def run_tokens(run_dir, name, tokenizer, advice="start a new run"):
    """The TokenFile of a run, in the form that it was given in.

    Args:    run_dir; name, "train" or "valid"; tokenizer; advice, if it can't be used.
    Returns: TokenFile.
    Raises:  UserError if it is not there, or damaged.
    """
    paths = [run_dir / "tokens" / f"{name}{suffix}" for suffix in SUFFIXES]
    path = next((path for path in paths if path.is_symlink() or path.exists()), paths[0])
    return open_tokens(path, tokenizer, advice)


def _start(s):
    """The model of --init-from, and the settings with its shape in the place of theirs.

    Returns: settings; config; params on the host; tokenizer.
    """
    config, params, tokenizer = read_start(s.init_from)
    config, params = with_context(config, params, s.block_size)
    config = replace(
        config, dropout=s.dropout, attention_dropout=s.attention_dropout,
        recompute=s.checkpoint_activations,
    )  # fmt: skip
    shape = {name: value for name, value in asdict(config).items() if hasattr(s, name)}
    s = replace(s, **shape, tokenizer="char" if tokenizer.kind == "char" else "bpe")
    return s, config, params, tokenizer


def model_config(s, num_tokens):
    """The shape that settings ask for, over a vocabulary of so many tokens: a GPTConfig.

    Raises:  UserError for one that no computer holds, or whose parts do not fit together.
    """
    padding = -num_tokens % s.pad_vocab_to
    config = GPTConfig(
        vocab_size=num_tokens + padding, padding=padding, block_size=s.block_size,
        n_layer=s.n_layer, n_head=s.n_head, n_kv_head=s.n_kv_head, n_embd=s.n_embd,
        n_hidden=s.n_hidden, tie=s.tie, norm=s.norm, position=s.position, mlp=s.mlp,
        bias=s.bias, qkv_bias=s.qkv_bias, head_bias=s.head_bias, dropout=s.dropout,
        attention_dropout=s.attention_dropout, recompute=s.checkpoint_activations,
    )  # fmt: skip
    if config.n_layer > MOST_LAYERS or count_parameters(config) > MOST_PARAMETERS:
        raise UserError(
            f"{config.n_layer:,} layers and {count_parameters(config):,} parameters are more than "
            "a computer holds: choose a smaller --n-layer, --n-embd, --n-hidden, --vocab-size "
            "or --pad-vocab-to"
        )
    return config


def new_optimizer(params, s):
    """The AdamW that settings ask for, over all parameters, before its first step."""
    tables = sum(params[name].size for name in ("wte", "wpe") if name in params)
    return AdamW.for_parameters(
        params, beta1=s.beta1, beta2=s.beta2, weight_decay=s.weight_decay,
        first_decayed=0 if s.decay_embeddings else tables,
    )  # fmt: skip


def _workers(params, config, s, xp):
    """The threads of a run; a processor's take few rows at a time, a GPU all of them."""
    return Workers(params, s.threads, plan.rows_at_once(config) if xp is np else None)


def choose_dtype(s, xp):
    """Let a processor's kernels round as the settings say; refuse what there are no kernels for.

    Args:    s, settings; xp, numpy or cupy.
    Raises:  UserError for a dtype that only other kernels have.
    """
    if s.dtype in ("tf32", "bf16", "fp16") and not kernels_enabled("numpy" if xp is np else "cupy"):
        raise UserError(
            f"--dtype {s.dtype} needs the compiled kernels: install numba, and leave "
            "NPGPT_KERNELS unset; or leave --dtype out"
        )
    if xp is not np:
        return
    if s.dtype == "tf32":
        raise UserError("--dtype tf32 is for a GPU: give bf16 or float32, or leave it out")
    if s.dtype == "fp16":
        print("on a processor --dtype fp16 is there to be studied: it is slower than float32")
    if kernels_enabled():
        from npgpt.backend.cpu.linear import round_factors

        if not round_factors(s.dtype or "float32"):
            print(
                "this processor has no AVX512-BF16, or a slow one, so --dtype bf16 would gain "
                "nothing: float32 it is"
            )


def _gpu_steps(params, grads, optimizer, config, s, xp, step=0, saved_scale=None):
    """Who takes the steps of a run, and the scale of its loss.

    Returns: gpu, None where train.py's own text takes them; loss_scale, None but for fp16.
    """
    loss_scale = LossScale(*(saved_scale or ())) if s.dtype == "fp16" else None
    if xp is np or not kernels_enabled("cupy"):
        return None, loss_scale
    from npgpt.backend.cuda.compile import capability
    from npgpt.backend.cuda.rounding import supported
    from npgpt.backend.cuda.runtime import Runtime
    from npgpt.backend.cuda.steps import DeviceSteps, How

    dtype = supported(s.dtype, capability(), config, s.label_smoothing)
    how = How(s.batch_size, s.accumulate, s.clip, dtype, s.graph, s.label_smoothing, s.seed)
    gpu = DeviceSteps(params, grads, optimizer, config, how, Runtime(), step, loss_scale)
    return gpu, gpu.loss_scale


def _threads(s, xp):
    """How many threads a run uses: on a GPU one, which launches what others compute."""
    return min(s.threads or available_threads(), s.batch_size) if xp is np else 1


def _plain(settings):
    """Settings as JSON knows them: paths are strings."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()}
