"""Loops over a task's generator: a progress bar, Ctrl-C, and animations of how images come about."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from robustsynth.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from robustsynth.models.card import ModelCard
    from robustsynth.models.classifier import Classifier
    from robustsynth.models.execution import Execution
    from robustsynth.run_folder import RunFolder
    from robustsynth.solver import Progress

STOPPED = 130  # exit status of a command that was stopped by Ctrl-C, as shells have it
FRAMES = 60  # of an animation, at most


def say(text: str) -> None:
    """A line for people, beside the progress bar and apart from any output to be piped."""
    click.echo(text, err=True)


def stop(text: str) -> NoReturn:
    """End a command that the user has stopped."""
    say(text)
    raise SystemExit(STOPPED)


def sole_writer(out: str) -> AbstractContextManager[Any]:
    """Within it no other command writes to the folder."""
    from robustsynth.files import only_writer

    return only_writer(Path(out).expanduser())


def begin(folder: RunFolder, model: Classifier, execution: Execution, **record: Any) -> None:
    """Write the folder's settings, once all that can be refused has been: it should not hold settings of nothing."""
    from robustsynth.models.execution import machine_name

    folder.begin(execution=execution.as_dict(), machine=machine_name(model.device), **record)


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
    """The progresses with a bar on a terminal, until they end or the user has `asked` to stop.

    `total` counts the steps of all images together.
    """
    from tqdm import tqdm

    with tqdm(total=total, unit="step", unit_scale=True, disable=not (shown and interactive()), desc=name) as bar:
        for progress in progresses:
            if progress.step:  # x₀ is where it starts, not a step that was taken
                bar.update(len(progress.indices))
            yield progress
            if asked:
                return


class Animations:
    """Frames of the batch that is under way, and the files that they become.

    Args:
        ending: ``gif`` or ``mp4``; None records nothing. One that cannot be written here is refused.
    """

    def __init__(self, ending: str | None) -> None:
        from robustsynth.animations import check_animation

        if ending is not None:
            check_animation(f"trajectory.{ending}")
        self.ending = ending
        self._frames: dict[int, dict[int, np.ndarray]] = {}

    def add(self, progress: Progress) -> None:
        """Note a step: its previews, for as many steps as an animation shows, evenly spread, the last always."""
        total = progress.steps * progress.runs
        count = min(FRAMES, total + 1)
        shown = {round(k * total / max(1, count - 1)) for k in range(count)}
        if self.ending is None or progress.taken not in shown:
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
    say("settings: " + ", ".join(f"{name}={value}" for name, value in settings.items()))
    end = "" if seed is None else f", seed {seed}"
    say(f"running in {execution.precision}, {execution.batch_size} images a batch{end}")


def not_finite(failed: Sequence[str], rest: str) -> UserError:
    """The error of a command some of whose images met a NaN or an infinity, of which the first five are named."""
    return UserError(
        f"expected finite numbers, got NaN or infinity for {', '.join(failed[:5])}; {rest}. "
        "Try --precision float32 or a smaller --step-size"
    )
