"""Figures: rows of images with titles, labels and captions on one sheet. Also showing and saving images."""

from __future__ import annotations

import functools
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from robustsynth.animations import ENDINGS, save_animation
from robustsynth.errors import UserError
from robustsynth.files import written_beside
from robustsynth.images import as_images, save_png, to_pil, to_uint8

MOST_ROWS, MOST_BANDS, MOST_IMAGES = 64, 12, 200
"""The most rows of a sheet, bands of columns below each other, and images of a sheet of classes."""

PAGE = 1240
"""Pixels of the columns side by side on a sheet that fits a page."""

LARGEST_CELL, LABEL_WIDTH = 224, 190
GAP, BETWEEN_GROUPS, BETWEEN_BANDS, MARGIN = 4, 12, 22, 12
TITLE, NAME, SMALL, LEADING = 22, 16, 12, 3
"""Heights in pixels: of the letters of the title, of names, of all else, and between lines."""

INK, FAINT, MISSING = (20, 20, 20), (105, 105, 105), (245, 245, 245)


def sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    *,
    title: str = "",
    titles: Sequence[str] = (),
    labels: Sequence[str | Sequence[str]] = (),
    captions: Sequence[str | Sequence[str]] = (),
    note: str = "",
    classes: Sequence[str] = (),
    cell: int = 96,
    width: int | None = None,
) -> np.ndarray:
    """Rows of images on white, as one uint8 image (H, W, 3).

    Text is written in an installed font that has its letters. Where there is none, letters lose their accents or class
    names become numbers, and the foot of the sheet says so. It also says what is left out. No images, or rows of other
    lengths than the titles, are a `UserError`.

    Args:
        rows: of uint8 images (h, w, C) of any sizes, at most `MOST_ROWS`; None is a grey cell.
        title: above everything.
        titles: of the columns. Neighbouring columns of one title are a group, with the title once above it.
        labels: in front of the rows: a name, or a name and lines to stand below it.
        captions: below the rows: a text for the whole row, or one for each of its images.
        note: at the foot.
        classes: names that become ``class 3`` where no font has their letters.
        cell: images whose longer side is less are enlarged up to it by whole factors; those of more than `LARGEST_CELL`
            are reduced to that.
        width: pixels that the columns may take side by side, such as `PAGE`; further groups go below. None for any.

    Example:
        >>> image = np.zeros((32, 32, 3), np.uint8)
        >>> sheet([[image, image], [image, None]]).shape
        (220, 220, 3)
    """
    columns = max(map(len, rows), default=0)
    if not columns or (titles and any(len(row) != len(titles) for row in rows)):
        wanted = f"rows of {len(titles)} images, as many as there are titles" if titles else "one or more images"
        raise UserError(f"expected {wanted} to draw, got {[len(row) for row in rows]}")
    text = _Text(classes)
    sides = [max(image.shape[:2]) for row in rows for image in row if image is not None]
    side = max(cell, min(max(sides, default=cell), LARGEST_CELL))
    shown = [
        [None if image is None else Image.fromarray(fitted(image, side)) for image in row] for row in rows[:MOST_ROWS]
    ]
    wide = max((image.width for row in shown for image in row if image is not None), default=side)
    heights = [max((image.height for image in row if image is not None), default=side) for row in shown]
    bands = _bands(titles or [""] * columns, wide, width)
    fronts = [text.label(label, height) for label, height in zip(labels, heights, strict=False)]
    left = MARGIN + max((block.width + MARGIN for front in fronts for block in front), default=0)
    across = left - MARGIN + max(band[-1][1][-1][1] + wide for band in bands)
    placed: list[tuple[int, int, Image.Image | _Block]] = []

    def put(x: int, y: int, thing: Image.Image | _Block) -> int:
        placed.append((x, y, thing))
        return y + thing.height

    y = MARGIN
    if title:
        y = put(MARGIN, y, text.block(title, TITLE, across)) + 2 * LEADING
    for number, band in enumerate(bands):
        y += BETWEEN_BANDS if number else 0
        heads = [text.block(name, NAME, cells[-1][1] - cells[0][1] + wide, centred=True) for name, cells in band]
        high = max(head.height for head in heads)
        for (_, cells), head in zip(band, heads, strict=True):
            put(left + cells[0][1], y + high - head.height, head)
        y += high + (LEADING if high else 0)
        for place, (row, height) in enumerate(zip(shown, heights, strict=True)):
            front = fronts[place] if place < len(fronts) else []
            top = y + (height - sum(block.height for block in front)) // 2
            for block in front:
                top = put(MARGIN, top, block)
            caption = captions[place] if place < len(captions) else ""
            below = bottom = y + height + 1
            for column, x in (each for _, cells in band for each in cells):
                if column < len(row):
                    image = row[column] or Image.new("RGB", (wide, height), MISSING)
                    put(left + x + (wide - image.width) // 2, y + (height - image.height) // 2, image)
                if not isinstance(caption, str) and column < len(caption):
                    block = text.block(caption[column], SMALL, wide, most=2, centred=True)
                    below = max(below, put(left + x, bottom, block))
            if isinstance(caption, str):
                below = put(left, bottom, text.block(caption, SMALL, across))
            y = below - 1 + (2 * GAP if below > bottom else GAP)
    drawn = sum(len(cells) for band in bands for _, cells in band)
    notes = [note, f"Shown: the first {len(shown)} of {len(rows)} rows." if len(shown) < len(rows) else ""]
    notes += [f"Shown: {drawn} of {columns} columns." if drawn < columns else "", text.note]
    if foot := " ".join(filter(None, notes)):
        y = put(MARGIN, y + LEADING, text.block(foot, SMALL, across))
    canvas = Image.new("RGB", (across + 2 * MARGIN, y + MARGIN - GAP), "white")
    pen = ImageDraw.Draw(canvas)
    for x, top, thing in placed:
        if isinstance(thing, Image.Image):
            canvas.paste(thing, (x, top))
        else:
            thing.draw(pen, x, top)
    return np.asarray(canvas)


def _bands(titles: Sequence[str], wide: int, width: int | None) -> list[list[tuple[str, list[tuple[int, int]]]]]:
    """Groups of columns, as many side by side as fit: titles, each with its columns and the pixels to their left."""
    groups = [(title, list(found)) for title, found in groupby(range(len(titles)), titles.__getitem__)]
    each = len(groups)
    if width is not None:
        groups = [(title, columns[: max(1, width // (wide + GAP))]) for title, columns in groups]
        widest = max(len(columns) for _, columns in groups) * (wide + GAP) - GAP + BETWEEN_GROUPS
        fitting = max(1, (width + BETWEEN_GROUPS) // widest)
        groups = groups[: fitting * MOST_BANDS]
        each = -(-len(groups) // -(-len(groups) // fitting))
    bands: list[list[tuple[str, list[tuple[int, int]]]]] = []
    x = 0
    for place, (title, columns) in enumerate(groups):
        if place % each == 0:
            bands.append([])
            x = 0
        bands[-1].append((title, [(column, x + i * (wide + GAP)) for i, column in enumerate(columns)]))
        x += len(columns) * (wide + GAP) - GAP + BETWEEN_GROUPS
    return bands


def class_sheet(names: Sequence[str], image: Callable[[int], np.ndarray | None], **options: Any) -> np.ndarray:
    """A sheet of images by class, at most `MOST_IMAGES`.

    Each class has rows of its own with the name in front. Where a row would have one image, or there are too many
    classes, rows have images of several classes with the names below.

    Args:
        names: the class of each image.
        image: the image of a position in `names`, or None if it is missing. It is called for images that are shown.
        **options: of `sheet`.

    Example:
        >>> images = np.zeros((4, 32, 32, 3), np.uint8)
        >>> class_sheet(["cat", "cat", "ship", "ship"], images.__getitem__).shape[0]
        220
    """
    places = {name: [i for i, each in enumerate(names) if each == name] for name in dict.fromkeys(names)}
    each = min(max(map(len, places.values()), default=1), max(1, MOST_IMAGES // max(1, len(places))))
    wide = -(-each // -(-each // 16))
    if each == 1 or len(places) * -(-each // wide) > MOST_ROWS:
        chosen = [i for indices in places.values() for i in indices[:each]][:MOST_IMAGES]
        lines = in_rows(chosen, 10)
        options["captions"] = [[names[i] for i in line] for line in lines]
    else:
        starts = [(name, start) for name, indices in places.items() for start in range(0, len(indices[:each]), wide)]
        lines = [places[name][:each][start : start + wide] for name, start in starts]
        options["labels"] = ["" if start else name for name, start in starts]
    return sheet([[image(i) for i in line] for line in lines], **options)


def in_rows(images: Any, columns: int) -> list[Any]:
    """A list, or an array, in rows of `columns`."""
    return [images[start : start + columns] for start in range(0, len(images), columns)]


def show(images: Any, captions: Sequence[str] | None = None, *, columns: int = 8) -> Image.Image | None:
    """Show images below the cell of a notebook; elsewhere return them as one Pillow image.

    `images` are as for `robustsynth.images.as_images`, `columns` of them a row, with one caption each.

    Example:
        >>> import torch
        >>> show(torch.rand(3, 3, 32, 32), ["cat", "dog", "ship"]).size
        (320, 139)
    """
    each = _pixels_of(images)
    shown = to_pil(sheet(in_rows(each, columns), captions=in_rows(captions or [], columns)))
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if not hasattr(shell, "kernel"):
        return shown
    sys.modules["IPython"].display.display(shown)
    return None


def save(images: Any, path: Path | str, *, text: Mapping[str, str] | None = None, seconds: float = 4.0) -> list[Path]:
    """Write images to files, and return the paths.

    Several images for one file, no images, or several sizes where one is needed are a `UserError`.

    Args:
        images: as for `robustsynth.images.as_images`.
        path: its ending decides. ``.png``, ``.jpg``, ``.webp``: the file of one image, or a pattern for several such as
            ``cat-{:03d}.png``. ``.gif``, ``.mp4``: one animation, whose frames are the images. ``.npz``: one file with
            ``arr_0``, uint8 (N, H, W, C). Otherwise a folder for ``000000.png``, ``000001.png`` ….
        text: text chunks of each PNG (`robustsynth.images.png_text`).
        seconds: length of an animation.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in save(torch.rand(2, 3, 8, 8), Path(folder, "cat-{}.png"))]
        ['cat-0.png', 'cat-1.png']
    """
    path, each = Path(path), _pixels_of(images)
    ending = path.suffix.lower()
    if not each:
        raise UserError(f"expected one or more images to write to {path}, got none")
    if ending in ENDINGS:
        save_animation(path, each, seconds=seconds)
        return [path]
    if ending == ".npz":
        if len({image.shape for image in each}) > 1:
            raise UserError(f"expected images of one size for {path}, got several; name a folder instead")
        with written_beside(path) as temporary:
            np.savez(temporary, np.stack(each))
        return [path]
    single = ending in (".png", ".jpg", ".jpeg", ".webp")
    if single and len(each) > 1 and "{" not in path.name:
        remedy = f"name a folder, or a pattern such as {path.with_name(f'{path.stem}-{{}}{path.suffix}')}"
        raise UserError(f"expected one image for {path}, got {len(each)}; {remedy}")
    files = [path.with_name(path.name.format(i)) if single else path / f"{i:06d}.png" for i in range(len(each))]
    for file, image in zip(files, each, strict=True):
        if file.suffix.lower() == ".png":
            save_png(file, image, text=text)
        else:
            with written_beside(file) as temporary:
                to_pil(image).save(temporary, quality=95)
    return files


def fitted(image: np.ndarray, cell: int = LARGEST_CELL) -> np.ndarray:
    """An image as uint8 (h, w, 3) that fits a cell: enlarged by a whole factor, or reduced.

    Example:
        >>> fitted(np.zeros((4000, 3000, 3), np.uint8)).shape, fitted(np.zeros((28, 28, 1), np.uint8), 96).shape
        ((224, 168, 3), (84, 84, 3))
    """
    pixels = to_pil(image).convert("RGB")
    scale = cell / max(pixels.size)
    scale, method = (int(scale), Image.Resampling.NEAREST) if scale >= 1 else (scale, Image.Resampling.LANCZOS)
    width, height = (max(1, round(side * scale)) for side in pixels.size)
    return np.asarray(pixels.resize((width, height), method))


def _pixels_of(images: Any) -> list[np.ndarray]:
    """uint8 (H, W, C) of each image, with the channels that it has."""
    if isinstance(images, list | tuple):
        return [pixels for one in images for pixels in _pixels_of(one)]
    channels = 3
    if isinstance(images, Tensor):
        channels = images.shape[-3] if images.ndim > 2 else 1
    elif isinstance(images, np.ndarray):
        channels = 1 if images.ndim == 2 or images.shape[-1] == 1 else 3
    return [to_uint8(image[None])[0] for image in as_images(images, channels=channels)]


# Text

FONTS = (
    "DejaVuSans", "NotoSans-Regular", "LiberationSans-Regular", "Arial", "arial", "segoeui", "Arial Unicode",
    "NotoSansCJK-Regular", "NotoSansJP-Regular", "wqy-microhei", "Hiragino Sans GB", "PingFang", "AppleSDGothicNeo",
    "YuGothM", "msgothic", "msyh", "malgun", "NotoSansArabic-Regular", "NotoSansDevanagari-Regular",
    "NotoSansThai-Regular", "Nirmala", "tahoma",
)  # fmt: skip
"""Fonts of Linux, macOS and Windows. The first that has the letters of a text is taken."""

_BUILT_IN = ""
_PLAIN = str.maketrans({
    "ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L",
    "đ": "d", "Đ": "D", "ð": "d", "þ": "th", "ı": "i", "×": "x", "→": "->", "←": "<-", "ε": "eps", "≤": "<=",
    "≥": ">=", "≈": "~", "∞": "inf", "−": "-", "–": "-", "—": "-", "…": "...", "’": "'",
})  # fmt: skip


@dataclass(frozen=True)
class _Block:
    """Lines of text in a font that has all their letters."""

    lines: tuple[str, ...]
    font: ImageFont.FreeTypeFont
    size: int
    middle: float | None = None

    @property
    def height(self) -> int:
        return len(self.lines) * (self.size + LEADING)

    @property
    def width(self) -> int:
        return max((-int(-self.font.getlength(line) // 1) for line in self.lines), default=0)

    def draw(self, pen: ImageDraw.ImageDraw, x: float, y: float) -> None:
        for line in self.lines:
            at = x if self.middle is None else x + self.middle - self.font.getlength(line) / 2
            pen.text((at, y), line, fill=FAINT if self.size == SMALL else INK, font=self.font)
            y += self.size + LEADING


class _Text:
    """Makes blocks of text, and records whether letters were replaced."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = sorted(enumerate(classes), key=lambda each: -len(each[1]))
        self.note = ""

    def block(self, text: str, size: int, width: float, *, most: int | None = None, centred: bool = False) -> _Block:
        """Text in lines that fit `width`. Where there are more than `most`, the last ends in an ellipsis."""
        written = self.written(text)
        font = _face(_font_for(written) or _BUILT_IN, size)
        assert font is not None
        lines = _wrapped(written, font, width)
        if most is not None and len(lines) > most:
            kept = rest = " ".join(lines[most - 1 :])
            while kept and font.getlength(kept if kept == rest else kept + "...") > width:
                kept = kept[:-1]
            lines = [*lines[: most - 1], kept if kept == rest else kept.rstrip(" ,") + "..."]
        return _Block(tuple(lines), font, size, width / 2 if centred else None)

    def label(self, label: str | Sequence[str], height: int) -> list[_Block]:
        """A name in as many lines as it needs, and below it as many lines as the row is high enough for."""
        name, *about = [label] if isinstance(label, str) else label or [""]
        blocks = [self.block(name, NAME, LABEL_WIDTH)]
        blocks += [self.block(line, SMALL, LABEL_WIDTH, most=1) for line in about]
        while len(blocks) > 1 and sum(block.height for block in blocks) > height:
            blocks.pop()
        return blocks

    def written(self, text: str) -> str:
        """The text in letters that a font has: class names as numbers, letters without accents, at worst as "?"."""
        if _font_for(text) is not None:
            return text
        self.note = "No font that is installed here has all letters: some names are without accents or by class number."
        for index, name in self.classes:
            if name in text and _font_for(_transliterated(name)) is None:
                text = text.replace(name, f"class {index}")
        if _font_for(text) is None:
            text = _transliterated(text)
        if _font_for(text) is None:
            text = "".join(letter if _has(_BUILT_IN, letter) else "?" for letter in text)
        return text


def _transliterated(text: str) -> str:
    """Without accents and ligatures."""
    decomposed = unicodedata.normalize("NFKD", text.translate(_PLAIN))
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


def _font_for(text: str) -> str | None:
    """The first font that has all letters; None if there is none."""
    return next((name for name in (*FONTS, _BUILT_IN) if all(_has(name, letter) for letter in set(text))), None)


@functools.cache
def _has(font: str, letter: str) -> bool:
    face = _face(font, NAME)
    # What a font lacks it draws as a box, as it does what is no character at all.
    return face is not None and (letter.isspace() or _glyph(face, letter) != _glyph(face, "\uffff"))


def _glyph(face: ImageFont.FreeTypeFont, letter: str) -> bytes:
    drawn = Image.new("L", (3 * NAME, 3 * NAME))
    ImageDraw.Draw(drawn).text((NAME, NAME), letter, fill=255, font=face)
    return drawn.tobytes()


@functools.cache
def _face(font: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        found = ImageFont.load_default(size) if font == _BUILT_IN else ImageFont.truetype(font, size)
    except OSError:
        return None
    return found if isinstance(found, ImageFont.FreeTypeFont) else None


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Lines of words that fit; a word that does not fit alone is broken after a hyphen, or where it has to be."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        while font.getlength(word) > width and len(word) > 1:
            fits = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            fits = word.rfind("-", 1, fits) + 1 or fits
            lines.append(word[:fits])
            word = word[fits:]
        lines.append(word)
    return lines
