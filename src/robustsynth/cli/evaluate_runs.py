"""The measurements of ``robustsynth evaluate``: with a progress bar, printed as they come, stopped politely."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from robustsynth.cli import interactive, say
from robustsynth.cli.evaluate_rows import auto_card_row, auto_heading, card_row, describe_attack, echo_auto, echo_row
from robustsynth.errors import UserError
from robustsynth.evaluation.accuracy import STEPS, Accuracy, drawn, evaluate_accuracy
from robustsynth.evaluation.auto_attack import package_version, title
from robustsynth.evaluation.auto_run import AutoRun
from robustsynth.evaluation.masking import check_masking, rising
from robustsynth.models.classifier import Classifier
from robustsynth.processes import ALONE, Workers

MASKING_IMAGES = 100
"""How many images are looked at for signs of masked gradients, at most."""

AT_ONCE = 1.0
"""Seconds within which what is done was there already."""


def measure_quickly(
    model: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    chosen: np.ndarray,
    eps: Sequence[float],
    workers: Workers,
    tell: Callable[[str], object],
    given: dict[str, Any],
) -> dict[str, Any]:
    """PGD or APGD: print the rows, and give what a card keeps of them."""

    attack, norm = given["attack"], given["norm"]
    # As the first process measures it, or each might look in another precision.
    execution = workers.agreed(
        lambda: model.frozen(precision=given["precision"], batch_size=given["batch_size"]).execution
    )
    given = given | {"precision": execution.precision, "batch_size": execution.batch_size}
    name = f"{attack.upper()}-{given['steps'] or STEPS[attack]}"
    radii = ", ".join(f"{radius:g}" for radius in eps)
    tell(f"{name}, {norm}, eps {radii}; gradients in {execution.precision}, decided in float32")
    mine = workers.share(chosen)
    rows: list[Accuracy] = []
    with _bar(len(mine), workers) as advance:
        if len(mine):
            rows = evaluate_accuracy(model, images, labels, eps=eps, indices=mine, on_images=advance, **given)
    wanted = list(dict.fromkeys([0.0, *eps]))
    right = workers.total([row.right for row in rows] or [0] * len(wanted))
    rows = [Accuracy(radius, count, len(chosen)) for radius, count in zip(wanted, right, strict=True)]
    if workers.first:
        for row in rows:
            echo_row("clean" if row.eps == 0 else f"{name} {norm} at eps {row.eps:g}", row)
        _beware(rows)
    return {
        "norm": norm,
        "attack": describe_attack(attack, given["steps"] or STEPS[attack], given["restarts"], len(model.classes)),
        "precision": f"gradients in {execution.precision}, decided in float32",
        "seed": given["seed"],
        "rows": [card_row(row) for row in rows],
    }


def _beware(rows: Sequence[Accuracy]) -> None:
    if rising(rows).seen:
        say(f"beware: accuracy rises with eps, which is a sign of masked gradients ({rising(rows).figures})")


def measure_auto(
    model: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    eps: Sequence[float],
    num: int | None,
    folder: Path | None,
    workers: Workers,
    tell: Callable[[str], object],
    given: dict[str, Any],
) -> dict[str, Any]:
    """AutoAttack at each radius: print what is left after each attack, and give what a card keeps of it."""

    radii = [radius for radius in dict.fromkeys(eps) if radius > 0]
    if not radii:
        raise UserError(f"expected a radius --eps above 0 for AutoAttack, got {', '.join(map(str, eps)) or 'none'}")
    if folder is not None:
        for place in (folder, *folder.parents):
            if place.exists() and not place.is_dir():
                raise UserError(f"expected a folder to keep what is done in, got {folder}, where {place} is a file")
    rows: list[dict[str, Any]] = []
    found: list[Accuracy] = []
    for radius in radii:
        # One folder for each radius only where there are several, so that --out is where people look.
        place = folder if folder is None or len(radii) == 1 else folder / f"eps-{radius:g}"
        run = AutoRun(model, images, labels, eps=radius, num=num, folder=place, **given)
        heading = auto_heading(run, given["norm"])
        tell(f"{heading}; what is done is kept in {run.folder}")
        before = run.result().done
        if before:
            tell(f"{before} of {len(run.order)} images are done already")
        try:
            with _stopped_politely(), _bar(sum(map(len, workers.share(run.batches))), workers) as advance:
                result = run.run(workers=workers, on_images=advance)
        except KeyboardInterrupt:
            result = run.result()
            if workers.first:
                if result.done:
                    echo_auto(result, given["norm"], len(model.classes))
                say(f"stopped after {result.done} of {result.wanted} images; the same command goes on")
            raise SystemExit(130) from None
        if workers.first:
            echo_auto(result, given["norm"], len(model.classes))
        if not rows:
            found.append(Accuracy(0.0, result.clean, result.done))
            rows.append(card_row(found[0]))
        found.append(result.robust)
        rows.append(auto_card_row(result))
    if workers.first:
        _beware(found)
    precision = given["precision"] or "float32"
    return {
        "norm": given["norm"],
        "attack": f"{title(len(model.classes))}, standard version of {package_version()}",
        "precision": f"attacked in {precision}, decided in float32",
        "seed": given["seed"],
        "rows": rows,
    }


def look_for_masking(
    model: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    eps: Sequence[float],
    num: int | None,
    given: dict[str, Any],
) -> None:
    """Print the signs of masked gradients at the largest radius."""

    wanted = ("norm", "seed", "precision", "batch_size")
    chosen = drawn(len(images), min(num or MASKING_IMAGES, MASKING_IMAGES), given["seed"])
    settings: dict[str, Any] = {name: given[name] for name in wanted} | {"precision": given["precision"] or "float32"}
    say(f"signs of masked gradients at eps {max(eps):g}, on {len(chosen)} images")
    with _bar(len(chosen), ALONE) as advance:
        signs = check_masking(model, images, labels, eps=max(eps), indices=chosen, on_images=advance, **settings)
    for sign in signs:
        click.echo(f"{'SEEN' if sign.seen else 'not seen':9} {sign.name}: {sign.figures}")
    if any(sign.seen for sign in signs):
        click.echo("the figures above may be too good: gradients may be masked")


@contextmanager
def _bar(total: int, workers: Workers) -> Iterator[Callable[[float], object]]:
    """A progress bar with the time left, or, where nobody watches, a line on it once there is something to say."""

    shown = interactive() and workers.first
    form = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} images, {elapsed} gone, {remaining} left"
    with tqdm(total=total, disable=not shown, desc="attacking", bar_format=form) as bar:
        began, done, there, told = time.monotonic(), 0.0, 0.0, shown or not workers.first

        def advance(images: float) -> None:
            nonlocal done, there, told
            bar.update(images)
            done += images
            gone = time.monotonic() - began
            if gone < AT_ONCE:
                there = done  # By an earlier run of the same command.
            if not told and gone > 30 and there < done < total:
                told = True
                minutes = max(1, round(gone * (total - done) / (done - there) / 60))
                say(f"about {minutes} minute{'s' if minutes > 1 else ''} to go")

        yield advance


@contextmanager
def _stopped_politely() -> Iterator[None]:
    """A polite kill, as ``torchrun`` sends it, stops as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
