"""Clean accuracy and accuracy under an attack, with confidence intervals; in memory, or in a folder that is continued.

The folder of a run holds ``settings.json`` (what is measured) and a file for each batch, rewritten after each attempt.
A figure does not depend on interruptions or on the number of processes, which take every n-th batch. Each image has
random numbers of its own; AutoAttack alone draws them for each batch, from the seed and its first image.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustsynth.errors import UserError
from robustsynth.evaluation.attacks import Attack, GradientAttack
from robustsynth.files import cache_folder, write_json
from robustsynth.models.classifier import Classifier
from robustsynth.processes import ALONE, Workers
from robustsynth.run_folder import RunFolder

RECORD_OF_0_1_0 = "run.json"
"""What version 0.1.0 wrote, for AutoAttack alone, where there is ``settings.json`` now."""


@dataclass(frozen=True)
class Accuracy:
    """A share of images that were correct: `correct` of `total`, under an attack of radius `eps` (0: none).

    Example:
        >>> low, high = Accuracy(0.5, 620, 1000).interval
        >>> round(low, 3), round(high, 3)
        (0.59, 0.65)
    """

    eps: float
    correct: int
    total: int

    @property
    def share(self) -> float:
        """correct / total."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the share (Wilson 1927)."""
        z, n, p = 1.959964, self.total, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, middle - half), min(1.0, middle + half)


def evaluate_accuracy(
    model: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    norm: str = "l2",
    eps: Sequence[float] = (0.5,),
    seed: int = 0,
    precision: str | None = None,
    batch_size: int | None = None,
    on_images: Callable[[float], object] | None = None,
    attack: str = "pgd",
    restarts: int = 1,
    steps: int | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
) -> list[Accuracy]:
    """Clean accuracy and accuracy under PGD-20, or APGD, for each radius.

    An image counts under attack only if it is correct clean and after every attempt of a
    `robustsynth.evaluation.attacks.GradientAttack`. The attack's gradients may be computed in reduced precision where
    that is faster; what counts as correct is always decided in float32.

    Args:
        images: uint8 (N, H, W, C); a memory map is read a batch at a time.
        labels: (N,) integers.
        eps: radii in pixel units of images in [0, 1].
        on_images: called with the number of images done since the last time, a fraction where attempts are under way.
        indices: which images to evaluate; all where None.
        attack, norm, seed, precision, batch_size, restarts, steps: as for `GradientAttack`.

    Returns:
        The clean accuracy, with eps 0, then one for each radius.

    Raises:
        UserError: images that do not fit the model, no images, or a norm that the attack cannot use.
        UnknownNameError: no such attack.
    """
    chosen = np.arange(len(images)) if indices is None else np.asarray(indices)
    check_fit(model, images, labels, chosen)
    given: dict[str, Any] = {"norm": norm, "seed": seed, "precision": precision, "batch_size": batch_size}
    radii = [radius for radius in dict.fromkeys(eps) if radius != 0] or [0.0]
    attacks = [GradientAttack(model, attack, eps=r, restarts=restarts, steps=steps, **given) for r in radii]
    advance = on_images and (lambda count: on_images(count / len(attacks)))
    results = [EvaluationRun(each, images, labels, chosen, keep=False).run(on_images=advance) for each in attacks]
    return [results[0].unattacked, *(result.robust for result in results if result.eps)]


def drawn(count: int, num: int | None, seed: int) -> np.ndarray:
    """`num` of `count` images' numbers at random, all where None; a larger `num` adds to a smaller one."""
    return np.random.default_rng(seed).permutation(count)[:num]


