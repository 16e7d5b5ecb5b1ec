"""Several processes at one evaluation, see `robustsynth.processes`."""

from __future__ import annotations

from robustsynth.processes import ALONE, Workers

__all__ = ["ALONE", "Workers"]
