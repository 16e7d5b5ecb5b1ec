"""What ``robustsynth evaluate`` prints and what a model's card keeps of it."""

from __future__ import annotations

from typing import Any

import click

from robustsynth.evaluation.accuracy import Accuracy
from robustsynth.evaluation.auto_attack import NAMES, package_version, title
from robustsynth.evaluation.auto_run import AutoResult, AutoRun

SQUARE_ALARM = 0.002
"""What Square alone may take before it is a sign of masked gradients: the package's own bound."""


def echo_row(name: str, row: Accuracy) -> None:
    """One figure with its interval."""
    low, high = row.interval
    click.echo(f"{name:28} {100 * row.share:6.2f} %  [{100 * low:.2f}, {100 * high:.2f}]  of {row.total} images")


def auto_heading(run: AutoRun, norm: str) -> str:
    """What is about to be measured, by an honest name.

    Fewer than nine other classes are all of them targets.
    """
    classes = len(run.model.classes)
    targets = "" if classes >= 10 else f", {classes - 1} targets"
    return (
        f"{title(classes)}, {len(run.order):,} images, {norm} at eps {run.eps:g}{targets} ({package_version()}, "
        f"{run.record['precision']}, {run.record['batch_size']} images a batch)"
    )


def echo_auto(result: AutoResult, norm: str, classes: int) -> None:
    """What is left after each attack, and what the package warns of."""
    if result.done == 0:
        return
    echo_row("clean", Accuracy(0.0, result.clean, result.done))
    for attack, left in result.left.items():
        echo_row(f"  left after {NAMES[attack]}", Accuracy(result.eps, left, result.done))
    echo_row(f"{title(classes)} {norm} at eps {result.eps:g}", result.robust)
    counted = f"{result.done:,} images" if result.complete else f"{result.done:,} of {result.wanted:,} images"
    click.echo(f"{title(classes)}, {counted}")
    for warning in warnings_of(result):
        click.echo(f"beware: {warning}", err=True)


def warnings_of(result: AutoResult) -> list[str]:
    """What the package warned of, and whether its black-box attack found what the others missed."""
    found = [f"the package says: {text}" for text in result.warnings]
    counts = list(result.left.values())
    taken = counts[-2] - counts[-1]
    if taken > max(SQUARE_ALARM * result.done, 1):
        found.append(
            f"Square, which uses no gradients, found {taken} of {result.done} images more than the attacks that do: "
            "a sign of masked gradients; see --check-masking"
        )
    return found


def card_row(row: Accuracy) -> dict[str, Any]:
    """A row as a card keeps it."""
    return {"eps": row.eps, "share": row.share, "images": row.total, "interval": [round(v, 4) for v in row.interval]}


def auto_card_row(result: AutoResult) -> dict[str, Any]:
    """The same, with the share that each attack left."""
    left = {NAMES[name]: count / result.done for name, count in result.left.items()}
    return card_row(result.robust) | {"left_after": left}


def describe_attack(attack: str, steps: int, restarts: int, classes: int) -> str:
    """An attack of the core in words.

    Example:
        >>> describe_attack("pgd", 20, 1, 10)
        'PGD-20 of 2.5*eps/20, from the image and from a random start'
    """
    starts = "a random start" if restarts == 1 else f"{restarts} random starts"
    if attack == "pgd":
        return f"PGD-{steps} of 2.5*eps/{steps}, from the image and from {starts}"
    return f"APGD-{steps} on {'CE and DLR' if classes > 2 else 'CE'}, each from {starts}"
