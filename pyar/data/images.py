"""Pictures as grey values, exactly: what would lose something is refused, or done because the user asked for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyar.data.dataset import DataError
from pyar.data.folders import Folder, list_folder, listed, notice
from pyar.data.names import by_split, is_split, looks_like_split
from pyar.data.source import Source, in_order

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".pgm", ".pbm", ".ppm", ".pnm", ".webp", ".jp2", ".avif", ".tga", ".pcx"),
)
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_PHOTOMETRIC = 262  # TIFF's tag for what 0 means: 0 is white, 1 is black
BACKGROUNDS = {"white": 255, "black": 0}


@dataclass(frozen=True)
class ImageOptions:
    """What the user asked for. `grey`: colours become grey by ITU-R 601. `background`: "white", "black" or None, for
    what is transparent."""

    grey: bool = False
    background: str | None = None

    def __post_init__(self) -> None:
        if self.background is not None and self.background not in BACKGROUNDS:
            raise DataError(f"--background should be white or black, but is {self.background!r}")


def is_image(path: Path) -> bool:
    """Whether the name says that the file is a picture."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def read_image(path: Path, options: ImageOptions) -> NDArray:
    """The grey values of one picture, uint8 (white = 255) or uint16 (white = 65535) [height, width], as it is shown."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        # From an open file: from a name Pillow maps uncompressed TIFFs into memory, and misreads those that are turned.
        with path.open("rb") as file, Image.open(file) as image:
            pages = getattr(image, "n_frames", 1)
            if pages > 1:
                raise DataError(f"{path} holds {pages} pages or frames; save each as a file of its own")
            stored = " ".join(str(tile.args if hasattr(tile, "args") else tile[3]) for tile in image.tile)
            if ";16" in stored and not image.mode.startswith("I"):  # Pillow keeps 8 of the bits
                raise DataError(
                    f"{path} has 16 bits a channel with colour or transparency; save it as grey without transparency, "
                    "or with 8 bits"
                )
            # Pillow turns such TIFFs of 8 bits to white = 255 itself, those of 16 it does not.
            white_is_zero = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
            upright = ImageOps.exif_transpose(image)
            return _grey_values(upright, image.format, white_is_zero, path, options)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{path} cannot be read as an image: it is damaged, or is something else") from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def _grey_values(
    image: Image.Image, file_format: str | None, white_is_zero: bool, path: Path, options: ImageOptions
) -> NDArray:
    mode = image.mode
    if mode in _SIXTEEN_BITS or (mode == "I" and file_format in ("PNG", "PPM")):  # both have at most 16 bits
        pixels = np.asarray(image).astype(np.uint16)
        if (clear := image.info.get("transparency")) is not None and (pixels == clear).any():
            raise DataError(f"{path} has 16 bits and transparent pixels; lay it on a background first")
        return 65535 - pixels if white_is_zero else pixels
    if mode in ("P", "PA", "LA", "La", "RGBA", "RGBa") or (mode in ("1", "L", "RGB") and "transparency" in image.info):
        pixels = np.asarray(image.convert("RGBA"))
        alpha = pixels[..., 3:]
        if (alpha < 255).any():
            if options.background is None:
                raise DataError(
                    f"{path} has transparent pixels, and what lies behind them is not known: say --background white "
                    "(or black), or save it without transparency"
                )
            behind = BACKGROUNDS[options.background]
            mixed = pixels[..., :3] * alpha.astype(np.uint32) + behind * (255 - alpha.astype(np.uint32))
            return _without_colour(((mixed + 127) // 255).astype(np.uint8), path, options)
        return _without_colour(pixels[..., :3], path, options)
    if mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    if mode == "RGB":
        return _without_colour(np.asarray(image), path, options)
    kinds = {
        "F": "real numbers: scale them to 8 or 16 bits, or save all as one .npy array of intensities in [0, 1]",
        "I": "32-bit numbers: scale them to 8 or 16 bits, or save all as one .npy array",
        "CMYK": "printing colours (CMYK): save it as grey or as RGB",
    }
    raise DataError(f"{path} holds {kinds.get(mode, f'pixels of the kind {mode}: save it as grey')}")


def _without_colour(rgb: NDArray[np.uint8], path: Path, options: ImageOptions) -> NDArray[np.uint8]:
    from PIL import Image

    if (rgb == rgb[..., :1]).all():
        return np.ascontiguousarray(rgb[..., 0])
    if options.grey:
        return np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).convert("L"))
    raise DataError(f"{path} is in colour; the models are of grey values: say --grey to convert it, or save it as grey")


def read_images(paths: list[Path], options: ImageOptions) -> tuple[NDArray, tuple[int, int]]:
    """Pictures of one size as grey values [N, height·width] and (height, width)."""
    images: list[NDArray] = []
    for path in paths:
        pixels = read_image(path, options)
        first = images[0] if images else pixels
        if pixels.shape != first.shape:
            raise DataError(
                f"images differ in size: {path} is {pixels.shape[0]}×{pixels.shape[1]} (height × width), "
                f"{paths[0]} is {first.shape[0]}×{first.shape[1]}; crop or scale them to one size first"
            )
        if pixels.dtype != first.dtype:
            deep, flat = (path, paths[0]) if pixels.dtype == np.uint16 else (paths[0], path)
            raise DataError(f"{deep} has 16 bits, {flat} has 8; save all with the same depth")
        images.append(pixels)
    height, width = images[0].shape
    return np.stack(images).reshape(len(images), height * width), (height, width)


def read_image_folder(path: Path, options: ImageOptions, *, labels_wanted: bool = False) -> Source:
    """A folder of pictures, of class folders of pictures, or of split folders of either."""
    folder = _unpacked(list_folder(path), labels_wanted)
    by_name = {sub.name: sub for sub in folder.folders}
    examples, _ = by_split(by_name)
    twice = [names for names in examples.values() if len(names) > 1]
    if twice:
        raise DataError(f"{path} names one split twice: {', '.join(twice[0])}")
    split_folders = {split: by_name[name] for split, (name,) in examples.items()}
    if not split_folders:
        found = {"": _Pictures.find(folder)}
    else:
        if any(map(is_image, folder.files)):
            raise DataError(
                f"{path} has both images and the subfolders {', '.join(map(str, by_name))}; keep one of the two"
            )
        others = [name for name in by_name if by_name[name] not in split_folders.values()]
        unclear = [name for name in others if looks_like_split(name)]
        if unclear:
            raise DataError(f"{path}: the folders {listed(unclear)} look like splits beside {listed(list(by_name))}")
        if others:
            notice(f"{path}: not used, since they are no splits: {listed(others)}")
        folder.tell_skipped()
        found = {split: _Pictures.find(list_folder(sub)) for split, sub in split_folders.items()}
    return _source(path, folder.path, found, options, labels_wanted)


def _unpacked(folder: Folder, labels_wanted: bool) -> Folder:
    """The folder itself, or the one in it: archives often unpack to a folder in a folder.

    Where labels are wanted, a folder of images in a folder is a class, the only one.
    """
    while len(folder.folders) == 1 and not any(map(is_image, folder.files)) and not is_split(folder.folders[0].name):
        inner = list_folder(folder.folders[0])
        if labels_wanted and any(map(is_image, inner.files)):
            break
        folder.tell_skipped()
        folder = inner
    return folder


@dataclass(frozen=True)
class _Pictures:
    """The pictures of a set in order, and the class folder of each ("" for none)."""

    paths: list[Path]
    classes: list[str]

    @classmethod
    def find(cls, folder: Folder) -> _Pictures:
        folder.tell_skipped()
        images = [path for path in folder.files if is_image(path)]
        others = [path.name for path in folder.files if not is_image(path)]
        inner = [list_folder(sub) for sub in folder.folders]
        with_images = [sub for sub in inner if any(map(is_image, sub.files))]
        deeper = [sub for sub in inner if sub.folders]
        if images and with_images:
            raise DataError(
                f"{folder.path} has both images and subfolders with images "
                f"({listed([sub.path.name for sub in with_images])}); keep one of the two"
            )
        if not images and not with_images:
            raise DataError(
                f"{folder.path} holds nothing that is read: no images ({', '.join(IMAGE_SUFFIXES)}), no arrays, "
                "no tables, no IDX files"
            )
        for sub in deeper:
            if any(is_image(path) for path in sub.path.rglob("*")):
                raise DataError(f"{sub.path} has folders in it; images are read from class folders one level deep")
        unread = others + [sub.path.name for sub in inner if sub not in with_images]
        if unread:
            notice(f"{folder.path}: not read, since they are no images: {listed(unread)}")
        if images:
            return cls(images, [""] * len(images))
        for sub in with_images:
            sub.tell_skipped()
            if strangers := [path.name for path in sub.files if not is_image(path)]:
                notice(f"{sub.path}: not read, since they are no images: {listed(strangers)}")
        pairs = [(path, sub.path.name) for sub in with_images for path in sub.files if is_image(path)]
        return cls([path for path, _ in pairs], [name for _, name in pairs])


def _source(
    path: Path, folder: Path, found: dict[str, _Pictures], options: ImageOptions, labels_wanted: bool
) -> Source:
    parts, shapes = {}, {}
    for split, pictures in found.items():
        parts[split], shapes[split] = read_images(pictures.paths, options)
    if len(set(shapes.values())) > 1:
        sizes = ", ".join(f"{split} {height}×{width}" for split, (height, width) in shapes.items())
        raise DataError(f"{path}: the splits' images differ in size (height × width): {sizes}")
    names = in_order({name for pictures in found.values() for name in pictures.classes} - {""})
    labels = {}
    if len(names) > 1 or (names and labels_wanted):
        number = {name: index for index, name in enumerate(names)}
        labels = {
            split: np.array([number[name] for name in pictures.classes], dtype=np.int64)
            for split, pictures in found.items()
            if "" not in pictures.classes
        }
    remarks = [f"{len(names)} classes ({listed([*names])}) read as one set"] if labels and not labels_wanted else []
    white = white_of_images(path, list(parts.values()))
    if options.grey:
        remarks.append("colours to grey by ITU-R 601")
    if options.background is not None:
        remarks.append(f"transparency on {options.background}")
    return Source(
        path,
        parts,
        labels,
        names if labels else None,
        next(iter(shapes.values())),
        white,
        tuple(remarks),
        {split: tuple(str(p.relative_to(folder)) for p in pictures.paths) for split, pictures in found.items()},
    )


def white_of_images(path: Path, parts: list[NDArray]) -> int:
    """255 for 8 bits; 65535 for 16, if the values leave no doubt that they fill them."""
    deep = {x.dtype == np.uint16 for x in parts}
    if len(deep) > 1:
        raise DataError(f"{path}: some splits have 16 bits, others 8; save all with the same depth")
    if deep == {False}:
        return 255
    top = max(int(x.max()) for x in parts)
    if 0 < top <= 32767:
        raise DataError(
            f"{path}: the 16-bit images reach only {top}, which does not tell which value is white; scale them to "
            f"65535, or save all as one .npy array and say --white {top}"
        )
    return 65535
