"""Signs of gradient masking: a classifier that only hides its gradients looks robust to attacks that follow them.

The signs are those of Athalye, Carlini & Wagner, *Obfuscated gradients give a false sense of security*, ICML 2018,
Section 3.1, and of Carlini et al., *On evaluating adversarial robustness*, 2019, Section 5. None of them proves
anything; each says that a figure should not be believed before stronger attacks agree with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustsynth.constraints import ball
from robustsynth.errors import UserError
from robustsynth.evaluation.accuracy import Accuracy, as_batch, check_fit
from robustsynth.evaluation.attacks import pgd_attack, random_squares
from robustsynth.evaluation.auto_attack import AutoAttack, load_package
from robustsynth.models.classifier import Classifier
from robustsynth.randomness import generator

TOLERANCE = 0.05
"""How much one share must exceed another to be a sign. AutoAttack finds one to four points more than PGD-20 on
classifiers whose gradients are sound."""
STEPS = 20
OTHER = ("a quarter", "four times")
"""Step sizes that are tried beside that of 2.5·eps/20."""
QUERIES = 500
"""Of the black-box attack, enough to show what gradients miss."""


@dataclass(frozen=True)
class Sign:
    """One sign of masking.

    Attributes:
        name: what would be wrong.
        seen: whether it was seen.
        figures: what was measured, in words.
    """

    name: str
    seen: bool
    figures: str


def rising(rows: Sequence[Accuracy]) -> Sign:
    """Whether accuracy rises with the radius, which it cannot do under an attack that works.

    Example:
        >>> rising([Accuracy(0.0, 90, 100), Accuracy(0.5, 20, 100), Accuracy(1.0, 40, 100)]).seen
        True
    """
    rows = sorted(rows, key=lambda row: row.eps)
    seen = any(_exceeds(b.correct, a.correct, a.total) for i, a in enumerate(rows) for b in rows[i + 1 :])
    return Sign("accuracy rises with eps", seen, ", ".join(f"{_percent(r.share)} at {r.eps:g}" for r in rows))


def check_masking(
    model: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    norm: str = "l2",
    eps: float = 0.5,
    seed: int = 0,
    precision: str | None = None,
    batch_size: int | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
    queries: int = QUERIES,
    on_images: Callable[[int], object] | None = None,
) -> list[Sign]:
    """Look for six signs of masked gradients.

    Accuracy that rises with the radius; errors that PGD cannot reach although nothing limits it; a black-box attack,
    one step, or another step size that does better than PGD-20; gradients of exactly zero. The black-box attack is
    Square of the package ``pyautoattack`` where that is installed, a random search otherwise.

    Args:
        model: the classifier.
        images: uint8 (N, H, W, C); 100 are enough.
        labels: (N,).
        norm: one of `robustsynth.constraints.NORMS`.
        eps: the radius that robustness is claimed for, above 0.
        seed: of the random starts and of the black-box attack.
        precision: of the gradients; float32 where None, so that no sign comes from rounding.
        batch_size: images a batch.
        indices: which images; all where None.
        queries: of the black-box attack.
        on_images: called with the number of images done, as they are.

    Returns:
        Six `Sign`s.

    Raises:
        UserError: images that do not fit the model, or a radius that is not above 0.
    """
    chosen_all = np.arange(len(images)) if indices is None else np.asarray(indices)
    check_fit(model, images, labels, chosen_all)
    if not eps > 0:
        raise UserError(f"expected a radius eps above 0 to look for masked gradients at, got {eps:g}")
    looks = _Looks(model, norm, eps, seed, precision or "float32", queries)
    size = batch_size or 32
    for first in range(0, len(chosen_all), size):
        chosen = chosen_all[first : first + size]
        looks.count(*as_batch(model, images, labels, chosen), chosen.tolist())
        if on_images is not None:
            on_images(len(chosen))
    return looks.signs()


class _Looks:
    """Counts, over batches, how many images stay correct under which attack."""

    def __init__(self, model: Classifier, norm: str, eps: float, seed: int, precision: str, queries: int) -> None:
        self.norm, self.eps, self.seed, self.queries = norm, eps, seed, queries
        self.frozen = model.frozen(precision=precision, batch_size=1)
        self.exact = model.frozen(precision="float32", batch_size=1)
        self.counts: Counter[str | float] = Counter()
        self.not_finite = 0
        self.square = _square_attack(model, norm, eps, queries)

    def count(self, images: Tensor, labels: Tensor, numbers: Sequence[int]) -> None:
        """Add a batch (N, C, H, W), its labels (N,), and its numbers in the data."""
        clean = self._correct(images, labels)
        found: dict[str | float, Tensor] = {"images": torch.ones_like(clean), "clean": clean}
        images, labels = images[clean], labels[clean]
        numbers = [number for number, kept in zip(numbers, clean.tolist(), strict=True) if kept]
        if numbers:
            found |= self._attacked(images, labels, numbers)
        self.counts.update({name: int(images.sum()) for name, images in found.items()})

    def _attacked(self, images: Tensor, labels: Tensor, numbers: Sequence[int]) -> dict[str | float, Tensor]:
        eps, limit = self.eps, ball(self.norm, self.eps)
        length = 2.5 * eps / STEPS
        # Any image lies within this of any other; a path of small steps, because large ones jump about.
        widest = limit.scale(images[0].numel())
        variants: dict[str | float, dict[str, Any]] = {
            0.5: {"eps": 0.5 * eps},
            1.0: {},
            2.0: {"eps": 2.0 * eps},
            "one step": {"steps": 1, "step_size": eps},
            "a quarter": {"step_size": length * 0.25},
            "four times": {"step_size": length * 4.0},
            "anywhere": {"eps": widest, "steps": 100, "step_size": 4 * eps / STEPS},
        }
        found: dict[str | float, Tensor] = {
            name: self._pgd(images, labels, **given) for name, given in variants.items()
        }
        starts = limit.random_start(images, [generator(self.seed, number) for number in numbers])
        found["pgd"] = both = found[1.0] & self._pgd(images, labels, start=starts)
        found["blind"] = self._without_gradient(images, labels)
        if bool(both.any()):
            kept = [number for number, stays in zip(numbers, both.tolist(), strict=True) if stays]
            found["black box"] = self._black_box(images[both], labels[both], kept)
        return found

    def signs(self) -> list[Sign]:
        """What the counts say."""
        n, total = self.counts, self.counts["images"]
        rows = [Accuracy(0.0, n["clean"], total), *(Accuracy(f * self.eps, n[f], total) for f in (0.5, 1.0, 2.0))]
        names = ("anywhere", "pgd", "black box", "one step", 1.0, *OTHER)
        anywhere, pgd, black_box, one_step, many, quarter, four = (_percent(n[name] / total) for name in names)
        search = f"{'Square' if self.square else 'random search'} of {self.queries} queries"
        not_finite = f"; NaN or infinity for {self.not_finite}" if self.not_finite else ""
        other = f"{many} with steps of 2.5 eps/{STEPS}, {quarter} with a quarter of that, {four} with four times that"
        found = {
            "not 0 % without a limit": (n["anywhere"], 0, f"{anywhere} after 100 steps of PGD anywhere in [0, 1]"),
            "black box beats white box": (
                *(n["pgd"], n["black box"]),
                f"{pgd} after PGD-{STEPS}, {black_box} when {search} follows",
            ),
            "one step beats many": (
                *(n[1.0], n["one step"]),
                f"{one_step} after one step of eps, {many} after {STEPS}",
            ),
            "another step size does better": (n[1.0], min(n[name] for name in OTHER), other),
            "gradients of zero": (n["blind"], 0, f"{n['blind']} of {total} images{not_finite}"),
        }
        return [
            rising(rows),
            *(Sign(name, _exceeds(more, fewer, total), figures) for name, (more, fewer, figures) in found.items()),
        ]

    def _correct(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            return self.exact(images).argmax(1) == labels

    def _pgd(
        self, images: Tensor, labels: Tensor, *, eps: float | None = None, steps: int = STEPS, **given: Any
    ) -> Tensor:
        limit = ball(self.norm, self.eps if eps is None else eps)
        last = pgd_attack(self.frozen, images, labels, constraint=limit, steps=steps, **given)
        # A gradient that is no number hides the way as well; the image stays where the attack left it.
        self.not_finite = max(self.not_finite, len(last.failures))
        return self._correct(last.images, labels)

    def _without_gradient(self, images: Tensor, labels: Tensor) -> Tensor:
        variable = images.detach().requires_grad_(True)
        with torch.enable_grad():
            loss = F.cross_entropy(self.frozen(variable), labels, reduction="sum")
        # Without any path to the image there is no gradient at all.
        if not loss.requires_grad:
            return torch.ones(len(images), dtype=torch.bool)
        (grad,) = torch.autograd.grad(loss, variable, allow_unused=True, materialize_grads=True)
        return ~(grad.flatten(1).abs().amax(1) > 0)

    def _black_box(self, images: Tensor, labels: Tensor, numbers: Sequence[int]) -> Tensor:
        if self.square is not None:
            return self.square.survivors("square", images, labels, seed=self.seed + numbers[0])[0]
        given = {"numbers": numbers, "seed": self.seed, "queries": self.queries}
        found = random_squares(self.exact, images, labels, constraint=ball(self.norm, self.eps), **given)
        return self._correct(found, labels)


def _square_attack(model: Classifier, norm: str, eps: float, queries: int) -> AutoAttack | None:
    """The package's Square, if there is the package and it knows the norm."""
    try:
        load_package()
        ball(norm, eps).name_for("auto")
    except UserError:
        return None
    return AutoAttack(model, norm=norm, eps=eps, square_queries=queries)


def _exceeds(more: int, fewer: int, total: int) -> bool:
    """Whether `more` of `total` exceeds `fewer` by what counts, and by two images at least."""
    return more - fewer > max(TOLERANCE * total, 1)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
