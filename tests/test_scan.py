"""Which class a character is of, and where words end: the compiled scan against `regex`."""

import itertools
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from tokenizer_helpers import random_texts

from npgpt.backend import kernels_enabled
from npgpt.tokenizer import bpe, unicode_classes
from npgpt.tokenizer.unicode_classes import (
    OTHER,
    SPACE,
    UNICODE_VERSION,
    class_table,
    installed_classes,
    installed_edition,
)

if not kernels_enabled():
    pytest.skip("Numba is not installed, or NPGPT_KERNELS=off", allow_module_level=True)

from npgpt.tokenizer import scan
from npgpt.tokenizer.scan import as_bytes

parity = pytest.mark.parity

# Classes of characters


@parity
def test_the_table_is_what_regex_says():
    table, installed = class_table(), installed_classes()
    assert np.bincount(table, minlength=4).tolist()[1:] == [158172, 2247, 25]
    if installed_edition() == UNICODE_VERSION:
        np.testing.assert_array_equal(table, installed)
    # Editions differ in characters that one of them lacks. All have those of Unicode 3.2.
    old = [unicodedata.ucd_3_2_0.category(chr(i)) not in ("Cn", "Cs") for i in range(0x3000)]
    old = np.flatnonzero(old)
    assert len(old) > 7000
    np.testing.assert_array_equal(table[old], installed[old])


def test_the_table_is_what_its_module_prints(capsys):
    """So it can be made anew when there are new characters."""
    if installed_edition() != UNICODE_VERSION:
        pytest.skip("the installed `regex` is of another edition of Unicode than the table")
    unicode_classes.main()
    assert capsys.readouterr().out in Path(unicode_classes.__file__).read_text("utf-8")


@parity
def test_characters_of_this_pythons_unicode():
    ours = tuple(map(int, UNICODE_VERSION.split(".")))
    if tuple(map(int, unicodedata.unidata_version.split("."))) > ours:
        pytest.skip("this Python knows characters that the table was made without")
    for i, kind in enumerate(class_table().tolist()):
        category = unicodedata.category(chr(i))
        if category[0] in "LN":
            assert kind == "OLN".index(category[0]), f"U+{i:04X} is {category}"
        elif category != "Cn":
            assert kind in (OTHER, SPACE), f"U+{i:04X} is {category}"


def test_white_space_is_not_pythons():
    pythons = {i for i in range(len(class_table())) if chr(i).isspace()}
    assert pythons - set(np.flatnonzero(class_table() == SPACE)) == {0x1C, 0x1D, 0x1E, 0x1F}
    assert not class_table().flags.writeable


# Where words end


@parity
def test_words_of_random_text():
    for text in random_texts(2, 3000, 150):
        assert scan.split_words(text) == list(bpe.split_words(text)), repr(text)


@parity
def test_words_of_all_sorts_of_characters():
    """From all planes, but for those of which the installed `regex` says something else."""
    rng = np.random.default_rng(3)
    points = np.flatnonzero(class_table() == installed_classes())
    points = points[(points < 0xD800) | (points >= 0xE000)]
    for _ in range(300):
        text = "".join(map(chr, rng.choice(points, 100)))
        text = text.replace(text[7], " ").replace(text[50], "a")
        assert scan.split_words(text) == list(bpe.split_words(text)), repr(text)


@parity
def test_every_place_in_a_window():
    tails = [
        "'s a",
        "'ll'",
        " 've",
        "  x",
        "\n\n x",
        "\u00a0\u3000x",
        "\u3000 ",
        "é1é",
        "😀'd",
        "' s",
    ]
    for tail, before in itertools.product(tails, ["a", " ", "'", "é"]):
        for length in range(140):
            text = before * length + tail + "b" * (length % 7 * 20)
            assert scan.split_words(text) == list(bpe.split_words(text)), repr(text)


@parity
def test_a_small_buffer_only_means_more_calls():
    for text in random_texts(4, 50, 400):
        data = as_bytes(text.encode())
        whole = scan.scan_ends(data).tolist()
        for size in (64, 65, 100):
            ends, start, found = np.empty(size, np.int64), 0, []
            while start < len(data):
                count = scan.word_ends(data, start, len(data), class_table(), ends)
                assert count > 0
                found += ends[:count].tolist()
                start = found[-1]
            assert found == whole


@parity
def test_pieces_are_independent():
    for text in random_texts(5, 100, 300):
        data = as_bytes(text.encode())
        for size in (1, 2, 7, 64, 1000):
            cuts = scan.cut_points(data, size)
            assert cuts[0] == 0 and cuts[-1] == len(data) and sorted(set(cuts)) == cuts
            words = [
                text.encode()[a:b].decode() for a, b in itertools.pairwise(cuts)
            ]  # a cut is never within a character
            words = [word for piece in words for word in bpe.split_words(piece)]
            assert words == list(bpe.split_words(text))


def test_texts_in_all_scripts_can_be_cut():
    for text in [
        "they'll see, and so ",
        "吾輩は猫である。名前は、",
        "Съешь ещё этих, ",
        "x = 3;\n",
    ]:
        data = as_bytes(text.encode() * 100)
        assert max(np.diff(scan.cut_points(data, 1))) <= len(text.encode())


@parity
def test_utf8_is_checked_as_python_does():
    rng = np.random.default_rng(6)

    def first_error(raw):
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            return error.start
        return len(raw)

    raws = []
    for text in random_texts(7, 800, 120):
        raw = np.frombuffer(text.encode(), np.uint8).copy()
        for _ in range(rng.integers(3) if len(raw) else 0):
            raw[rng.integers(len(raw))] = rng.choice(
                [0x61, 0x80, 0xBF, 0xC1, 0xE0, 0xED, 0xF4, 0xFF]
            )
        raws.append(raw[: len(raw) - rng.integers(4)].tobytes() if len(raw) > 4 else raw.tobytes())
    for lead, second in itertools.product(
        range(0xC0, 0x100), (0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF)
    ):
        raws += [bytes([lead, second]) + tail for tail in (b"", b"\x80", b"\x80\xbf", b"a" * 70)]
    wrong = 0
    for raw in raws:
        expected = first_error(raw)
        wrong += expected < len(raw)
        assert scan.invalid_utf8(as_bytes(raw), 0, len(raw)) == expected, raw
    assert 500 < wrong < len(raws) - 500
