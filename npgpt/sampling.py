"""Sampling: one token after another, with a memory of keys and values.

Why
    A trained model maps a text to a probability for each token that might come next. To
    write, draw one, append it to the text, and ask again. What is left to decide is how to
    draw, and how not to read the whole text anew for each token.

How to draw, in this order
    z / temperature    Below 1 the gaps between the logits widen, and the likely becomes
                       likelier; above 1 all draws nearer to chance. For temperature → 0 only
                       the best is left: 0 means that, greedy decoding, with no chance in it.
    top-k              Keep the k best. The tail of thousands of tokens, each wrong and each
                       unlikely, is together likely enough to spoil a text every few words.
    top-p              Keep the fewest of the best that together have probability p. After
                       "once upon a" that is one token, after "the" it is hundreds: top-p
                       follows the model's own doubt, where a fixed k must guess it.
    softmax, and draw from what is left.

    The order matters, since top-p counts the probabilities that the steps before it left:
    a low temperature lets fewer tokens through. This is the order of Hugging Face too.

The memory
    At place t, attention asks for the keys and values of all places s ≤ t. Causality means
    that those of s < t do not change when a token is appended: they depend on the past only.
    So keep them. Then a new token costs one row through every matrix, and not t rows:
    for a text of n tokens, n rows of linear layers in place of n²/2.
        KV cache = L layers · 2 (k and v) · block_size · G · D numbers for each sequence
    That is why grouped heads, G < H, are worth having.

When the context is full
    Position block_size was never trained, and a learned table has no row for it. One could
    drop the oldest token's keys and values and go on, but those that are kept were computed
    by layers that had seen the dropped token: no forward ever trained gives such numbers.
    Or read the last block_size tokens anew for each token, exactly and block_size times as
    slowly. In between: when the context is full, keep its latest half, read it once as a
    fresh text, and go on for half a context. The model then always sees between half and all
    of its context, each number is one that a plain forward on the same window gives, and a
    token costs two rows, not one.

Chance
    Sample i of a run draws from its own generator, made of (seed, i), and one number
    for each token: it writes the same text alone or among others. (Almost: a matrix product
    of one row and of many may differ in the last bit, and a draw that falls exactly
    between two tokens may then fall on the other side. It needs about a million draws. The
    compiled decoder of npgpt.backend.cpu, which adds in one order always, has no such case.)

Source: Holtzman, Buys, Du, Forbes & Choi 2020, "The Curious Case of Neural Text
    Degeneration", eqs. 2–4: top-p, which they call nucleus sampling, top-k and temperature
    in comparison; Fan, Lewis & Dauphin 2018, "Hierarchical Neural Story Generation": top-k;
    Shazeer 2019, "Fast Transformer Decoding": incremental attention, keys and values kept.
"""

import numpy as np

from npgpt.backend import bfloat16, kernels_enabled, to_host
from npgpt.errors import UserError
from npgpt.model import Parameters, forward


def apply_temperature(logits, temperature):
    """Divide the logits by the temperature, the best of each row being moved to 0.

    Args:    logits (..., V); temperature > 0.
    Returns: (..., V), none above 0: so that a tiny temperature gives −∞ and 0, never NaN.
    """
    with np.errstate(over="ignore"):
        return (logits - np.max(logits, axis=-1, keepdims=True)) / temperature  # (..., V)


def keep_top_k(logits, k):
    """Give all but the k best tokens of each row no chance.

    Args:    logits (..., V); k, or 0 for all.
    Returns: (..., V), −∞ where dropped; tokens that tie with the k-th are kept as well.
    """
    if not 0 < k < logits.shape[-1]:
        return logits
    kth = np.partition(logits, -k, axis=-1)[..., -k, None]  # (..., 1)
    return np.where(logits < kth, -np.inf, logits)  # (..., V)


