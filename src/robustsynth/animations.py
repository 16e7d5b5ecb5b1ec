"""Animations: frames collected evenly while an image is optimised, written as GIF or MP4."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from robustsynth.errors import UserError
from robustsynth.files import written_beside
from robustsynth.images import to_pil, to_uint8

ENDINGS = (".gif", ".mp4")

HOLD = 1.5
"""Seconds for which an animation's last frame is shown."""


class Recorder:
    """Collects at most so many frames of one image, evenly spread over the steps, the first and the last among them.

    Where the steps end early, the last that it was given is kept.

    Args:
        steps: T of the run, whose steps are numbered 0 to T.
        frames: the most to keep, 2 or more.

    Raises:
        UserError: fewer than 2 frames or 0 steps.

    Example:
        >>> import torch
        >>> recorder = Recorder(steps=100, frames=5)
        >>> for index in range(101):
        ...     recorder.add(index, torch.full((1, 2, 2), index / 100))
        >>> [int(frame[0, 0, 0]) for frame in recorder.frames()]
        [0, 64, 128, 191, 255]
    """

    def __init__(self, steps: int, *, frames: int = 60) -> None:
        if steps < 0 or frames < 2:
            raise UserError(f"expected 0 or more steps and 2 or more frames, got steps={steps}, frames={frames}")
        count = min(frames, steps + 1)
        self.wanted = {round(k * steps / max(1, count - 1)) for k in range(count)}
        self._kept: dict[int, np.ndarray] = {}
        self._latest: tuple[int, Tensor] | None = None

    def add(self, index: int, image: Tensor) -> None:
        """Add the image (C, H, W) in [0, 1] as it is after step `index`; what was added for that step is replaced.

        Between the steps that are wanted it is kept only while it is the latest.
        """
        if index in self.wanted:
            self._kept[index] = to_uint8(image[None])[0]
            self._latest = None
        else:
            self._latest = (index, image)

    def frames(self) -> list[np.ndarray]:
        """uint8 (H, W, C) of each frame; none if nothing was added."""
        kept = dict(self._kept)
        if self._latest is not None:
            index, image = self._latest
            kept[index] = to_uint8(image[None])[0]
        return [frame for _, frame in sorted(kept.items())]


def check_animation(path: Path | str) -> None:
    """Raise a `UserError` if no animation can be written to `path`: asked before a run, it spares one for nothing.

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
    """Write frames as an animation that takes `seconds`, its last frame held for `HOLD` more.

    An MP4 (H.264, 4:2:0) is far smaller and has all colours, but plays once; a GIF plays anywhere, for ever. The frames
    of an MP4 are taken one at a time, those of a GIF are held at a byte a pixel.

    Args:
        path: ends in ``.gif`` or ``.mp4``; the latter needs the package ``av``.
        frames: uint8 (H, W, C) of one size, C of 1 or 3. Video has even sides: an odd one repeats its last pixels.
        seconds: for all frames together.

    Raises:
        UserError: another ending, no ``av``, no frames, or frames that are not images of one size.

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
    first, *others = [_with_palette(frame) for frame in frames]
    count = 1 + len(others)
    # The format counts in hundredths of a second; ends are rounded, so that the errors do not add up.
    ends = [round(100 * seconds * i / count) for i in range(count)]
    durations = [10 * max(2, end - before) for before, end in pairwise(ends)]
    durations.append(round(1000 * HOLD))
    first.save(path, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)


def _with_palette(frame: np.ndarray) -> Image.Image:
    """At most 256 colours, a byte a pixel. An octree's palette, dithered, is as near to photographs as slower ones."""
    image = to_pil(frame)
    if image.mode == "L":
        return image
    palette = image.quantize(255, method=Image.Quantize.FASTOCTREE)
    colours = (palette.getpalette() or [])[: 3 * 255]
    palette.putpalette([*colours, *[255] * (3 * 256 - len(colours))])
    indices = np.array(image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))
    # The nearest colour is looked up roughly: the white around images would turn grey.
    indices[(frame == 255).all(axis=2)] = 255
    dithered = Image.fromarray(indices)
    dithered.putpalette(palette.getpalette() or [])
    return dithered


def _save_mp4(path: Path, frames: Iterator[np.ndarray], seconds: float) -> None:
    av = _video_library(path)
    first = next(frames)
    # "faststart": browsers begin to play before all of it has arrived.
    with av.open(str(path), mode="w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = _video_stream(av, container, first)
        packets: list[Any] = []
        count = 0
        for frame in chain([first], frames):
            image = av.VideoFrame.from_ndarray(_even_rgb(frame), format="rgb24")
            image.pts = count
            packets += stream.encode(image)
            count += 1
        packets += stream.encode()
        # Encoded frames are small; they wait for their number to be known, and with it the time each takes.
        share = _share(seconds, count)
        for packet in packets:
            packet.time_base = share
            packet.duration = 1 if packet.pts < count - 1 else 1 + round(HOLD / share)
            container.mux(packet)


def _share(seconds: float, count: int) -> Fraction:
    """The time of one frame, as a fraction whose parts a video file has room for."""
    return Fraction(round(1000 * seconds) or 1, 1000 * count)


def _video_stream(av: Any, container: Any, frame: np.ndarray) -> Any:
    codec = "libx264" if "libx264" in av.codecs_available else "h264"
    # No loss that one sees; no frames that refer to later ones, so that times are in order.
    options = {"crf": "18", "bf": "0"}
    # Colours as they are converted; unnamed, players take others for large images.
    options |= dict.fromkeys(("colorspace", "color_primaries", "color_trc"), "smpte170m")
    stream = container.add_stream(codec, rate=30, options=options)
    stream.height, stream.width = (side + side % 2 for side in frame.shape[:2])
    stream.pix_fmt = "yuv420p"
    return stream


def _even_rgb(frame: np.ndarray) -> np.ndarray:
    rgb = frame.repeat(3, 2) if frame.shape[2] == 1 else frame
    return np.ascontiguousarray(np.pad(rgb, [(0, rgb.shape[0] % 2), (0, rgb.shape[1] % 2), (0, 0)], mode="edge"))


def _video_library(path: Path | str) -> Any:
    try:
        import av
    except ImportError:
        raise UserError(
            f"expected the package 'av' to write {path}, but it is not installed: "
            "pip install 'robustsynth[video]', or choose a name that ends in .gif"
        ) from None
    return av
