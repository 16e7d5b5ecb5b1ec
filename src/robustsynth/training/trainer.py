"""The trainer: from settings and images to a model folder that `load_model` takes. It guards one-step training."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsynth.data import ImageData
from robustsynth.data.streaming import ImageStream
from robustsynth.errors import UserError
from robustsynth.files import only_writer
from robustsynth.loop import NonFiniteError
from robustsynth.models.execution import Execution, fastest_precision
from robustsynth.models.networks import build_network
from robustsynth.models.store import chosen_device, load_model
from robustsynth.objectives import Network
from robustsynth.processes import ALONE, Team, Workers
from robustsynth.randomness import generator
from robustsynth.training.attack import attack_network, count_clean_and_robust, count_correct, recipe_attack, strength
from robustsynth.training.checkpoints import TrainState, has_checkpoint
from robustsynth.training.data import InMemory, Streamed
from robustsynth.training.fine_tuning import announcements, begin_from
from robustsynth.training.outputs import TensorBoardLog, finish_model, keep_model, write_log
from robustsynth.training.settings import TrainSettings
from robustsynth.training.step import StepResult, train_step

CHECKPOINT_SECONDS = 120
"""Seconds of training after which a checkpoint is written, also in mid-epoch."""

EPOCH_SECONDS = 60
"""Those after which one is written at an epoch's end: of few images an epoch may be shorter than the writing."""

GUARD = 3
"""Key of the random streams of the guard against catastrophic overfitting."""

GUARD_IMAGES = 64
"""Held-out images on which it compares attacks, at most."""

CHANCE = 5
"""Fewer images than this that only one of the attacks turns are no sign of anything."""


