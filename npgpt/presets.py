"""The named configurations: what `--preset NAME` sets before the command line has its say.

A preset names only what differs from the defaults of `train.Settings`.
"""

GPT2 = dict(norm="layernorm", position="learned", init="gpt2")  # what GPT-2 has, and Llama has not

PRESETS = {
    # A grammar's little stories, learned in three minutes on two cores: the defaults.
    "storybook": {},
    # The same stories, told almost without a fault: the model that comes with npgpt.
    "storybook-large": dict(
        words=4_000_000, n_layer=3, n_head=6, n_embd=192, n_hidden=384, batch_size=16,
        steps=4_500, lr=4e-3, warmup_steps=100, eval_every=500, sample_every=1_500, save_every=500,
    ),
    # The storybook in a few seconds, to see everything happen once, and for tests.
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
    # A play by its letters: the last model of Karpathy's lecture, "Let's build GPT".
    "shakespeare-char": dict(
        data="shakespeare", valid_fraction=0.1, tokenizer="char", block_size=256, n_layer=6,
        n_head=6, n_embd=384, n_hidden=1536, **GPT2, mlp="relu", bias=True, qkv_bias=False,
        head_bias=True, dropout=0.2, attention_dropout=0.2, batch_size=64, steps=5_000, lr=3e-4,
        min_lr=3e-4, warmup_steps=0, beta2=0.999, weight_decay=0.01, clip=0.0, eval_every=500,
        eval_tokens=200_000, sample_every=1_000, sample_tokens=500, save_every=500,
    ),
    # 16 million parameters, of which 12.9 are the table: small, smoothed, and restarted.
    "small-gpt": dict(
        data=None, vocab_size=50_304, pad_vocab_to=64, block_size=128, n_layer=4, n_head=4,
        n_embd=256, n_hidden=1024, **GPT2, mlp="gelu", bias=True, dropout=0.1,
        attention_dropout=0.1, tie=True, label_smoothing=0.1, batch_size=32, accumulate=32,
        steps=15_000, lr=1e-4, min_lr=1e-5, warmup_steps=1_000, restart_steps=2_000,
        restart_growth=2, eval_every=500, save_every=500,
    ),
    # GPT-2's parts in a model that a laptop trains: tokens of GPT-2 from a train.bin.
    "nanogpt": dict(
        data=None, vocab_size=50_257, block_size=1024, n_layer=6, n_head=4, n_embd=256,
        n_hidden=1024, **GPT2, mlp="gelu", tie=True, batch_size=4, accumulate=8,
        steps=10_000, lr=6e-4, min_lr=6e-5, warmup_steps=200, eval_every=250, save_every=250,
        auto_resume=True,
    ),
    # GPT-2 itself, the smallest of the four: 124.4 million parameters.
    "gpt2-124m": dict(
        data=None, vocab_size=50_257, block_size=1024, n_layer=12, n_head=12, n_embd=768,
        n_hidden=3072, **GPT2, mlp="gelu_tanh", bias=True, tie=True, batch_size=8,
        accumulate=60, steps=600_000, lr=6e-4, min_lr=6e-5, warmup_steps=2_000, eval_every=1_000,
        save_every=1_000,
    ),
    # More than a billion parameters, for the web's better pages and a card of 80 GB.
    "gpt-1b": dict(
        data="fineweb-edu", vocab_size=50_257, block_size=1024, n_layer=24, n_head=12,
        n_embd=1536, n_hidden=6144, batch_size=8, accumulate=64, steps=100_000, lr=3e-4,
        min_lr=3e-5, warmup_steps=2_000, eval_every=500, save_every=1_000,
    ),
    # Some steps with a model that has learned already, for --init-from: small ones, lest it forget.
    "finetune": dict(
        data=None, block_size=256, batch_size=4, steps=200, lr=1e-4, min_lr=1e-5, warmup_steps=20,
        weight_decay=0.0, log_every=10, eval_every=50, sample_every=100, save_every=100,
    ),
}  # fmt: skip

DEFAULT_PRESET = {"numpy": "storybook", "cupy": "tinystories-40m"}
