"""Signals wait for the end of a step, so that no half-made update is saved."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: Seconds within which the same signal comes again: a launcher passes on what its processes have had already.
_ECHO = 1.0


@contextmanager
def interruptible() -> Iterator[Callable[[], int]]:
    """Let Ctrl-C and SIGTERM wait until they are asked for; a second Ctrl-C, of later, is obeyed at once.

    Yields:
        A function that returns the number of the signal that came, 0 for none. Signals for which the caller
        has handlers of their own, and threads other than the main one, are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    untouched = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    former = {n: signal.getsignal(n) for n in untouched if signal.getsignal(n) is untouched[n]}
    came, since = 0, 0.0

    def handler(number: int, frame: Any) -> None:
        nonlocal came, since
        if not came:
            came, since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() > since + _ECHO:
            signal.default_int_handler(number, frame)

    for number in former:
        signal.signal(number, handler)
    try:
        yield lambda: came
    finally:
        for number, previous in former.items():
            signal.signal(number, previous)


def obey(number: int) -> None:
    """Do what a signal asks for by default, now that the step is over."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
