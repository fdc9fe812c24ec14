"""Byte-level BPE: spell rare words, and give frequent ones a token of their own.

Why
    A vocabulary of characters makes long sequences; a vocabulary of words is never complete.
    Byte-pair encoding stands between. It begins with the 256 bytes, of which UTF-8 makes
    every text in every script, so that nothing is ever unknown. Then it looks for the pair
    of neighbours that is most frequent, gives the pair a token of its own, and repeats. A
    frequent word ends as one token, a rare one as a few pieces, a new one as its bytes.

Words
    Merges without bounds would spend tokens on "dog.", "dog!" and "dog?". So the text is first
    cut into words, and no merge reaches across a cut. GPT-2's pattern keeps the space before a
    word with that word, and parts letters, digits, marks and white space. This also makes
    training cheap: a text has few different words, and each is looked at once, weighted by how
    often it occurs.

Training, by hand, on one line
    >>> text = "she sells sea shells"
    >>> PATTERN.findall(text)
    ['she', ' sells', ' sea', ' shells']

    (space, s) occurs three times, six other pairs twice, and (e, a) once: the first merge is
    clear. It takes the s from (s, e) and, in " shells", from (s, h). The other four still have
    two, and so has a new pair, (" s", e). The bytes break the tie: of equals the greatest in
    alphabetical order wins, here (l, s), before (l, l), (h, e), (e, l) and (" s", e). Its
    token "ls" makes the pair (l, ls), which is then the greatest, and (h, e) is next:
    >>> tok = BPETokenizer.train([text], vocab_size=260, special_tokens=())
    >>> tok.merges
    [(b' ', b's'), (b'l', b's'), (b'l', b'ls'), (b'h', b'e')]

Encoding
    A new word goes through the same history: of the merges that fit it, always the earliest
    first. That is neither the longest match nor the shortest result; but the training text
    went through it, so the model has seen words cut in this way.
    >>> [tok.token_bytes(i) for i in tok.encode("she shells")]
    [b's', b'he', b' s', b'he', b'lls']
    >>> tok.decode(tok.encode("ὁ λόγος"))
    'ὁ λόγος'

Counting fast enough
    Sennrich's Algorithm 1 counts all pairs anew before every merge. But a merge changes only
    the words that contain it: so we keep for each pair the words where it was seen, and mend
    the counts of those. The greatest count waits on top of a heap. Its entries go stale, but
    only in one direction: the pairs of a token are born in the step that makes it, and later
    merges can only take them apart. So a count only falls, a stale entry promises too much,
    and it is enough to put it back, corrected, when it comes up.

Sources
    Gage 1994, "A New Algorithm for Data Compression": the merges.
    Sennrich, Haddow & Birch 2016, "Neural Machine Translation of Rare Words with Subword
    Units", Algorithm 1: merges within words, to make a vocabulary.
    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2), §2.2:
    bytes in place of characters; the pattern is that of its released encoder.py.
"""

import heapq
from collections import Counter, defaultdict
from itertools import pairwise

import regex

from ..errors import UserError
from .base import END_OF_TEXT, Tokenizer, check_special_tokens, split_special, training_texts
from .files import CHARACTER_OF, save_bpe, written

# The alternatives are tried in this order; the last but one leaves the final space of a gap to
# the word that follows. Every character fits one of them: the words joined are the text.
PATTERN = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
BYTES = [bytes([b]) for b in CHARACTER_OF]  # the first 256 tokens, in GPT-2's order
CACHE_WORDS = 1 << 18  # some 60 MB of words remembered by encode, then it begins anew


def split_words(text):
    """Cut text into words by GPT-2's pattern, one at a time: a list would outweigh the text."""
    return map(regex.Match.group, PATTERN.finditer(text))


def count_words(texts, special_tokens):
    """Count the words of texts; special tokens are left out, and no word reaches across one."""
    counts = Counter()
    for text in training_texts(texts):
        for _, piece, special in split_special(text, special_tokens):
            if not special:
                counts.update(split_words(piece))
    return counts


