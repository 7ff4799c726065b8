"""Sampling and likelihood shared out over processes: one launch of two, against this process alone."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sdediff
import solvers
from sdediff import sharding
from sdediff.group import Group, launched
from sdediff.likelihood import LogLikelihood, discrete_log_likelihood, elbo
from sdediff.sampling import SampleResult, encode
from sdediff.training import Averages, Exponential, Power
from solvers import Solution

ROWS = 5


# -- what is computed, here and there -----------------------------------------------------------------------


def elementwise() -> sdediff.DiffusionModel:
    """Its values do not depend on the batch in any bit, so neither do samples made of the same noise."""
    return sdediff.from_callable(lambda x, t: -x, process=sdediff.VP(), prediction="score", data_shape=(3,))


def network(cond_dim: int = 1) -> sdediff.DiffusionModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = sdediff.networks.MLP(dim=2, hidden=16, blocks=1, time_dim=8, cond_dim=cond_dim)
        nn.init.normal_(net.output.weight, std=0.2)
    return sdediff.DiffusionModel(net, sdediff.VP(), data_shape=(2,)).double()


def rows(n: int = ROWS) -> Tensor:
    return torch.linspace(-2, 2, 2 * n, dtype=torch.float64).reshape(n, 2).sin()


LEVELS = sdediff.Quantisation(levels=4)
CASES: dict[str, Callable[[], Any]] = {
    "noise": lambda: sharding.sample(elementwise(), 7, "euler-maruyama", steps=5, seed=3),
    "named": lambda: sharding.sample(elementwise(), 3, "euler-maruyama", steps=5, indices=[9, 2, 5]),
    "one": lambda: sharding.sample(elementwise(), 1, "euler-maruyama", steps=5),
    "conditions": lambda: sharding.sample(
        network(), ROWS, "euler-maruyama", steps=8, cond=rows()[:, :1], return_solution=True
    ),
    "log_prob": lambda: sharding.sample(network(), ROWS, cond=torch.ones(1), return_log_prob=True),
    "batches": lambda: sharding.sample(network(0), 9, "heun", steps=6, batch_size=2, dtype=torch.float64),
    "likelihood": lambda: sharding.log_likelihood(network(), rows(), cond=rows()[:, :1]),
    "probes": lambda: sharding.log_likelihood(
        network(0), rows(), divergence=sdediff.Hutchinson(4), indices=[3, 1, 4, 15, 9], nodes=9
    ),
    "numpy": lambda: sharding.log_likelihood(network(0), rows(1).numpy(), "heun", steps=8),
    "bound": lambda: sharding.evaluate(elbo, network(0), rows(), draws=32),
    "discrete": lambda: sharding.evaluate(
        discrete_log_likelihood, network(0), torch.arange(10).reshape(5, 2) % 4, LEVELS, draws=2, nodes=9
    ),
    "latents": lambda: sharding.evaluate(encode, network(0), rows()),
}


def parts(value: Any) -> dict[str, Any]:
    """The tensors and facts in a result."""
    if isinstance(value, Tensor):
        return {"value": value}
    if isinstance(value, tuple | list):
        return {f"{i}.{k}": v for i, each in enumerate(value) for k, v in parts(each).items()}
    if isinstance(value, SampleResult):
        return parts((value.x, value.likelihood))
    assert isinstance(value, LogLikelihood | Solution)
    return {k: str(v) if isinstance(v, str) else v for k, v in vars(value).items()}


# -- the two processes --------------------------------------------------------------------------------------


def nan_in_the_last_row() -> None:
    x = rows()
    x[4, 1] = math.nan
    sharding.log_likelihood(network(0), x)


def failing(x: Tensor, t: Tensor) -> Tensor:
    return torch.where(x > 0.9, math.nan, -x)  # rows() reach that in their last half only


def solver_failure(on_failure: str) -> LogLikelihood:
    model = sdediff.from_callable(failing, process=sdediff.VP(), prediction="score", data_shape=(2,))
    x = torch.tensor([[0.1, 0.1], [0.1, 0.2], [0.2, 0.1], [0.3, 0.1], [2.0, 2.0]], dtype=torch.float64)
    return sharding.log_likelihood(model, x, on_failure=on_failure)


def error_in_one(group: Group) -> None:
    with launched():
        group.together(lambda: 1 / group.rank if group.rank == 0 else 1)


class Odd(Exception):
    """One that a message alone does not make."""

    def __init__(self, message: str, extra: int) -> None:
        super().__init__(message)


def odd_error(group: Group) -> None:
    with launched():
        if not group.main:
            raise Odd("odd", 1)
        group.together(lambda: 0)


def on_main(group: Group) -> None:
    def work() -> None:
        assert group.main
        raise OSError("the disk is full")

    group.on_main(work)


def message_of(work: Callable[[], Any]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def command(line: str) -> tuple[int, str, str]:
    from sdediff import cli

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(line.split())
    return status, out.getvalue(), err.getvalue()


COMMANDS = {
    "sample": "sample model.safetensors --n 7 --solver euler-maruyama --steps 6 --seed 2 --out two.npy",
    "logprob": "logprob model.safetensors x.npy --out two.csv --batch_size 3 --probes 2 --nodes 9",
    "no file": "logprob model.safetensors nowhere.npy --out two.csv",
    "no option": "sample model.safetensors --solvr heun",
    "no folder": "sample model.safetensors --n 2 --steps 2 --solver heun --out nowhere/two.npy",
}


def sharded_averages() -> list[Tensor]:
    """Averages of parameters in shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    layer, mesh = nn.Linear(3, 4), init_device_mesh("cpu", (2,))
    layer.weight = nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)]))
    averages = Averages(layer, (Exponential(0.9, warmup=False), Power(0.1)))
    with torch.no_grad():
        layer.weight.mul_(3)
    averages.update()
    with averages.averaged():
        held = layer.weight.detach().full_tensor()
    averages.load({k: torch.full(v.shape, 7.0) for k, v in averages.state().items()}, 5)
    return [held, layer.weight.detach().full_tensor(), averages.shadows[1]["weight"].full_tensor()]


