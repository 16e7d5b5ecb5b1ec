"""Loops over a task's generator: a progress bar, Ctrl-C, and animations of how images come about."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustsynth.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from robustsynth.models.card import ModelCard
    from robustsynth.models.classifier import Classifier
    from robustsynth.models.execution import Execution
    from robustsynth.solver import Progress

STOPPED = 130
"""Exit status of a command that was stopped by Ctrl-C, as shells have it."""

FRAMES = 60
"""Of an animation, at most."""


def say(text: str) -> None:
    """A line for people, beside the progress bar and apart from any output to be piped."""
    click.echo(text, err=True)


def interactive() -> bool:
    """Whether a progress bar has somebody to watch it."""
    return sys.stderr.isatty()


@contextmanager
def stoppable(*, at_once: bool = True) -> Iterator[list[int]]:
    """A list that is filled when the user asks to stop, by Ctrl-C or a polite kill; asking twice stops `at_once`."""
    asked: list[int] = []

    def note(number: int, _: object) -> None:
        if asked and at_once:
            raise KeyboardInterrupt
        asked.append(number)

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def with_bar(
    progresses: Iterator[Progress], *, total: int, name: str, asked: Sequence[int], shown: bool = True
) -> Iterator[Progress]:
    """The progresses with a bar on a terminal, until they end or the user has asked to stop.

    Args:
        progresses: of a task.
        total: steps of all images together.
        name: in front of the bar.
        asked: of `stoppable`.
        shown: whether this process shows a bar.
    """
    from tqdm import tqdm

    with tqdm(total=total, unit="step", unit_scale=True, disable=not (shown and interactive()), desc=name) as bar:
        for progress in progresses:
            if progress.step:  # x₀ is where it starts, not a step that was taken
                bar.update(len(progress.indices))
            yield progress
            if asked:
                return


def check_trajectory(ending: str | None) -> None:
    """Refuse, before any work is done, what cannot be written here."""
    if ending is not None:
        from robustsynth.animations import check_animation

        check_animation(f"trajectory.{ending}")


class Animations:
    """Frames of the batch that is under way, and the files that they become.

    Args:
        ending: ``gif`` or ``mp4``; None records nothing.
    """

    def __init__(self, ending: str | None) -> None:
        self.ending = ending
        self._frames: dict[int, dict[int, np.ndarray]] = {}

    def add(self, progress: Progress) -> None:
        """Note a step: its previews, for as many steps as an animation shows, evenly spread, the last always."""
        if self.ending is None or not self._wanted(progress):
            return
        from robustsynth.images import to_uint8

        for index, image in zip(progress.indices, to_uint8(progress.previews), strict=True):
            self._frames.setdefault(index, {})[progress.taken] = image

    def write(self, out: Path, names: dict[int, str], progress: Progress) -> None:
        """The file of each of the batch's images, whose frames are forgotten then."""
        if self.ending is None:
            return
        from robustsynth.animations import save_animation
        from robustsynth.images import to_uint8

        for index, image in zip(progress.indices, to_uint8(progress.previews), strict=True):
            frames = self._frames.pop(index, {}) | {progress.taken: image}
            if index in names:
                out.mkdir(parents=True, exist_ok=True)
                save_animation(out / f"{names[index]}.{self.ending}", list(frames.values()))

    def _wanted(self, progress: Progress) -> bool:
        total = progress.steps * progress.runs
        count = min(FRAMES, total + 1)
        return progress.taken in {round(k * total / max(1, count - 1)) for k in range(count)}


def settings_line(settings: dict[str, Any]) -> str:
    """Settings in a line, for people."""
    return "settings: " + ", ".join(f"{name}={value}" for name, value in settings.items())


def describe_model(model: Classifier) -> str:
    """One line on a model: what it is, how robust, on which device."""
    from robustsynth.models.card import CLEAN, PGD, measured

    card = model.card
    if card is None:
        return f"model {model.name}: {len(model.classes)} classes, on {model.device}"
    rows = [row for row in measured(card) if row.attack in (CLEAN, PGD)]
    accuracies = ", ".join(f"{100 * row.share:.1f} % {f'at eps {row.eps:g}' if row.eps else CLEAN}" for row in rows)
    accuracies += "" if card.accuracies or not rows else " on held-out images"
    return (
        f"model {card.name}: {card.architecture} of width {card.width}, {len(card.classes)} classes at "
        f"{card.image_size}×{card.image_size}, {robustness(card)}, {accuracies or 'accuracy not measured'}, "
        f"on {model.device}"
    )


def robustness(card: ModelCard) -> str:
    """What a model was trained to withstand."""
    if not card.threat_model:
        return "what it withstands not stated"
    eps = card.threat_model.get("eps", 0)
    return f"robust in {card.threat_model.get('norm', 'l2')} to eps {eps}" if eps else "standard training"


def say_run(model: Classifier, settings: dict[str, Any], execution: Execution, *, seed: int | None = None) -> None:
    """Say with which model, settings, precision, batch size and seed a command runs."""
    say(describe_model(model))
    say(settings_line(settings))
    end = "" if seed is None else f", seed {seed}"
    say(f"running in {execution.precision}, {execution.batch_size} images a batch{end}")


def not_finite(failed: Sequence[str], rest: str) -> UserError:
    """The error of a command some of whose images met a NaN or an infinity, of which the first five are named."""
    return UserError(
        f"expected finite numbers, got NaN or infinity for {', '.join(failed[:5])}; {rest}. "
        "Try --precision float32 or a smaller --step-size"
    )
