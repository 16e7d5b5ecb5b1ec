"""Clean accuracy and accuracy under an attack, with confidence intervals; in memory, or in a folder, to go on from.

The folder of a run holds ``settings.json`` (what is measured) and a file for each batch, rewritten whole after each
attempt. A figure does not depend on interruptions or on the number of processes, which take every n-th batch. Each
image has random numbers of its own; AutoAttack alone draws them for a whole batch, from the seed and its first image.
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
    on_images: Callable[[int], object] | None = None,
    attack: str = "pgd",
    restarts: int = 1,
    steps: int | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
) -> list[Accuracy]:
    """Clean accuracy and accuracy under PGD-20, or APGD, for each radius.

    An image counts under attack only if it is correct clean and after every attempt: PGD from the image itself and from
    `restarts` random starts; APGD on the cross-entropy from `restarts` random starts, then (with three or more
    classes) on the difference of logits ratio. The attack's gradients may be computed in reduced precision where that
    is faster; what counts as correct is always decided in float32.

    Args:
        model: a classifier.
        images: uint8 (N, H, W, C); a memory map is read a batch at a time.
        labels: (N,) integers.
        norm: one of `robustsynth.constraints.NORMS`; APGD knows ``l2`` and ``linf`` alone.
        eps: radii in pixel units of images in [0, 1].
        seed: of the random starts, of which each image has its own, whatever others are evaluated.
        precision: of the attack's gradients; measured where None.
        batch_size: images a batch; measured where None.
        on_images: called with the number of images done since the last time, a fraction where attempts are under way.
        attack: ``pgd`` or ``apgd``.
        restarts: random starts, 1 or more.
        steps: of each attempt; 20 for PGD, each 2.5·ε/steps long, and 100 for APGD where None.
        indices: which images to evaluate; all where None.

    Returns:
        The clean accuracy, with eps 0, then one for each radius.

    Raises:
        UserError: images that do not fit the model, no images, or a norm that the attack cannot use.
        UnknownNameError: no such attack.
    """
    chosen = np.arange(len(images)) if indices is None else np.asarray(indices)
    check_fit(model, images, labels, chosen)
    given: dict[str, Any] = {"norm": norm, "seed": seed, "precision": precision, "batch_size": batch_size}
    given |= {"restarts": restarts, "steps": steps}
    radii = [radius for radius in dict.fromkeys(eps) if radius != 0] or [0.0]
    attacks = [GradientAttack(model, attack, eps=radius, **given) for radius in radii]
    advance = None if on_images is None else lambda count: on_images(count / len(attacks))
    results = [EvaluationRun(each, images, labels, chosen, keep=False).run(on_images=advance) for each in attacks]
    clean = Accuracy(0.0, results[0].clean, len(chosen))
    return [clean, *(result.robust for result in results if result.eps)]


def drawn(count: int, num: int | None, seed: int) -> np.ndarray:
    """The numbers of `num` of `count` images in a random order; of all where `num` is None or more.

    A larger `num` only adds to a smaller one, and any beginning of it is a fair sample, whatever order the data has.

    Example:
        >>> drawn(10, 3, 0).tolist() == drawn(10, 5, 0).tolist()[:3]
        True
    """
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
    """What is known of a run.

    Attributes:
        eps: the radius.
        wanted: images asked for.
        done: images through all attempts.
        clean: of those, correct without an attack.
        left: of those, correct after each attempt and the ones before it, in their order.
        warnings: what the attack warns of, such as gradients of zero.
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
    def robust(self) -> Accuracy:
        """What is correct after all attempts."""
        return Accuracy(self.eps, min([self.clean, *self.left.values()]), self.done)


