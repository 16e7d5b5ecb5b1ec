"""Images in any form in, PNG files out, and files that are never half written."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import struct
import time
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from robustsynth.errors import UnknownNameError, UserError, closest_first
from robustsynth.files import sha256, write_json, written_beside
from robustsynth.images import (
    as_images,
    as_tensor,
    image_files,
    load_image,
    plain_pixels,
    png_text,
    read_image,
    save_png,
    to_pil,
    to_uint8,
)

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("channels", [1, 3])
def test_pngs_keep_every_byte(tmp_path, channels):
    image = RANDOM.integers(0, 256, (5, 7, channels), dtype=np.uint8)
    save_png(tmp_path / "a.png", image)
    assert np.array_equal(read_image(tmp_path / "a.png", channels=channels).pixels, image)
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
    assert bool((read_image(tmp_path / "clear.png").pixels == 255).all())


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    Image.fromarray(np.array([[0, 257, 65535, 32896]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png", channels=1).pixels.ravel().tolist() == [0, 1, 255, 128]


def test_images_are_turned_as_their_exif_data_say(tmp_path):
    image = Image.fromarray(RANDOM.integers(0, 256, (4, 8, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: a quarter turn.
    image.save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png").pixels.shape == (8, 4, 3)


def test_size_crops_the_middle(tmp_path):
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = 200
    save_png(tmp_path / "wide.png", wide)
    got = read_image(tmp_path / "wide.png", size=8).pixels
    assert got.shape == (8, 8, 3)
    assert bool((got == 200).all())


# Images as people have them


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png_chunks(width: int, height: int, bits: int, colour: int, rows: Iterable[bytes], clear: bytes = b"") -> bytes:
    """A PNG file of kinds that Pillow does not write: its rows, each begun by the number of its filter."""
    packer = zlib.compressobj(1)
    data = b"".join([*(packer.compress(b"\0" + row) for row in rows), packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *([(b"tRNS", clear)] if clear else []), (b"IDAT", data), (b"IEND", b"")]
    packed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def animated(kind: str, count: int = 12) -> bytes:
    frames = [Image.new("RGB", (6, 4), (20 * i, 0, 0)) for i in range(count)]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def half_clear_palette() -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((1, 0), 1)
    return saved(image, "PNG", transparency=bytes([255, 0]))


RED = (200, 30, 30)
DEEP = np.array([[65535, 257, 0, 65535], [0, 0, 0, 0]], dtype=">u2")  # one red opaque pixel, one clear one

USUAL = {
    "animated GIF": (animated("GIF"), [[0, 0, 0]], ["first of 12 frames"]),
    "animated PNG": (animated("PNG"), [[0, 0, 0]], ["first of 12 frames"]),
    "animated WebP": (animated("WEBP"), [[0, 0, 0]], ["first of 12 frames"]),
    "TIFF of several pages": (animated("TIFF", 3), [[0, 0, 0]], ["first of 3 pages"]),
    "GIF of one frame": (saved(Image.new("RGB", (4, 4), (9, 9, 9)), "GIF"), [[9, 9, 9]], []),
    "one pixel": (saved(Image.new("RGB", (1, 1), RED), "PNG"), [list(RED)], []),
    "CMYK JPEG": (saved(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG"), [list(RED)], ["CMYK as RGB"]),
    "palette with transparency": (
        half_clear_palette(),
        [[200, 0, 0], [255, 255, 255]],
        ["transparent parts laid on white"],
    ),
    "palette with one clear colour": (
        saved(Image.new("P", (1, 1)), "PNG", transparency=0),
        [[255, 255, 255]],
        ["transparent parts laid on white"],
    ),
    "alpha that is opaque": (saved(Image.new("RGBA", (4, 4), (*RED, 255)), "PNG"), [list(RED)], []),
    "16 bits with alpha": (
        png_chunks(1, 2, 16, 6, [row.tobytes() for row in DEEP]),
        [[255, 1, 0], [255, 255, 255]],
        ["16 bits scaled to 8", "transparent parts laid on white"],
    ),
    "16 bits in colour": (
        png_chunks(1, 1, 16, 2, [DEEP[0, :3].tobytes()]),
        [[255, 1, 0]],
        ["16 bits scaled to 8"],
    ),
    "16 bits in grey": (
        saved(Image.fromarray(np.full((1, 1), 32896, np.uint16)), "PNG"),
        [[128, 128, 128]],
        ["16 bits scaled to 8", "grey as RGB"],
    ),
    "16 bits in grey, one value clear": (
        png_chunks(2, 1, 16, 0, [np.array([7, 32896], ">u2").tobytes()], clear=b"\0\7"),
        [[255, 255, 255], [128, 128, 128]],
        ["16 bits scaled to 8", "transparent parts laid on white", "grey as RGB"],
    ),
    "grey with alpha": (
        saved(Image.new("LA", (1, 1), (0, 0)), "PNG"),
        [[255, 255, 255]],
        ["transparent parts laid on white", "grey as RGB"],
    ),
    "grey JPEG": (saved(Image.new("L", (8, 8), 90), "JPEG"), [[90, 90, 90]], ["grey as RGB"]),
    "black and white": (saved(Image.new("1", (8, 8), 1), "PNG"), [[255, 255, 255]], ["grey as RGB"]),
    "a mirrored photograph": (
        saved(Image.fromarray(np.array([[[1, 1, 1], [2, 2, 2]]], np.uint8)), "PNG", exif=turned(2)),
        [[2, 2, 2], [1, 1, 1]],
        ["turned upright"],
    ),
    "an orientation that is none": (saved(Image.new("RGB", (1, 1), RED), "PNG", exif=turned(9)), [list(RED)], []),
    "damaged EXIF": (saved(Image.new("RGB", (1, 1), RED), "PNG", exif=b"Exif\0\0no EXIF"), [list(RED)], []),
    "the wrong ending": (saved(Image.new("RGB", (4, 4), RED), "WEBP", lossless=True), [list(RED)], []),
}


@pytest.mark.parametrize("name", USUAL)
def test_images_of_any_kind_and_what_was_done_to_them(tmp_path, name):
    content, pixels, notes = USUAL[name]
    (tmp_path / "image.png").write_bytes(content)
    image = read_image(tmp_path / "image.png")
    assert list(image.notes) == notes
    assert image.pixels.dtype == np.uint8
    assert np.abs(image.pixels.reshape(-1, 3)[: len(pixels)].astype(int) - pixels).max() <= (6 if "JPEG" in name else 0)
    assert np.array_equal(to_uint8(load_image(tmp_path / "image.png")[None])[0], image.pixels)
    with Image.open(tmp_path / "image.png") as opened:
        assert np.array_equal(plain_pixels(opened, channels=3), image.pixels)
    with Image.open(tmp_path / "image.png") as opened:
        again = read_image(opened)
        assert again.notes == image.notes
        assert np.array_equal(again.pixels, image.pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_as_pillow_turns_it(tmp_path, orientation):
    stored = Image.fromarray(RANDOM.integers(0, 256, (3, 5, 3), dtype=np.uint8))
    stored.save(tmp_path / "a.png", exif=turned(orientation))
    with Image.open(tmp_path / "a.png") as opened:
        wanted = np.asarray(ImageOps.exif_transpose(opened))
    image = read_image(tmp_path / "a.png")
    assert np.array_equal(image.pixels, wanted)
    assert image.notes == (("turned upright",) if orientation > 1 else ())


@pytest.mark.parametrize(
    ("shape", "channels", "size", "notes"),
    [
        ((6, 6, 3), 3, 6, []),
        ((6, 9, 3), 3, 6, ["cut to its central square"]),
        ((9, 6, 3), 3, 3, ["cut to its central square", "resized from 6×6 to 3×3"]),
        ((1, 1, 3), 3, 8, ["resized from 1×1 to 8×8"]),
        ((6, 6, 3), 1, None, ["colours as grey"]),
        ((6, 6, 1), 1, None, []),
        ((6, 6, 1), 3, None, ["grey as RGB"]),
    ],
)
def test_changes_of_size_and_colour_are_said(tmp_path, shape, channels, size, notes):
    save_png(tmp_path / "a.png", np.full(shape, 90, np.uint8))
    image = read_image(tmp_path / "a.png", channels=channels, size=size)
    assert list(image.notes) == notes
    assert image.pixels.shape == (size or 6, size or 6, channels)
    assert bool((image.pixels == 90).all())


NOISE = Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8))
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64
BROKEN = {
    "missing": (None, r"there is no file .*broken\.png"),
    "folder": (None, r"broken\.png is a folder; give a file in it"),
    "empty": (b"", r"broken\.png.*an empty file.*fetch it again"),
    "text": (b"no image", r"broken\.png.*no format that Pillow knows.*save it as PNG or JPEG"),
    "truncated JPEG": (saved(NOISE, "JPEG")[:1500], r"broken\.png.*a truncated file.*fetch it again"),
    "truncated PNG": (saved(NOISE, "PNG")[:3000], r"broken\.png.*a truncated file.*fetch it again"),
    "truncated WebP": (saved(NOISE, "WEBP")[:500], r"broken\.png.*a damaged file.*fetch it again"),
    "HEIC": (HEIC, r"broken\.png.*an HEIC image, which Pillow does not read.*save it as JPEG or PNG"),
    "SVG": (b"<?xml version='1.0'?>\n<!-- a --><svg width='1'></svg>", r"broken\.png.*an SVG drawing.*export"),
    "web page": (b"\n<!DOCTYPE html><html></html>", r"broken\.png.*a web page.*download the image itself"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", r"broken\.png.*LFS pointer.*git lfs pull"),
    "PDF": (b"%PDF-1.7\n", r"broken\.png.*a PDF document.*PNG"),
    "floats": (saved(Image.new("F", (4, 4)), "TIFF"), r"broken\.png.*floating-point values"),
    "32 bits": (saved(Image.fromarray(np.full((2, 2), 70000, np.int32)), "TIFF"), r"broken\.png.*beyond 16 bits"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("load", [read_image, load_image, as_images])
def test_what_is_no_image_is_named(tmp_path, kind, load):
    path = tmp_path / "broken.png"
    content, says = BROKEN[kind]
    if content is not None:
        path.write_bytes(content)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(UserError, match=f"expected an image.*{says}"):
        load(path)


def large_png(side: int) -> bytes:
    """A whole image, a bit a pixel, nearly all of it black."""
    return png_chunks(side, side, 1, 0, (bytes((side + 7) // 8) for _ in range(side)))


@pytest.mark.parametrize("side", [8_001, 10_000, 20_000])
def test_an_image_too_large_to_decode_is_refused_by_its_header(tmp_path, monkeypatch, side):
    path = tmp_path / "large.png"
    path.write_bytes(large_png(side))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    before, began = Image.MAX_IMAGE_PIXELS, time.process_time()
    says = rf"large\.png.*{side}×{side} = {side**2 / 1e6:.0f} million pixels.*limit of 64 million.*scale it down"
    with pytest.raises(UserError, match=says):
        read_image(path)
    assert time.process_time() - began < 0.5
    assert before == Image.MAX_IMAGE_PIXELS  # Pillow's own guard of whatever else the program opens


def test_the_largest_image_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("robustsynth.images.LARGEST", 64)
    save_png(tmp_path / "fits.png", np.zeros((8, 8, 3), np.uint8))
    assert read_image(tmp_path / "fits.png").pixels.shape == (8, 8, 3)
    save_png(tmp_path / "large.png", np.zeros((5, 13, 3), np.uint8))
    with pytest.raises(UserError, match="13×5"):
        read_image(tmp_path / "large.png")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(kind=st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"]), data=st.data())
def test_damage_anywhere_is_a_user_error_or_an_image(tmp_path, kind, data):
    content = bytearray(saved(NOISE.resize((16, 16)), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.png").write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with contextlib.suppress(UserError):
        assert read_image(tmp_path / "a.png").pixels.shape[2] == 3


# Anything that is an image


PHOTO = RANDOM.integers(0, 256, (5, 7, 3), dtype=np.uint8)
FLOATS = torch.from_numpy(PHOTO).permute(2, 0, 1) / 255
GREY = np.full((5, 7), 90, np.uint8)


@pytest.mark.parametrize(
    "image",
    [
        to_pil(PHOTO),
        PHOTO,
        PHOTO[None],
        FLOATS.permute(1, 2, 0).numpy(),
        FLOATS.permute(1, 2, 0).double().numpy(),
        FLOATS,
        FLOATS[None],
        torch.from_numpy(PHOTO).permute(2, 0, 1),
        torch.from_numpy(PHOTO).permute(2, 0, 1)[None],
        [FLOATS],
        ("path",),
        "path",
    ],
)
def test_any_form_of_an_image_is_the_same_batch(image, tmp_path):
    save_png(tmp_path / "a.png", PHOTO)
    if isinstance(image, str | tuple):
        image = tmp_path / "a.png" if isinstance(image, str) else [str(tmp_path / "a.png")]
    assert torch.equal(torch.as_tensor(as_images(image)), FLOATS[None])


@pytest.mark.parametrize(
    "image", [GREY, GREY[..., None], GREY.astype(np.float32) / 255, to_pil(GREY[..., None]), [GREY, GREY]]
)
def test_grey_is_taken_as_either(image):
    for channels in (1, 3):
        found = torch.as_tensor(as_images(image, channels=channels))
        assert found.shape[1:] == (channels, 5, 7)
        assert bool((found == 90 / 255).all())


def test_images_of_several_sizes_are_a_list():
    found = as_images([PHOTO, FLOATS[:, :4], to_pil(PHOTO)])
    assert isinstance(found, list)
    assert [image.shape for image in found] == [(3, 5, 7), (3, 4, 7), (3, 5, 7)]


def test_tensors_keep_their_type_and_values():
    assert as_images(FLOATS.double()).dtype == torch.float64
    junk = FLOATS.clone()
    junk[0, 0, 0] = 1e30
    junk[0, 0, 1] = torch.nan
    assert torch.equal(as_images(junk, any_values=True)[0].nan_to_num(), junk.nan_to_num())
    assert as_images(FLOATS[None][:0]).shape == (0, 3, 5, 7)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (255 * FLOATS, r"values in \[0, 1\], got .*divide 8-bit images by 255"),
        (FLOATS * float("nan"), "got NaN"),
        (FLOATS[:1], r"\(3, H, W\) or \(N, 3, H, W\), got \(1, 5, 7\)"),
        (FLOATS[0], r"got \(5, 7\)"),
        (FLOATS.permute(1, 2, 0)[None], "channels first"),
        ((255 * FLOATS).long(), "uint8, or of floats.*got torch.int64"),
        (FLOATS.numpy(), r"\(N, H, W, C\), got \(3, 5, 7\); move the channels to the end"),
        (RANDOM.integers(0, 256, (4, 5, 7), dtype=np.uint8), r"got \(4, 5, 7\)"),
        (GREY.astype(np.int64), "uint8, or of floats.*got int64"),
        (PHOTO.astype(np.float32), "divide 8-bit images"),
        ([], "an empty list"),
        (3, "tensors or a list of these, got int"),
        (None, "got NoneType"),
        ("nowhere.png", "there is no file nowhere.png"),
    ],
)
def test_what_is_no_image_is_refused_in_a_line(image, says):
    with pytest.raises(UserError, match=says) as error:
        as_images(image)
    assert "\n" not in str(error.value)


def test_transparency_is_kept_beside_the_pixels():
    clear = Image.new("RGBA", (4, 2), (255, 0, 0, 255))
    clear.putpixel((3, 1), (0, 0, 0, 100))
    alpha = read_image(clear).alpha
    assert alpha is not None
    assert alpha.tolist() == [[255] * 4, [255, 255, 255, 100]]
    assert read_image(Image.new("RGB", (4, 2))).alpha is None


def test_pngs_say_what_they_were_told_and_their_pixels_do_not_depend_on_it(tmp_path):
    text = {"class": "Straßenkäfer 猫", "settings": '{"steps": 3}', "seed": "0"}
    save_png(tmp_path / "a.png", PHOTO, text=text)
    save_png(tmp_path / "b.png", PHOTO)
    assert png_text(tmp_path / "a.png") == text
    assert png_text(tmp_path / "b.png") == {}
    assert np.array_equal(read_image(tmp_path / "a.png").pixels, PHOTO)
    to_pil(PHOTO).save(tmp_path / "a.jpg")
    assert png_text(tmp_path / "a.jpg") == {}
    with pytest.raises(UserError, match="there is no file"):
        png_text(tmp_path / "c.png")


def test_folders_of_images(tmp_path):
    for name in ("b.PNG", "a.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in image_files(tmp_path)] == ["a.jpg", "b.PNG"]
    (tmp_path / "c.png").mkdir()
    assert [p.name for p in image_files(tmp_path)] == ["a.jpg", "b.PNG"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"found none$"):
        image_files(tmp_path / "empty")
    for name in ("a.HEIC", "b.heic", "c.txt", "d"):
        (tmp_path / "empty" / name).touch()
    with pytest.raises(UserError, match=r"found none but 2 of \.heic, 1 of"):
        image_files(tmp_path / "empty")
    with pytest.raises(UserError, match="there is no folder"):
        image_files(tmp_path / "nowhere")


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
