"""The model that comes with npgpt: what generate.py runs before there is a run of your own.

storybook/ is a folder of 3.3 MB, as `python -m npgpt.export --format hf --dtype bf16` makes it, and
is read as any model of Hugging Face's. It was trained by

    python train.py --preset storybook-large --threads 1

in half an hour, on one processor. Why the storybook, and not stories that people wrote? Of those
there were 6 MB to learn from, and a model of 4.2 million parameters that had read them, 5 million
tokens in all, lost its heroes from one sentence to the next (0.85 bits per byte). A grammar's
stories are simpler, and how good a model can get is known: this one is 0.004 nats a token above
the entropy of its source, and of 400 stories that it told (temperature 0.7) 392 keep everything
that they begin with.
"""

from pathlib import Path

STORYBOOK = Path(__file__).resolve().parent / "storybook"
