"""The tokenizer beside its peers: cutting words, learning a vocabulary, encoding.

    python -m benchmarks.tokenizer --text books.txt --vocab gpt2
    python -m benchmarks.tokenizer                       a text made here, and its own vocabulary

--text is a UTF-8 file, also .xz or .gz, and may be given several times; --vocab a folder with
GPT-2's two files, or a tokenizer that npgpt saved. Without a text, stories from data.storybook
are told. They have few words, so all programs are faster on them, and npgpt most of all: the bars
are meant for prose.

What is compared with what
    Cutting words. `regex` runs GPT-2's pattern over the text and throws the words away. tiktoken
    does not give its words away, so it gets a vocabulary in which every word of the text is one
    token: encoding is then cutting, one look into a hash table for each word, and a number
    written down; and the ids are taken as an array, for a list would cost as much again. So its
    figure is a little too low. npgpt starts from bytes, checks that they are UTF-8, and makes an
    array of the places where words end.

    Encoding. From a str to an array of ids; "cold" is a tokenizer that has seen no text yet,
    "warm" one that has seen this text. For several threads the text is a few hundred documents.
    tiktoken then makes lists, as its function for many documents does, and once more arrays, with
    a pool of threads around its quickest function; npgpt's ids include an end of text after each.

    Learning. A vocabulary of --entries from a list of documents, npgpt and `tokenizers` on the
    same threads; once more in a process of its own, for the peak of its memory; and from a text
    five times as long, which is the same text with its vowels exchanged in five ways, and so
    with nearly five times as many different words, more than a text of that length has.

All ids are compared with tiktoken's, for the whole text. Where the editions of Unicode differ (see
npgpt/tokenizer/unicode_classes.py), so may ids, for characters that one of them does not know.
"""

import gzip
import importlib.util
import itertools
import lzma
import os
import statistics
import subprocess
import sys
import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.report import Report, alternate, option_parser, ratio, say
from npgpt.cli import main_with_errors
from npgpt.errors import UserError
from npgpt.tokenizer import END_OF_TEXT, bpe, load_tokenizer
from npgpt.tokenizer.fast import FastBPETokenizer
from npgpt.tokenizer.scan import as_bytes, invalid_utf8, scan_ends

MB = 1_000_000
SLOW_PEER = 8 * MB  # characters that slow peers get: their speed does not depend on how many
DOCUMENTS = 200
LARGER = 5  # times as much text, to learn from once more
STORYBOOK_WORDS, STORYBOOK_ENTRIES = 400_000, 600
LEARN = """
import sys
from pathlib import Path
from benchmarks.tokenizer import documents_of
from npgpt.plan import peak_memory_bytes
from npgpt.tokenizer.fast import FastBPETokenizer
text = Path(sys.argv[1]).read_text("utf-8")
before = peak_memory_bytes()
FastBPETokenizer.train(documents_of(text), int(sys.argv[2]))
print(before, peak_memory_bytes())
"""


def main(argv=None):
    parser = option_parser(__doc__)
    parser.add_argument("--text", action="append", metavar="FILE", help="a text; may be repeated")
    parser.add_argument("--vocab", metavar="DIR", help="a vocabulary to encode with")
    parser.add_argument("--entries", type=int, metavar="N", help="how many to learn (10,000)")
    parser.add_argument("--megabytes", type=int, default=64, metavar="N", help="of text, at most")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="for what uses several")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of every measurement")
    options = parser.parse_args(argv)
    use_threads(options.threads)
    text = read_texts(options.text, options.megabytes) if options.text else tell_stories()
    entries = options.entries or (10_000 if options.text else STORYBOOK_ENTRIES)
    say(f"{len(text.encode()) / MB:,.1f} MB of text, {options.threads} threads")

    report = Report("the tokenizer beside its peers")
    measure_cutting(report, text, options.rounds)
    measure_learning(report, text, entries, options)
    if options.vocab:
        tokenizer = load_tokenizer(options.vocab)
    else:
        tokenizer = FastBPETokenizer.train([text[:SLOW_PEER]], entries)
    measure_encoding(report, text, tokenizer, options)
    return report.finish(options)