def merge_pair(parts, pair):
    """Join each occurrence of pair in parts, from left to right.

    >>> merge_pair([b"a", b"a", b"a", b"b"], (b"a", b"a"))
    [b'aa', b'a', b'b']
    """
    merged, i = [], 0
    while i < len(parts):
        if parts[i] == pair[0] and parts[i + 1 : i + 2] == [pair[1]]:
            merged.append(pair[0] + pair[1])
            i += 2
        else:
            merged.append(parts[i])
            i += 1
    return merged


class Descending:
    """A pair that sorts backwards: heapq gives the least first, and ties want the greatest."""

    __slots__ = ("pair",)

    def __init__(self, pair):
        self.pair = pair

    def __lt__(self, other):
        return self.pair > other.pair


def learn_merges(word_counts, n_merges, progress=None):
    """Find the n_merges best merges, or all there are: again and again the most frequent pair.

    Args:    word_counts, a dict from word to how often it occurs; progress(done, total).
    Returns: a list of pairs of bytes; of equally frequent pairs the greatest comes first.
    Source:  Sennrich et al. 2016, Algorithm 1; the bookkeeping is described above.
    """
    words = [[bytes([b]) for b in word.encode("utf-8")] for word in word_counts]
    times = list(word_counts.values())
    counts = Counter()  # pair → how often it occurs
    where = defaultdict(set)  # pair → the words that have it, or had it once
    for w, parts in enumerate(words):
        for pair in pairwise(parts):
            counts[pair] += times[w]
            where[pair].add(w)
    heap = [(-count, Descending(pair)) for pair, count in counts.items()]
    heapq.heapify(heap)

    merges = []
    while heap and len(merges) < n_merges:
        count, entry = heapq.heappop(heap)
        best = entry.pair
        if -count != counts[best]:  # stale: back it goes with its true count
            if counts[best]:
                heapq.heappush(heap, (-counts[best], entry))
            continue
        merges.append(best)
        token, born = best[0] + best[1], set()
        for w in where.pop(best):
            for pair in pairwise(words[w]):
                counts[pair] -= times[w]
            words[w] = merge_pair(words[w], best)
            for pair in pairwise(words[w]):
                counts[pair] += times[w]
                if token in pair:
                    where[pair].add(w)
                    born.add(pair)
        for pair in born:
            heapq.heappush(heap, (-counts[pair], Descending(pair)))
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
    save = save_bpe

    def __init__(self, tokens, merges, special_tokens):
        super().__init__(tokens, special_tokens)
        self.merges = list(merges)
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
        Raises:  UserError if vocab_size has no room for bytes and special tokens, or is more
                 than the text can fill.
        """
        special_tokens = check_special_tokens(special_tokens)
        least = len(BYTES) + len(special_tokens)
        if vocab_size < least:
            raise UserError(
                f"vocab_size {vocab_size} is too small: bytes and special tokens alone are {least}"
            )
        merges = learn_merges(count_words(texts, special_tokens), vocab_size - least, progress)
        if len(merges) < vocab_size - least:
            raise UserError(
                f"vocab_size {vocab_size} is larger than this text supports: after "
                f"{len(merges):,} merges every word is one token, "
                f"so ask for at most {least + len(merges):,}"
            )
        tokens = BYTES + [left + right for left, right in merges]
        for name in set(special_tokens) & {written(token) for token in tokens}:
            raise UserError(f"the special token {name!r} is an ordinary token too: rename it")
        ids = {name: len(tokens) + i for i, name in enumerate(special_tokens)}
        return cls(tokens + [name.encode("utf-8") for name in special_tokens], merges, ids)

    def _encode_plain(self, text, start):
        ids = []
        for word in split_words(text):
            word_ids = self._cache.get(word)
            if word_ids is None:
                parts = [bytes([b]) for b in word.encode("utf-8")]
                word_ids = [self._ids[part] for part in merge_word(parts, self._ranks)]
                if len(self._cache) >= CACHE_WORDS:
                    self._cache.clear()
                self._cache[word] = word_ids
            ids += word_ids
        return ids
