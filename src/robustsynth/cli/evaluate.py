"""``robustsynth evaluate``"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustsynth.cli import say
from robustsynth.cli.options import Numbers

if TYPE_CHECKING:
    import numpy as np

    from robustsynth.data import ImageData
    from robustsynth.models.classifier import Classifier


@click.command("evaluate")
@click.option("--model", "model_name", required=True, help="A bundled name or a model folder.")
@click.option("--data", required=True, help="A folder of class folders or parquet files, or a Hugging Face Hub name.")
@click.option("--split", default="test", show_default=True, help="Which part of the data.")
@click.option(
    "--attack",
    type=click.Choice(["pgd", "apgd", "auto"]),
    default="pgd",
    show_default=True,
    help="auto is AutoAttack by its authors' package, for figures to stand beside RobustBench's.",
)
@click.option("--norm", type=click.Choice(["l2", "linf"]), default=None, help="The model's own if not given.")
@click.option(
    "--eps",
    type=Numbers(float),
    default=None,
    help="Radii such as 0.25,0.5,1.0; the model's own if not given.",
)
# torchrun takes --num for an abbreviation of an option of its own, wherever it stands; hence the second name.
@click.option(
    *("--num", "--num-images", "num"),
    type=click.IntRange(min=1),
    default=None,
    help="Only so many images, drawn at random. (Under torchrun, write --num-images.)",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of random starts and of the images drawn."
)
@click.option(
    "--restarts", type=click.IntRange(min=1), default=1, show_default=True, help="Random starts of pgd and apgd."
)
@click.option("--steps", type=click.IntRange(min=1), default=None, help="20 of pgd and 100 of apgd if not given.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default=None,
    help="Of the attack's gradients: measured for pgd, float32 for the others if not given.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=None)
@click.option("--device", default=None, help="cpu or cuda.")
@click.option("--out", type=click.Path(), default=None, help="Where auto keeps what is done; the cache if not given.")
@click.option("--check-masking", is_flag=True, help="Also look for signs that gradients are masked.")
@click.option("--record", is_flag=True, help="Write the figures into the model's card.")
def command(
    model_name: str,
    data: str,
    split: str,
    attack: str,
    norm: str | None,
    eps: tuple[float, ...] | None,
    num: int | None,
    seed: int,
    restarts: int,
    steps: int | None,
    precision: str | None,
    batch_size: int | None,
    device: str | None,
    out: str | None,
    check_masking: bool,
    record: bool,
) -> None:
    """Measure a classifier: clean accuracy, and accuracy under an attack.

    PGD is 20 steps of 2.5·eps/20, once from the image itself and once from a random start; an image counts only if
    it is right clean and after both. APGD is 100 steps on each of two losses, from random starts. AutoAttack goes on
    where it stopped when the same command is run again. Intervals are of 95 % confidence.
    """
    import numpy as np

    from robustsynth.cli.describe import describe_model
    from robustsynth.cli.evaluate_runs import look_for_masking, measure_auto, measure_quickly
    from robustsynth.cli.workers import one_voice
    from robustsynth.data import load_data
    from robustsynth.errors import UserError
    from robustsynth.models.files import load_model
    from robustsynth.processes import Workers

    workers = Workers.from_environment()
    with workers.joined(), one_voice(workers):
        tell: Callable[[str], object] = say if workers.first else lambda text: None
        if attack == "auto" and (steps is not None or restarts != 1):
            raise UserError(
                "expected --steps and --restarts with --attack pgd or apgd, got them with auto, which fixes them"
            )
        if attack != "auto" and out is not None:
            raise UserError(f"expected --out with --attack auto, got it with {attack}, which keeps nothing")
        model = load_model(model_name, device=workers.device(device))
        if record and (model.card is None or model.folder is None):
            raise UserError("expected a model folder with a card to --record into")
        tell(describe_model(model))
        norm, eps = _ball(model, norm, eps)
        images = load_data(data, split, image_size=model.image_size, channels=model.channels, announce=tell)
        labels = _labels(model, images, tell)
        chosen = np.arange(len(images))
        if num is not None and num < len(images):
            chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:num])
        given: dict[str, Any] = {"norm": norm, "seed": seed, "precision": precision, "batch_size": batch_size}
        if attack == "auto":
            folder = None if out is None else Path(out)
            measured = measure_auto(model, images.images, labels, eps, num, folder, workers, tell, given)
        else:
            given["precision"] = precision or (None if attack == "pgd" else "float32")
            more = {"attack": attack, "restarts": restarts, "steps": steps}
            measured = measure_quickly(model, images.images, labels, chosen, eps, workers, tell, given | more)
        if not workers.first:
            return
        if check_masking:
            look_for_masking(model, images.images, labels, eps, num, given)
        if record and model.folder is not None:
            _record(model.folder, attack, {"data": f"{images.name} {split}", **measured})
            say(f"recorded in {model.folder / 'card.json'}")


def _ball(model: Classifier, norm: str | None, eps: tuple[float, ...] | None) -> tuple[str, tuple[float, ...]]:
    """The ball that was asked for, or the model's own."""
    from robustsynth.errors import UserError

    if eps is not None and not all(0 <= radius < math.inf for radius in eps):
        raise UserError(f"expected radii --eps of 0 or more, got {', '.join(f'{radius:g}' for radius in eps)}")
    threat_model = {} if model.card is None else model.card.threat_model
    own_norm: str = threat_model.get("norm", "l2")
    norm = norm or own_norm
    if eps is None and norm != own_norm:
        raise UserError(f"expected --eps with --norm {norm}, because the model's own radius is of {own_norm}, got none")
    return norm, eps if eps is not None else tuple(e for e in (threat_model.get("eps", 0.0),) if e) or (0.5,)


def _labels(model: Classifier, images: ImageData, tell: Callable[[str], object]) -> np.ndarray:
    """The data's labels as the model numbers its classes."""
    import numpy as np

    from robustsynth.errors import UserError
    from robustsynth.models.class_names import matching_class

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


def _record(folder: Path, attack: str, measured: dict[str, Any]) -> None:
    """Into the card: PGD's figures at the top as ever, the others' under their own names beside them."""
    import dataclasses

    from robustsynth.models.card import ModelCard

    card = ModelCard.load(folder)
    others = {name: card.accuracies[name] for name in ("apgd", "auto") if name in card.accuracies}
    accuracies = measured | others if attack == "pgd" else card.accuracies | {attack: measured}
    dataclasses.replace(card, accuracies=accuracies).save(folder)
