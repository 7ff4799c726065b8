"""Training in several processes: the same run as in one, and how it ends. One interpreter forks them all."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import sdediff
from sdediff import group, training
from sdediff.networks import MLP
from sdediff.training import Adaptive, DenoisingLoss, LearnedUncertainty, Power, StableTargets, fit
from sdediff.training.checkpoint import Checkpoint
from sdediff.training.folder import RunFolder

STEPS, ROWS, BATCH = 12, 100, 33  # a batch that two processes cannot halve; three epochs

#: Largest difference, absolute and relative, between runs in float32 and in float64.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


# -- what is trained, here and there ------------------------------------------------------------------------


def make_model(**options: Any) -> sdediff.DiffusionModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(dim=2, hidden=16, blocks=1, time_dim=8, **options)
        nn.init.normal_(net.output.weight, std=0.2)  # every weight has a gradient from the first step on
    return sdediff.DiffusionModel(net, sdediff.VP(), "edm", (2,))


def make_data() -> Tensor:
    return torch.linspace(0, 9, 2 * ROWS).reshape(ROWS, 2).sin() * torch.tensor([1.0, 3.0])


class Drawing(Dataset[Tensor]):
    """Rows with noise of their own, from torch's global generator."""

    x = make_data()

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> Tensor:
        return self.x[row] + 0.1 * torch.randn(2)


def jitter(x: Tensor, seed: int, indices: Tensor) -> Tensor:
    return x + 0.1 * torch.sin(seed % 1000 + indices[:, None] + torch.arange(2.0))


def constant(step: int) -> float:
    """A learning rate at which twelve steps move the weights by a tenth."""
    return 0.01


LABELS = torch.arange(ROWS) % 3
CASES: dict[str, dict[str, Any]] = {
    "plain": {
        "val": make_data()[:20],
        "averages": [Power(0.1)],
        "snapshot_every": 6,
        "trackers": ["tensorboard"],
    },
    "float64": {"dtype": torch.float64, "x": make_data().double()},
    "adaptive": {"loss": "likelihood-adaptive"},
    "uncertainty": {"loss": LearnedUncertainty(features=8), "val": make_data()[:20]},
    "stable": {"loss": "stable-targets", "network": {"num_classes": 3}, "cond": LABELS},
    "everything": {
        "loss": DenoisingLoss(proposal=Adaptive(), targets=StableTargets()),
        "dtype": torch.float64,
        "accumulate": 3,
        "augment": jitter,
        "clip": 0.1,
    },
    "accumulated": {"accumulate": 3},
    "dropout": {"network": {"num_classes": 3, "optional_cond": True}, "cond": LABELS, "cond_dropout": 0.5},
    "dataset": {"x": Drawing()},
    "many at once": {"x": TensorDataset(make_data()), "workers": 1},
    "loader": {"x": DataLoader(TensorDataset(make_data()), 30, shuffle=True), "batch_size": 256},
}


def train(name: str, out: Path, steps: int = STEPS, **more: Any) -> training.TrainingResult:
    options = (
        {"x": make_data(), "batch_size": BATCH, "network": {}, "dtype": torch.float32} | CASES[name] | more
    )
    model = make_model(**options.pop("network")).to(options.pop("dtype"))
    given = {"log_every": 4, "checkpoint_every": 4, "keep": 9, "progress": False, "lr": constant}
    return fit(model, options.pop("x"), steps=steps, out=out, **(given | options))


class Event:
    """An augmentation that does something to row 25 of step 9's batch, in the last process."""

    def __init__(self, happen: Callable[[], Any]) -> None:
        self.happen, self.calls = happen, -1  # the first call learns the units

    def __repr__(self) -> str:
        return "event"

    def __call__(self, x: Tensor, seed: int, indices: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 10 and 25 in indices:
            x[indices == 25] = self.happen() or 0.0
        return x


def not_a_number() -> float:
    return float("inf")


def fail() -> None:
    raise OSError("the disk has gone")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    for _ in range(2):  # a launcher passes on what its processes have had already
        os.kill(os.getpid(), signal.SIGTERM)


# -- the processes ------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def forked(size: int, work: Callable[[Path, int], None], folder: Path, **environment: str) -> None:
    """Let so many processes do some work, as a launcher would start them."""
    launch = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    port, running = free_port(), []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
            os.environ.update(launch | own | environment)
            status = 1
            try:
                work(folder, rank)
                status = 0
            except Exception:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        running.append(pid)
    ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in running]
    (folder / f"{work.__name__}.json").write_text(json.dumps(ended))


def end_of(run: Callable[[], Any], folder: Path, rank: int) -> None:
    """Write down how a run ended, and whether this process tells of it."""
    os.environ["TORCHELASTIC_RESTART_COUNT"] = folder.name  # a launch fails once
    try:
        run()
        ended: tuple[Any, ...] = ("", "", True)
    except SystemExit as error:
        ended = ("SystemExit", error.code, group.silent())
    except Exception as error:
        ended = (type(error).__name__, str(error), group.silent(error))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"ended.{rank}.json").write_text(json.dumps(ended))


