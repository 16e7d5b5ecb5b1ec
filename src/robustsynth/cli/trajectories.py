"""How pictures come about, step by step, as animations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from torch import Tensor

    from robustsynth.animations import Recorder
    from robustsynth.loop import Step


def trajectory_option(function: Any) -> Any:
    """The option that asks for them."""
    return click.option(
        "--trajectory",
        type=click.Choice(["gif", "mp4"]),
        default=None,
        help="Also write how each picture comes about, step by step.",
    )(function)


def check_trajectory(ending: str | None) -> None:
    """Refuse, before any work is done, what cannot be written here."""
    if ending is not None:
        from robustsynth.animations import check_animation

        check_animation(f"trajectory.{ending}")


class Trajectories:
    """Frames of a batch's pictures, and the files that they become.

    Args:
        ending: ``gif`` or ``mp4``; None records nothing.
        names: of the pictures.
        steps: of each run of the loop.
    """

    def __init__(self, ending: str | None, names: Sequence[str], steps: int) -> None:
        self.ending, self.names, self.steps = ending, list(names), steps
        self.runs: list[dict[int, Recorder]] = []

    def add(self, places: Sequence[int], step: Step) -> None:
        """Note a step; a run of the loop begins with step 0."""
        if self.ending is None:
            return
        from robustsynth.animations import Recorder

        if step.index == 0 and (not self.runs or places[0] in self.runs[-1]):
            self.runs.append({})
        for row, place in enumerate(places):
            recorder = self.runs[-1].setdefault(place, Recorder(self.steps))
            recorder.add(step.index, step.images[row])

    def write(self, out: Path, results: Mapping[str, Tensor]) -> None:
        """``NAME.gif`` and so on: a file for each result, or all runs in one file where one result took several."""
        if self.ending is None:
            return
        from robustsynth.animations import save_animation

        out.mkdir(parents=True, exist_ok=True)
        endings = list(results)
        groups = [[run] for run in self.runs] if len(endings) > 1 else [self.runs]
        for ending, group in zip(endings, groups, strict=False):
            for place, name in enumerate(self.names):
                frames = [frame for run in group if place in run for frame in run[place].frames()]
                if frames:
                    save_animation(out / f"{name}{ending}.{self.ending}", frames)

    def write_finished(self, out: Path, places: Sequence[int]) -> None:
        """``NAME.gif`` of those places, whose frames are forgotten then: a job of many batches needs little memory."""
        if self.ending is None:
            return
        from robustsynth.animations import save_animation

        out.mkdir(parents=True, exist_ok=True)
        for place in places:
            frames = [frame for run in self.runs if place in run for frame in run.pop(place).frames()]
            if frames:
                save_animation(out / f"{self.names[place]}.{self.ending}", frames)
