"""Raster images: depth, colour, orientation, and files that are broken or bombs."""

from __future__ import annotations

import os
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tmca_core.cases.images import in_channels, read_image
from tmca_core.errors import ImageError

RAMP = np.arange(256, dtype=np.uint8).reshape(8, 32)


def saved(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def png_header(width: int, height: int, body: bytes = b"\x00" * 64) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def test_eight_bits_are_kept(tmp_path: Path) -> None:
    for name in ("a.png", "a.bmp", "a.tif", "named_wrongly.dcm.jpg"):
        path = tmp_path / name
        Image.fromarray(RAMP).save(path, format="PNG" if name.startswith("named") else None)
        np.testing.assert_array_equal(read_image(path, 1), RAMP)
    assert read_image(tmp_path / "a.png", 3).shape == (8, 32, 3)


def test_jpeg(tmp_path: Path) -> None:
    assert np.abs(read_image(saved(tmp_path / "a.jpg", RAMP, quality=95), 1).astype(int) - RAMP).max() <= 4


def test_sixteen_bits_are_windowed_robustly(tmp_path: Path) -> None:
    values = np.linspace(1000, 3000, 10_000).astype(np.uint16).reshape(100, 100)
    values[0, 0], values[0, 1] = 0, 65535  # a dead and a hot pixel
    pixels = read_image(saved(tmp_path / "a.png", values), 1)
    # percentiles 0.5 and 99.5 of the ramp are 1010 and 2990: 2000 lands in the middle
    assert abs(int(pixels[50, 0]) - 127) <= 1 and pixels[0, 0] == 0 and pixels[0, 1] == 255
    assert pixels[1:].min() <= 1 and pixels[1:].max() == 255 and np.all(np.diff(pixels[1:].ravel().astype(int)) >= 0)
    assert not read_image(saved(tmp_path / "flat.png", np.full((4, 4), 700, np.uint16)), 1).any()
    rare = np.zeros((100, 100), np.uint16)
    rare[3, 4] = 500  # the percentiles meet: the full range counts
    assert read_image(saved(tmp_path / "rare.png", rare), 1)[3, 4] == 255


def test_float_images_must_be_finite(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert read_image(saved(tmp_path / "a.tif", values), 1)[-1, -1] == 255
    values[0, 0] = np.nan
    with pytest.raises(ImageError, match="1 pixels that are not finite"):
        read_image(saved(tmp_path / "b.tif", values), 1)


def test_palette_and_bilevel(tmp_path: Path) -> None:
    colours = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), mode="P")
    colours.putpalette([10, 20, 30, 200, 100, 50])
    colours.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png", 3)[0], [[10, 20, 30], [200, 100, 50]])
    # ITU-R 601: 0.299 · 200 + 0.587 · 100 + 0.114 · 50 = 124.2
    assert read_image(tmp_path / "p.png", 1)[0, 1] == 124
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png", 1).tolist() == [[255, 0]]


def test_alpha(tmp_path: Path) -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[..., :3], rgba[..., 3] = 200, 0
    assert (read_image(saved(tmp_path / "constant.png", rgba), 1) == 200).all()  # says nothing, even where it is 0
    rgba[0, 0, 3] = 255
    assert read_image(saved(tmp_path / "varying.png", rgba), 1).tolist() == [[200, 0], [0, 0]]
    la = np.dstack([RAMP, np.full_like(RAMP, 255)])
    np.testing.assert_array_equal(read_image(saved(tmp_path / "la.png", la), 1), RAMP)


@pytest.mark.parametrize(
    ("orientation", "turn"), [(1, lambda a: a), (2, np.fliplr), (3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1))]
)
def test_exif_orientation(tmp_path: Path, orientation: int, turn: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", RAMP, exif=exif)
    np.testing.assert_array_equal(read_image(path, 1), turn(RAMP))  # type: ignore[operator]


def test_several_pages_are_refused(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(RAMP)])
    with pytest.raises(ImageError, match="has 2 pages"):
        read_image(tmp_path / "a.tif", 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.png", None, "cannot be opened"),
        ("empty.png", b"", "is an empty file"),
        ("text.png", b"this is not an image" * 20, "is no PNG, JPEG"),
        ("bomb.png", png_header(100_000, 100_000), "was not decoded"),
        ("large.png", png_header(8001, 8001), "8001 × 8001 pixels, more than the 64 million allowed; it was not decoded"),
        ("zero.png", png_header(0, 5), "truncated or damaged|0 × 5"),
        ("short.png", png_header(50, 50, b"\x00" * 10), "truncated or damaged"),
        ("head.png", b"\x89PNG\r\n\x1a\nxx", "begins as a PNG, JPEG, BMP or TIFF file, but its header cannot be read"),
        ("head.jpg", b"\xff\xd8\xff" + b"z" * 50, "begins as a PNG, JPEG, BMP or TIFF file, but its header cannot be read"),
        ("head.tif", b"II*\x00" + b"\xff" * 100, "begins as a PNG, JPEG, BMP or TIFF file, but its header cannot be read"),
        (
            "bomb.jpg",
            b"\xff\xd8\xff\xc0\x00\x0b\x08\xff\xff\xff\xff\x01\x01\x11\x00\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00",
            "65535 × 65535|not decoded",
        ),
    ],
)
def test_broken_files_and_bombs(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match=message) as caught:
        read_image(tmp_path / name, 1)
    assert name in caught.value.reason and str(tmp_path) not in caught.value.reason
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB: nothing was unpacked


def test_the_first_picture_of_a_camera_jpeg_counts(tmp_path: Path) -> None:
    """MPO: a JPEG with a second picture behind it, as cameras write it."""
    second = Image.fromarray(255 - RAMP)
    Image.fromarray(RAMP).save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second], quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg", 1).astype(int) - RAMP).max() <= 4


def test_text_chunk_bomb(tmp_path: Path) -> None:
    data = b"Comment\x00\x00" + zlib.compress(b"\x00" * 100_000_000)
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    plain = png_header(8, 8, b"\x00" * 72)
    (tmp_path / "a.png").write_bytes(plain[:33] + chunk + plain[33:])
    with pytest.raises(ImageError):
        read_image(tmp_path / "a.png", 1)


def test_unreadable_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", RAMP)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user reads every file")
    with pytest.raises(ImageError, match="Permission denied"):
        read_image(path, 1)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_truncation_anywhere_is_an_image_error_or_the_image(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    whole = saved(tmp_path / f"a.{suffix}", rng.integers(0, 256, (40, 40), dtype=np.uint8)).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    refused = 0
    for end in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:end])
        try:
            assert read_image(path, 1).shape == (40, 40)
        except ImageError:
            refused += 1
    assert refused >= 50  # decoders forgive the loss of trailers only


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 2000), bits=st.binary(min_size=1, max_size=8), head=st.sampled_from(["png", "jpg", "tif", "bmp"]))
def test_flipped_bytes_never_escape_as_another_error(tmp_path: Path, at: int, bits: bytes, head: str) -> None:
    content = bytearray(saved(tmp_path / f"a.{head}", RAMP).read_bytes())
    at %= len(content)
    content[at : at + len(bits)] = bits
    (tmp_path / f"b.{head}").write_bytes(content)
    try:
        pixels = read_image(tmp_path / f"b.{head}", 3)
    except ImageError:
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3


def test_channels() -> None:
    colour = np.zeros((2, 2, 3), np.uint8)
    colour[..., 1] = 100
    assert in_channels(colour, 1).tolist() == [[59, 59], [59, 59]]  # 0.587 · 100
    assert in_channels(RAMP, 3)[..., 2].tolist() == RAMP.tolist()
