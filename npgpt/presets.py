"""The named configurations: what `--preset NAME` sets before the command line has its say.

A preset names only what differs from the defaults of `train.Settings`.
"""

PRESETS = {
    # A grammar's little stories, learned in about three minutes on two cores: the defaults.
    "storybook": {},
    # The same in a few seconds, to see everything happen once, and for tests.
    "tiny": dict(
        words=20_000, vocab_size=400, block_size=32, n_layer=2, n_head=2, n_embd=32, n_hidden=64,
        tie=True, batch_size=8, steps=60, lr=3e-3, min_lr=3e-4, warmup_steps=10,
        eval_every=20, save_every=20, log_every=10,
    ),
    # A few million parameters for a few megabytes of stories, within hours on a laptop.
    "tinystories-4m": dict(
        data=None, tie=True, vocab_size=2_000, block_size=128, n_layer=6, n_head=8, n_embd=224,
        n_hidden=640, batch_size=16, steps=8_000, lr=1e-3, min_lr=1e-4, warmup_steps=200,
        eval_every=250, save_every=250,
    ),
    # 38.7 million parameters, for TinyStories as a whole and a GPU.
    "tinystories-40m": dict(
        data=None, tie=True, vocab_size=10_000, block_size=128, n_layer=8, n_head=8, n_embd=512,
        n_hidden=2048, batch_size=256, steps=20_000, lr=6e-4, min_lr=6e-5, warmup_steps=500,
        eval_every=500, save_every=1_000,
    ),
}  # fmt: skip

DEFAULT_PRESET = {"numpy": "storybook", "cupy": "tinystories-40m"}
