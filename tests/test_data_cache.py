"""The cache of decoded images: made once, by several at once, and never half."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from robustsynth.data import ImageData, cache, load_data
from robustsynth.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ROBUSTSYNTH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


@pytest.fixture
def pets(tmp_path) -> Path:
    for kind in ("cat", "dog"):
        (tmp_path / "pets" / kind).mkdir(parents=True)
        for index in range(3):
            value = index * 10 + (100 if kind == "dog" else 0)
            Image.new("RGB", (8, 8), (value, 0, 0)).save(tmp_path / "pets" / kind / f"{index}.png")
    return tmp_path / "pets"


@pytest.fixture
def decodings(monkeypatch) -> list[str]:
    """What was decoded, in order."""
    seen: list[str] = []
    real = cache.decode

    def counted(row, **settings):
        seen.append(row.where)
        return real(row, **settings)

    monkeypatch.setattr(cache, "decode", counted)
    return seen


def quiet(path, **settings) -> ImageData:
    return load_data(path, announce=lambda line: None, **settings)


def test_a_second_load_decodes_nothing(pets, decodings):
    first = quiet(pets)
    assert len(decodings) == 6
    second = quiet(pets)
    assert len(decodings) == 6
    assert np.array_equal(first.images, second.images)
    assert first.images[:, 0, 0, 0].tolist() == [0, 10, 20, 100, 110, 120]


@pytest.mark.parametrize("settings", [{"image_size": 4}, {"channels": 1}])
def test_other_settings_are_kept_apart(pets, decodings, settings):
    quiet(pets)
    other = quiet(pets, **settings)
    assert len(decodings) == 12
    assert other.images.shape != quiet(pets).images.shape
    assert len(decodings) == 12


@pytest.mark.parametrize("change", ["touch", "replace", "add", "remove", "rename"])
def test_a_changed_file_is_decoded_anew(pets, decodings, change):
    quiet(pets)
    file = pets / "dog" / "2.png"
    if change == "touch":
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1_000_000_000))
    elif change == "replace":
        Image.new("RGB", (8, 8), (250, 0, 0)).save(file)
    elif change == "add":
        Image.new("RGB", (8, 8)).save(pets / "dog" / "3.png")
    elif change == "remove":
        file.unlink()
    else:
        file.rename(pets / "dog" / "9.png")
    data = quiet(pets)
    assert len(decodings) == 6 + len(data)
    if change == "replace":
        assert data.images[5, 0, 0, 0] == 250


def test_a_new_format_version_is_decoded_anew(pets, decodings, monkeypatch):
    quiet(pets)
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    quiet(pets)
    assert len(decodings) == 12


def test_what_is_kept_names_no_absolute_path(pets, home, tmp_path):
    quiet(pets)
    (folder,) = home.iterdir()
    assert sorted(file.name for file in folder.iterdir()) == ["images.npy", "labels.npy", "meta.json"]
    assert str(tmp_path) not in (folder / "meta.json").read_text()
    assert json.loads((folder / "meta.json").read_text())["source"] == "pets"


@pytest.mark.parametrize("lost", ["images.npy", "labels.npy", "meta.json"])
@pytest.mark.parametrize("how", ["removed", "emptied"])
def test_a_damaged_cache_is_made_again(pets, home, decodings, lost, how):
    quiet(pets)
    (folder,) = home.iterdir()
    if how == "removed":
        (folder / lost).unlink()
    else:
        (folder / lost).write_bytes(b"")
    data = quiet(pets)
    assert len(decodings) == 12
    assert data.images[:, 0, 0, 0].tolist() == [0, 10, 20, 100, 110, 120]


def test_a_builder_that_fails_leaves_nothing(pets, home):
    (pets / "dog" / "2.png").write_bytes(b"")
    with pytest.raises(UserError):
        quiet(pets)
    assert list(home.iterdir()) == []


def test_only_what_was_abandoned_a_day_ago_is_removed(pets, home):
    old, young, busy = (home / f".building-{name}" for name in ("old", "young", "busy"))
    for folder in (old, young, busy):
        folder.mkdir(parents=True)
        (folder / "images.npy").write_bytes(b"half")
    long_ago = time.time() - 2 * 24 * 60 * 60
    for path in (old / "images.npy", old, busy):  # busy: an old folder in which somebody still writes
        os.utime(path, (long_ago, long_ago))
    quiet(pets)
    assert [folder.exists() for folder in (old, young, busy)] == [False, True, True]


def test_the_one_that_comes_second_uses_what_the_first_made(pets, home, decodings, monkeypatch):
    real = cache._build

    def overtaken(source, folder, **settings):
        monkeypatch.setattr(cache, "_build", real)
        quiet(pets)  # another process does the same from start to end, meanwhile
        real(source, folder, **settings)

    monkeypatch.setattr(cache, "_build", overtaken)
    data = quiet(pets)
    assert len(decodings) == 12
    assert len(list(home.iterdir())) == 1
    assert len(data) == 6


PROCESS = """
import sys, time
from pathlib import Path
from robustsynth.data import cache, load_data
folder, mine, others = sys.argv[1:]
real = cache._build
def build(*arguments, **settings):  # begin only when the other has found no cache either
    Path(mine).touch()
    deadline = time.monotonic() + 20
    while not Path(others).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    real(*arguments, **settings)
cache._build = build
data = load_data(folder)
print(data.images.shape, data.images[:, 0, 0, 0].tolist(), data.labels.tolist())
"""


def test_two_processes_at_once(pets, home, tmp_path):
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(pets), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for flags in ((here, there), (there, here))
    ]
    said = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    expected = "(6, 8, 8, 3) [0, 10, 20, 100, 110, 120] [0, 0, 0, 1, 1, 1]\n"
    assert [out for out, _ in said] == [expected, expected]
    assert [folder.name.split("-")[0] for folder in home.iterdir()] == ["pets"]


def test_a_full_disk_is_refused_before_it_kills(pets, home, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(UserError, match="ROBUSTSYNTH_CACHE"):
        quiet(pets)
    assert list(home.iterdir()) == []


def test_many_images_are_announced(tmp_path):
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    Image.new("L", (4, 4), 9).save(tmp_path / "one.png")
    cell = {"bytes": (tmp_path / "one.png").read_bytes(), "path": None}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    table = pa.table({"image": [cell] * 1200, "label": [0, 1] * 600}, schema=features.arrow_schema)
    pq.write_table(table, tmp_path / "many.parquet")
    said: list[str] = []
    data = load_data(tmp_path / "many.parquet", announce=said.append)
    assert said == ["decoding 1200 images of many.parquet once, to 4×4"]
    assert data.images.shape == (1200, 4, 4, 1)
    assert (data.images == 9).all()
    assert data.labels.tolist() == [0, 1] * 600
