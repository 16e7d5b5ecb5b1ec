"""``robustsynth import``"""

from __future__ import annotations

from pathlib import Path

import click

from robustsynth.cli.options import Norm, Numbers
from robustsynth.cli.progress import say
from robustsynth.errors import UserError


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
def command(
    file: str,
    out: str,
    data: str | None,
    classes: str | None,
    architecture: str | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    image_size: int | None,
    norm: str | None,
    eps: float | None,
    licence: str,
    key: str | None,
    half: bool,
) -> None:
    """Make another library's checkpoint into a model: robustness, RobustBench, torchvision, timm; .pt or safetensors.

    FILE is read without being executed. Its layout and architecture are recognised; what it does not tell is asked for.
    """
    from robustsynth.data.specs import find_spec
    from robustsynth.models.importing import import_model

    card, foreign = import_model(
        file,
        out,
        norm=norm,
        eps=eps,
        licence=licence,
        data=None if data is None else find_spec(data),
        half=half,
        classes=_class_names(classes),
        architecture=architecture,
        mean=mean,
        std=std,
        image_size=image_size,
        key=key,
    )
    say(f"read {file}: {foreign.form}, {foreign.layout} names, {foreign.fit}")
    say(
        f"normalisation: {foreign.normalisation}, mean {', '.join(map(str, card.mean))}, "
        f"std {', '.join(map(str, card.std))}"
    )
    if not card.threat_model:
        say("what it was trained to withstand is not known; --norm and --eps would put it on its card")
    if card.licence == "not stated":
        say("its licence is not stated; --licence would put it on its card")
    click.echo(f"wrote {out}; draw with it: robustsynth generate --model {out} --out {Path(out) / 'samples'}")


def _class_names(text: str | None) -> list[str] | int | None:
    """Names between commas, the lines of a file, or a number of classes."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return int(text)
    if "," not in text and Path(text).is_file():
        try:
            lines = Path(text).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise UserError(f"expected class names in {text}, one a line as UTF-8 text, got something else") from None
        return [line.strip() for line in lines if line.strip()]
    return [name.strip() for name in text.split(",") if name.strip()]
