"""Runs as animations: frames collected evenly on the way, written as GIF or MP4."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from robustsynth.errors import UserError
from robustsynth.files import written_beside
from robustsynth.images import HOLD, save_gif, to_uint8
from robustsynth.loop import Step

ENDINGS = (".gif", ".mp4")


class Recorder:
    """Collects at most so many frames of a run, evenly spread over its steps, the first and the last among them.

    It is called with every step: hand it over as a task's ``on_step``. Batches may come one after another, and a run
    may stop early: the last that each image was seen as is kept.

    Args:
        steps: T of the run, whose steps are numbered 0 to T.
        frames: the most to keep, 2 or more.
        images: only so many images, by their place in the job; None for all.

    Raises:
        UserError: fewer than 2 frames, or a count below its least.

    Example:
        >>> import torch
        >>> recorder = Recorder(steps=100, frames=5)
        >>> for index in range(101):
        ...     recorder.add(index, torch.full((1, 1, 2, 2), index / 100))
        >>> [int(frame[0, 0, 0]) for frame in recorder.frames()]
        [0, 64, 128, 191, 255]
    """

    def __init__(self, steps: int, *, frames: int = 60, images: int | None = None) -> None:
        if steps < 0 or frames < 2 or (images is not None and images < 1):
            raise UserError(
                "expected 0 or more steps, 2 or more frames and 1 or more images, "
                f"got steps={steps}, frames={frames}, images={images}"
            )
        count = min(frames, steps + 1)
        self.wanted = {round(k * steps / max(1, count - 1)) for k in range(count)}
        self.images = images
        self._kept: dict[int, dict[int, np.ndarray]] = {}
        self._latest: dict[int, tuple[int, Tensor]] = {}

    def __call__(self, places: Sequence[int], step: Step) -> None:
        """Add one step of a batch, as a task's ``on_step``."""
        self.add(step.index, step.images, places)

    def add(self, index: int, images: Tensor, places: Sequence[int] | None = None) -> None:
        """Add step `index` of some images; what it was before is replaced.

        Args:
            index: of the step; those between the ones wanted are kept only while they are the latest.
            images: (n, C, H, W) in [0, 1]; what is beyond `places` pads a batch and is left out.
            places: of the images in the job; 0 to n - 1 where None.
        """
        for place, image in zip(range(len(images)) if places is None else places, images, strict=False):
            if self.images is not None and place >= self.images:
                continue
            if index in self.wanted:
                self._kept.setdefault(place, {})[index] = to_uint8(image[None])[0]
                self._latest.pop(place, None)
            else:
                self._latest[place] = (index, image)

    def frames(self, place: int = 0) -> list[np.ndarray]:
        """The frames (H, W, C) in uint8 of one image; empty if none was added at that place."""
        return [frame for _, frame in sorted(self._seen(place).items())]

    def frames_together(self) -> list[np.ndarray]:
        """The frames (N, H, W, C) of all images, which have one size; one that stopped earlier stays as it was."""
        seen = [self._seen(place) for place in sorted({*self._kept, *self._latest})]
        indices = sorted({index for kept in seen for index in kept})
        return [np.stack([_as_of(kept, index) for kept in seen]) for index in indices]

    def _seen(self, place: int) -> dict[int, np.ndarray]:
        kept = dict(self._kept.get(place, {}))
        if place in self._latest:
            index, image = self._latest[place]
            kept[index] = to_uint8(image[None])[0]
        return kept


def _as_of(kept: dict[int, np.ndarray], index: int) -> np.ndarray:
    """The last frame up to `index`; the first there is where all are later."""
    return kept[max((i for i in kept if i <= index), default=min(kept))]


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

    An MP4 (H.264, 4:2:0) is far smaller and has all colours, but is a film that ends; a GIF plays anywhere, for ever.
    The frames of an MP4 are taken one at a time, those of a GIF are held at a byte a pixel.

    Args:
        path: ends in ``.gif`` or ``.mp4``; the latter needs the package ``av``.
        frames: uint8 (H, W, C) of one size, C of 1 or 3. Video has even sides: an odd one repeats its last pixels.
        seconds: for all frames together.

    Raises:
        UserError: another ending, no ``av``, no frames, or frames that are not pictures of one size.

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
    write = save_gif if Path(path).suffix.lower() == ".gif" else _save_mp4
    write(path, _checked(frames), seconds=seconds)


def _checked(frames: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    first = None
    for frame in frames:
        first = frame if first is None else first
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] not in (1, 3) or frame.shape != first.shape:
            raise UserError(
                "expected frames as uint8 (H, W, C) of one size with 1 or 3 channels, "
                f"got {frame.dtype} {frame.shape} after {first.shape}"
            )
        yield frame


def _save_mp4(path: Path | str, frames: Iterable[np.ndarray], *, seconds: float) -> None:
    av = _video_library(path)
    with written_beside(path) as temporary, _opened(av, temporary) as container:
        stream = None
        packets: list[Any] = []
        count = 0
        for frame in frames:
            if stream is None:
                stream = _video_stream(av, container, frame)
            picture = av.VideoFrame.from_ndarray(_even_rgb(frame), format="rgb24")
            picture.pts = count
            packets += stream.encode(picture)
            count += 1
        if stream is None:
            raise UserError("expected at least one frame for an animation, got none")
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


def _opened(av: Any, path: Path) -> Any:
    # "faststart": browsers begin to play before all of it has arrived.
    return av.open(str(path), mode="w", format="mp4", options={"movflags": "faststart"})


def _video_stream(av: Any, container: Any, frame: np.ndarray) -> Any:
    codec = "libx264" if "libx264" in av.codecs_available else "h264"
    # No loss that one sees; no frames that refer to later ones, so that times are in order.
    options = {"crf": "18", "bf": "0"}
    # Colours as they are converted; unnamed, players take others for large pictures.
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
