"""What a person chose in E4T Settings, before it is known which domain it is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ....e4t_core.loop_settings import SamplingSettings
from ....e4t_core.methods.e4t.settings import PRESETS, TuningSettings
from ....e4t_core.settings import shown, with_changes


@dataclass(frozen=True)
class SettingsChoice:
    """A preset, and what is to be other than in it.

    Attributes:
        preset: name of one of the paper's; empty: the domain's own.
        changes: settings of tuning by name; every other one stays the preset's.
        sampling: how the word is drawn.

    Raises:
        ValueError: a value is out of range, or the preset is unknown.
    """

    preset: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)

    def __post_init__(self) -> None:
        if self.preset and self.preset not in PRESETS:
            raise ValueError(f"Preset {self.preset[:60]!r} is unknown: it must be one of {', '.join(PRESETS)}.")
        # A value out of range is told by the node where it was typed.
        with_changes(PRESETS.get(self.preset, TuningSettings()), self._alone())

    def _alone(self) -> dict[str, Any]:
        """The changes, checked without the preset that they belong to."""
        trains = {"train_encoder", "train_offsets", "train_unet"}
        return {name: value for name, value in self.changes.items() if self.preset or name not in trains}

    def of(self, own: TuningSettings) -> TuningSettings:
        """The settings for a domain whose own preset is ``own``.

        Raises:
            ValueError: together they would train nothing.
        """
        return with_changes(PRESETS.get(self.preset, own), self.changes)

    def notes(self, own: TuningSettings) -> tuple[str, ...]:
        """What is other than in the domain's own preset, as one sentence; nothing, if nothing is."""
        return (self.told(own),) if self.of(own) != own else ()

    def told(self, own: TuningSettings | None = None) -> str:
        """What results, for the node: the preset, and each change with the preset's value in brackets."""
        name = f"preset {self.preset}" if self.preset else "the domain's own preset"
        preset = PRESETS.get(self.preset, own)
        values = [
            f"{key} {shown(value)}" + (f" ({shown(getattr(preset, key))})" if preset is not None else "")
            for key, value in self.changes.items()
            if preset is None or getattr(preset, key) != value
        ]
        if not values:
            return f"Settings: {name}."
        brackets = " (in brackets: the preset's)" if preset is not None else ""
        return f"Settings: {name}, but {', '.join(values)}{brackets}."
