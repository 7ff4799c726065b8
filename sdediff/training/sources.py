"""Training data behind one face: the batch of a step, as a function of (seed, step)."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from solvers import noise

#: Streams of solvers.noise used by training (beyond those of solving).
ORDER, TIMES, NOISE, VALIDATION, VALIDATION_NOISE = 100, 101, 102, 103, 104

#: Rows of a Dataset or DataLoader that are kept in memory to learn shift, scale and moments.
STATISTICS_ROWS = 65536

#: A DataLoader has a batch size of its own; another one given beside it is an error, this one is not.
DEFAULT_BATCH_SIZE = 256

#: The rows of a batch of a given size that a process takes.
Share = Callable[[int], slice]


class Batch(NamedTuple):
    """Rows of a step's batch, their conditions, where they stand in it, and the size of the whole."""

    x: Tensor
    cond: Tensor | None
    rows: slice
    total: int


class Source(Protocol):
    """What the training loop sees of the data."""

    #: Facts that a resumed run must share.
    config: dict[str, Any]

    def batch(self, step: int, share: Share) -> Batch:
        """This process's share of a step's batch; the whole batch is a function of (seed, step)."""

    def sample(self) -> Tensor:
        """Rows to learn statistics from: all of them, or the first STATISTICS_ROWS of a pass."""


def step_seed(seed: int, purpose: str, step: int) -> int:
    """A 63-bit seed for one purpose at one step."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def isolated_rng(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's global generators inside (dropout, a user's own draws) and restore them after."""
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


