"""Print adaptive solves beside torchdiffeq's and torchode's: `python tests/benchmarks/adaptive.py`.

Two threads, float32, medians of interleaved repeats, errors against float64 at 1e-9. Needs torchdiffeq and
torchode. The network is a 3-128-128-2 perceptron fitted to eight Gaussians for a thousand steps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torchdiffeq
import torchode
from torch import Tensor, nn

import sdediff
import solvers
from sdediff import reference
from solvers.problems import expand

BATCH, TOLERANCE, REPEATS = 256, 1e-5, 21
F64 = torch.float64
Timed = dict[str, Callable[[], Tensor]]


class Net(nn.Module):
    """The perceptron, and how many calls and rows it has seen."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )
        self.calls = self.rows = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        return self.layers(torch.cat([x, t[:, None]], 1))


def trained(process: sdediff.VP) -> sdediff.DiffusionModel:
    """A model of eight Gaussians, in a few seconds."""
    torch.manual_seed(0)
    model = sdediff.DiffusionModel(Net(), process=process, prediction="eps", data_shape=(2,))
    data = reference.eight_gaussians().sample(20_000, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(1000):
        z = data[torch.randint(len(data), (256,))]
        t = process.t_min + (process.t_max - process.t_min) * torch.rand(256, dtype=F64) ** 2
        z_t, eps = process.perturb(z, t, seed=step)
        loss = (model(z_t, t) - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.moments = type(reference.eight_gaussians().model(process).moments).of(data.mean(0), data.T.cov())
    return model.eval()


def hand_written(model: sdediff.DiffusionModel, t: Tensor, x: Tensor) -> Tensor:
    """The probability flow of VP as one writes it: t () or (B,)."""
    low, high = model.process.beta_min, model.process.beta_max
    beta, integral = low + t * (high - low), t * (low + 0.5 * t * (high - low))
    variance = -torch.expm1(-integral)
    level = 0.125 * (torch.log(variance) + integral)
    eps = model.network(x, level.expand(len(x)))
    beta, sigma = expand(beta, x), expand(torch.sqrt(variance), x)
    return -0.5 * beta * (x - eps / sigma)


def with_torchdiffeq(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, tol: float) -> Tensor:
    """Its dopri5, told to stop at the end of the interval."""
    options = {"step_t": t[-1:]}
    return torchdiffeq.odeint(f, x, t, rtol=tol, atol=tol, method="dopri5", options=options)[-1]


def with_torchode(
    f: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, tol: float, method: str
) -> Tensor:
    """Eager: its torch.jit.script fails on torch 2.13."""
    term = torchode.ODETerm(f)  # type: ignore[arg-type]
    step = {"dopri5": torchode.Dopri5, "tsit5": torchode.Tsit5}[method](term=term)
    control = torchode.IntegralController(atol=tol, rtol=tol, term=term)
    problem = torchode.InitialValueProblem(y0=x, t_eval=t.expand(len(x), 2))
    return torchode.AutoDiffAdjoint(step, control).solve(problem).ys[:, -1]


def interleaved(runs: Timed, repeats: int = REPEATS) -> dict[str, float]:
    """Median seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat > 1:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def compare(title: str, model: sdediff.DiffusionModel, start: Tensor, exact: Tensor, up: bool) -> None:
    """Times and errors of whole solves from `start`, down to data or up to the prior."""
    p, net = model.process, model.network
    span = (p.t_min, p.t_max) if up else (p.t_max, p.t_min)
    ends = torch.tensor(span)
    scale = float(p.alpha(p.t_min))

    def drift(t: Tensor, x: Tensor) -> Tensor:
        return hand_written(model, t, x)

    carry = model.encode if up else model.decode
    given = start / scale if up else start
    runs: Timed = {
        "sdediff model": lambda: carry(given, rtol=TOLERANCE, atol=TOLERANCE) * (1 if up else scale),
        "sdediff model, tsit5": lambda: (
            carry(given, solver="tsit5", rtol=TOLERANCE, atol=TOLERANCE) * (1 if up else scale)
        ),
        "sdediff ODE(drift)": lambda: (
            solvers.solve(solvers.ODE(drift), start, span, rtol=TOLERANCE, atol=TOLERANCE).x
        ),
        "torchdiffeq dopri5": lambda: with_torchdiffeq(drift, start, ends, TOLERANCE),
        "torchode dopri5": lambda: with_torchode(drift, start, ends, TOLERANCE, "dopri5"),
        "torchode tsit5": lambda: with_torchode(drift, start, ends, TOLERANCE, "tsit5"),
    }
    times = interleaved(runs)
    print(f"\n{title}: B={BATCH}, tolerance {TOLERANCE:g}")
    print(
        f"{'':>22}{'ms':>8}{'calls':>7}{'rows':>8}{'rms error':>11}{'max':>9}   times torchdiffeq, torchode"
    )
    rival = min(times["torchode dopri5"], times["torchode tsit5"])

    def error(run: Callable[[], Tensor]) -> Tensor:
        net.calls = net.rows = 0
        return (run().double() - exact).abs() / exact.square().mean().sqrt()

    for name, run in runs.items():
        e, mine = error(run), times[name]
        line = f"{name:>22}{mine * 1e3:8.1f}{net.calls:7d}{net.rows:8d}{e.square().mean().sqrt():11.1e}"
        print(f"{line}{e.max():9.1e}   {times['torchdiffeq dopri5'] / mine:5.2f} {rival / mine:5.2f}")
    ours = runs["sdediff model"]
    aim = float(error(ours).square().mean().sqrt())
    for name, solve in {
        "torchdiffeq": lambda tol: with_torchdiffeq(drift, start, ends, tol),
        "torchode dopri5": lambda tol: with_torchode(drift, start, ends, tol, "dopri5"),
    }.items():
        for tol in (TOLERANCE * 0.5**k for k in range(8)):  # float32 gives no more
            matched = float(error(partial(solve, tol)).square().mean().sqrt())
            if matched <= aim:
                break
        pair = interleaved({"ours": ours, "theirs": partial(solve, tol)})
        print(
            f"{name:>22} at {tol:.0e}: rms error {matched:.1e}, {pair['theirs'] / pair['ours']:.2f} as long"
        )


def overhead() -> None:
    """Microseconds an evaluation of a drift that costs next to nothing, the drift taken off."""

    def drift(t: Tensor, x: Tensor) -> Tensor:
        return torch.sin(8 * x)

    x, calls = torch.linspace(-2, 2, 2 * BATCH).view(BATCH, 2), 0

    def counted(t: Tensor, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return drift(t, x)

    ends = torch.tensor([0.0, 1.0])
    runs: dict[str, Callable[[Callable[[Tensor, Tensor], Tensor]], Tensor]] = {
        "sdediff": lambda f: solvers.solve(solvers.ODE(f), x, (0.0, 1.0)).x,
        "torchdiffeq": lambda f: with_torchdiffeq(f, x, ends, 1e-5),
        "torchode": lambda f: with_torchode(f, x, ends, 1e-5, "dopri5"),
    }
    times = interleaved({name: (lambda run=run: run(drift)) for name, run in runs.items()})  # type: ignore[misc]
    alone = interleaved({"drift": lambda: torch.stack([drift(ends, x) for _ in range(100)])})["drift"] / 100
    print(f"\noverhead, microseconds an evaluation (the drift's own {alone * 1e6:.1f} taken off)")
    for name, run in runs.items():
        calls = 0
        run(counted)
        print(f"{name:>22}{(times[name] / calls - alone) * 1e6:8.1f}   ({calls} evaluations)")


def mixed() -> None:
    """Network rows of 240 easy samples and 16 that oscillate 25 times as fast."""
    net = Net().double()
    rate = torch.ones(BATCH, 1, dtype=F64)
    rate[::16] = 25.0
    x = torch.randn(BATCH, 2, dtype=F64, generator=torch.Generator().manual_seed(0))

    def drift(t: Tensor, x: Tensor, rate: Tensor = rate) -> Tensor:
        turned = torch.stack([x[:, 1], -x[:, 0]], 1)
        return rate * (turned + 0.1 * torch.tanh(net(x, t.expand(len(x)))))

    problem, ends = solvers.ODE(drift, (rate,)), torch.tensor([0.0, 2.0], dtype=F64)
    exact = solvers.solve(problem, x, (0.0, 2.0), "dopri8", rtol=1e-12, atol=1e-12).x

    def measure(run: Callable[[], Tensor]) -> tuple[float, float, int]:
        net.rows = 0
        error = run() - exact
        return float(error.square().mean().sqrt()), float(error.abs().max()), net.rows

    print("\n240 easy and 16 stiff samples: rms error, largest error, network rows")
    ours = measure(lambda: solvers.solve(problem, x, (0.0, 2.0), "dopri5", rtol=1e-5, atol=1e-5).x)
    peers = {tol: measure(lambda tol=tol: with_torchdiffeq(drift, x, ends, tol)) for tol in  # type: ignore[misc]
             [1e-5 * 2.0**k for k in range(5, -8, -1)]}  # fmt: skip
    ode = measure(lambda: with_torchode(drift, x, ends, 1e-5, "dopri5"))
    same = peers[1e-5]
    for name, row in (("sdediff dopri5", ours), ("torchdiffeq dopri5", same), ("torchode dopri5", ode)):
        print(f"{name:>22}{row[0]:10.1e}{row[1]:10.1e}{row[2]:8d}   {row[2] / ours[2]:.2f}")
    for k, what in ((0, "rms"), (1, "largest")):
        matched = next((row for row in peers.values() if row[k] <= ours[k]), None)
        if matched is not None:
            print(f"{'torchdiffeq, matched':>22}{matched[0]:10.1e}{matched[1]:10.1e}{matched[2]:8d}   "
                  f"{matched[2] / ours[2]:.2f} ({what} error)")  # fmt: skip


def clocks() -> None:
    """Evaluations for 1e-4 of error: in Gaussian coordinates, and in x and t, of exact mixtures."""
    targets = {
        "eight Gaussians": reference.eight_gaussians(dtype=F64),
        "3 in 2 dimensions": reference.random_mixture(2, 3, seed=0, dtype=F64),
        "10 in 8 dimensions": reference.random_mixture(8, 10, seed=1, dtype=F64),
        "product, d=16": reference.random_product(16, 3, seed=0, dtype=F64),
    }
    processes = (
        sdediff.VP(),
        sdediff.SubVP(),
        sdediff.VE(),
        sdediff.EDM(),
        sdediff.Cosine(),
        sdediff.RectifiedFlow(),
    )
    print("\nevaluations (mean of the samples) for a relative rms error of 1e-4: coordinates / t")
    print(f"{'':>20}" + "".join(f"{type(p).__name__:>15}" for p in processes))
    for name, target in targets.items():
        cells = []
        for p in processes:
            problem = target.model(p).problem()
            x = p.perturb(target.sample(32, seed=1), p.t_max, seed=3)[0]
            span = (p.t_max, p.t_min)
            exact = solvers.solve(problem, x, span, "dopri8", rtol=1e-11, atol=1e-11).x
            plain = solvers.ODE(problem.velocity)
            counts = [evaluations(q, x, span, exact) for q in (problem, plain)]
            cells.append(f"{counts[0]:7.0f} /{counts[1]:4.0f}")
        print(f"{name:>20}" + "".join(f"{c:>15}" for c in cells), flush=True)


def evaluations(
    problem: solvers.SemiLinear | solvers.ODE, x: Tensor, span: tuple[float, float], exact: Tensor
) -> float:
    """Interpolated between tolerances, logarithms of both."""
    points = []
    for tol in (3e-4, 3e-5, 3e-6):
        sol = solvers.solve(problem, x, span, rtol=tol, atol=tol)
        error = (sol.x - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        points.append([float(error.log()), 1.0, float(sol.nfe.double().mean().log())])
    table = torch.tensor(points, dtype=F64)
    slope, offset = torch.linalg.lstsq(table[:, :2], table[:, 2:]).solution.flatten().tolist()
    return float(torch.tensor(1e-4, dtype=F64).log().mul(slope).add(offset).exp())


def main() -> None:
    """Print every comparison."""
    torch.set_num_threads(2)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {REPEATS} interleaved repeats")
    process = sdediff.VP(t_min=1e-3)
    model = trained(process)
    with torch.no_grad():
        for up, title in ((False, "decode (as sample)"), (True, "encode")):
            data = reference.eight_gaussians().sample(BATCH, seed=5)
            start = (
                data * float(process.alpha(process.t_min)) if up else process.perturb(data, 1.0, seed=9)[0]
            )
            model.double()
            span = (process.t_min, process.t_max) if up else (process.t_max, process.t_min)
            exact = solvers.solve(model.problem(), start.double(), span, "dopri8", rtol=1e-9, atol=1e-9).x
            model.float()
            compare(title, model, start, exact, up)
        overhead()
        mixed()
        clocks()


if __name__ == "__main__":
    main()
