"""The model of a preset, for benchmarks that need no text."""

from npgpt.plan import assumed_tokens
from npgpt.settings import Settings, with_preset
from npgpt.training import model_config


def preset_model(name):
    """What a preset trains.

    Returns: its GPTConfig; how much it smooths the targets.
    """
    s = with_preset(Settings(preset=name), {"preset"})
    config = model_config(s, assumed_tokens(s))
    return config, s.label_smoothing