def keep_top_p(logits, p):
    """Keep the smallest set of likeliest tokens whose probabilities add up to p or more.

    To find it, sort; but not all. The tokens with less than (1 − p)/V each have, as they are at
    most V, less than 1 − p together: the set is complete without them. Of ten thousand tokens
    some hundred are left to sort. (Half of that, lest rounding decide.)

    Args:    logits (V,); p in (0, 1], 1 keeps all.
    Returns: (V,), −∞ where dropped; of equals the lower id comes first.
    """
    if p == 1.0:
        return logits
    probs = softmax(logits)  # (V,)
    ids = np.flatnonzero(probs >= 0.5 * (1.0 - p) / len(probs))  # (N,), N ≤ V
    ids = ids[np.argsort(-logits[ids], kind="stable")]  # (N,), the likeliest first
    likelier = np.cumsum(probs[ids]) - probs[ids]  # (N,): 0 for the first, which always stays
    kept = np.full_like(logits, -np.inf)  # (V,)
    kept[ids] = np.where(likelier < p, logits[ids], -np.inf)
    return kept


def softmax(logits):
    """Make probabilities of logits (..., V); −∞ becomes exactly 0."""
    exp = np.exp(logits - np.max(logits, axis=-1, keepdims=True))  # (..., V)
    return exp / np.sum(exp, axis=-1, keepdims=True)  # (..., V)


def choose_token(logits, rng, temperature=1.0, top_k=0, top_p=1.0):
    """Draw one token.

    Args:    logits (V,), on the host; rng, of which one number is taken, or none when greedy;
             temperature ≥ 0, top_k and top_p as above.
    Returns: its id; when greedy the best, of equals the lowest.
    """
    if temperature == 0.0:
        return int(np.argmax(logits))
    z = apply_temperature(logits.astype(np.float64), temperature)  # (V,)
    z = keep_top_p(keep_top_k(z, top_k), top_p)  # (V,)
    # Lay the probabilities end to end on a line, and see on whose piece a random point falls.
    ids = np.flatnonzero(z > -np.inf)  # (N,), those that have a chance
    edges = np.cumsum(softmax(z[ids]))  # (N,), the right end of each piece
    return int(ids[np.searchsorted(edges, rng.random() * edges[-1], side="right")])


class KVCache:
    """The keys and values of all tokens so far, for model.forward's `past`.

    Args:    config; batch, the number of sequences B; like, an array whose device and dtype
             the memory gets: any parameter.
    Attributes: k, v (L, B, block_size, G, D), of which the first `length` places are filled.
    """

    def __init__(self, config, batch, like):
        shape = (
            config.n_layer, batch, config.block_size, config.n_kv_head, config.head_dim,
        )  # fmt: skip
        self.k = np.zeros(shape, dtype=like.dtype, like=like)
        self.v = np.zeros(shape, dtype=like.dtype, like=like)
        self.length = 0

    def layer(self, i):
        """The function by which layer i appends its new keys and values, and gets all so far.

        `length` stays as it is, as the next layer writes at the same places: whoever calls
        forward moves it on afterwards.
        """

        def extend(k, v):
            stop = self.length + k.shape[1]
            self.k[i, :, self.length : stop] = k  # (B, T, G, D)
            self.v[i, :, self.length : stop] = v
            return self.k[i, :, :stop], self.v[i, :, :stop]  # (B, S, G, D)

        return extend


class Decoder:
    """The model as sampling sees it: new tokens go in, the scores of what follows come out.

    Args:    params, on any device; config.
    Attributes: params, config.
    """

    def __init__(self, params, config):
        self.params, self.config = params, config

    def read(self, ids, cache):
        """Read the next tokens of each text, and move the memory on.

        Args:    ids (B, T) int on the host; cache, the KVCache of these texts.
        Returns: (B, V), the scores of the token after the last one, on the host.
        """
        ids = np.asarray(ids, like=self.params["norm"])  # (B, T)
        logits, _ = forward(self.params, ids, self.config, past=cache, last=1)  # (B, 1, V)
        cache.length += ids.shape[1]
        rows = to_host(logits[:, -1])  # (B, V): the only numbers that leave the device
        return rows if rows.dtype.kind == "f" else rows.astype(np.float32)  # of bfloat16


