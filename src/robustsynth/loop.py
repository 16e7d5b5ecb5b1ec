"""The loop: projected gradient descent on images. Tasks, training and evaluation state problems for it.

For each image, x ← project(x − step_size · direction(∇ₓ objective(x))) (Santurkar et al. 2019, Equation 1 and
Appendix A.1). As in the authors' published loop there is no momentum and no noise, and the iterate of lowest loss among
x₀ … x_T is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustsynth.constraints import Constraint
from robustsynth.errors import UserError

Objective = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) in, one number an image (N,) out; lower is better."""


@dataclass(frozen=True)
class Problem:
    """Where to start, what to stay near, what to minimise, what to respect.

    Args:
        start: x₀, (N, C, H, W) in [0, 1]; projected onto the constraint before the first step.
        objective: images to (N,) losses, lower is better. An attack negates its loss here.
        constraint: `L2Ball`, `LinfBall`, `Box`, or anything with their three methods.
        center: what the constraint is centred on, of the same shape; `start` where None.

    Raises:
        UserError: the shapes differ, or values are not finite numbers in [0, 1].
    """

    start: Tensor
    objective: Objective
    constraint: Constraint
    center: Tensor | None = None

    def __post_init__(self) -> None:
        if self.center is not None and self.center.shape != self.start.shape:
            raise UserError(
                f"expected a center of the start's shape {tuple(self.start.shape)}, got {tuple(self.center.shape)}"
            )
        for name, images in (("start", self.start), ("center", self.center)):
            if images is not None:
                check_images(images, name)


@dataclass(frozen=True)
class Step:
    """One iterate: `images` x_index (N, C, H, W), and their `loss` (N,).

    `failures` maps the position of an image whose loss, gradient or pixels stopped being finite to the step at which
    they did. Such an image stays as it last was; the others go on.
    """

    index: int
    images: Tensor
    loss: Tensor
    failures: Mapping[int, int] = field(default_factory=dict)


class NonFiniteError(UserError):
    """Some images met a NaN or an infinity.

    Attributes:
        images: all images (N, C, H, W). A failed one is as it last was; the others are complete.
        failures: position of each failed image → the step at which it failed.
    """

    def __init__(self, images: Tensor, failures: Mapping[int, int]) -> None:
        named = ", ".join(f"image {i} at step {k}" for i, k in sorted(failures.items())[:5])
        more = f" and {len(failures) - 5} more" if len(failures) > 5 else ""
        super().__init__(
            f"expected finite losses, gradients and pixels, got NaN or infinity for {named}{more}; "
            f"the other {len(images) - len(failures)} images are complete. "
            "Try --precision float32, a smaller step size, or check the model's weights."
        )
        self.images, self.failures = images, dict(failures)


