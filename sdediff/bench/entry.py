"""Who takes part: a solver with its options, and the settings it is run with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import solvers
from sdediff.processes import VP
from solvers import Solver

#: Options of an entry that belong to the sampling, not to the solver's constructor.
_SAMPLING = ("eta", "grid")
_TRIAL = 8


@dataclass(frozen=True)
class Entry:
    """A solver that takes part.

    Attributes:
        label: What table and picture call it.
        solver: The solver.
        options: `eta` and `grid` of its runs; the grid may be "fitted" (:func:`sdediff.fit_grid`, for ODE
            solvers, a grid for each number of steps).
    """

    label: str
    solver: Solver
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, what: str | Solver | Entry) -> Entry:
        """An entry from a solver, or from its name with options after colons.

        Args:
            what: "heun", "ddim:eta=1", "dpm++2m:grid=rho", "unipc-3:order=2"; a solver; an entry.

        Raises:
            TypeError: For anything else, or an option that the solver does not take.
            ValueError: If the name is unknown, or an option has no value.

        Example:
            >>> Entry.of("ddim:eta=0.5:grid=rho").options
            {'eta': 0.5, 'grid': 'rho'}
        """
        if isinstance(what, Entry):
            return what
        if isinstance(what, Solver):
            return cls(repr(what), what)
        if not isinstance(what, str):
            raise TypeError(f"{what!r} is no solver: give a name, a solver or an Entry")
        name, *words = what.split(":")
        options = {}
        for word in words:
            key, sign, value = word.partition("=")
            if not sign or not value:
                raise ValueError(f"{what!r} has an option without a value: write it as ddim:eta=1:grid=rho")
            options[key] = _value(value)
        own = {key: value for key, value in options.items() if key not in _SAMPLING}
        return cls(what, solvers.get(name, **own), {k: options[k] for k in _SAMPLING if k in options})

    @property
    def eta(self) -> Any:
        """Noise level of its runs."""
        return self.options.get("eta", self.solver.default_eta)

    @property
    def follows_the_flow(self) -> bool:
        """Whether it solves the probability-flow ODE, so that its error can be told sample by sample."""
        return not self.solver.noisy and not callable(self.eta) and self.eta == 0

    def settings(
        self, nfe: Sequence[int], tolerances: Sequence[float]
    ) -> Iterator[tuple[str, dict[str, Any], str]]:
        """Its runs: the setting in words, the options of `sample`, and why there is no such run, if so."""
        if self.solver.adaptive:
            for tolerance in tolerances:
                yield f"tol {tolerance:g}", self.options | {"rtol": tolerance, "atol": tolerance}, ""
            return
        seen = {0}  # each number of steps once
        for n in nfe:
            try:
                steps = self.steps_within(n)
                needs = 0 if steps else self._evaluations(1)
            except Exception as error:  # whatever a solver or an option of it raises
                yield f"NFE {n}", self.options, told(error)
                continue
            if not steps:
                yield f"NFE {n}", self.options, f"a budget below one step, which takes {needs}"
            elif steps not in seen:
                seen.add(steps)
                yield f"{steps} steps", self.options | {"steps": steps}, ""

    def steps_within(self, nfe: int) -> int:
        """The most steps that take no more evaluations than that; 0 where even one does.

        They are counted on a network that returns zero. An implicit solver iterates until its equation is
        solved, and may take more on another.
        """
        steps = max(1, nfe * _TRIAL // max(1, self._evaluations(_TRIAL)))
        while steps and self._evaluations(steps) > nfe:
            steps -= 1
        while self._evaluations(steps + 1) <= nfe:
            steps += 1
        return steps

    def _evaluations(self, steps: int) -> int:
        problem = solvers.SemiLinear(VP(), _nothing, self.eta)
        solution = solvers.solve(
            problem, torch.zeros(1, 1, dtype=torch.float64), solver=self.solver, steps=steps
        )
        return int(solution.nfe[0])


def told(error: Exception) -> str:
    """An exception in a line."""
    words = " ".join(str(error).split())
    if words and isinstance(error, (TypeError, ValueError, RuntimeError, ImportError)):
        return words
    return f"{type(error).__name__}: {words}".removesuffix(": ")


def _nothing(t: Any, x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
