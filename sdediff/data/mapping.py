"""Arrays of files mapped into memory: only rows that are used are read."""

from __future__ import annotations

import os
import struct
import warnings
import zipfile
from typing import IO, Any

import numpy as np
import torch

from .readers import choose, plain

#: Of a zip archive: size of a local header, where in it two lengths stand, flag of an encrypted member.
_LOCAL_HEADER, _LENGTHS, _ENCRYPTED = 30, 26, 0x1
#: Bytes of a compressed array that a warning is worth.
_MUCH = 1 << 30


def open_array(file: str | os.PathLike[str], key: str | None = None) -> Any:
    """An array of an ``.npy``, ``.npz`` or ``.pt`` file, mapped into memory if it can be.

    A member of an ``.npz`` file can if it is stored as it is (``numpy.savez``); a compressed one
    (``numpy.savez_compressed``) is read as a whole, and so is a ``.pt`` file of before torch 1.6. A warning
    says so of the latter, and of a compressed array of more than 1 GiB.

    Args:
        file: The file.
        key: Which array of an ``.npz`` or ``.pt`` file.

    Returns:
        A numpy array, or a tensor of a ``.pt`` file.

    Raises:
        ValueError: If the file is damaged or holds objects, or no or several arrays and no key chooses one.
    """
    file = os.fspath(file)
    if file.lower().endswith(".npz"):
        info = member(file, key)
        return _mapped(file, info) if can_be_mapped(info) else _unpacked(file, info)
    with plain(file):
        if file.lower().endswith(".npy"):
            content = np.load(file, mmap_mode="r", allow_pickle=False)
        else:
            mapped = zipfile.is_zipfile(file)
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
            if not mapped:
                warn_whole(file, "is of the kind written before torch 1.6")
    return choose(content, file, key)


def member(file: str, key: str | None) -> zipfile.ZipInfo:
    """The member of an ``.npz`` file that holds an array."""
    with plain(file), zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    return choose(members, file, key)


def can_be_mapped(info: zipfile.ZipInfo) -> bool:
    """Whether the numbers stand in the file as they are."""
    return info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & _ENCRYPTED


def header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype of an array, whose numbers come next."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_column, dtype = read(member)
    if dtype.hasobject:
        raise ValueError("objects are not read")
    return shape, by_column, dtype


def warn_whole(file: str, why: str) -> None:
    """Say that a file is read as a whole."""
    warnings.warn(f"{file} {why} and so is read into memory as a whole", stacklevel=5)


def _unpacked(file: str, info: zipfile.ZipInfo) -> np.ndarray:
    if info.file_size > _MUCH:
        warn_whole(file, "is compressed (save it by numpy.savez instead)")
    with plain(file), np.load(file, allow_pickle=False) as arrays:
        return arrays[info.filename.removesuffix(".npy")]


def _mapped(file: str, info: zipfile.ZipInfo) -> np.ndarray:
    with plain(file), open(file, "rb") as content:
        content.seek(info.header_offset + _LENGTHS)
        lengths = struct.unpack("<HH", content.read(4))  # of the name and of what is added to it
        content.seek(info.header_offset + _LOCAL_HEADER + sum(lengths))
        shape, by_column, dtype = header(content)
        offset = content.tell()
    if 0 in shape:  # which cannot be mapped
        return np.empty(shape, dtype)
    return np.memmap(file, dtype, "r", offset, shape, "F" if by_column else "C")
