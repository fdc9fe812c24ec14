"""Read and write a model of llama2.c: the same layers, laid out another way.

llama2.c runs small Llamas in one file of C, and its author published some that he trained on
TinyStories. The smallest has 260 thousand parameters in one megabyte: a real model to
try this program on, and a witness that its layers mean what everybody's do.

The file, all little-endian: seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads,
vocab_size, seq_len; vocab_size negative if the head is not tied), then float32: token_embedding,
and stacked over the layers rms_att, wq, wk, wv, wo, rms_ffn, w1, w2, w3; then rms_final, two
tables of RoPE that we compute ourselves, and the head if it is not tied. Three things differ:

Matrices are (out, in), as in PyTorch: y = x @ Wᵀ. Ours are (in, out), so transpose.
    Ours are also joined: wqkv = [wq | wk | wv] by columns, and w_gate_up = [w1 | w3].

RoPE pairs other channels. llama2.c turns the neighbours (2j, 2j + 1) of a head by the angle
    p·ωⱼ, we turn (j, j + D/2) by the same angle. Let P be the permutation of a head's channels
    that brings 2j to j and 2j + 1 to j + D/2. Then, with R for the turns,
        R_half(p) P = P R_interleaved(p)
    since both sides turn the same pairs by the same angles, and then have them at
    the new places. Now permute the channels that make q and k: q' = P q, k' = P k. The score is
        (R_half q') · (R_half k') = (P R q) · (P R k) = (R q) · Pᵀ P (R k) = (R q) · (R k)
    for a permutation is orthogonal, PᵀP = 1: a dot product does not care in which order
    its terms are added. So permute the rows of wq and wk within each head, once, and
    nothing else: v is not turned, and wo only sees v. Forget it, and place 0, whose angle
    is 0, is still perfect: a test of one token passes.

norm_eps is 1e-5 and rope_theta 10000; the file doesn't say, the program does.

Source: Karpathy 2023, github.com/karpathy/llama2.c: run.c (memory_map_weights, encode, decode)
    and tokenizer.py (export).
"""

import re
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np

from npgpt.checkpoint import replacing, write_atomic
from npgpt.errors import UserError
from npgpt.model import GPTConfig, Parameters, count_parameters
from npgpt.tokenizer.base import END_OF_TEXT, Tokenizer
from npgpt.tokenizer.files import LLAMA2C as TOKENIZER
from npgpt.tokenizer.files import save_settings

BOS = 1  # begins each text, and so ends the one before it
HEADER = struct.Struct("<7i")
MAGIC = 0x616B3432  # "ak42": the first number of the later versions of this format


