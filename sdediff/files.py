"""Files are written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

#: Version of the files this package writes; a reader refuses later ones.
VERSION = 1


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file so that a reader finds the old one or the new one, never a part.

    The body writes to a temporary name in the same folder (a rename is atomic only within a file system); on
    success the content is forced to disk and renamed into place, on any exception the temporary file is
    removed and whatever stood at `path` is untouched.

    Args:
        path: Where the file shall stand. A symbolic link is followed, not replaced.

    Yields:
        The temporary path to write to.

    Raises:
        FileNotFoundError: If the folder does not exist.

    Example:
        >>> import tempfile, pathlib
        >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
        >>> with whole(target) as temporary:
        ...     _ = temporary.write_text("all of it")
        >>> target.read_text()
        'all of it'
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"cannot write {os.fspath(path)}: the folder {target.parent} does not exist, create it first"
        )
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        temporary.touch()
        mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
        yield temporary
        temporary.chmod(mode)  # what a writer leaves may be for its owner alone
        _sync(temporary)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    with suppress(OSError):  # some file systems cannot sync a folder; the rename stands all the same
        _sync(target.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text to `path`, whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write bytes to `path`, whole or not at all."""
    with whole(path) as temporary:
        temporary.write_bytes(data)


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], kind: str, config: Mapping[str, Any]
) -> None:
    """Write tensors and a JSON description to one safetensors file, whole or not at all.

    Args:
        path: The file.
        tensors: By name; exact dtype, shape and memory order are kept, shared memory is written once per
            name.
        kind: What the file is ("model", "checkpoint"); a reader asks for it.
        config: Anything JSON can hold.

    Raises:
        TypeError: If the config is not JSON.
        OSError: If it cannot be written, as when the disk is full; what stood at `path` is untouched.
    """
    # Memory order is kept too: a matrix product rounds differently on a transposed matrix.
    copies = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    strides = {name: tensor.stride() for name, tensor in copies.items() if not tensor.is_contiguous()}
    content = {"config": json.dumps(config), "strides": json.dumps(strides)}
    metadata = {"format": "sdediff", "version": str(VERSION), "kind": kind} | content
    with whole(path) as temporary:
        try:
            safetensors.torch.save_file({k: v.contiguous() for k, v in copies.items()}, temporary, metadata)
        except safetensors.SafetensorError as error:  # the system's own: a full disk, say
            raise OSError(f"cannot write {os.fspath(path)}: {error}") from error


def read_tensors(
    path: str | os.PathLike[str], kind: str, only: Container[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of :func:`write_tensors`; nothing in it is run.

    Args:
        path: The file.
        kind: What it must be.
        only: Names of the tensors to read; None for all, () for the description alone.

    Returns:
        The tensors, on the CPU, and the description.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, not of this package, of a later version, or of another kind.
    """
    name = os.fspath(path)
    if not Path(name).is_file():
        raise FileNotFoundError(f"there is no file {name}")
    try:
        with safetensors.safe_open(name, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            names = [key for key in file.keys() if only is None or key in only]  # noqa: SIM118 (no mapping)
            tensors = {key: file.get_tensor(key) for key in names}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"{name} is damaged, cut short or no safetensors file ({error}): write or copy it again"
        ) from error
    if metadata.get("format") != "sdediff":
        raise ValueError(
            f"{name} is a safetensors file but not one of sdediff: give a file written by model.save or "
            "fit(out=)"
        )
    if int(metadata["version"]) > VERSION:
        raise ValueError(
            f"{name} has format version {metadata['version']} and this sdediff reads up to {VERSION}: "
            "update sdediff"
        )
    if metadata["kind"] != kind:
        raise ValueError(f"{name} holds a {metadata['kind']} where a {kind} is needed: give the other file")
    strides = json.loads(metadata["strides"])
    return {k: _fresh(v, strides.get(k)) for k, v in tensors.items()}, json.loads(metadata["config"])


def _fresh(tensor: Tensor, stride: list[int] | None) -> Tensor:
    """A copy in memory of torch's own alignment, in the given memory order."""
    return torch.empty_strided(tensor.shape, stride or tensor.stride(), dtype=tensor.dtype).copy_(tensor)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
