"""A training run: from settings and data to a model folder that `load_model` takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsynth.data import ImageData, hold_out
from robustsynth.errors import UserError
from robustsynth.loop import NonFiniteError
from robustsynth.models.execution import Execution
from robustsynth.models.files import chosen_device
from robustsynth.objectives import Network
from robustsynth.randomness import generator
from robustsynth.training.beginning import (
    check_classes,
    check_room,
    check_same_run,
    data_summary,
    first_network,
    measured_execution,
    normalisation,
)
from robustsynth.training.board import Board
from robustsynth.training.guard import GUARD_IMAGES, watch
from robustsynth.training.keeping import finish_model, keep_model, write_log
from robustsynth.training.selecting import right_clean_and_attacked
from robustsynth.training.settings import TrainSettings
from robustsynth.training.state import TrainState
from robustsynth.training.step import NotFiniteError, StepResult, train_step

CHECKPOINT_SECONDS = 120
"""Seconds of training after which a checkpoint is written, also in mid-epoch."""

ORDER = 1
"""Key of the random stream of an epoch's order."""


class Trainer:
    """One training run.

    Args:
        settings: see `TrainSettings`.
        data: the training images.
        out: folder for the checkpoint, the log and the finished model.
        device: to train on.
        precision: ``float32`` or ``bfloat16``; measured for half a second where None.
        resume: go on from the checkpoint in `out`.
        tensorboard: log for TensorBoard too, in `out`.
        announce: told what people should know: what a model that is fine-tuned was, and collapses.

    Raises:
        UserError: too few images, an `out` that holds another run, a checkpoint that does not fit, or no TensorBoard.
    """

    def __init__(
        self,
        settings: TrainSettings,
        data: ImageData,
        out: Path | str,
        *,
        device: torch.device | str | None = None,
        precision: str | None = None,
        resume: bool = False,
        tensorboard: bool = False,
        announce: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.settings, self.out, self.announce = settings, Path(out), announce
        self.device = chosen_device(device)
        check_room(settings, data, self.out, resume=resume)
        self.held, self.kept = hold_out(len(data), settings.held_out)
        check_classes(data, self.kept, settings.held_out)
        self.steps_per_epoch = len(self.kept) // settings.batch_size
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.size, channels = settings.image_size or data.images.shape[1], data.images.shape[3]
        network, data = first_network(settings, data, self.device, resume=resume, announce=announce)
        execution = Execution(precision or "float32", settings.batch_size, measured=False)
        self.state = TrainState.fresh(settings, network, execution, data_summary(data) | normalisation(data))
        if resume:
            self.state.load(self.out, self.device)
            data = check_same_run(self.state, data, self.out, precision)
        self.data = data
        self.mean = torch.tensor(data.mean, device=self.device).view(1, -1, 1, 1)
        self.std = torch.tensor(data.std, device=self.device).view(1, -1, 1, 1)
        if not resume and precision is None:
            shape = (channels, self.size, self.size)
            self.state.execution = measured_execution(network, settings, self.device, shape)
        self.board = Board(self.out, step=self.state.step) if tensorboard else None
        self._last: StepResult | None = None

    def run(self, on_step: Callable[[Trainer, float], object] | None = None) -> Path:
        """Train to the end and finish the model folder.

        Args:
            on_step: called after each step with the trainer and the step's loss; returning False stops the run
                there, with a checkpoint to resume from.

        Returns:
            The model's folder.

        Raises:
            UserError: the loss, a gradient or the attack became NaN or infinite. The last checkpoint stays.
        """
        try:
            if self._all_epochs(on_step):
                finish_model(self.state, self.data, self.held, self.out)
        finally:
            if self.board is not None:
                self.board.close()
        return self.out

    def _all_epochs(self, on_step: Callable[[Trainer, float], object] | None) -> bool:
        """Train, and write what is to be kept; whether the end was reached."""
        state = self.state
        saved = started = time.monotonic()

        def count_time() -> float:
            nonlocal started
            now = time.monotonic()
            state.seconds, started = state.seconds + now - started, now
            return now

        if self.settings.guarded and state.good is None:
            state.keep_good()
        if state.step == 0:
            state.save(self.out)  # So that a kill in the first minutes can be resumed too.
        while state.step < self.total_steps:
            epoch, first = divmod(state.step, self.steps_per_epoch)
            draw = torch.randperm(len(self.kept), generator=generator(self.settings.seed, ORDER, epoch)).numpy()
            order = self.kept[draw]
            for position in range(first, self.steps_per_epoch):
                places = order[position * self.settings.batch_size : (position + 1) * self.settings.batch_size]
                loss = self._step(*self._batch(places))
                self._after_step(loss)
                now = count_time()
                keep_going = on_step is None or on_step(self, loss) is not False
                ended = position + 1 == self.steps_per_epoch
                if ended:
                    # Before any checkpoint of this step: a resumed run begins with the next epoch.
                    self._end_epoch(epoch, loss)
                    now = count_time()
                if ended or not keep_going or now - saved > CHECKPOINT_SECONDS:
                    state.save(self.out)
                    saved = now
                if not keep_going:
                    return False
        return True

    def predict(self, network: nn.Module) -> Network:
        """`network` as a function from images in [0, 1] to float32 logits, in the run's precision."""
        reduced = self.state.execution.precision == "bfloat16"

        def logits(images: Tensor) -> Tensor:
            normalised = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=reduced):
                return network(normalised).float()

        return logits

    def _batch(self, places: np.ndarray) -> tuple[Tensor, Tensor]:
        # Indexing by an array copies from the memory map, so that the tensor may be written to.
        images = torch.from_numpy(self.data.images[places]).to(self.device).permute(0, 3, 1, 2).float() / 255
        return images, torch.from_numpy(self.data.labels[places]).to(self.device)

    def _step(self, images: Tensor, labels: Tensor) -> float:
        try:
            self._last = train_step(
                self.state, self.predict, images, labels, steps_per_epoch=self.steps_per_epoch, size=self.size
            )
        except NotFiniteError as error:
            raise self._not_finite(str(error)) from None
        return self._last.loss

    def _after_step(self, loss: float) -> None:
        """What now and then follows a step: a look for collapse, and a value for TensorBoard."""
        state, settings = self.state, self.settings
        if self.board is not None:
            self.board.step(state.step, loss, settings.rate(state.step - 1, self.steps_per_epoch))
        if not settings.guarded or state.step % settings.guard_every:
            return
        images, labels = self._batch(self.held[:GUARD_IMAGES])
        side = settings.side(state.step - 1, self.steps_per_epoch, self.size)
        if images.shape[-1] != side:
            images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True).clamp(0, 1)
        scale = settings.attack_scale(state.step - 1, self.steps_per_epoch)
        try:
            watch(state, self.predict, images, labels, scale=scale, announce=self.announce)
        except NonFiniteError:
            raise self._not_finite("finite weights") from None

    def _not_finite(self, expected: str) -> UserError:
        return UserError(
            f"expected {expected}, got NaN or infinity at step {self.state.step}; the last checkpoint in {self.out} "
            "is kept. Begin again in another --out with a lower --learning-rate, or try --precision float32"
        )

    def _end_epoch(self, epoch: int, loss: float) -> None:
        """Log, and on the epochs that are evaluated keep the model if it is the best so far."""
        state = self.state
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "step": state.step,
            "seconds": round(state.seconds, 1),
            "learning_rate": self.settings.rate(state.step - 1, self.steps_per_epoch),
            "loss": round(loss, 4),
            "held_out_clean": "",
            "held_out_pgd": "",
        }
        if state.collapses:
            row["collapses"] = len(state.collapses)
        if (epoch + 1) % self.settings.evaluate_every == 0 or epoch + 1 == self.settings.epochs:
            row["held_out_clean"], row["held_out_pgd"] = self._held_out_accuracy()
            # Robust accuracy chooses; clean accuracy where that is all there is, and between equals.
            score = [row["held_out_pgd"], row["held_out_clean"]]
            if score > state.best.get("score", [-1.0, -1.0]):
                state.best = {"score": score, "epoch": epoch + 1}
                keep_model(state, self.data, self.held, self.kept, self.out)
        state.rows.append(row)
        write_log(state.rows, self.out)
        if self.board is not None:
            self.board.epoch(state.step, row, None if self._last is None else self._last.images)

    def _held_out_accuracy(self) -> tuple[float, float]:
        """Shares of the held-out images that the average gets right, plain and under PGD-10."""
        logits = self.predict(self.state.average)
        clean = robust = 0
        for start in range(0, len(self.held), 200):
            counts = right_clean_and_attacked(
                logits,
                *self._batch(self.held[start : start + 200]),
                norm=self.settings.norm,
                eps=self.settings.eps,
                size=self.size,
            )
            clean, robust = clean + counts[0], robust + counts[1]
        return clean / len(self.held), robust / len(self.held)
