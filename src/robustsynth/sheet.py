"""One sheet for every figure: rows of images with titles, labels and captions. And showing and saving images."""

from __future__ import annotations

import functools
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
"""Rows of a sheet, times that they may be repeated for further columns, and images of a sheet of classes; nobody looks
at a thousand."""

PAGE = 1240
"""Pixels that columns may take side by side on a sheet that is to fit a page."""

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
    """One uint8 image (H, W, 3) of rows of images on white.

    Text is written in an installed font that has its letters; where there is none, without accents or by class number,
    which is said at the foot. At most `MOST_ROWS` rows are shown; what is left out is said there too.

    Args:
        rows: of uint8 images (h, w, C) of any sizes; None is a grey cell.
        title: above everything.
        titles: of the columns, as many as each row has images. Neighbouring columns of one title are a group, and the
            title is written once above it.
        labels: in front of the rows: a name, or a name and a few words to stand below it, line by line.
        captions: under the rows: a text for the whole row, or one for each of its images.
        note: at the foot.
        classes: names that are written as ``class 3`` where no font has their letters.
        cell: images whose longer side is less are enlarged by whole factors up to it, so that their pixels are seen as
            they are; those of more than `LARGEST_CELL` are reduced to that.
        width: pixels that columns may take side by side, such as `PAGE`; further groups go below. None for any.

    Raises:
        UserError: nothing to show, or rows of other lengths than the titles.

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
    shown = [[None if image is None else fitted(image, side) for image in row] for row in rows[:MOST_ROWS]]
    wide = max((image.shape[1] for row in shown for image in row if image is not None), default=side)
    heights = [max((image.shape[0] for image in row if image is not None), default=side) for row in shown]
    bands = _bands(titles or [""] * columns, wide, width)
    fronts = [_label(text, label, height) for label, height in zip(labels, heights, strict=False)]
    left = MARGIN + max((block.width + MARGIN for front in fronts for block in front), default=0)
    across = left - MARGIN + max(band[-1].x + band[-1].width(wide) for band in bands)

    page = _Page()
    if title:
        page.y += page.put(MARGIN, page.y, text.block(title, TITLE, across)) + 2 * LEADING
    for number, band in enumerate(bands):
        page.y += BETWEEN_BANDS if number else 0
        heads = [text.block(group.title, NAME, group.width(wide), centred=True) for group in band]
        high = max(head.height for head in heads)
        for group, head in zip(band, heads, strict=True):
            page.put(left + group.x, page.y + high - head.height, head)
        page.y += high + (LEADING if high else 0)
        for place, (row, height) in enumerate(zip(shown, heights, strict=True)):
            if place < len(fronts):
                page.stack(MARGIN, page.y, height, fronts[place])
            caption = captions[place] if place < len(captions) else ""
            below = 0
            for column, x in (cell for group in band for cell in group.cells(left, wide)):
                if column < len(row):
                    page.cell(x, wide, height, row[column])
                if not isinstance(caption, str) and column < len(caption):
                    block = text.block(caption[column], SMALL, wide, most=2, fill=FAINT, centred=True)
                    below = max(below, page.put(x, page.y + height + 1, block))
            if isinstance(caption, str):
                below = page.put(left, page.y + height + 1, text.block(caption, SMALL, across, fill=FAINT))
            page.y += height + below + (2 * GAP if below else GAP)
    drawn = sum(len(group.columns) for band in bands for group in band)
    notes = [note, f"Shown: the first {len(shown)} of {len(rows)} rows." if len(shown) < len(rows) else ""]
    notes += [f"Shown: {drawn} of {columns} columns." if drawn < columns else "", text.note]
    if foot := " ".join(filter(None, notes)):
        page.y += page.put(MARGIN, page.y + LEADING, text.block(foot, SMALL, across, fill=FAINT)) + LEADING
    return page.drawn(across + 2 * MARGIN)


def class_sheet(names: Sequence[str], image: Callable[[int], np.ndarray | None], **options: Any) -> np.ndarray:
    """A sheet of images by class: rows of each class with its name in front; or, where a row would have one image or
    there are too many classes, rows of all with the names below. At most `MOST_IMAGES` are shown.

    Args:
        names: of each image's class.
        image: given a place in `names`, that image; None if it is missing. Only those that are shown are asked for.
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
    """Images, or their captions, in rows of `columns`."""
    return [images[start : start + columns] for start in range(0, len(images), columns)]