def use_threads(threads):
    """Keep this process, and every library in it, to so many processors."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # read by `tokenizers` when it is imported
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    if hasattr(os, "sched_setaffinity"):
        processors = sorted(os.sched_getaffinity(0))
        if len(processors) < threads:
            raise UserError(f"--threads {threads}: there are only {len(processors)} processors")
        os.sched_setaffinity(0, processors[:threads])


def read_texts(paths, megabytes):
    """The texts of files, also packed ones, one after the other, up to so many megabytes."""
    raw = b""
    for path in paths:
        opener = {".xz": lzma.open, ".gz": gzip.open}.get(Path(path).suffix, open)
        try:
            with opener(path, "rb") as file:
                raw += file.read(megabytes * MB - len(raw))
        except (OSError, lzma.LZMAError, EOFError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
    end = invalid_utf8(as_bytes(raw), 0, len(raw))
    if len(raw) - end > 3:
        raise UserError(f"the text is not UTF-8: byte {end:,} is 0x{raw[end]:02x}")
    return raw[:end].decode("utf-8").replace(END_OF_TEXT, "\n")


def tell_stories():
    """A text for who has none at hand."""
    from data.storybook import told

    say("no --text: telling stories from data.storybook, of few words; the bars are for prose")
    return "\n\n".join(story.text for story in told(STORYBOOK_WORDS, seed=0))


def documents_of(text):
    """The text as DOCUMENTS of about equal length, cut at the ends of lines."""
    lines = text.splitlines(keepends=True)
    lengths = np.cumsum([len(line) for line in lines])
    cuts = np.searchsorted(lengths, np.arange(DOCUMENTS + 1) * len(text) / DOCUMENTS)
    parts = ["".join(lines[a:b]) for a, b in itertools.pairwise(cuts)]
    return [part for part in [*parts, "".join(lines[cuts[-1] :])] if part]


def peer(name):
    """An optional library, or None, said loudly."""
    if importlib.util.find_spec(name) is None:
        say(f"{name} is not installed: its rows are left out")
        return None
    return __import__(name)


def add_speeds(report, title, seconds, megabytes, ours, bars):
    """The speed of each contestant, and how many times faster than some of them npgpt is.

    Args:    ours, the contestant to compare; bars, a dict from peer to how many times at least.
    """
    for name, times in seconds.items():
        report.add(f"{title}: {name}", megabytes / statistics.median(times), "MB/s")
    for rival in [name for name in bars if name in seconds]:
        report.add(f"{title}: {ours} / {rival}", ratio(seconds, rival, ours), "x", bars[rival])


def measure_cutting(report, text, rounds):
    """GPT-2's pattern, on one thread."""
    text = text[:SLOW_PEER]
    raw = text.encode("utf-8")

    def ours():
        data = as_bytes(raw)
        assert invalid_utf8(data, 0, len(data)) == len(data)
        return scan_ends(data)

    contestants = {
        "npgpt": ours,
        "regex": lambda: deque(bpe.PATTERN.finditer(text), maxlen=0),
    }
    tiktoken = peer("tiktoken")
    if tiktoken:
        ends = ours().tolist()
        words = {raw[start:end] for start, end in zip([0, *ends], ends)}
        tokens = dict.fromkeys([*bpe.BYTES, *sorted(words)])
        encoding = tiktoken.Encoding(
            "words", pat_str=tiktoken_pattern(),
            mergeable_ranks={token: i for i, token in enumerate(tokens)}, special_tokens={},
        )  # fmt: skip
        assert len(encoding.encode_to_numpy(text)) == len(ends)
        contestants["tiktoken"] = lambda: encoding.encode_to_numpy(text)
    seconds, bars = alternate(contestants, rounds), {"regex": 25, "tiktoken": 20}
    add_speeds(report, "cutting words, 1 thread", seconds, len(raw) / MB, "npgpt", bars)


def tiktoken_pattern():
    """GPT-2's pattern as tiktoken writes it, to the same effect but quicker to run there."""
    from tiktoken_ext.openai_public import r50k_pat_str

    return r50k_pat_str