def load_llama2c(path):
    """Read a model, as `export.py --version 0` of llama2.c writes it.

    Args:    path of the .bin file.
    Returns: config, a GPTConfig; params, float32 Parameters on the host.
    Raises:  UserError if the file can't be read, or is not one of these.
    """
    data = _read(path)
    if len(data) < HEADER.size:
        raise UserError(f"{path} has {len(data)} bytes, too few for a llama2.c model")
    C, F, L, H, G, V, T = HEADER.unpack_from(data)
    if C == MAGIC:
        raise UserError(f"{path} is of a later version: export it with llama2.c's --version 0")
    tie, V = V > 0, abs(V)
    D = C // H if H > 0 else 0
    stacked = {
        "attn_norm": (C,), "wq": (H * D, C), "wk": (G * D, C), "wv": (G * D, C), "wo": (C, H * D),
        "mlp_norm": (C,), "w1": (F, C), "w2": (C, F), "w3": (F, C),
    }  # fmt: skip
    shapes = {"wte": (V, C)} | {name: (L, *shape) for name, shape in stacked.items()}
    shapes |= {"norm": (C,), "rope": (2, T, D // 2)} | ({} if tie else {"lm_head": (V, C)})
    if min(C, F, L, H, G, V, T, D // 2) < 1:
        raise UserError(f"{path} is no llama2.c model: its first numbers make no sense")
    size = HEADER.size + 4 * sum(_product(shape) for shape in shapes.values())
    if size != len(data):
        raise UserError(
            f"{path} has {len(data):,} bytes, but its header asks for {size:,}: "
            "it is cut short, or no llama2.c model, so download it again"
        )
    config = GPTConfig(V, T, L, H, G, C, F, rope_theta=10_000.0, norm_eps=1e-5, tie=tie)

    read, start = {}, HEADER.size
    for name, shape in shapes.items():
        read[name] = np.frombuffer(data, "<f4", _product(shape), start).reshape(shape)
        start += 4 * _product(shape)
        if not np.all(np.isfinite(read[name])):
            raise UserError(f"{path} is damaged: {name} holds numbers that are not finite")
    params = Parameters(config, np.zeros(count_parameters(config), np.float32))
    params["wte"][...], params["norm"][...] = read["wte"], read["norm"]
    if not tie:
        params["lm_head"][...] = read["lm_head"].T
    for i in range(L):
        w, p = {name: read[name][i] for name in stacked}, params.block(i)
        q, k = (_to_half_split(w[name], D) for name in ("wq", "wk"))
        p["wqkv"][...] = np.concatenate([q, k, w["wv"]]).T  # (C, (H + 2G)·D)
        p["w_gate_up"][...] = np.concatenate([w["w1"], w["w3"]]).T  # (C, 2F)
        p["wo"][...], p["w_down"][...] = w["wo"].T, w["w2"].T
        p["attn_norm"][...], p["mlp_norm"][...] = w["attn_norm"], w["mlp_norm"]
    return config, params


class Llama2cTokenizer(Tokenizer):
    """SentencePiece's tokens as llama2.c stores them: each with a score, the best merged first.

    A text is put behind a space, so that its first word is the same token as in the
    middle of a sentence; then it is cut into characters (a character without a
    token into its bytes), and the two neighbours whose union has the highest score are merged,
    again and again. decode takes the space away.

    Args:    pieces, a list of bytes; scores, a list of float.
    """

    kind = "llama2c"

    def __init__(self, pieces, scores):
        # A byte's token is spelled <0x0A>. The first three are no text: unknown, begin, end.
        spelled = [re.fullmatch(rb"<0x([0-9A-F]{2})>", piece) for piece in pieces]
        tokens = [bytes([int(m[1], 16)]) if m else piece for m, piece in zip(spelled, pieces)]
        tokens[BOS] = END_OF_TEXT.encode()
        super().__init__(tokens, {END_OF_TEXT: BOS})
        self.pieces, self.scores = list(pieces), list(scores)
        self._byte_ids = {tokens[i]: i for i, m in enumerate(spelled) if m}
        self._ids = {}
        for i, piece in enumerate(pieces):
            if i > 2 and not spelled[i]:
                self._ids.setdefault(piece, i)
        # Where no token has a space inside, words don't meet, and can be merged one by one.
        self._by_word = not any(b" " in piece.lstrip(b" ") for piece in self._ids)

    @classmethod
    def load(cls, path):
        """Read a tokenizer file: int32 longest, then float32 score, int32 length, bytes of each.

        Raises:  UserError if the file can't be read, or is not one of these.
        """
        data, pieces, scores = _read(path), [], []
        broken = UserError(f"{path} is no tokenizer of llama2.c, or is cut short")
        try:
            (longest,), start = struct.unpack_from("<i", data), 4
            while start < len(data):
                score, length = struct.unpack_from("<fi", data, start)
                start += 8 + length
                if not 0 <= length <= longest or start > len(data) or not np.isfinite(score):
                    raise broken
                pieces.append(data[start - length : start])
                scores.append(score)
        except struct.error:
            raise broken from None
        if not {b"<0x%02X>" % b for b in range(256)} <= set(pieces[3:]):
            raise UserError(f"{path} can't write every text: it lacks a token for some bytes")
        return cls(pieces, scores)

    def save(self, folder):
        """Write tokenizer.bin, and tokenizer_config.json to say what it is.

        Args:    folder, made if it is not there.
        Raises:  UserError if it can't be written.
        """
        records = [struct.pack("<i", max(map(len, self.pieces)))]
        for piece, score in zip(self.pieces, self.scores):
            records.append(struct.pack("<fi", score, len(piece)) + piece)
        write_atomic(Path(folder) / TOKENIZER, b"".join(records))
        save_settings(self, folder, {})

    def decode(self, ids):
        """Turn ids back into text, without the space that encode put before it."""
        return super().decode(ids).removeprefix(" ")

    def _encode_plain(self, text, start):
        text = " " + text
        words = re.split(r"(?<=[^ ])(?= )", text) if self._by_word else [text]
        return [i for word in words for i in self._merge(word)]

    def _merge(self, word):
        parts = []  # bytes and id of each
        for c in word:
            c = c.encode("utf-8")
            known = c in self._ids
            parts += [(c, self._ids[c])] if known else [(c[i : i + 1], None) for i in range(len(c))]
        while True:
            best, place = None, None
            for i, (left, right) in enumerate(pairwise(parts)):
                # A byte that stands alone, None, spells part of a character: it never merges.
                merged = None
                if left[1] is not None and right[1] is not None:
                    merged = self._ids.get(left[0] + right[0])
                if merged is not None and (best is None or self.scores[merged] > best):
                    best, place = self.scores[merged], i
            if place is None:
                return [self._byte_ids[c] if i is None else i for c, i in parts]
            union = parts[place][0] + parts[place + 1][0]
            parts[place : place + 2] = [(union, self._ids[union])]


def save_llama2c(path, config, params):
    """Write a model, as `export.py --version 0` of llama2.c does.

    Args:    path of the .bin file; config; params on the host.
    Raises:  UserError if run.c can't compute this model, or the file can't be written.
    """
    c, L, D = config, config.n_layer, config.head_dim
    bias = c.bias or c.head_bias
    fixed = (c.norm, c.position, c.mlp, bias, c.norm_eps, c.rope_theta, c.rope_stretch)
    if fixed != ("rmsnorm", "rope", "swiglu", False, 1e-5, 10_000.0, None):
        raise UserError(
            "llama2.c knows one model: rmsnorm with norm_eps 1e-5, rope with rope_theta 10000, "
            "swiglu, no biases; this one differs, so export it with --format npz, or with "
            "--format hf, which knows more models"
        )
    blocks = [params.block(i) for i in range(L)]
    split = [c.n_head * D, (c.n_head + c.n_kv_head) * D]
    rows = [np.split(p["wqkv"].T, split) for p in blocks]  # q, k, v of each block
    gates = [np.split(p["w_gate_up"].T, 2) for p in blocks]
    arrays = [
        params["wte"],
        *(p["attn_norm"] for p in blocks),
        *(_to_interleaved(q, D) for q, _, _ in rows),
        *(_to_interleaved(k, D) for _, k, _ in rows),
        *(v for _, _, v in rows),
        *(p["wo"].T for p in blocks),
        *(p["mlp_norm"] for p in blocks),
        *(gate for gate, _ in gates),
        *(p["w_down"].T for p in blocks),
        *(up for _, up in gates),
        params["norm"],
        np.zeros((2, c.block_size, D // 2)),  # tables of RoPE, which no program reads
        *([] if c.tie else [params["lm_head"].T]),
    ]
    V = c.vocab_size if c.tie else -c.vocab_size
    with replacing(path) as file:
        file.write(HEADER.pack(c.n_embd, c.n_hidden, L, c.n_head, c.n_kv_head, V, c.block_size))
        for array in arrays:
            file.write(np.ascontiguousarray(array, "<f4").data)


def _to_interleaved(w, D):
    """Pᵀ of the derivation above: row j of each head goes to 2j, and j + D/2 to 2j + 1."""
    halves = w.reshape(-1, 2, D // 2, w.shape[1])  # (H, 2, D/2, C)
    return np.swapaxes(halves, 1, 2).reshape(w.shape)  # (H·D, C)


def _to_half_split(w, D):
    """P of the derivation above: within each head bring row 2j to j, and 2j + 1 to j + D/2."""
    pairs = w.reshape(-1, D // 2, 2, w.shape[1])  # (H, D/2, 2, C): plane j, then which of its two
    return np.swapaxes(pairs, 1, 2).reshape(w.shape)  # (H·D, C)


def _product(shape):
    """np.prod wraps around at 2⁶³, and a header may say anything."""
    product = 1
    for n in shape:
        product *= n
    return product


def _read(path):
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no file {path}: check the spelling") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from None
