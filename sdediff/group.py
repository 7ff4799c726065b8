"""The processes that a launcher started for one job, and how they stay together.

Every exchange first tells whether a process has failed, so that an error anywhere is raised everywhere, at
the next exchange, and none waits for one that has gone.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


class Gone(RuntimeError):
    """Another process of the launch has ended, so this one cannot go on."""


#: Processes wait for the slowest; one that is gone is noticed by its connection.
_PATIENCE = timedelta(days=30)


class Group:
    """This process among those of its launch; alone where there was none.

    Args:
        rank: Its number, from 0.
        size: Number of processes.
        device: Where it computes.
        channel: A process group of torch.distributed for exchanges between hosts' memories.

    Example:
        >>> group = Group()
        >>> group.main, group.share(10), group.together(lambda: "done")
        (True, slice(0, 10, None), ['done'])
    """

    def __init__(
        self, rank: int = 0, size: int = 1, device: torch.device | None = None, channel: Any = None
    ) -> None:
        self.rank, self.size, self.main, self._channel = rank, size, rank == 0, channel
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._agreed: BaseException | None = None

    @property
    def note(self) -> str:
        """How a report adds that several processes did it."""
        return "" if self.size == 1 else f", by {self.size} processes"

    def share(self, total: int) -> slice:
        """The rows, of `total`, that are this process's: consecutive, maybe none."""
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def together(self, work: Callable[[], Result], to: str = "all") -> list[Result]:
        """Every process's result, in the order of their ranks; an error in one is raised in all.

        Args:
            work: What this process does; results are pickled, their tensors should be on the CPU.
            to: "all", or "main" for an empty list on the other processes.

        Raises:
            ValueError: For another `to`.
            Exception: That of `work`, of the first process that has one.
        """
        if to not in ("all", "main"):
            raise ValueError(f'to={to!r} is not known: take "all" or "main"')
        if self.size == 1:
            return [work()]
        try:
            value = work()
        except Exception as error:
            self.agree(error)
            raise
        self.agree()
        return self._gather(value, to)

    def on_main(self, work: Callable[[], Result]) -> Result:
        """Let the first process do something, and give its result, or its error, to all."""
        if self.size == 1:
            return work()
        return self.together(lambda: work() if self.main else None)[0]  # type: ignore[return-value]

    def agree(self, error: Exception | None = None) -> None:
        """Wait for all, and raise the error of the first process that has one, if any, in all of them."""
        if error is not None and error is self._agreed:
            raise error
        outcome = None if error is None else (_kind(error), str(error) or type(error).__name__)
        for rank, failure in enumerate(self._gather(outcome)):
            if failure is not None:
                self._agreed = error if rank == self.rank and error is not None else _rebuilt(*failure)
                raise self._agreed from None

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Within this context an error is one that all processes have, here: they agree on the first's."""
        try:
            yield
        except Exception as error:
            if self.size > 1:
                self.agree(error)
            raise

    def agreed(self, error: BaseException) -> bool:
        """Whether all processes raise this error, so that the first one may tell of it for all."""
        return error is self._agreed and not isinstance(error, Gone)

    def _gather(self, value: Any, to: str = "all") -> list[Any]:
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        try:
            if to == "all":
                dist.all_gather_object(found, value, group=self._channel)
            else:
                dist.gather_object(value, found if self.main else None, dst=0, group=self._channel)
        except RuntimeError as error:
            self._agreed = _gone(error)
            raise self._agreed from error
        return found if to == "all" or self.main else []


def explained(error: BaseException) -> BaseException:
    """The error itself, or :class:`Gone` where it is of a connection to a process that has ended."""
    import torch.distributed as dist

    broken = isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or "/gloo/" in str(error)  # gloo has no class of its own
    )
    return _gone(error) if broken else error


def _gone(error: BaseException) -> Gone:
    return Gone(
        "another process of this launch has ended without a word, as when it is killed for want of "
        f"memory: look at its messages ({str(error).splitlines()[0]})"
    )


def _kind(error: Exception) -> type[Exception]:
    """Its class, where others can find it by name."""
    return RuntimeError if "<locals>" in type(error).__qualname__ else type(error)


def _rebuilt(kind: type[Exception], message: str) -> Exception:
    """Another process's error, as far as its class is made from a message alone."""
    try:
        return kind(message)
    except TypeError:
        return RuntimeError(message)


_known: Group | None = None


def current() -> Group:
    """The group of this process: that of torch.distributed where it runs, else that of the launcher.

    ``torchrun`` and ``accelerate launch`` are joined when this is first called, which all their processes
    must do.
    """
    global _known
    if _known is None:
        found = _found()
        if found.size == 1:
            return found
        _known = found
    return _known


def silent(error: BaseException | None = None) -> bool:
    """Whether another process of the launch says for this one what all have to say, such as this error.

    What all processes say is said by the first. An error that they have not agreed on is told by the process
    that has it, and those that end because it has gone are silent: the first to ask speaks.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    if error is None or (_known is not None and _known.agreed(error)):
        return int(os.environ.get("RANK", "0")) != 0
    return not _first_to_fail()


def _first_to_fail() -> bool:
    """Whether no process of this launch has asked this before."""
    import torch.distributed as dist

    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(  # type: ignore[attr-defined]
            *place, is_master=False, timeout=timedelta(seconds=5)
        )
        return store.add(f"sdediff/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except (KeyError, ValueError, RuntimeError):  # it is gone with the process that held it
        return True


def cpu_only() -> bool:
    """Whether a launch computes on CPUs.

    Accelerate has to be told: it takes torchrun's processes on machines without a GPU for single ones.
    """
    from accelerate.utils import parse_flag_from_env

    return not torch.cuda.is_available() or bool(parse_flag_from_env("ACCELERATE_USE_CPU"))


def _found() -> Group:
    import torch.distributed as dist

    device = None
    if not (dist.is_available() and dist.is_initialized()):
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Group()
        from accelerate import PartialState

        device = PartialState(cpu=cpu_only()).device
    elif torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    channel = dist.new_group(backend="gloo", timeout=_PATIENCE)
    atexit.register(_leave, channel)
    return Group(dist.get_rank(), dist.get_world_size(), device, channel)


def _leave(channel: Any) -> None:
    """End gloo's threads before the interpreter does: now and then one that is left aborts the process."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group(None if dist.get_backend() == "gloo" else channel)


@contextmanager
def launched() -> Iterator[Group]:
    """The group, for a job that ends in all its processes at once: none goes on where another failed.

    Raises:
        Exception: An error of the job, the same one in every process.

    Example:
        >>> with launched() as group:
        ...     group.on_main(lambda: 1 + 1)
        2
    """
    group = current()
    with group.alike():
        yield group
    if group.size > 1:
        group.agree()