def show(images: Any, captions: Sequence[str] | None = None, *, columns: int = 8) -> Image.Image | None:
    """Show images: in a notebook below the cell; elsewhere the sheet is returned as a Pillow image.

    Args:
        images: as `robustsynth.images.as_images` takes them.
        captions: one for each image.
        columns: images a row.

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
    """Write images to files, each whole or not at all.

    Args:
        images: as `robustsynth.images.as_images` takes them.
        path: by its ending, ``.png``, ``.jpg`` or ``.webp``: one image's file, or of several a pattern such as
            ``cat-{:03d}.png``; ``.gif`` or ``.mp4``: one animation of which they are the frames; ``.npz``: one file
            with ``arr_0``, uint8 (N, H, W, C). Without one of these, a folder for ``000000.png``, ``000001.png`` ….
        text: what each PNG says of itself (`robustsynth.images.png_text`).
        seconds: that an animation takes.

    Returns:
        The files.

    Raises:
        UserError: several images for one file, no images, or images of several sizes where one is needed.

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
        several = path.with_name(f"{path.stem}-{{}}{path.suffix}")
        raise UserError(
            f"expected one image for {path}, got {len(each)}; name a folder, or a pattern such as {several}"
        )
    files = [path.with_name(path.name.format(i)) if single else path / f"{i:06d}.png" for i in range(len(each))]
    for file, image in zip(files, each, strict=True):
        if file.suffix.lower() == ".png":
            save_png(file, image, text=text)
        else:
            with written_beside(file) as temporary:
                to_pil(image).save(temporary, quality=95)
    return files


def fitted(image: np.ndarray, cell: int = LARGEST_CELL) -> np.ndarray:
    """uint8 (h, w, 3) as large as a cell: enlarged by a whole factor, so that pixels are seen as they are, or reduced.

    Example:
        >>> fitted(np.zeros((4000, 3000, 3), np.uint8)).shape, fitted(np.zeros((28, 28, 1), np.uint8), 96).shape
        ((224, 168, 3), (84, 84, 3))
    """
    pixels = to_pil(image).convert("RGB")
    scale = cell / max(pixels.size)
    if scale >= 1:
        size, method = (pixels.width * int(scale), pixels.height * int(scale)), Image.Resampling.NEAREST
    else:
        size = (max(1, round(pixels.width * scale)), max(1, round(pixels.height * scale)))
        method = Image.Resampling.LANCZOS
    return np.asarray(pixels.resize(size, method))


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


# Where things go


@dataclass(frozen=True)
class _Group:
    """Columns of one title, `x` pixels from the first of their band."""

    title: str
    columns: tuple[int, ...]
    x: int = 0

    def width(self, wide: int) -> int:
        return len(self.columns) * (wide + GAP) - GAP

    def cells(self, left: int, wide: int) -> Iterator[tuple[int, int]]:
        return ((column, left + self.x + place * (wide + GAP)) for place, column in enumerate(self.columns))