def check_fit(model: Classifier, images: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> None:
    """Raise a `UserError` unless there are images, of the model's shape, with labels of its classes."""
    if len(images) == 0 or len(chosen) == 0:
        raise UserError("expected images to evaluate on, got none")
    side = model.image_size
    if images.shape[3] != model.channels or (side is not None and images.shape[1:3] != (side, side)):
        raise UserError(
            f"expected images (N, {side or 'H'}, {side or 'W'}, {model.channels}) for model {model.name!r}, "
            f"got {images.shape}"
        )
    if labels.shape != (len(images),) or labels.min() < 0 or labels.max() >= len(model.classes):
        raise UserError(f"expected one label from 0 to {len(model.classes) - 1} for each of {len(images)} images")


def as_batch(model: Classifier, images: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
    """The chosen images (N, C, H, W) float32 in [0, 1] and their labels (N,), on the model's device."""
    batch = torch.from_numpy(np.ascontiguousarray(images[chosen])).to(model.device)
    truth = torch.from_numpy(np.ascontiguousarray(labels[chosen])).long().to(model.device)
    return (batch.permute(0, 3, 1, 2).float() / 255).contiguous(), truth


@dataclass(frozen=True)
class EvaluationResult:
    """The figures of a run at radius `eps`: of `wanted` images, `done` are through all attempts.

    Of those, `clean` are correct without an attack, and `left` after each attempt and all before it, in order.
    """

    eps: float
    wanted: int
    done: int
    clean: int
    left: Mapping[str, int]
    warnings: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every image is through."""
        return self.done == self.wanted

    @property
    def unattacked(self) -> Accuracy:
        """What is correct without an attack."""
        return Accuracy(0.0, self.clean, self.done)

    @property
    def robust(self) -> Accuracy:
        """What is correct after all attempts."""
        return Accuracy(self.eps, min([self.clean, *self.left.values()]), self.done)


class EvaluationRun:
    """One attack on the images of one data set, which can be interrupted.

    Args:
        attack: such as `GradientAttack` or `robustsynth.evaluation.auto_attack.AutoAttack`.
        images, labels: as for `evaluate_accuracy`.
        order: the numbers of the images to evaluate, in the order in which it is done.
        folder: where results are kept, so that another run continues it; where None, one in the cache that is named by
            model, data and settings.
        overwrite: replace what the folder holds of another run.
        keep: False to keep results in memory alone.

    Raises:
        UserError: images or labels that do not fit the model, or a folder that holds something else.
    """

    def __init__(
        self,
        attack: Attack,
        images: np.ndarray,
        labels: np.ndarray,
        order: np.ndarray,
        *,
        folder: Path | str | None = None,
        overwrite: bool = False,
        keep: bool = True,
    ) -> None:
        check_fit(attack.model, images, labels, order)
        self.attack, self.images, self.labels, self.order = attack, images, labels, order
        size = attack.batch_size
        self.batches = [order[i : i + size] for i in range(0, len(order), size)]
        self.rows: dict[int, dict[str, Any]] = {}
        self.run_folder: RunFolder | None = None
        if not keep:
            return
        record = {"model": fingerprint(attack.model), "data": data_fingerprint(images, labels)} | attack.record()
        if folder is None:
            key = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:20]
            folder = cache_folder("auto-attack" if "attacks" in record else "evaluation", key)
        out = RunFolder.path_of(folder)
        found = [path.name for path in out.glob("batch-*-of-*.json")]
        self.run_folder = RunFolder(
            out,
            {"task": "evaluate"} | record,
            overwrite=overwrite,
            files=lambda _: [*found, RECORD_OF_0_1_0],
            # What 0.1.0 has found for the same record is continued.
            new_files=[] if _read_json(out / RECORD_OF_0_1_0) == record else found,
        )

    def run(self, *, workers: Workers = ALONE, on_images: Callable[[float], object] | None = None) -> EvaluationResult:
        """Do what is missing of this process's share, wait for the others, and return the result.

        To be called within the processes' `joined`. An interruption loses the attempt that is under way, on one batch;
        the same call continues. `on_images` is called for images that were done before, too.
        """
        if self.run_folder is not None and workers.first:
            self.run_folder.begin()
        workers.wait()
        for index in workers.share(range(len(self.batches))):
            self._batch(index, on_images or (lambda count: None))
        workers.wait()
        return self.result()

    def result(self) -> EvaluationResult:
        """The figures by now, of complete batches alone."""
        rows = [row for index in range(len(self.batches)) if self._complete(row := self._read(index))]
        attempts = self.attack.attempts
        return EvaluationResult(
            eps=self.attack.ball.eps,
            wanted=len(self.order),
            done=sum(len(row["images"]) for row in rows),
            clean=sum(sum(row["clean"]) for row in rows),
            left={name: sum(sum(row["left"].get(name, _last(row))) for row in rows) for name in attempts},
            warnings=tuple(dict.fromkeys(text for row in rows for text in row["warnings"])),
        )

    def _batch(self, index: int, on_images: Callable[[float], object]) -> None:
        numbers, row, attack = self.batches[index], self._read(index), self.attack
        progress = _Progress(len(numbers), on_images)
        if not self._complete(row):
            images, labels = as_batch(attack.model, self.images, self.labels, numbers)
            if not row:
                clean = attack.correct(images, labels).tolist()
                row = {"images": numbers.tolist(), "clean": clean, "left": {}, "warnings": []}
                self._write(index, row)
            seed = int(np.random.SeedSequence([attack.seed, int(numbers[0])]).generate_state(1)[0])
            work = np.cumsum([attack.cost(attempt) for attempt in attack.attempts])
            for attempt, done in zip(attack.attempts, work, strict=True):
                correct = np.array(_last(row))
                if not correct.any():
                    break
                if attempt not in row["left"]:
                    attack.on_pass = progress.in_passes(done / work[-1], attack.passes(attempt))
                    # An image that an attempt has changed the class of needs no other.
                    tried = torch.from_numpy(correct).to(images.device)
                    survived, warnings = attack.survivors(
                        attempt, images[tried], labels[tried], numbers=numbers[correct].tolist(), seed=seed
                    )
                    correct[correct] = survived.cpu().numpy()
                    row["left"][attempt] = correct.tolist()
                    row["warnings"] += [text for text in warnings if text not in row["warnings"]]
                    self._write(index, row)
                progress.reach(done / work[-1])
        progress.reach(1)

    def _read(self, index: int) -> dict[str, Any]:
        """What is known of a batch; nothing where a file is missing or damaged, which costs its work again."""
        if self.run_folder is None:
            return self.rows.get(index, {})
        images = self.batches[index].tolist()
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            row = _read_json(self.run_folder.out / self._file(index))
            lists = [row["clean"], *row["left"].values()]
            if row["images"] == images and all(len(each) == len(images) for each in lists):
                return row
        return {}

    def _write(self, index: int, row: dict[str, Any]) -> None:
        if self.run_folder is None:
            self.rows[index] = row
        else:
            write_json(self.run_folder.out / self._file(index), row)

    def _file(self, index: int) -> str:
        # The number of images in the name: a larger run must not take a smaller one's last batch for its own.
        return f"batch-{index:06d}-of-{len(self.batches[index])}.json"

    def _complete(self, row: Mapping[str, Any]) -> bool:
        return bool(row) and (set(self.attack.attempts) == set(row["left"]) or not any(_last(row)))


def _read_json(path: Path) -> Any:
    """What a file holds; None where it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _last(row: Mapping[str, Any]) -> list[bool]:
    """Which images are correct after the last attempt that is known."""
    return list(row["left"].values())[-1] if row["left"] else row["clean"]


class _Progress:
    """Reports how far a batch of images is, as a number of images."""

    def __init__(self, images: int, on_images: Callable[[float], object]) -> None:
        self.images, self.on_images, self.share = images, on_images, 0.0

    def reach(self, share: float) -> None:
        """Report that this share of the batch's work is done."""
        if share > self.share:
            self.on_images(self.images * (share - self.share))
            self.share = share

    def in_passes(self, share: float, passes: int) -> Callable[[], None]:
        """What is to be called at each of so many passes, until `share` is reached."""
        shares = iter(np.linspace(self.share, share, passes + 1)[1:].tolist())
        return lambda: self.reach(next(shares, share))


def fingerprint(model: Classifier) -> str:
    """SHA-256 of a classifier's weights, normalisation and classes."""
    digest = hashlib.sha256(json.dumps(model.classes).encode())
    for name, value in [*sorted(model.network.state_dict().items()), ("mean", model.mean), ("std", model.std)]:
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def data_fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 of all labels and of 64 images spread over the data, which may be larger than memory."""
    digest = hashlib.sha256(f"{images.shape}".encode())
    digest.update(np.ascontiguousarray(labels, dtype=np.int64).tobytes())
    for index in np.unique(np.linspace(0, len(images) - 1, 64).astype(int)):
        digest.update(np.ascontiguousarray(images[index]).tobytes())
    return digest.hexdigest()
