"""Animations: frames written as a GIF or MP4 file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from robustsynth.errors import UserError
from robustsynth.files import written_beside
from robustsynth.images import to_pil

ENDINGS = (".gif", ".mp4")

HOLD = 1.5
"""Seconds for which the last frame is shown."""


def check_animation(path: Path | str) -> None:
    """Raise a `UserError` if no animation can be written to `path`. Call it before a long run.

    Example:
        >>> check_animation("run.avi")
        Traceback (most recent call last):
        robustsynth.errors.UserError: expected an animation's name to end in .gif or .mp4, got run.avi
    """
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise UserError(f"expected an animation's name to end in {' or '.join(ENDINGS)}, got {path}")
    if ending == ".mp4":
        _video_library(path)


def save_animation(path: Path | str, frames: Iterable[np.ndarray], *, seconds: float = 4.0) -> None:
    """Write frames as an animation that takes `seconds`; the last frame is shown for `HOLD` seconds more.

    An MP4 (H.264, 4:2:0) is far smaller and has all colours, but plays once. A GIF repeats, and holds all its frames in
    memory at a byte a pixel while it is written.

    Args:
        path: ends in ``.gif`` or ``.mp4``; the latter needs the package ``av``. Another ending is a `UserError`.
        frames: uint8 (H, W, C) of one size, C is 1 or 3. The sides of an MP4 are even: the last pixels of an odd one
            are repeated.
        seconds: for all frames together.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_animation(Path(folder) / "run.gif", [np.full((8, 8, 3), 20 * i, np.uint8) for i in range(9)])
        ...     [file.name for file in Path(folder).iterdir()]
        ['run.gif']
    """
    check_animation(path)
    if not 0 < seconds < float("inf"):
        raise UserError(f"expected an animation of more than 0 seconds, got {seconds}")
    write = _save_gif if Path(path).suffix.lower() == ".gif" else _save_mp4
    with written_beside(path) as temporary:
        write(temporary, _checked(frames), seconds)


def _checked(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    first = None
    for frame in frames:
        first = frame if first is None else first
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] not in (1, 3) or frame.shape != first.shape:
            raise UserError(
                "expected frames as uint8 (H, W, C) of one size with 1 or 3 channels, "
                f"got {frame.dtype} {frame.shape} after {first.shape}"
            )
        yield frame
    if first is None:
        raise UserError("expected at least one frame for an animation, got none")


def _save_gif(path: Path, frames: Iterator[np.ndarray], seconds: float) -> None:
    images = [_with_palette(frame) for frame in frames]
    # The format counts in hundredths of a second; ends are rounded, so that the errors do not add up.
    ends = [round(100 * seconds * i / len(images)) for i in range(len(images))]
    durations = [*(10 * max(2, end - before) for before, end in pairwise(ends)), round(1000 * HOLD)]
    images[0].save(path, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)


def _with_palette(frame: np.ndarray) -> Image.Image:
    """At most 256 colours. A dithered octree palette is as close to photographs as slower methods."""
    image = to_pil(frame)
    if image.mode == "L":
        return image
    palette = image.quantize(255, method=Image.Quantize.FASTOCTREE)
    colours = (palette.getpalette() or [])[: 3 * 255]
    palette.putpalette([*colours, *[255] * (3 * 256 - len(colours))])
    indices = np.array(image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))
    # Pillow finds only roughly the nearest colour, which would turn the white around images grey.
    indices[(frame == 255).all(axis=2)] = 255
    dithered = Image.fromarray(indices)
    dithered.putpalette(palette.getpalette() or [])
    return dithered


def _save_mp4(path: Path, frames: Iterator[np.ndarray], seconds: float) -> None:
    av = _video_library(path)
    first = next(frames)
    # "faststart": browsers begin to play before all of it has arrived.
    with av.open(str(path), mode="w", format="mp4", options={"movflags": "faststart"}) as container:
        # No visible loss; no frames that refer to later ones, so that times are in order. Without the names of the
        # colour space, players take another one for large images.
        options = {"crf": "18", "bf": "0"}
        options |= dict.fromkeys(("colorspace", "color_primaries", "color_trc"), "smpte170m")
        codec = "libx264" if "libx264" in av.codecs_available else "h264"
        stream = container.add_stream(codec, rate=30, options=options)
        stream.height, stream.width = (side + side % 2 for side in first.shape[:2])
        stream.pix_fmt = "yuv420p"
        packets: list[Any] = []
        count = 0
        for count, frame in enumerate(chain([first], frames), start=1):
            rgb = frame.repeat(3, 2) if frame.shape[2] == 1 else frame
            even = np.pad(rgb, [(0, rgb.shape[0] % 2), (0, rgb.shape[1] % 2), (0, 0)], mode="edge")
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            image.pts = count - 1
            packets += stream.encode(image)
        packets += stream.encode()
        # Packets are small. They wait until the number of frames is known, and with it the time of each.
        share = _share(seconds, count)
        for packet in packets:
            packet.time_base = share
            packet.duration = 1 if packet.pts < count - 1 else 1 + round(HOLD / share)
            container.mux(packet)


def _share(seconds: float, count: int) -> Fraction:
    """The time of one frame, as a fraction whose parts a video file has room for."""
    return Fraction(round(1000 * seconds) or 1, 1000 * count)


def _video_library(path: Path | str) -> Any:
    try:
        import av
    except ImportError:
        raise UserError(
            f"expected the package 'av' to write {path}, but it is not installed: "
            "pip install 'robustsynth[video]', or choose a name that ends in .gif"
        ) from None
    return av