def make_decoder(params, config, dtype="float32", threads=None):
    """Choose who reads: the text, or forward once more as one compiled function.

    Args:    params; config; dtype that the weights are rounded to, "float32", "bf16" or "int8":
             the time of a token is the time to read them all, and the latter two have a half and
             a quarter of the bytes; threads (default: as many as turn out fastest).
    Returns: a Decoder. On a CPU only the compiled one heeds dtype and threads.
    Raises:  UserError if weights are to be rounded, and no kernel can do it.
    """
    norm = params["norm"]
    if not isinstance(norm, np.ndarray):
        params = _rounded_on_gpu(params, config, dtype)
        if not kernels_enabled("cupy"):
            return Decoder(params, config)
        from npgpt.backend.cuda.decode import GraphDecoder
        from npgpt.backend.cuda.runtime import Runtime

        return GraphDecoder(params, config, Runtime())
    if norm.dtype == np.float32 and kernels_enabled():
        from npgpt.backend.cpu.decode import CompiledDecoder

        return CompiledDecoder(params, config, dtype, threads)
    if dtype != "float32":
        raise UserError(
            f"--dtype {dtype} needs the compiled kernels of the numpy backend: install numba, and "
            "leave NPGPT_KERNELS unset; or leave out --dtype"
        )
    return Decoder(params, config)


def _rounded_on_gpu(params, config, dtype):
    """Parameters on a GPU, of the dtype that was asked for."""
    if dtype == "float32":
        return params
    if dtype != "bf16":
        raise UserError(f"--dtype {dtype} is for a CPU: leave it out, or give --backend numpy")
    if not kernels_enabled("cupy"):
        raise UserError("--dtype bf16 needs the kernels that NPGPT_KERNELS=off forbids")
    from npgpt.backend.cuda.compile import capability
    from npgpt.backend.cuda.elementwise import cast
    from npgpt.backend.cuda.rounding import LEAST_CAPABILITY, without_kernels

    lacking = without_kernels(config)
    if capability() < LEAST_CAPABILITY["bf16"]:
        lacking = ["GPUs of compute capability below 8.0"]
    if lacking:
        raise UserError(f"there are no bf16 kernels for {', '.join(lacking)}: leave out --dtype")
    return Parameters(config, cast(params.flat, bfloat16()))


def sample_rngs(seed, numbers):
    """One random generator for each sample, made of the seed and the sample's number."""
    return [np.random.default_rng([seed, i]) for i in numbers]


def generate(
    params,
    config,
    prompt_ids,
    max_new_tokens,
    rngs,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    end_of_text=None,
    decoder=None,
):
    """Continue each prompt, one token a step, until its text ends or enough is written.

    Args:    params, on any device; config; prompt_ids (B, T) int on the host, T ≥ 1, of which
             the last block_size are read; max_new_tokens; rngs, B generators as from
             sample_rngs; temperature, top_k, top_p; end_of_text, the id that ends a text, or None;
             decoder, who reads: one of make_decoder, or None for the text.
    Returns: an iterator of ids (B,) int, each step's new tokens on the host. A sequence whose
             text has ended repeats end_of_text; when all have ended, the iterator does.
    Raises:  ValueError if there is no token to continue; UserError if the model's scores
             are not numbers.
    """
    B, T = prompt_ids.shape
    if T < 1 or len(rngs) != B:
        raise ValueError(f"generate: prompt_ids {(B, T)} need T ≥ 1 and {B} rngs, not {len(rngs)}")
    context = np.array(prompt_ids[:, -config.block_size :], dtype=np.int64)  # (B, T)
    decoder = decoder or Decoder(params, config)
    cache = KVCache(config, B, like=params["norm"])
    ended = np.zeros(B, dtype=bool)  # (B,)
    new = context  # what the cache has not seen yet
    for _ in range(max_new_tokens):
        if cache.length + new.shape[1] > config.block_size:
            new = context[:, -max(1, config.block_size // 2) :]  # read again, as a fresh text
            cache.length = 0
        rows = decoder.read(new, cache)[:, : config.num_tokens]  # (B, V), but for the padding
        if not np.all(np.isfinite(rows)):
            raise UserError(
                "the model's scores are not finite numbers, so its training has gone wrong: "
                "use an earlier checkpoint, or train again with a lower learning rate"
            )
        new = np.empty((B, 1), dtype=np.int64)  # (B, 1)
        for b in range(B):
            # The rows of a batch do not see each other, so one that has ended may read anything.
            draw = (rows[b], rngs[b], temperature, top_k, top_p)
            new[b] = end_of_text if ended[b] else choose_token(*draw)
        yield new[:, 0].copy()
        if end_of_text is not None:
            ended |= new[:, 0] == end_of_text
            if np.all(ended):
                return
        context = np.concatenate([context, new], axis=1)[:, -config.block_size :]  # (B, T)
