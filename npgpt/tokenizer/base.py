"""What both tokenizers share: special tokens on the way in, decode on the way out.

A special token is a mark that no text can spell: <|endoftext|> between two documents has an
id of its own, which training keeps apart from all words. So text that happens to contain the
thirteen characters `<|endoftext|>` must not turn into the mark by accident; a stranger's
prompt could otherwise end the document that it is read in. encode therefore refuses such
text until the caller says which of the two is meant. The question has the same two arguments
as in OpenAI's tiktoken, and the same answers. (Where one special token is the beginning of
another, tiktoken takes whichever its hash table lists first; here the longer one is meant.)
"""

import operator
import re

from ..errors import UserError

END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """A list of tokens, each some bytes, and the special tokens among them.

    Args:    tokens, a list of bytes: token number i is tokens[i]; special_tokens, a dict from
             the text of a special token to its id.
    """

    kind = None  # "char" or "bpe": set by the subclass, which also brings save(folder)

    def __init__(self, tokens, special_tokens):
        self.tokens = list(tokens)
        self.special_tokens = dict(special_tokens)
        self.always_allowed = frozenset()  # those that encode makes ids of without being asked
        # The special tokens that stand behind a text and before it. Here they are the same; a
        # model from elsewhere may have others, or None before a text.
        self.end_name = self.begin_name = END_OF_TEXT

    @property
    def vocab_size(self):
        """How many tokens there are: ids run from 0 to vocab_size − 1."""
        return len(self.tokens)

    @property
    def end_of_text(self):
        """The id of the mark behind a text, <|endoftext|> mostly; None if there is none."""
        return self.special_tokens.get(self.end_name)

    @property
    def begin_of_text(self):
        """The id of the mark before a text, mostly the same; None if there is none."""
        return self.special_tokens.get(self.begin_name)

    def encode(self, text, allowed_special=(), disallowed_special="all"):
        """Turn text into ids.

        Args:    text; allowed_special: the special tokens to turn into their ids, "all" or a
                 collection of str; disallowed_special: the texts to refuse, "all" (the special
                 tokens that are not allowed) or a collection of str. A special token in
                 neither is read as plain text, so disallowed_special=() refuses nothing.
        Returns: a list of int.
        Raises:  UserError if the text contains what is disallowed, or a character that the
                 tokenizer cannot write.
        """
        check_text(text)
        allowed = self._choose(allowed_special) | self.always_allowed
        allowed &= self.special_tokens.keys()
        if disallowed_special == "all":
            self._refuse(text, self.special_tokens.keys() - allowed)
        else:
            self._refuse(text, self._choose(disallowed_special))
        ids = []
        for start, piece, special in split_special(text, allowed):
            if special:
                ids.append(self.special_tokens[piece])
            else:
                ids += self._encode_plain(piece, start)
        return ids

    def decode(self, ids):
        """Turn ids back into text.

        A character of several bytes can be cut by the end of the sequence, and a model may
        write bytes that are no UTF-8 at all: these read as U+FFFD, the replacement character.

        Args:    ids, a sequence of int: a list, or an array of one dimension.
        Returns: str; special tokens appear as their text.
        Raises:  ValueError naming the first unknown id and its place.
        """
        ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        try:
            if min(ids, default=0) < 0:  # tokens[-1] would be a token, and a wrong one
                raise IndexError
            pieces = [self.tokens[i] for i in ids]
        except (IndexError, TypeError):  # which one is it? this asks slowly, and one by one
            pieces = [self.token_bytes(i, place) for place, i in enumerate(ids)]
        return b"".join(pieces).decode("utf-8", errors="replace")

    def token_bytes(self, i, place=None):
        """The bytes of token number i.

        Args:    i, an id; place, where it stands in a sequence, for the error only.
        Returns: bytes: a piece of UTF-8, which may begin or end within a character.
        Raises:  ValueError if there is no such token.
        """
        where = "" if place is None else f" at position {place}"
        try:
            number = operator.index(i)
        except TypeError:
            raise ValueError(f"id {i!r}{where} is not a whole number") from None
        if not 0 <= number < len(self.tokens):
            last = len(self.tokens) - 1
            raise ValueError(f"id {number}{where} is unknown: ids run from 0 to {last}")
        return self.tokens[number]

    def _choose(self, names):
        """The set of strings that "all", one string, or a collection of them means."""
        if isinstance(names, str):
            return set(self.special_tokens) if names == "all" else {names}
        return set(names)

    def _refuse(self, text, disallowed):
        """Raise UserError if the text contains one of the disallowed strings."""
        found = special_pattern(disallowed).search(text) if disallowed else None
        if found:
            name, start = found.group(), found.start()
            if name not in self.special_tokens:
                raise UserError(f"the text contains {name!r} at position {start}: it is disallowed")
            raise UserError(
                f"the text contains the special token {name!r} at position {start}: "
                f"pass allowed_special={{{name!r}}} to make it its id, "
                "or disallowed_special=() to encode it as plain text"
            )

    def _encode_plain(self, text, start):
        """Encode text without special tokens, which begins at position start of the whole."""
        raise NotImplementedError


