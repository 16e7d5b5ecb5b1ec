"""A training run: from settings and data to a model folder that `load_model` takes."""

from __future__ import annotations

import math
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
from robustsynth.models.architectures import build_network
from robustsynth.models.execution import Execution, fastest_precision
from robustsynth.models.files import chosen_device
from robustsynth.objectives import Network
from robustsynth.randomness import generator
from robustsynth.training.attack import adversarial_images
from robustsynth.training.augment import augment
from robustsynth.training.keeping import finish_model, keep_model, write_log
from robustsynth.training.settings import TrainSettings
from robustsynth.training.state import CHECKPOINT, TrainState

CHECKPOINT_SECONDS = 120
"""Seconds of training after which a checkpoint is written, also in mid-epoch."""

ORDER, STEP = 1, 2
"""Keys of the two kinds of random streams of a run: an epoch's order, a step's augmentation and attack."""


class Trainer:
    """One training run.

    Args:
        settings: see `TrainSettings`.
        data: the training images.
        out: folder for the checkpoint, the log and the finished model.
        device: to train on.
        precision: ``float32`` or ``bfloat16``; measured for half a second where None.
        resume: go on from the checkpoint in `out`.

    Raises:
        UserError: too few images, an `out` that holds another run, or a checkpoint that does not fit.
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
    ) -> None:
        self.settings, self.data, self.out = settings, data, Path(out)
        self.device = chosen_device(device)
        if len(data) < settings.held_out + settings.batch_size:
            raise UserError(
                f"expected at least {settings.held_out + settings.batch_size} training images "
                f"(held_out={settings.held_out} and one batch of {settings.batch_size}), got {len(data)}; "
                "lower --held-out or --batch-size"
            )
        if not resume and (self.out / CHECKPOINT).exists():
            raise UserError(
                f"expected an empty folder for a new run, but {self.out} holds one; "
                "--resume goes on with it, another --out begins anew"
            )
        if not resume and (self.out / "card.json").exists():
            raise UserError(
                f"expected an empty folder for a new run, but {self.out} holds a model; choose another --out"
            )
        self.held, self.kept = hold_out(len(data), settings.held_out)
        counts = np.bincount(np.asarray(data.labels)[self.kept], minlength=len(data.classes))
        if counts.min() < 2:
            # Seeds are fitted when training ends, which is too late to say so.
            raise UserError(
                f"expected at least 2 images of each class beside the {settings.held_out} held out, "
                f"got {counts.min()} of {data.classes[int(counts.argmin())]!r}; lower --held-out or add images"
            )
        self.steps_per_epoch = len(self.kept) // settings.batch_size
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.size, channels = settings.image_size or data.images.shape[1], data.images.shape[3]
        size = self.size
        torch.manual_seed(settings.seed)
        network = build_network(
            settings.architecture,
            classes=len(data.classes),
            width=settings.width,
            channels=channels,
            image_size=size,
        ).to(self.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.mean = torch.tensor(data.mean, device=self.device).view(1, -1, 1, 1)
        self.std = torch.tensor(data.std, device=self.device).view(1, -1, 1, 1)
        execution = Execution(precision or "float32", settings.batch_size, measured=False)
        self.state = TrainState.fresh(settings, network, execution, data_summary(data))
        if resume:
            self.state.load(self.out, self.device)
            self._check_same_run(precision)
        elif precision is None:
            # Enough to tell on a processor; a graphics card must be filled as training fills it.
            count = settings.batch_size if self.device.type == "cuda" else 16
            self.state.execution = self._measured_execution(torch.rand(count, channels, size, size, device=self.device))

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
        state = self.state
        saved = started = time.monotonic()

        def count_time() -> float:
            nonlocal started
            now = time.monotonic()
            state.seconds, started = state.seconds + now - started, now
            return now

        if state.step == 0:
            state.save(self.out)  # So that a kill in the first minutes can be resumed too.
        while state.step < self.total_steps:
            epoch, first = divmod(state.step, self.steps_per_epoch)
            draw = torch.randperm(len(self.kept), generator=generator(self.settings.seed, ORDER, epoch)).numpy()
            order = self.kept[draw]
            for position in range(first, self.steps_per_epoch):
                places = order[position * self.settings.batch_size : (position + 1) * self.settings.batch_size]
                loss = self._step(*self._batch(places))
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
                    return self.out
        finish_model(state, self.data, self.held, self.out)
        return self.out

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
        settings, state = self.settings, self.state
        stream = generator(settings.seed, STEP, state.step)
        side = settings.side(state.step, self.steps_per_epoch, self.size)
        images = augment(images, settings, stream, side=side)
        logits = self.predict(state.network)
        if settings.eps > 0:
            # The attack sees the network as it will be used, and parameters' gradients would be wasted on it.
            state.network.eval().requires_grad_(False)
            scale = settings.attack_scale(state.step, self.steps_per_epoch)
            try:
                images = adversarial_images(
                    logits,
                    images,
                    labels,
                    norm=settings.norm,
                    eps=scale * settings.eps,
                    step_size=scale * settings.attack_step_size,
                    steps=settings.attack_steps,
                    random_start=stream if settings.random_start else None,
                )
            except NonFiniteError:
                raise self._not_finite("a finite attack") from None
        state.network.train().requires_grad_(True)
        for group in state.optimizer.param_groups:
            group["lr"] = settings.rate(state.step, self.steps_per_epoch)
        loss = F.cross_entropy(logits(images), labels, label_smoothing=settings.label_smoothing)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._not_finite("a finite loss")
        state.optimizer.zero_grad()
        loss.backward()
        # Without a bound the norm is still taken: a gradient that is not finite must not reach the weights, whose
        # checkpoint would replace the last good one.
        norm = nn.utils.clip_grad_norm_(state.network.parameters(), settings.clip_norm or math.inf, foreach=True)
        if not bool(torch.isfinite(norm)):
            raise self._not_finite("a finite gradient")
        state.optimizer.step()
        state.step += 1
        state.update_average()
        return value

    def _not_finite(self, expected: str) -> UserError:
        return UserError(
            f"expected {expected}, got NaN or infinity at step {self.state.step}; the last checkpoint in {self.out} "
            "is kept. Begin again in another --out with a lower --learning-rate, or try --precision float32"
        )

    def _check_same_run(self, precision: str | None) -> None:
        """Refuse to go on with other images or in another precision: the result would be neither run's."""
        begun, now = self.state.data, data_summary(self.data)
        differing = [name for name, value in now.items() if begun.get(name, value) != value]
        if differing:
            told = "; ".join(f"{name}: {begun[name]} then, {now[name]} now" for name in differing)
            raise UserError(f"expected the data that {self.out} was begun with, got other ({told}); pass its --data")
        self.state.data = now
        if precision is not None and precision != self.state.execution.precision:
            raise UserError(
                f"expected the precision that {self.out} was begun in, {self.state.execution.precision}, "
                f"got {precision}; resume without --precision"
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
        if (epoch + 1) % self.settings.evaluate_every == 0 or epoch + 1 == self.settings.epochs:
            row["held_out_clean"], row["held_out_pgd"] = self._held_out_accuracy()
            # Robust accuracy chooses; clean accuracy where that is all there is, and between equals.
            score = [row["held_out_pgd"], row["held_out_clean"]]
            if score > state.best.get("score", [-1.0, -1.0]):
                state.best = {"score": score, "epoch": epoch + 1}
                keep_model(state, self.data, self.held, self.kept, self.out)
        state.rows.append(row)
        write_log(state.rows, self.out)

    def _held_out_accuracy(self) -> tuple[float, float]:
        """Shares of the held-out images that the average gets right, plain and under PGD-10."""
        settings = self.settings
        logits = self.predict(self.state.average)
        right = robust = 0
        for start in range(0, len(self.held), 200):
            images, labels = self._batch(self.held[start : start + 200])
            if images.shape[-1] != self.size:
                images = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
            with torch.no_grad():
                right += int((logits(images).argmax(1) == labels).sum())
            attacked = adversarial_images(
                logits,
                images,
                labels,
                norm=settings.norm,
                eps=settings.eps,
                step_size=settings.eps / 4,
                steps=10,
            )
            with torch.no_grad():
                robust += int((logits(attacked).argmax(1) == labels).sum())
        return right / len(self.held), robust / len(self.held)

    def _measured_execution(self, images: Tensor) -> Execution:
        state, batch = self.state, self.settings.batch_size
        # In evaluation mode: measuring must not move batch norm's statistics, nor fail on a single small image.
        network = state.network.eval()

        class Reduced(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                with torch.autocast(images.device.type, torch.bfloat16):
                    return network(x).float()

        shaped = images.contiguous(memory_format=torch.channels_last)
        precision = fastest_precision({"float32": network, "bfloat16": Reduced()}, shaped)
        return Execution(precision, batch)


def data_summary(data: ImageData) -> dict[str, Any]:
    """What tells one data set from another, for a checkpoint."""
    return {"images": len(data), "shape": list(data.images.shape[1:]), "classes": list(data.classes)}