class Trainer:
    """One training run: `run` takes it to its end, `steps` is a loop over its steps.

    Args:
        settings: of the run.
        data: the training images, in memory or as a stream.
        out: folder for the checkpoint, the log and the finished model.
        precision: ``float32`` or ``bfloat16``; measured for half a second where None.
        resume: go on from the checkpoint in `out`.
        tensorboard: log for TensorBoard too, in `out`.
        announce: called with what people should know, such as a collapse or a damaged checkpoint.
        workers: the processes that train together, within ``workers.joined``. The first alone writes and announces.
        sync_batch_norm: batch norm over all processes' images; graphics cards only.
        decoders: processes that decode a stream's images.
        writes: false for one that is not run: nothing in `out` is moved.

    Attributes:
        state: of the run: the network, its moving average, the step.
        finished: whether the run came to its end.

    Raises:
        UserError: too few images, an `out` that holds another run, a checkpoint that does not fit, or no TensorBoard.

    Example:
        >>> import tempfile
        >>> images, labels = np.zeros((12, 8, 8, 3), np.uint8), np.arange(12) % 2
        >>> data = ImageData(images, labels, ("a", "b"), "toys", "none", "made", (0.5,) * 3, (0.5,) * 3)
        >>> settings = TrainSettings(architecture="small-cnn", width=2, epochs=1, batch_size=4, held_out=4)
        >>> with tempfile.TemporaryDirectory() as out:
        ...     trainer = Trainer(settings, data, out, device="cpu", precision="float32")
        ...     [step.images.shape[0] for step in trainer.steps()]
        [4, 4]
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
        _check_room(settings, len(data), self.out, resume=resume)
        self.source: InMemory | Streamed
        if isinstance(data, ImageStream):
            self.source = Streamed(data, settings, workers=workers, device=self.device, decoders=decoders)
        else:
            self.source = InMemory(data, settings, self.device)
        self.held, self.kept = self.source.held, self.source.kept
        _check_classes(data, self.kept, settings.held_out)
        self.steps_per_epoch = len(self.kept) // settings.batch_size
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.size, channels = settings.image_size or data.images.shape[1], data.images.shape[3]
        network, data = _first_network(settings, data, self.device, resume, self.announce)
        _check_passes(network, settings, self.size, channels, self.team.count // settings.accumulate)
        execution = Execution(precision or "float32", settings.batch_size, measured=False)
        begun = {"images": len(data), "shape": list(data.images.shape[1:]), "classes": list(data.classes)}
        begun |= {"mean": list(data.mean), "std": list(data.std), **self.source.summary}
        self.state = TrainState.fresh(settings, network, execution, begun)
        if resume:
            # A damaged checkpoint is set aside, by one of them.
            workers.in_turn(lambda: self.state.load(self.out, self.device, announce=self.announce, set_aside=writes))
            if precision not in (None, self.state.execution.precision):
                raise UserError(
                    f"expected the precision that {out} was begun in, {self.state.execution.precision}, "
                    f"got {precision}; resume without --precision"
                )
        elif precision is None:
            shape = (channels, self.size, self.size)
            # As the first process measures it, or each might train in another precision.
            self.state.execution = workers.agreed(lambda: _measured_execution(network, settings, self.device, shape))
        mean, std = (tuple(self.state.data[name]) for name in ("mean", "std"))
        self.data = dataclasses.replace(data, mean=mean, std=std)
        self.mean, self.std = (torch.tensor(v, device=self.device).view(1, -1, 1, 1) for v in (mean, std))
        if sync_batch_norm and not workers.alone:
            if self.device.type == "cpu":
                raise UserError("expected a graphics card for --sync-batch-norm, got cpu; leave it out")
            self.state.network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        if self.state.perturbation is not None:
            self.state.perturbation = self.team.own(self.state.perturbation)
        self.frozen = attack_network(self.state.network, settings, self.state.execution.precision)
        self.tensorboard = TensorBoardLog(self.out, step=self.state.step) if tensorboard and workers.first else None
        self.finished = False
        self._counted = 0.0

    def run(self) -> Path:
        """Train to the end and finish the model's folder, which is returned."""
        for _ in self.steps():
            pass
        return self.out

    def steps(self) -> Iterator[StepResult]:
        """Train a step at a time; after the last one the model folder is finished.

        A loop that is left before the end stops the run in all processes, with a checkpoint to resume from.

        Yields:
            What each step did; ``state.step`` is its number.

        Raises:
            UserError: the loss, a gradient or the attack became NaN or infinite, the last checkpoint stays; or another
                process trains in this folder.
        """
        state = self.state
        with contextlib.ExitStack() as closing:
            # All processes hear of it where another run writes to the folder.
            self.workers.agreed(lambda: closing.enter_context(only_writer(self.out)))
            if self.tensorboard is not None:
                closing.callback(self.tensorboard.writer.close)
            if self.settings.guarded and state.good is None:
                state.keep_good()
            saved = self._counted = time.monotonic()
            if state.step == 0:
                self._save()  # So that a kill in the first minutes can be resumed too.
            while state.step < self.total_steps:
                epoch, first = divmod(state.step, self.steps_per_epoch)
                for batch in self.source.epoch(epoch, first, self.team.rows):
                    result = self._step(*batch)
                    if self.tensorboard is not None:
                        rate = self.settings.rate(state.step - 1, self.steps_per_epoch)
                        self.tensorboard.step(state.step, result.loss, rate)
                    if self.settings.guarded and state.step % self.settings.guard_every == 0:
                        self._guard()
                    now, left = self._count_time(), False
                    try:
                        yield result
                    except GeneratorExit:
                        left = True
                    ended = state.step % self.steps_per_epoch == 0
                    due = now - saved > (EPOCH_SECONDS if ended else CHECKPOINT_SECONDS)
                    # All processes stop, or save, where one of them is to: both take all of them.
                    left, due = self.workers.any(left, due)
                    if ended:
                        # Before any checkpoint of this step: a resumed run begins with the next epoch.
                        self._end_epoch(epoch, result)
                        now = self._count_time()
                    if left or due or state.step == self.total_steps:
                        self._save()
                        saved = now
                    if left:
                        return
            self.finished = True
            if self.workers.first:
                finish_model(state, *self.source.for_seeds(), self.out)
            self.workers.wait()  # Nobody leaves while the first still writes.

    def predict(self, network: nn.Module) -> Network:
        """`network` as a function from images in [0, 1] to float32 logits, in the run's precision."""
        reduced = self.state.execution.precision == "bfloat16"

        def logits(images: Tensor) -> Tensor:
            normalised = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=reduced):
                return network(normalised).float()

        return logits

    def _count_time(self) -> float:
        now = time.monotonic()
        self.state.seconds, self._counted = self.state.seconds + now - self._counted, now
        return now

    def _save(self) -> None:
        """Write the checkpoint, with what each process has of it; the first one does, the others wait."""
        own = self.state.perturbation
        if own is not None:
            self.state.perturbation = self.team.gathered(own)
        if self.workers.first:
            self.state.save(self.out)
        self.state.perturbation = own
        self.workers.wait()

    def _step(self, images: Tensor, labels: Tensor) -> StepResult:
        given = {"steps_per_epoch": self.steps_per_epoch, "size": self.size, "team": self.team}
        return train_step(self.state, self.predict, images, labels, frozen=self.frozen, **given)

    def _guard(self) -> None:
        """Keep the weights where all is well; go back to them where training has collapsed.

        A network trained on a one-step attack may come, within some hundred steps, to classify nearly all images
        correctly under that attack and hardly any under PGD: catastrophic overfitting (Wong et al. 2020, Section 5.4;
        Andriushchenko and Flammarion 2020). A gap above ``guard_gap`` on a few held-out images is a collapse. The run
        goes back to the last weights whose gap was at most half of that, and goes on with an attack of twice as many
        steps from a random start. The step count, and with it the schedule and the random streams, goes on too.
        """
        state, settings, position = self.state, self.settings, (self.state.step - 1, self.steps_per_epoch)
        scale, side = settings.attack_scale(*position), settings.side(*position, self.size)
        images, labels = self.source.held_out(0, GUARD_IMAGES)
        count = len(images)
        if images.shape[-1] != side:
            images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True).clamp(0, 1)

        def counts() -> tuple[int, int]:
            """Images classified correctly under the training's attack and PGD-10."""
            network, logits = state.network, self.predict(state.network)
            training, level = network.training, state.attack_level
            generators = [generator(settings.seed, GUARD, state.step, place) for place in range(count)]
            network.eval().requires_grad_(False)
            given = {"norm": settings.norm, "eps": scale * settings.eps, "size": side}
            try:
                attack = recipe_attack(logits, images, labels, settings, generators, scale=scale, level=level)
                return count_correct(logits, attack, labels), count_clean_and_robust(logits, images, labels, **given)[1]
            except NonFiniteError:
                raise state.not_finite("finite weights") from None
            finally:
                network.train(training).requires_grad_(True)

        trained, pgd = (correct / count for correct in self.workers.agreed(counts))
        if trained - pgd > settings.guard_gap and (trained - pgd) * count >= CHANCE:
            back = state.return_to_good()
            state.attack_level += 1
            steps = strength(settings, state.attack_level)[0]
            event = {"step": state.step, "trained": trained, "pgd": pgd, "back_to": back, "attack_steps": steps}
            state.collapses.append(event)
            self.announce(
                f"catastrophic overfitting at step {state.step}: {100 * trained:.0f} % correct under the attack "
                f"trained with, {100 * pgd:.0f} % under PGD-10; back to the weights of step {back}, on with {steps} "
                "attack steps"
            )
        elif trained - pgd <= settings.guard_gap / 2:
            state.keep_good()

    def _end_epoch(self, epoch: int, last: StepResult) -> None:
        """Log, and on the epochs that are evaluated keep the model if it is the best so far."""
        state = self.state
        row: dict[str, Any] = {"epoch": epoch + 1, "step": state.step, "seconds": round(state.seconds, 1)}
        row["learning_rate"] = self.settings.rate(state.step - 1, self.steps_per_epoch)
        row |= {"loss": round(last.loss, 4), "held_out_clean": "", "held_out_pgd": ""}
        if state.collapses:
            row["collapses"] = len(state.collapses)
        if self.settings.evaluates(epoch):
            row["held_out_clean"], row["held_out_pgd"] = self._held_out_accuracy()
            # Robust accuracy chooses; clean accuracy where that is all there is, and between equals.
            score = [row["held_out_pgd"], row["held_out_clean"]]
            if score > state.best.get("score", [-1.0, -1.0]):
                state.best = {"score": score, "epoch": epoch + 1}
                if self.workers.first:
                    keep_model(state, self.data, self.out, len(self.held), len(self.kept))
        state.rows.append(row)
        if self.workers.first:
            write_log(state.rows, self.out)
        if self.tensorboard is not None:
            self.tensorboard.epoch(state.step, row, last.images)

    def _held_out_accuracy(self) -> tuple[float, float]:
        """Shares of the held-out images that the average classifies correctly, plain and under PGD-10."""
        logits, given = self.predict(self.state.average), {"norm": self.settings.norm, "eps": self.settings.eps}
        clean = robust = 0
        # Whole batches, so that an image is rounded as in one process.
        for start in self.workers.share(range(0, len(self.held), 200)):
            images, labels = self.source.held_out(start, min(start + 200, len(self.held)))
            counts = count_clean_and_robust(logits, images, labels, size=self.size, **given)
            clean, robust = clean + counts[0], robust + counts[1]
        clean, robust = self.workers.total([clean, robust])
        return clean / len(self.held), robust / len(self.held)


