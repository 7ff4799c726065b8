"""Tests run in several processes, one a core: more threads within each would only wait for one another."""

import gc
from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)

# Scripts, not tests: they import each other by name.
collect_ignore = ["benchmarks"]


@pytest.fixture
def new_objects() -> Iterator[None]:
    """Hides what exists already from the garbage collector: it lists what the test makes, and quickly."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
