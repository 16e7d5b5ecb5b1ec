"""Signs of gradient masking: a classifier that only hides its gradients looks robust to attacks that follow them.

The signs are those of Athalye, Carlini & Wagner, *Obfuscated gradients give a false sense of security*, ICML 2018,
Section 3.1, and of Carlini et al., *On evaluating adversarial robustness*, 2019, Section 5. None of them proves
anything; each says that a figure should not be believed before stronger attacks agree with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustsynth.constraints import ball
from robustsynth.errors import UserError
from robustsynth.evaluation.accuracy import Accuracy, as_batch, check_fit
from robustsynth.evaluation.auto_attack import AutoAttacker, load_package
from robustsynth.evaluation.black_box import random_squares
from robustsynth.loop import NonFiniteError, Problem, pgd
from robustsynth.models.classifier import Classifier
from robustsynth.objectives import Untargeted
from robustsynth.randomness import generator

TOLERANCE = 0.05
"""How much one share must be beyond another to be a sign. AutoAttack finds one to four points more than PGD-20 on
classifiers whose gradients are sound."""
STEPS = 20
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
    seen = any(_beyond(b.right, a.right, a.total) for i, a in enumerate(rows) for b in rows[i + 1 :])
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
        norm: ``l2`` or ``linf``.
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
    checker = _Checker(model, norm, eps, seed, precision or "float32", queries)
    size = batch_size or 32
    for first in range(0, len(chosen_all), size):
        chosen = chosen_all[first : first + size]
        checker.look(*as_batch(model, images, labels, chosen), chosen.tolist())
        if on_images is not None:
            on_images(len(chosen))
    return checker.signs()


class _Checker:
    """Counts, over batches, who is right under which attack."""

    def __init__(self, model: Classifier, norm: str, eps: float, seed: int, precision: str, queries: int) -> None:
        self.model, self.norm, self.eps, self.seed, self.queries = model, norm, eps, seed, queries
        self.fast = model.frozen(precision=precision, batch_size=1)
        self.exact = model.frozen(precision="float32", batch_size=1)
        self.right: dict[str | float, int] = {}
        self.total = self.blind = self.not_finite = 0
        self.square = _square_attack(model, norm, eps, queries)

    def look(self, images: Tensor, labels: Tensor, numbers: Sequence[int]) -> None:
        clean = self._right(images, labels)
        self.total += len(images)
        self._count("clean", clean)
        images, labels = images[clean], labels[clean]
        numbers = [n for n, kept in zip(numbers, clean.tolist(), strict=True) if kept]
        if not numbers:
            return
        self.blind += self._without_gradient(images, labels)
        for factor in (0.5, 2.0):
            self._count(factor, self._pgd(images, labels, self.eps * factor))
        held = self._pgd(images, labels, self.eps)
        self._count(1.0, held)
        starts = [generator(self.seed, number) for number in numbers]
        both = held & self._pgd(images, labels, self.eps, start=ball(self.norm, self.eps).random_start(images, starts))
        self._count("pgd", both)
        self._count("one step", self._pgd(images, labels, self.eps, steps=1, length=self.eps))
        for name, factor in (("a quarter", 0.25), ("four times", 4.0)):
            length = 2.5 * self.eps / STEPS * factor
            self._count(name, self._pgd(images, labels, self.eps, length=length))
        # Any image lies within this of any other; a path of small steps, because large ones jump about.
        widest = 1.0 if self.norm == "linf" else math.sqrt(images[0].numel())
        self._count("anywhere", self._pgd(images, labels, widest, steps=100, length=4 * self.eps / STEPS))
        if bool(both.any()):
            kept = [n for n, stays in zip(numbers, both.tolist(), strict=True) if stays]
            self._count("black box", self._black_box(images[both], labels[both], kept))

    def signs(self) -> list[Sign]:
        share = {name: self._get(name) / self.total for name in self.right}
        reached, base = self._get("pgd"), self._get(1.0)
        steps = {name: self._get(name) for name in ("a quarter", "four times")}
        rows = [
            Accuracy(0.0, self._get("clean"), self.total),
            *(Accuracy(factor * self.eps, self._get(factor), self.total) for factor in (0.5, 1.0, 2.0)),
        ]
        black_box = f"Square of {self.queries} queries" if self.square else f"random search of {self.queries} queries"
        show = {
            name: _percent(share.get(name, 0.0)) for name in ("pgd", 1.0, "black box", "one step", "anywhere", *steps)
        }
        return [
            rising(rows),
            Sign(
                "not 0 % without a limit",
                _beyond(self._get("anywhere"), 0, self.total),
                f"{show['anywhere']} after 100 steps of PGD anywhere in [0, 1]",
            ),
            Sign(
                "black box beats white box",
                _beyond(reached, self._get("black box"), self.total),
                f"{show['pgd']} after PGD-{STEPS}, {show['black box']} when {black_box} follows",
            ),
            Sign(
                "one step beats many",
                _beyond(base, self._get("one step"), self.total),
                f"{show['one step']} after one step of eps, {show[1.0]} after {STEPS}",
            ),
            Sign(
                "another step size does better",
                any(_beyond(base, count, self.total) for count in steps.values()),
                f"{show[1.0]} with steps of 2.5 eps/{STEPS}, {show['a quarter']} with a quarter of that, "
                f"{show['four times']} with four times that",
            ),
            Sign(
                "gradients of zero",
                _beyond(self.blind, 0, self.total),
                f"{self.blind} of {self.total} images"
                + (f"; NaN or infinity for {self.not_finite}" if self.not_finite else ""),
            ),
        ]

    def _get(self, name: str | float) -> int:
        return self.right.get(name, 0)

    def _count(self, name: str | float, right: Tensor) -> None:
        self.right[name] = self._get(name) + int(right.sum())

    def _right(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            return self.exact(images).argmax(1) == labels

    def _pgd(
        self,
        images: Tensor,
        labels: Tensor,
        eps: float,
        *,
        steps: int = STEPS,
        length: float | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        begin = images if start is None else start
        problem = Problem(begin, Untargeted(self.fast, labels), ball(self.norm, eps), center=images)
        try:
            attacked = pgd(problem, step_size=length or 2.5 * eps / steps, steps=steps, use_best=False)
        except NonFiniteError as error:
            # A gradient that is no number hides the way as well; the image stays where the attack left it.
            attacked = error.images
            self.not_finite = max(self.not_finite, len(error.failures))
        return self._right(attacked, labels)

    def _without_gradient(self, images: Tensor, labels: Tensor) -> int:
        variable = images.detach().requires_grad_(True)
        with torch.enable_grad():
            loss = F.cross_entropy(self.fast(variable), labels, reduction="sum")
        # Without any path to the image there is no gradient at all.
        if not loss.requires_grad:
            return len(images)
        (grad,) = torch.autograd.grad(loss, variable, allow_unused=True, materialize_grads=True)
        largest = grad.flatten(1).abs().amax(1)
        return int((~(largest > 0)).sum())

    def _black_box(self, images: Tensor, labels: Tensor, numbers: Sequence[int]) -> Tensor:
        if self.square is not None:
            return self.square.survivors("square", images, labels, seed=self.seed + numbers[0])[0]
        constraint = ball(self.norm, self.eps)
        found = random_squares(
            self.exact, images, labels, constraint=constraint, numbers=numbers, seed=self.seed, queries=self.queries
        )
        return self._right(found, labels)


def _square_attack(model: Classifier, norm: str, eps: float, queries: int) -> AutoAttacker | None:
    """The package's Square, if there is the package."""
    try:
        load_package()
    except UserError:
        return None
    return AutoAttacker(model, norm=norm, eps=eps, square_queries=queries)


def _beyond(more: int, fewer: int, total: int) -> bool:
    """Whether `more` of `total` is more than `fewer` by what counts, and by two images at least."""
    return more - fewer > max(TOLERANCE * total, 1)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
