"""diffusers' schedulers as solvers."""

from __future__ import annotations

import inspect
import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..exponential import DDIM
from ..noise import Noise
from ..problems import Coefficients, Problem, SemiLinear, counted
from ..solution import Solution, Status, uniform_solution
from ..solver import Orders, Request, Solver

#: Coordinates of a scheduler's samples, ``x / r``: r = (alpha^2 + sigma^2)^(1/2), alpha, or alpha + sigma.
Frame = Literal["vp", "ve", "flow"]
#: What it takes for the network's output.
Output = Literal["data", "noise", "v", "edm", "velocity"]
#: How its grid is set: a table of sigma/alpha, one with two entries a step, a chain of alpha^2, or alpha and
#: sigma.
Table = Literal["sigmas", "pairs", "midpoints", "chain", "angles"]


class Method(NamedTuple):
    """How one of diffusers' schedulers is driven."""

    scheduler: str
    frame: Frame
    output: Output
    table: Table
    orders: Orders
    #: The scheduler at eta = 1, or "" for none.
    noisy: str = ""
    default_eta: float = 0.0
    config: tuple[tuple[str, Any], ...] = ()


def _method(scheduler: str, frame: Frame, output: Output, table: Table, ode: float, **rest: Any) -> Method:
    noisy = {"strong": 1, "weak": 1} if "noisy" in rest else {}
    return Method(f"{scheduler}Scheduler", frame, output, table, Orders(ode=ode, **noisy), **rest)


def _three(base: Method, ode: float) -> Method:
    return base._replace(config=(("solver_order", 3),), orders=Orders(ode=ode), noisy="")


_DPM = _method("DPMSolverMultistep", "vp", "data", "sigmas", 2, noisy="DPMSolverMultistepScheduler")
_SINGLE = _method("DPMSolverSinglestep", "vp", "data", "sigmas", 2)
_UNIPC = _method("UniPCMultistep", "vp", "data", "sigmas", 3)
_DEIS = _method("DEISMultistep", "vp", "data", "sigmas", 2)
#: Methods by name: the scheduler's own, with the order appended where it is not the default.
METHODS: dict[str, Method] = {
    "DDIM": _method("DDIM", "vp", "data", "chain", 1, noisy="DDIMScheduler"),
    "DDPM": _method("DDIM", "vp", "data", "chain", 1, noisy="DDPMScheduler", default_eta=1.0),
    "PNDM": _method("PNDM", "vp", "noise", "chain", 2),
    "IPNDM": _method("IPNDM", "vp", "v", "angles", 2),
    "DPMSolverMultistep": _DPM,
    "DPMSolverMultistep-3": _three(_DPM, 2),
    "DPMSolverSinglestep": _SINGLE,
    "DPMSolverSinglestep-3": _three(_SINGLE, 3),
    "UniPCMultistep": _UNIPC,
    "UniPCMultistep-3": _three(_UNIPC, 3),
    "DEISMultistep": _DEIS,
    "DEISMultistep-3": _three(_DEIS, 2),
    "SASolver": _method("SASolver", "vp", "data", "sigmas", 2, noisy="SASolverScheduler", default_eta=1.0),
    "EulerDiscrete": _method("EulerDiscrete", "ve", "data", "sigmas", 1),
    "EulerAncestralDiscrete": _method(
        "EulerDiscrete", "ve", "noise", "sigmas", 1, noisy="EulerAncestralDiscreteScheduler", default_eta=1.0
    ),
    "HeunDiscrete": _method("HeunDiscrete", "ve", "data", "pairs", 2),
    "KDPM2Discrete": _method("KDPM2Discrete", "ve", "noise", "midpoints", 2),
    "KDPM2AncestralDiscrete": _method(
        "KDPM2Discrete", "ve", "noise", "midpoints", 2,
        noisy="KDPM2AncestralDiscreteScheduler", default_eta=1.0,
    ),
    "LMSDiscrete": _method("LMSDiscrete", "ve", "data", "sigmas", 2),
    "EDMEuler": _method("EDMEuler", "ve", "edm", "sigmas", 1),
    "EDMDPMSolverMultistep": _method(
        "EDMDPMSolverMultistep", "ve", "edm", "sigmas", 2, noisy="EDMDPMSolverMultistepScheduler"
    ),
    "FlowMatchEulerDiscrete": _method("FlowMatchEulerDiscrete", "flow", "velocity", "sigmas", 1),
    "FlowMatchHeunDiscrete": _method("FlowMatchHeunDiscrete", "flow", "velocity", "pairs", 2),
}  # fmt: skip


