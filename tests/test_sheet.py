"""The sheet: everything is on it, in its place, in letters that can be read; and saving and showing images."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from robustsynth import sheet as sheets
from robustsynth.errors import UserError
from robustsynth.images import png_text, read_image, to_uint8
from robustsynth.sheet import GAP, MARGIN, MOST_BANDS, MOST_ROWS, PAGE, class_sheet, fitted, in_rows, save, sheet, show


def flat(value: int, side: int = 32, channels: int = 3) -> np.ndarray:
    return np.full((side, side, channels), value, np.uint8)


def pixels(drawn: np.ndarray, value: int) -> int:
    """How many pixels have this grey; letters have a pixel or two of any."""
    return int((drawn == value).all(2).sum())


def cells(drawn: np.ndarray, value: int, side: int) -> int:
    return pixels(drawn, value) // side**2


@pytest.fixture
def no_fonts(monkeypatch):
    """A machine without any installed font."""
    monkeypatch.setattr(sheets, "FONTS", ())


# Images in their places


def test_every_image_is_in_its_place():
    rows = in_rows([flat(40 * i, 16, 1) for i in range(5)], 2)
    drawn = sheet(rows)
    assert drawn.dtype == np.uint8
    for i in range(5):
        top, left = MARGIN + i // 2 * (96 + GAP), MARGIN + i % 2 * (96 + GAP)
        assert bool((drawn[top : top + 96, left : left + 96] == 40 * i).all())
    assert bool((drawn[-MARGIN - 96 :, -MARGIN - 96 :] == 255).all()), "a row that is shorter"


@pytest.mark.parametrize(
    ("shape", "cell", "wanted"),
    [
        ((1, 1, 3), 96, (96, 96)),
        ((28, 28, 1), 96, (84, 84)),
        ((32, 32, 3), 96, (96, 96)),
        ((97, 97, 3), 96, (97, 97)),
        ((224, 224, 3), 96, (224, 224)),
        ((300, 600, 3), 96, (112, 224)),
        ((32, 32, 3), 224, (224, 224)),
        ((4000, 3000, 3), 224, (224, 168)),
    ],
)
def test_small_images_are_enlarged_by_whole_factors_and_large_ones_reduced(shape, cell, wanted):
    drawn = sheet([[np.full(shape, 50, np.uint8)]], cell=cell)
    assert drawn.shape == (wanted[0] + 2 * MARGIN, wanted[1] + 2 * MARGIN, 3)
    assert pixels(drawn, 50) == wanted[0] * wanted[1]


def test_images_of_other_sizes_share_a_cell_and_missing_ones_leave_it_grey():
    drawn = sheet([[flat(50, 28), flat(50, 28)], [flat(70, 128, 1), None]], labels=["start", "large"])
    assert 2 * 112**2 <= pixels(drawn, 50) < 2 * 112**2 + 99
    assert 128**2 <= pixels(drawn, 70) < 128**2 + 99
    assert pixels(drawn, 245) >= 128**2


@pytest.mark.parametrize(
    ("classes", "each", "side", "bands"),
    [(3, 1, 32, 1), (10, 2, 32, 2), (10, 1, 32, 1), (10, 1, 128, 2), (1, 40, 32, 1), (4, 1, 400, 1), (300, 2, 32, 12)],
)
def test_bands_fit_a_page(classes, each, side, bands):
    names = [f"class {i}" for i in range(classes) for _ in range(each)]
    rows = [[flat(37, side)] * len(names), [flat(91, side)] * len(names)]
    drawn = sheet(rows, titles=names, labels=["start", ("model", "robust")], note="A note.", width=PAGE)
    cell = 96 if side == 32 else min(side, 224)
    assert drawn.shape[1] <= 1500
    assert bands <= MOST_BANDS
    assert bands * 2 * cell < drawn.shape[0] < bands * (2 * cell + 60) + 3 * MARGIN + 20
    shown = cells(drawn, 37, cell)
    assert shown == cells(drawn, 91, cell)
    assert (shown == len(names)) == (len(names) <= 20)


def test_what_is_left_out_is_said():
    few, many = (sheet([[flat(9)] * n], titles=["cat"] * n, note="Note.", width=PAGE) for n in (12, 40))
    assert few.shape == many.shape
    assert not np.array_equal(few[-30:], many[-30:])
    tall = sheet([[flat(9)]] * 100)
    assert cells(tall, 9, 96) == MOST_ROWS
    assert tall.shape[0] > sheet([[flat(9)]] * MOST_ROWS).shape[0]


@pytest.mark.parametrize(
    ("rows", "titles", "says"),
    [
        ([], (), "one or more images to draw"),
        ([[]], (), "one or more images to draw"),
        ([[flat(0)], [flat(0)] * 2], ("a",), r"rows of 1 images.*got \[1, 2\]"),
    ],
)
def test_what_is_no_sheet_is_refused(rows, titles, says):
    with pytest.raises(UserError, match=says):
        sheet(rows, titles=titles)


def test_a_fitted_image_stays_as_it_is():
    once = fitted(np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8))
    assert np.array_equal(fitted(once), once)


# Words


def test_everything_that_is_said_is_on_the_sheet():
    said = {"title": "t", "titles": ["a"], "labels": ["b"], "captions": ["c"], "note": "n"}
    plain = sheet([[flat(0)]])
    for name, value in said.items():
        drawn = sheet([[flat(0)]], **{name: value})
        assert drawn.shape != plain.shape
        other = ["x"] if isinstance(value, list) else "x"
        assert not np.array_equal(drawn, sheet([[flat(0)]], **{name: other}))
    below = sheet([[flat(0)] * 2], captions=[["0.1", "0.2"]])
    assert below.shape[0] > plain.shape[0]


def test_long_names_are_wrapped_not_cut():
    names = ["a-very-long-class-name-of-some-collection, also known otherwise"]
    label = ("someone-or-other/resnet18-robust-at-eps-3-second-attempt", *("robust",) * 20)
    drawn = sheet([[flat(50)]], titles=names, labels=[label], width=PAGE)
    assert drawn.shape[0] > 96 + 5 * 16
    assert drawn.shape[1] < 96 + 190 + 60
    assert bool((np.concatenate([drawn[:, :MARGIN].ravel(), drawn[:, -MARGIN:].ravel()]) == 255).all())


@pytest.mark.parametrize("caption", ["W" * 99, "猫" * 40, "", "great white shark, white shark, man-eater"])
def test_captions_stay_below_their_image(caption):
    drawn = sheet([[flat(0)] * 2], captions=[[caption, ""]])
    assert drawn.shape[1] == 2 * 96 + GAP + 2 * MARGIN
    assert pixels(drawn, 0) == 2 * 96**2, "no letter lies on an image"


OWN = ["cat", "Straßenkäfer", "кот", "猫", "naïve façade"]
WITHOUT_FONTS = {
    "cat": "cat",
    "Straßenkäfer": "Strassenkafer",
    "кот": "class 2",
    "cat 12 % → кот 99 %": "cat 12 % -> class 2 99 %",
    "ε 3 ×2": "eps 3 x2",
    "猫, Straßenkäfer": "class 3, Strassenkafer",
    "naïve façade": "naive facade",
    "犬": "?",
    "": "",
}


@pytest.mark.parametrize("text", WITHOUT_FONTS)
def test_without_fonts_letters_are_replaced_and_never_boxes(text, no_fonts):
    letters = sheets._Text(OWN)
    assert letters.written(text) == WITHOUT_FONTS[text]
    assert bool(letters.note) == (text != WITHOUT_FONTS[text])
    block = letters.block(text, 16, 500)
    drawn = {letter for line in block.lines for letter in line}
    box = sheets._glyph(block.font, "\uffff")
    assert not [letter for letter in drawn if sheets._glyph(block.font, letter) == box]


def test_with_a_font_that_has_them_letters_stay_and_nothing_is_said(monkeypatch):
    try:
        ImageFont.truetype("DejaVuSans", 16)
    except OSError:
        pytest.skip("needs DejaVu Sans")
    monkeypatch.setattr(sheets, "FONTS", ("no such font", "DejaVuSans"))
    letters = sheets._Text(OWN)
    for text in ("Straßenkäfer", "cat 12 % → кот 99 %", "ε 3 ×2"):
        assert letters.written(text) == text
        assert "DejaVu" in str(letters.block(text, 12, 500).font.getname()[0])
    assert letters.note == ""
    assert letters.written("猫 кот") == "class 3 кот", "only what no font has is replaced"


def test_replaced_letters_are_said_once(no_fonts):
    drawn, plain = (sheet([[flat(0)] * 3], captions=[[name] * 3], classes=OWN) for name in ("кот", "cat"))
    assert plain.shape[0] < drawn.shape[0] < plain.shape[0] + 90


# Sheets by class


@pytest.mark.parametrize(
    ("classes", "each", "shown", "per_row"),
    [(10, 8, 80, 8), (1, 64, 64, 16), (3, 1, 3, 3), (10, 64, 200, 10), (1000, 1, 200, 10), (100, 5, 200, 10)],
)
def test_a_sheet_of_classes_shows_each_and_asks_for_no_more_than_it_shows(classes, each, shown, per_row):
    asked: list[int] = []

    def image(index: int) -> np.ndarray | None:
        asked.append(index)
        return flat(33) if index != 1 else None

    drawn = class_sheet([f"class {i}" for i in range(classes) for _ in range(each)], image)
    assert len(asked) == len(set(asked)) == shown
    assert cells(drawn, 33, 96) == shown - (1 in asked)
    across = [row for row in (drawn == 33).all(2) if row.sum() >= (per_row - 1) * 96]
    assert across
    assert max(int(row.sum()) for row in across) < (per_row + 1) * 96


# Saving and showing


IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("images", "name", "files"),
    [
        (IMAGES[0], "a.png", ["a.png"]),
        (IMAGES[:1], "a.png", ["a.png"]),
        (IMAGES, "a-{:02d}.png", ["a-00.png", "a-01.png", "a-02.png"]),
        (IMAGES, "new/folder", ["000000.png", "000001.png", "000002.png"]),
        (list(IMAGES), "a-{}.png", ["a-0.png", "a-1.png", "a-2.png"]),
        (IMAGES[:, :1], "a-{}.png", ["a-0.png", "a-1.png", "a-2.png"]),
        ([IMAGES[0], IMAGES[1, :, :4]], "a-{}.png", ["a-0.png", "a-1.png"]),
        (to_uint8(IMAGES), "a-{}.png", ["a-0.png", "a-1.png", "a-2.png"]),
        (Image.new("RGB", (4, 4)), "a.png", ["a.png"]),
    ],
)
def test_images_are_saved_as_they_are(images, name, files, tmp_path):
    saved = save(images, tmp_path / name, text={"seed": "3"})
    assert [path.name for path in saved] == files
    first = to_uint8(IMAGES[:1])[0] if not isinstance(images, Image.Image) else np.zeros((4, 4, 3), np.uint8)
    grey = isinstance(images, torch.Tensor) and images.ndim == 4 and images.shape[1] == 1
    got = read_image(saved[0], channels=1 if grey else 3).pixels
    assert np.array_equal(got, first[..., :1] if grey else first)
    assert all(png_text(path) == {"seed": "3"} for path in saved)


@pytest.mark.parametrize("ending", ["jpg", "webp", "gif", "npz"])
def test_images_are_saved_in_other_formats(ending, tmp_path):
    single = ending in ("jpg", "webp")
    (path,) = save(IMAGES[:1] if single else IMAGES, tmp_path / f"a.{ending}")
    if ending == "npz":
        assert np.array_equal(np.load(path)["arr_0"], to_uint8(IMAGES))
    else:
        with Image.open(path) as opened:
            assert opened.size == (8, 8)
            assert getattr(opened, "n_frames", 1) == (1 if single else 3)


@pytest.mark.parametrize(
    ("images", "name", "says"),
    [
        (IMAGES, "a.png", r"one image for .*a\.png, got 3; name a folder, or a pattern such as .*a-\{\}\.png"),
        (IMAGES[:0], "a.png", "one or more images"),
        ([IMAGES[0], IMAGES[1, :, :4]], "a.npz", "of one size"),
        ([IMAGES[0], IMAGES[1, :, :4]], "a.gif", "of one size"),
        (255 * IMAGES, "a.gif", r"\[0, 1\]"),
    ],
)
def test_what_cannot_be_saved_is_refused(images, name, says, tmp_path):
    with pytest.raises(UserError, match=says):
        save(images, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_images_are_shown_in_a_notebook_and_returned_elsewhere(monkeypatch):
    shown = show(IMAGES, ["cat", "dog", "ship"], columns=2)
    assert shown is not None
    assert shown.height > 2 * 96
    seen: list[Image.Image] = []
    fake = types.SimpleNamespace(
        get_ipython=lambda: types.SimpleNamespace(kernel=1), display=types.SimpleNamespace(display=seen.append)
    )
    monkeypatch.setitem(sys.modules, "IPython", fake)
    assert show(IMAGES) is None
    assert len(seen) == 1
