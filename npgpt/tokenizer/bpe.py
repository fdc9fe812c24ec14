r"""Byte-level BPE: spell rare words, and give frequent ones a token of their own.

Why
    A vocabulary of characters makes long sequences; a vocabulary of words is never complete.
    Byte-pair encoding stands between. It begins with the 256 bytes, of which UTF-8 makes
    every text in every script, so that nothing is ever unknown. Then it looks for the pair
    of neighbours that is most frequent, gives the pair a token of its own, and repeats. A
    frequent word ends as one token, a rare one as a few pieces, a new one at worst as bytes.

Words
    Merges without bounds would spend tokens on "dog.", "dog!" and "dog?". So the text is first
    cut into words, and no merge reaches across a cut. GPT-2's pattern leaves the space before
    a word with that word, and parts letters, digits, marks and white space:
    >>> list(split_words("The dog's 2 tails,  wagging!"))
    ['The', ' dog', "'s", ' 2', ' tails', ',', ' ', ' wagging', '!']

    Some later models (SmolLM2, say) want each digit by itself, so that 1999 is read as it is
    spelled: their pattern, DIGITS, is that of GPT-2 with another word for numbers.
    >>> list(split_words("in  1999", DIGITS))
    ['in', '  ', '1', '9', '9', '9']

Training, by hand
    Take four words; ␣ is the space before a word. Each line merges one more pair, everywhere:

        merged   how often    she      ␣sells         ␣sea       ␣shells
                              s h e    ␣ s e l l s    ␣ s e a    ␣ s h e l l s
        ␣, s     3            s h e    ␣s e l l s     ␣s e a     ␣s h e l l s
        l, s     2            s h e    ␣s e l ls      ␣s e a     ␣s h e l ls
        l, ls    2            s h e    ␣s e lls       ␣s e a     ␣s h e lls
        h, e     2            s he     ␣s e lls       ␣s e a     ␣s he lls

    (␣, s) is the most frequent. Its merge ends (s, e), for each s before an e stood behind a
    space, and leaves five pairs that occur twice: (h, e), (e, l), (l, l), (l, s) and the new
    (␣s, e). Of equals the last in the alphabet wins (in the order of their bytes): (l, s).
    >>> tok = BPETokenizer.train(["she sells sea shells"], vocab_size=260, special_tokens=())
    >>> tok.merges
    [(b' ', b's'), (b'l', b's'), (b'l', b'ls'), (b'h', b'e')]

Encoding
    A new word goes through the same history: of the merges that fit it, always the earliest
    first. That is neither the longest match nor the shortest result. But the training text
    was cut in just this way, and the model that read it knows no other.
    >>> [tok.token_bytes(i) for i in tok.encode("she shells")]
    [b's', b'he', b' s', b'he', b'lls']

    Joined, their bytes are the text again. One token alone may begin or end within a character:
    >>> [tok.token_bytes(i) for i in tok.encode("é")], tok.decode(tok.encode("é"))
    ([b'\xc3', b'\xa9'], 'é')

Cost
    To count all pairs anew before every merge, as Sennrich's Algorithm 1 does, is to read the
    corpus once for each token. Two remarks make it bearable. A text has few different words:
    count those, and let each weigh as much as it occurs. And a merge changes only the words
    that contain it: remember where a pair was seen, and count anew in those words alone.

Sources
    Gage 1994: the merges, to compress data. Sennrich, Haddow & Birch 2016, Algorithm 1: merges
    within words, to make a vocabulary. Radford et al. 2019 (GPT-2), §2.2: bytes in place of
    characters; the pattern is that of its released encoder.py.
"""

from collections import Counter, defaultdict
from itertools import pairwise

import regex

from ..errors import UserError
from .base import END_OF_TEXT, Tokenizer, check_special_tokens, check_vocab_size, plain_pieces
from .files import CHARACTER_OF, check_names
from .hugging_face import save_everywhere

# The alternatives are tried in this order; the last but one leaves the final space of a gap to
# the word that follows. Every character fits one of them: the words joined are the text.
PATTERN = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
# No space joins a digit; so white space before one has no last character to leave to it.
DIGITS = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
)
PATTERNS = {"gpt2": PATTERN, "digits": DIGITS}
BYTES = [bytes([b]) for b in CHARACTER_OF]  # the first 256 tokens, in GPT-2's order
CACHE_WORDS = 1 << 18  # some 60 MB of words remembered by encode, then it begins anew


def split_words(text, pattern=PATTERN):
    """Cut text into words by a pattern, one at a time: a list would outweigh the text."""
    return map(regex.Match.group, pattern.finditer(text))


def count_words(texts, special_tokens):
    """Count the words of texts; special tokens are left out, and no word reaches across one."""
    counts = Counter()
    for piece in plain_pieces(texts, special_tokens):
        counts.update(split_words(piece))
    return counts