class Diffusers(Solver):
    r"""A scheduler of diffusers (von Platen et al. 2022) on any diffusion problem and any grid.

    A process is known to a scheduler by its samples' coordinates and its table of noise levels. Both can be
    had of every process: samples are handed over as :math:`x/\sqrt{\alpha^2+\sigma^2}` (variance
    preserving), :math:`x/\alpha` (its "sigma space") or :math:`x/(\alpha+\sigma)` (flow matching), and the
    table of the schedule it would make itself is replaced by the grid's own levels, in double precision. No
    level is rounded to one of 1000. Where alpha = 0 at an end of the times, that step is :class:`DDIM`'s.

    Schedulers know eta = 0 and, some, eta = 1 (SASolver any constant eta); where diffusers has two classes
    for the two, the name stands for both. Noise is the solve's own, per sample: `torch.randn` is answered
    with it while the scheduler steps. Options that would clip, or lower the order near the end, are off
    unless given. DPMSolverMultistep of order 3 is offered for eta = 0 only: with noise diffusers' weight of
    its second difference does not vanish with the step (-1/2 stands where +1/2 should), so it does not
    converge.

    Some schedulers compute in float32 whatever the dtype of the state. They change state as they step, so
    each solve makes its own.

    Left out: schedulers that do not solve the problem's ODE or SDE for a plain denoiser (LCM, TCD,
    consistency models, RePaint, unCLIP, discrete tokens, model-specific ones), duplicates (the parallel and
    inverse variants, as times may rise), and those that draw noise inside in ways that no path can drive
    (DPMSolverSDE, CosineDPMSolverMultistep, ScoreSdeVe).

    Args:
        method: One of `METHODS`.
        **config: Options of the scheduler's constructor, such as ``solver_order=3``.

    Raises:
        ValueError: For an unknown method.
        TypeError: For an option that the scheduler does not have; on a problem that is not SemiLinear, or
            whose eta the scheduler does not know.
    """

    needs_linear_part = True
    default_steps = 50

    def __init__(self, method: str = "DPMSolverMultistep", **config: Any) -> None:
        if method not in METHODS:
            raise ValueError(
                f"no scheduler of diffusers is known as {method!r}: take one of {', '.join(METHODS)}"
            )
        self.method, self.spec = method, METHODS[method]
        self.config = dict(self.spec.config) | config
        self.stochastic = bool(self.spec.noisy)
        self.default_eta, self.orders = self.spec.default_eta, self.spec.orders
        for name in config:
            classes = {self.spec.scheduler, self.spec.noisy} - {""}
            if not any(name in inspect.signature(_class(c).__init__).parameters for c in classes):
                raise TypeError(f"{self.name} has no option {name!r}: see diffusers' {self.spec.scheduler}")

    @property
    def name(self) -> str:
        return f"diffusers/{self.method}"

    def check(self, problem: Problem) -> None:
        super().check(problem)
        eta = getattr(problem, "eta", 0.0)
        if callable(eta) or (eta not in (0, 1) and self.method != "SASolver"):
            known = "a constant eta" if self.method == "SASolver" else "eta=0 and eta=1"
            raise TypeError(
                f'{self.name} knows {known} only and was given eta={eta}: take "ddim" or "euler-maruyama", '
                "which take any"
            )

    def integrate(self, problem: Problem, x: Tensor, request: Request) -> Solution:
        assert isinstance(problem, SemiLinear)
        problem, calls = counted(problem)
        assert isinstance(problem, SemiLinear)
        problem = problem.tabulate(request.times)
        times, noise = request.times, request.noise
        ends = [problem.coefficients(t).alpha == 0 for t in (times[0], times[-1])]
        begin, end = int(ends[0]), len(times) - 1 - int(ends[1] and len(times) > 1 + int(ends[0]))
        kept = {times[0]: x}
        status, reached = Status.OK, 0
        drive = _Drive(self, problem, times[begin : end + 1], noise, begin) if end > begin else None
        for k in range(len(times) - 1):
            if not begin <= k < end or drive is None:
                x = DDIM().step(problem, times[k], times[k + 1], x, None, noise.at(k)).x
            else:
                x, failed = drive.step(k - begin, x)
                if failed:
                    status = Status.FOREIGN_FAILURE
                    break
            reached, kept[times[k + 1]] = k + 1, x
        lost = torch.full_like(x, math.nan)
        path = torch.stack([kept.get(t, lost) for t in request.save_at]) if request.save_at else None
        error = x.new_full((len(x),), math.nan) if request.dual else None
        return uniform_solution(x, times[reached], calls.calls, reached, path, error, status=status)

    def __repr__(self) -> str:
        options = "".join(f", {k}={v!r}" for k, v in self.config.items() if (k, v) not in self.spec.config)
        return f"Diffusers({self.method!r}{options})"


