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
from robustsynth.evaluation.attacks import GradientAttack, random_squares
from robustsynth.evaluation.auto_attack import AutoAttack, load_package
from robustsynth.loop import NonFiniteError, Problem, pgd
from robustsynth.models.classifier import Classifier
from robustsynth.objectives import Network, Untargeted
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
    """One sign of masking: what would be wrong, whether it was seen, and what was measured, in words."""

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
        images: uint8 (N, H, W, C); 100 are enough.
        eps: the radius that robustness is claimed for, above 0.
        precision: of the gradients; float32 where None, so that no sign comes from rounding.
        queries: of the black-box attack.
        on_images: called with the number of images done since the last time.
        model, labels, norm, seed, batch_size, indices: as for `robustsynth.evaluation.accuracy.evaluate_accuracy`.

    Returns:
        Six `Sign`s.

    Raises:
        UserError: images that do not fit the model, or a radius that is not above 0.
    """
    chosen = np.arange(len(images)) if indices is None else np.asarray(indices)
    check_fit(model, images, labels, chosen)
    if not eps > 0:
        raise UserError(f"expected a radius eps above 0 to look for masked gradients at, got {eps:g}")
    size, precision = batch_size or 32, precision or "float32"
    attack = GradientAttack(model, "pgd", norm=norm, eps=eps, seed=seed, precision=precision, batch_size=size)
    square = _square_attack(model, norm, eps, queries)

    def black_box(images: Tensor, labels: Tensor, numbers: Sequence[int]) -> Tensor:
        if square is not None:
            return square.survivors("square", images, labels, seed=seed + numbers[0])[0]
        given: dict[str, Any] = {"constraint": attack.ball, "numbers": numbers, "seed": seed, "queries": queries}
        return attack.correct(random_squares(attack.exact, images, labels, **given), labels)

    counts: Counter[str | float] = Counter()
    for first in range(0, len(chosen), size):
        numbers = chosen[first : first + size]
        x, y = as_batch(model, images, labels, numbers)
        clean = attack.correct(x, y)
        kept = numbers[clean.cpu().numpy()].tolist()
        counts += Counter({"images": len(x), "clean": len(kept)})
        if kept:
            counts += _count_correct(attack, x[clean], y[clean], kept, black_box)
        if on_images is not None:
            on_images(len(numbers))
    return _signs(counts, eps, f"{'Square' if square else 'random search'} of {queries} queries")


def _count_correct(
    attack: GradientAttack, images: Tensor, labels: Tensor, numbers: Sequence[int], black_box: Callable[..., Tensor]
) -> Counter[str | float]:
    """How many images, all of them correct without an attack, stay correct under which one."""
    eps, not_finite = attack.ball.eps, set[int]()

    def correct(
        *, limit: float = eps, steps: int = STEPS, step_size: float | None = None, start: Tensor = images
    ) -> Tensor:
        problem = Problem(start, Untargeted(attack.frozen, labels), ball(attack.ball.name, limit), center=images)
        try:
            attacked = pgd(problem, step_size=step_size or 2.5 * limit / steps, steps=steps, use_best=False)
        except NonFiniteError as error:
            # A NaN hides the gradient as well; the image stays where the attack left it.
            not_finite.update(error.failures)
            attacked = error.images
        return attack.correct(attacked, labels)

    length = 2.5 * eps / STEPS
    found: dict[str | float, Tensor] = {
        0.5: correct(limit=0.5 * eps),
        1.0: correct(),
        2.0: correct(limit=2.0 * eps),
        "one step": correct(steps=1, step_size=eps),
        "a quarter": correct(step_size=length * 0.25),
        "four times": correct(step_size=length * 4.0),
        # Any image lies within this limit of any other; a path of small steps, because large ones jump about.
        "anywhere": correct(limit=attack.ball.scale(images[0].numel()), steps=100, step_size=4 * eps / STEPS),
        "no gradient": _without_gradient(attack.frozen, images, labels),
    }
    starts = attack.ball.random_start(images, [generator(attack.seed, number) for number in numbers])
    found["pgd"] = both = found[1.0] & correct(start=starts)
    if bool(both.any()):
        left = [number for number, stays in zip(numbers, both.tolist(), strict=True) if stays]
        found["black box"] = black_box(images[both], labels[both], left)
    return Counter({name: int(stays.sum()) for name, stays in found.items()} | {"not finite": len(not_finite)})


def _without_gradient(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """Which images have a gradient of zero, of no number, or none at all."""
    variable = images.detach().requires_grad_(True)
    with torch.enable_grad():
        loss = F.cross_entropy(network(variable), labels, reduction="sum")
    # Without any path to the image there is no gradient at all.
    if not loss.requires_grad:
        return torch.ones(len(images), dtype=torch.bool)
    (grad,) = torch.autograd.grad(loss, variable, allow_unused=True, materialize_grads=True)
    return ~(grad.flatten(1).abs().amax(1) > 0)


def _signs(n: Counter[str | float], eps: float, search: str) -> list[Sign]:
    total = n["images"]
    rows = [Accuracy(0.0, n["clean"], total), *(Accuracy(f * eps, n[f], total) for f in (0.5, 1.0, 2.0))]
    names = ("anywhere", "pgd", "black box", "one step", 1.0, *OTHER)
    anywhere, pgd, black_box, one_step, many, quarter, four = (_percent(n[name] / total) for name in names)
    not_finite = f"; NaN or infinity for {n['not finite']}" if n["not finite"] else ""
    other = f"{many} with steps of 2.5 eps/{STEPS}, {quarter} with a quarter of that, {four} with four times that"
    both = f"{pgd} after PGD-{STEPS}, {black_box} when {search} follows"
    # What would be wrong, the count that should not exceed the next one, and what was measured.
    found = [
        ("not 0 % without a limit", n["anywhere"], 0, f"{anywhere} after 100 steps of PGD anywhere in [0, 1]"),
        ("black box beats white box", n["pgd"], n["black box"], both),
        ("one step beats many", n[1.0], n["one step"], f"{one_step} after one step of eps, {many} after {STEPS}"),
        ("another step size does better", n[1.0], min(n[name] for name in OTHER), other),
        ("gradients of zero", n["no gradient"], 0, f"{n['no gradient']} of {total} images{not_finite}"),
    ]
    return [rising(rows), *(Sign(name, _exceeds(more, fewer, total), said) for name, more, fewer, said in found)]


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