def _check_room(settings: TrainSettings, images: int, out: Path, *, resume: bool) -> None:
    """Refuse to begin where images are too few or where `out` holds another run."""
    held_out, batch_size = settings.held_out, settings.batch_size
    if images < held_out + batch_size:
        raise UserError(
            f"expected at least {held_out + batch_size} training images (held_out={held_out} and one batch of "
            f"{batch_size}), got {images}; lower --held-out or --batch-size"
        )
    expected = f"expected an empty folder for a new run, but {out} holds"
    if not resume and has_checkpoint(out):
        raise UserError(f"{expected} one; --resume goes on with it, another --out begins anew")
    if not resume and (out / "card.json").exists():
        raise UserError(f"{expected} a model; choose another --out")


def _check_classes(data: ImageData, kept: np.ndarray, held_out: int) -> None:
    """Refuse classes that are too small to fit seeds on, which happens when training ends: too late to say so."""
    counts = np.bincount(np.asarray(data.labels)[kept], minlength=len(data.classes))
    if counts.min() < 2:
        raise UserError(
            f"expected at least 2 images of each class beside the {held_out} held out, "
            f"got {counts.min()} of {data.classes[int(counts.argmin())]!r}; lower --held-out or add images"
        )


def _check_passes(network: nn.Module, settings: TrainSettings, size: int, channels: int, images: int) -> None:
    """Refuse sides, up to `size`, and numbers of images at a time that the network cannot take."""
    early = settings.early_size or size
    if early > size:
        raise UserError(f"expected early_size of at most the images' side, got {early} and {size}; lower --early-size")
    device = next(network.parameters()).device
    # Whole networks are copied only where there is something to find out.
    trial = network.eval() if images > 1 else copy.deepcopy(network)
    for side in sorted({early, size}):
        zeros = torch.zeros(1, channels, side, side, device=device)
        try:
            with torch.no_grad():
                trial.eval()(zeros)
                if images == 1:
                    trial.train()(zeros)
        except (RuntimeError, ValueError) as error:
            if "more than 1 value per channel" in str(error):
                raise UserError(
                    f"expected batches that batch norm can normalise, got one image of {side} pixels at a time, of "
                    f"which {settings.architecture} leaves one number a channel; raise --batch-size or --image-size, "
                    "or lower --accumulate"
                ) from None
            other = "" if side == size else " (--early-size), and of another one in the end,"
            raise UserError(
                f"expected images that {settings.architecture} of {size} pixels takes, got {side} pixels{other} which "
                "it does not; choose another size or --architecture"
            ) from None


