"""llama2.c's files: against a naive forward of its own layout, and a real model's story."""

import struct

import numpy as np
import pytest

from npgpt.errors import UserError
from npgpt.interchange.llama2c import Llama2cTokenizer, load_llama2c
from npgpt.model import forward
from npgpt.sampling import generate, sample_rngs

C, F, L, H, G, V, T = 24, 20, 2, 4, 2, 11, 9
D = C // H


def random_model(tie):
    """The bytes of a file, and what was written into it, in llama2.c's own order and names."""
    rng = np.random.default_rng(0)
    shapes = {
        "token_embedding": (V, C), "rms_att": (L, C), "wq": (L, C, C), "wk": (L, G * D, C),
        "wv": (L, G * D, C), "wo": (L, C, C), "rms_ffn": (L, C), "w1": (L, F, C), "w2": (L, C, F),
        "w3": (L, F, C), "rms_final": (C,), "freq_cis": (2, T, D // 2), "wcls": (V, C),
    }  # fmt: skip
    w = {name: rng.standard_normal(shape).astype("<f4") for name, shape in shapes.items()}
    if tie:
        del w["wcls"]
    header = struct.pack("<7i", C, F, L, H, G, V if tie else -V, T)
    return header + b"".join(array.tobytes() for array in w.values()), w


def naive_forward(w, ids):
    """Llama as run.c computes it, place by place and head by head, in float64."""
    w = {name: array.astype(np.float64) for name, array in w.items()}

    def norm(x, gain):
        return x / np.sqrt((x * x).mean() + 1e-5) * gain

    def turn(x, place):  # neighbours are a complex number, turned by e^(i·p·ω)
        z = x.reshape(-1, D // 2, 2)
        omega = 10_000.0 ** (-np.arange(0, D, 2) / D)
        z = (z[..., 0] + 1j * z[..., 1]) * np.exp(1j * place * omega)
        return np.stack([z.real, z.imag], axis=-1).reshape(-1, D)

    keys, values, out = [[] for _ in range(L)], [[] for _ in range(L)], []
    for place, token in enumerate(ids):
        x = w["token_embedding"][token]
        for i in range(L):
            h = norm(x, w["rms_att"][i])
            q = turn(w["wq"][i] @ h, place)
            keys[i].append(turn(w["wk"][i] @ h, place))
            values[i].append((w["wv"][i] @ h).reshape(G, D))
            heads = []
            for head in range(H):
                group = head // (H // G)
                scores = np.array([q[head] @ k[group] for k in keys[i]]) / np.sqrt(D)
                p = np.exp(scores - scores.max())
                p /= p.sum()
                heads.append(sum(pi * v[group] for pi, v in zip(p, values[i])))
            x = x + w["wo"][i] @ np.concatenate(heads)
            h = norm(x, w["rms_ffn"][i])
            gate = w["w1"][i] @ h
            x = x + w["w2"][i] @ (gate / (1 + np.exp(-gate)) * (w["w3"][i] @ h))
        out.append(w.get("wcls", w["token_embedding"]) @ norm(x, w["rms_final"]))
    return np.array(out)


@pytest.mark.parametrize("tie", [True, False])
def test_logits_are_those_of_llama2c(tmp_path, tie):
    data, w = random_model(tie)
    (tmp_path / "m.bin").write_bytes(data)
    config, params = load_llama2c(tmp_path / "m.bin")
    assert (config.tie, config.n_kv_head, config.block_size) == (tie, G, T)
    ids = np.random.default_rng(1).integers(V, size=T)
    expected = naive_forward(w, ids)
    logits = forward(params, ids[None], config)[0][0]
    assert logits.dtype == np.float32
    error = np.max(np.abs(logits - expected), axis=-1) / np.max(np.abs(expected))
    assert np.all(error < 1e-5), error  # at each place, the later ones above all


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda b: b[:20], "has 20 bytes, too few for a llama2.c model"),
        (lambda b: b"", "has 0 bytes, too few"),
        (lambda b: b[:-4], "it is cut short, or no llama2.c model"),
        (lambda b: b + b"\0" * 4, "it is cut short, or no llama2.c model"),
        (lambda b: b"ak42"[::-1] + b[4:], "of a later version"),
        (lambda b: struct.pack("<7i", 0, F, L, H, G, V, T) + b[28:], "make no sense"),
        (lambda b: struct.pack("<7i", C, F, L, 0, G, V, T) + b[28:], "make no sense"),
        (lambda b: struct.pack("<7i", C, F, L, -H, G, V, T) + b[28:], "make no sense"),
        (lambda b: struct.pack("<7i", *[2**31 - 1] * 7) + b[28:], "make no sense"),
        (lambda b: struct.pack("<7i", *[2**30] * 3, 1, *[2**30] * 3) + b[28:], "cut short"),
        (lambda b: b"A sentence and no model, of some length." + b, "asks for|make no sense"),
        (lambda b: b[:28] + struct.pack("<f", np.nan) + b[32:], "wte holds numbers that are not"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, change, sentence):
    (tmp_path / "m.bin").write_bytes(change(random_model(True)[0]))
    with pytest.raises(UserError, match=sentence) as error:
        load_llama2c(tmp_path / "m.bin")
    assert "\n" not in str(error.value)
    assert "m.bin" in str(error.value)


def test_no_file_or_a_folder(tmp_path):
    for read in (load_llama2c, Llama2cTokenizer.load):
        with pytest.raises(UserError, match="there is no file"):
            read(tmp_path / "none.bin")
        with pytest.raises(UserError, match="can't be read"):
            read(tmp_path)


# The tokenizer.

SPECIAL = [b"<unk>", b"\n<s>\n", b"\n</s>\n"]
BYTES = [b"<0x%02X>" % b for b in range(256)]
MERGED = {
    b" ": -9,
    b"a": -9,
    b"b": -9,
    b" a": -3,
    b"ab": -1,
    b"bb": -2,
    b" ab": -4,
    b"\xc3\xa9": -9,
}


def tokenizer_bytes(pieces, scores):
    records = [struct.pack("<fi", s, len(p)) + p for p, s in zip(pieces, scores)]
    return struct.pack("<i", max(map(len, pieces))) + b"".join(records)


def tiny(tmp_path, extra=()):
    pieces = [*SPECIAL, *BYTES, *MERGED, *extra]
    scores = [0.0] * 259 + list(MERGED.values()) + [-0.5] * len(extra)
    (tmp_path / "tok.bin").write_bytes(tokenizer_bytes(pieces, scores))
    return Llama2cTokenizer.load(tmp_path / "tok.bin")


def pieces(tok, text):
    return [tok.token_bytes(i) for i in tok.encode(text)]


def test_tokenizer_merges_by_score(tmp_path):
    tok = tiny(tmp_path)
    assert pieces(tok, "ab") == [b" ab"]  # ab first, then the space before it
    assert pieces(tok, "abb") == [b" ab", b"b"]
    assert pieces(tok, "bbb") == [b" ", b"bb", b"b"]  # of equals, the left one
    assert pieces(tok, "a ab") == [b" a", b" ab"]
    assert pieces(tok, "é!") == [b" ", b"\xc3\xa9", b"!"]
    assert pieces(tok, "日") == [b" ", b"\xe6", b"\x97", b"\xa5"]  # no token of its own: its bytes
    assert tok.encode("!")[1] == 3 + ord("!")
    assert tok.encode("") == []


def test_words_apart_or_together_merge_alike(tmp_path):
    apart, together = tiny(tmp_path), tiny(tmp_path, extra=[b"b a"])
    assert (apart._by_word, together._by_word) == (True, False)
    assert pieces(together, "b a") == [b" ", b"b a"]
    assert pieces(apart, "b a") == [b" ", b"b", b" a"]
    for text in ("ab  abb   a", " ab", "a ", "  "):
        assert pieces(apart, text) == pieces(together, text)


def test_tokenizer_is_one_of_ours(tmp_path):
    tok = tiny(tmp_path)
    assert (tok.vocab_size, tok.end_of_text) == (259 + len(MERGED), 1)
    for text in ("ab a", " two spaces before  ", "naïve 日本\n", "<unk> </s> <0x41>"):
        assert tok.decode(tok.encode(text)) == text
    assert tok.encode("<|endoftext|>ab", allowed_special="all") == [1, tok.encode("ab")[0]]
    with pytest.raises(UserError, match="special token"):
        tok.encode("<|endoftext|>")


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda b: b[:2], "is no tokenizer of llama2.c, or is cut short"),
        (lambda b: b[:-1], "cut short"),
        (lambda b: b[:-5], "cut short"),
        (lambda b: b[:1000], "cut short"),
        (lambda b: b[:4], "lacks a token for some bytes"),
        (lambda b: b[:8] + struct.pack("<i", -5) + b[12:], "cut short"),
        (lambda b: b[:4] + struct.pack("<f", np.nan) + b[8:], "cut short"),
        (lambda b: b.replace(b"<0x41>", b"<0x4g>"), "lacks a token for some bytes"),
        (lambda b: random_model(True)[0], "cut short"),
    ],
)
def test_a_bad_tokenizer_is_one_sentence(tmp_path, change, sentence):
    data = tokenizer_bytes([*SPECIAL, *BYTES, *MERGED], [0.0] * (259 + len(MERGED)))
    (tmp_path / "tok.bin").write_bytes(change(data))
    with pytest.raises(UserError, match=sentence) as error:
        Llama2cTokenizer.load(tmp_path / "tok.bin")
    assert "\n" not in str(error.value)


# A real model.


def test_stories260k_tells_its_story(shared_data):
    config, params = load_llama2c(shared_data / "models" / "stories260K.bin")
    tok = Llama2cTokenizer.load(shared_data / "models" / "tok512.bin")
    assert tok.vocab_size == config.vocab_size == 512
    steps = generate(params, config, np.array([[1]]), 60, sample_rngs(0, [0]), temperature=0.0)
    text = tok.decode([int(step[0]) for step in steps])
    assert text.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
        "park. One day, she saw a big, red ball."
    )
    assert tok.decode(tok.encode(text)) == text
    assert pieces(tok, "Once upon a time") == [b" Once", b" upon", b" a", b" time"]
