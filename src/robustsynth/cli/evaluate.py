"""``robustsynth evaluate``: accuracy with and without an attack, kept in a folder so that a run can be continued."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustsynth.cli.options import Norm, Numbers
from robustsynth.cli.progress import STOPPED, describe_model, interactive, say
from robustsynth.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from robustsynth.data import ImageData
    from robustsynth.evaluation.accuracy import Accuracy, EvaluationResult
    from robustsynth.evaluation.attacks import Attack
    from robustsynth.models.classifier import Classifier
    from robustsynth.processes import Workers

AT_LEAST_1 = click.IntRange(min=1)

MASKING_IMAGES = 100
"""How many images are looked at for signs of masked gradients, at most."""

SQUARE_ALARM = 0.002
"""The share of images that Square alone may find before it is a sign of masked gradients: the package's own bound."""


@click.command("evaluate")
@click.option("--model", required=True, help="A bundled name or a model folder.")
@click.option("--data", required=True, help="A folder of class folders or parquet files, or a Hugging Face Hub name.")
@click.option("--split", default="test", show_default=True, help="Which part of the data.")
@click.option(
    "--attack",
    type=click.Choice(["pgd", "apgd", "auto"]),
    default="pgd",
    show_default=True,
    help="auto is AutoAttack by its authors' package, for figures that are compared with RobustBench's.",
)
@click.option("--norm", type=Norm(), help="Such as l2 or linf; the model's own if not given.")
@click.option("--eps", type=Numbers(float), help="Radii such as 0.25,0.5,1.0; the model's own if not given.")
# torchrun takes --num for an abbreviation of an option of its own, wherever it stands; hence the second name.
@click.option(
    *("--num", "--num-images", "num"),
    type=AT_LEAST_1,
    help="Only so many images, drawn at random. (Under torchrun, write --num-images.)",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of random starts and images.")
@click.option("--restarts", type=AT_LEAST_1, default=1, show_default=True, help="Random starts of pgd and apgd.")
@click.option("--steps", type=AT_LEAST_1, help="20 of pgd and 100 of apgd if not given.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    help="Of the attack's gradients: measured for pgd, float32 for the others if not given.",
)
@click.option("--batch-size", type=AT_LEAST_1, help="Measured for pgd and apgd if not given.")
@click.option("--device", help="Any that torch names, such as cpu or cuda; tested on cpu.")
@click.option("--out", type=click.Path(), help="Where results are kept; the cache if not given.")
@click.option("--overwrite", is_flag=True, help="Replace what other settings wrote to the folder.")
@click.option("--check-masking", is_flag=True, help="Also look for signs that gradients are masked.")
@click.option("--record", is_flag=True, help="Write the figures into the model's card.")
def command(**asked: Any) -> None:
    """Measure a classifier: clean accuracy, and accuracy under an attack.

    PGD is 20 steps of 2.5·eps/20, once from the image itself and once from a random start; an image counts only if
    it is correct clean and after both. APGD is 100 steps on each of two losses, from random starts. An interrupted
    run is continued by the same command. Intervals are of 95 % confidence.
    """
    from robustsynth.data import load_data
    from robustsynth.models.store import load_model
    from robustsynth.processes import Workers

    workers = Workers.from_environment()
    with workers.joined(), workers.errors_reported_once():
        tell: Callable[[str], object] = say if workers.first else lambda text: None
        if asked["attack"] == "auto" and (asked["restarts"], asked["steps"]) != (1, None):
            raise UserError(
                "expected --steps and --restarts with --attack pgd or apgd, got them with auto, which fixes them"
            )
        model = load_model(asked["model"], device=workers.device(asked["device"]))
        if asked["record"] and (model.card is None or model.folder is None):
            raise UserError("expected a model folder with a card to --record into")
        tell(describe_model(model))
        asked["norm"], asked["eps"] = _threat_model(model, asked["norm"], asked["eps"])
        data, split = asked["data"], asked["split"]
        images = load_data(data, split, image_size=model.image_size, channels=model.channels, announce=tell)
        labels = _labels(model, images, tell)
        measurement = _Measurement(model, images.images, labels, asked, workers, tell)
        measured = measurement.measure()
        if workers.first and asked["check_masking"]:
            measurement.look_for_masking()
        if workers.first and asked["record"] and model.folder is not None:
            _record(model.folder, asked["attack"], {"data": f"{images.name} {split}", **measured})
            say(f"recorded in {model.folder / 'card.json'}")


def _threat_model(model: Classifier, norm: str | None, eps: tuple[float, ...] | None) -> tuple[str, tuple[float, ...]]:
    """The norm and the radii that were asked for, or the model's own."""
    from robustsynth.constraints import norm_named

    if eps is not None and not all(0 <= radius < math.inf for radius in eps):
        raise UserError(f"expected radii --eps of 0 or more, got {', '.join(f'{radius:g}' for radius in eps)}")
    threat_model = {} if model.card is None else model.card.threat_model
    own_norm: str = threat_model.get("norm", "l2")
    norm = norm or own_norm
    if eps is None:
        if norm != own_norm:
            raise UserError(f"expected --eps with --norm {norm}, as the model's own radius is of {own_norm}, got none")
        usual = threat_model.get("eps") or norm_named(norm).usual_eps
        if usual is None:
            raise UserError(f"expected --eps with --norm {norm}, which has no usual radius, got none")
        eps = (usual,)
    return norm, eps


def _labels(model: Classifier, images: ImageData, tell: Callable[[str], object]) -> np.ndarray:
    """The data's labels as the model numbers its classes."""
    import numpy as np

    from robustsynth.names import matching_class

    if len(images.classes) != len(model.classes):
        raise UserError(
            f"expected data with the model's {len(model.classes)} classes ({', '.join(model.classes[:3])} …), "
            f"got {len(images.classes)} ({', '.join(images.classes[:3])} …)"
        )
    labels = np.asarray(images.labels)
    # The same classes may come in another order, where they are labelled by their sorted names.
    meant = [matching_class(name, model.classes) for name in images.classes]
    if None not in meant and len(set(meant)) == len(meant):
        return np.array(meant)[labels]
    if all(name.isdecimal() for name in images.classes) or all(name.isdecimal() for name in model.classes):
        tell("classes without names on one side: taking them in their order")
        return labels
    name = next((name for name, index in zip(images.classes, meant, strict=True) if index is None), images.classes[0])
    raise UserError(
        f"expected data with the model's classes ({', '.join(model.classes)}), got {name!r} among "
        f"{', '.join(images.classes)}; rename the folders, or leave out what the model was not trained on"
    )


@dataclass(frozen=True)
class _Measurement:
    """A model, labelled images, the command's options, and how people hear of the results."""

    model: Classifier
    images: np.ndarray
    labels: np.ndarray
    asked: dict[str, Any]
    workers: Workers
    tell: Callable[[str], object]

    def attacks(self) -> list[Attack]:
        """The attack that was asked for, at each radius."""
        from robustsynth.evaluation.attacks import GradientAttack
        from robustsynth.evaluation.auto_attack import AutoAttack

        attack, eps, precision = self.asked["attack"], self.asked["eps"], self.asked["precision"]
        given = {name: self.asked[name] for name in ("norm", "seed", "batch_size")}
        given["precision"] = precision or (None if attack == "pgd" else "float32")
        radii = [radius for radius in dict.fromkeys(eps) if radius > 0]
        if attack == "auto":
            if not radii:
                got = ", ".join(map(str, eps)) or "none"
                raise UserError(f"expected a radius --eps above 0 for AutoAttack, got {got}")
            return [AutoAttack(self.model, eps=radius, **given) for radius in radii]
        # As the first process measures it, or each might take another precision.
        sizes = {name: given[name] for name in ("precision", "batch_size")}
        execution = self.workers.agreed(lambda: self.model.frozen(**sizes).execution)
        given |= {"precision": execution.precision, "batch_size": execution.batch_size}
        given |= {name: self.asked[name] for name in ("restarts", "steps")}
        return [GradientAttack(self.model, attack, eps=radius, **given) for radius in radii or [0.0]]

    def measure(self) -> dict[str, Any]:
        """Print the accuracy under each attack, and return what a card keeps of it."""
        from robustsynth.evaluation.masking import rising

        attacks = self.attacks()
        rows: list[dict[str, Any]] = []
        found: list[Accuracy] = []
        for attack in attacks:
            # One folder for each radius only where there are several, so that --out is where people look.
            folder = None if self.asked["out"] is None else Path(self.asked["out"])
            if folder is not None and len(attacks) > 1:
                folder /= f"eps-{attack.ball.eps:g}"
            result = self._run(attack, folder)
            if self.workers.first:
                _echo(attack, result, clean=not rows or bool(attack.titles))
            if not rows:
                found.append(result.unattacked)
                rows.append(_card_row(found[0]))
            if attack.attempts:
                found.append(result.robust)
                left = {
                    attack.titles[name]: count / result.done for name, count in result.left.items() if attack.titles
                }
                rows.append(_card_row(result.robust) | ({"left_after": left} if left else {}))
        if self.workers.first and rising(found).seen:
            say(f"beware: accuracy rises with eps, which is a sign of masked gradients ({rising(found).figures})")
        first = attacks[0]
        return {
            "norm": first.ball.name,
            "attack": first.describe(),
            "precision": f"attacked in {first.precision}, decided in float32",
            "seed": first.seed,
            "rows": rows,
        }

    def _run(self, attack: Attack, folder: Path | None) -> EvaluationResult:
        from robustsynth.evaluation.accuracy import EvaluationRun, drawn
        from robustsynth.files import only_writer

        order, overwrite = drawn(len(self.images), self.asked["num"], attack.seed), self.asked["overwrite"]
        run = EvaluationRun(attack, self.images, self.labels, order, folder=folder, overwrite=overwrite)
        assert run.run_folder is not None
        out = run.run_folder.out
        self.tell(f"{_heading(attack, len(order))}; results are kept in {out}")
        if not overwrite and (before := run.result().done):
            self.tell(f"{before} of {len(order)} images are done already")
        mine = sum(map(len, self.workers.share(run.batches)))
        # SIGTERM, which torchrun sends, stops as Ctrl-C does.
        handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            alone = only_writer(out) if self.workers.first else contextlib.nullcontext()
            with alone, _progress(mine, shown=self.workers.first) as advance:
                result = run.run(workers=self.workers, on_images=advance)
        except KeyboardInterrupt:
            result = run.result()
            if self.workers.first:
                if result.done:
                    _echo(attack, result)
                say(f"stopped after {result.done} of {result.wanted} images; the same command goes on")
            raise SystemExit(STOPPED) from None
        finally:
            signal.signal(signal.SIGTERM, handler)
        if not result.complete:
            raise UserError(f"expected a folder --out that all machines see, got {out}; name another one")
        return result

    def look_for_masking(self) -> None:
        """Print the signs of masked gradients at the largest radius."""
        from robustsynth.evaluation.accuracy import drawn
        from robustsynth.evaluation.masking import check_masking

        eps, num = max(self.asked["eps"]), min(self.asked["num"] or MASKING_IMAGES, MASKING_IMAGES)
        chosen = drawn(len(self.images), num, self.asked["seed"])
        given: dict[str, Any] = {name: self.asked[name] for name in ("norm", "seed", "precision", "batch_size")}
        say(f"signs of masked gradients at eps {eps:g}, on {len(chosen)} images")
        with _progress(len(chosen)) as advance:
            given |= {"eps": eps, "indices": chosen, "on_images": advance}
            signs = check_masking(self.model, self.images, self.labels, **given)
        for sign in signs:
            click.echo(f"{'SEEN' if sign.seen else 'not seen':9} {sign.name}: {sign.figures}")
        if any(sign.seen for sign in signs):
            click.echo("the figures above may be too good: gradients may be masked")


def _heading(attack: Attack, images: int) -> str:
    """What is about to be measured; where there are fewer than nine other classes, AutoAttack targets all of them."""
    classes = len(attack.model.classes)
    targets = f", {classes - 1} targets" if attack.titles and classes < 10 else ""
    package = f"{attack.record()['package']}, " if attack.titles else ""
    return (
        f"{attack.name}, {images:,} images, {attack.ball.name} at eps {attack.ball.eps:g}{targets} ({package}attacked "
        f"in {attack.precision}, decided in float32, {attack.batch_size} images a batch)"
    )


def _echo(attack: Attack, result: EvaluationResult, *, clean: bool = True) -> None:
    """Print the accuracy after the attack, and after each attempt that has a title; and warnings."""
    if clean:
        _echo_row("clean", result.unattacked)
    for name, title in attack.titles.items():
        if name in result.left:
            _echo_row(f"  left after {title}", dataclasses.replace(result.robust, correct=result.left[name]))
    if attack.attempts:
        _echo_row(f"{attack.name} {attack.ball.name} at eps {result.eps:g}", result.robust)
    if attack.titles:
        counted = f"{result.done:,} images" if result.complete else f"{result.done:,} of {result.wanted:,} images"
        click.echo(f"{attack.name}, {counted}")
    for warning in _warnings_of(result):
        click.echo(f"beware: {warning}", err=True)


def _echo_row(name: str, row: Accuracy) -> None:
    low, high = row.interval
    click.echo(f"{name:28} {100 * row.share:6.2f} %  [{100 * low:.2f}, {100 * high:.2f}]  of {row.total} images")


def _warnings_of(result: EvaluationResult) -> list[str]:
    """What the package warned of, and whether its black-box attack found what the others missed."""
    found = [f"the package says: {text}" for text in result.warnings]
    counts = list(result.left.values())
    taken = counts[-2] - counts[-1] if "square" in result.left else 0
    if taken > max(SQUARE_ALARM * result.done, 1):
        found.append(
            f"Square, which uses no gradients, found {taken} of {result.done} images more than the attacks that do: "
            "a sign of masked gradients; see --check-masking"
        )
    return found


def _card_row(row: Accuracy) -> dict[str, Any]:
    return {"eps": row.eps, "share": row.share, "images": row.total, "interval": [round(v, 4) for v in row.interval]}


@contextlib.contextmanager
def _progress(total: int, *, shown: bool = True) -> Iterator[Callable[[float], object]]:
    """A progress bar with the time left; where nobody watches, a line on it after half a minute."""
    from tqdm import tqdm

    form = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} images, {elapsed} gone, {remaining} left"
    hidden = not (shown and interactive())
    with tqdm(total=total, disable=hidden, desc="attacking", bar_format=form) as bar:
        began, done, there, said = time.monotonic(), 0.0, 0.0, not (shown and hidden)

        def advance(images: float) -> None:
            nonlocal done, there, said
            bar.update(images)
            done += images
            gone = time.monotonic() - began
            if gone < 1:
                there = done  # By an earlier run of the same command.
            if not said and gone > 30 and there < done < total:
                said = True
                minutes = max(1, round(gone * (total - done) / (done - there) / 60))
                say(f"about {minutes} minute{'s' if minutes > 1 else ''} to go")

        yield advance


def _record(folder: Path, attack: str, measured: dict[str, Any]) -> None:
    """Into the card: PGD's figures at the top as ever, the others' under their own names beside them."""
    from robustsynth.models.card import ModelCard

    card = ModelCard.load(folder)
    others = {name: card.accuracies[name] for name in ("apgd", "auto") if name in card.accuracies}
    accuracies = measured | others if attack == "pgd" else card.accuracies | {attack: measured}
    dataclasses.replace(card, accuracies=accuracies).save(folder)
