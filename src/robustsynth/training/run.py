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
from robustsynth.data.streaming import ImageStream
from robustsynth.errors import UserError
from robustsynth.loop import NonFiniteError
from robustsynth.models.execution import Execution
from robustsynth.models.store import chosen_device
from robustsynth.objectives import Network
from robustsynth.processes import ALONE, Workers
from robustsynth.training.attack_network import attack_twin
from robustsynth.training.beginning import (
    check_classes,
    check_passes,
    check_room,
    check_same_run,
    data_summary,
    first_network,
    measured_execution,
    normalisation,
    only_trainer,
)
from robustsynth.training.board import Board
from robustsynth.training.guard import GUARD_IMAGES, watch
from robustsynth.training.keeping import finish_model, keep_model, write_log
from robustsynth.training.selecting import right_clean_and_attacked
from robustsynth.training.settings import TrainSettings
from robustsynth.training.sources import BatchSource, InMemory, Streamed, as_batch
from robustsynth.training.state import TrainState
from robustsynth.training.step import NotFiniteError, StepResult, train_step
from robustsynth.training.workers import Team, own, synchronised

CHECKPOINT_SECONDS = 120
"""Seconds of training after which a checkpoint is written, also in mid-epoch."""

EPOCH_SECONDS = 60
"""Those after which one is written at an epoch's end: of few images an epoch may be shorter than the writing."""


