"""AutoAttack, by its authors' own package.

Croce & Hein, *Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks*, ICML
2020. The attacks and their settings are the package's standard version, as on RobustBench. This module runs one of them
at a time on a batch, so that what each one left is known, and checks every adversarial image before it counts.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustsynth.constraints import ball
from robustsynth.errors import UserError
from robustsynth.evaluation.attacks import Attack
from robustsynth.models.classifier import Classifier

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
"""The attacks of the standard version, in its order."""
NAMES = {"apgd-ce": "APGD-CE", "apgd-dlr": "APGD-DLR", "apgd-t": "APGD-T", "fab-t": "FAB-T", "square": "Square"}
"""The attacks as their authors write them."""


def load_package() -> Any:
    """The package ``pyautoattack``; a `UserError` where it is not installed."""
    try:
        import pyautoattack
    except ImportError:
        raise UserError(
            "expected the package pyautoattack for AutoAttack, got none; install it with: "
            "pip install 'robustsynth[eval]', or ask for --attack apgd, which comes with robustsynth"
        ) from None
    return pyautoattack


def package_version() -> str:
    """The package and its version, for records."""
    return f"pyautoattack {importlib.metadata.version('pyautoattack')}"


def attacks_for(classes: int) -> tuple[str, ...]:
    """The standard version's attacks, as far as a number of classes allows them.

    The targeted difference of logits ratio needs a fourth logit, the untargeted one a third. With two classes every
    loss grows with the one difference of logits that there is.

    Example:
        >>> attacks_for(10), attacks_for(2)
        (('apgd-ce', 'apgd-t', 'fab-t', 'square'), ('apgd-ce', 'fab-t', 'square'))
    """
    if classes >= 4:
        return STANDARD
    return ("apgd-ce", "apgd-dlr", "fab-t", "square") if classes == 3 else ("apgd-ce", "fab-t", "square")


def title(classes: int) -> str:
    """``AutoAttack``, if that is the standard version; else with the attacks that there are."""
    names = ", ".join(NAMES[name] for name in attacks_for(classes))
    return "AutoAttack" if attacks_for(classes) == STANDARD else f"AutoAttack of {names} alone"


def forward_passes(attack: str, classes: int) -> int:
    """About how many times an attack asks the network about each image: for the progress bar."""
    targets = min(9, classes - 1)
    return {"apgd-ce": 101, "apgd-dlr": 101, "apgd-t": 102 * targets, "fab-t": 201 * targets, "square": 5000}[attack]


class AutoAttack(Attack):
    """The attacks on one classifier, in one ball.

    Args:
        model, norm, eps: as for `robustsynth.evaluation.attacks.GradientAttack`; ``l2`` or ``linf``, above 0.
        seed: of the package's random numbers.
        precision: float32, which others' figures are measured with, where None.
        batch_size: images that share random numbers; 16 on a processor, 256 on a graphics card where None.
        square_queries: of Square; None for the standard version's 5,000.

    Raises:
        UserError: the package is not installed or does not know the norm, the radius is not above 0, or the images are
            too small for Square.
    """

    titles: ClassVar[Mapping[str, str]] = NAMES

    def __init__(
        self,
        model: Classifier,
        *,
        norm: str,
        eps: float,
        seed: int = 0,
        precision: str | None = None,
        batch_size: int | None = None,
        square_queries: int | None = None,
    ) -> None:
        attacked_ball = ball(norm, eps)
        self.package_norm = attacked_ball.name_for("auto")
        if not eps > 0:
            raise UserError(f"expected a radius eps above 0 for AutoAttack, got {eps:g}")
        if model.image_size is not None and model.image_size < 5:
            raise UserError(f"expected images of 5 or more pixels a side for AutoAttack, got {model.image_size}")
        self.package = load_package()
        size = batch_size or (256 if model.device.type == "cuda" else 16)
        super().__init__(model, attacked_ball, seed=seed, precision=precision or "float32", batch_size=size)
        self.frozen = model.frozen(precision=self.precision, batch_size=1)
        self.square_queries, self.classes = square_queries, len(model.classes)
        self.attempts = attacks_for(self.classes)
        self.name = title(self.classes)

    def record(self) -> dict[str, Any]:
        return super().record() | {"attacks": list(self.attempts), "package": package_version()}

    def describe(self) -> str:
        return f"{self.name}, standard version of {package_version()}"

    def passes(self, attempt: str) -> int:
        return forward_passes(attempt, self.classes)

    def cost(self, attempt: str) -> int:
        return self.passes(attempt) if attempt == "square" else super().cost(attempt)

    def survivors(
        self, attempt: str, images: Tensor, labels: Tensor, *, seed: int, numbers: Sequence[int] = ()
    ) -> tuple[Tensor, list[str]]:
        """As `Attack.survivors`; an adversarial image counts only if float32 errs on it and it is in the ball."""
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        # The package seeds PyTorch's own generators; whoever calls this keeps theirs.
        with torch.random.fork_rng(devices=devices), _contained() as warnings:
            given = {"norm": self.package_norm, "eps": self.ball.eps, "seed": seed, "device": self.model.device}
            runner = self.package.AutoAttack(self._watched, version="standard", **given)
            # Where there are fewer than nine other classes, all of them are targets.
            targets = min(9, self.classes - 1)
            runner.apgd_targeted.n_target_classes = runner.fab.n_target_classes = targets
            if self.square_queries is not None:
                runner.square.n_queries = self.square_queries
            runner.attacks_to_run = [attempt]
            attacked, _ = runner.run_standard_evaluation(images, labels, batch_size=len(images))
        with torch.no_grad():
            # An image that is wrong in reduced precision is never attacked, and must not count as correct.
            correct = self.correct(attacked, labels) & (self.frozen(images).argmax(1) == labels)
            within = (attacked >= 0).flatten(1).all(1) & (attacked <= 1).flatten(1).all(1)
            # Float32's rounding over thousands of pixels, and no more.
            within &= self.ball.length(attacked - images) <= self.ball.eps * (1 + 1e-4) + 1e-6
            return correct | ~within, warnings

    def _watched(self, images: Tensor) -> Tensor:
        self.on_pass()
        return self.frozen(images)


@contextlib.contextmanager
def _contained() -> Iterator[list[str]]:
    """What the package logs as a warning while this lasts, each once, and nothing of it on the terminal.

    It looks for dynamic defences with a trace function, and leaves none behind: a debugger's is set again.
    """
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # Its reference is to a file that is not there for the reader.
            text = record.getMessage().split(" See flags_doc")[0].strip()
            # With three classes it warns of an attack that `attacks_for` left out already.
            if text not in found and not text.startswith("with only 3 classes"):
                found.append(text)

    logger, handler = logging.getLogger("auto-attack"), Keep(logging.WARNING)
    propagate, trace = logger.propagate, sys.gettrace()
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        sys.settrace(trace)
