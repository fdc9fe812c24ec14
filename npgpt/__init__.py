"""npgpt: a GPT whose every derivative is written by hand in NumPy.

The symbols, the same in every file
    B  batch: sequences side by side       C  channels, the width of the stream (n_embd)
    T  time: places in a sequence          H  attention heads (n_head), D channels each (head_dim)
    V  vocabulary: different tokens        G  key/value heads (n_kv_head), R = H / G queries to each
    L  layers: the number of blocks        F  hidden channels of the MLP (n_hidden)

    y, cache = layer_forward(x, w)         dy comes in, dx and dw go out:
    dx, dw   = layer_backward(dy, cache)   dname is ∂L/∂name, and has the shape of name

    L in ∂L/∂x is the loss, one number. x @ w is the product of matrices, and x · w that of
    numbers, entry by entry; where it is a dot product of vectors, as q · k, the text says so.

Reading order
    layers/        the lecture; begin with linear, embedding, rmsnorm, rope, attention, swiglu, loss
    ../lectures/   a climb in five short programs, from a table of letter pairs to a GPT
    parameters.py  the shape of a model, and its weights by name
    block.py       layers composed, and the composition read upwards: one block
    model.py       the same for the whole
    chance.py      what a step of training drops
    optim.py       what to do with a gradient: clipping, the schedule, AdamW
    loss_scale.py  how gradients fit into half precision
    tokenizer/     text to numbers and back
    corpus/        a text of any size, from anywhere, to a file of numbers
    data.py        numbers to batches
    parallel.py    one batch on several threads
    ../train.py    the loop that puts it together
    sampling.py    one token after another, with a memory of keys and values
    evaluate.py    how good it is, and how far that number may be off
    interchange/   models from elsewhere, and ours for elsewhere
    ../gradcheck/  why you may believe all of the above
"""

__version__ = "0.1.0"
