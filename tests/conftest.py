"""Tests run in several processes, one a core: more threads within each would only wait for one another."""

import gc

import pytest
import torch

torch.set_num_threads(1)

# Scripts, not tests: they import each other by name.
collect_ignore = ["benchmarks"]


_FINISHED: set[str] = set()


def hide_objects() -> None:
    """Hides what exists already from the garbage collector, which then lists and visits what comes after."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    """Thousands of tests and the imported libraries outlive the run: a collection need not visit them."""
    hide_objects()


def pytest_runtest_logfinish(nodeid: str) -> None:
    """Libraries imported since then do as well: once a file, after its first test."""
    file = nodeid.split("::")[0]
    if file.startswith("tests") and file not in _FINISHED:
        _FINISHED.add(file)
        hide_objects()


@pytest.fixture
def new_objects() -> None:
    """Only what the test makes is known to the garbage collector."""
    hide_objects()
