"""``robustsynth models``"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from robustsynth.models.listing import Listed
    from robustsynth.models.measured import Measured


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="For programs: a list of objects.")
def command(as_json: bool) -> None:
    """List the models at hand, with what was measured of each.

    Those bundled with the package; those in zoo/ of the checkout that it runs from, and of the current folder; those
    that were fetched from the Hugging Face Hub before. The name in front is what --model takes. A folder that cannot
    be used is listed with what is wrong with it.
    """
    from robustsynth.models.listing import SOURCES, list_models

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
    from robustsynth.models.measured import AUTO, CLEAN, PGD, one_line

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


def accuracy_phrase(rows: tuple[Measured, ...], attack: str) -> str:
    """Such as ``PGD-20 62.1 % at l2 0.5 (10,000 images)``.

    Example:
        >>> accuracy_phrase((), "auto")
        'AutoAttack not measured'
    """
    from robustsynth.models.measured import TITLES

    chosen = [row for row in rows if row.attack == attack]
    figures = [
        ("" if place and row.title == chosen[place - 1].title else f"{row.title} ")
        + f"{100 * row.share:.1f} %"
        + (f" at {row.norm} {row.eps:g}" if row.eps else "")
        + ("" if row.images is None else f" ({row.images:,} images)")
        for place, row in enumerate(chosen)
    ]
    return ", ".join(figures) or f"{TITLES[attack]} not measured"
