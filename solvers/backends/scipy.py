"""SciPy's ODE methods."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..problems import ODE, Problem, counted
from ..solution import Solution, Status, uniform_solution
from ..solver import Orders, Request, Solver, check_tolerances
from .rows import one_by_one

METHODS = {"RK45": 5, "RK23": 3, "DOP853": 8, "Radau": 5, "BDF": 5, "LSODA": 5}
_EXPLICIT = ("RK45", "RK23", "DOP853")
_DENSE_LIMIT = 20_000  # numbers in a batch: a matrix of 3.2 GB


class _NonFiniteDriftError(ArithmeticError):
    """The drift is NaN or infinite where the method cannot bear it."""


class SciPy(Solver):
    """A method of `scipy.integrate`, on the whole batch as one system in float64 on the host.

    All samples share their steps (`batch_coupled`), and no gradient passes. LSODA, Radau and BDF keep a dense
    matrix of the whole batch: for batches of up to 20,000 numbers.

    Args:
        method: One of `METHODS`.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        per_sample: Solve the batch one sample at a time, so that none depends on its batch-mates.

    Raises:
        ValueError: For an unknown method, a tolerance that is not positive, or a batch too large for a dense
            matrix.
    """

    adaptive = True

    def __init__(
        self, method: str = "RK45", rtol: float = 1e-5, atol: float = 1e-5, per_sample: bool = False
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"SciPy has no method {method!r}: take one of {', '.join(METHODS)}")
        self.method, self.per_sample, self.batch_coupled = method, per_sample, not per_sample
        self.rtol, self.atol = check_tolerances(rtol, atol)
        self.orders = Orders(ode=METHODS[method])

    @property
    def name(self) -> str:
        return f"scipy/{self.method}"

    def integrate(self, problem: Problem, x: Tensor, request: Request) -> Solution:
        from scipy import integrate

        if self.per_sample and len(x) > 1:
            return one_by_one(self, problem, x, request)
        if self.method not in _EXPLICIT and x.numel() > _DENSE_LIMIT:
            raise ValueError(
                f"{self.name} keeps a dense matrix of the whole batch and was given {x.numel()} numbers: "
                f"give batch_size={max(1, _DENSE_LIMIT // x[0].numel())} or less, or take scipy/RK45"
            )
        problem, calls = counted(problem)
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        (start, end), (low, high) = request.times, sorted(request.times)

        def to_tensor(y: np.ndarray) -> Tensor:
            return torch.tensor(y, dtype=torch.float64).to(x.dtype).to(x.device).reshape(x.shape)

        def field(t: float, y: np.ndarray) -> np.ndarray:
            t = min(max(float(t), low), high)  # implicit methods probe an ulp beyond the end
            time = t if isinstance(problem, ODE) else torch.full((len(x),), t, dtype=wide, device=x.device)
            slope = problem.velocity(time, to_tensor(y)).detach().double().cpu().numpy().ravel()
            finite = np.isfinite(slope)
            # An explicit method rejects a step into NaN, but never ends where its very first slope is one;
            # LSODA takes NaN for a solution.
            if not (finite.all() or (self.method in _EXPLICIT and calls.calls > 1)):
                raise _NonFiniteDriftError
            return np.where(finite, slope, np.nan)  # infinities would make it warn

        wanted = [t for t in request.save_at or () if t != start]
        path = [x] * (len(request.save_at or ()) - len(wanted))
        t, state, steps, status = start, x.detach().double().cpu().numpy().ravel().copy(), 0, Status.OK
        try:
            with np.errstate(all="ignore"):  # what overflows is told by the status
                run = getattr(integrate, self.method)(
                    field, start, state, end, rtol=self.rtol, atol=self.atol
                )
            while run.status == "running":
                with np.errstate(all="ignore"):
                    run.step()
                if run.status == "failed" or run.t == t:  # LSODA stands still without a word
                    status = Status.FOREIGN_FAILURE
                    break
                t, state, steps = float(run.t), run.y, steps + 1
                while wanted and (wanted[0] - t) * (end - start) <= 0:
                    path.append(to_tensor(run.dense_output()(wanted.pop(0))))
        except _NonFiniteDriftError:
            status = Status.NON_FINITE
        path += [torch.full_like(x, float("nan"))] * len(wanted)  # never reached
        saved = torch.stack(path) if request.save_at else None
        return uniform_solution(to_tensor(state), t, calls.calls, steps, saved, status=status)

    def __repr__(self) -> str:
        return f"SciPy({self.method!r}, rtol={self.rtol:g}, atol={self.atol:g})"
