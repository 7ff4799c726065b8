"""What a solve returns: the state, and per-sample statistics of how it was reached."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class Status(IntEnum):
    """How a sample's solve ended."""

    OK = 0
    NON_FINITE = 1
    STEP_TOO_SMALL = 2
    MAX_NFE = 3
    FOREIGN_FAILURE = 4


class SolverError(RuntimeError):
    """A solve did not reach its end; `.solution` holds what there is."""

    def __init__(self, message: str, solution: Solution) -> None:
        super().__init__(message)
        self.solution = solution


@dataclass(frozen=True)
class Solution:
    """The outcome of a solve; every statistic is per sample.

    Attributes:
        x: Final state, (B, *E); where the status is not OK, the last state that was reached. On a fixed grid,
            whose loop looks at no value, a failed row runs on to the end as NaN or infinity.
        t: Time reached, (B,), float64.
        nfe: Evaluations of the drift (or denoiser), (B,).
        accepted: Accepted steps, (B,).
        rejected: Rejected steps, (B,).
        status: :class:`Status` values, (B,).
        path: States at the times asked for by `save_at`, (S, B, *E), or None.
        error: Estimated error of the functional whose gradient was given as `dual`, (B,), with its sign where
            the solver knows it; nan where the solver gives none.
        error_size: Sum of the absolute values that `error` is the signed sum of, (B,), one order of the step
            larger: how far `error` can be trusted. None where the solver does not know.
        global_error: Estimate of x minus the exact solution, (B, *E), by solvers that make one
            (:class:`solvers.Richardson`), else None.
    """

    x: Tensor
    t: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor
    path: Tensor | None = None
    error: Tensor | None = None
    global_error: Tensor | None = None
    error_size: Tensor | None = None

    @property
    def ok(self) -> Tensor:
        """True where a sample's solve reached its end, (B,)."""
        return self.status == Status.OK

    def describe_failure(self) -> str:
        """One sentence that names the first sample that failed, and why."""
        failed = (~self.ok).nonzero().flatten().tolist()
        row = failed[0]
        why = {
            Status.NON_FINITE: "the state or drift became NaN or infinite; check the model there",
            Status.STEP_TOO_SMALL: "the step fell below min_step; loosen the tolerances, or end earlier",
            Status.MAX_NFE: "max_nfe evaluations were spent; raise max_nfe, or loosen rtol and atol",
            Status.FOREIGN_FAILURE: "the wrapped solver gave up; loosen rtol and atol or take another solver",
        }[Status(int(self.status[row]))]
        first = f"the first at row {row}, t = {float(self.t[row]):.6g}"
        return f"{len(failed)} of {len(self.x)} samples failed, {first}: {why}"


def uniform_solution(
    x: Tensor,
    t: float,
    nfe: int,
    steps: int,
    path: Tensor | None = None,
    error: Tensor | None = None,
    rejected: int = 0,
    status: Status = Status.OK,
) -> Solution:
    """A solution in which all samples shared their steps, and `status` where their states are finite."""

    def full(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((len(x),), value, dtype=dtype, device=x.device)

    finite = torch.isfinite(x.detach().reshape(len(x), -1)).all(dim=1)
    outcome = torch.where(finite, full(status, torch.int64), int(Status.NON_FINITE))
    time = full(t, torch.float32 if x.device.type == "mps" else torch.float64)
    accepted, again = full(steps, torch.int64), full(rejected, torch.int64)
    return Solution(x, time, full(nfe, torch.int64), accepted, again, outcome, path, error)
