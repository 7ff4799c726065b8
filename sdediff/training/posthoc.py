"""Averages of any length after training, from snapshots of a few."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdediff import files
from sdediff.serialization import load
from sdediff.training.ema import Averages, Power, Profile

if TYPE_CHECKING:
    from sdediff.model import DiffusionModel

_log = logging.getLogger("sdediff")

#: Steps at which profiles are compared; of longer trainings evenly spaced ones are taken.
_STEPS = 1 << 15
#: Share of the average's smoothing that may be missed without a word.
_TOLERANCE = 0.1

_FOLDER, _KIND = "ema", "snapshot"


class Combination(NamedTuple):
    """Coefficients of known averages, (n,) float64, and how well their sum matches the one that is sought.

    `error` estimates the size of the difference from the average sought, relative to that average's own
    difference from the latest weights.
    """

    coefficients: Tensor
    error: float


class Snapshot(NamedTuple):
    """A file of averages: the step it was written after, the averages' updates and profiles."""

    path: Path
    step: int
    updates: int
    profiles: tuple[Power, ...]


def combine(known: Sequence[tuple[Profile, int]], target: Profile, updates: int) -> Combination:
    r"""The combination of known averages that comes closest to another one.

    An average lacks a part of every move of the weights,

    .. math:: \bar\theta_T = \theta_T - \sum_k m_k\,(\theta_k - \theta_{k-1}), \qquad
        m_k = \prod_{j=k}^{T} d_j

    with all of the moves after T. Where moves are uncorrelated and of one size, the mean square error of a
    combination :math:`\sum_i c_i\bar\theta^{(i)}` with :math:`\sum_i c_i = 1` is proportional to
    :math:`\sum_k(\sum_i c_i m^{(i)}_k - m_k)^2`, which is minimised.

    Karras et al. 2024, arXiv 2312.02696, appendix C.2, match the profiles themselves instead of m, without
    the constraint, which is right for weights without correlation; on training runs that errs more, since
    weights hardly move from one step to the next and a sum of coefficients other than 1 scales them all.

    Args:
        known: Profiles of the averages at hand, each with its number of updates.
        target: Profile of the average that is sought.
        updates: Number of its updates.

    Example:
        >>> known = [(Power(0.05), 500), (Power(0.05), 1000), (Power(0.1), 1000)]
        >>> c, error = combine(known, Power(0.05), 1000)
        >>> [round(abs(x), 9) for x in c.tolist()], error < 1e-9
        ([0.0, 1.0, 0.0], True)
    """
    last = max(updates, *(n for _, n in known))
    steps = np.unique(np.linspace(1, last, min(last, _STEPS)).round())
    base, *others = (_lacking(profile, n, steps) for profile, n in reversed(known))
    wanted = torch.from_numpy(_lacking(target, updates, steps))
    rest, columns = wanted - torch.from_numpy(base), torch.zeros(len(steps), 0, dtype=torch.float64)
    if others:
        columns = torch.from_numpy(np.stack(others, 1) - base[:, None])
    sizes = columns.norm(dim=0).clamp_min(1e-300)
    solution = torch.linalg.lstsq(columns / sizes, rest[:, None], rcond=1e-14, driver="gelsd").solution[:, 0]
    error = float((rest - columns / sizes @ solution).norm() / wanted.norm().clamp_min(1e-300))
    free = solution / sizes
    return Combination(torch.cat([1 - free.sum(keepdim=True, dim=0), free]).flip(0), error)


def _lacking(profile: Profile, updates: int, steps: np.ndarray) -> np.ndarray:
    """The part of each step's move that an average lacks after so many updates, like steps."""
    return np.where(steps <= updates, profile.remainder(np.minimum(steps, updates), updates), 1.0)


