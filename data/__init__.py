"""Where the text comes from: one recipe a file, the storybook first because it needs no network.

    storybook       stories told by a grammar, whose entropy is known; made here
    tinystories     2.7 million stories, told by GPT-4 with the words of a small child; 2.2 GB
    shakespeare     forty thousand lines of his plays; 1.1 MB
    fineweb-edu     ten billion tokens of the teaching part of the web; 28.5 GB, never stored

`python train.py --data NAME` uses a recipe, `python -m data.NAME --help` explains it. A recipe
that fetches its text has a function `sources(folder, log)`, which returns the text to train on
and the text to validate on, each an `npgpt.corpus.sources.Source`.
"""

import importlib
from collections.abc import Mapping


class Recipes(Mapping):
    """The recipes by name. A recipe's module is imported when it is asked for, and not before."""

    names = ("storybook", "tinystories", "shakespeare", "fineweb-edu")

    def __getitem__(self, name):
        if name not in self.names:
            raise KeyError(name)
        return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")

    def __contains__(self, name):
        return name in self.names

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return len(self.names)


RECIPES = Recipes()
