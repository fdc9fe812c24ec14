"""How the tables look: colours where there is a terminal, and columns that stay in line."""

import os
import sys
import unicodedata

GREEN, RED, DIM, BOLD = "32", "31", "2", "1"


def pad(text, width):
    """The text with spaces up to a width; the hat on an x takes no room of its own."""
    return text.ljust(width + sum(unicodedata.combining(letter) > 0 for letter in text))


def number(error):
    """An error in ten columns."""
    return f"{'0' if error == 0.0 else f'{error:.1e}':>10}"


def verdict(ok):
    return paint("pass", GREEN) if ok else paint("FAIL", RED)


def paint(text, code):
    """Colour the text, if it goes to a terminal and NO_COLOR isn't set (no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
        return text
    if os.name == "nt":
        os.system("")  # an empty command makes a Windows console understand colours
    return f"\x1b[{code}m{text}\x1b[0m"