class Shuffle:
    """An endless shuffled order of n rows: one permutation an epoch, epochs end to end.

    Batches are cut from it regardless of epochs, so each has its full size, whatever n.

    Example:
        >>> rows = Shuffle(4, seed=0)
        >>> sorted(torch.cat([rows(0, 3), rows(3, 1)]).tolist())
        [0, 1, 2, 3]
    """

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed
        self._held: dict[int, Tensor] = {}

    def permutation(self, epoch: int) -> Tensor:
        """The order of the rows in an epoch."""
        if epoch not in self._held:
            keys = noise.uniform(self.seed, torch.arange(self.n), ORDER, epoch, (), torch.float64)
            self._held = {e: p for e, p in self._held.items() if e == epoch - 1} | {
                epoch: keys.argsort(stable=True)
            }
        return self._held[epoch]

    def __call__(self, start: int, count: int) -> Tensor:
        """Rows number start .. start + count - 1 of the order."""
        parts = []
        while count > 0:
            epoch, offset = divmod(start, self.n)
            part = self.permutation(epoch)[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return torch.cat(parts)


def whole(total: int) -> slice:
    """All rows: the share of the only process."""
    return slice(0, total)


class TensorSource:
    """Rows of a tensor in memory."""

    def __init__(self, x: Tensor, cond: Tensor | None, batch_size: int, seed: int) -> None:
        self.x, self.cond, self.batch_size = x, cond, batch_size
        self.shuffle = Shuffle(len(x), seed)
        self.config = {"rows": len(x), "batch_size": batch_size}

    def batch(self, step: int, share: Share = whole) -> Batch:
        """This process's rows and conditions of a step."""
        part = share(self.batch_size)
        rows = self.shuffle(step * self.batch_size, self.batch_size)[part].to(self.x.device)
        cond = None if self.cond is None else self.cond[rows.to(self.cond.device)]
        return Batch(self.x[rows], cond, part, self.batch_size)

    def sample(self) -> Tensor:
        """All rows."""
        return self.x


class DatasetSource:
    """A map-style Dataset whose items are x or (x, cond); draws of its own are seeded by step and place.

    Where it reads many at once (`__getitems__`) they are seeded by the step and the process's first place.

    Args:
        dataset: The data.
        batch_size: Rows of a step, over all processes.
        seed: Seed of the order.
        workers: Processes that read ahead; 0 to read in this one. What is read is the same.
    """

    def __init__(self, dataset: Dataset[Any], batch_size: int, seed: int, workers: int = 0) -> None:
        self.dataset, self.batch_size, self.seed, self.workers = dataset, batch_size, seed, workers
        self.shuffle = Shuffle(len(dataset), seed)  # type: ignore[arg-type]
        self.config = {"rows": self.shuffle.n, "batch_size": batch_size}
        self._next, self._ahead = -1, iter(())  # type: int, Iterator[Any]

    def batch(self, step: int, share: Share = whole) -> Batch:
        """This process's rows and conditions of a step."""
        part = share(self.batch_size)
        if self.workers == 0:
            item = self.read(step, part)
        else:
            if step != self._next:  # a beginning, or a run resumed
                with isolated_rng(step_seed(self.seed, "reader", step)):  # torch draws a seed for workers
                    self._ahead = iter(self._reader(step, part))
            item, self._next = next(self._ahead), step + 1
        return Batch(*split_item(item), part, self.batch_size)

    def read(self, step: int, part: slice) -> Any:
        """The items of a part of a step's batch, stacked."""
        rows = self.shuffle(step * self.batch_size, self.batch_size)[part].tolist()
        return torch.utils.data.default_collate(self._items(rows, "data", part.start, step))

    def _reader(self, step: int, part: slice) -> Iterable[Any]:
        """Stacked batches from `step` on, read ahead by workers in order."""
        steps = _Endless(step)
        return DataLoader(
            _Steps(self, part), batch_size=None, sampler=steps, num_workers=self.workers, prefetch_factor=4
        )

    def _items(self, rows: list[int], purpose: str, start: int = 0, step: int = 0) -> list[Any]:
        """Items whose places in the whole batch begin at `start`."""
        several = getattr(self.dataset, "__getitems__", None)  # torch's own name for reading many at once
        with isolated_rng(step_seed(self.seed, f"{purpose}/{start}", step)):
            if several is not None:
                return list(several(rows))
            items = []
            for place, row in enumerate(rows, start):
                torch.default_generator.manual_seed(step_seed(self.seed, f"{purpose}/{place}", step))
                items.append(self.dataset[row])
            return items

    def sample(self) -> Tensor:
        """Up to STATISTICS_ROWS rows, chosen at random."""
        rows = self.shuffle.permutation(0)[:STATISTICS_ROWS].tolist()
        items = self._items(rows, "statistics")
        return torch.stack(
            [torch.as_tensor(item[0] if isinstance(item, (tuple, list)) else item) for item in items]
        )


class LoaderSource:
    """A DataLoader, in its own order and batch size.

    Its shuffling is seeded by the epoch, unless it has a generator of its own.
    """

    def __init__(self, loader: DataLoader[Any], seed: int) -> None:
        self.loader, self.seed = loader, seed
        self.config = {"batch_size": loader.batch_size}
        self._epoch, self._next, self._iterator = -1, 0, iter(())

    def batch(self, step: int, share: Share = whole) -> Batch:
        """This process's rows and conditions of a step; every process reads the whole batch."""
        if step < self._next:  # a new run over the same source
            self._epoch, self._next, self._iterator = -1, 0, iter(())
        while True:
            item = self._advance()
            if self._next > step:
                x, cond = split_item(item)
                part = share(len(x))
                return Batch(x[part], None if cond is None else cond[part], part, len(x))

    def _advance(self) -> Any:
        with isolated_rng(step_seed(self.seed, "data", self._next)):
            item = next(self._iterator, None)
            if item is None:
                self._epoch += 1
                torch.default_generator.manual_seed(step_seed(self.seed, "epoch", self._epoch))
                self._iterator = iter(self.loader)
                item = next(self._iterator, None)
        if item is None:
            raise ValueError("the training data are empty: the DataLoader gave no batch")
        self._next += 1
        return item

    def sample(self) -> Tensor:
        """The first STATISTICS_ROWS rows of a pass, rounded up to batches."""
        parts, count = [], 0
        with isolated_rng(step_seed(self.seed, "statistics", 0)):
            for item in self.loader:
                parts.append(split_item(item)[0])
                count += len(parts[-1])
                if count >= STATISTICS_ROWS:
                    break
        if not parts:
            raise ValueError("the training data are empty: the DataLoader gave no batch")
        return torch.cat(parts)


class _Endless(torch.utils.data.Sampler[int]):
    """The steps from one on."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first)


class _Steps(Dataset[Any]):
    """A part of each step's batch, as items for reading ahead."""

    def __init__(self, source: DatasetSource, part: slice) -> None:
        self.source, self.part = source, part

    def __getitem__(self, step: int) -> Any:
        return self.source.read(step, self.part)


def convert(x: Any, like: Tensor) -> Tensor:
    """Data on a parameter's device, in the finer of their dtypes: shifts are subtracted before rounding."""
    x = torch.as_tensor(x)
    on_mps = like.device.type == "mps"  # no float64 there
    return x.to(like.device, like.dtype if on_mps else torch.promote_types(x.dtype, like.dtype))


def split_item(item: Any) -> tuple[Tensor, Tensor | None]:
    """An item x or (x, cond) as a pair."""
    if isinstance(item, (tuple, list)):
        if len(item) not in (1, 2):
            raise ValueError(f"an item of the training data has {len(item)} parts: give x or (x, cond)")
        return item[0], item[1] if len(item) == 2 else None
    return item, None


def as_tensor(value: Any, name: str) -> Tensor:
    """A tensor, array or nested list as a tensor."""
    try:
        return value if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
    except TypeError as error:
        raise TypeError(
            f"{name} is a {type(value).__name__}, which is no array of numbers: "
            "give a tensor, a numpy array, a Dataset or a DataLoader"
        ) from error


def check_rows(x: Tensor, shape: tuple[int, ...], name: str) -> None:
    """Raise unless x is (N, *shape) with N > 0 and finite."""
    if tuple(x.shape[1:]) != tuple(shape) or x.ndim == 0:
        needed = ", ".join(map(str, ("N", *shape)))
        raise ValueError(
            f"{name} has shape {tuple(x.shape)} and the model needs ({needed}): "
            "reshape the data or build the model with another data_shape"
        )
    if len(x) == 0:
        raise ValueError(f"{name} is empty: give at least one row")
    bad = ~torch.isfinite(x).flatten(1).all(1)
    if bool(bad.any()):
        raise ValueError(
            f"{name} has NaN or infinite values in {int(bad.sum())} of {len(x)} rows, "
            f"first in row {int(bad.nonzero()[0])}: remove or fill them"
        )


def check_cond(cond: Tensor, rows: int, name: str) -> None:
    """Raise unless cond has one finite row for every row of x."""
    if cond.ndim == 0 or len(cond) != rows:
        raise ValueError(
            f"{name} has shape {tuple(cond.shape)} for {rows} rows of data: give one condition a row"
        )
    bad = ~torch.isfinite(cond.reshape(rows, -1)).all(1)
    if bool(bad.any()):
        raise ValueError(
            f"{name} has NaN or infinite values, first in row {int(bad.nonzero()[0])}: remove or fill them"
        )


def make_source(x: Any, cond: Any, batch_size: int, seed: int, workers: int = 0) -> Source:
    """The source for what a user gave as training data."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: give at least 1")
    if not isinstance(x, (DataLoader, Dataset)):
        x = as_tensor(x, "x_train")
        if x.ndim == 0 or len(x) == 0:
            raise ValueError("x_train is empty: give at least one row")
        if cond is not None:
            cond = as_tensor(cond, "cond")
            check_cond(cond, len(x), "cond")
        return TensorSource(x, cond, batch_size, seed)
    if cond is not None:
        raise TypeError("cond= goes with a tensor: a Dataset or DataLoader gives items (x, cond)")
    if isinstance(x, DataLoader):
        if batch_size not in (DEFAULT_BATCH_SIZE, x.batch_size):
            raise TypeError(
                f"batch_size={batch_size} was given with a DataLoader of batch_size={x.batch_size}: "
                "leave it out"
            )
        return LoaderSource(x, seed)
    if isinstance(x, IterableDataset):
        raise TypeError("an IterableDataset has no rows to draw from: wrap it in a torch DataLoader")
    if len(x) == 0:  # type: ignore[arg-type]
        raise ValueError("x_train is empty: give at least one row")
    return DatasetSource(x, batch_size, seed, workers)