def _bands(titles: Sequence[str], wide: int, width: int | None) -> list[list[_Group]]:
    """Groups side by side, as many as fit, and as evenly as they can be; of one that is too wide, what fits."""
    groups = [(title, tuple(found)) for title, found in groupby(range(len(titles)), titles.__getitem__)]
    each = len(groups)
    if width is not None:
        groups = [(title, columns[: max(1, width // (wide + GAP))]) for title, columns in groups]
        widest = max(_Group(*group).width(wide) for group in groups) + BETWEEN_GROUPS
        fitting = max(1, (width + BETWEEN_GROUPS) // widest)
        groups = groups[: fitting * MOST_BANDS]
        each = -(-len(groups) // -(-len(groups) // fitting))
    bands: list[list[_Group]] = []
    for place, (title, columns) in enumerate(groups):
        if place % each == 0:
            bands.append([])
        before = bands[-1][-1] if bands[-1] else None
        x = 0 if before is None else before.x + before.width(wide) + BETWEEN_GROUPS
        bands[-1].append(_Group(title, columns, x))
    return bands


@dataclass
class _Page:
    """What stands where; how high the sheet is shows itself at the end."""

    y: int = MARGIN
    placed: list[tuple[int, int, Image.Image | _Block]] = field(default_factory=list)

    def put(self, x: int, y: int, block: _Block) -> int:
        """Place a block of text; returns its height."""
        self.placed.append((x, y, block))
        return block.height

    def stack(self, x: int, y: int, height: int, blocks: Sequence[_Block]) -> None:
        """Place blocks below each other in the middle of `height`."""
        y += (height - sum(block.height for block in blocks)) // 2
        for block in blocks:
            y += self.put(x, y, block)

    def cell(self, x: int, wide: int, height: int, image: np.ndarray | None) -> None:
        """Place an image in the middle of its cell."""
        pixels = Image.new("RGB", (wide, height), MISSING) if image is None else Image.fromarray(image)
        self.placed.append((x + (wide - pixels.width) // 2, self.y + (height - pixels.height) // 2, pixels))

    def drawn(self, width: int) -> np.ndarray:
        canvas = Image.new("RGB", (width, self.y + MARGIN - GAP), "white")
        pen = ImageDraw.Draw(canvas)
        for x, y, thing in self.placed:
            if isinstance(thing, Image.Image):
                canvas.paste(thing, (x, y))
            else:
                thing.draw(pen, x, y)
        return np.asarray(canvas)


# Letters

FONTS = (
    "DejaVuSans", "NotoSans-Regular", "LiberationSans-Regular", "Arial", "arial", "segoeui", "Arial Unicode",
    "NotoSansCJK-Regular", "NotoSansJP-Regular", "wqy-microhei", "Hiragino Sans GB", "PingFang", "AppleSDGothicNeo",
    "YuGothM", "msgothic", "msyh", "malgun", "NotoSansArabic-Regular", "NotoSansDevanagari-Regular",
    "NotoSansThai-Regular", "Nirmala", "tahoma",
)  # fmt: skip
"""Fonts of Linux, macOS and Windows, which Pillow looks for in the usual folders: the first that has a text's letters
is taken."""

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
    fill: tuple[int, int, int]
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
            pen.text((at, y), line, fill=self.fill, font=self.font)
            y += self.size + LEADING


class _Text:
    """Makes blocks of text, and remembers whether some had to be written otherwise."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = sorted(enumerate(classes), key=lambda each: -len(each[1]))
        self.changed = False

    @property
    def note(self) -> str:
        said = "No font that is installed here has all letters: some names are without accents or by class number."
        return said if self.changed else ""

    def block(
        self,
        text: str,
        size: int,
        width: float,
        *,
        most: int | None = None,
        fill: tuple[int, int, int] = INK,
        centred: bool = False,
    ) -> _Block:
        """Text in lines that fit `width`; where there are more than `most`, the last ends in an ellipsis."""
        written = self.written(text)
        font = _face(_font_for(written) or _BUILT_IN, size)
        assert font is not None
        lines = _wrapped(written, font, width)
        if most is not None and len(lines) > most:
            lines = [*lines[: most - 1], _shortened(" ".join(lines[most - 1 :]), font, width)]
        return _Block(tuple(lines), font, size, fill, width / 2 if centred else None)

    def written(self, text: str) -> str:
        """The text in letters that some font has: class names by number, others without accents, at worst as "?"."""
        if _font_for(text) is not None:
            return text
        self.changed = True
        for index, name in self.classes:
            if name in text and _font_for(_transliterated(name)) is None:
                text = text.replace(name, f"class {index}")
        if _font_for(text) is None:
            text = _transliterated(text)
        if _font_for(text) is None:
            text = "".join(letter if _has(_BUILT_IN, letter) else "?" for letter in text)
        return text


def _label(text: _Text, label: str | Sequence[str], height: int) -> list[_Block]:
    """A name in as many lines as it needs, and a line each for what stands below it, as far as the row is high."""
    name, *about = [label] if isinstance(label, str) else label or [""]
    blocks = [text.block(name, NAME, LABEL_WIDTH)]
    blocks += [text.block(line, SMALL, LABEL_WIDTH, most=1, fill=FAINT) for line in about]
    while len(blocks) > 1 and sum(block.height for block in blocks) > height:
        blocks.pop()
    return blocks


def _transliterated(text: str) -> str:
    """Without accents and ligatures.

    Example:
        >>> _transliterated("Straßenkäfer ×2 → ε")
        'Strassenkafer x2 -> eps'
    """
    decomposed = unicodedata.normalize("NFKD", text.translate(_PLAIN))
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


def _font_for(text: str) -> str | None:
    """The first font that has all letters; None if there is none."""
    return next((name for name in (*FONTS, _BUILT_IN) if all(_has(name, letter) for letter in set(text))), None)


@functools.cache
def _has(font: str, letter: str) -> bool:
    face = _face(font, NAME)
    if face is None or letter.isspace():
        return face is not None
    # What a font lacks it draws as a box, as it does what is no character at all.
    return _glyph(face, letter) != _glyph(face, "\uffff")


def _glyph(face: ImageFont.FreeTypeFont, letter: str) -> bytes:
    drawn = Image.new("L", (3 * NAME, 3 * NAME))
    ImageDraw.Draw(drawn).text((NAME, NAME), letter, fill=255, font=face)
    return drawn.tobytes()


@functools.cache
def _face(font: str, size: int) -> ImageFont.FreeTypeFont | None:
    if font == _BUILT_IN:
        built_in = ImageFont.load_default(size)
        assert isinstance(built_in, ImageFont.FreeTypeFont)
        return built_in
    if size != NAME:  # Looked for once.
        found = _face(font, NAME)
        return None if found is None else found.font_variant(size=size)
    try:
        return ImageFont.truetype(font, size)
    except OSError:
        return None


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


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """As much of the text as fits, with an ellipsis if that is not all."""
    kept = text
    while kept and font.getlength(kept if kept == text else kept + "...") > width:
        kept = kept[:-1]
    return text if kept == text else kept.rstrip(" ,") + "..."