class EvaluationRun:
    """One attack on the images of one data set, which can be interrupted.

    Args:
        attack: such as `GradientAttack` or `robustsynth.evaluation.auto_attack.AutoAttack`.
        images: uint8 (N, H, W, C), such as a memory map, of which a batch is read at a time.
        labels: (N,) integers.
        order: the numbers of the images to evaluate, in the order in which it is done.
        folder: to keep what is done in, so that another run goes on from it; where None, one in the cache that is named
            by model, data and settings.
        overwrite: replace what the folder holds of another run.
        keep: False to keep what is done in memory alone.

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
        self.folder: Path | None = None
        if not keep:
            return
        record = {"model": fingerprint(attack.model), "data": data_fingerprint(images, labels)} | attack.record()
        if folder is None:
            key = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:20]
            folder = cache_folder("auto-attack" if "attacks" in record else "evaluation", key)
        self.folder = RunFolder.path_of(folder)
        found = [path.name for path in self.folder.glob("batch-*-of-*.json")]
        # What 0.1.0 has found for the same record is gone on from.
        strangers = [] if _read_json(self.folder / RECORD_OF_0_1_0) == record else found
        self.kept = RunFolder(
            self.folder,
            {"task": "evaluate"} | record,
            overwrite=overwrite,
            files=lambda _: [*found, RECORD_OF_0_1_0],
            new_files=strangers,
        )

    def run(self, *, workers: Workers = ALONE, on_images: Callable[[float], object] | None = None) -> EvaluationResult:
        """Do what is missing of this process's share, wait for the others, and say what is known.

        An interruption loses the attempt that is under way, on one batch; the same call goes on.

        Args:
            workers: the processes; within their `joined`.
            on_images: called with the number of images done since the last time, a fraction where attempts are under
                way, and with those that were there already.
        """
        if self.folder is not None and workers.first:
            self.kept.begin()
        workers.wait()
        for index in workers.share(range(len(self.batches))):
            self._batch(index, on_images or (lambda count: None))
        workers.wait()
        return self.result()

    def result(self) -> EvaluationResult:
        """What is known by now, of whole batches alone."""
        known = [row for index in range(len(self.batches)) if self._whole(row := self._read(index))]
        attempts = self.attack.attempts
        return EvaluationResult(
            eps=self.attack.ball.eps,
            wanted=len(self.order),
            done=sum(len(row["images"]) for row in known),
            clean=sum(sum(row["clean"]) for row in known),
            left={name: sum(sum(row["left"].get(name, _last(row))) for row in known) for name in attempts},
            warnings=tuple(dict.fromkeys(text for row in known for text in row["warnings"])),
        )

    def _batch(self, index: int, on_images: Callable[[float], object]) -> None:
        numbers, row, attack = self.batches[index], self._read(index), self.attack
        progress = _Progress(attack, len(numbers), on_images)
        if not self._whole(row):
            images, labels = as_batch(attack.model, self.images, self.labels, numbers)
            if not row:
                clean = attack.correct(images, labels).tolist()
                row = {"images": numbers.tolist(), "clean": clean, "left": {}, "warnings": []}
                self._write(index, row)
            seed = int(np.random.SeedSequence([attack.seed, int(numbers[0])]).generate_state(1)[0])
            for attempt in attack.attempts:
                held = np.array(_last(row))
                if not held.any():
                    break
                if attempt not in row["left"]:
                    # Who has fallen stays fallen, so that only survivors need the next attempt.
                    who = torch.from_numpy(held).to(images.device)
                    survived, warnings = attack.survivors(
                        attempt, images[who], labels[who], numbers=numbers[held].tolist(), seed=seed
                    )
                    held[held] = survived.cpu().numpy()
                    row["left"][attempt] = held.tolist()
                    row["warnings"] += [text for text in warnings if text not in row["warnings"]]
                    self._write(index, row)
                progress.finish(attempt)
        progress.finish(None)

    def _read(self, index: int) -> dict[str, Any]:
        """What is known of a batch; nothing where a file is missing or damaged, which costs its work again."""
        if self.folder is None:
            return self.rows.get(index, {})
        images = self.batches[index].tolist()
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            row = _read_json(self._path(self.folder, index))
            lists = [row["clean"], *row["left"].values()]
            if row["images"] == images and all(len(each) == len(images) for each in lists):
                return row
        return {}

    def _write(self, index: int, row: dict[str, Any]) -> None:
        if self.folder is None:
            self.rows[index] = row
        else:
            write_json(self._path(self.folder, index), row)

    def _path(self, folder: Path, index: int) -> Path:
        # The number of images in the name: a larger run must not take a smaller one's last batch for its own.
        return folder / f"batch-{index:06d}-of-{len(self.batches[index])}.json"

    def _whole(self, row: Mapping[str, Any]) -> bool:
        return bool(row) and (set(self.attack.attempts) == set(row["left"]) or not any(_last(row)))


def _read_json(path: Path) -> Any:
    """What a file holds; None where it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _last(row: Mapping[str, Any]) -> list[bool]:
    """Who is left after the last attempt that is known."""
    return list(row["left"].values())[-1] if row["left"] else row["clean"]


class _Progress:
    """How far a batch is, in images: each attempt counts as many as the work that it takes."""

    def __init__(self, attack: Attack, images: int, on_images: Callable[[float], object]) -> None:
        self.attack, self.images, self.on_images = attack, images, on_images
        work = [attack.cost(name) for name in attack.attempts]
        # Where each attempt begins and ends.
        self.marks = [images * sum(work[:place]) / sum(work) for place in range(len(work) + 1)] if work else [0.0]
        self.place, self.passed, self.reported = 0, 0, 0.0
        attack.on_pass = self._pass

    def finish(self, attempt: str | None) -> None:
        """An attempt is through; the whole batch where None."""
        self.passed = 0
        if attempt is not None:
            self.place = self.attack.attempts.index(attempt) + 1
        self._report(self.images if attempt is None else self.marks[self.place])

    def _pass(self) -> None:
        self.passed += 1
        share = min(1.0, self.passed / self.attack.passes(self.attack.attempts[self.place]))
        self._report(self.marks[self.place] + share * (self.marks[self.place + 1] - self.marks[self.place]))

    def _report(self, now: float) -> None:
        if now > self.reported:
            self.on_images(now - self.reported)
            self.reported = now


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
