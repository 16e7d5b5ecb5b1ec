"""Where the pictures of a data set come from. Finding them is cheap; nothing is decoded here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustsynth.data.specs import DATASETS, DatasetSpec
from robustsynth.errors import UnknownNameError, UserError

LAYOUTS = (
    "a folder of parquet files (train-00000-of-00001.parquet, test-…), one parquet file, class folders "
    "(ROOT/class/*.png), split and class folders (ROOT/train/class/*.png, ROOT/test/class/*.png), two domains "
    "(ROOT/trainA, ROOT/trainB, ROOT/testA, ROOT/testB) or a folder for each class (HORSES,ZEBRAS)"
)


@dataclass(frozen=True)
class Row:
    """One picture before decoding: encoded bytes or a file, its label, and what to call it in a message."""

    where: str
    content: bytes | Path | None
    label: int | None


@dataclass(frozen=True)
class Contents:
    """An opened source: `rows` gives the same `count` rows, in the same order, each time it is called.

    Where it is a part of a larger data set, `part_of` names all classes of that, by which a known one is recognised.
    """

    classes: tuple[str, ...]
    count: int
    rows: Callable[[], Iterator[Row]]
    part_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A found source.

    Args:
        label: what to call it, without any absolute path.
        identity: plain values that change whenever the pictures may have changed.
        open: reads names and counts; for the Hub, this is what downloads.
        spec: the known data set that it was asked for as, if it was.
    """

    label: str
    identity: list[Any]
    open: Callable[[], Contents]
    spec: DatasetSpec | None = None


def find_source(
    path_or_name: str | Path | Sequence[str | Path], split: str, *, announce: Callable[[str], object]
) -> Source:
    """A local file or folder if there is one of that name, or several folders; otherwise a data set on the Hub.
    ``restricted-imagenet:`` in front of either takes restricted ImageNet out of it, ``only:horse,deer:`` two classes.

    Raises:
        UnknownNameError: it is neither.
        UserError: the folder has no layout that is understood, or not this split.
    """
    from robustsynth.data.domains import find_domain_folders, find_halves, has_halves
    from robustsynth.data.folders import find_class_folders, split_folders
    from robustsynth.data.hub import find_on_hub
    from robustsynth.data.restricted import PREFIX, restricted
    from robustsynth.data.selection import PREFIX as ONLY
    from robustsynth.data.selection import parsed, selected
    from robustsynth.data.tables import find_parquet

    if not isinstance(path_or_name, str | Path):
        return find_domain_folders([Path(folder).expanduser() for folder in path_or_name], split)
    path = Path(path_or_name).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise UserError(f"{path}: expected a parquet file or a folder, got another file. Give {LAYOUTS}.")
        return find_parquet([path], split, root=path)
    if path.is_dir():
        parquet = sorted(file for file in path.iterdir() if file.suffix.lower() == ".parquet" and file.is_file())
        if parquet:
            return find_parquet(parquet, split, root=path)
        halves = has_halves(path) and not split_folders(path)
        return find_halves(path, split) if halves else find_class_folders(path, split)
    if isinstance(path_or_name, str) and path_or_name.startswith(PREFIX):
        return restricted(find_source(path_or_name.removeprefix(PREFIX), split, announce=announce))
    if isinstance(path_or_name, str) and path_or_name.startswith(ONLY):
        classes, rest = parsed(path_or_name)
        return selected(find_source(rest, split, announce=announce), classes)
    if isinstance(path_or_name, str) and "," in path_or_name:
        return find_domain_folders(folders_listed(path_or_name), split)

    name = str(path_or_name)
    by_hub_id = {spec.hub_id: spec for spec in DATASETS.values()}
    spec = DATASETS.get(name) or by_hub_id.get(name)
    if spec is not None:
        return find_on_hub(spec.hub_id, split, spec=spec, announce=announce)
    # A path object was meant as a path: a misspelt folder must not become a download.
    if isinstance(path_or_name, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return find_on_hub(name, split, spec=None, announce=announce)
    remedy = "No file or folder of that name exists either: give one, or an owner/name of the Hugging Face Hub."
    raise UnknownNameError("data set", name, DATASETS, remedy)


def folders_listed(text: str) -> list[Path]:
    """The folders that ``HORSES,ZEBRAS`` lists; their own names may hold commas too.

    Raises:
        UserError: one of them is not there.
    """
    parts = text.split(",")

    def read(start: int) -> list[Path] | None:
        for end in range(start + 1, len(parts) + 1):
            name = ",".join(parts[start:end]).strip()
            if name and Path(name).expanduser().is_dir():
                rest = [] if end == len(parts) else read(end)
                if rest is not None:
                    return [Path(name).expanduser(), *rest]
        return None

    found = read(0)
    if found is None:
        missing = next((p.strip() for p in parts if not p.strip() or not Path(p.strip()).expanduser().is_dir()), text)
        raise UserError(
            f"expected a folder, or folders with commas between them, in {text!r}, but there is no folder {missing!r}"
        )
    return found


def located(path_or_name: str) -> str:
    """The same data, named so that it is found from any other folder: paths become absolute.

    Example:
        >>> located("owner/name"), located(".") == str(Path.cwd())
        ('owner/name', True)
    """
    from robustsynth.data.restricted import PREFIX
    from robustsynth.data.selection import PREFIX as ONLY
    from robustsynth.data.selection import parsed

    path = Path(path_or_name).expanduser()
    if path.exists():
        return str(path.resolve())
    if path_or_name.startswith(PREFIX):
        return PREFIX + located(path_or_name.removeprefix(PREFIX))
    if path_or_name.startswith(ONLY):
        classes, rest = parsed(path_or_name)
        return f"{ONLY}{','.join(classes)}:{located(rest)}"
    if "," in path_or_name:
        return ",".join(str(folder.resolve()) for folder in folders_listed(path_or_name))
    return path_or_name


def stamps(files: Sequence[Path], root: Path) -> list[list[Any]]:
    """Name, size and time of change of each file: enough to notice that a data set has changed."""
    found = []
    for file in files:
        status = file.stat()
        found.append([file.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns])
    return found
