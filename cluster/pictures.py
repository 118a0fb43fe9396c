"""Pictures of other people's, from bytes to pixels: the same steps in training and in serving, so that a model is asked
with what it has learned from.

A picture is upright (its EXIF orientation applied), in the channels that the model takes, its first frame where it
moves. Transparency is dropped and what lies under it is taken; 16-bit grey is scaled to 8 bits, which Pillow cuts off.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError, TooLarge

if TYPE_CHECKING:
    from PIL import Image

# What is served: formats of the web, whose decoders work in plain memory. Pillow knows forty more, some of which start
# other programs. A phone's MPO is a JPEG to the decoder.
WEB_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_ORIENTATION = 0x0112
_WIDE = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def mode_of(config: Any) -> str:
    """Pillow's name for as many channels as a model takes; `config` is its Hugging Face configuration."""
    return "L" if getattr(config, "num_channels", 3) == 1 else "RGB"


def decode(data: bytes, mode: str, *, formats: tuple[str, ...], max_pixels: int) -> Image.Image:
    """A picture upright and in `mode`. Raises TooLarge by its header, before a pixel is made; InputError where it
    cannot be read, with no more words than that: what a decoder says tells of our insides and not of the picture."""
    from PIL import Image

    canvas = _webp_canvas(data)
    if canvas is not None and canvas[0] * canvas[1] > max_pixels:
        raise _too_many(*canvas, max_pixels)
    try:
        with Image.open(io.BytesIO(data), formats=formats) as picture:
            # Only the header is read yet: a bomb is small until it is unpacked.
            if picture.width * picture.height > max_pixels:
                raise _too_many(picture.width, picture.height, max_pixels)
            return _plain(_upright(picture), mode)
    except TooLarge:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, above all of ours
        raise TooLarge(f"the picture is too large; {max_pixels} pixels at most ({_REMEDY})") from None
    except Exception:  # Pillow raises what each format's reader happens to trip over
        raise InputError("no picture that can be read") from None


_REMEDY = "inputs.max_pixels in cluster.yaml"


def _too_many(width: int, height: int, most: int) -> TooLarge:
    return TooLarge(f"the picture is too large: {width} x {height} pixels; {most} pixels at most ({_REMEDY})")


def _upright(picture: Image.Image) -> Image.Image:
    """The picture as it was held, by its EXIF orientation. Pillow's exif_transpose also writes the EXIF data anew,
    and fails on a sound picture where that is damaged."""
    from PIL import Image

    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    picture.load()
    try:
        turn = turns.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF is a file format of its own, and this one is damaged: the pixels are not
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _plain(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode in _WIDE:
        import numpy as np
        from PIL import Image

        values = np.asarray(picture).astype(np.int64)
        picture = Image.fromarray((values.clip(0, 65_535) >> 8).astype(np.uint8))
    elif picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # Pillow warns of the direct way, and takes the same colours
    return picture.convert(mode)


def _webp_canvas(data: bytes) -> tuple[int, int] | None:
    """Width and height by a WebP file's header, None where it is none: its decoder takes the memory of two canvases as
    it is opened. The three forms of the header: RFC 9649, 2.5 to 2.7."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + ((bits >> 14) & 0x3FFF)
    if kind == b"VP8 ":
        return (
            int.from_bytes(data[26:28], "little") & 0x3FFF,
            int.from_bytes(data[28:30], "little") & 0x3FFF,
        )
    return None
