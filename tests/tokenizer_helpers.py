"""Texts that no person writes, for the tests of the tokenizer."""

import numpy as np

ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz", "stmdrvel", "ABCXYZ", "    ", "'", "\n\t\r\x0b\x0c",
    "0123456789", ".,!?-\"()", "\u0085\u00a0\u1680\u2003\u2028\u3000", "\0\x1c\x1d\x1e\x1f\x7f",
    "\u0301\u0308\u20dd", "éßñλщя", "日本語。、", "½²Ⅷ٣", "😀👩\u200d🏽",
    "\ud7ff\ue000\ufffd\uffff\U00010000\U0010ffff",
]  # fmt: skip
CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'l", "'v", " 's", "''s"]


def random_texts(seed, how_many, longest):
    """Texts of mixed alphabets, each with other preferences, now and then a character repeated."""
    rng = np.random.default_rng(seed)
    for _ in range(how_many):
        weights = rng.random(len(ALPHABETS)) ** 4
        text = []
        for a in rng.choice(len(ALPHABETS), rng.integers(longest), p=weights / weights.sum()):
            times = rng.integers(1, 99) if rng.random() < 0.02 else 1
            text.append(ALPHABETS[a][rng.integers(len(ALPHABETS[a]))] * times)
            if rng.random() < 0.05:
                text.append(CONTRACTIONS[rng.integers(len(CONTRACTIONS))])
        yield "".join(text)
