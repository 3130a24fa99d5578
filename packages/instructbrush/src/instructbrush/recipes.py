"""The presets as Python objects."""

from dataclasses import fields
from typing import Any

from instructbrush.learning import LearnConfig
from instructbrush.phrases import PhraseOptions
from tenfold.config import from_dict, preset_values


def learning_preset(name: str = "small", **overrides: Any) -> tuple[LearnConfig, PhraseOptions]:
    """How `instructbrush learn --preset NAME` learns, and how it chooses its first words.

    Args:
        name: tiny or small (for the embedded editor), or paper.
        overrides: fields of either.

    Raises:
        UserError: no such preset or field.
    """
    values = preset_values("instructbrush", name, "learn") | overrides
    own = {each.name for each in fields(PhraseOptions)}
    return (
        from_dict({key: value for key, value in values.items() if key not in own}, LearnConfig, f"preset {name}"),
        from_dict({key: value for key, value in values.items() if key in own}, PhraseOptions, f"preset {name}"),
    )