def save_snapshot(
    folder: str | os.PathLike[str],
    averages: Averages,
    step: int,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the power averages to ``ema/000001234.safetensors`` in a run's folder, whole or not at all.

    Args:
        folder: The run's folder.
        averages: The averages.
        step: Steps made so far.
        state: Their :meth:`~sdediff.training.Averages.state` in whole tensors, where parameters are sharded.

    Returns:
        The file.

    Raises:
        ValueError: If no profile is a :class:`~sdediff.training.Power`.
    """
    chosen = {i: p for i, p in enumerate(averages.profiles) if isinstance(p, Power)}
    if not chosen:
        raise ValueError(
            f"none of the averages {averages.profiles} has a power profile, which snapshots need: keep some, "
            "such as Power(0.05) and Power(0.1)"
        )
    state = averages.state() if state is None else state
    split = ((*name.partition("."), value) for name, value in state.items())
    order = list(chosen)
    tensors = {f"{order.index(int(i))}.{name}": value for i, _, name, value in split if int(i) in chosen}
    path = Path(folder) / _FOLDER / f"{step:09d}.safetensors"
    path.parent.mkdir(exist_ok=True)
    facts = {"step": step, "updates": averages.updates, "sigma_rel": [p.sigma_rel for p in chosen.values()]}
    files.write_tensors(path, tensors, _KIND, facts)
    return path


def snapshots(folder: str | os.PathLike[str]) -> list[Snapshot]:
    """The snapshots in a run's folder, oldest first.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If one is damaged.
    """
    found = []
    for path in sorted((Path(folder) / _FOLDER).glob("*.safetensors")):
        facts = files.read_tensors(path, _KIND, only=())[1]
        profiles = tuple(Power(value) for value in facts["sigma_rel"])
        found.append(Snapshot(path, facts["step"], facts["updates"], profiles))
    if not found:
        raise FileNotFoundError(
            f"there are no snapshots in {Path(folder) / _FOLDER}: train with power averages and snapshots of "
            "them"
        )
    return found


def reconstruct(
    folder: str | os.PathLike[str], profile: float | Profile, step: int | None = None
) -> dict[str, Tensor]:
    """The average of a run's weights with another profile, from the run's snapshots.

    Where the snapshots are too far apart for the average asked for, a warning says what share of it is
    missed.

    Args:
        folder: The run's folder.
        profile: Its sigma_rel (:class:`~sdediff.training.Power`), or any profile.
        step: After how many steps; the last snapshot's by default.

    Returns:
        The averages by the parameter's name, in the snapshots' dtype.

    Raises:
        FileNotFoundError: If there are no snapshots.
        ValueError: If the step is after the last snapshot or the snapshots are of different networks.

    Source: Karras et al. 2024, arXiv 2312.02696, section 3.2; the criterion is that of :func:`combine`.
    """
    found, target = snapshots(folder), Power(profile) if isinstance(profile, float | int) else profile
    step = found[-1].step if step is None else step
    if not 0 < step <= found[-1].step:
        raise ValueError(
            f"step={step}: the snapshots in {Path(folder) / _FOLDER} serve steps 1 to {found[-1].step}"
        )
    updates = round(np.interp(step, [0, *(s.step for s in found)], [0, *(s.updates for s in found)]))
    used = [s for before, s in zip([0, *(s.step for s in found)], found, strict=False) if before < step]
    coefficients, error = combine([(p, s.updates) for s in used for p in s.profiles], target, updates)
    if error > _TOLERANCE:
        _log.warning(
            "the snapshots in %s miss about %.0f %% of what %s smooths: they are too far apart, or its "
            "length is too unlike theirs",
            *(Path(folder) / _FOLDER, 100 * error, target),
        )
    return _weighted(used, coefficients.tolist())


def reconstruct_model(
    folder: str | os.PathLike[str], profile: float | Profile, step: int | None = None, **options: Any
) -> DiffusionModel:
    """A finished run's model with another average of its weights (:func:`reconstruct`).

    Args:
        folder: The run's folder, with ``model.safetensors`` and snapshots.
        profile: The average's sigma_rel, or any profile.
        step: After how many steps; the last snapshot's by default.
        **options: network, process and device, as for :func:`sdediff.load`.

    Raises:
        FileNotFoundError: If model or snapshots are missing.
        ValueError: If they do not belong together.
    """
    weights = reconstruct(folder, profile, step)
    model = load(Path(folder) / "model.safetensors", **options)
    parameters = dict(model.named_parameters())
    wrong = [n for n, v in weights.items() if n not in parameters or parameters[n].shape != v.shape]
    if wrong:
        raise ValueError(
            f"the snapshots in {Path(folder) / _FOLDER} do not fit the model beside them, first in "
            f"{wrong[0]}: they are of another run"
        )
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
    return model


def _weighted(used: Sequence[Snapshot], coefficients: Sequence[float]) -> dict[str, Tensor]:
    """Sum of the averages in files times coefficients, in the files' dtype; one file in memory at a time."""
    total: dict[str, Tensor] = {}
    kinds: dict[str, torch.dtype] = {}
    remaining = iter(coefficients)
    for snapshot in used:
        tensors = files.read_tensors(snapshot.path, _KIND)[0]
        weights = [next(remaining) for _ in snapshot.profiles]
        for key, value in tensors.items():
            index, _, name = key.partition(".")
            if snapshot is used[0] and name not in total:
                total[name], kinds[name] = torch.zeros(value.shape, dtype=torch.float64), value.dtype
            if name not in total or total[name].shape != value.shape:
                raise ValueError(f"{snapshot.path} is of another network than {used[0].path}: remove it")
            total[name].add_(value, alpha=weights[int(index)])
    return {name: value.to(kinds[name]) for name, value in total.items()}