def worker(folder: Path) -> None:
    group = sharding.current()
    os.chdir(folder)
    found: dict[str, Any] = {name: parts(case()) for name, case in CASES.items()}
    found["main only"] = sharding.sample(elementwise(), 3, to="main") is None
    found["averages"] = sharded_averages()
    with launched():
        found["facts"] = (group.rank, group.size, group.device.type, group.on_main(lambda: group.rank))
    found["errors"] = [
        message_of(nan_in_the_last_row),
        message_of(lambda: solver_failure("raise")),
        message_of(lambda: error_in_one(group)),
        message_of(lambda: odd_error(group)),
        message_of(lambda: on_main(group)),
    ]
    found["nan"] = solver_failure("ignore").log_prob
    found["commands"] = {name: command(line) for name, line in COMMANDS.items()}
    torch.save(found, f"{group.rank}.pt")
    group.agree()
    if group.main:
        with contextlib.suppress(FileNotFoundError):
            Path("end.txt").write_text(message_of(lambda: group.together(lambda: 0)))
    else:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """What each of two processes found, and the folder they wrote to."""
    folder = tmp_path_factory.mktemp("pair")
    network(0).float().save(folder / "model.safetensors")
    np.save(folder / "x.npy", rows(8).float().numpy())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={**os.environ, **launch, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        told = [process.communicate(timeout=120)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert running[0].returncode == 0, told[0]
    assert running[1].returncode == -signal.SIGKILL, told[1]
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    return folder, first, second


# -- tests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_the_values_of_one(pair: Any, name: str) -> None:
    """Bit for bit where arithmetic is the same for every batch, else to 1e-10; on every process."""
    _, first, second = pair
    alone = parts(CASES[name]())
    for found in (first[name], second[name]):
        assert found.keys() == alone.keys()
        for field, value in alone.items():
            if not isinstance(value, Tensor):
                assert found[field] == value, field
            elif name in ("noise", "named", "one"):
                assert torch.equal(found[field], value)
            else:
                assert torch.allclose(found[field], value, rtol=1e-10, atol=1e-10, equal_nan=True), field


def test_alone_everything_is_as_without_sharding() -> None:
    group = sharding.current()
    assert (group.rank, group.size, group.main, group.share(5)) == (0, 1, True, slice(0, 5))
    assert torch.equal(CASES["noise"](), elementwise().sample(7, "euler-maruyama", steps=5, seed=3))
    with pytest.raises(solvers.SolverError, match="1 of 2 samples failed"):
        x0 = sdediff.from_callable(
            lambda x, t: torch.where(x[:, :1] > 0, math.nan, 0 * x),
            process=sdediff.VP(),
            prediction="x0",
            data_shape=(1,),
        )
        sharding.sample(x0, 2, "heun", steps=4, on_failure="raise")
    with pytest.raises(ValueError, match="on_failure='never' is not known"):
        sharding.sample(elementwise(), 2, on_failure="never")
    with pytest.raises(ValueError, match="to='rank 0' is not known"):
        sharding.sample(elementwise(), 2, to="rank 0")
    with pytest.raises(ValueError, match="x is empty: give at least one row"):
        sharding.evaluate(encode, elementwise(), torch.empty(0, 3))
    with pytest.raises(TypeError, match="a str cannot be joined with those of other rows"):
        sharding.evaluate(lambda model, x, cond: "a", elementwise(), torch.zeros(2, 3))
    with pytest.warns(UserWarning, match=r"1 of 5 samples failed, the first at row 4 \(NON_FINITE\)"):
        solver_failure("warn")


def test_shares_cover_all_rows_once() -> None:
    for total in (0, 1, 3, 7, 8, 1000):
        covered = [i for rank in range(3) for i in range(total)[Group(rank, 3).share(total)]]
        assert covered == list(range(total))


def test_results_and_errors_are_those_of_all(pair: Any) -> None:
    _, first, second = pair
    assert first["facts"] == (0, 2, "cpu", 0) and second["facts"] == (1, 2, "cpu", 0)
    assert (first["main only"], second["main only"]) == (False, True)
    assert torch.isnan(second["nan"]).tolist() == [False] * 4 + [True]
    kinds = [each.split(":")[0] for each in first["errors"]]
    assert kinds == ["ValueError", "RuntimeError", "ZeroDivisionError", "RuntimeError", "OSError"]
    assert second["errors"][:3] == first["errors"][:3] and second["errors"][4] == first["errors"][4]
    assert "row 4" in first["errors"][0] and "first at row 4" in first["errors"][1]
    assert second["errors"][3] == "Odd: odd" and first["errors"][3] == "RuntimeError: odd"


def test_averages_of_sharded_parameters(pair: Any) -> None:
    for found in pair[1:]:
        held, own, loaded = found["averages"]
        assert torch.allclose(held, torch.full((4, 3), 0.9 + 0.1 * 3)) and torch.equal(
            own, torch.full((4, 3), 3.0)
        )
        assert torch.equal(loaded, torch.full((4, 3), 7.0))


def test_commands_write_and_speak_once(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, first, second = pair
    monkeypatch.chdir(folder)
    for name, line in COMMANDS.items():
        status, out, err = first["commands"][name]
        assert second["commands"][name][1:] == ("", ""), name
        assert second["commands"][name][0] == status
        alone = command(line.replace("two", "one"))
        assert alone[0] == status
        if name in ("sample", "logprob"):
            assert status == 0 and "wrote     two" in out
            numbers = [re.sub(r" in .* s\n", "", text) for text in (out, alone[1])]
            assert numbers[0].replace("two", "one").replace(", by 2 processes", "") == numbers[1]
            assert ", by 2 processes" in out
        else:
            assert out == "" and err.replace("two", "one") == alone[2] and err.count("\n") == 1
    a, b = np.load("one.npy"), np.load("two.npy")
    assert a.shape == (7, 2) and np.allclose(a, b, rtol=0, atol=1e-6)
    assert (folder / "one.csv").read_text() == (folder / "two.csv").read_text()  # batches are the same
    assert (folder / "two.calibration.png").exists() and not (folder / "two.csv.partial").exists()


def test_a_process_that_is_killed_ends_the_others(pair: Any) -> None:
    assert "another process of this launch has ended without a word" in (pair[0] / "end.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
        # With --cpu it starts several processes through MPI alone; without a GPU this computes on CPUs.
        ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
    ],
)
def test_launchers_start_the_commands(pair: Any, launcher: list[str], tmp_path: Path) -> None:
    line = ["-m", "sdediff", "--", *COMMANDS["sample"].split()[:-1], str(tmp_path / "x.npy")]
    done = subprocess.run(
        [sys.executable, *launcher, *line],
        cwd=pair[0],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 1 and ", by 2 processes" in done.stdout
    assert np.array_equal(np.load(tmp_path / "x.npy"), np.load(pair[0] / "two.npy"))


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
