"""Masks: what people draw, erase and write down, and what they get wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from robustsynth import images
from robustsynth.errors import UserError
from robustsynth.masks import check_mask, load_mask, mask_from_alpha, random_patch_masks, rectangle_mask
from robustsynth.randomness import generator, image_generators

HEIGHT, WIDTH = 40, 60
BOX = (10, 8, 29, 19)  # left, top, right, bottom, the last two included
BOXED = torch.zeros(1, HEIGHT, WIDTH)
BOXED[:, 8:20, 10:30] = 1


def drawn(background, mark, mode="RGB") -> Image.Image:
    image = Image.new(mode, (WIDTH, HEIGHT), background)
    ImageDraw.Draw(image).rectangle(BOX, fill=mark)
    return image


def photograph(mode="RGB") -> Image.Image:
    """Smooth and coloured, as photographs are: no tone is commoner than others."""
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).convert(mode)


def erased(image: Image.Image, alpha: int = 0) -> Image.Image:
    image.putalpha(drawn(255, alpha, "L"))
    return image


def several_markers() -> Image.Image:
    image = drawn("white", "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((10, 8, 19, 19), fill="red")
    draw.rectangle((20, 8, 29, 19), fill="blue")
    return image


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.asarray(drawn(0, 255, "L")).astype(np.uint16) * 257)


DRAWN = {
    "white on black": drawn("black", "white"),
    "grey mode": drawn(0, 255, "L"),
    "one bit": drawn(0, 1, "1"),
    "values 0 and 1": drawn(0, 1, "L"),
    "two greys": drawn(90, 170, "L"),
    "palette": drawn("black", "white").convert("P"),
    "16 bits": sixteen_bits(),
    "red on white": drawn("white", "red"),
    "black on green": drawn("green", "black"),
    "white on red": drawn("red", "white"),
    "grey on yellow": drawn("yellow", "grey"),
    "several markers": several_markers(),
    "erased photograph": erased(photograph()),
    "half erased": erased(photograph(), alpha=128),
    "erased grey": erased(photograph("L")),
    "opaque alpha": drawn((0, 0, 0, 255), (255, 255, 255, 255), "RGBA"),
    "even alpha": drawn((255, 255, 255, 99), (255, 0, 0, 99), "RGBA"),
}


def saved(image: Image.Image, path: Path, **settings) -> Path:
    image.save(path, **settings)
    return path


@pytest.mark.parametrize("name", DRAWN)
def test_what_people_draw(name, tmp_path):
    path = saved(DRAWN[name], tmp_path / "mask.png")
    found = load_mask(path, (HEIGHT, WIDTH))
    assert found.dtype == torch.float32
    assert found.equal(BOXED)
    assert load_mask(path, (HEIGHT, WIDTH), invert=True).equal(1 - BOXED)
    assert load_mask(path).equal(BOXED)
    assert load_mask(images.read_image(path)).equal(BOXED)


def test_of_two_tones_the_brighter_is_filled_whichever_is_the_larger_part(tmp_path):
    path = saved(drawn("white", "black"), tmp_path / "mask.png")
    assert load_mask(path, (HEIGHT, WIDTH)).equal(1 - BOXED)


@pytest.mark.parametrize(("background", "mark"), [("black", "white"), ("white", "red"), ("blue", "yellow")])
@pytest.mark.parametrize("ending", ["jpg", "webp", "gif", "bmp", "tif"])
def test_any_format_even_one_that_loses_colours(background, mark, ending, tmp_path):
    found = load_mask(saved(drawn(background, mark), tmp_path / f"mask.{ending}"), (HEIGHT, WIDTH))
    left, top, right, bottom = BOX
    assert found[:, top : bottom + 1, left : right + 1].all()
    # JPEG and WebP halve the resolution of colours, which widens marks by a pixel or two.
    found[:, top - 2 : bottom + 3, left - 2 : right + 3] = 0
    assert not found.any()


def test_a_soft_brush(tmp_path):
    soft = drawn(0, 255, "L").filter(ImageFilter.GaussianBlur(0.8))
    assert load_mask(saved(soft, tmp_path / "mask.png"), (HEIGHT, WIDTH)).sub(BOXED).abs().sum() <= 8


def test_exif_orientation_counts(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = drawn("black", "white").transpose(Image.Transpose.ROTATE_90)
    path = saved(turned, tmp_path / "mask.png", exif=exif)
    assert load_mask(path, (HEIGHT, WIDTH)).equal(BOXED)
    with pytest.raises(UserError, match=r"40×60 pixels.*60×40"):
        load_mask(path, (WIDTH, HEIGHT))
    see_through = saved(erased(photograph()).transpose(Image.Transpose.ROTATE_90), tmp_path / "a.png", exif=exif)
    assert load_mask(see_through, (HEIGHT, WIDTH)).equal(BOXED)
    assert mask_from_alpha(see_through).equal(BOXED)


def test_the_first_frame_of_an_animation_counts(tmp_path):
    other = drawn("white", "black").convert("P")
    path = saved(drawn("black", "white").convert("P"), tmp_path / "mask.gif", save_all=True, append_images=[other])
    assert load_mask(path, (HEIGHT, WIDTH)).equal(BOXED)


def scribbled() -> Image.Image:
    image = photograph()
    ImageDraw.Draw(image).rectangle(BOX, fill="red")
    return image


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (photograph(), "many colours"),
        (photograph("L"), "many colours"),
        (scribbled(), "Save the marks alone"),
        (Image.new("RGB", (WIDTH, HEIGHT), "red"), "one colour"),
        (Image.new("L", (WIDTH, HEIGHT)), "one colour"),
        (Image.new("RGBA", (WIDTH, HEIGHT)), "one colour"),
    ],
)
def test_what_is_no_mask(image, said, tmp_path):
    with pytest.raises(UserError, match=said):
        load_mask(saved(image, tmp_path / "mask.png"), (HEIGHT, WIDTH))


def test_another_size_is_refused_and_both_are_named(tmp_path):
    path = saved(drawn(0, 255, "L"), tmp_path / "mask.png")
    with pytest.raises(UserError, match=r"64×48 pixels .*60×40 pixels.*resize"):
        load_mask(path, (48, 64))


@pytest.mark.parametrize("read", [load_mask, mask_from_alpha])
def test_files_that_are_no_images(read, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no file"):
        read(tmp_path / "missing.png")
    with pytest.raises(UserError, match="is a folder"):
        read(tmp_path)
    text = tmp_path / "text.png"
    text.write_text("white on black", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read"):
        read(text)
    whole = saved(erased(photograph()), tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:200])
    with pytest.raises(UserError, match=r"cut\.png.*cannot be read"):
        read(tmp_path / "cut.png")
    monkeypatch.setattr(images, "LARGEST", 100)
    with pytest.raises(UserError, match="million pixels"):
        read(whole)


@pytest.mark.parametrize("alpha", [0, 128, 249])
def test_what_is_transparent_in_an_image_itself(alpha, tmp_path):
    assert mask_from_alpha(saved(erased(photograph(), alpha), tmp_path / "image.png")).equal(BOXED)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (photograph(), "nowhere transparent"),
        (erased(photograph(), alpha=252), "nowhere transparent"),
        (Image.new("RGBA", (WIDTH, HEIGHT)), "wholly transparent"),
    ],
)
def test_an_image_without_a_hole(image, said, tmp_path):
    with pytest.raises(UserError, match=said):
        mask_from_alpha(saved(image, tmp_path / "image.png"))


@pytest.mark.parametrize("rectangle", ["10,8,20,12", " 10, 8, 20, 12 ", (10, 8, 20, 12), [10.0, 8, 20, 12]])
def test_rectangles(rectangle):
    assert rectangle_mask(rectangle, (HEIGHT, WIDTH)).equal(BOXED)


@pytest.mark.parametrize(
    ("rectangle", "said"),
    [
        ("1,2,3", "four whole numbers"),
        ("1,2,3,4,5", "four whole numbers"),
        ("a,b,c,d", "four whole numbers"),
        ((1, 2, 3.5, 4), "four whole numbers"),
        ((1, 2, float("nan"), 4), "four whole numbers"),
        ("", "four whole numbers"),
        ("5,5,0,4", "at least 1×1"),
        ("5,5,4,-1", "at least 1×1"),
        ("-1,0,4,4", "columns -1 to 3"),
        ("50,0,11,4", "within the image's 60×40"),
        ("0,37,4,4", "rows 37 to 41"),
        ("0,0,60,40", "leaves pixels"),
    ],
)
def test_rectangles_that_do_not_fit(rectangle, said):
    with pytest.raises(UserError, match=said):
        rectangle_mask(rectangle, (HEIGHT, WIDTH))


@given(seed=st.integers(0, 50), side=st.integers(1, 12), border=st.integers(0, 4), wide=st.integers(0, 9))
def test_random_patches_are_whole_and_keep_away_from_the_edges(seed, side, border, wide):
    size = (side + 2 * border + 1, side + 2 * border + wide + 1)
    (mask,) = random_patch_masks([generator(seed)], size=size, side=side, border=border)
    inner = mask[0, border : size[0] - border, border : size[1] - border]
    assert mask.sum() == inner.sum() == side**2
    assert inner.any(dim=1).sum() == inner.any(dim=0).sum() == side


def test_random_patches_reach_every_place_and_depend_on_their_own_generator_alone():
    masks = random_patch_masks(image_generators(0, range(200)), size=(6, 7), side=3, border=1)
    assert len(set(map(tuple, masks.flatten(1).long().tolist()))) == 2 * 3
    alone = random_patch_masks(image_generators(0, [17]), size=(6, 7), side=3, border=1)
    assert alone[0].equal(masks[17])


@pytest.mark.parametrize(("side", "border"), [(0, 0), (9, 0), (5, 2), (3, -1), (8, 0)])
def test_random_patches_that_do_not_fit(side, border):
    with pytest.raises(UserError, match="choose a smaller"):
        random_patch_masks([generator(0)], size=(8, 8), side=side, border=border)


@pytest.mark.parametrize("shape", [(1, 4, 6), (1, 1, 4, 6), (3, 1, 4, 6)])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.uint8, torch.int64, torch.bool])
def test_masks_for_images(shape, kind):
    mask = torch.zeros(shape, dtype=kind)
    mask[..., 1:3, 2:5] = 1
    checked = check_mask(mask, torch.rand(3, 3, 4, 6, dtype=torch.float64))
    assert checked.dtype == torch.float64
    assert checked.shape == (3, 1, 4, 6)
    assert checked.equal(mask.double().expand(3, 1, 4, 6))


def test_masks_for_no_images():
    mask = torch.tensor([[[0.0, 1.0]]])
    assert check_mask(mask, torch.rand(0, 3, 1, 2)).shape == (0, 1, 1, 2)


def half(*shape: int) -> torch.Tensor:
    mask = torch.zeros(shape)
    mask[..., :2] = 1
    return mask


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (half(4, 6), r"mask\[None\]"),
        (half(3, 4, 6), r"mask\[:, None\]"),
        (half(2, 1, 4, 6), "as large as the images"),
        (half(1, 3, 4, 6), "as large as the images"),
        (half(1, 6, 4), r"got \(1, 6, 4\)"),
        (half(1, 4, 6) * 255, "values from 0 to 255"),
        (half(1, 4, 6) * 0.5, "0 and 1"),
        (torch.full((1, 4, 6), float("nan")), "0 and 1"),
        (torch.zeros(1, 4, 6), "covers nothing"),
        (torch.ones(1, 4, 6), "covers everything"),
        (torch.cat([half(2, 1, 4, 6), torch.ones(1, 1, 4, 6)]), "mask 2 covers everything"),
    ],
)
def test_masks_that_do_not_suit_images(mask, said):
    with pytest.raises(UserError, match=said):
        check_mask(mask, torch.rand(3, 3, 4, 6))