def merge_pair(parts, pair):
    """Join each occurrence of pair in parts, from left to right.

    >>> merge_pair([b"a", b"a", b"a", b"b"], (b"a", b"a"))
    [b'aa', b'a', b'b']
    """
    merged = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def learn_merges(word_counts, n_merges, progress=None):
    """Find n_merges merges, or all there are: again and again the most frequent pair.

    Args:    word_counts, a dict from word to how often it occurs; progress(done, total).
    Returns: a list of pairs of bytes; of equally frequent pairs the greatest comes first.
    Source:  Sennrich et al. 2016, Algorithm 1; what is saved is told above.
    """
    words = [[bytes([b]) for b in word.encode("utf-8")] for word in word_counts]
    times = list(word_counts.values())
    counts = Counter()  # pair → how often it occurs
    where = defaultdict(set)  # pair → the words that have it, or had it once

    def count(w, sign):
        for pair in pairwise(words[w]):
            counts[pair] += sign * times[w]
            if not counts[pair]:
                del counts[pair]
            where[pair].add(w)

    for w in range(len(words)):
        count(w, +1)
    merges = []
    while counts and len(merges) < n_merges:
        _, best = max(zip(counts.values(), counts))  # of equals the greatest pair
        for w in where.pop(best):
            count(w, -1)
            words[w] = merge_pair(words[w], best)
            count(w, +1)
        merges.append(best)
        if progress:
            progress(len(merges), n_merges)
    return merges


def merge_word(parts, ranks):
    """Take one word, byte by byte, through its merges: of those that fit, the earliest first.

    Every step looks at the whole word, so the time grows with the square of its length: a few
    microseconds for a word, but seconds for ten thousand letters without a space.

    Args:    parts, a list of bytes; ranks, a dict from pair to its place among the merges.
    Returns: a list of bytes: the tokens.
    """
    while True:
        best = min(pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)), default=None)
        if best not in ranks:
            return parts
        parts = merge_pair(parts, best)


class BPETokenizer(Tokenizer):
    """256 bytes, then merges in the order they were learned, then special tokens.

    Args:    tokens, a list of bytes; merges, a list of pairs of bytes, in order;
             special_tokens, a dict from the text of a special token to its id.
    """

    kind = "bpe"
    save = save_everywhere

    def __init__(self, tokens, merges, special_tokens):
        super().__init__(tokens, special_tokens)
        self.merges = list(merges)
        self.words = "gpt2"  # by which of PATTERNS text is cut
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        special = set(self.special_tokens.values())
        self._ids = {token: i for i, token in enumerate(self.tokens) if i not in special}
        self._cache = {}  # word → its ids

    @classmethod
    def train(cls, texts, vocab_size, special_tokens=(END_OF_TEXT,), progress=None):
        """Learn a vocabulary from texts.

        Args:    texts, an iterable of str; vocab_size = 256 bytes + merges + special tokens;
                 progress(done, total), called after each merge.
        Returns: BPETokenizer.
        Raises:  UserError if vocab_size is too small for the bytes, or too large for the text.
        """
        special_tokens = check_special_tokens(special_tokens)
        least = len(BYTES) + len(special_tokens)
        check_vocab_size(vocab_size, least)
        merges = learn_merges(count_words(texts, special_tokens), vocab_size - least, progress)
        check_vocab_size(vocab_size, least, found=len(merges))
        return cls.from_merges(merges, special_tokens)

    @classmethod
    def from_merges(cls, merges, special_tokens):
        """Number the tokens: the bytes, those that merges make, the special ones.

        Args:    merges, a list of pairs of bytes, in order; special_tokens, a list of str.
        Returns: BPETokenizer.
        Raises:  UserError if a special token reads like one of the others.
        """
        tokens = BYTES + [left + right for left, right in merges]
        check_names(special_tokens, tokens)
        ids = {name: len(tokens) + i for i, name in enumerate(special_tokens)}
        return cls(tokens + [name.encode("utf-8") for name in special_tokens], merges, ids)

    def _encode_plain(self, text, start):
        ids = []
        for word in split_words(text, PATTERNS[self.words]):
            if word not in self._cache:
                if len(self._cache) >= CACHE_WORDS:
                    self._cache.clear()
                parts = [bytes([b]) for b in word.encode("utf-8")]
                self._cache[word] = [self._id(part) for part in merge_word(parts, self._ranks)]
            ids += self._cache[word]
        return ids

    def _id(self, part):
        if part not in self._ids:  # some vocabularies have no token for bytes that no text needed
            raise UserError(f"the vocabulary has no token {part!r}, which this text needs")
        return self._ids[part]