def _class(name: str) -> Any:
    import diffusers

    return getattr(diffusers, name)


class _Draws(TorchFunctionMode):
    """Answers `torch.randn` with the noise of the solve."""

    def __init__(self, noise: Noise) -> None:
        super().__init__()
        self.noise = noise

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.randn:
            return self.noise.normal().to((kwargs or {}).get("dtype"))
        return func(*args, **(kwargs or {}))


class _Drive:
    """A scheduler on one grid, whose ends have finite log-SNR."""

    def __init__(
        self, solver: Diffusers, problem: SemiLinear, times: tuple[float, ...], noise: Noise, first: int
    ) -> None:
        self.spec, self.problem, self.times = solver.spec, problem, times
        self.noise, self.first, self.calls = noise, first, 0
        self.grid = [problem.coefficients(t) for t in times]
        eta = float(problem.eta)  # type: ignore[arg-type]
        steps = len(times) - 1
        chain = self.spec.table == "chain"
        given = {
            "num_train_timesteps": steps + 1 if chain else max(1000, steps),
            "prediction_type": {"data": "sample", "v": "v_prediction"}.get(self.spec.output, "epsilon"),
            "clip_sample": False,
            "thresholding": False,
            "lower_order_final": False,
            "final_sigmas_type": "sigma_min",
            "skip_prk_steps": True,
            "tau_func": lambda t: eta,
            "algorithm_type": "sde-dpmsolver++" if eta else "dpmsolver++",
        }
        cls = _class(self.spec.noisy if eta and self.spec.noisy else self.spec.scheduler)
        known = inspect.signature(cls.__init__).parameters
        if "DEIS" in cls.__name__ or "SASolver" in cls.__name__:
            del given["algorithm_type"]
        self.options = {"eta": eta} if "eta" in inspect.signature(cls.step).parameters else {}
        if self.spec.table == "midpoints":  # its own stamps, which are not used, make numpy warn
            cls = type(cls.__name__, (cls,), {"_sigma_to_t": lambda *_: 0.0})
        self.scheduler = cls(**{k: v for k, v in (given | solver.config).items() if k in known})
        self.scheduler.set_timesteps(steps + 1 if chain else steps)
        if not eta and hasattr(self.scheduler, "_get_variance"):
            # It is multiplied by eta, and is not real where times rise.
            self.scheduler._get_variance = lambda *_: torch.zeros(())
        self._set_table(steps)

    def _set_table(self, steps: int) -> None:
        scheduler, table = self.scheduler, self.spec.table
        alpha, sigma = (torch.tensor([c[i] for c in self.grid], dtype=torch.float64) for i in (0, 1))
        if table == "chain":
            scheduler.alphas_cumprod = (alpha**2 / (alpha**2 + sigma**2)).flip(0)
            return
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        scheduler.is_scale_input_called = True
        if table == "angles":
            root = (alpha**2 + sigma**2).sqrt()
            scheduler.alphas, scheduler.betas = alpha / root, sigma / root
            return
        levels = sigma / (alpha + sigma) if self.spec.frame == "flow" else sigma / alpha
        if table in ("pairs", "midpoints"):
            low = levels[1:]
            if "Ancestral" in type(scheduler).__name__:
                up = low * (1 - (low / levels[:-1]) ** 2).sqrt()
                low = (low**2 - up**2).sqrt()
                scheduler.sigmas_up, scheduler.sigmas_down = up.repeat_interleave(2), low.repeat_interleave(2)
            middle = (levels[:-1] * low).sqrt()
            scheduler.sigmas_interpol = middle.repeat_interleave(2)
            self.middles = self.problem.process.time(-middle.log()).tolist() if table == "midpoints" else []
            levels = torch.stack([levels[:-1], levels[1:]], dim=1).flatten()
        scheduler.sigmas = levels
        if hasattr(scheduler, "order_list"):
            order = scheduler.config.solver_order
            scheduler.order_list = [k % order + 1 for k in range(steps)]

    def step(self, k: int, x: Tensor) -> tuple[Tensor, bool]:
        """Interval k: the state at its end, or the one at its start and True where the scheduler failed."""
        calls = [(self.times[k], k)]
        if self.spec.table == "midpoints":
            low, high = sorted(self.times[k : k + 2])
            calls.append((min(max(self.middles[k], low), high), k))
        elif self.spec.table == "pairs" or (k == 0 and "PNDM" in self.spec.scheduler[:4]):
            calls.append((self.times[k + 1], k + 1))
        now = x / self._scale(self.grid[k])
        with_noise = self.noise.at(self.first + k)
        for t, node in calls:
            c = self.problem.coefficients(t)
            output = self._output(t, now * self._scale(c), c)
            stamp: Any = len(self.times) - 1 - node
            if self.spec.table != "chain":
                stamp = torch.tensor(float(stamp))
            with _Draws(with_noise):
                try:
                    now = self.scheduler.step(output, stamp, now, **self.options, return_dict=False)[0]
                except (ArithmeticError, AssertionError, RuntimeError):
                    return x, True
            self.calls += 1
        now = now.to(x.dtype)
        return now * self._scale(self.grid[k + 1]), False

    def _scale(self, c: Coefficients) -> float:
        if self.spec.frame == "vp":
            return math.hypot(c.alpha, c.sigma)
        return float(c.alpha + c.sigma if self.spec.frame == "flow" else c.alpha)

    def _output(self, t: float, x: Tensor, c: Coefficients) -> Tensor:
        """What the scheduler takes for the network's output."""
        if self.spec.output == "data":
            return self.problem.denoise(t, x)
        if self.spec.output == "edm":
            data, level = self.scheduler.config.sigma_data, c.sigma / c.alpha
            total = level**2 + data**2
            gain = math.sqrt(total) / (level * data)
            return self.problem.blend(t, x, -(data**2) / total * gain / c.alpha, gain)
        if self.spec.output == "v":
            root = math.hypot(c.alpha, c.sigma)
            return self.problem.blend(t, x, c.alpha / (root * c.sigma), -root / c.sigma)
        extra = 1.0 if self.spec.output == "velocity" else 0.0
        return self.problem.blend(t, x, 1 / c.sigma, -c.alpha / c.sigma - extra)
