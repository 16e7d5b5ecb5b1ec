"""Presets: TOML files in a ``presets`` folder beside the module that uses them."""

from __future__ import annotations

from importlib import resources
from typing import Any

from robustsynth.errors import UnknownNameError

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # pyright: ignore[reportMissingImports]


def preset_files(package: str) -> list[str]:
    """Names of the presets of `package`, sorted.

    Example:
        >>> preset_files("robustsynth.tasks")
        ['duke2023', 'hse2025', 'mcgill2019', 'paper']
    """
    files = resources.files(package).joinpath("presets").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def read_preset(package: str, name: str) -> dict[str, Any]:
    """The contents of a preset of `package`.

    Raises:
        UnknownNameError: no such preset.
    """
    if name not in preset_files(package):
        raise UnknownNameError("preset", name, preset_files(package))
    file = resources.files(package) / "presets" / f"{name}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))
