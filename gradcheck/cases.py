"""What is checked: one table, a row a case.

Gradient checks, dtype and purity checks, mutants, kernels and parity with other frameworks
all walk over this table. So a new layer is a few new rows at the end of this file, and
nothing else.

A row is written where something can go wrong: one token, an odd number of channels, inputs so
small that eps counts or so large that exp overflows, a token that occurs twice and one that
never does, heads that share keys, queries that begin in the middle of the text. Shapes are
small, since the witnesses run the forward once or more for every number of every input. Each
layer also has a row that is wider, for the directional check alone: still narrow enough that
BLAS does not start its threads, which would take longer than the work.
"""

from gradcheck.case import (
    Case,
    block_backward,
    block_forward,
    heads_join_backward,
    heads_join_forward,
    heads_split_backward,
    heads_split_forward,
    logits_backward,
    logits_forward,
    loss_backward,
    loss_forward,
    parameter_names,
    without_bias_backward,
)
from gradcheck.inputs import (
    biased,
    channels,
    forgetful,
    gates,
    guesses,
    heads,
    masked,
    normal,
    one_block,
    places,
    rows,
    tied,
    tiny,
    tokens,
    turned,
    turned_heads,
    whole_model,
)
from npgpt import model
from npgpt.layers import (
    affine_backward,
    affine_forward,
    attention_backward,
    attention_forward,
    cross_entropy_backward,
    cross_entropy_forward,
    dropout_backward,
    dropout_forward,
    dropped_attention_backward,
    dropped_attention_forward,
    embedding_backward,
    embedding_forward,
    gelu_backward,
    gelu_forward,
    gelu_tanh_backward,
    gelu_tanh_forward,
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_forward,
    position_backward,
    position_forward,
    relu_backward,
    relu_forward,
    rmsnorm_backward,
    rmsnorm_forward,
    rope_attention_backward,
    rope_attention_forward,
    rope_backward,
    rope_forward,
    smooth_cross_entropy_backward,
    smooth_cross_entropy_forward,
    swiglu_backward,
    swiglu_forward,
)


def _linear(name, note, make, **more):
    return Case("linear", name, note, linear_forward, linear_backward, make, ("x", "w"), **more)


def _affine(name, note, make, **more):
    wanted = ("x", "w", "b")
    return Case("linear", name, note, affine_forward, affine_backward, make, wanted, **more)


def _embedding(name, note, make, **more):
    return Case(
        "embedding", name, note, embedding_forward, embedding_backward, make, ("w",), **more
    )


def _rmsnorm(name, note, make, **more):
    return Case("rmsnorm", name, note, rmsnorm_forward, rmsnorm_backward, make, ("x", "w"), **more)


def _layernorm(name, note, make, **more):
    functions = layernorm_forward, layernorm_backward
    return Case("layernorm", name, note, *functions, make, ("x", "w", "b"), **more)


def _position(name, note, make, **more):
    functions = position_forward, position_backward
    return Case("position", name, note, *functions, make, ("x", "wpe"), **more)


def _rope(name, note, make, **more):
    return Case("rope", name, note, rope_forward, rope_backward, make, ("x",), **more)


def _attention(name, note, make, **more):
    qkv = ("q", "k", "v")
    return Case("attention", name, note, attention_forward, attention_backward, make, qkv, **more)


def _rope_attention(name, note, make, **more):
    functions = rope_attention_forward, rope_attention_backward
    return Case("rope_attention", name, note, *functions, make, ("qkv",), **more)


def _swiglu(name, note, make, **more):
    return Case("swiglu", name, note, swiglu_forward, swiglu_backward, make, ("x",), **more)


def _relu(name, note, make, **more):
    return Case("mlp", f"relu, {name}", note, relu_forward, relu_backward, make, ("x",), **more)


def _gelu(name, note, make, **more):
    return Case("mlp", f"gelu, {name}", note, gelu_forward, gelu_backward, make, ("x",), **more)


