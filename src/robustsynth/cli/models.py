"""``robustsynth models``"""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import TYPE_CHECKING, Any

import click

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
        whole = one.as_dict() | {"card": None if one.card is None else dataclasses.asdict(one.card)}
        click.echo(json.dumps(whole, indent=2, ensure_ascii=False) if as_json else "\n".join(_card_lines(one)))
        return
    found = list_models()
    if as_json:
        click.echo(json.dumps([each.as_dict() for each in found], indent=2, ensure_ascii=False))
        return
    if all(each.source != "bundled" for each in found):
        click.echo("no models are bundled with this installation")
    for source, models in itertools.groupby(found, key=lambda each: each.source):
        click.echo(f"{SOURCES[source]}:")
        for each in models:
            click.echo("\n".join(_lines(each)))


def _lines(each: Listed) -> list[str]:
    from robustsynth.cli.describe import threat
    from robustsynth.models.card import AUTO, CLEAN, PGD, one_line

    name, *others = (one_line(name) for name in each.names)
    lines = [f"  {name}" + (f" (= {', '.join(others)})" if others else "")]
    if each.problem is not None or each.card is None:
        return [*lines, f"      cannot be used: {one_line(each.problem or 'no card')}"]
    card = each.card
    accuracies = [accuracy_phrase(each.accuracies, attack) for attack in (CLEAN, PGD, AUTO)]
    licence = card.licence if card.licence.strip() else "not stated"
    what = [
        f"{card.architecture} of width {card.width}",
        f"{card.data.get('name', 'unknown data')}, {len(card.classes)} classes at {card.image_size}×{card.image_size}",
        threat(card),
    ]
    return [
        *lines,
        f"      {one_line(', '.join(what))}",
        f"      {one_line('; '.join(accuracies))}",
        f"      {each.parameters / 1e6:.2f} million parameters, {each.size / 1e6:.1f} MB "
        f"{'with' if each.seeds else 'without class'} seeds, licence {one_line(licence)}",
    ]


def _card_lines(each: Listed) -> list[str]:
    """The whole card, its classes first."""
    from robustsynth.models.card import one_line

    card = each.card
    assert card is not None
    lines = [*_lines(each), f"      in {one_line(each.folder)}"]
    lines += [f"      {one_line(card.description)}"] if card.description else []
    lines += ["", f"classes ({len(card.classes)}):"]
    for index, name in enumerate(card.classes):
        others = card.aliases.get(name, [])
        lines.append(f"  {index:>3}  {one_line(name)}" + (f"  (also {one_line(', '.join(others))})" if others else ""))
    measured = {
        row.title + (f" at {row.norm} {row.eps:g}" if row.eps else ""): f"{100 * row.share:.1f} % of "
        f"{'an unknown number of' if row.images is None else format(row.images, ',')} images, {row.data}"
        for row in each.accuracies
    }
    sections = {
        "accuracy": measured,
        "tuned settings": card.tasks,
        "data": card.data,
        "training": card.training,
        "normalisation": {"mean": list(card.mean), "std": list(card.std)},
    }
    for title, values in sections.items():
        rows = [f"  {one_line(key)}: {one_line(_phrase(value))}" for key, value in values.items()]
        lines += ["", f"{title}:", *rows] if rows else []
    return lines


def _phrase(value: Any) -> str:
    return ", ".join(f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else str(value)


def accuracy_phrase(rows: tuple[Measured, ...], attack: str) -> str:
    """Such as ``PGD-20 62.1 % at l2 0.5 (10,000 images)``.

    Example:
        >>> accuracy_phrase((), "auto")
        'AutoAttack not measured'
    """
    from robustsynth.models.card import TITLES

    chosen = [row for row in rows if row.attack == attack]
    figures = [
        ("" if place and row.title == chosen[place - 1].title else f"{row.title} ")
        + f"{100 * row.share:.1f} %"
        + (f" at {row.norm} {row.eps:g}" if row.eps else "")
        + ("" if row.images is None else f" ({row.images:,} images)")
        for place, row in enumerate(chosen)
    ]
    return ", ".join(figures) or f"{TITLES[attack]} not measured"