def measure_learning(report, text, entries, options):
    """A vocabulary from the whole text, and the peak of memory."""
    documents, megabytes = documents_of(text), len(text.encode()) / MB
    title = f"learning {entries:,} entries, {options.threads} threads"
    contestants = {"npgpt": lambda: FastBPETokenizer.train(documents, entries)}
    tokenizers = peer("tokenizers")
    if tokenizers:
        contestants["tokenizers"] = lambda: learn_with(tokenizers, documents, entries)
    contestants["npgpt"]()  # compiles
    seconds = alternate(contestants, min(options.rounds, 3))
    for name, times in seconds.items():
        report.add(f"{title}, {megabytes:,.0f} MB: {name}", statistics.median(times), "s")
    if tokenizers:
        report.add(f"{title}: npgpt / tokenizers", ratio(seconds, "tokenizers", "npgpt"), "x", 12)
    larger = in_other_words(documents, LARGER)
    seconds = alternate({"npgpt": lambda: FastBPETokenizer.train(larger, entries)}, 3)["npgpt"]
    megabytes, bar = sum(map(len, larger)) / MB, 3 if megabytes >= 60 else None
    report.add(f"{title}, {megabytes:,.0f} MB: npgpt", statistics.median(seconds), "s", at_most=bar)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "text.txt")
        path.write_bytes(text.encode("utf-8"))
        command = [sys.executable, "-c", LEARN, str(path), str(entries)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before, peak = map(int, told.split())
    report.add("learning: peak memory of the process", peak / MB, "MB")
    report.add("learning: of which the text, read, and Python", before / MB, "MB")


def in_other_words(documents, times):
    """The documents several times, as bytes, in each round with other vowels, so other words."""
    vowels = "aeiou"
    turned = [str.maketrans(vowels, vowels[i:] + vowels[:i]) for i in range(times)]
    return [document.translate(turn).encode("utf-8") for turn in turned for document in documents]


def learn_with(tokenizers, documents, entries):
    """The same with Hugging Face's library, its pre-tokenizer set to GPT-2's pattern."""
    tok = tokenizers.Tokenizer(tokenizers.models.BPE())
    tok.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=entries, special_tokens=[END_OF_TEXT], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tok.train_from_iterator(documents, trainer)
    return tok


def measure_encoding(report, text, tokenizer, options):
    """A text to ids, on one thread and on several, and whether they are tiktoken's ids."""
    documents, megabytes = documents_of(text), len(text.encode()) / MB
    rounds = min(options.rounds, 3)
    tiktoken = peer("tiktoken")
    warm, cold = tokenizers_for(tokenizer, 1, rounds)
    ids = warm.encoder.encode_text(text)
    contestants = {
        "npgpt, warm": lambda: warm.encoder.encode_text(text),
        "npgpt, cold": lambda: next(cold).encoder.encode_text(text),
    }
    if tiktoken:
        twin = tiktoken_twin(tiktoken, tokenizer)

        def as_array(text):
            return twin.encode_to_numpy(text, disallowed_special=())

        report.add("ids that differ from tiktoken's", differences(ids, as_array(text)), at_most=0)
        contestants["tiktoken"] = lambda: as_array(text)
    seconds = alternate(contestants, rounds)
    add_speeds(report, "encoding, 1 thread", seconds, megabytes, "npgpt, cold", {"tiktoken": 6})

    warm_all, cold_all = tokenizers_for(tokenizer, options.threads, rounds)
    warm_all.encode_documents(documents)
    contestants = {
        "npgpt, warm": lambda: warm_all.encode_documents(documents),
        "npgpt, cold": lambda: next(cold_all).encode_documents(documents),
    }
    with ThreadPoolExecutor(options.threads) as pool:
        if tiktoken:
            contestants["tiktoken"] = lambda: twin.encode_ordinary_batch(
                documents, num_threads=options.threads
            )
            contestants["tiktoken, arrays"] = lambda: list(pool.map(as_array, documents))
        seconds = alternate(contestants, rounds)
    title, bars = f"encoding, {options.threads} threads", {"tiktoken": 8, "tiktoken, arrays": None}
    add_speeds(report, title, seconds, megabytes, "npgpt, cold", bars)
    measure_hugging_face(report, text, tokenizer, title)


def tokenizers_for(tokenizer, threads, rounds):
    """A tokenizer to warm up, and an iterator of others: their vocabulary is ready, but no word."""

    def new():
        made = FastBPETokenizer(tokenizer.tokens, tokenizer.merges, tokenizer.special_tokens)
        made.encoder.threads = threads
        return made

    return new(), iter([new() for _ in range(rounds)])


def tiktoken_twin(tiktoken, tokenizer):
    """The same vocabulary in tiktoken."""
    special = set(tokenizer.special_tokens.values())
    ranks = {token: i for i, token in enumerate(tokenizer.tokens) if i not in special}
    return tiktoken.Encoding(
        "twin", pat_str=tiktoken_pattern(), mergeable_ranks=ranks,
        special_tokens=tokenizer.special_tokens,
    )  # fmt: skip


def differences(ours, theirs):
    """In how many places two sequences of ids differ; those that one of them lacks count."""
    both = min(len(ours), len(theirs))
    return int((ours[:both] != theirs[:both]).sum()) + max(len(ours), len(theirs)) - both


def measure_hugging_face(report, text, tokenizer, title):
    """`tokenizers` on the same vocabulary, and on a part of the text, as it is slow."""
    tokenizers = peer("tokenizers")
    if not tokenizers:
        return
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        model = tokenizers.models.BPE.from_file(f"{folder}/vocab.json", f"{folder}/merges.txt")
    theirs = tokenizers.Tokenizer(model)
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    part = documents_of(text[:SLOW_PEER])
    seconds = alternate({"tokenizers": lambda: theirs.encode_batch(part)}, 2)
    speed = len("".join(part).encode()) / MB / min(seconds["tokenizers"])
    report.add(f"{title}: tokenizers", speed, "MB/s")


if __name__ == "__main__":
    sys.exit(main_with_errors(main))