def same_runs(folder: Path, rank: int) -> None:
    for name in CASES:
        train(name, folder / "two" / name)
    train("everything", folder / "half", 8)
    end_of(lambda: train("adaptive", folder / "stopped", augment=Event(terminate)), folder / "stopped", rank)
    apart = folder / ("half" if rank == 0 else "nowhere")
    end_of(lambda: train("everything", apart, resume=True), folder / "apart", rank)
    end_of(lambda: train("adaptive", folder / "nan", augment=Event(not_a_number)), folder / "nan", rank)


def by_three(folder: Path, rank: int) -> None:
    train("everything", folder / "three", resume=True)


def one_fails(folder: Path, rank: int) -> None:
    end_of(lambda: train("adaptive", folder / "fails", augment=Event(fail)), folder / "fails", rank)


def one_is_killed(folder: Path, rank: int) -> None:
    end_of(lambda: train("adaptive", folder / "killed", augment=Event(kill)), folder / "killed", rank)


def in_shards(folder: Path, rank: int) -> None:
    for name in SHARDED:
        train(name, folder / "shards" / name)


SHARDED = ("plain", "uncertainty", "float64", "stable")


def worker(folder: Path) -> None:
    forked(2, same_runs, folder)
    shutil.copytree(folder / "half", folder / "three")
    forked(3, by_three, folder)
    forked(2, one_fails, folder)
    forked(2, one_is_killed, folder)
    asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    forked(2, in_shards, folder, **asked)  # as accelerate launch --use_fsdp --fsdp_version 2 says it


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the processes left."""
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, __file__, str(folder)]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # as torchrun sets it for each of several
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=alone)
    assert done.returncode == 0, done.stderr
    ended = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    killed = {"one_is_killed": [0, -signal.SIGKILL]}
    assert ended == {name: [0] * len(codes) for name, codes in ended.items()} | killed, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return folder


# -- tests --------------------------------------------------------------------------------------------------


def gap(first: Any, second: Any) -> float:
    """The largest difference between numbers in two nests, over 1 + size; inf for another form."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return gap(list(first.values()), [second[key] for key in first])
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        return max((gap(*pair) for pair in zip(first, second, strict=True)), default=0.0)
    if isinstance(first, Tensor) and first.shape == second.shape and first.dtype == second.dtype:
        return float(((first - second).abs() / (1 + second.abs())).max()) if first.numel() else 0.0
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second) / (1 + abs(second))
    return 0.0 if type(first) is type(second) and first == second else math.inf


def files(folder: Path) -> list[str]:
    """Names of a run's files, without those of trackers, which name theirs by machine and time."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if "tfevents" not in name and "hparams" not in name)


def assert_same(first: Path, second: Path, tolerance: float) -> None:
    """The same files: every checkpoint, log and model, up to the tolerance."""
    assert files(first) == files(second)
    for one, two in zip(RunFolder(first).checkpoints(), RunFolder(second).checkpoints(), strict=True):
        stored = [vars(Checkpoint.load(path)) for path in (one, two)]
        for each in stored:
            each["progress"] |= {
                "seconds": 0,
                "history": [h | {"seconds": 0} for h in each["progress"]["history"]],
            }
        assert gap(*stored) < tolerance
    models = [sdediff.load(folder / "model.safetensors").state_dict() for folder in (first, second)]
    assert gap(dict(models[0]), dict(models[1])) < tolerance
    logs = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in read_log(f)] for f in (first, second)
    ]
    assert gap(*logs) < tolerance


def read_log(folder: Path) -> list[dict[str, float]]:
    with (folder / "log.csv").open() as file:
        return [
            {k: float(v or "nan") if v else -1.0 for k, v in line.items()} for line in csv.DictReader(file)
        ]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one_does(name: str, runs: Path, tmp_path: Path) -> None:
    """Weights, averages, optimiser, what the loss has learnt, log: the largest difference of them all."""
    train(name, tmp_path)
    assert_same(runs / "two" / name, tmp_path, TOLERANCE[CASES[name].get("dtype", torch.float32)])


@pytest.mark.parametrize("name", SHARDED)
def test_sharded_parameters_train_as_whole_ones_do(name: str, runs: Path, tmp_path: Path) -> None:
    """Checkpoints are written whole, and a single process goes on from them."""
    train(name, tmp_path)
    tolerance = TOLERANCE[CASES[name].get("dtype", torch.float32)]
    assert_same(runs / "shards" / name, tmp_path, tolerance)
    for folder in (runs / "shards" / name, tmp_path):
        train(name, folder, STEPS + 4, resume=True)
    assert_same(runs / "shards" / name, tmp_path, tolerance)


def test_another_number_of_processes_goes_on(runs: Path, tmp_path: Path) -> None:
    """Eight steps by two processes and four by three, or by one, are twelve by one."""
    train("everything", tmp_path)
    shutil.copytree(runs / "half", runs / "one")
    train("everything", runs / "one", resume=True)
    for name in ("one", "three"):
        assert_same(runs / name, tmp_path, TOLERANCE[torch.float64])


def ends(folder: Path) -> list[list[Any]]:
    return [json.loads((folder / f"ended.{rank}.json").read_text()) for rank in (0, 1)]


def test_a_signal_to_one_process_stops_all_after_a_checkpoint(runs: Path) -> None:
    assert ends(runs / "stopped") == [
        ["SystemExit", 128 + signal.SIGTERM, silent] for silent in (False, True)
    ]
    assert RunFolder(runs / "stopped").latest().stem == "000000010"  # type: ignore[union-attr]


def test_a_failure_ends_all_with_one_sentence_and_the_last_checkpoint_intact(runs: Path) -> None:
    """Of the batch, of one process alone, of one that is killed, and of processes that see other files."""
    sentence = "step 9: row 25 of the batch has NaN or infinite values: remove or fill them"
    assert [end[:2] for end in ends(runs / "nan")] == [["ValueError", sentence]] * 2
    first, second = ends(runs / "fails")
    assert first[0] == "Gone" and second[:2] == ["OSError", "the disk has gone"] and not second[2]
    apart = ends(runs / "apart")
    assert apart[0][:2] == apart[1][:2] and "it differs in step (8, now 0)" in apart[0][1]
    for name in ("nan", "fails", "apart"):
        assert sorted(end[2] for end in ends(runs / name)) == [False, True], name
    kind, message, silent = json.loads((runs / "killed" / "ended.0.json").read_text())
    assert (
        kind == "Gone" and "another process of this launch has ended without a word" in message and not silent
    )
    for name in ("nan", "fails", "killed"):
        stored = RunFolder(runs / name).load()
        assert stored is not None and stored.step == 8
        assert all(bool(v.isfinite().all()) for v in stored.weights.values())


def test_tensorboard_shows_what_the_log_says(runs: Path) -> None:
    """To float32, which is what it keeps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = runs / "two" / "plain"
    shown = EventAccumulator(str(folder / folder.name)).Reload()
    log = read_log(folder)
    for name in ("loss", "val_loss", "lr", "seconds"):
        points = shown.Scalars(name)
        assert [point.step for point in points] == [line["step"] for line in log] == [4, 8, 12]
        assert [point.value for point in points] == pytest.approx([line[name] for line in log], rel=1e-6)


