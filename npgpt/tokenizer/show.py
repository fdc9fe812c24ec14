"""A text as its tokenizer sees it, drawn for a terminal: tokens, ids, bytes and merges.

Three pictures, one above the other:

    the text, each token on a background of its own (without colours: a bar before it);
    a table of the tokens, with their ids and bytes;
    for each word its way through the merges. A line is one merge further, and the number
    before it is the rank of that merge: its place in the order in which they were learned.

A picture is lines, a line is a list of spans, and a span is a text with its colour or None: so
the width of a line is known, of which colours take nothing and 猫 takes two columns.
"""

import unicodedata
from collections import Counter
from itertools import pairwise

from .base import split_special
from .bpe import PATTERNS, merge_pair, split_words

# Colours as terminals know them. The backgrounds are pale, with black on them, so that they can
# be read on a dark terminal and on a light one.
BOLD, DIM, GREEN = "1", "2", "1;32"
SPECIAL = "1;38;5;231;48;5;60"
BACKGROUNDS = [f"38;5;16;48;5;{colour}" for colour in (153, 223, 157, 218, 189)]
GAP = 4  # columns between two words side by side
SIGNS = {chr(c): chr(0x2400 + c) for c in range(0x20)} | {"\n": "↵", "\t": "⇥", "\x7f": "␡"}
INVISIBLE = ("Cc", "Cf", "Cn", "Co", "Zl", "Zp", "Zs")  # categories of Unicode


def show(tok, text, width, colours):
    """Draw what a tokenizer makes of a text, in which special tokens are allowed.

    Args:    tok; text; width of the terminal, in columns; colours, whether it shows any.
    Returns: an iterator of lines, str.
    Raises:  UserError if the tokenizer cannot write the text.
    """
    ids = tok.encode(text, allowed_special="all")
    special = set(tok.special_tokens.values())
    tokens = [
        (i, tok.token_bytes(i), SPECIAL if i in special else BACKGROUNDS[n % len(BACKGROUNDS)])
        for n, i in enumerate(ids)
    ]
    pictures = [ribbon(tokens, width, colours), count(tokens, text), table(tokens, width)]
    if tok.kind == "bpe":
        pictures.append(ways(tok, text, width))
    for picture in pictures:
        for line in picture:
            yield "".join(paint(*span) if colours else span[0] for span in line).rstrip(" ")
        yield ""


def paint(text, colour):
    """The text with the codes of its colour around it."""
    return f"\x1b[{colour}m{text}\x1b[0m" if colour else text


# The three pictures


def ribbon(tokens, width, colours):
    """The text, one span a token, broken where its lines end and where the terminal does."""
    line, room = [], width
    for n, (_, data, colour) in enumerate(tokens):
        signs = signs_of(data, space=" ")
        if n and not colours:
            signs.insert(0, "│")
        if line and columns("".join(signs)) > room:
            yield line
            line, room = [], width
        span = ""
        for sign in signs:
            if columns(sign) > room or span.endswith("↵"):
                yield [*line, (span, colour)]
                line, room, span = [], width, ""
            span += sign
            room -= columns(sign)
        line.append((span, colour))
        if span.endswith("↵"):
            yield line
            line, room = [], width
    if line:
        yield line


def count(tokens, text):
    """How many tokens, and how much text each of them carries."""
    size = len(text.encode("utf-8"))
    n = f"{len(tokens):,} token{'' if len(tokens) == 1 else 's'}"
    mean = f": {size / len(tokens):.2f} bytes a token" if tokens else ""
    letters = "" if size == len(text) else f" ({len(text):,} characters)"
    yield [(f"{n} for {size:,} byte{'' if size == 1 else 's'}{letters}{mean}", BOLD)]


