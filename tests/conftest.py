"""Tests run in several processes, one a core: more threads within each would only wait for one another."""

import torch

torch.set_num_threads(1)

# Scripts, not tests: they import each other by name.
collect_ignore = ["benchmarks"]
