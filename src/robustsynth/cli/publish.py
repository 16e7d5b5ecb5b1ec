"""``robustsynth publish``"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustsynth.cli.progress import say
from robustsynth.errors import UserError

if TYPE_CHECKING:
    from robustsynth.models.classifier import Classifier

EACH = 8
"""Samples of each class on the page."""
ROWS = 10
"""Classes on the page."""


@click.command("publish")
@click.argument("model_name", metavar="MODEL")
@click.option("--to", required=True, help="owner/name on the Hugging Face Hub; it is made if missing.")
@click.option("--dry-run", type=click.Path(), default=None, help="Write all to this folder, and send nothing.")
@click.option("--private", is_flag=True, help="Whether a repository that is made is private.")
@click.option("--samples/--no-samples", default=True, show_default=True, help="Draw a grid for the page.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the samples.")
@click.option("--device", default=None, help="cpu or cuda.")
def command(
    model_name: str, to: str, dry_run: str | None, private: bool, samples: bool, seed: int, device: str | None
) -> None:
    """Put a model on the Hugging Face Hub: weights and seeds as safetensors, its card, and a page with samples.

    Log in first with `hf auth login`. Anybody then has it as --model hf://owner/name.
    """
    from robustsynth.models.hub import hub_name, publish_folder
    from robustsynth.models.store import find_model

    hub_name(to)
    source = find_model(model_name)
    if dry_run is not None:
        folder = Path(dry_run)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"expected an empty folder for --dry-run, got {folder}; choose another one")
        _prepare(source, folder, to, samples, seed, device)
        click.echo(f"wrote what would be published as {to} to {folder}")
        return
    with tempfile.TemporaryDirectory(prefix="robustsynth-") as temporary:
        _prepare(source, Path(temporary), to, samples, seed, device)
        say(f"sending to {to}")
        address = publish_folder(Path(temporary), to, private=private)
    click.echo(f"published as {address}; use it: robustsynth generate --model hf://{to} --out samples")


def _prepare(source: Path, folder: Path, to: str, samples: bool, seed: int, device: str | None) -> None:
    """All files of the repository. The model is loaded first, so that a damaged one is never published."""
    from robustsynth.models.hub import MODEL_FILES, model_page
    from robustsynth.models.store import load_model

    model = load_model(source, device=device)
    card = model.card
    assert card is not None
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODEL_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if samples:
        _draw(model, folder / "samples.png", seed)
    if card.licence == "not stated":
        say("its licence is not stated: people will not know what they may do with it")
    page = model_page(card, repository=to, samples="samples.png" if samples else None)
    (folder / "README.md").write_text(page, encoding="utf-8")


def _draw(model: Classifier, path: Path, seed: int) -> None:
    """A row of samples for each of the first classes, none selected."""
    import torch

    from robustsynth.images import save_png, to_uint8
    from robustsynth.sheet import class_sheet
    from robustsynth.tasks.functions import generate

    classes = min(len(model.classes), ROWS)
    say(f"drawing {EACH} samples of {classes} classes")
    labels = torch.arange(classes).repeat_interleave(EACH)
    images = to_uint8(generate(model, labels, seed=seed))
    names = [model.classes[label] for label in labels.tolist()]
    save_png(path, class_sheet(names, images.__getitem__, classes=model.classes))