def special_pattern(special_tokens):
    """A compiled pattern of the special tokens; where two begin together, the longer is meant."""
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def split_special(text, special_tokens):
    """Cut text at special tokens.

    Args:    text; special_tokens, a collection of str.
    Returns: an iterator of (start, piece, special): where the piece begins, its text, and
             whether it is a special token. The pieces joined are the text; none is empty.
    """
    start = 0
    if special_tokens:
        for found in special_pattern(special_tokens).finditer(text):
            if start < found.start():
                yield start, text[start : found.start()], False
            yield found.start(), found.group(), True
            start = found.end()
    if start < len(text):
        yield start, text[start:], False


def check_text(text):
    """Raise unless text is a str that UTF-8 can write (half a surrogate pair is none)."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text has half a surrogate pair, U+{ord(text[error.start]):04X}, at position "
            f"{error.start}, which is no character: it came from bytes that are not UTF-8"
        ) from None


def training_texts(texts):
    """The texts one by one, each checked; a lone string is most likely a forgotten bracket."""
    if isinstance(texts, str):
        raise TypeError("texts is one string, where an iterable of them is meant: pass [text]")
    for text in texts:
        check_text(text)
        yield text


def plain_pieces(texts, special_tokens):
    """What a tokenizer learns from: the texts, each checked and cut at its special tokens."""
    for text in training_texts(texts):
        for _, piece, special in split_special(text, special_tokens):
            if not special:
                yield piece


def check_vocab_size(vocab_size, least, found=None):
    """Raise unless the vocabulary has room for `least` tokens, and the text fills the rest.

    Args:    vocab_size, as asked for; least, how many tokens there are before any merge;
             found, how many merges the text gave, once that is known.
    Raises:  UserError with the size to ask for.
    """
    if vocab_size < least:
        raise UserError(
            f"vocab_size {vocab_size} is too small: bytes and special tokens alone are {least}"
        )
    if found is not None and found < vocab_size - least:
        raise UserError(
            f"vocab_size {vocab_size} is larger than this text supports: after {found:,} merges "
            f"every word is one token, so give --vocab-size {least + found}, or less"
        )


def check_special_tokens(special_tokens):
    """The special tokens as a list, if they can be told apart.

    Raises:  UserError if one is empty, or is given twice.
    """
    names = [special_tokens] if isinstance(special_tokens, str) else list(special_tokens)
    for place, name in enumerate(names):
        check_text(name)
        if not name:
            raise UserError("a special token must not be empty: give it a text like '<|pad|>'")
        if name in names[:place]:
            raise UserError(f"the special token {name!r} is given twice: leave one out")
    return names
