"""Files: written as a whole or not at all, locked folders, the cache folder, and presets.

A file is written beside its final name and then renamed. A kill or a full disk leaves the old file or the new one,
never a damaged one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from robustsynth.errors import UnknownNameError, UserError

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # pyright: ignore[reportMissingImports]


@contextlib.contextmanager
def written_beside(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on success it is renamed to `path`, otherwise removed.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> with written_beside(Path(folder.name) / "a.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> (Path(folder.name) / "a.txt").read_text()
        'whole'
        >>> folder.cleanup()
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.stem}-*{path.suffix}"):
        # What a killed process left; the hour spares a file that another process is writing now.
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 3600:
                left.unlink()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; the finished one gets the permissions any other new file would.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        # On the disk before the rename, or a power cut could leave the new name on an empty file.
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    with written_beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def only_writer(folder: Path | str, *, patience: float = 10) -> Iterator[None]:
    """A context that one process of this machine can be in at a time. It ends with the process, however that ends.

    The lock lies in the cache folder. A `UserError` where another process still writes after `patience` seconds.
    """
    name = hashlib.sha256(os.fsencode(Path(folder).resolve())).hexdigest()[:20]
    lock = filelock.FileLock(cache_folder("locks") / name)
    try:
        lock.acquire(timeout=patience)
    except filelock.Timeout:
        raise UserError(
            f"expected to be the only one that writes to {folder}, got another process that does; wait for it or end it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def sha256(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as opened:
        while part := opened.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def cache_folder(*parts: str) -> Path:
    """A folder for data that can be made again (decoded images, measured speeds), made if missing: in
    `$ROBUSTSYNTH_CACHE`, or in the platform's cache folder."""
    root = os.environ.get("ROBUSTSYNTH_CACHE") or platformdirs.user_cache_dir("robustsynth")
    folder = Path(root).joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def preset_files(package: str) -> list[str]:
    """Names of the presets of a package, sorted: the TOML files in its folder ``presets``.

    Example:
        >>> preset_files("robustsynth.tasks")
        ['duke2023', 'hse2025', 'mcgill2019', 'paper']
    """
    files = resources.files(package).joinpath("presets").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def read_preset(package: str, name: str) -> dict[str, Any]:
    """The contents of a preset of a package; an `UnknownNameError` where there is none of that name."""
    if name not in preset_files(package):
        raise UnknownNameError("preset", name, preset_files(package))
    return tomllib.loads((resources.files(package) / "presets" / f"{name}.toml").read_text(encoding="utf-8"))
