"""The loss curve of a run as a picture: `python -m npgpt.plot RUN` draws it anew."""

import sys
import warnings
from pathlib import Path

from npgpt.errors import UserError
from npgpt.runs import find_run, read_log, typed

INK, TRAIN, VALID, FLOOR = "#333333", "#9bb8d3", "#c1440e", "#2e7d32"


def plot_run(run_dir):
    """Draw training loss, validation loss and, where it is known, the source's entropy.

    Args:    run_dir, whose log.jsonl is read; loss.png is written there.
    Returns: the path of the picture.
    Raises:  UserError if matplotlib is missing or the log is empty.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            'the loss curve needs matplotlib: run python -m pip install -e ".[plot]", '
            f"then python -m npgpt.plot {typed(run_dir)}"
        ) from None
    run_dir = Path(run_dir)
    records = read_log(run_dir)
    # A loss that was not finite stands in the log as null, and has no place on a curve.
    train, valid = (
        [(r["step"], r[name]) for r in records if r.get(name) is not None]
        for name in ("loss", "valid_loss")
    )
    if not train:
        raise UserError(f"{run_dir / 'log.jsonl'} has no training step to draw")
    floor = next((r["floor"] for r in records if r.get("floor") is not None), None)
    title = next((r["title"] for r in records if "title" in r), run_dir.name)
    title = title.encode("utf-8", "replace").decode()  # the bytes of a name may be no characters

    shown = [y for _, y in train + valid] + ([] if floor is None else [floor])
    bottom = max(0.9 * min(shown), 1e-3)  # a logarithm has no zero, and a model can learn by heart
    top = 1.1 * max(*shown, bottom)

    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(*_above(bottom, train), color=TRAIN, linewidth=0.8, label="training batch")
    if valid:
        label = f"validation, {valid[-1][1]:.3f} at the end"
        dots = {"marker": "o", "markersize": 3, "clip_on": False}  # the last lies on the edge
        axes.plot(*_above(bottom, valid), color=VALID, linewidth=1.8, label=label, **dots)
    if floor is not None:
        label = f"entropy of the source, {floor:.3f}"
        axes.axhline(floor, color=FLOOR, linewidth=1.2, linestyle="--", label=label)
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    ticks = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 7, 10)
    axes.set_yticks([t for t in ticks if bottom <= t <= top])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(_none())
    axes.set_xlim(0, max(x for x, _ in train))
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    axes.set_title(title, loc="left", color=INK, parse_math=False)  # a $ in a name is a $
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path = run_dir / "loss.png"
    try:
        with warnings.catch_warnings():  # a name in a script that the font lacks is drawn as boxes
            warnings.filterwarnings("ignore", message="Glyph")
            figure.savefig(path)
    except OSError as error:
        raise UserError(f"could not write {path} ({error.strerror}): make room there") from None
    return path


def _above(bottom, points):
    """The places of a curve, none of them below the picture."""
    x, y = zip(*points)
    return x, [max(value, bottom) for value in y]


def _none():
    from matplotlib.ticker import NullLocator

    return NullLocator()


def main(argv):
    if len(argv) > 1 or "--help" in argv or "-h" in argv:
        print("usage: python -m npgpt.plot [RUN]\n\nDraw loss.png of a run, the newest if none.")
        return 0 if "--help" in argv or "-h" in argv else 2
    try:
        print(plot_run(find_run(argv[0] if argv else None)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
