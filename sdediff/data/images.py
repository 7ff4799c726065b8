"""Folders of images, decoded when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .rows import Batch, RowDataset

Mode = Literal["L", "RGB"]
Size = int | Sequence[int]

#: Endings of files that count as images.
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
#: How images of Pillow's modes are read without being told: as grey or as colours.
_OWN: dict[str, str] = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB", "I;16": "I;16"}
#: Formats of cameras, which say before the pixels how they were held, and how they say "on its side".
_PHOTOGRAPHS, _ORIENTATION, _ON_ITS_SIDE = ("JPEG", "MPO"), 0x0112, (5, 6, 7, 8)


class ImageFolder(RowDataset):
    """The images of a folder and its subfolders, in the order of their paths.

    A row is (C, H, W) with C = 1 or 3: uint8 levels 0..255, or int32 ones up to 65535 of 16-bit grey images.

    Args:
        folder: The folder; hidden files, and files that are no images, are passed over.
        size: Height and width, or both at once: each image is cut to that shape about its middle and resized.
        mode: "L" (grey) or "RGB", to convert all images to.
        cond: "folder" for items (x, label), the label being the number of the subfolder in alphabetic order.

    Raises:
        ValueError: If there are no images or one is unreadable; naming two of them, if they differ in size or
            kind and `size` or `mode` do not make them alike.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        size: Size | None = None,
        mode: Mode | None = None,
        cond: Literal["folder"] | None = None,
    ) -> None:
        self.name, root = os.fspath(folder), Path(folder)
        self.size, self.mode = check_size(size), check_mode(mode)
        self.files = sorted(_images(root))
        if not self.files:
            raise ValueError(f"{self.name} holds no images: give a folder of {', '.join(IMAGES)} files")
        first = look(self.files[0], self.size, self.mode)
        if self.size is None or self.mode is None:
            self._check_alike(first)
        (height, width), kind = first
        self.shape = (3 if kind == "RGB" else 1, height, width)
        self.levels = 65536 if kind == "I;16" else 256
        self.labels: Tensor | None = None
        if cond is not None:
            self._label(root, cond)

    def __len__(self) -> int:
        return len(self.files)

    def _check_alike(self, first: Look) -> None:
        for file in self.files[1:]:
            other = look(file, self.size, self.mode)
            if other != first:
                differ(self.name, (self.files[0].name, *first), (file.name, *other))

    def _label(self, root: Path, cond: str) -> None:
        if cond != "folder":
            raise ValueError(f'cond={cond!r}: an image has the name of its subfolder alone, cond="folder"')
        inner = [file.relative_to(root).parts for file in self.files]
        for parts in inner:
            if len(parts) < 2:
                raise ValueError(
                    f'cond="folder" needs each image of {self.name} in a subfolder, but {parts[0]} is in none'
                )
        self.classes = sorted({parts[0] for parts in inner})
        number = {name: i for i, name in enumerate(self.classes)}
        self.labels = torch.tensor([number[parts[0]] for parts in inner])

    def _read(self, rows: np.ndarray) -> Batch:
        x = torch.empty(len(rows), *self.shape, dtype=torch.uint8 if self.levels == 256 else torch.int32)
        for i, row in enumerate(rows):
            with reading(self.files[row]), Image.open(self.files[row]) as image:
                pixels = decode(image, self.size, self.mode)
            if tuple(pixels.shape) != self.shape:
                raise ValueError(f"{self.files[row]} has changed since the folder was opened: open it again")
            x[i] = pixels
        return x, None if self.labels is None else self.labels[torch.from_numpy(rows)]


#: Height and width of an image, and how it is read: "L", "RGB" or "I;16".
Look = tuple[tuple[int, int], str]


def look(file: Path, size: tuple[int, int] | None, mode: str | None) -> Look:
    """What an image file will be decoded to, from its header."""
    with reading(file), Image.open(file) as image:
        return (size or upright(image)), mode or own_mode(image, str(file))


def own_mode(image: Image.Image, name: str) -> str:
    """How an image is read that is not to be converted."""
    if image.mode not in _OWN:
        raise ValueError(
            f'{name} is an image of mode {image.mode}: say how to read such images, by mode="RGB" or "L"'
        )
    return _OWN[image.mode]


def decode(image: Image.Image, size: tuple[int, int] | None, mode: str | None) -> Tensor:
    """The pixels of an image, (C, H, W), upright, cut and resized, grey or colours."""
    if image.format in _PHOTOGRAPHS:
        image = ImageOps.exif_transpose(image)
    mode = mode or own_mode(image, "an image")
    if image.mode != mode:
        image = image.convert(mode)
    if size is not None and image.size != size[::-1]:
        image = ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image, dtype=np.int32 if mode == "I;16" else np.uint8))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def differ(name: str, first: tuple[str, Any, str], second: tuple[str, Any, str]) -> None:
    """Raise for two images that cannot stand in one batch: (file, (height, width), kind) of each."""
    sizes, kinds = first[1] != second[1], first[2] != second[2]
    shown = [f"{file} ({height} x {width}, {kind})" for file, (height, width), kind in (first, second)]
    ways = ["size=, to cut and resize all to one"] * sizes + ['mode="L" or "RGB", to convert all'] * kinds
    several = " and ".join(["sizes"] * sizes + ["kinds"] * kinds)
    raise ValueError(
        f"{name} has images of several {several}, such as {' and '.join(shown)}: give {' and '.join(ways)}"
    )


def check_size(size: Size | None) -> tuple[int, int] | None:
    """Height and width."""
    if size is None:
        return None
    both = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(both) != 2 or not all(isinstance(n, int) and n > 0 for n in both):
        raise ValueError(f"size={size!r}: give a positive height and width in pixels, or one number for both")
    return both


def check_mode(mode: str | None) -> str | None:
    """Grey or colours."""
    if mode not in (None, "L", "RGB"):
        raise ValueError(f'mode={mode!r}: give "L" for grey or "RGB" for colours')
    return mode


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Whatever goes wrong in reading an image, as one sentence."""
    try:
        yield
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} is no image that can be read ({error}): mend or remove it") from error


def _images(root: Path) -> Iterable[Path]:
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".")]
        yield from (
            Path(folder, name) for name in names if not name.startswith(".") and name.lower().endswith(IMAGES)
        )


def upright(image: Image.Image) -> tuple[int, int]:
    """Height and width of an image, upright."""
    width, height = image.size
    turned = image.format in _PHOTOGRAPHS and image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
    return (width, height) if turned else (height, width)