def check_images(images: Tensor, name: str = "images") -> None:
    """Raise a `UserError` unless `images` is a floating (N, C, H, W) tensor of finite values in [0, 1].

    Example:
        >>> check_images(torch.full((1, 3, 2, 2), 255.0))
        Traceback (most recent call last):
        robustsynth.errors.UserError: expected images with values in [0, 1], got [255, 255]; divide 8-bit \
images by 255
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise UserError(f"expected {name} as a floating tensor (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
    if images.numel() == 0:
        return
    low, high = images.amin().item(), images.amax().item()
    if low >= 0 and high <= 1:
        return
    broken = (~torch.isfinite(images)).flatten(1).any(1).nonzero().flatten().tolist()
    if broken:
        raise UserError(f"expected finite {name}, got NaN or infinity in image {broken[0]} before the first step")
    raise UserError(f"expected {name} with values in [0, 1], got [{low:.4g}, {high:.4g}]; divide 8-bit images by 255")


def pgd_steps(
    problem: Problem,
    *,
    step_size: float | Callable[[int], float],
    steps: int,
    score_last: bool = True,
) -> Iterator[Step]:
    """Run the loop, step by step. The tensors that it yields are not changed afterwards.

    Args:
        problem: what to minimise, from where, within what.
        step_size: the length of a step in the constraint's norm, or a function of the step's index.
        steps: T, the number of steps; 0 yields x₀ alone.
        score_last: whether x_T is scored, which costs one more forward pass; otherwise its loss is NaN.

    Yields:
        the T + 1 iterates x₀ … x_T.

    Raises:
        UserError: steps below 0, or a step size that is not a positive finite number.

    Example:
        >>> from robustsynth.constraints import L2Ball
        >>> darker = Problem(torch.full((1, 1, 2, 2), 0.5), lambda x: x.sum((1, 2, 3)), L2Ball(1.0))
        >>> [round(s.loss.item(), 2) for s in pgd_steps(darker, step_size=0.5, steps=3)]
        [2.0, 1.0, 0.0, 0.0]
    """
    if steps < 0:
        raise UserError(f"expected 0 or more steps, got {steps}")
    center = problem.start if problem.center is None else problem.center
    with torch.no_grad():
        images = problem.constraint.project(problem.start, center)
    failures: dict[int, int] = {}
    for index in range(steps):
        length = step_size(index) if callable(step_size) else step_size
        if not (0 < length < float("inf")):
            raise UserError(f"expected a positive finite step size, got {length} at step {index}")
        with torch.enable_grad():
            variable = images.detach().requires_grad_(True)
            loss = _checked(problem.objective(variable), len(images))
            # Summed, never averaged: an image's step must not depend on how many others are in the batch.
            (grad,) = torch.autograd.grad(loss.sum(), variable)
        loss = loss.detach()
        with torch.no_grad():
            moved = images - length * problem.constraint.direction(grad)
            moved = problem.constraint.project(moved, center)
            # One sum tells whether anything at all is wrong; only then is it asked which image.
            if not bool(torch.isfinite(loss.sum() + grad.sum() + moved.sum())):
                _note_failures(failures, index, loss, grad, moved)
            if failures:
                stopped = torch.tensor(sorted(failures), device=images.device)
                moved[stopped] = images[stopped]
        yield Step(index, images, loss, dict(failures))
        images = moved
    last = torch.full((len(images),), float("nan"))
    if score_last:
        with torch.no_grad():
            last = _checked(problem.objective(images), len(images))
        _note_failures(failures, steps, last)
    yield Step(steps, images, last, dict(failures))


def pgd(
    problem: Problem,
    *,
    step_size: float | Callable[[int], float],
    steps: int,
    use_best: bool = True,
    on_step: Callable[[Step], object] | None = None,
) -> Tensor:
    """The images (N, C, H, W) that the loop ends with.

    Args:
        problem, step_size, steps: as for `pgd_steps`.
        use_best: return each image's iterate of lowest loss among x₀ … x_T, as the authors do, not x_T.
        on_step: called with every `Step`; returning ``False`` stops the loop there.

    Raises:
        NonFiniteError: an image met a NaN or an infinity. The error has the images.

    Example:
        >>> from robustsynth.constraints import LinfBall
        >>> start = torch.full((1, 1, 1, 2), 0.5)
        >>> pgd(Problem(start, lambda x: x.sum((1, 2, 3)), LinfBall(0.25)), step_size=0.1, steps=9).tolist()
        [[[[0.25, 0.25]]]]
    """
    best, step = BestIterate(), None
    for step in pgd_steps(problem, step_size=step_size, steps=steps, score_last=use_best):
        if use_best:
            best.add(step)
        if on_step is not None and on_step(step) is False:
            break
    assert step is not None
    result = best.images if use_best else step.images
    if step.failures:
        raise NonFiniteError(result, step.failures)
    return result


class BestIterate:
    """For each image, the iterate of lowest loss among the steps added so far. `add` never changes `images`."""

    images: Tensor
    _loss: Tensor | None = None

    def add(self, step: Step) -> None:
        """Take a step's images where their loss is lower."""
        if self._loss is None:
            # An image that fails at once must still be replaceable, so its loss counts as infinitely bad.
            self.images, self._loss = step.images.clone(), step.loss.nan_to_num(nan=float("inf"))
            return
        better = step.loss < self._loss
        self.images = torch.where(better.view(-1, 1, 1, 1), step.images, self.images)
        self._loss = torch.where(better, step.loss, self._loss)


def _checked(loss: Tensor, count: int) -> Tensor:
    if loss.shape != (count,):
        raise UserError(f"expected the objective to give one number an image, ({count},), got {tuple(loss.shape)}")
    return loss


def _note_failures(failures: dict[int, int], index: int, *values: Tensor) -> None:
    """Of each image that has a NaN or an infinity among its values, the first step at which it had."""
    finite = torch.stack([torch.isfinite(each)[:, None].flatten(1).all(1) for each in values]).all(0)
    for position in (~finite).nonzero().flatten().tolist():
        failures.setdefault(position, index)