class Trainer:
    """One training run.

    Args:
        settings: see `TrainSettings`.
        data: the training images, in memory or as a stream.
        out: folder for the checkpoint, the log and the finished model.
        device: to train on.
        precision: ``float32`` or ``bfloat16``; measured for half a second where None.
        resume: go on from the checkpoint in `out`.
        tensorboard: log for TensorBoard too, in `out`.
        announce: told what people should know: what a model that is fine-tuned was, collapses, a damaged checkpoint.
        workers: the processes that train together, this one among them; within ``workers.joined``. Only the first one
            writes and announces.
        sync_batch_norm: batch norm over all processes' images; graphics cards only.
        decoders: processes that decode a stream's images.
        writes: false for one that is looked at and not run: nothing in `out` is moved.

    Attributes:
        finished: whether `run` came to the end and finished the model.

    Raises:
        UserError: too few images, an `out` that holds another run, a checkpoint that does not fit, or no TensorBoard.
    """

    def __init__(
        self,
        settings: TrainSettings,
        data: ImageData | ImageStream,
        out: Path | str,
        *,
        device: torch.device | str | None = None,
        precision: str | None = None,
        resume: bool = False,
        tensorboard: bool = False,
        announce: Callable[[str], object] = lambda line: None,
        workers: Workers = ALONE,
        sync_batch_norm: bool = False,
        decoders: int = 0,
        writes: bool = True,
    ) -> None:
        self.settings, self.out, self.workers = settings, Path(out), workers
        self.announce = announce if workers.first else lambda line: None
        self.device = chosen_device(device)
        self.team = Team(workers, batch_size=settings.batch_size, accumulate=settings.accumulate)
        streamed = None
        if isinstance(data, ImageStream):
            streamed = Streamed(data, settings, workers=workers, device=self.device, decoders=decoders)
            data = data.data()
        check_room(settings, data, self.out, resume=resume)
        if streamed is None:
            self.held, self.kept = hold_out(len(data), settings.held_out)
        else:
            self.held, self.kept = streamed.held, streamed.kept
        check_classes(data, self.kept, settings.held_out)
        self.steps_per_epoch = len(self.kept) // settings.batch_size
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.size, channels = settings.image_size or data.images.shape[1], data.images.shape[3]
        network, data = first_network(settings, data, self.device, resume=resume, announce=self.announce)
        own_rows = settings.batch_size if self.team.rows is None else len(self.team.rows.indices)
        check_passes(network, settings, self.size, channels, own_rows // settings.accumulate)
        execution = Execution(precision or "float32", settings.batch_size, measured=False)
        self.state = TrainState.fresh(settings, network, execution, self._identity(data, streamed))
        if resume:
            # A damaged checkpoint is set aside, by one of them.
            workers.in_turn(lambda: self.state.load(self.out, self.device, announce=self.announce, set_aside=writes))
            data = check_same_run(self.state, data, self.out, precision)
        self.data = data
        self.mean = torch.tensor(data.mean, device=self.device).view(1, -1, 1, 1)
        self.std = torch.tensor(data.std, device=self.device).view(1, -1, 1, 1)
        self.streamed = streamed is not None
        self.source: BatchSource = streamed or InMemory(
            data,
            self.held,
            self.kept,
            batch_size=settings.batch_size,
            seed=settings.seed,
            read=lambda places: self._batch(places),
        )
        if not resume and precision is None:
            shape = (channels, self.size, self.size)
            # As the first process measures it, or each might train in another precision.
            self.state.execution = workers.agreed(lambda: measured_execution(network, settings, self.device, shape))
        if sync_batch_norm:
            self.state.network = synchronised(network, self.device, workers)
        if self.state.perturbation is not None:
            self.state.perturbation = own(self.state.perturbation, self.team.rows)
        self.outer = self.team.wrapped(self.state.network)
        self.twin = attack_twin(self.state.network, settings, self.state.execution.precision)
        self.board = Board(self.out, step=self.state.step) if tensorboard and workers.first else None
        self.finished = False
        self._last: StepResult | None = None

    @staticmethod
    def _identity(data: ImageData, streamed: Streamed | None) -> dict[str, Any]:
        """What a checkpoint remembers of the data."""
        return data_summary(data) | normalisation(data) | (streamed.summary if streamed else {"stream": None})

    def run(self, on_step: Callable[[Trainer, float], object] | None = None) -> Path:
        """Train to the end and finish the model folder.

        Args:
            on_step: called after each step with the trainer and the step's loss; returning False stops the run
                there, with a checkpoint to resume from.

        Returns:
            The model's folder.

        Raises:
            UserError: the loss, a gradient or the attack became NaN or infinite, the last checkpoint stays; or another
                process trains in this folder.
        """
        with only_trainer(self.out, self.workers) as held:
            if self.board is not None:
                held.callback(self.board.close)
            self.finished = self._all_epochs(on_step)
            if self.finished and self.workers.first:
                finish_model(self.state, *self.source.for_seeds(), self.out)
        self.workers.wait()  # Nobody leaves while the first still writes.
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
            self._save()  # So that a kill in the first minutes can be resumed too.
        while state.step < self.total_steps:
            epoch, first = divmod(state.step, self.steps_per_epoch)
            for position, batch in enumerate(self.source.epoch(epoch, first, self.team.rows), start=first):
                loss = self._step(*batch)
                self._after_step(loss)
                now = count_time()
                stop = on_step is not None and on_step(self, loss) is False
                # All processes stop, or save, where one of them is to: both take all of them.
                ended = position + 1 == self.steps_per_epoch
                due = now - saved > (EPOCH_SECONDS if ended else CHECKPOINT_SECONDS)
                stop, due = self.workers.any(stop, due)
                if ended:
                    # Before any checkpoint of this step: a resumed run begins with the next epoch.
                    self._end_epoch(epoch, loss)
                    now = count_time()
                if stop or due or state.step == self.total_steps:
                    self._save()
                    saved = now
                if stop:
                    return False
        return True

    def _save(self) -> None:
        """Write the checkpoint, with what each process has of it; the first one does, the others wait."""
        carried = self.state.perturbation
        if carried is not None:
            self.state.perturbation = self.team.whole(carried)
        if self.workers.first:
            self.state.save(self.out)
        self.state.perturbation = carried
        self.workers.wait()

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
        images, labels = (torch.from_numpy(each[places]) for each in (self.data.images, self.data.labels))
        return as_batch(images, labels, self.device)

    def _step(self, images: Tensor, labels: Tensor) -> float:
        try:
            self._last = train_step(
                self.state,
                self.predict,
                images,
                labels,
                steps_per_epoch=self.steps_per_epoch,
                size=self.size,
                team=self.team,
                outer=self.outer,
                twin=self.twin,
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
        images, labels = self.source.held_out(0, GUARD_IMAGES)
        side = settings.side(state.step - 1, self.steps_per_epoch, self.size)
        if images.shape[-1] != side:
            images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True).clamp(0, 1)
        scale = settings.attack_scale(state.step - 1, self.steps_per_epoch)
        try:
            watch(state, self.predict, images, labels, scale=scale, announce=self.announce, team=self.team)
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
                if self.workers.first:
                    keep_model(state, self.data, self.held, self.kept, self.out)
        state.rows.append(row)
        if self.workers.first:
            write_log(state.rows, self.out)
        if self.board is not None:
            self.board.epoch(state.step, row, None if self._last is None else self._last.images)

    def _held_out_accuracy(self) -> tuple[float, float]:
        """Shares of the held-out images that the average gets right, plain and under PGD-10."""
        logits = self.predict(self.state.average)
        clean = robust = 0
        # Whole batches, so that an image meets the same company, and rounding, as in one process.
        for start in self.workers.share(range(0, len(self.held), 200)):
            counts = right_clean_and_attacked(
                logits,
                *self.source.held_out(start, min(start + 200, len(self.held))),
                norm=self.settings.norm,
                eps=self.settings.eps,
                size=self.size,
            )
            clean, robust = clean + counts[0], robust + counts[1]
        clean, robust = self.workers.total([clean, robust])
        return clean / len(self.held), robust / len(self.held)
