"""The denoiser of a model as a solver calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from solvers.problems import combination

from .processes import Time

if TYPE_CHECKING:
    from .model import DiffusionModel


class Denoiser:
    """The denoiser as a solver calls it: model units, t a float on a fixed grid, else float64 (B,).

    Coefficients are computed once for each float.
    """

    def __init__(self, model: DiffusionModel) -> None:
        self.model = model
        self.table: dict[float, tuple[float, ...]] = {}
        #: The table for states of one kind: c_noise as a (B,) tensor, of one number that serves all rows.
        self.ready: dict[float, tuple[Any, ...]] = {}
        self.rows, self.dtype = -1, torch.float64

    def tabulate(self, times: list[float]) -> None:
        """Compute the coefficients at these times, all at once."""
        columns = self.model.coefficients(torch.tensor(times, dtype=torch.float64))
        self.table.update(zip(times, zip(*(c.tolist() for c in columns), strict=True), strict=True))
        self.rows = -1

    def __call__(self, t: Time, z: Tensor, cond: Any = None) -> Tensor:
        return self.blend(t, z, 0.0, 1.0, cond)

    def blend(self, t: Time, z: Tensor, a: Any, b: Any, cond: Any = None) -> Tensor:
        """``a z + b D(t, z)``: with D = c_skip z + c_out F it is a combination of z and F."""
        c_skip, c_out, c_in, c_noise = self._at(t, z)
        out = self.model._call(z, c_in, c_noise, cond)
        return combination(a + b * c_skip, z, b * c_out, out)

    def blends(
        self, t: Tensor, a: Tensor, b: Tensor, scale: Tensor, y: Tensor, cond: Any = None
    ) -> Callable[[int, Tensor, Tensor | None], Tensor]:
        """``(stage, y, out) -> a y + b D(t, scale y)``; t and the factors (S, B), float64.

        What an adaptive step needs at all its stages is computed at once: a stage is one call of the network
        and three kernels.
        """
        c_skip, c_out, c_in, c_noise = self.model.coefficients(t)
        shape, levels = (*t.shape, *(1,) * (y.ndim - 1)), c_noise.to(y.dtype)
        factors = (torch.addcmul(a, c_skip * scale, b), b * c_out, scale * c_in)
        p, r, s = (v.to(y.dtype).view(shape) for v in factors)

        def blend(stage: int, y: Tensor, out: Tensor | None) -> Tensor:
            network = self.model._call(y * s[stage], 1.0, levels[stage], cond)
            return torch.addcmul(torch.mul(y, p[stage], out=out), r[stage], network, out=out)

        return blend

    def _at(self, t: Time, z: Tensor) -> tuple[Any, ...]:
        """The preconditioning: floats and a level (B,) of z's kind, or float64 tensors of t's shape."""
        if isinstance(t, Tensor):
            return self.model.coefficients(t)
        if self.rows != z.shape[0] or self.dtype is not z.dtype:
            self.rows, self.dtype, self.ready = z.shape[0], z.dtype, self._fit(z, self.table)
        if t not in self.ready:
            columns = self.model.coefficients(torch.tensor([t], dtype=torch.float64))
            self.ready |= self._fit(z, {t: tuple(float(c) for c in columns)})
        return self.ready[t]

    @staticmethod
    def _fit(z: Tensor, table: dict[float, tuple[float, ...]]) -> dict[float, tuple[Any, ...]]:
        """The table for states like z."""
        levels = torch.tensor([row[3] for row in table.values()], dtype=z.dtype, device=z.device)
        rows = zip(table.items(), levels[:, None].expand(-1, z.shape[0]).unbind(), strict=True)
        return {t: (*row[:3], level) for (t, row), level in rows}