def table(tokens, width):
    """The different tokens in the order of their first appearance: id, times, token, bytes."""
    first, times = {}, Counter()
    for i, data, colour in tokens:
        first.setdefault(i, (data, colour))
        times[i] += 1
    digits = max([2, *(len(str(i)) for i in first)])
    wide = max([5, *(columns(visible(data)) for data, _ in first.values())])
    wide = min(wide, max(5, width // 4))  # most tokens are short: a long one may stand out
    repeated = len(first) < len(tokens)
    head = f"{'id':>{digits}}  {'times  ' if repeated else ''}{'token':{wide}}  "
    yield [(head + "bytes", DIM)]
    for i, (data, colour) in first.items():
        name = visible(data)
        numbers = f"{i:>{digits}}  " + (f"{times[i]:>5}  " if repeated else "")
        line = [(numbers, DIM), (name, colour), (" " * (wide - columns(name) + 2), None)]
        if columns(name) > wide:  # a long name has its line for itself
            yield from wrapped(line[:2], width)
            line = [(" " * len(head), None)]
        room = max(1, (width - len(head) + 1) // 3)  # bytes in a line, three columns each
        for start in range(0, len(data), room):
            yield [*line, (data[start : start + room].hex(" "), None)]
            line = [(" " * len(head), None)]


def ways(tok, text, width):
    """The way of each different word through the merges, as many side by side as there is room."""
    ranks = {pair: rank for rank, pair in enumerate(tok.merges)}
    words, pattern = {}, PATTERNS[tok.words]
    for _, piece, special in split_special(text, tok.special_tokens):
        words.update(dict.fromkeys(() if special else split_words(piece, pattern)))
    blocks = [way(word, ranks, width) for word in words if len(word.encode("utf-8")) > 1]
    if not blocks:
        return
    yield [("The merges of each word, by rank: of those that fit, the earliest first", BOLD)]
    row, used = [], 0
    for block in blocks:
        wide = max(map(line_columns, block))
        if row and used + wide > width:
            yield from side_by_side(row)
            row, used = [], 0
        row.append((block, wide))
        used += wide + GAP
    yield from side_by_side(row)


def way(word, ranks, width):
    """The picture of one word: itself, its bytes, and then a line for each merge."""
    digits = len(str(len(ranks)))
    parts = [bytes([b]) for b in word.encode("utf-8")]
    before, fresh = "", None
    lines = [[(" " * (digits + 2), None), (shortened(word, width - digits - 2), BOLD)]]
    while True:
        best = min(pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)), default=None)
        done = best not in ranks
        line = [(f"{before:>{digits}}  ", DIM)]
        for n, part in enumerate(parts):
            last = BACKGROUNDS[n % len(BACKGROUNDS)]
            line += [(visible(part), last if done else GREEN if part == fresh else None)]
            line += [(" ", None)]
        lines += wrapped(line[:-1], width)
        if done:
            return lines
        before, fresh = ranks[best], b"".join(best)
        parts = merge_pair(parts, best)


def shortened(word, width):
    """The word as a heading: its beginning, where there is no room for all of it."""
    signs = signs_of(word.encode("utf-8"))
    if columns("".join(signs)) <= width:
        return "".join(signs)
    while signs and columns("".join(signs)) > width - 1:
        signs.pop()
    return "".join(signs) + "…"


def wrapped(line, width):
    """A line as lines that fit the width; all but the first begin under the second span."""
    indent = (" " * columns(line[0][0]), None)
    lines, room = [[line[0]]], width - columns(line[0][0])
    for text, colour in line[1:]:
        if columns(text) > room and len(lines[-1]) > 1:
            lines.append([indent])
            room = width - columns(indent[0])
            if text == " ":
                continue
        while columns(text) > room:  # even a line of its own is too short for it
            fits = next((n for n in range(len(text), 1, -1) if columns(text[:n]) <= room), 1)
            lines += [[indent]]
            lines[-2].append((text[:fits], colour))
            text, room = text[fits:], width - columns(indent[0])
        lines[-1].append((text, colour))
        room -= columns(text)
    return lines


def side_by_side(row):
    """Lines made of the blocks of a row, a list of (block, width), with an empty line before."""
    yield []
    for n in range(max(len(block) for block, _ in row)):
        line = []
        for block, wide in row:
            part = block[n] if n < len(block) else []
            line += [*part, (" " * (wide + GAP - line_columns(part)), None)]
        yield line


# What a terminal can show, and how wide it is


def visible(data, space="␣"):
    """Bytes as text without a character that a terminal would obey, hide or refuse.

    >>> print(visible("é é\\t\\n\\0\\u200d".encode()), visible(b"half an \\xc3"))
    é␣é⇥↵␀\\u200d half␣an␣\\xc3
    """
    return "".join(signs_of(data, space))


def signs_of(data, space="␣"):
    """visible(data, space) as a list: what is shown for each character, or byte of one."""
    signs = [sign_of(c, space) for c in data.decode("utf-8", errors="surrogateescape")]
    if signs and not columns(signs[0]):
        signs.insert(0, "◌")  # an accent needs something to stand on
    return signs


def sign_of(c, space):
    """What is shown for a character; a byte that is no character comes as a surrogate."""
    if c == " ":
        return space
    if c in SIGNS:
        return SIGNS[c]
    if 0xDC80 <= ord(c) <= 0xDCFF:
        return f"\\x{ord(c) - 0xDC00:02x}"
    if unicodedata.category(c) in INVISIBLE or "VARIATION SELECTOR" in unicodedata.name(c, ""):
        return c.encode("unicode_escape").decode()
    return c


def columns(text):
    """How many columns a terminal gives to a text of visible characters."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me")
        else 2 if unicodedata.east_asian_width(c) in "WF"
        else 1
        for c in text
    )  # fmt: skip


def line_columns(line):
    """How many columns a line of spans takes."""
    return sum(columns(text) for text, _ in line)
