"""The ladder: five short programs, each the one before and one idea more.

    python -m lectures.step1_bigram         the last letter is all that is known
    python -m lectures.step2_one_head       a look back
    python -m lectures.step3_many_heads     four looks back, for four different things
    python -m lectures.step4_feed_forward   time to think about what was seen
    python -m lectures.step5_blocks         all of it three times: a GPT

Each learns a text letter by letter for a minute or two, says how surprised it is by text that it
has not seen, and writes some of its own. A step is a forward and, line for line in the opposite
order, its backward; both call the layers of npgpt/layers, where the derivations are. What is the
same in all of them, reading, training and writing, is in common.py. docs/ladder.md has
what they reached.
"""
