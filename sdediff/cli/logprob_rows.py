"""How ``sdediff logprob`` evaluates rows, and evaluates some of them anew to check the first values."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sdediff.data import dequantise
from sdediff.likelihood import Divergence, Exact, LogLikelihood, Quantisation
from sdediff.likelihood.engine import EXACT_UP_TO
from sdediff.likelihood.nodes import DEFAULT_NODES
from sdediff.model import DiffusionModel

from .tables import RowFile, are_levels, floats

#: Vector-Jacobian products that the exact trace of a check may take, if the table took fewer.
CHECK_PRODUCTS = 1 << 16
#: Options that say how a value is found, not which one.
HOW = ("solver", "steps", "grid", "rtol", "atol", "nodes", "seed", "on_failure")
_SCAN_NUMBERS = 1 << 20
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Evaluation:
    """Log-likelihoods of rows by their numbers; random numbers of a row are functions of its number.

    Args:
        model: The model.
        options: Arguments of :func:`sdediff.likelihood.log_likelihood` or, with levels, of
            :func:`sdediff.likelihood.discrete_log_likelihood`.
        divergence: Likewise.
        quantisation: The levels of discrete data.
        dequantise: Whether uniform noise is added to whole numbers; it is the same in a check.
        noise_seed: Its seed; that of the options when left out.
    """

    model: DiffusionModel
    options: dict[str, Any]
    divergence: Divergence | None
    quantisation: Quantisation | None
    dequantise: bool
    noise_seed: int | None = None

    def __call__(self, x: Tensor, names: Tensor) -> LogLikelihood:
        """Evaluate rows x, (n, *data_shape), of numbers `names`, (n,)."""
        x = self._prepared(x, names).to(self.model.shift.device)
        given = {"divergence": self.divergence, "indices": names, **self.options}
        if self.quantisation is None:
            return self.model.log_likelihood(x, **given)
        return self.model.discrete_log_likelihood(x, self.quantisation, **given)

    def _prepared(self, x: Tensor, names: Tensor) -> Tensor:
        if not self.dequantise:
            return floats(x)
        return dequantise(x, self.seed if self.noise_seed is None else self.noise_seed, indices=names)

    @property
    def seed(self) -> int:
        """Seed of what is random."""
        return int(self.options["seed"])

    def scan(self, rows: RowFile) -> tuple[int, bool]:
        """Number of rows, and whether all are whole numbers.

        What is wrong with a row is said here, before hours of work and not after them.
        """
        count, whole = 0, True
        for x in rows.batches(max(1, _SCAN_NUMBERS // self.model.dim)):
            if self.quantisation is not None:
                self.quantisation.index(floats(x))
            self._prepared(x, torch.arange(count, count + len(x)))
            count, whole = count + len(x), whole and are_levels(x)
        return count, whole

    def anew(self, rows: int, spent: float) -> tuple[Evaluation, str]:
        """The same values found otherwise, and how.

        In float64, by dopri5 at a tenth of the tolerance, with twice the nodes and another seed; with the
        exact trace where that takes no more vector-Jacobian products than were spent on the table.

        Args:
            rows: Rows to be evaluated.
            spent: Vector-Jacobian products that the table took.
        """
        options = {n: v for n, v in self.options.items() if n not in HOW}
        model = copy.deepcopy(self.model)
        if any(p.device.type == "mps" for p in model.parameters()):  # which has no float64
            model.cpu()
        model.double()
        tolerance = min(_TOLERANCE, *(self.options[n] or _TOLERANCE for n in ("rtol", "atol"))) / 10
        nodes = 2 * (self.options.get("nodes") or DEFAULT_NODES) - 1
        exact = self._exact() or rows * nodes * model.dim <= max(spent, CHECK_PRODUCTS)
        options |= {"solver": "dopri5", "rtol": tolerance, "atol": tolerance, "nodes": nodes}
        options |= {"seed": self.seed + 1, "on_failure": "ignore"}
        divergence = Exact() if exact else self.divergence
        trace = "the exact trace" if exact else "other probes"
        how = f"{trace}, dopri5 at {tolerance:.0e}, {nodes} nodes, float64"
        return replace(self, model=model, options=options, divergence=divergence, noise_seed=self.seed), how

    def _exact(self) -> bool:
        if self.divergence is None:
            return self.model.dim <= EXACT_UP_TO
        return self.divergence.estimator == "exact"
