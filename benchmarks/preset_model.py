"""The model of a preset, for benchmarks that need no text."""

from npgpt.settings import Settings, with_preset
from npgpt.training import model_config

LETTERS = 65  # of Shakespeare, for presets that read letters: others say how many tokens they have


def preset_model(name):
    """What a preset trains.

    Returns: its GPTConfig; how much it smooths the targets.
    """
    s = with_preset(Settings(preset=name), {"preset"})
    config = model_config(s, LETTERS if s.tokenizer == "char" else s.vocab_size)
    return config, s.label_smoothing
