"""``robustsynth models``, ``import`` and ``publish``."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustsynth.cli.options import Norm, Numbers
from robustsynth.cli.progress import robustness, say
from robustsynth.errors import UserError

if TYPE_CHECKING:
    from robustsynth.models.card import Measured
    from robustsynth.models.store import Listed


@click.command("models")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs: a list of objects, or the object of NAME.")
def command(name: str | None, as_json: bool) -> None:
    """List the models at hand, or show one model's card and classes.

    Listed are those bundled with the package; those in zoo/ of the checkout that it runs from, and of the current
    folder; your own runs and models in the current folder; those that were fetched from the Hugging Face Hub before;
    each with what was measured of it. The name in front is what --model takes. A folder that cannot be used is listed
    with what is wrong with it.

    NAME is whatever --model takes: a name, a folder, or hf://owner/name.
    """
    from robustsynth.models.store import SOURCES, find_listed, list_models

    if name is not None:
        one = find_listed(name)
        values = one.as_dict() | {"card": None if one.card is None else dataclasses.asdict(one.card)}
        click.echo(json.dumps(values, indent=2, ensure_ascii=False) if as_json else "\n".join(_card_lines(one)))
        return
    found = list_models()
    if as_json:
        return click.echo(json.dumps([each.as_dict() for each in found], indent=2, ensure_ascii=False))
    if all(each.source != "bundled" for each in found):
        click.echo("no models are bundled with this installation")
    for source, models in itertools.groupby(found, key=lambda each: each.source):
        click.echo("\n".join([f"{SOURCES[source]}:", *(line for each in models for line in _lines(each))]))


def _lines(each: Listed) -> list[str]:
    from robustsynth.models.card import AUTO, CLEAN, PGD, one_line

    name, *others = each.names
    lines = [name + (f" (= {', '.join(others)})" if others else "")]
    if each.problem is not None or each.card is None:
        lines += [f"    cannot be used: {each.problem or 'no card'}"]
    else:
        card, data = each.card, each.card.data.get("name", "unknown data")
        lines += [
            f"    {card.architecture} of width {card.width}, {data}, {len(card.classes)} classes at "
            f"{card.image_size}×{card.image_size}, {robustness(card)}",
            "    " + "; ".join(_accuracy_phrase(each.accuracies, attack) for attack in (CLEAN, PGD, AUTO)),
            f"    {each.parameters / 1e6:.2f} million parameters, {each.size / 1e6:.1f} MB "
            f"{'with' if each.seeds else 'without class'} seeds, licence {card.licence.strip() or 'not stated'}",
        ]
    return [f"  {one_line(line)}" for line in lines]


def _card_lines(each: Listed) -> list[str]:
    """All of the card, its classes first."""
    from robustsynth.models.card import one_line

    card = each.card
    assert card is not None
    lines = [*_lines(each), f"      in {each.folder}", *([f"      {card.description}"] if card.description else [])]
    lines += ["", f"classes ({len(card.classes)}):"]
    for index, name in enumerate(card.classes):
        others = f"  (also {', '.join(card.aliases[name])})" if card.aliases.get(name) else ""
        lines.append(f"  {index:>3}  {name}{others}")
    sections = {
        "accuracy": {
            row.title + row.radius: f"{100 * row.share:.1f} % of "
            f"{'an unknown number of' if row.images is None else format(row.images, ',')} images, {row.data}"
            for row in each.accuracies
        },
        "tuned settings": card.tasks,
        "data": card.data,
        "training": card.training,
        "normalisation": {"mean": list(card.mean), "std": list(card.std)},
    }
    for title, values in sections.items():
        lines += ["", f"{title}:"] if values else []
        for key, value in values.items():
            inner = [f"{name} {part}" for name, part in value.items()] if isinstance(value, dict) else [str(value)]
            lines.append(f"  {key}: {', '.join(inner)}")
    return [one_line(line) for line in lines]


def _accuracy_phrase(rows: tuple[Measured, ...], attack: str) -> str:
    """Such as ``PGD-20 62.1 % at l2 0.5 (10,000 images)``."""
    from robustsynth.models.card import TITLES

    phrases, title = list[str](), ""
    for row in (row for row in rows if row.attack == attack):
        counted = "" if row.images is None else f" ({row.images:,} images)"
        phrases.append(f"{'' if row.title == title else row.title + ' '}{100 * row.share:.1f} %{row.radius}{counted}")
        title = row.title
    return ", ".join(phrases) or f"{TITLES[attack]} not measured"


@click.command("import")
@click.argument("file", type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="Folder for the model; it must not hold one yet.")
@click.option("--data", default=None, help="What it was trained on: cifar10, imagenet, imagenette, horse2zebra, …")
@click.option(
    "--classes", default=None, help="Names a,b,… in the order of the logits, a file with one a line, or their number."
)
@click.option("--arch", "architecture", default=None, help="Where names and shapes leave a doubt, such as resnet18.")
@click.option("--mean", type=Numbers(float), default=None, help="Of each channel in [0, 1], where the file has none.")
@click.option("--std", type=Numbers(float), default=None, help="Of each channel in [0, 1], where the file has none.")
@click.option("--image-size", type=click.IntRange(min=1), default=None, help="Side in pixels, if --data does not tell.")
@click.option("--norm", type=Norm(), default=None, help="What it was trained to withstand, l2 or linf.")
@click.option("--eps", type=float, default=None, help="The radius, in units of [0, 1]; 0 is standard training.")
@click.option("--licence", default="not stated", show_default=True, help="Of the weights.")
@click.option("--key", default=None, help="Which state dict of a checkpoint that has several, such as ema.")
@click.option("--half", is_flag=True, help="Store float16: half as large, and logits equal to three digits.")
def import_command(file: str, out: str, data: str | None, classes: str | None, **given: Any) -> None:
    """Make another library's checkpoint into a model: robustness, RobustBench, torchvision, timm; .pt or safetensors.

    FILE is read without being executed. Its layout and architecture are recognised; what it does not tell is asked for.
    """
    from robustsynth.data.specs import find_spec
    from robustsynth.models.importing import import_model

    spec = None if data is None else find_spec(data)
    card, foreign = import_model(file, out, data=spec, classes=_class_names(classes), **given)
    mean, std = (", ".join(map(str, values)) for values in (card.mean, card.std))
    say(f"read {file}: {foreign.form}, {foreign.layout} names, {foreign.fit}")
    say(f"normalisation: {foreign.normalisation}, mean {mean}, std {std}")
    if not card.threat_model:
        say("what it was trained to withstand is not known; --norm and --eps would put it on its card")
    if card.licence == "not stated":
        say("its licence is not stated; --licence would put it on its card")
    click.echo(f"wrote {out}; draw with it: robustsynth generate --model {out} --out {Path(out) / 'samples'}")


def _class_names(text: str | None) -> list[str] | int | None:
    """Names between commas, the lines of a file, or a number of classes."""
    if text is None or text.strip().isdecimal():
        return None if text is None else int(text)
    names = text.split(",")
    if len(names) == 1 and Path(text).is_file():
        try:
            names = Path(text).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise UserError(f"expected class names in {text}, one a line as UTF-8 text, got something else") from None
    return [name.strip() for name in names if name.strip()]


@click.command("publish")
@click.argument("model_name", metavar="MODEL")
@click.option("--to", required=True, help="owner/name on the Hugging Face Hub; it is made if missing.")
@click.option("--dry-run", type=click.Path(), default=None, help="Write all to this folder, and send nothing.")
@click.option("--private", is_flag=True, help="Whether a repository that is made is private.")
@click.option("--samples/--no-samples", default=True, show_default=True, help="Draw a grid for the page.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the samples.")
@click.option("--device", default=None, help="cpu or cuda.")
def publish_command(
    model_name: str, to: str, dry_run: str | None, private: bool, samples: bool, seed: int, device: str | None
) -> None:
    """Put a model on the Hugging Face Hub: weights and seeds as safetensors, its card, and a page with samples.

    Log in first with `hf auth login`. Anybody then has it as --model hf://owner/name.
    """
    import torch

    from robustsynth.images import save_png, to_uint8
    from robustsynth.models.hub import MODEL_FILES, hub_name, model_page, publish_folder
    from robustsynth.models.store import find_model, load_model
    from robustsynth.sheet import class_sheet
    from robustsynth.tasks.functions import generate

    hub_name(to)
    source = find_model(model_name)
    if dry_run and Path(dry_run).exists() and (not Path(dry_run).is_dir() or any(Path(dry_run).iterdir())):
        raise UserError(f"expected an empty folder for --dry-run, got {dry_run}; choose another one")
    with tempfile.TemporaryDirectory(prefix="robustsynth-") as temporary:
        folder = Path(dry_run or temporary)
        # Loaded first, so that a damaged model is never published.
        model = load_model(source, device=device)
        assert model.card is not None
        folder.mkdir(parents=True, exist_ok=True)
        for name in MODEL_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        if samples:
            # A row of 8 samples for each of the first 10 classes, none selected.
            labels = torch.arange(min(len(model.classes), 10)).repeat_interleave(8)
            say(f"drawing {len(labels)} samples")
            images, names = to_uint8(generate(model, labels, seed=seed)), [model.classes[i] for i in labels.tolist()]
            save_png(folder / "samples.png", class_sheet(names, images.__getitem__, classes=model.classes))
        if model.card.licence == "not stated":
            say("its licence is not stated: people will not know what they may do with it")
        page = model_page(model.card, repository=to, samples="samples.png" if samples else None)
        (folder / "README.md").write_text(page, encoding="utf-8")
        if dry_run is not None:
            click.echo(f"wrote what would be published as {to} to {folder}")
            return
        say(f"sending to {to}")
        address = publish_folder(folder, to, private=private)
    click.echo(f"published as {address}; use it: robustsynth generate --model hf://{to} --out samples")
