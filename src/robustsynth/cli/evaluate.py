"""``robustsynth evaluate``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustsynth.cli import interactive, say
from robustsynth.cli.options import Numbers

if TYPE_CHECKING:
    from robustsynth.evaluation.accuracy import Accuracy


@click.command("evaluate")
@click.option("--model", "model_name", required=True, help="A bundled name or a model folder.")
@click.option("--data", required=True, help="A folder of class folders or parquet files, or a Hugging Face Hub name.")
@click.option("--split", default="test", show_default=True, help="Which part of the data.")
@click.option("--norm", type=click.Choice(["l2", "linf"]), default=None, help="The model's own if not given.")
@click.option(
    "--eps",
    type=Numbers(float),
    default=None,
    help="Radii such as 0.25,0.5,1.0; the model's own if not given.",
)
@click.option("--num", type=click.IntRange(min=1), default=None, help="Only so many images, drawn at random.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of random starts and of the images drawn."
)
@click.option(
    "--precision", type=click.Choice(["float32", "bfloat16"]), default=None, help="Of the attack's gradients."
)
@click.option("--batch-size", type=click.IntRange(min=1), default=None)
@click.option("--device", default=None, help="cpu or cuda.")
@click.option("--record", is_flag=True, help="Write the figures into the model's card.")
def command(
    model_name: str,
    data: str,
    split: str,
    norm: str | None,
    eps: tuple[float, ...] | None,
    num: int | None,
    seed: int,
    precision: str | None,
    batch_size: int | None,
    device: str | None,
    record: bool,
) -> None:
    """Measure a classifier: clean accuracy, and accuracy under PGD.

    PGD is 20 steps of 2.5·eps/20, once from the image itself and once from a random start; an image counts only if
    it is right clean and after both. Intervals are of 95 % confidence.
    """
    import numpy as np
    from tqdm import tqdm

    from robustsynth.cli.describe import attack_name, describe_model
    from robustsynth.data import load_data
    from robustsynth.errors import UserError
    from robustsynth.evaluation.accuracy import evaluate_accuracy
    from robustsynth.models.files import load_model

    model = load_model(model_name, device=device)
    say(describe_model(model))
    threat_model = {} if model.card is None else model.card.threat_model
    own_norm: str = threat_model.get("norm", "l2")
    norm = norm or own_norm
    if eps is None and norm != own_norm:
        raise UserError(f"expected --eps with --norm {norm}, because the model's own radius is of {own_norm}, got none")
    if eps is None:
        eps = tuple(e for e in (threat_model.get("eps", 0.0),) if e) or (0.5,)
    images = load_data(data, split, image_size=model.image_size, channels=model.channels, announce=say)
    if len(images.classes) != len(model.classes):
        raise UserError(
            f"expected data with the model's {len(model.classes)} classes ({', '.join(model.classes[:3])} …), "
            f"got {len(images.classes)} ({', '.join(images.classes[:3])} …)"
        )
    labels = np.asarray(images.labels)
    if set(images.classes) == set(model.classes):
        # The same classes may come in another order, where they are labelled by their sorted names.
        labels = np.array([model.classes.index(name) for name in images.classes])[labels]
    chosen = np.arange(len(images))
    if num is not None and num < len(images):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:num])
    execution = model.synthesizer(precision=precision, batch_size=batch_size).execution
    radii = ", ".join(f"{radius:g}" for radius in eps)
    say(f"PGD-20, {norm}, eps {radii}; gradients in {execution.precision}, decided in float32")
    with tqdm(total=len(chosen), unit="image", disable=not interactive(), desc="attacking") as bar:
        rows = evaluate_accuracy(
            model,
            images.images[chosen],
            labels[chosen],
            norm=norm,
            eps=eps,
            seed=seed,
            precision=precision,
            batch_size=batch_size,
            on_images=bar.update,
        )
    for row in rows:
        low, high = row.interval
        name = "clean" if row.eps == 0 else f"PGD-20 {norm} {attack_name(row.eps)}"
        click.echo(f"{name:28} {100 * row.share:6.2f} %  [{100 * low:.2f}, {100 * high:.2f}]  of {row.total} images")
    if record:
        if model.card is None or model.folder is None:
            raise UserError("expected a model folder with a card to --record into")
        _record(model.folder, rows, norm, f"{images.name} {split}", seed, execution.precision)
        say(f"recorded in {model.folder / 'card.json'}")


def _record(folder: Path, rows: list[Accuracy], norm: str, data: str, seed: int, precision: str) -> None:
    import dataclasses

    from robustsynth.models.card import ModelCard

    measured = {
        "data": data,
        "norm": norm,
        "attack": "PGD-20 of 2.5*eps/20, from the image and from a random start",
        "precision": f"gradients in {precision}, decided in float32",
        "seed": seed,
        "rows": [
            {"eps": r.eps, "share": r.share, "images": r.total, "interval": [round(v, 4) for v in r.interval]}
            for r in rows
        ],
    }
    dataclasses.replace(ModelCard.load(folder), accuracies=measured).save(folder)
