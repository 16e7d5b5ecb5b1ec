"""How long a run will take, and how much memory and disk: from a few real steps at the run's sizes, on a copy of it."""

from __future__ import annotations

import copy
import dataclasses
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
from robustsynth.training.guard import GUARD_IMAGES
from robustsynth.training.step import train_step
from robustsynth.training.trainer import Trainer

BUDGET = 6.0
"""Seconds after which no further step is measured; the first ones, of each size, always are."""

MEASURED = 4
"""Steps measured of each size, after one that warms up."""

CHECKPOINTS = 3
"""Checkpoint files that may be there at a moment: the newest, the one before it, and the one being written."""


@dataclass(frozen=True)
class Forecast:
    """What a run will take from where it stands.

    Attributes:
        steps: to go.
        epochs: to go, in part where it is resumed in mid-epoch.
        step_seconds: of one step, by the side that it trains at.
        training_seconds: of all steps to go.
        selecting_seconds: of the held-out images' evaluations, and of the guard's looks.
        memory: peak of this process, or of its graphics card, in bytes.
        checkpoints: bytes of the checkpoint files.
        cache: bytes of decoded images in the cache; 0 for a stream.

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

    Args:
        trainer: a run that is ready to begin or go on.
    """
    settings, state = trainer.settings, trainer.state
    per_epoch, total = trainer.steps_per_epoch, trainer.total_steps
    size, device = trainer.size, trainer.device
    sides = [settings.side(step, per_epoch, size) for step in range(state.step, total)]
    scratch = _scratch(state)
    rows = trainer.team.count - trainer.team.count % settings.accumulate
    shape = trainer.data.images.shape
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(rows, shape[3], shape[1], shape[2], generator=draw).to(device)
    labels = torch.randint(len(trainer.data.classes), (rows,), generator=draw).to(device)
    seconds = {}
    for side in dict.fromkeys(sides):
        scratch.step = state.step + sides.index(side)
        seconds[side] = _step_seconds(trainer, scratch, images, labels)
    images, labels = images[:16], labels[:16]
    logits, attack = trainer.predict(state.average), {"norm": settings.norm, "eps": settings.eps}
    look = _seconds(lambda: count_clean_and_robust(logits, images, labels, size=size, **attack), device) / len(images)
    evaluations = sum(settings.evaluates(epoch) for epoch in range(state.step // per_epoch, settings.epochs))
    looked = evaluations * len(trainer.held) / trainer.workers.size
    if settings.guarded:
        looked += len(sides) / settings.guard_every * min(GUARD_IMAGES, len(trainer.held))
    pixels = shape[1] * shape[2] * shape[3]
    return Forecast(
        steps=len(sides),
        epochs=len(sides) / per_epoch,
        step_seconds=seconds,
        training_seconds=sum(seconds[side] for side in sides),
        selecting_seconds=looked * look,
        memory=_peak(device),
        checkpoints=CHECKPOINTS * _checkpoint_bytes(trainer, pixels),
        cache=0 if isinstance(trainer.source, Streamed) else len(trainer.data) * pixels,
    )


def _scratch(state: TrainState) -> TrainState:
    """A copy to try steps on, whose settings are the run's."""
    network, average = copy.deepcopy(state.network), copy.deepcopy(state.average)
    fresh = TrainState.fresh(state.settings, network, state.execution, state.data)
    return dataclasses.replace(fresh, average=average, attack_level=state.attack_level)


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


def _checkpoint_bytes(trainer: Trainer, pixels: int) -> int:
    """Of one checkpoint: weights, their average and their momentum, the guard's copy of these, free's perturbation."""
    settings = trainer.settings
    weights = sum(t.numel() * t.element_size() for t in trainer.state.network.state_dict().values())
    size = 3 * weights * (2 if settings.guarded else 1)
    return size + (4 * settings.batch_size * pixels if settings.recipe == "free" else 0)


def duration(seconds: float) -> str:
    """Seconds in the unit that people would use.

    Example:
        >>> duration(40), duration(400), duration(40000), duration(400000)
        ('40 seconds', '7 minutes', '11.1 hours', '4.6 days')
    """
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} minutes" if seconds < 3600 else f"{seconds / 3600:.1f} hours"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def amount(size: int) -> str:
    """Bytes in the unit that people would use.

    Example:
        >>> amount(512), amount(3_400_000), amount(150 * 10**9)
        ('512 B', '3.4 MB', '150.0 GB')
    """
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
