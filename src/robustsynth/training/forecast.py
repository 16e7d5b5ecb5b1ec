"""How long a run will take, and how much memory and disk: from a few real steps at the run's sizes, on a copy of it."""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustsynth.errors import UserError
from robustsynth.training.attack import count_clean_and_robust
from robustsynth.training.checkpoints import TrainState
from robustsynth.training.data import Streamed
from robustsynth.training.step import train_step
from robustsynth.training.trainer import GUARD_IMAGES, Trainer

BUDGET = 6.0
"""Seconds after which no further step is measured; the first ones, of each size, always are."""

MEASURED = 4
"""Steps measured of each size, after one that warms up."""

CHECKPOINTS = 3
"""Checkpoint files that may be there at a moment: the newest, the one before it, and the one being written."""


@dataclass(frozen=True)
class Forecast:
    """What a run will take from where it stands: steps and epochs to go, seconds, and bytes.

    Attributes:
        step_seconds: of one step, by the side that it trains at.
        selecting_seconds: of the held-out images' evaluations, and of the guard's.
        memory: peak of this process, or of its graphics card.
        checkpoints: of the checkpoint files.
        cache: of decoded images in the cache; 0 for a stream.

    Example:
        >>> Forecast(7800, 20.0, {32: 0.5}, 3900.0, 300.0, 2 * 10**9, 10**8, 15 * 10**7).lines()[0]
        'about 1.2 hours to go: 7800 steps, 20 epochs; 0.50 s a step, 5 minutes of evaluation'
    """

    steps: int
    epochs: float
    step_seconds: dict[int, float]
    training_seconds: float
    selecting_seconds: float
    memory: int
    checkpoints: int
    cache: int

    def lines(self) -> list[str]:
        """For people: time, then memory and disk."""
        at = " at {} pixels" if len(self.step_seconds) > 1 else ""
        each = ", ".join(f"{seconds:.2f} s a step{at.format(side)}" for side, seconds in self.step_seconds.items())
        total = duration(self.training_seconds + self.selecting_seconds)
        return [
            f"about {total} to go: {self.steps} steps, {self.epochs:.4g} epochs; {each}, "
            f"{duration(self.selecting_seconds)} of evaluation",
            f"memory: {amount(self.memory)} at its peak; disk: {amount(self.checkpoints)} of checkpoints"
            + (f", {amount(self.cache)} of decoded images in the cache" if self.cache else ""),
        ]


def forecast(trainer: Trainer) -> Forecast:
    """Measure a few steps on a copy of the run, with random images: nothing of the run is changed, nothing written.

    Under ``torchrun`` all processes measure at once, each with its rows; what they exchange is not counted.
    """
    settings, state, device, size = trainer.settings, trainer.state, trainer.device, trainer.size
    per_epoch, (_, high, wide, channels) = trainer.steps_per_epoch, trainer.data.images.shape
    sides = [settings.side(step, per_epoch, size) for step in range(state.step, trainer.total_steps)]
    scratch = TrainState.fresh(settings, copy.deepcopy(state.network), state.execution, state.data)
    scratch.average, scratch.attack_level = copy.deepcopy(state.average), state.attack_level
    rows = trainer.team.count - trainer.team.count % settings.accumulate
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(rows, channels, high, wide, generator=draw).to(device)
    labels = torch.randint(len(trainer.data.classes), (rows,), generator=draw).to(device)
    seconds = {}
    for side in dict.fromkeys(sides):
        scratch.step = state.step + sides.index(side)
        seconds[side] = _step_seconds(trainer, scratch, images, labels)
    images, labels, logits = images[:16], labels[:16], trainer.predict(state.average)
    given = {"norm": settings.norm, "eps": settings.eps, "size": size}
    each = _seconds(lambda: count_clean_and_robust(logits, images, labels, **given), device) / len(images)
    evaluations = sum(settings.evaluates(epoch) for epoch in range(state.step // per_epoch, settings.epochs))
    selecting = evaluations * len(trainer.held) / trainer.workers.size
    # Weights, their average and their momentum, and the guard's copy of these; free's perturbation.
    checkpoint = 3 * sum(t.numel() * t.element_size() for t in state.network.state_dict().values())
    if settings.guarded:
        selecting += len(sides) / settings.guard_every * min(GUARD_IMAGES, len(trainer.held))
        checkpoint *= 2
    if settings.recipe == "free":
        checkpoint += 4 * settings.batch_size * high * wide * channels
    return Forecast(
        steps=len(sides),
        epochs=len(sides) / per_epoch,
        step_seconds=seconds,
        training_seconds=sum(seconds[side] for side in sides),
        selecting_seconds=selecting * each,
        memory=_peak(device),
        checkpoints=CHECKPOINTS * checkpoint,
        cache=0 if isinstance(trainer.source, Streamed) else len(trainer.data) * high * wide * channels,
    )


def _step_seconds(trainer: Trainer, state: TrainState, images: Tensor, labels: Tensor) -> float:
    step = state.step

    def once() -> None:
        state.step = step
        # Random images may drive the copy's weights anywhere; the time is the same.
        try:
            given = {"steps_per_epoch": trainer.steps_per_epoch, "size": trainer.size, "frozen": trainer.frozen}
            train_step(state, trainer.predict, images, labels, **given)
        except UserError:
            state.step = step

    began = time.perf_counter()
    first, times = _seconds(once, images.device), []
    while len(times) < MEASURED and (time.perf_counter() - began < BUDGET):
        times.append(_seconds(once, images.device))
    return statistics.median(times or [first])


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _peak(device: torch.device) -> int:
    """Bytes that this process has used at most; of its graphics card where it trains there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    try:
        import resource
    except ImportError:  # Windows does not tell.
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def duration(seconds: float) -> str:
    """Seconds in the unit that people would use.

    Example:
        >>> duration(40), duration(400), duration(40000), duration(400000)
        ('40 seconds', '7 minutes', '11.1 hours', '4.6 days')
    """
    if seconds < 3600:
        return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def amount(size: int) -> str:
    """Bytes in the unit that people would use.

    Example:
        >>> amount(512), amount(3_400_000), amount(150 * 10**9)
        ('512 B', '3.4 MB', '150.0 GB')
    """
    power = min((len(str(size)) - 1) // 3, 4)
    return f"{size / 1000**power:.{min(power, 1)}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
