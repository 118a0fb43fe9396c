"""Pictures as a model meets them, in training and in serving; and those that are made to hurt."""

import contextlib
import io
import resource
import subprocess
import sys
import zlib

import numpy as np
import pytest
import serve_tiny as tiny
from PIL import Image

from cluster.errors import InputError, TooLarge
from cluster.pictures import WEB_FORMATS, decode


def encoded(picture, form="PNG", **options) -> bytes:
    data = io.BytesIO()
    picture.save(data, form, **options)
    return data.getvalue()


def read(data: bytes, mode="RGB", max_pixels=10**6):
    return decode(data, mode, formats=WEB_FORMATS, max_pixels=max_pixels)


def pixels(picture) -> np.ndarray:
    return np.asarray(picture)


def png(width: int, height: int, *extra: tuple[bytes, bytes], rows: bytes = b"") -> bytes:
    """A PNG in grey that says it has this size, with more chunks before its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    middle = b"".join(chunk(kind, data) for kind, data in extra)
    body = chunk(b"IHDR", header) + middle + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("form", WEB_FORMATS)
def test_each_format_is_read(form):
    picture = tiny.picture(1)
    got = pixels(read(encoded(picture, form)))
    assert np.array_equal(got, pixels(Image.open(io.BytesIO(encoded(picture, form))).convert("RGB")))


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_is_upright_whichever_way_the_camera_was_held(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    flat = np.zeros((16, 24, 3), np.uint8)
    flat[:8, :8] = (250, 0, 0)  # a red corner, that the turn moves
    data = encoded(Image.fromarray(flat), "PNG", exif=exif)
    got = pixels(read(data))
    from PIL import ImageOps

    assert np.array_equal(got, pixels(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    assert (got.shape[:2] == (24, 16)) == (turn >= 5)


def test_damaged_exif_does_not_cost_the_picture():
    data = encoded(tiny.picture(1), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert read(data).size == (48, 40)


def test_what_has_other_than_eight_bit_colours_is_read_as_meant():
    ramp = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    deep = pixels(read(encoded(Image.fromarray(ramp))))
    assert np.array_equal(deep[..., 0].ravel(), np.arange(256))  # Pillow's own way gives 255 for all but the first
    printed = tiny.picture(2).convert("CMYK")
    assert np.array_equal(pixels(read(encoded(printed, "JPEG", quality=100))).shape, (40, 48, 3))
    clear = tiny.picture(2).convert("P")
    clear.info["transparency"] = bytes(range(256))
    under = pixels(read(encoded(clear, transparency=bytes(range(256)))))
    assert np.array_equal(under, pixels(clear.convert("RGB")))
    glass = tiny.picture(2).convert("RGBA")
    glass.putalpha(7)
    assert np.array_equal(pixels(read(encoded(glass))), pixels(tiny.picture(2)))
    one = pixels(read(encoded(Image.new("1", (8, 8), 1)), mode="L"))
    assert one.shape == (8, 8)
    assert one.min() == 255


def test_training_and_serving_see_the_same_pixels(tmp_path):
    """What the two handlers give a model, of pictures that Pillow's plain convert() would turn into others."""
    from serve.tasks.vision import ImageClassification as Served
    from train.tasks.vision import ImageClassification as Trained

    folder = tiny.vit(tmp_path / "vit")
    served, trained = Served(), Trained()
    served.setup(folder, "cpu")
    trained.load(folder)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32))
    for data in (
        encoded(tiny.picture(3), "JPEG", exif=exif),
        encoded(deep),
        encoded(tiny.picture(4).convert("CMYK"), "JPEG"),
    ):
        (one,), _ = served.decode_request(data, "", {})
        both = trained.collate([{"image": data, "label": 0}])["pixel_values"][0]
        assert np.array_equal(one.numpy(), both.numpy())


def test_the_first_frame_of_what_moves_is_taken():
    frames = [tiny.picture(seed).quantize() for seed in range(4)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:] * 500)
    assert np.array_equal(pixels(read(data)), pixels(frames[0].convert("RGB")))
    moving = encoded(tiny.picture(0), "WEBP", save_all=True, append_images=[tiny.picture(1)], lossless=True)
    assert np.array_equal(pixels(read(moving)), pixels(tiny.picture(0)))


def huge() -> dict[str, bytes]:
    """Headers of 50,000 x 50,000 (as much as the format can say), each within a kilobyte."""
    side = (50_000).to_bytes(4, "little")
    bmp = b"BM" + bytes(8) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little") + side + side + b"\1\0\x18\0"
    sof = b"\xff\xc0\x00\x0b\x08" + (50_000).to_bytes(2, "big") * 2 + b"\x01\x01\x11\x00"
    jpeg = b"\xff\xd8" + sof + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + b"\x00" * 64 + b"\xff\xd9"
    gif = b"GIF89a" + (50_000).to_bytes(2, "little") * 2 + b"\0\0\0," + bytes(4) + b"\x01\0\x01\0\0\x02\x02\x4c\x01\0;"
    canvas = (16_383).to_bytes(3, "little") * 2
    webp = b"RIFF" + (600).to_bytes(4, "little") + b"WEBPVP8X\x0a\0\0\0\0\0\0\0" + canvas + bytes(500)
    lossless = b"RIFF" + (40).to_bytes(4, "little") + b"WEBPVP8L\x14\0\0\0\x2f\xff\xff\xff\x0f" + bytes(20)
    lossy = b"RIFF" + (40).to_bytes(4, "little") + b"WEBPVP8 \x14\0\0\0\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(20)
    named = {"png": png(50_000, 50_000), "bmp": bmp + bytes(24), "jpeg": jpeg, "gif": gif}
    return {**named, "webp": webp, "webp lossless": lossless, "webp lossy": lossy}


@pytest.mark.parametrize("form", huge())
def test_a_bomb_is_refused_by_its_header(form):
    data = huge()[form]
    assert len(data) < 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TooLarge, match="1000000 pixels at most"):
        read(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_text_and_colour_profiles_do_not_unpack_without_end():
    bomb = zlib.compress(bytes(300_000_000), 9)
    for extra in ((b"zTXt", b"a\0\0" + bomb), (b"iTXt", b"a\0\1\0\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb)):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with contextlib.suppress(InputError):
            read(png(8, 8, extra, rows=bytes(72)))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_pixels_that_are_not_there_are_no_picture():
    whole = encoded(tiny.picture(5, (200, 200)), "PNG")
    for data in (whole[: len(whole) // 2], png(900, 900), b"", b"\x89PNG", whole[:20], b"GIF89a", b"RIFF1234WEBPVP8X"):
        with pytest.raises(InputError, match="no picture that can be read"):
            read(data)


def test_other_formats_are_not_opened():
    for form in ("TIFF", "PPM", "ICO", "PCX", "TGA"):
        with pytest.raises(InputError, match="no picture"):
            read(encoded(tiny.picture(1), form))
    with pytest.raises(InputError, match="no picture"):
        read(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")


def test_the_module_imports_no_decoder_before_one_is_needed():
    code = "import sys, cluster.pictures; sys.exit('PIL' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
