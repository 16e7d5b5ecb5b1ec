"""AutoAttack over any number of images: batch by batch, resumable, shared among processes.

The folder of a run holds ``run.json`` (what is measured) and a file for each batch, rewritten whole after each attack.
Images are taken in a random order that depends on the seed alone, so that what is done of a run is a fair sample, and a
larger run goes on from a smaller one. The package draws its random numbers for a whole batch, from a seed that is made
of the run's seed and the batch's first image: a figure depends on the seed and on the batch size, but not on
interruptions or on the number of processes, which take every n-th batch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustsynth.errors import UserError
from robustsynth.evaluation.accuracy import Accuracy, as_batch, check_fit, drawn
from robustsynth.evaluation.auto_attack import AutoAttacker, attacks_for, cost, forward_passes, package_version
from robustsynth.files import cache_folder, write_json
from robustsynth.models.classifier import Classifier
from robustsynth.processes import ALONE, Workers

RUN_FILE = "run.json"


@dataclass(frozen=True)
class AutoResult:
    """What is known of a run.

    Attributes:
        eps: the radius.
        wanted: images asked for.
        done: images through all attacks.
        clean: of those, right without an attack.
        left: of those, right after each attack and the ones before it, in their order.
        warnings: what the package warns of, such as gradients of zero.
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
        """What is right after all attacks."""
        return Accuracy(self.eps, min([self.clean, *self.left.values()]), self.done)


