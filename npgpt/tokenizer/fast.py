"""The BPE tokenizer at full speed: bpe.BPETokenizer to everybody who uses it.

bpe.py is the text to read, and says what is right. Its two slow functions are replaced here: encode
by encoder.py, and train by fast_train.py. Tests hold each of them equal to the text.
"""

from functools import cached_property

from .base import END_OF_TEXT, check_special_tokens, check_vocab_size
from .bpe import BYTES, BPETokenizer

# To load the compiled kernels takes longer than to encode a prompt without them, and to compile
# them, once a machine, takes seconds. So they are imported where they are first needed, and short
# texts go to the readable encoder until it has had so many characters. Only ASCII does: of that
# all editions of Unicode say the same.
PATIENCE = 2000


class FastBPETokenizer(BPETokenizer):
    """256 bytes, then merges in the order they were learned, then special tokens.

    Args:    tokens, a list of bytes; merges, a list of pairs of bytes, in order;
             special_tokens, a dict from the text of a special token to its id.
    """

    def __init__(self, tokens, merges, special_tokens):
        super().__init__(tokens, merges, special_tokens)
        self._patience = PATIENCE

    @classmethod
    def train(
        cls,
        texts,
        vocab_size,
        special_tokens=(END_OF_TEXT,),
        progress=None,
        threads=None,
        reading=None,
    ):
        """Learn a vocabulary from texts of any size: they need not fit into memory.

        Args:    texts, an iterable whose items are each a str, UTF-8 bytes, or the pathlib.Path
                 of a file; vocab_size = 256 bytes + merges + special tokens; progress(done,
                 total), of merges, called some times a second; threads, by default one for each
                 processor; reading(n_bytes), called now and then while words are counted.
        Returns: FastBPETokenizer, the same for any number of threads.
        Raises:  UserError if vocab_size is too small for the bytes, or too large for the text;
                 for a file that cannot be read, and for what is not UTF-8.
        """
        from ..parallel import available_threads
        from .fast_train import learn_merges
        from .word_counts import count_words

        special_tokens = check_special_tokens(special_tokens)
        least = len(BYTES) + len(special_tokens)
        check_vocab_size(vocab_size, least)
        words = count_words(texts, special_tokens, threads or available_threads(), reading)
        merges = learn_merges(words, vocab_size - least, progress)
        check_vocab_size(vocab_size, least, found=len(merges))
        return cls.from_merges(merges, special_tokens)

    @cached_property
    def encoder(self):
        """The compiled encoder, made when it is first needed."""
        from .encoder import Encoder

        return Encoder(self._ids, self.merges, self.vocab_size, self.words)

    def encode_documents(self, documents):
        """Encode documents in a row, end-of-text after each: see encode_documents_fast."""
        from .fast_encode import encode_documents_fast

        return encode_documents_fast(documents, self)

    def encode_pieces(self, pieces, allowed_special=(), disallowed_special="all"):
        """Encode a text that comes in pieces, cut anywhere: see encode_pieces in fast_encode."""
        from .fast_encode import encode_pieces

        return encode_pieces(pieces, self, allowed_special, disallowed_special)

    def _encode_plain(self, text, start):
        if len(text) <= self._patience and text.isascii():
            self._patience -= len(text)
            return super()._encode_plain(text, start)
        self._patience = 0
        return self.encoder.encode_text(text).tolist()
