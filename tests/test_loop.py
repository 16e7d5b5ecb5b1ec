"""The loop against a plain transcription of its formula, and what it does with bad numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustsynth.constraints import Box, L2Ball, LinfBall
from robustsynth.errors import UserError
from robustsynth.loop import NonFiniteError, Problem, pgd, pgd_steps

CONSTRAINTS = {
    "l2": L2Ball(0.8),
    "l2-narrow": L2Ball(0.15),
    "linf": LinfBall(0.1),
    "linf-wide": LinfBall(0.7),
    "box": Box(),
}


def random_images(count: int, seed: int, size: int = 4) -> Tensor:
    return torch.rand(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def waves(x: Tensor) -> Tensor:
    """Smooth, with many minima, so that the last iterate is seldom the best."""
    return (torch.sin(9 * x) + (x - 0.4) ** 2).sum((1, 2, 3))


with torch.random.fork_rng():
    torch.manual_seed(3)
    NETWORK = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(20, 4)).double()


def network_loss(x: Tensor) -> Tensor:
    return nn.functional.cross_entropy(NETWORK(x), torch.arange(len(x)) % 4, reduction="none")


LENGTHS = [0.11, 0.07, 0.2, 0.05, 0.3, 0.1, 0.1, 2.0, 0.1]
"""One far too long step near the end spoils what came before it."""

OBJECTIVES = {"waves": waves, "network": network_loss}


def transcribed(start, center, objective, constraint, step_size, steps) -> list[tuple[Tensor, Tensor]]:
    """FACTS.md section 1, one image at a time, as plainly as it can be written: x₀ … x_T with their losses."""

    def project(x, c):
        if isinstance(constraint, L2Ball):
            difference = x - c
            length = math.sqrt(float((difference**2).sum()))
            if length > constraint.eps:
                difference = difference * (constraint.eps / length)
            x = c + difference
        elif isinstance(constraint, LinfBall):
            x = torch.minimum(torch.maximum(x, c - constraint.eps), c + constraint.eps)
        return torch.minimum(torch.maximum(x, torch.zeros_like(x)), torch.ones_like(x))

    x = torch.stack([project(s, c) for s, c in zip(start, center, strict=True)])
    iterates = []
    for k in range(steps + 1):
        variable = x.clone().requires_grad_(True)
        loss = objective(variable)
        iterates.append((x, loss.detach()))
        (g,) = torch.autograd.grad(loss.sum(), variable)
        moved = []
        for image, gradient, c in zip(x, g, center, strict=True):
            if isinstance(constraint, LinfBall):
                way = gradient.sign()
            else:
                way = gradient / (math.sqrt(float((gradient**2).sum())) + 1e-10)
            moved.append(project(image - step_size(k) * way, c))
        x = torch.stack(moved)
    return iterates


def best_of(iterates: list[tuple[Tensor, Tensor]]) -> Tensor:
    losses = torch.stack([loss for _, loss in iterates])
    chosen = losses.argmin(0)
    return torch.stack([iterates[int(k)][0][i] for i, k in enumerate(chosen)])


@pytest.mark.parametrize("own_center", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("constraint", CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_each_step_is_the_formulas(constraint, objective, own_center):
    start, center = random_images(5, 0), random_images(5, 1) if own_center else None
    problem = Problem(start, objective, constraint, center)
    expected = transcribed(start, start if center is None else center, objective, constraint, LENGTHS.__getitem__, 8)
    got = list(pgd_steps(problem, step_size=LENGTHS.__getitem__, steps=8))
    assert [s.index for s in got] == list(range(9))
    for step, (images, loss) in zip(got, expected, strict=True):
        torch.testing.assert_close(step.images, images, rtol=0, atol=1e-12)
        torch.testing.assert_close(step.loss, loss, rtol=1e-12, atol=1e-12)
        assert not step.failures
    last = pgd(problem, step_size=LENGTHS.__getitem__, steps=8, use_best=False)
    torch.testing.assert_close(last, expected[-1][0], rtol=0, atol=1e-12)
    best = pgd(problem, step_size=LENGTHS.__getitem__, steps=8)
    torch.testing.assert_close(best, best_of(expected), rtol=0, atol=1e-12)


def test_the_best_iterate_is_not_always_the_last():
    """Otherwise the comparison above would not tell best from last."""
    start = random_images(5, 0)
    iterates = transcribed(start, start, waves, L2Ball(0.8), LENGTHS.__getitem__, 8)
    losses = torch.stack([loss for _, loss in iterates])
    assert bool((losses.argmin(0) < 8).any())


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    eps=st.floats(0.01, 3),
    length=st.floats(0.01, 2),
    steps=st.integers(0, 6),
    kind=st.sampled_from([L2Ball, LinfBall]),
)
def test_results_are_allowed_and_no_worse_than_the_start(seed, eps, length, steps, kind):
    start = random_images(3, seed)
    result = pgd(Problem(start, waves, kind(eps)), step_size=length, steps=steps)
    assert float(result.min()) >= 0
    assert float(result.max()) <= 1
    difference = (result - start).flatten(1)
    size = difference.norm(dim=1) if kind is L2Ball else difference.abs().amax(1)
    assert float(size.max()) <= eps * (1 + 1e-9)
    assert bool((waves(result) <= waves(start)).all())


@pytest.mark.parametrize("constraint", CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_an_image_does_not_depend_on_its_company(constraint):
    start = random_images(6, 5)
    together = pgd(Problem(start, waves, constraint), step_size=0.2, steps=7)
    for i in range(6):
        alone = pgd(Problem(start[i : i + 1], waves, constraint), step_size=0.2, steps=7)
        assert torch.equal(alone[0], together[i])


def test_a_loss_is_summed_not_averaged_whatever_its_size():
    """A mean would divide the gradient by the batch; the 1e-10 then shows for gradients this small."""
    start = random_images(8, 5)

    def faint(x):
        return 1e-11 * x.sum((1, 2, 3))

    together = pgd(Problem(start, faint, L2Ball(1.0)), step_size=0.2, steps=3)
    alone = pgd(Problem(start[:1], faint, L2Ball(1.0)), step_size=0.2, steps=3)
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("score_last", [True, False])
def test_passes_over_the_network(steps, score_last):
    forward = []

    def counted(x):
        forward.append(x.requires_grad)
        return waves(x)

    problem = Problem(random_images(2, 0), counted, L2Ball(1.0))
    got = list(pgd_steps(problem, step_size=0.1, steps=steps, score_last=score_last))
    assert len(got) == steps + 1
    # One forward and one backward pass a step, and one forward pass alone for x_T.
    assert forward == [True] * steps + [False] * score_last
    assert bool(got[-1].loss.isnan().all()) is not score_last


def test_no_steps_give_the_projected_start():
    start, center = random_images(2, 0), random_images(2, 1)
    result = pgd(Problem(start, waves, L2Ball(0.5), center), step_size=0.1, steps=0)
    assert torch.equal(result, L2Ball(0.5).project(start, center))


def test_iterates_are_not_changed_afterwards():
    start = random_images(2, 0)
    kept, copies = [], []
    for step in pgd_steps(Problem(start, waves, L2Ball(1.0)), step_size=0.3, steps=5):
        kept.append(step.images)
        copies.append(step.images.clone())
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
    assert torch.equal(start, random_images(2, 0))


def test_on_step_stops_early():
    seen = []

    def stop_at_two(step):
        seen.append(step)
        return step.index < 2

    problem = Problem(random_images(3, 0), waves, L2Ball(1.0))
    last = pgd(problem, step_size=0.3, steps=9, use_best=False, on_step=stop_at_two)
    assert [s.index for s in seen] == [0, 1, 2]
    assert torch.equal(last, seen[2].images)
    best = pgd(problem, step_size=0.3, steps=9, on_step=lambda s: s.index < 2)
    assert torch.equal(best, best_of([(s.images, s.loss) for s in seen]))


def test_on_step_returning_nothing_goes_on():
    seen = []
    pgd(Problem(random_images(1, 0), waves, Box()), step_size=0.3, steps=4, on_step=lambda s: seen.append(s.index))
    assert seen == [0, 1, 2, 3, 4]


def test_the_loop_leaves_no_gradients_and_works_without_them():
    start = random_images(2, 0).requires_grad_(True)
    with torch.no_grad():
        result = pgd(Problem(start, waves, L2Ball(1.0)), step_size=0.3, steps=3)
    assert not result.requires_grad
    assert start.grad is None


class Poisoned:
    """`waves`, but image `bad` meets a bad number at step `at`: in its loss, or in its gradient alone."""

    def __init__(self, bad: int, at: int, where: str, value: float) -> None:
        self.bad, self.at, self.where, self.value, self.calls = bad, at, where, value, 0

    def __call__(self, x: Tensor) -> Tensor:
        now = self.calls == self.at
        self.calls += 1
        if now and self.where == "gradient" and x.requires_grad:
            x = x * 1
            x.register_hook(self._spoil)
        loss = waves(x)
        if now and self.where == "loss":
            spoilt = torch.zeros(len(x), dtype=x.dtype)
            spoilt[self.bad] = self.value
            loss = loss + spoilt
        return loss

    def _spoil(self, grad: Tensor) -> Tensor:
        grad = grad.clone()
        grad[self.bad, 0, 1, 1] = self.value
        return grad


@pytest.mark.parametrize("constraint", CONSTRAINTS.values(), ids=CONSTRAINTS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("where", "at"), [("loss", 0), ("loss", 2), ("loss", 5), ("gradient", 0), ("gradient", 3)])
def test_a_bad_number_stops_its_own_image_alone(where, at, value, constraint):
    start, steps = random_images(4, 2), 5
    whole = list(pgd_steps(Problem(start, waves, constraint), step_size=0.2, steps=steps))
    spoilt = list(pgd_steps(Problem(start, Poisoned(1, at, where, value), constraint), step_size=0.2, steps=steps))
    others = [0, 2, 3]
    for step, sound in zip(spoilt, whole, strict=True):
        assert dict(step.failures) == ({1: at} if step.index >= at else {})
        assert torch.equal(step.images[others], sound.images[others])
        assert bool(torch.isfinite(step.images).all())
        if step.index >= at:
            assert torch.equal(step.images[1], spoilt[at].images[1])
    with pytest.raises(NonFiniteError, match=rf"image 1 at step {at}; the other 3 images are complete") as caught:
        pgd(Problem(start, Poisoned(1, at, where, value), constraint), step_size=0.2, steps=steps)
    assert caught.value.failures == {1: at}
    assert torch.equal(
        caught.value.images[others], pgd(Problem(start, waves, constraint), step_size=0.2, steps=5)[others]
    )
    assert bool(torch.isfinite(caught.value.images).all())


def test_a_failure_is_named_by_its_first_step():
    """An image that fails goes on failing, since it stays where it is."""
    calls = []

    def spoilt(x):
        calls.append(None)
        return waves(x) * torch.tensor([1.0, math.nan if len(calls) > 2 else 1.0], dtype=x.dtype)

    steps = list(pgd_steps(Problem(random_images(2, 0), spoilt, L2Ball(1.0)), step_size=0.1, steps=5))
    assert [dict(s.failures) for s in steps] == [{}, {}, {1: 2}, {1: 2}, {1: 2}, {1: 2}]


def test_many_failures_are_counted_rather_than_listed():
    error = NonFiniteError(torch.zeros(9, 1, 1, 1), dict.fromkeys(range(7), 3))
    assert "image 4 at step 3 and 2 more; the other 2 images" in str(error)


def test_finite_numbers_whose_sum_overflows_are_no_failure():
    def huge(x):
        return x.sum((1, 2, 3)) * 1e308

    start = torch.full((4, 1, 2, 2), 0.9, dtype=torch.float64)
    result = pgd(Problem(start, lambda x: x.sum((1, 2, 3)) * 1e307 * 1.5, L2Ball(1.0)), step_size=0.2, steps=2)
    assert bool(torch.isfinite(result).all())
    with pytest.raises(NonFiniteError):
        pgd(Problem(start, huge, L2Ball(1.0)), step_size=0.2, steps=2)


BAD_PROBLEMS = {
    "no batch": (torch.zeros(3, 4, 4), None, r"\(N, C, H, W\)"),
    "whole numbers": (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), None, "uint8"),
    "8-bit values": (torch.full((1, 3, 4, 4), 200.0), None, "divide 8-bit images by 255"),
    "below 0": (torch.full((1, 3, 4, 4), -0.01), None, r"in \[0, 1\]"),
    "nan": (torch.tensor([0.5, float("nan")]).view(2, 1, 1, 1), None, "image 1 before the first step"),
    "inf": (torch.tensor([0.5, 0.5, float("inf")]).view(3, 1, 1, 1), None, "image 2 before the first step"),
    "another center": (torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4), "center of the start's shape"),
    "bad center": (torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 2.0), "expected center with values"),
}


@pytest.mark.parametrize(("start", "center", "message"), BAD_PROBLEMS.values(), ids=BAD_PROBLEMS)
def test_bad_problems(start, center, message):
    with pytest.raises(UserError, match=message):
        Problem(start, waves, Box(), center)


@pytest.mark.parametrize("length", [0, -0.1, math.nan, math.inf])
def test_bad_step_sizes(length):
    problem = Problem(random_images(1, 0), waves, Box())
    with pytest.raises(UserError, match="positive finite step size"):
        pgd(problem, step_size=length, steps=1)
    with pytest.raises(UserError, match="at step 2"):
        pgd(problem, step_size=lambda k: length if k == 2 else 0.1, steps=4)


def test_bad_step_counts():
    with pytest.raises(UserError, match="0 or more steps, got -1"):
        pgd(Problem(random_images(1, 0), waves, Box()), step_size=0.1, steps=-1)


@pytest.mark.parametrize("objective", [lambda x: x.sum(), lambda x: x.flatten(1), lambda x: x[:1].sum((1, 2, 3))])
def test_objectives_give_one_number_an_image(objective):
    with pytest.raises(UserError, match="one number an image"):
        pgd(Problem(random_images(2, 0), objective, Box()), step_size=0.1, steps=1)