def _gelu_tanh(name, note, make, **more):
    functions = gelu_tanh_forward, gelu_tanh_backward
    return Case("mlp", f"gelu_tanh, {name}", note, *functions, make, ("x",), **more)


def _dropout(name, note, make, **more):
    functions = dropout_forward, dropout_backward
    return Case("dropout", name, note, *functions, make, ("x",), **more)


def _attention_dropout(name, note, make, **more):
    functions = dropped_attention_forward, dropped_attention_backward
    return Case("attention_dropout", name, note, *functions, make, ("q", "k", "v"), **more)


def _loss(name, note, make, **more):
    functions = cross_entropy_forward, cross_entropy_backward
    return Case("loss", name, note, *functions, make, ("logits",), **more)


def _smooth(name, note, make, **more):
    functions = smooth_cross_entropy_forward, smooth_cross_entropy_backward
    return Case("loss", f"smooth, {name}", note, *functions, make, ("logits",), **more)


def _block(name, note, config, B, T, start=0, **more):
    decayed, free = model.parameter_shapes(config)
    names = [n.removeprefix("blocks.0.") for n in (*decayed, *free) if n.startswith("blocks.0.")]
    make = one_block(config, B, T, start)
    return Case("block", name, note, block_forward, block_backward, make, ("x", *names), **more)


def _model(name, note, config, *shape, smoothing=0.0, parts=1, **more):
    make = whole_model(config, *shape, smoothing=smoothing, parts=parts)
    return Case(
        "model", name, note, loss_forward, loss_backward, make, parameter_names(config), **more
    )


def _logits(name, note, config, *shape, **more):
    make = whole_model(config, *shape, targets=False)
    return Case(
        "model", name, note, logits_forward, logits_backward, make, parameter_names(config), **more
    )


_GROUPED = tiny(n_head=3, n_kv_head=1, n_embd=6)
_GROUPED_FORGETFUL = tiny(n_head=3, n_kv_head=1, n_embd=6, attention_dropout=0.3)
_GPT2 = dict(norm="layernorm", position="learned", mlp="gelu_tanh", bias=True)