def _first_network(
    settings: TrainSettings, data: ImageData, device: torch.device, resume: bool, announce: Callable[[str], object]
) -> tuple[nn.Module, ImageData]:
    """The network that a run begins with, and the data with the mean and deviation that it goes by."""
    size, channels = settings.image_size or data.images.shape[1], data.images.shape[3]
    torch.manual_seed(settings.seed)
    network = build_network(
        settings.architecture, classes=len(data.classes), width=settings.width, channels=channels, image_size=size
    ).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    # A run that is resumed has both in its checkpoint: the model that it was fine-tuned from may be gone.
    if settings.fine_tune is None or resume:
        return network, data
    model = load_model(settings.fine_tune, device=device)
    new = begin_from(network, model, data.classes)
    for line in announcements(model, settings, data, size=size, new=new):
        announce(line)
    # The weights know images as that model normalises them.
    mean, std = (tuple(values.flatten().tolist()) for values in (model.mean, model.std))
    return network, dataclasses.replace(data, mean=mean, std=std)


def _measured_execution(
    network: nn.Module, settings: TrainSettings, device: torch.device, shape: tuple[int, int, int]
) -> Execution:
    """The faster precision for images of `shape` (C, H, W), measured for half a second."""
    # Enough to tell on a processor; a graphics card must be filled as training fills it.
    count = settings.batch_size if device.type == "cuda" else 16
    images = torch.rand(count, *shape, device=device).contiguous(memory_format=torch.channels_last)
    # In evaluation mode: measuring must not move batch norm's statistics, nor fail on a single small image.
    reduced: Any = torch.autocast(device.type, torch.bfloat16)(network.eval().forward)
    return Execution(fastest_precision({"float32": network, "bfloat16": reduced}, images), settings.batch_size)