class AutoRun:
    """One measurement: a classifier, its images, a ball.

    Args:
        model: the classifier.
        images: uint8 (N, H, W, C), such as a memory map, of which a batch is read at a time.
        labels: (N,) integers.
        norm: ``l2`` or ``linf``.
        eps: the radius in pixel units, above 0.
        num: how many images, drawn at random; all where None.
        seed: of the images drawn and of the attacks.
        precision: what the attacks see.
        batch_size: images that share random numbers; 16 on a processor, 256 on a graphics card where None.
        folder: of the run; where None, one in the cache that is named by model, data and settings.

    Raises:
        UserError: as `AutoAttacker` and `evaluate_accuracy`; a folder of another run.
    """

    def __init__(
        self,
        model: Classifier,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        norm: str,
        eps: float,
        num: int | None = None,
        seed: int = 0,
        precision: str | None = None,
        batch_size: int | None = None,
        folder: Path | str | None = None,
    ) -> None:
        self.model, self.images, self.labels, self.seed, self.eps = model, images, labels, seed, eps
        self.order = drawn(len(images), num, seed)
        check_fit(model, images, labels, self.order)
        self.classes = len(model.classes)
        self.attacks = attacks_for(self.classes)
        self.attacker = AutoAttacker(model, norm=norm, eps=eps, precision=precision or "float32")
        size = batch_size or (256 if model.device.type == "cuda" else 16)
        self.batches = [self.order[i : i + size] for i in range(0, len(self.order), size)]
        self.record: dict[str, Any] = {
            "model": fingerprint(model),
            "data": data_fingerprint(images, labels),
            "norm": norm,
            "eps": eps,
            "seed": seed,
            "precision": precision or "float32",
            "batch_size": size,
            "attacks": list(self.attacks),
            "package": package_version(),
        }
        key = hashlib.sha256(json.dumps(self.record, sort_keys=True).encode()).hexdigest()[:20]
        self.folder = cache_folder("auto-attack", key) if folder is None else Path(folder)

    def run(self, *, workers: Workers = ALONE, on_images: Callable[[float], object] | None = None) -> AutoResult:
        """Do what is missing of this process's share, wait for the others, and say what is known.

        An interruption loses the attack that is under way, on one batch; the same call goes on.

        Args:
            workers: the processes; within their `joined`.
            on_images: called with the number of images done since the last time, a fraction where attacks are under
                way, and with those that were there already.
        """
        self._claim()
        for batch in workers.share(range(len(self.batches))):
            self._batch(batch, on_images or (lambda count: None))
        workers.total([0])
        return self.result()

    def result(self) -> AutoResult:
        """What the folder knows by now, of whole batches alone."""
        known = [found for batch in range(len(self.batches)) if self._whole(found := self._read(batch))]
        left = {name: sum(sum(found["left"].get(name, _last(found))) for found in known) for name in self.attacks}
        return AutoResult(
            eps=self.eps,
            wanted=len(self.order),
            done=sum(len(found["images"]) for found in known),
            clean=sum(sum(found["clean"]) for found in known),
            left=left,
            warnings=tuple(dict.fromkeys(text for found in known for text in found["warnings"])),
        )

    def _claim(self) -> None:
        """Say in the folder what is measured there, or find that it is the same."""
        path = self.folder / RUN_FILE
        if path.exists():
            before = _read_json(path)
            if not isinstance(before, dict):
                # What is done may be of another model: the batches say only which images.
                raise UserError(
                    f"expected {path} to say what is measured there, got a damaged file; remove {self.folder}, "
                    "or name another folder with --out"
                )
            other = [name for name in self.record if before.get(name) != self.record[name]]
            if other:
                raise UserError(
                    f"expected a run of the same {', '.join(other)} in {self.folder}, got "
                    f"{before.get(other[0])!r} and not {self.record[other[0]]!r}; name another folder with --out"
                )
            return
        write_json(path, self.record)

    def _batch(self, batch: int, on_images: Callable[[float], object]) -> None:
        chosen = self.batches[batch]
        found = self._read(batch)
        if self._whole(found):
            on_images(len(chosen))
            return
        tensors, truth = as_batch(self.model, self.images, self.labels, chosen)
        if not found:
            clean = self.attacker.right(tensors, truth).tolist()
            found = {"images": chosen.tolist(), "clean": clean, "left": {}, "warnings": []}
        seed = int(np.random.SeedSequence([self.seed, int(chosen[0])]).generate_state(1)[0])
        share = _Shares(self.attacks, self.classes, len(chosen), on_images)
        for name in self.attacks:
            held = np.array(_last(found))
            if not held.any():
                break
            if name not in found["left"]:
                self.attacker.on_pass = share.passed(name)
                survived, warnings = self.attacker.survivors(name, tensors[held], truth[held], seed=seed)
                held[held] = survived.cpu().numpy()
                found["left"][name] = held.tolist()
                found["warnings"] += [text for text in warnings if text not in found["warnings"]]
                write_json(self._path(batch), found)
            share.finish(name)
        if not found["left"]:
            write_json(self._path(batch), found)
        share.finish(None)

    def _path(self, batch: int) -> Path:
        # The number of images in the name: a larger run must not take a smaller one's last batch for its own.
        return self.folder / f"batch-{batch:06d}-of-{len(self.batches[batch])}.json"

    def _read(self, batch: int) -> dict[str, Any]:
        """What is known of a batch; nothing where a file is missing or damaged, which costs its work again."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            found = json.loads(self._path(batch).read_text(encoding="utf-8"))
            count = len(self.batches[batch])
            lists = [found["clean"], *found["left"].values()]
            if found["images"] == self.batches[batch].tolist() and all(len(each) == count for each in lists):
                return found
        return {}

    def _whole(self, found: Mapping[str, Any]) -> bool:
        return bool(found) and (set(self.attacks) == set(found["left"]) or not any(_last(found)))


class _Shares:
    """How far a batch is, in images: each attack counts as many as the work that it takes."""

    def __init__(self, attacks: Sequence[str], classes: int, images: int, on_images: Callable[[float], object]) -> None:
        self.passes = {name: forward_passes(name, classes) for name in attacks}
        work = {name: cost(name, classes) for name in attacks}
        self.share = {name: images * work[name] / sum(work.values()) for name in attacks}
        self.images, self.on_images = images, on_images
        self.before = self.told = 0.0

    def passed(self, name: str) -> Callable[[], None]:
        count = 0

        def one_more() -> None:
            nonlocal count
            count += 1
            self._tell(self.before + self.share[name] * min(1.0, count / self.passes[name]))

        return one_more

    def finish(self, name: str | None) -> None:
        """An attack is through; the whole batch where None."""
        self.before = self.images if name is None else self.before + self.share[name]
        self._tell(self.before)

    def _tell(self, now: float) -> None:
        if now > self.told:
            self.on_images(now - self.told)
            self.told = now


def _read_json(path: Path) -> Any:
    """What a file holds; None where that is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _last(found: Mapping[str, Any]) -> list[bool]:
    """Who is left after the last attack that is known."""
    return list(found["left"].values())[-1] if found["left"] else found["clean"]


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
