"""Large sets shared out over the processes of a launcher, with the values of a single one.

Noise is a function of (seed, name of the sample), so each process takes some of the rows and what it draws
for them is what a single process would draw, bit for bit; values agree to floating point. The exceptions are
solvers that share their steps over a batch (`batch_coupled`), whose values depend on the batch anyhow.

Every process makes the same call, with the same arguments; under ``torchrun`` or ``accelerate launch`` there
are several, without them one. Results are on the CPU.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from solvers import Solution, Solver, Status

from . import likelihood, sampling, units
from .group import Group, current, launched
from .likelihood import LogLikelihood
from .model import DiffusionModel
from .run import join, rows_of, tell_failures
from .sampling import SampleResult

__all__ = ["Group", "current", "evaluate", "launched", "log_likelihood", "sample"]


def sample(
    model: DiffusionModel,
    n: int,
    solver: str | Solver = "dopri5",
    *,
    cond: Any = None,
    indices: Any = None,
    on_failure: str = "warn",
    return_log_prob: bool = False,
    return_solution: bool = False,
    to: str = "all",
    **options: Any,
) -> Any:
    """Draw samples, each process some of them; :func:`sdediff.sampling.sample` otherwise.

    Args:
        model: The model, the same on every process.
        n: Number of samples in all.
        solver: A solver or its name.
        cond: Conditions of all, (n, ...), or one for all.
        indices: Names of all samples, (n,) integers; 0 .. n-1 by default.
        on_failure: "warn", "raise" or "ignore" where a sample's solve fails.
        return_log_prob: As there.
        return_solution: As there.
        to: "all" processes get all samples, or only the first ("main") and the others None.
        **options: The others of :func:`sdediff.sampling.sample`; `batch_size` is that of each process, and
            `progress` counts its own samples.

    Returns:
        As there, on the CPU.

    Raises:
        Exception: As there; an error in one process is raised in all.

    Example:
        >>> import sdediff
        >>> model = sdediff.reference.eight_gaussians().model(sdediff.VP())
        >>> x = sample(model, 5, seed=1)
        >>> torch.allclose(x, model.sample(5, seed=1))
        True
    """
    group, denoised = current(), bool(options.get("denoise"))
    n = sampling.check_request(n, return_log_prob, denoised or return_solution)
    result = _shared(
        group,
        lambda part, **own: sampling.sample(model, part.stop - part.start, solver, **own),
        n,
        to,
        cond=model.expand_condition(cond, n, model.shift.device),
        indices=rows_of(n, indices),
        on_failure=_quiet(on_failure),
        return_log_prob=return_log_prob,
        return_solution=not return_log_prob,
        **options,
    )
    if result is None:
        return None
    if return_log_prob:
        _tell(result.likelihood, on_failure)
        return result
    x, solution = result
    tell_failures(solution, on_failure)
    return (x, solution) if return_solution else x


def log_likelihood(
    model: DiffusionModel,
    x: Any,
    solver: str | Solver = "dopri5",
    *,
    on_failure: str = "warn",
    to: str = "all",
    **options: Any,
) -> Any:
    """Log-densities with their errors, each process some of the rows; else as `model.log_likelihood`.

    Args:
        model: The model, the same on every process.
        x: All data in data units, (n, *data_shape), the same on every process.
        solver: A solver of ODEs or its name.
        on_failure: "warn", "raise" or "ignore" where a row's solve fails; its log_prob is nan.
        to: "all" processes get all values, or only the first ("main") and the others None.
        **options: Those of :func:`sdediff.likelihood.log_likelihood`; cond and indices are those of all rows.

    Returns:
        A :class:`LogLikelihood` of all rows, on the CPU.

    Raises:
        Exception: As there; an error in one process is raised in all.

    Example:
        >>> import sdediff
        >>> model = sdediff.reference.eight_gaussians().model(sdediff.VP())
        >>> log_likelihood(model, torch.zeros(3, 2)).log_prob.shape
        torch.Size([3])
    """
    units.check_batch(torch.as_tensor(x), model.data_shape, "x")  # rows are counted from the first of all
    options["on_failure"] = _quiet(on_failure)
    result = evaluate(likelihood.log_likelihood, model, x, solver, to=to, **options)
    if result is not None:
        _tell(result, on_failure)
    return result


def evaluate(
    function: Callable[..., Any],
    model: DiffusionModel,
    x: Any,
    *arguments: Any,
    cond: Any = None,
    indices: Any = None,
    to: str = "all",
    **options: Any,
) -> Any:
    """What a function makes of every row, each process's rows apart.

    Args:
        function: Called as ``function(model, rows, *arguments, cond=, indices=, **options)`` (indices only
            where it has them) and returning a tensor with a row a row or a :class:`LogLikelihood`: such as
            :func:`sdediff.likelihood.elbo`, :func:`sdediff.likelihood.discrete_log_likelihood` or
            :func:`sdediff.sampling.encode`.
        model: The model, the same on every process.
        x: All rows, (n, *data_shape), the same on every process.
        *arguments: The function's.
        cond: Conditions of all rows, (n, ...), or one for all.
        indices: Names of all rows, (n,) integers; 0 .. n-1 by default.
        to: "all" processes get all values, or only the first ("main") and the others None.
        **options: The function's. Messages about rows count from the first of a process.

    Returns:
        As the function, for all rows, on the CPU.

    Raises:
        ValueError: If there are no rows.
        Exception: The function's; an error in one process is raised in all.

    Example:
        >>> import sdediff
        >>> model = sdediff.reference.eight_gaussians().model(sdediff.VP())
        >>> evaluate(sdediff.sampling.encode, model, torch.zeros(3, 2)).shape
        torch.Size([3, 2])
    """
    n = len(x)
    if not n:
        raise ValueError("x is empty: give at least one row")
    options["cond"] = model.expand_condition(cond, n, model.shift.device)
    if "indices" in inspect.signature(function).parameters:
        options["indices"] = rows_of(n, indices)
    return _shared(
        current(), lambda part, **own: function(model, x[part], *arguments, **own), n, to, **options
    )


def _shared(group: Group, function: Callable[..., Any], n: int, to: str, **options: Any) -> Any:
    """The function's results for every process's rows as one; None where they are not sent to."""
    part = group.share(n)

    def work() -> Any:
        if part.start == part.stop:
            return None
        own = {name: options[name][part] for name in ("cond", "indices") if options.get(name) is not None}
        if options.get("brownian") is not None:
            own["brownian"] = options["brownian"].take(torch.arange(n)[part])
        return _on_cpu(function(part, **{**options, **own}))

    parts = [value for value in group.together(work, to) if value is not None]
    return _joined(parts) if parts else None


def _on_cpu(value: Any) -> Any:
    """The same with every tensor on the host."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, tuple):
        return tuple(_on_cpu(each) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _on_cpu(getattr(value, field.name)) for field in fields(value)})
    return value


def _joined(parts: list[Any]) -> Any:
    """Results for consecutive rows as one."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, Solution):
        return join(parts)
    if isinstance(first, LogLikelihood):
        return LogLikelihood.join(parts)
    if isinstance(first, SampleResult):
        return SampleResult(_joined([p.x for p in parts]), _joined([p.likelihood for p in parts]))
    if isinstance(first, tuple):
        return tuple(_joined(list(each)) for each in zip(*parts, strict=True))
    raise TypeError(
        f"a {type(first).__name__} cannot be joined with those of other rows: evaluate a function that "
        "returns a tensor or a LogLikelihood"
    )


def _quiet(on_failure: str) -> str:
    """What a process does about failures, which are told of all rows together."""
    return "ignore" if on_failure in ("warn", "raise") else on_failure


def _tell(result: LogLikelihood, on_failure: str) -> None:
    """Tell of failed rows as the caller asked."""
    failed = (result.status != Status.OK).nonzero().flatten().tolist()
    if not failed or on_failure == "ignore":
        return
    message = (
        f"{len(failed)} of {len(result.status)} samples failed, the first at row {failed[0]} "
        f"({Status(int(result.status[failed[0]])).name}): their log_prob is nan"
    )
    if on_failure == "raise":
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=3)
