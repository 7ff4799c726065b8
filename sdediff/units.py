"""The data's own units, and the checks of what users pass in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MODES = ("column", "channel", "scalar", "none")


def check_mode(mode: str | None, data_shape: tuple[int, ...]) -> str:
    """A scale mode, with the default filled in."""
    if mode is None:
        return "column" if len(data_shape) == 1 else "scalar"
    if mode not in MODES:
        raise ValueError(f"scale_mode={mode!r} is not known: take one of {', '.join(MODES)}")
    return mode


def check_batch(x: Any, data_shape: tuple[int, ...], what: str, *, empty: bool = False) -> None:
    """Raise ValueError unless x is a finite floating tensor (B, *data_shape)."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        given = f"of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        like = f"{what}.float()" if isinstance(x, Tensor) else f"torch.tensor({what}, dtype=torch.float32)"
        raise ValueError(f"{what} is {given}: give a floating-point tensor, such as {like}")
    if x.shape[1:] != data_shape or x.ndim == 0:
        raise ValueError(
            f"{what} has shape {tuple(x.shape)}: give (B, {', '.join(map(str, data_shape))}), the model's "
            "data_shape with a batch in front"
        )
    if not empty and len(x) == 0:
        raise ValueError(f"{what} is empty: give at least one row")
    finite = torch.isfinite(x).flatten(1).all(dim=1)
    if not bool(finite.all()):
        raise ValueError(
            f"{what} has NaN or infinite values, first in row {int((~finite).nonzero()[0])}: remove or fill "
            "those rows"
        )


def expand_condition(
    cond: Any, rows: int, device: torch.device, width: int = 0, optional: bool = False
) -> Any:
    """A condition with a row a sample, on a device; one row, one vector or one label serves all samples.

    `width` is the length of a condition vector where the network states one: it tells one vector for all from
    a number for each. An `optional` one may have rows of NaN, for no condition.
    """
    if cond is None:
        return None
    cond = torch.as_tensor(cond).to(device)
    if cond.is_inference():
        cond = cond.clone()  # such a tensor cannot take part in derivatives
    if cond.is_floating_point():
        fine = torch.isfinite(cond)
        if optional and cond.ndim > 0:
            fine = fine.all(-1) | cond.isnan().all(-1)
        if not bool(fine.all()):
            raise ValueError("cond has NaN or infinite values: remove or fill them")
    vector = cond.ndim == 1 and cond.is_floating_point()
    if cond.ndim == 0 or (vector and (len(cond) == width if width else len(cond) != rows)):
        return cond.expand(rows, *cond.shape)
    if len(cond) == rows:
        return cond
    if len(cond) == 1:
        return cond.expand(rows, *cond.shape[1:])
    raise ValueError(
        f"cond has {len(cond)} rows for {rows} samples: give one a sample, or a single one for all"
    )


def learn(x: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Shift and scale of data (N, *E), float64, broadcastable against a datum.

    Raises:
        ValueError: If there is one row only, or a column, channel or the whole is constant.
    """
    wide = x.detach().double()
    if mode == "none":
        return wide.new_zeros(()), wide.new_ones(())
    if len(x) < 2:
        raise ValueError("one row of data has no scale: give at least two")
    over = {"column": (0,), "channel": (0, *range(2, x.ndim)), "scalar": tuple(range(x.ndim))}[mode]
    scale, shift = torch.std_mean(wide, dim=over, correction=0, keepdim=True)
    scale, shift = (v.squeeze(0) if mode != "scalar" else v.reshape(()) for v in (scale, shift))
    constant = (scale <= 1e-12 * shift.abs().clamp(min=1e-300)).reshape(-1).nonzero().flatten().tolist()
    if constant:
        where = "the data are" if mode == "scalar" else f"{mode} {constant[0]} is"
        raise ValueError(
            f"{where} constant and cannot be scaled to unit variance: leave it out, or add noise to it"
        )
    return shift, scale
