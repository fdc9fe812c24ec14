"""Everything that decides how a run goes: the command line of train.py, field by field."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from npgpt.backend import BACKENDS
from npgpt.block import MLPS, NORMS
from npgpt.cli import option
from npgpt.errors import UserError
from npgpt.finetune import DECIDED
from npgpt.parameters import INITS, POSITIONS
from npgpt.presets import DEFAULT_PRESET, PRESETS

MOST_TOKENS = 1 << 30  # of a step: who asks for more has slipped, and would wait for ever


@dataclass(frozen=True)
class Settings:
    """Everything that decides how a run goes. The defaults are the preset `storybook`."""

    preset: str | None = option(None, "start from these settings", choices=tuple(PRESETS))
    run: str | None = option(None, "name of the run, or its folder (default: runs/PRESET-NNN)")
    resume: bool = option(False, "go on from the newest checkpoint of --run, or of the last run")
    auto_resume: bool = option(
        False,
        "go on with --run, or with the preset's newest run, if that is unfinished; else begin",
    )
    backend: str = option("numpy", "numpy on a CPU, cupy on an NVIDIA GPU", choices=BACKENDS)
    dtype: str | None = option(
        None, "what is rounded: float32 nothing; bf16 the factors of matrix products, on a GPU all "
        "activations; fp16 the same to half precision, with a loss that is scaled to fit; tf32, on "
        "a GPU, the factors less (default: bf16 on a GPU that has it, or else float32)",
        choices=("float32", "tf32", "bf16", "fp16"),
    )  # fmt: skip
    graph: bool = option(True, "on a GPU, record a step as a CUDA graph, and launch it as one")
    init: str = option(
        "npgpt", "how wide the first weights are: as npgpt finds best, or 0.02 as GPT-2's", INITS
    )
    seed: int = option(1, "decides the weights, the batches and the samples")
    init_from: str | None = option(
        None, "begin with a trained model: a run, or what python -m npgpt.load reads; the preset "
        "is then finetune", metavar="RUN|PATH",
    )  # fmt: skip

    data: str | None = option(
        "storybook", "what to learn from: storybook, tinystories, shakespeare or fineweb-edu; a "
        "text of yours, one file (.txt, .jsonl, .parquet; .gz or .xz of the first two) or a folder "
        "of them; or tokens, a .bin or .npy, or a folder with train.bin and valid.bin",
    )  # fmt: skip
    field: str | None = option(None, "field of a .jsonl or .parquet with the text (default: text)")
    valid: Path | None = option(None, "what to validate on (default: the end of --data)")
    valid_fraction: float = option(
        0.05, "share of --data that is kept for validation, though not more than 4 MB"
    )
    data_mb: int | None = option(None, "megabytes of text to read, at most (default: all of it)")
    words: int = option(1_000_000, "length of the storybook, in words")

    tokenizer: str = option("bpe", "bpe learns tokens, char takes characters", ("bpe", "char"))
    tokenizer_from: Path | None = option(
        None, "learn no tokenizer, but take one: of a run, GPT-2's folder, or a tokenizer.json"
    )
    tokenizer_mb: int = option(1000, "megabytes of text that bpe learns from, at most")
    vocab_size: int = option(1280, "tokens that bpe learns")
    pad_vocab_to: int = option(
        1, "make the model's vocabulary a multiple of this, as 50,257 of 64 is 50,304; what is "
        "added is never written", metavar="MULTIPLE",
    )  # fmt: skip
    block_size: int = option(176, "context: how many tokens the model looks back")
    n_layer: int = option(2, "blocks")
    n_head: int = option(4, "attention heads")
    n_kv_head: int | None = option(None, "key/value heads (default: as many as --n-head)")
    n_embd: int = option(128, "channels of the residual stream")
    n_hidden: int = option(256, "hidden channels of the MLP")
    tie: bool = option(False, "one table for the embedding and the output")
    norm: str = option("rmsnorm", "what each branch reads the stream through", tuple(NORMS))
    position: str = option(
        "rope", "how a token knows its place: queries and keys are turned by it, a vector is "
        "learned for each, or it only sees what came before", POSITIONS,
    )  # fmt: skip
    mlp: str = option("swiglu", "the bend in the MLP; none leaves the MLP out", tuple(MLPS))
    bias: bool = option(False, "biases for the blocks' matrices, and for layernorm")
    qkv_bias: bool = option(True, "with --bias, biases for queries, keys and values too")
    head_bias: bool = option(False, "a bias for the output")
    dropout: float = option(0.0, "share of the channels that each training step drops")
    attention_dropout: float = option(
        0.0, "share of attention's weights that each training step drops"
    )

    batch_size: int = option(12, "rows that go through the model at a time")
    accumulate: int = option(1, "batches whose gradients are added up before a step")
    checkpoint_activations: bool = option(
        False, "keep only what goes into each block, and run it again for its gradient: a third "
        "more time, for a fraction of the memory",
    )  # fmt: skip
    threads: int | None = option(None, "pieces of a batch side by side (default: all processors)")
    steps: int = option(2600, "optimizer steps")
    lr: float = option(5e-3, "largest learning rate")
    min_lr: float = option(1e-5, "learning rate at the end")
    warmup_steps: int = option(50, "steps of linear growth to --lr")
    restart_steps: int | None = option(
        None, "steps after which the learning rate starts again at --lr (default: it never does)"
    )
    restart_growth: int = option(1, "factor by which each time until the next restart is longer")
    label_smoothing: float = option(
        0.0, "share of each target that goes to all of the vocabulary alike"
    )
    beta1: float = option(0.9, "AdamW: memory of the gradient")
    beta2: float = option(0.95, "AdamW: memory of its square")
    weight_decay: float = option(0.1, "AdamW: pull of matrices to zero")
    decay_embeddings: bool = option(True, "AdamW: pull at the tables of tokens and places as well")
    clip: float = option(1.0, "largest norm of the gradient, 0 for no limit")

    log_every: int = option(50, "steps between log lines")
    eval_every: int = option(200, "steps between validations")
    eval_tokens: int = option(16_384, "tokens of a validation; the last one reads all")
    sample_every: int = option(400, "steps between samples, 0 for none but the last")
    sample_tokens: int = option(160, "length of a sample, in tokens")
    save_every: int = option(200, "steps between checkpoints")
    keep: int = option(2, "newest checkpoints that are kept")
    keep_best: bool = option(
        False, "keep the checkpoint of the best validation too, in the run's folder best/"
    )
    patience: int | None = option(
        None, "validations without a better one after which training ends (default: it goes on)"
    )
    tensorboard: bool = option(False, "write the figures for TensorBoard too, beside the log")

    def __post_init__(self):
        for name in (
            "words", "tokenizer_mb", "pad_vocab_to", "block_size", "batch_size", "accumulate",
            "steps", "log_every", "eval_every", "eval_tokens", "sample_tokens", "save_every",
            "keep",
        ):  # fmt: skip
            least = 2 if name == "eval_tokens" else 1  # nothing comes before the first token
            if getattr(self, name) < least:
                raise UserError(
                    f"{dashed(name)} is {getattr(self, name)}, but it must be {least} or more"
                )
        tokens = self.batch_size * self.accumulate * self.block_size
        if tokens > MOST_TOKENS:
            raise UserError(
                f"--batch-size {self.batch_size}, --accumulate {self.accumulate} and --block-size "
                f"{self.block_size} make a step of {tokens:,} tokens, and {MOST_TOKENS:,} are the "
                "most: choose smaller ones"
            )
        if not self.restart_growth >= 1:
            raise UserError(f"--restart-growth is {self.restart_growth}, but it must be 1 or more")
        for name in ("threads", "data_mb", "restart_steps", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{dashed(name)} is {value}, but it must be 1 or more")
        # --data "$BOOK", and no such variable: that is not the folder "."
        for name in ("run", "data", "init_from"):
            if getattr(self, name) == "":
                raise UserError(f"{dashed(name)} is empty: give it a value, or leave it out")
        for name in ("warmup_steps", "weight_decay", "clip", "sample_every", "min_lr", "seed"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"{dashed(name)} is {getattr(self, name)}, but it can not be negative"
                )
        if not self.lr > 0:
            raise UserError(f"--lr is {self.lr}, but a learning rate must be above 0")
        for name in ("beta1", "beta2", "dropout", "attention_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(
                    f"{dashed(name)} is {getattr(self, name)}, but it must be in [0, 1)"
                )
        if not 0 < self.valid_fraction < 1:
            raise UserError(f"--valid-fraction is {self.valid_fraction}, but it must be in (0, 1)")


def dashed(name):
    """A setting's name as it is typed: block_size → --block-size."""
    return "--" + name.replace("_", "-")


