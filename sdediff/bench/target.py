"""What the solvers are run on, and the truth they are measured against."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sdediff import reference
from sdediff.metrics import energy_distance
from sdediff.model import DiffusionModel
from sdediff.processes import VP, GaussianProcess
from sdediff.reference import ClosedForm
from sdediff.run import Run, draw_prior
from solvers import BrownianPath, Noise

_WIDE, _LOOSER, _TIGHT, _TIGHTER = torch.float64, 1e-5, 1e-7, 1e-9
_FINE_SOLVER, _FINE_STEPS = "sra1", 1000
_LAW = 4  # times as many exact samples as a run has: then the run's own noise is most of the floor
_SPLITS = 8  # exact sets of a run's size whose distance to the law is the noise floor
_FAR = 1 << 20  # seeds of exact sets, away from the runs' own

#: Closed-form problems by name; a number after a hyphen is the dimension.
REFERENCES: dict[str, Callable[..., ClosedForm]] = {
    "eight-gaussians": reference.eight_gaussians,
    "rings": reference.rings,
    "mixture": reference.random_mixture,
    "product": reference.random_product,
}


def reference_model(name: str) -> ClosedForm | None:
    """The closed-form problem of a name such as "eight-gaussians" or "product-16"; None if there is none.

    Args:
        name: The name.

    Example:
        >>> reference_model("product-16")
        RotatedProduct(dim=16)
    """
    if name in REFERENCES:
        return REFERENCES[name](dtype=_WIDE)
    match = re.fullmatch(r"(mixture|product)-([1-9]\d{0,3})", name)
    return None if match is None else REFERENCES[match[1]](int(match[2]), dtype=_WIDE)


@dataclass(frozen=True)
class Target:
    """A model, the samples that are drawn of it, and what is exact about it.

    Attributes:
        title: What it is called.
        model: The model.
        data: Its closed form, or None.
        samples: Samples of a run.
        seed: Seed of the runs.
        dtype: Of the samples.
    """

    title: str
    model: DiffusionModel
    data: ClosedForm | None
    samples: int
    seed: int
    dtype: torch.dtype

    @classmethod
    def of(
        cls, what: Any, process: GaussianProcess | None, samples: int, seed: int, title: str | None
    ) -> Target:
        """From a model, a closed form or the name of one."""
        if isinstance(what, str):
            data = reference_model(what)
            if data is None:
                raise ValueError(
                    f"there is no reference problem {what!r}: give a model, or one of "
                    f"{', '.join(REFERENCES)} (product-16 is the product in 16 dimensions)"
                )
            what, title = data, title or what
        if isinstance(what, ClosedForm):
            model = what.model(process or VP())
            return cls(title or repr(what), model, what, samples, seed, _WIDE)
        if not isinstance(what, DiffusionModel):
            raise TypeError(
                f"{what!r} is no model: give a DiffusionModel, a closed form, or the name of one such as "
                '"eight-gaussians"'
            )
        if process is not None:
            raise TypeError("process= goes with a closed form: a model has its own, leave process out")
        own = what.state_type
        dtype = torch.get_default_dtype() if own is None else own[0]
        return cls(title or type(what.network).__name__, what, None, samples, seed, dtype)

    @cached_property
    def wide(self) -> DiffusionModel:
        """The model in float64."""
        return self.model if self.data is not None else copy.deepcopy(self.model).double()

    # -- the flow of each sample -----------------------------------------------------------------------------

    @cached_property
    def flow(self) -> tuple[Tensor, float, str]:
        """Where the exact flow takes the runs' draws of the prior, about its error, and its source."""
        if self.data is not None and hasattr(self.data, "flow"):
            return self._exact_flow(self.data), 0.0, "the exact flow map"
        x, rough = (self._solved_flow(tolerance, self.seed, self.samples) for tolerance in (_TIGHTER, _TIGHT))
        gap = rms(x, rough) * (_TIGHTER / _TIGHT)
        return x, gap, f"Dopri5 at tolerance {_TIGHTER:g} in float64"

    @torch.no_grad()
    def _exact_flow(self, data: Any) -> Tensor:
        process, run = self.model.process, Run.of(self.model, "dopri5", seed=self.seed)
        z = draw_prior(self.model, run, torch.arange(self.samples), _WIDE)
        return data.flow(process, z, process.t_max, process.t_min) / process.alpha(process.t_min)

    def _solved_flow(self, tolerance: float, seed: int, count: int) -> Tensor:
        return self.wide.sample(
            count, "dopri5", rtol=tolerance, atol=tolerance, seed=seed, dtype=_WIDE, on_failure="raise"
        )

    # -- the law of the samples ------------------------------------------------------------------------------

    def exact_samples(self, number: int, count: int) -> Tensor:
        """A set of exact samples, another for each number: of the data, or of the model's own flow."""
        seed = _FAR + self.seed + number
        return (
            self._solved_flow(_LOOSER, seed, count)
            if self.data is None
            else self.data.sample(count, seed=seed)
        )

    @cached_property
    def law(self) -> Tensor:
        """The exact samples that those of the runs are compared with."""
        return self.exact_samples(0, _LAW * self.samples).cpu()

    @cached_property
    def floor(self) -> tuple[float, float]:
        """Mean and standard deviation of the energy distance of as many exact samples as a run's to `law`."""
        sets = (self.exact_samples(1 + k, self.samples).cpu() for k in range(_SPLITS))
        values = torch.stack([energy_distance(x, self.law) for x in sets])
        return float(values.mean()), float(values.std())

    # -- the path of each sample -----------------------------------------------------------------------------

    @cached_property
    def path(self) -> BrownianPath:
        """The Brownian path that drives every stochastic run: the one that the fine solve draws itself."""
        like = torch.empty(
            self.samples, *self.model.data_shape, dtype=self.dtype, device=self.model.shift.device
        )
        times = tuple(self.model.process.default_grid(_FINE_STEPS).tolist())
        return BrownianPath(Noise.like(like, self.seed), times)

    def strong(self, eta: Any) -> Tensor:
        """Where the path takes the runs' draws of the prior: a solve with very many steps."""
        if eta not in self.strong_truths:
            self.strong_truths[eta] = self.model.sample(
                self.samples, _FINE_SOLVER, steps=_FINE_STEPS, eta=eta, seed=self.seed, dtype=self.dtype
            )
        return self.strong_truths[eta]

    @cached_property
    def strong_truths(self) -> dict[Any, Tensor]:
        """Those that were needed, by eta."""
        return {}


def rms(x: Tensor, y: Tensor) -> float:
    """Root mean square difference of an entry."""
    return float((x.double().cpu() - y.double().cpu()).square().mean().sqrt())
