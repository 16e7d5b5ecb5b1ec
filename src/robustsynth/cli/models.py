"""``robustsynth models``"""

from __future__ import annotations

import click


@click.command("models")
def command() -> None:
    """List the models that work by name, with what was measured of each."""
    from robustsynth.cli.describe import accuracy_summary, threat
    from robustsynth.models.card import ModelCard
    from robustsynth.models.files import model_names

    found = model_names()
    if not found:
        click.echo("no models are bundled with this installation")
    for name, folder in found.items():
        card = ModelCard.load(folder)
        megabytes = sum(f.stat().st_size for f in folder.glob("*.safetensors")) / 1e6
        alias = f" (= {folder.name})" if folder.name != name else ""
        click.echo(f"{name}{alias}")
        click.echo(
            f"    {card.architecture} of width {card.width}, {card.data.get('name', 'unknown data')}, {threat(card)}"
        )
        click.echo(f"    {accuracy_summary(card)}; {megabytes:.1f} MB with seeds, {card.licence}")