# What may change when a run goes on: nothing that decides the weights, except where it ends.
FREE_ON_RESUME = {
    "run", "resume", "auto_resume", "backend", "checkpoint_activations", "dtype", "graph",
    "threads", "steps", "log_every", "eval_every", "eval_tokens", "sample_every", "sample_tokens",
    "save_every", "keep", "keep_best", "patience", "tensorboard",
}  # fmt: skip


def with_preset(settings, given):
    """Put the preset under what was given: the command line wins over the preset.

    Args:    settings; given, the names of the fields that the command line named.
    Returns: Settings, its preset named.
    Raises:  UserError if what was given does not fit with the preset.
    """
    preset = settings.preset or DEFAULT_PRESET[settings.backend]
    if settings.init_from is not None:
        preset = settings.preset or "finetune"
        if decided := given & set(DECIDED):
            raise UserError(
                f"--init-from names a model, which decides {dashed(min(decided))}: leave out one"
            )
    values = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name in given}
    s = replace(Settings(**{**PRESETS[preset], **values}), preset=preset)
    if s.min_lr > s.lr:  # not in __post_init__: before the preset is known, one of them is not
        raise UserError(
            f"--min-lr {s.min_lr} is above --lr {s.lr}: the schedule only falls, so give both"
        )
    if s.valid is not None and s.data == "storybook":
        raise UserError("--valid is for a text of yours: give one to --data too, or leave it out")
    if s.tokenizer_from is not None and (learned := given & {"tokenizer", "vocab_size"}):
        raise UserError(
            f"--tokenizer-from names a tokenizer that has learned already: leave out "
            f"{dashed(min(learned))}, or it"
        )
    if "vocab_size" in given and s.tokenizer == "bpe":
        from npgpt.tokenizer.base import check_vocab_size

        check_vocab_size(s.vocab_size, 256 + 1)  # told now, and not when the text has been read
    return s