CASES = (
    _linear("a batch of sequences", "the ordinary case", normal(x=(2, 3, 5), w=(5, 4))),
    _linear("square", "a transpose forgotten or made up has a shape that fits",
            normal(x=(2, 3, 4), w=(4, 4))),
    _linear("no batch", "x is a single row", normal(x=(3,), w=(3, 2))),
    _linear("rows", "x is a matrix, and y has one channel", normal(x=(4, 3), w=(3, 1))),
    _linear("one by one", "nothing to sum over", normal(x=(1, 1, 1), w=(1, 1))),
    _linear("tied head", "w is a transposed view of a table", tied((2, 2, 3), (3, 5))),
    _linear("large", "inputs of a hundred", normal(100.0, x=(2, 2, 3), w=(3, 2))),
    _linear("wider", "as large as in use, moved at once", normal(x=(2, 12, 32), w=(32, 40)),
            entrywise=False),

    _affine("with a bias", "the rows' gradients of the bias add", biased((2, 3, 4), (4, 3))),
    _affine("a bias, no batch", "x is a single row, so db is dy", biased((3,), (3, 2))),
    _affine("a bias, one by one", "nothing to sum over", biased((1, 1, 1), (1, 1))),
    _affine("a bias, wider", "as large as in use, moved at once", biased((2, 12, 32), (32, 40)),
            entrywise=False),

    _embedding("repeated ids", "a token that occurs twice gets two gradients",
               tokens([[1, 3, 1], [3, 3, 0]], V=5, C=2)),
    _embedding("one token only", "all gradients go to one row", tokens([[2, 2, 2, 2]], V=3, C=3)),
    _embedding("T = 1", "one place; all other rows get zero", tokens([[1]], V=3, C=3)),
    _embedding("V = 1", "a vocabulary of one", tokens([[0, 0], [0, 0]], V=1, C=3)),
    _embedding("no batch", "ids are a single sequence", tokens([2, 0, 2], V=4, C=1)),
    _embedding("wider", "long texts repeat themselves", tokens((4, 64), V=97, C=32, used=90),
               entrywise=False),

    _rmsnorm("unit scale", "the ordinary case", rows((2, 3, 5))),
    _rmsnorm("small x", "at x = 1e-2, x² is as small as eps: who forgets eps is seen",
             rows((2, 2, 5), scale=1e-2)),
    _rmsnorm("large x", "at x = 100, eps is nothing, and dx is small", rows((2, 2, 5), 100.0)),
    _rmsnorm("unit gain", "as at the start of training", rows((2, 3, 4), unit_gain=True)),
    _rmsnorm("a row of zeros", "only eps keeps it finite", rows((3, 4), 1e-2, zero_row=True)),
    _rmsnorm("large eps", "eps in its proper place", rows((2, 2, 3), eps=0.5)),
    _rmsnorm("T = 1, odd C", "one row", rows((1, 1, 7))),
    _rmsnorm("C = 1", "x/|x| does not change: all of dx comes from eps", rows((3, 1), 1e-2)),
    _rmsnorm("no batch", "x is a single row", rows((5,))),
    _rmsnorm("wider", "as large as in use, moved at once", rows((4, 16, 96)),
             entrywise=False),

    _layernorm("unit scale", "the ordinary case", rows((2, 3, 5), bias=True)),
    _layernorm("small x", "at x = 1e-2, the variance is as small as eps: who forgets eps is seen",
               rows((2, 2, 5), scale=1e-2, bias=True)),
    _layernorm("large x", "at x = 100, eps is nothing, and dx is small",
               rows((2, 2, 5), 100.0, bias=True)),
    _layernorm("far from 0", "who squares before the mean is taken off loses five digits here",
               rows((2, 2, 4), shift=300.0, bias=True), reach=1e-3),
    _layernorm("unit gain", "as at the start of training: dx is at right angles to all ones",
               rows((2, 3, 4), unit_gain=True, bias=True)),
    _layernorm("a row of equal channels", "variance 0: only eps keeps it finite",
               rows((3, 4), 1e-2, zero_row=True, bias=True)),
    _layernorm("large eps", "eps in its proper place", rows((2, 2, 3), eps=0.5, bias=True)),
    _layernorm("T = 1, odd C", "one row", rows((1, 1, 7), bias=True)),
    _layernorm("C = 1", "one channel is its own mean: y = b whatever x is, so dx = dw = 0",
               rows((3, 1), bias=True), zero=("x", "w")),
    _layernorm("no batch", "x is a single row", rows((5,), bias=True)),
    Case("layernorm", "no bias", "as in a model without biases", layernorm_forward,
         without_bias_backward, rows((2, 2, 5)), ("x", "w")),
    _layernorm("wider", "as large as in use, moved at once", rows((4, 16, 96), bias=True),
               entrywise=False),

    _position("from the start", "the texts of a batch share the table", places((3, 4, 2), 5)),
    _position("some way in", "as when a text is continued", places((2, 2, 3), 6, start=3)),
    _position("T = 1", "one place; all other rows get zero", places((2, 1, 3), 3, start=2)),
    _position("wider", "as large as in use, moved at once", places((4, 16, 32), 24),
              entrywise=False),

    _rope("from the start", "position 0 does not turn", turned((2, 3, 2, 4))),
    _rope("from position 1000", "as when a text is continued", turned((1, 3, 2, 6), 1000)),
    _rope("T = 1", "one token, some way in", turned((2, 1, 1, 4), 7)),
    _rope("D = 2", "a single plane", turned((1, 4, 2, 2), 1)),
    _rope("wider", "the usual wavelengths", turned((2, 32, 4, 32), theta=10_000.0),
          entrywise=False),

    _attention("every head its own", "the ordinary case, G = H", heads(2, 4, 2, 3)),
    _attention("grouped heads", "the gradients of R queries add in one key, 1 < G < H",
               heads(1, 3, 4, 2, G=2)),
    _attention("one key head", "all queries share it, G = 1", heads(2, 3, 3, 2, G=1)),
    _attention("T = 1", "a softmax of one is 1, whatever q and k are: dq = dk = 0",
               heads(2, 1, 2, 3), zero=("q", "k")),
    _attention("one query, a long past", "as when sampling: the query is the last of S places",
               heads(2, 1, 4, 2, G=2, S=5)),
    _attention("some queries, a past", "the queries are the last T of S places",
               heads(1, 3, 2, 2, S=5)),
    _attention("a loud future", "the masked scores are the largest: a leak would be heard",
               heads(1, 4, 2, 3, loud_future=True)),
    _attention("large scores", "the softmax is nearly a maximum", heads(1, 4, 2, 4, scale=3.0)),
    _attention("D = 1", "one channel a head", heads(1, 3, 2, 1)),
    _attention("beyond exp", "scores around 800: the softmax does not care, exp does",
               heads(1, 3, 1, 4, shift=1600.0), reach=0.02),
    _attention("wider", "as large as in use, moved at once", heads(2, 24, 6, 16, G=2),
               entrywise=False),

    _rope_attention("every head its own", "queries and keys are turned, values are not",
                    turned_heads(2, 3, 2, 2, 4)),
    _rope_attention("grouped heads", "each part of qkv gets its own gradient, G < H",
                    turned_heads(1, 3, 4, 2, 2)),
    _rope_attention("wider", "as large as in use, moved at once",
                    turned_heads(2, 24, 6, 2, 16), entrywise=False),

    _swiglu("unit scale", "the ordinary case", gates((2, 3, 6))),
    _swiglu("shut and open gates", "gates from −30 to 30: both ends of the sigmoid",
            gates((2, 10), spread=30.0)),
    _swiglu("where it bends", "gates from −5 to 5", gates((3, 8), spread=5.0)),
    _swiglu("small x", "near 0, silu is x/2", gates((2, 2, 4), 1e-2)),
    _swiglu("beyond exp", "gates to ±1000: exp(1000) overflows", gates((2, 8), spread=1000.0)),
    _swiglu("F = 1", "one gate, one value", gates((1, 1, 2))),
    _swiglu("no batch", "x is a single row", gates((6,))),
    _swiglu("wider", "as large as in use, moved at once", gates((4, 16, 128)),
            entrywise=False),

    _relu("unit scale", "the ordinary case", channels((2, 3, 5))),
    _relu("small x", "near the corner", channels((2, 2, 4), 1e-2)),
    _relu("large x", "to ±1000", channels((2, 6), spread=1000.0)),
    _relu("wider", "as large as in use, moved at once", channels((4, 16, 64)), entrywise=False),
    _gelu("unit scale", "the ordinary case", channels((2, 3, 5))),
    _gelu("where it bends", "from −4 to 4", channels((3, 8), spread=4.0)),
    _gelu("both ends", "from −12 to 12: Φ from nothing to 1", channels((2, 10), spread=12.0)),
    _gelu("small x", "near 0, gelu is x/2, and Φ is found from a difference",
          channels((2, 2, 4), 1e-2)),
    _gelu("beyond exp", "to ±1000: nothing overflows", channels((2, 6), spread=1000.0)),
    _gelu("wider", "as large as in use, moved at once", channels((4, 16, 64)), entrywise=False),
    _gelu_tanh("unit scale", "the ordinary case", channels((2, 3, 5))),
    _gelu_tanh("where it bends", "from −4 to 4", channels((3, 8), spread=4.0)),
    _gelu_tanh("small x", "near 0, gelu is x/2", channels((2, 2, 4), 1e-2)),
    _gelu_tanh("beyond exp", "to ±1000: nothing overflows", channels((2, 6), spread=1000.0)),
    _gelu_tanh("wider", "as large as in use, moved at once", channels((4, 16, 64)),
               entrywise=False),

    _dropout("a fifth", "the ordinary case", masked((2, 3, 5), 0.2)),
    _dropout("later rows", "the mask of x's own place", masked((1, 3, 5), 0.5, start=30)),
    _dropout("nearly all", "what is left is scaled up tenfold", masked((4, 10), 0.9)),
    _dropout("nothing", "a rate of 0 is the identity", masked((2, 3), 0.0)),
    _dropout("wider", "as large as in use, moved at once", masked((4, 16, 64), 0.3),
             entrywise=False),

    _attention_dropout("a fifth", "the ordinary case", forgetful(heads(2, 4, 2, 3), 0.2)),
    _attention_dropout("grouped heads", "each query head has a mask of its own, G < H",
                       forgetful(heads(1, 3, 4, 2, G=2), 0.4)),
    _attention_dropout("later rows", "the mask of the weights' own place",
                       forgetful(heads(1, 4, 2, 3), 0.5, start=96)),
    _attention_dropout("some queries, a past", "the weights of T queries and S keys",
                       forgetful(heads(1, 3, 2, 2, S=5), 0.3)),
    _attention_dropout("a loud future", "what is masked and what is dropped are two things",
                       forgetful(heads(1, 4, 2, 3, loud_future=True), 0.3)),
    _attention_dropout("nothing", "a rate of 0 is attention", forgetful(heads(1, 4, 2, 3), 0.0)),
    _attention_dropout("wider", "as large as in use, moved at once",
                       forgetful(heads(2, 24, 6, 16, G=2), 0.2), entrywise=False),

    _loss("a batch of sequences", "the mean is over all B·T rows", guesses((2, 3, 5))),
    _loss("rows", "logits are a matrix", guesses((4, 3))),
    _loss("N = 1", "one row", guesses((1, 1, 4))),
    _loss("no batch", "logits are a single row, and the target a single number", guesses((4,))),
    _loss("V = 1", "the only token is certain: loss 0 and dlogits 0", guesses((2, 3, 1)),
          zero=("logits",)),
    _loss("first and last", "targets at both ends of the vocabulary",
          guesses((1, 3, 4), targets=[[0, 3, 0]])),
    _loss("large logits", "between −50 and 50: certain, and often wrong", guesses((2, 3, 4), 25.0)),
    _loss("beyond exp", "logits around 800: the softmax does not care, exp does",
          guesses((2, 2, 4), scale=4.0, shift=800.0), reach=0.02),
    _loss("wider", "as large as in use, moved at once", guesses((4, 16, 97)),
          entrywise=False),
    _smooth("a batch of sequences", "a tenth goes to the vocabulary",
            guesses((2, 3, 5), smoothing=0.1)),
    _smooth("rows", "half of it", guesses((4, 3), smoothing=0.5)),
    _smooth("large logits", "certain, which is too certain",
            guesses((2, 3, 4), 25.0, smoothing=0.2)),
    _smooth("no smoothing", "the plain loss", guesses((2, 5), smoothing=0.0)),
    _smooth("wider", "as large as in use, moved at once", guesses((4, 16, 97), smoothing=0.1),
            entrywise=False),

    Case("block", "split_qkv", "backward puts the heads together again",
         heads_split_forward, heads_split_backward,
         lambda rng: {"qkv": rng.standard_normal((2, 2, 10)), "config": _GROUPED}, ("qkv",)),
    Case("block", "join_qkv", "backward splits the heads again",
         heads_join_forward, heads_join_backward,
         lambda rng: {**normal(q=(2, 2, 3, 2), k=(2, 2, 1, 2), v=(2, 2, 1, 2))(rng),
                      "config": _GROUPED},
         ("q", "k", "v")),
    _block("every head its own", "the ordinary case, G = H", tiny(), 2, 3),
    _block("grouped heads", "G = 1, and not at the start", _GROUPED, 1, 3, start=5),
    _block("T = 1", "only the values carry a gradient through attention", tiny(), 1, 1),
    _block("GPT-2's", "layernorm, biases everywhere, and no rotation", tiny(**_GPT2), 1, 3),
    _block("relu", "the corner between two matrices, and layernorm without biases",
           tiny(norm="layernorm", mlp="relu", position="none"), 1, 3),
    _block("gelu, rope and biases", "a bias is turned with its query",
           tiny(mlp="gelu", bias=True), 1, 3),
    _block("swiglu with biases", "gates and values have one each", tiny(bias=True), 1, 2),
    _block("dropout", "the masks of both branches", tiny(dropout=0.3), 1, 3),
    _block("attention dropout", "RoPE by itself, and then weights that are dropped",
           _GROUPED_FORGETFUL, 1, 4),
    _block("attention dropout, GPT-2's", "heads of one product, dropped, without a rotation",
           tiny(**_GPT2, attention_dropout=0.3), 1, 4),
    _block("no MLP", "attention alone", tiny(mlp="none"), 2, 3),
    _block("wider", "as large as in use, moved at once",
           tiny(n_head=4, n_kv_head=2, n_embd=32, n_hidden=40), 1, 16, entrywise=False),

    _model("tied", "the table's two gradients add", tiny(), 1, 2, 3),
    _model("untied", "the table and the head each have their own", tiny(tie=False), 1, 2, 3),
    _model("a head with a bias", "and queries, keys and values without",
           tiny(**_GPT2, n_layer=1, qkv_bias=False, head_bias=True), 1, 2, 3),
    _model("accumulated", "the gradients of two batches add up", tiny(n_layer=1), 2, 1, 3),
    _model("GPT-2's", "a table of places, biases, and a norm with one", tiny(**_GPT2, n_layer=1),
           1, 2, 3),
    _model("wider, GPT-2's", "as large as in use, moved at once",
           tiny(vocab_size=97, block_size=16, n_layer=2, n_head=3, n_embd=24, n_hidden=40,
                **_GPT2), 2, 2, 12, entrywise=False),
    _model("smoothed", "targets that keep four fifths, of two batches", tiny(n_layer=1), 2, 1, 3,
           smoothing=0.2),
    _model("head in parts", "two places, then one: gradients add",
           tiny(n_layer=1, head_bias=True), 1, 2, 3, parts=2),
    _model("recomputed", "each block's cache is made again, with the masks that it had",
           tiny(dropout=0.3, attention_dropout=0.3, recompute=True), 1, 2, 3),
    _model("dropout", "the masks of all layers are made again",
           tiny(dropout=0.3, attention_dropout=0.3), 1, 2, 3),
    _logits("grouped heads, from the logits", "any dlogits, not only those of the loss",
            tiny(n_head=3, n_kv_head=1, n_embd=6, n_layer=1), 2, 3),
    _model("wider", "as large as in use, moved at once",
           tiny(vocab_size=97, block_size=16, n_layer=3, n_head=6, n_kv_head=2, n_embd=24,
                n_hidden=40), 2, 2, 12, entrywise=False),
)  # fmt: skip

LAYERS = tuple(dict.fromkeys(case.layer for case in CASES))


def cases_of(layer):
    """The rows of one layer.

    Raises: ValueError if no row has this layer.
    """
    if layer not in LAYERS:
        raise ValueError(f"there is no layer {layer!r}: choose one of {', '.join(LAYERS)}")
    return tuple(case for case in CASES if case.layer == layer)


def one_more(layer, name, make, like=""):
    """A row that is not in the table, with the functions of one that is: for kernels, say.

    Args:    layer, name and make, as of a Case; like, how the name of a row begins that has the
             functions, where a layer has several.
    Returns: a Case.
    """
    first = next(case for case in cases_of(layer) if case.name.startswith(like))
    return first.replace(name=name, note="", make=make)
