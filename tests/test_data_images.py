"""Pictures: each kind is read exactly, or refused in a sentence that says what to do."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyar.data import DataError, DataNotice, load_dataset
from pyar.data.images import ImageOptions, read_image

GREY = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
DEEP = GREY.astype(np.uint16) * 257 + 13
COLOUR = np.stack([GREY, GREY.T.reshape(4, 6), 255 - GREY], axis=-1)
TURNED: list[Callable[[np.ndarray], np.ndarray]] = [  # by EXIF's orientations 1 … 8: how the stored rows are shown
    lambda x: x,
    lambda x: x[:, ::-1],
    lambda x: x[::-1, ::-1],
    lambda x: x[::-1],
    lambda x: x.T,
    lambda x: np.rot90(x, -1),
    lambda x: x[::-1, ::-1].T,
    lambda x: np.rot90(x),
]


def save(path: Path, x: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x).save(path, **options)
    return path


def folder_of(folder: Path, count: int, x: np.ndarray = GREY) -> Path:
    for index in range(count):
        save(folder / f"{index:02}.png", x)
    return folder


def read(path: Path, **options) -> np.ndarray:
    return read_image(path, ImageOptions(**options))


def png(colour_type: int, bits: int, row: bytes, width: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of one row, for kinds that Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, 1, bits, colour_type, 0, 0, 0)
    body = [chunk(b"IHDR", header), *(chunk(*c) for c in chunks), chunk(b"IDAT", zlib.compress(b"\0" + row))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body) + chunk(b"IEND", b"")


# --- Exact ---


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".gif", ".tif", ".pgm", ".tga"])
def test_grey_values_are_exact(tmp_path, suffix):
    assert np.array_equal(read(save(tmp_path / f"x{suffix}", GREY)), GREY)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_are_exact(tmp_path, suffix):
    pixels = read(save(tmp_path / f"x{suffix}", DEEP))
    assert pixels.dtype == np.uint16
    assert np.array_equal(pixels, DEEP)


def test_sixteen_bits_big_endian(tmp_path):
    image = Image.frombytes("I;16B", (6, 4), DEEP.astype(">u2").tobytes())
    image.save(tmp_path / "x.tif")
    assert np.array_equal(read(tmp_path / "x.tif"), DEEP)


def tiff(x: np.ndarray, photometric: int) -> bytes:
    """An uncompressed little-endian TIFF that says what 0 means, which Pillow does not write."""
    content = x.tobytes()
    bits, height, width = 8 * x.dtype.itemsize, *x.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (278, height)]
    directory = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in [*tags, (279, len(content))])
    offset = struct.pack("<I", 8 + len(content))
    return b"II*\0" + offset + content + struct.pack("<H", len(tags) + 1) + directory + b"\0" * 4


@pytest.mark.parametrize("x", [GREY, DEEP], ids=["8 bits", "16 bits"])
def test_tiff_where_zero_is_white(tmp_path, x):
    for photometric, shown in ((1, x), (0, np.iinfo(x.dtype).max - x)):
        (tmp_path / "x.tif").write_bytes(tiff(x, photometric))
        assert np.array_equal(read(tmp_path / "x.tif"), shown)


@pytest.mark.parametrize("suffix", [".png", ".pbm", ".tif", ".bmp"])
def test_one_bit(tmp_path, suffix):
    x = GREY > 100
    assert np.array_equal(read(save(tmp_path / f"x{suffix}", x)), x * np.uint8(255))


def test_two_bits(tmp_path):
    (tmp_path / "x.png").write_bytes(png(0, 2, bytes([0b00011011]), 4))
    assert read(tmp_path / "x.png").tolist() == [[0, 85, 170, 255]]


def test_grey_images_stored_in_colour_modes_are_grey(tmp_path):
    rgb = np.repeat(GREY[..., None], 3, axis=-1)
    opaque = np.full((4, 6, 1), 255, np.uint8)
    for x in (rgb, np.concatenate([rgb, opaque], -1), np.concatenate([GREY[..., None], opaque], -1)):
        assert np.array_equal(read(save(tmp_path / "x.png", x)), GREY)
    Image.fromarray(rgb).quantize(256).save(tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        assert image.mode == "P"
    assert np.array_equal(read(tmp_path / "p.png"), GREY)
    # A palette's numbers are not its grey values.
    palette = Image.fromarray((GREY > 100).astype(np.uint8), "L").convert("P")
    palette.putpalette([200, 200, 200, 50, 50, 50])
    palette.save(tmp_path / "q.png")
    assert np.array_equal(read(tmp_path / "q.png"), np.where(GREY > 100, 50, 200))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("x", [GREY, DEEP], ids=["8 bits", "16 bits"])
def test_orientation_is_applied(tmp_path, orientation, x):
    shown = TURNED[orientation - 1](x)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(read(save(tmp_path / "x.png", x, exif=exif)), shown)
    for compression in (None, "tiff_lzw"):
        path = save(tmp_path / "x.tif", x, tiffinfo={0x0112: orientation}, compression=compression)
        assert np.array_equal(read(path), shown)


def test_orientation_of_a_photograph(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = np.zeros((16, 32), np.uint8)
    wide[:, 16:] = 255  # white on the right, shown below
    shown = read(save(tmp_path / "x.jpg", wide, exif=exif, quality=95))
    assert shown.shape == (32, 16)
    assert shown[:8].max() < 50
    assert shown[24:].min() > 200


# --- By the user's choice ---


def test_colour_is_converted_only_when_asked(tmp_path):
    path = save(tmp_path / "x.png", COLOUR)
    with pytest.raises(DataError, match=r"x\.png is in colour.*--grey"):
        read(path)
    luma = COLOUR.astype(float) @ [0.299, 0.587, 0.114]  # ITU-R 601
    assert np.abs(read(path, grey=True) - luma).max() <= 1
    folder_of(tmp_path / "many", 10, COLOUR)
    with pytest.raises(DataError, match="--grey"):
        load_dataset(tmp_path / "many")
    assert "grey by ITU-R 601" in load_dataset(tmp_path / "many", grey=True).preparation


def glyph() -> np.ndarray:
    """A black glyph on a transparent ground: every pixel is black."""
    x = np.zeros((4, 6, 4), np.uint8)
    x[..., 3] = np.where(GREY > 100, 255, 0)
    return x


def test_transparency_needs_a_background(tmp_path):
    path = save(tmp_path / "x.png", glyph())
    with pytest.raises(DataError, match=r"transparent pixels.*--background white"):
        read(path)
    assert np.array_equal(read(path, background="white"), np.where(GREY > 100, 0, 255))
    assert not read(path, background="black").any()
    half = np.stack([np.full((2, 2), 100, np.uint8), np.full((2, 2), 51, np.uint8)], -1)  # a fifth of 100
    save(tmp_path / "la.png", half)
    assert read(tmp_path / "la.png", background="black").tolist() == [[20, 20], [20, 20]]
    assert read(tmp_path / "la.png", background="white").tolist() == [[224, 224], [224, 224]]
    with pytest.raises(DataError, match="--background should be white or black"):
        ImageOptions(background="red")
    folder_of(tmp_path / "many", 10, glyph())
    data = load_dataset(tmp_path / "many", background="white")
    assert data.num_states == 2
    assert "transparency on white" in data.preparation


@pytest.mark.parametrize(("mode", "clear"), [("L", 0), ("1", 0), ("RGB", (0, 0, 0)), ("P", 0)])
def test_a_transparent_colour_is_transparency(tmp_path, mode, clear):
    image = Image.fromarray(np.where(GREY > 100, 255, 0).astype(np.uint8)).convert(mode)
    image.save(tmp_path / "x.png", transparency=clear)
    with pytest.raises(DataError, match="transparent pixels"):
        read(tmp_path / "x.png")


# --- Refused ---


@pytest.mark.parametrize(
    ("name", "image", "message"),
    [
        ("x.tif", Image.fromarray(GREY.astype(np.float32)), r"real numbers.*\.npy"),
        ("x.tif", Image.fromarray(GREY.astype(np.int32)), "32-bit numbers"),
        ("x.tif", Image.fromarray(COLOUR).convert("CMYK"), "CMYK"),
        ("x.jpg", Image.fromarray(COLOUR).convert("CMYK"), "CMYK"),
        ("x.tif", Image.fromarray(COLOUR).convert("LAB"), "save it as grey"),
        ("x.png", Image.fromarray(COLOUR).quantize(8), "in colour"),
    ],
)
def test_kinds_that_are_refused(tmp_path, name, image, message):
    image.save(tmp_path / name)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(2, 16, bytes(range(12)), 2), "16 bits a channel"),
        (png(4, 16, b"\x12\x34\xff\xff" * 2, 2), "16 bits a channel"),
        (png(6, 16, b"\x12\x34\x12\x34\x12\x34\xff\xff", 1), "16 bits a channel"),
        (png(0, 16, b"\x12\x34\0\0", 2, (b"tRNS", b"\0\0")), "16 bits and transparent"),
        (b"resource fork", "damaged, or is something else"),
        (b"", "damaged, or is something else"),
    ],
)
def test_files_that_are_refused(tmp_path, content, message):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.png .*{message}"):
        read(tmp_path / "x.png")


def test_a_cut_off_image_is_named(tmp_path):
    path = save(tmp_path / "x.png", np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:800])
    with pytest.raises(DataError, match=r"x\.png cannot be read as an image: .*truncated"):
        read(path)


@pytest.mark.parametrize(
    ("suffix", "options"), [(".tif", {}), (".gif", {}), (".png", {}), (".webp", {"lossless": True})]
)
def test_pages_and_frames_are_refused(tmp_path, suffix, options):
    others = [Image.fromarray(255 - GREY), Image.fromarray(GREY // 2)]
    path = save(tmp_path / f"x{suffix}", GREY, save_all=True, append_images=others, **options)
    with pytest.raises(DataError, match="holds 3 pages or frames; save each"):
        read(path)


# --- Folders ---


def test_sixteen_bit_folders(tmp_path):
    white = np.full((4, 6), 65535, np.uint16)
    save(folder_of(tmp_path / "deep", 9, DEEP) / "white.png", white)
    data = load_dataset(tmp_path / "deep")
    rows = {tuple(row) for split in (data.train, data.valid, data.test) for row in split.tolist()}
    assert rows == {tuple((DEEP.astype(int) * 10 // 65536).ravel()), (9,) * 24}
    assert "10 grey levels of 16-bit" in data.preparation
    folder_of(tmp_path / "twelve", 10, DEEP // 16)
    with pytest.raises(DataError, match=r"reach only \d+.*--white"):
        load_dataset(tmp_path / "twelve")
    folder_of(tmp_path / "binary", 10, np.where(DEEP > 20000, 65535, 0).astype(np.uint16))
    assert load_dataset(tmp_path / "binary").num_states == 2
    save(tmp_path / "deep" / "z.png", GREY)
    with pytest.raises(DataError, match=r"has 16 bits, .* has 8"):
        load_dataset(tmp_path / "deep")


def test_hidden_and_system_files_are_skipped_and_told(tmp_path):
    folder_of(tmp_path, 10)
    for name in ("._00.png", ".DS_Store", "Thumbs.db", "labels.csv"):
        (tmp_path / name).write_bytes(b"nothing")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "._00.png").write_bytes(b"nothing")
    with pytest.warns(DataNotice) as told:
        data = load_dataset(tmp_path)
    assert len(data.train) + len(data.valid) + len(data.test) == 10
    text = " ".join(str(one.message) for one in told)
    for name in ("._00.png", ".DS_Store", "Thumbs.db", "__MACOSX", "labels.csv"):
        assert name in text


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "validation", "Testing"), ("TRAIN", "dev", "test_images")]
)
def test_split_folders_by_their_usual_names(tmp_path, names):
    for name, count in zip(names, (4, 3, 2), strict=True):
        folder_of(tmp_path / name, count)
    data = load_dataset(tmp_path)
    assert [len(data.train), len(data.valid), len(data.test)] == [4, 3, 2]


def test_train_and_test_folders_make_valid_of_train(tmp_path):
    folder_of(tmp_path / "train", 20)
    folder_of(tmp_path / "test", 3)
    data = load_dataset(tmp_path)
    assert [len(data.train), len(data.valid), len(data.test)] == [18, 2, 3]


def test_class_folders_are_one_set_with_labels(tmp_path):
    for number, name in enumerate(("emu", "cat", "dog")):
        folder_of(tmp_path / "mine" / name, 10, GREY // 10 + 100 * number)
    data = load_dataset(tmp_path / "mine", levels=256)
    assert "3 classes (cat, dog, emu) read as one set" in data.preparation
    assert data.class_names == ("cat", "dog", "emu")
    for split in ("train", "valid", "test"):
        first = data.split(split)[:, 0].tolist()
        assert data.labels[split].tolist() == [{0: 2, 100: 0, 200: 1}[value] for value in first]
    # An archive often unpacks to a folder in a folder.
    assert load_dataset(tmp_path).class_names == data.class_names


def test_class_folders_within_splits(tmp_path):
    for split, classes in (("train", ("a", "b")), ("val", ("b",)), ("test", ("a", "b"))):
        for name in classes:
            folder_of(tmp_path / split / name, 2)
    data = load_dataset(tmp_path)
    assert {split: labels.tolist() for split, labels in data.labels.items()} == {
        "train": [0, 0, 1, 1],
        "valid": [1, 1],
        "test": [0, 0, 1, 1],
    }


def _sizes(folder: Path) -> None:
    save(folder_of(folder, 10) / "z.png", GREY.T.copy())


def _sizes_of_splits(folder: Path) -> None:
    for split in ("train", "valid"):
        folder_of(folder / split, 2)
    folder_of(folder / "test", 2, GREY.T.copy())


def _images_beside_classes(folder: Path) -> None:
    folder_of(folder_of(folder, 10) / "more", 2)


def _images_beside_splits(folder: Path) -> None:
    folder_of(folder_of(folder, 10) / "train", 2)


def _deep(folder: Path) -> None:
    folder_of(folder / "a", 2)
    folder_of(folder / "b" / "c", 2)


def _one_split_twice(folder: Path) -> None:
    for split in ("train", "val", "valid", "test"):
        folder_of(folder / split, 2)


def _unclear_split(folder: Path) -> None:
    for split in ("train", "valid", "test", "test_masks"):
        folder_of(folder / split, 2)


def _no_test(folder: Path) -> None:
    folder_of(folder / "train", 2)
    folder_of(folder / "val", 2)


def _dead_link(folder: Path) -> None:
    (folder_of(folder, 10) / "zz.png").symlink_to(folder / "gone.png")


def _corrupted(folder: Path) -> None:
    (folder_of(folder, 10) / "zz.png").write_bytes(b"nothing")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_sizes, r"z\.png is 6×4 \(height × width\), .*00\.png is 4×6"),
        (_sizes_of_splits, "test 6×4"),
        (_images_beside_classes, "both images and subfolders with images"),
        (_images_beside_splits, "both images and the subfolders"),
        (_deep, "one level deep"),
        (_one_split_twice, "twice: val, valid"),
        (_unclear_split, "test_masks look like splits"),
        (_no_test, "holds only train and valid"),
        (_dead_link, r"zz\.png is a link to nothing"),
        (_corrupted, r"zz\.png cannot be read as an image"),
        (lambda folder: folder.mkdir(), "no images"),
    ],
)
def test_folders_that_are_refused(tmp_path, make, message):
    make(tmp_path / "mine")
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "mine")


def test_folders_that_are_no_splits_are_told(tmp_path):
    for name in ("train", "valid", "test", "sketches"):
        folder_of(tmp_path / name, 2)
    with pytest.warns(DataNotice, match="no splits: sketches"):
        assert len(load_dataset(tmp_path).train) == 2


def test_classes_that_sound_like_splits_are_classes(tmp_path):
    for name in ("dev_board", "phone"):
        folder_of(tmp_path / name, 5)
    assert load_dataset(tmp_path).class_names == ("dev_board", "phone")


def test_names_with_blanks_links_and_bytes(tmp_path):
    real = folder_of(tmp_path / "my faces", 9)
    odd = os.fsdecode(os.fsencode(real) + b"/\xff\xfe.png")
    with open(odd, "wb") as file:
        Image.fromarray(GREY).save(file, format="PNG")
    (tmp_path / "link").symlink_to(real)
    data = load_dataset(tmp_path / "link")
    assert (data.name, len(data.train)) == ("link", 8)
    with open(odd, "wb") as file:
        file.write(b"nothing")
    with pytest.raises(DataError, match="cannot be read as an image"):
        load_dataset(real)


def test_one_image_is_too_few(tmp_path):
    with pytest.raises(DataError, match="too few"):
        load_dataset(save(tmp_path / "x.png", GREY))
