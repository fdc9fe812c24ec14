"""One id per character: the smallest tokenizer that works.

The vocabulary is the set of characters in the training text, sorted, so an id says only
"the i-th of them". Nothing is learned, a person can read a sequence of ids with a pencil,
and the vocabulary is so small that the embedding costs almost nothing. The price is paid
twice: sequences are some four times as long as with BPE, and a character that the training
text lacks cannot be written at all, so encode refuses it.

>>> tok = CharTokenizer.train(["to be or not to be"])
>>> tok.encode("bet")
[1, 2, 6]
>>> tok.decode([5, 4, 1, 2])
'robe'
"""

from ..errors import UserError
from .base import Tokenizer, check_special_tokens, plain_pieces
from .files import save_characters


class CharTokenizer(Tokenizer):
    """Characters in sorted order, then special tokens.

    Args:    characters, a list of single characters; special_tokens, a list of str.
    """

    kind = "char"
    save = save_characters

    def __init__(self, characters, special_tokens=()):
        self.characters = list(characters)
        self._ids = {c: i for i, c in enumerate(self.characters)}
        tokens = [name.encode("utf-8") for name in [*characters, *special_tokens]]
        super().__init__(tokens, {s: len(self._ids) + i for i, s in enumerate(special_tokens)})

    @classmethod
    def train(cls, texts, special_tokens=()):
        """Collect the characters of texts.

        Args:    texts, an iterable of str; special_tokens, whose text in texts is skipped.
        Returns: CharTokenizer.
        Raises:  UserError if there are no characters.
        """
        special_tokens = check_special_tokens(special_tokens)
        characters = set()
        for piece in plain_pieces(texts, special_tokens):
            characters.update(piece)
        if not characters:
            raise UserError("the training text is empty, so there are no characters to learn")
        return cls(sorted(characters), special_tokens)

    def _encode_plain(self, text, start):
        try:
            return [self._ids[c] for c in text]
        except KeyError:
            place, c = next((i, c) for i, c in enumerate(text) if c not in self._ids)
        known = "".join(self.characters)
        known = repr(known) if len(known) <= 100 else f"{known[:100]!r} and {len(known) - 100} more"
        raise UserError(
            f"the character {c!r} (U+{ord(c):04X}) at position {start + place} was not in the "
            f"training text: this tokenizer knows {len(self.characters)} characters, {known}"
        )
