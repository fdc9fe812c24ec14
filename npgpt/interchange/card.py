"""The page that goes with an exported model: what it is, how it learned, how to run it."""

import shutil
from pathlib import Path

from npgpt.checkpoint import write_atomic
from npgpt.errors import UserError
from npgpt.model import count_parameters
from npgpt.plot import plot_run
from npgpt.runs import read_log

CURVE = "loss.png"
ROWS = 12  # of the table of losses, at most


def write_card(folder, run_dir, checkpoint, config, dtype="float32"):
    """Write README.md, and the loss curve beside it where it can be drawn.

    Args:    folder; run_dir, whose log is read; checkpoint; config; dtype of the weights.
    Raises:  UserError if the folder can't be written.
    """
    settings = checkpoint.state.get("settings", {})
    lines = [
        "---", "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- npgpt",
        "---", "", f"# {Path(run_dir).name}", "",
        f"A GPT of {count_parameters(config):,} parameters, in {dtype}: {config.n_layer} layers, "
        f"{config.n_embd} channels, {config.n_head} heads, a vocabulary of "
        f"{config.vocab_size:,} tokens, a context of {config.block_size:,}. Its derivatives were "
        "written by hand, in NumPy, with npgpt.", "",
        "It continues a text in the manner of what it was trained on, and is no source of facts.",
        "", "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
        'model = AutoModelForCausalLM.from_pretrained("PATH OF THIS FOLDER")',
        'tokenizer = AutoTokenizer.from_pretrained("PATH OF THIS FOLDER")', "```", "",
        "## Training", "",
    ]  # fmt: skip
    if settings:
        tokens = checkpoint.step * settings["batch_size"] * settings["accumulate"]
        lines += [
            f"{checkpoint.step:,} steps, {tokens * settings['block_size']:,} tokens, of "
            f"`{settings['data']}`; AdamW with a largest learning rate of {settings['lr']:g}, "
            f"weight decay {settings['weight_decay']:g}, seed {settings['seed']}.", "",
        ]  # fmt: skip
    else:
        lines += [f"Not trained here: read from `{checkpoint.state.get('origin')}`.", ""]
    losses = [
        (r["step"], r["valid_loss"], r.get("bits_per_byte"))
        for r in read_log(run_dir)
        if r.get("valid_loss") is not None and r["step"] <= checkpoint.step
    ]
    if losses:
        if copy_curve(folder, run_dir):
            lines += [f"![The loss while it learned]({CURVE})", ""]
        lines += ["| step | validation loss, nats a token | bits per byte |", "|---:|---:|---:|"]
        every = -(-len(losses) // ROWS)
        shown = losses[::-1][::every][::-1]  # the last one always
        lines += [f"| {step:,} | {loss:.4f} | {bits or 0:.4f} |" for step, loss, bits in shown]
    write_atomic(Path(folder) / "README.md", ("\n".join(lines) + "\n").encode())


def copy_curve(folder, run_dir):
    """Put the picture of the loss into a folder; returns whether there is one."""
    try:
        shutil.copyfile(plot_run(run_dir), Path(folder) / CURVE)
        return True
    except (UserError, OSError):  # without matplotlib there is the table
        return False
