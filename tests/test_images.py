"""Pictures in and out of files, and files that are never half written."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from robustsynth.errors import UnknownNameError, UserError, closest_first
from robustsynth.files import sha256, write_json, written_beside
from robustsynth.images import (
    as_tensor,
    display_scale,
    grid,
    load_picture,
    picture_files,
    save_gif,
    save_png,
    to_uint8,
)

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("channels", [1, 3])
def test_pngs_keep_every_byte(tmp_path, channels):
    picture = RANDOM.integers(0, 256, (5, 7, channels), dtype=np.uint8)
    save_png(tmp_path / "a.png", picture)
    assert np.array_equal(load_picture(tmp_path / "a.png", channels=channels), picture)
    assert os.listdir(tmp_path) == ["a.png"]


def test_tensors_and_bytes_are_each_others_inverse():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert np.array_equal(to_uint8(as_tensor(list(every))), every)
    assert as_tensor([np.zeros((4, 6, 3), np.uint8)]).shape == (1, 3, 4, 6)


@given(st.floats(-1, 2))
def test_bytes_are_rounded_to_the_nearest(value):
    got = int(to_uint8(torch.full((1, 1, 1, 1), value))[0, 0, 0, 0])
    assert abs(got - 255 * min(max(value, 0), 1)) <= 0.5 + 1e-4


def test_transparency_lies_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert bool((load_picture(tmp_path / "clear.png") == 255).all())


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    Image.fromarray(np.array([[0, 257, 65535, 32896]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert load_picture(tmp_path / "deep.png", channels=1).ravel().tolist() == [0, 1, 255, 128]


def test_pictures_are_turned_as_their_exif_data_say(tmp_path):
    picture = Image.fromarray(RANDOM.integers(0, 256, (4, 8, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: a quarter turn.
    picture.save(tmp_path / "turned.png", exif=exif)
    assert load_picture(tmp_path / "turned.png").shape == (8, 4, 3)


def test_size_crops_the_middle(tmp_path):
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = 200
    save_png(tmp_path / "wide.png", wide)
    got = load_picture(tmp_path / "wide.png", size=8)
    assert got.shape == (8, 8, 3)
    assert bool((got == 200).all())


@pytest.mark.parametrize("kind", ["missing", "text", "truncated", "folder"])
def test_what_is_no_picture_is_named(tmp_path, kind):
    path = tmp_path / "broken.png"
    if kind == "text":
        path.write_text("no picture", encoding="utf-8")
    elif kind == "folder":
        path.mkdir()
    elif kind == "truncated":
        save_png(path, RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"expected a picture.*broken\.png"):
        load_picture(path)


def test_folders_of_pictures(tmp_path):
    for name in ("b.PNG", "a.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in picture_files(tmp_path)] == ["a.jpg", "b.PNG"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="found none"):
        picture_files(tmp_path / "empty")
    with pytest.raises(UserError, match="there is no folder"):
        picture_files(tmp_path / "nowhere")


def test_grids_show_every_picture_in_its_place():
    images = np.stack([np.full((3, 3, 1), 10 * (i + 1), np.uint8) for i in range(5)])
    sheet = grid(images, columns=2, enlarge=2, border=1)
    assert sheet.shape == (3 * 7 + 1, 2 * 7 + 1, 1)
    for i in range(5):
        top, left = 1 + i // 2 * 7, 1 + i % 2 * 7
        assert bool((sheet[top : top + 6, left : left + 6] == 10 * (i + 1)).all())
    assert bool((sheet[15:, 8:] == 255).all())


@pytest.mark.parametrize("side", [1, 28, 32, 96, 97, 224])
def test_small_pictures_are_enlarged(side):
    assert display_scale(side) >= 1
    assert side * display_scale(side) <= max(96, side)


@pytest.mark.parametrize("frames", [1, 2, 6])
def test_animations(tmp_path, frames):
    save_gif(tmp_path / "a.gif", (np.full((4, 4, 3), 40 * i, np.uint8) for i in range(frames)))
    with Image.open(tmp_path / "a.gif") as opened:
        assert getattr(opened, "n_frames", 1) == frames
    with pytest.raises(UserError, match="at least one frame"):
        save_gif(tmp_path / "b.gif", [])


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})

    def interrupted():
        with written_beside(path) as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert json.loads(path.read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_files_have_ordinary_permissions(tmp_path):
    before = os.umask(0o022)
    try:
        write_json(tmp_path / "a.json", 1)
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644


def test_sha256_is_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_unknown_names_list_the_closest_first():
    error = UnknownNameError("class", "hrse", ["airplane", "cat", "horse", "ship"], "Try again.")
    assert str(error).startswith("unknown class 'hrse': did you mean 'horse'? Available: horse, ")
    assert str(error).endswith("Try again.")
    assert sorted(error.choices) == ["airplane", "cat", "horse", "ship"]
    assert "did you mean" not in str(UnknownNameError("class", "zzz", ["cat", "ship"]))
    assert "Available: none." in str(UnknownNameError("model", "x", []))
    assert closest_first("SHIP", ["cat", "Ship"]) == ["Ship", "cat"]
