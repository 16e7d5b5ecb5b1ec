"""One image: formats, transparency, 16 bits, orientation, exactness."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from robustsynth.data.rows import Row, decode, read_header, usual_size
from robustsynth.errors import UserError


def encoded(image: Image.Image, kind: str = "PNG", **options) -> Row:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Row("the image", buffer.getvalue(), 0)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {})])
def test_an_image_of_the_right_size_keeps_its_exact_pixels(kind, options):
    pixels = noise(9, 9, 3)
    assert np.array_equal(decode(encoded(Image.fromarray(pixels), kind, **options), image_size=9, channels=3), pixels)


def test_a_crop_without_resizing_keeps_exact_pixels():
    pixels = noise(8, 13, 3)  # an odd difference: half a pixel too many on one side
    assert np.array_equal(decode(encoded(Image.fromarray(pixels)), image_size=8, channels=3), pixels[:, 2:10])


def test_grey_is_repeated_for_rgb_and_kept_for_one_channel():
    pixels = noise(5, 5)
    row = encoded(Image.fromarray(pixels))
    assert np.array_equal(decode(row, image_size=5, channels=1)[..., 0], pixels)
    assert np.array_equal(decode(row, image_size=5, channels=3), np.repeat(pixels[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_pixels_become_white_and_opaque_ones_stay(mode, channels):
    image = Image.new("RGBA", (2, 2), (40, 40, 40, 255))
    image.paste((0, 0, 0, 0), (1, 0, 2, 2))
    if mode == "P":
        palette = image.convert("RGB").quantize(2)
        row = encoded(palette, transparency=palette.getpixel((1, 0)))
    else:
        row = encoded(image.convert(mode))
    result = decode(row, image_size=2, channels=channels)
    assert result.tolist() == [[[40] * channels, [255] * channels]] * 2


def test_half_transparent_black_is_half_white():
    row = encoded(Image.new("RGBA", (3, 3), (0, 0, 0, 128)))
    assert abs(int(decode(row, image_size=3, channels=1)[1, 1, 0]) - 127) <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind):
    values = np.array([[0, 257], [32768, 65535]], dtype=np.uint16)
    row = encoded(Image.fromarray(values), kind)
    assert decode(row, image_size=2, channels=1)[..., 0].tolist() == [[0, 1], [128, 255]]
    assert read_header(row)[1] == 1


@pytest.mark.parametrize("bits", [8, 16])
def test_exif_orientation_turns_the_image(bits):
    pixels = np.arange(9, dtype=np.uint8).reshape(3, 3) * 20
    stored = pixels if bits == 8 else pixels.astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90° clockwise for display
    row = encoded(Image.fromarray(stored), exif=exif)
    assert np.array_equal(decode(row, image_size=3, channels=1)[..., 0], np.rot90(pixels, -1))


def test_resizing_is_antialiased():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = decode(encoded(Image.fromarray(stripes)), image_size=8, channels=3)
    assert np.abs(small.astype(int) - 128).max() <= 3  # sampling without a filter would give 0 or 255


def test_the_centre_of_a_wide_image_is_kept():
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, 20:40] = 200
    result = decode(encoded(Image.fromarray(pixels)), image_size=10, channels=3)
    assert result.shape == (10, 10, 3)
    assert (result == 200).all()


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_other_colour_spaces_become_rgb(mode):
    row = encoded(Image.new("RGB", (16, 16), (200, 30, 30)).convert(mode), "JPEG", quality=98)
    assert np.abs(decode(row, image_size=16, channels=3)[8, 8].astype(int) - (200, 30, 30)).max() < 8


def test_a_bilevel_image_is_black_and_white():
    row = encoded(Image.fromarray(np.eye(4, dtype=bool)))
    assert np.array_equal(decode(row, image_size=4, channels=1)[..., 0], np.eye(4, dtype=np.uint8) * 255)


WHOLE = encoded(Image.fromarray(noise(30, 30, 3))).content


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "the cell is empty"),
        (b"not an image", "no format that Pillow knows"),
        (WHOLE[: len(WHOLE) // 2], "expected an image"),
        (encoded(Image.new("F", (4, 4)), "TIFF").content, "floating-point"),
        (encoded(Image.fromarray(np.full((2, 2), 70000, np.int32)), "TIFF").content, "beyond 16 bits"),
        (b"", "an empty file"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "an HEIC image"),
        (encoded(Image.new("1", (8001, 8000))).content, "8001×8000 = 64 million pixels, above the limit"),
    ],
    ids=["null", "text", "truncated", "float", "32 bits", "empty", "HEIC", "large"],
)
def test_a_broken_image_is_named_with_a_remedy(content, says):
    with pytest.raises(UserError, match=r"file 7: .*Replace it") as caught:
        decode(Row("file 7", content, 0), image_size=4, channels=3)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "side"),
    [
        ([(48, 48)] * 3, 48),
        ([(500, 300), (400, 224), (90, 80)], 224),
        ([(500, 200)] * 2, 128),
        ([(100, 90)] * 2, 64),
        ([(40, 45)] * 2, 32),
        ([(10, 12)] * 2, 32),
    ],
)
def test_the_side_for_unknown_images(sizes, side):
    assert usual_size(sizes) == side
