"""A run's folder: what it is, where it ran, its log, its checkpoints and models."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sdediff import files
from sdediff.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    from sdediff.model import DiffusionModel

_log = logging.getLogger("sdediff")


class RunFolder:
    """The files of a run; each is written whole or not at all.

    ``config.json`` (what a resumed run must share), ``environment.json`` (versions and machine of every
    start), ``log.csv``, ``checkpoints/000001000.safetensors`` (all that is needed to go on),
    ``best.safetensors`` (lowest validation loss) and ``model.safetensors`` (the end), both for
    :func:`sdediff.load`. Callers add ``ema/`` (snapshots of averages) and ``previews/``.

    Args:
        path: The folder; made by :meth:`begin`.
        keep: Number of latest checkpoints to keep.

    Raises:
        ValueError: If none is to be kept.

    Example:
        >>> import tempfile
        >>> RunFolder(tempfile.mkdtemp()).latest() is None
        True
    """

    def __init__(self, path: str | os.PathLike[str], keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep}: give at least 1")
        self.path, self.keep = Path(path), keep

    @property
    def model(self) -> Path:
        """The finished model."""
        return self.path / "model.safetensors"

    @property
    def best(self) -> Path:
        """The averaged weights of lowest validation loss."""
        return self.path / "best.safetensors"

    @property
    def log(self) -> Path:
        """The lines of the history."""
        return self.path / "log.csv"

    def _beside(self) -> list[Path]:
        """Snapshots and pictures: those of another run would pass for this one's."""
        found = (*self.path.glob("ema/*.safetensors"), *self.path.glob("previews/*.png"))
        return [p for p in found if re.match(r"\d{9}\b", p.name)]

    def checkpoints(self) -> list[Path]:
        """Checkpoints, oldest first."""
        found = (self.path / "checkpoints").glob("*.safetensors")
        return sorted(p for p in found if re.fullmatch(r"\d{9}", p.stem))

    def latest(self) -> Path | None:
        """The checkpoint to go on from, or None."""
        return (self.checkpoints() or [None])[-1]  # type: ignore[list-item]

    def load(self) -> Checkpoint | None:
        """The latest checkpoint, or None (and a warning) where there is none.

        Raises:
            ValueError: If it is damaged; the message names the one before.
        """
        path = self.latest()
        if path is None:
            _log.warning("there is no checkpoint in %s: training starts afresh", self.path)
            return None
        try:
            return Checkpoint.load(path)
        except ValueError as error:
            before = [str(p) for p in self.checkpoints()[:-1][-1:]]
            hint = f"; remove it to go on from {before[0]}" if before else ""
            raise ValueError(f"{error}{hint}") from error

    def begin(self, config: Mapping[str, Any], resumed: bool, facts: Mapping[str, Any]) -> None:
        """Make the folder, clear it of an earlier run unless this one goes on, and say what runs where."""
        (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        starts: list[Any] = []
        for stale in (*self.path.glob(".*.tmp"), *self.path.glob("*/.*.tmp")):  # of a killed process
            stale.unlink(missing_ok=True)
        if resumed:
            with_starts = self.path / "environment.json"
            starts = json.loads(with_starts.read_text()) if with_starts.exists() else []
        else:
            for old in (*self.checkpoints(), self.best, self.model, self.log, *self._beside()):
                old.unlink(missing_ok=True)
        files.write_text(self.path / "config.json", json.dumps(config, indent=1) + "\n")
        text = json.dumps([*starts, environment() | dict(facts)], indent=1)
        files.write_text(self.path / "environment.json", text + "\n")

    def write_log(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write all lines of the log; a full disk is a warning, since the next time writes them too."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        with dispensable(self.log):
            files.write_text(self.log, text.getvalue())

    def save_best(self, model: DiffusionModel) -> None:
        """Write the model of lowest validation loss; a full disk is a warning."""
        with dispensable(self.best):
            model.save(self.best)

    def save(self, checkpoint: Checkpoint, *, last: bool) -> None:
        """Write a checkpoint, then remove those beyond the number kept.

        Where the disk is full training goes on with a warning, since the weights in memory are worth more
        than the run's end; only the last checkpoint must succeed.

        Raises:
            OSError: If the last checkpoint cannot be written; the one before is intact.
        """
        path = self.path / "checkpoints" / f"{checkpoint.step:09d}.safetensors"
        try:
            checkpoint.save(path)
        except OSError as error:
            intact = self.latest()
            message = f"the checkpoint of step {checkpoint.step} could not be written to {path} ({error}); "
            message += "there is none before" if intact is None else f"{intact} is intact"
            if last:
                raise OSError(error.errno, message) from error
            _log.warning("%s; training goes on", message)
            return
        for old in self.checkpoints()[: -self.keep]:
            old.unlink(missing_ok=True)


@contextmanager
def dispensable(path: Path) -> Iterator[None]:
    """Within this context a file that cannot be written is a warning."""
    try:
        yield
    except OSError as error:
        _log.warning("%s could not be written (%s); training goes on", path, error)


def environment() -> dict[str, Any]:
    """What this process runs on: versions, machine, command, time."""
    import numpy
    import scipy

    import sdediff

    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpus": cuda,
        "sdediff": sdediff.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
    }