# -- the command under launchers ----------------------------------------------------------------------------

WORDS = (
    "train x.npy --network.hidden 16 --network.time_dim 16 --network.blocks 1 --batch_size 33 --log_every 4"
)
TORCHRUN = "torch.distributed.run --standalone --nproc-per-node 2 -m sdediff --"
ACCELERATE = "accelerate.commands.launch --num_processes 2 --num_machines 1 --main_process_port {port}"
#: What starts two processes: on machines without GPUs --multi_gpu computes on the CPUs.
LAUNCHERS = {
    "torchrun": TORCHRUN,
    "accelerate": f"{ACCELERATE} --multi_gpu -m sdediff",
    "shards": f"{ACCELERATE} --use_fsdp --fsdp_version 2 -m sdediff",
}


def started(launcher: str, options: str, folder: Path) -> subprocess.Popen[str]:
    """The command, started in a folder with the data."""
    np.save(folder / "x.npy", make_data().numpy())
    words = f"{launcher} {WORDS} {options}".format(port=free_port()).split()
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(running: subprocess.Popen[str]) -> tuple[str, str]:
    """What it said; it is not left behind."""
    try:
        return running.communicate(timeout=240)
    finally:
        running.kill()


def test_a_signal_to_the_launcher_leaves_a_run_that_one_process_goes_on_with(tmp_path: Path) -> None:
    running = started(TORCHRUN, "--out run --steps 1000000", tmp_path)
    for _ in range(2400):
        if running.poll() is not None or (tmp_path / "run" / "log.csv").exists():
            break
        time.sleep(0.1)
    running.terminate()
    out, err = finished(running)
    assert out.count("model     ") == 1 and out.count("stopped   by SIGTERM; step ") == 1, err
    stopped = RunFolder(tmp_path / "run").load()
    assert stopped is not None and stopped.step >= 4 and not (tmp_path / "run" / "model.safetensors").exists()
    out, err = finished(started("sdediff", f"--out run --resume --steps {stopped.step + 4}", tmp_path))
    assert f"trained   {stopped.step + 4} steps" in out, err
    log = read_log(tmp_path / "run")
    assert [line["step"] for line in log[:-1]] == list(range(4, stopped.step + 4, 4))


@pytest.mark.slow
def test_the_command_writes_the_same_files_once_under_every_launcher(tmp_path: Path) -> None:
    for name, launcher in {"alone": "sdediff", **LAUNCHERS}.items():
        out, err = finished(started(launcher, f"--out {name} --steps 12", tmp_path))
        assert out.count("trained   12 steps") == out.count("wrote     ") == 1, err
        assert_same(tmp_path / name, tmp_path / "alone", TOLERANCE[torch.float32])


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
