"""sdediff logprob: all fields, rows a batch at a time, interruption at any moment, and honest figures."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

import sdediff
from sdediff import viz
from sdediff.cli import logprob_report, logprob_rows, main, tables
from sdediff.cli.logprob_report import Running, histogram, summarise
from sdediff.cli.logprob_rows import Evaluation
from sdediff.cli.logprob_table import Table, columns, likelihood
from sdediff.likelihood import LogLikelihood
from sdediff.likelihood.calibration import LEVELS, Calibration
from sdediff.viz import Bins

FAST = "--solver heun --steps 8 --plots false"
ROWS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model, and the same rows in several kinds of file."""
    path = tmp_path_factory.mktemp("logprob")
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(ROWS, 2)).astype(np.float32)
    np.save(path / "x.npy", rows)
    np.savez_compressed(path / "x.npz", x=rows)
    np.savetxt(path / "x.csv", rows, delimiter=",", fmt="%.9g")
    np.save(path / "levels.npy", rng.integers(0, 4, size=(ROWS, 2)))
    torch.manual_seed(0)
    net = sdediff.networks.MLP(dim=2, hidden=8, blocks=1, time_dim=8)
    model = sdediff.DiffusionModel(net, sdediff.VP(), prediction="edm", data_shape=(2,))
    sdediff.fit(model, torch.from_numpy(rows), steps=3, batch_size=16, progress=False)
    model.save(path / "model.safetensors")
    return path


@pytest.fixture
def run(folder, monkeypatch, capsys, tmp_path):
    """Run `sdediff logprob model.safetensors ...` with its output in a folder of its own."""
    monkeypatch.chdir(folder)

    def call(line: str, out: str = "l.csv"):
        capsys.readouterr()
        words = ["logprob", "model.safetensors", *line.split(), "--out", str(tmp_path / out)]
        return main(words), *capsys.readouterr()

    return call


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def model(folder: Path) -> sdediff.DiffusionModel:
    return sdediff.load(folder / "model.safetensors")


# -- the table


def test_the_table_holds_every_field(run, folder, tmp_path):
    status, out, _ = run("x.npy --limit 5 --probes 4 --nodes 9 --bin_width 0.5 --plots false")
    assert status == 0 and "density/unbiased, prior matched, t_span (1e-05, 1)" in out
    written = table(tmp_path / "l.csv")
    x = sdediff.data.read("x.npy")[:5]
    result = model(folder).log_likelihood(x, divergence=sdediff.Hutchinson(4), nodes=9)
    expected = {"log_prob", "std_error", "solver_error", "degrees", "nfe", "divergence_evaluations"}
    for name in expected:
        assert [float(row[name]) for row in written] == getattr(result, name).tolist()
    low, high = result.interval(0.95)
    assert [float(row["low"]) for row in written] == low.tolist()
    assert [float(row["high"]) for row in written] == high.tolist()
    assert [float(row["bits_per_dim"]) for row in written] == result.bits_per_dim(0.5).tolist()
    for name in ("prior_mismatch", "truncation"):
        value = getattr(result, name)
        assert (name in written[0]) == (value is not None)
        assert value is None or [float(row[name]) for row in written] == value.tolist()
    plain = {
        "row": "0",
        "status": "OK",
        "kind": "density/unbiased",
        "prior": "matched",
        "dim": "2",
        "t_max": "1",
    }
    assert {name: written[0][name] for name in plain} == plain
    assert float(written[0]["t_min"]) == 1e-5
    again = likelihood(written)
    assert torch.equal(again.log_prob, result.log_prob) and torch.equal(again.interval()[0], low)
    assert (again.kind, again.prior, again.t_span, again.dim) == (result.kind, result.prior, result.t_span, 2)
    assert torch.equal(again.status, result.status)


def test_a_failed_row_has_its_status_and_is_left_out_of_the_mean(run, tmp_path, monkeypatch):
    honest = sdediff.DiffusionModel.log_likelihood

    def broken(self, x, **options):
        r = honest(self, x, **options)
        r.log_prob[0], r.status[0] = math.nan, 3
        return r

    monkeypatch.setattr(sdediff.DiffusionModel, "log_likelihood", broken)
    status, out, _ = run(f"x.npy --limit 4 {FAST}")
    written = table(tmp_path / "l.csv")
    assert status == 0 and "failed    1 of 4 rows" in out and "mean of 3 rows" in out
    assert (written[0]["status"], written[0]["log_prob"]) == ("MAX_NFE", "nan")


def test_files_of_every_kind_give_the_same_table(run, tmp_path):
    texts = set()
    for i, data in enumerate(("x.npy", "x.npz:x", "x.csv")):
        assert run(f"{data} --batch_size 7 {FAST}", f"{i}.csv")[0] == 0
        texts.add((tmp_path / f"{i}.csv").read_bytes())
    assert len(texts) == 1
    assert len(table(tmp_path / "0.csv")) == ROWS


def test_levels_bound_discrete_probabilities(run, folder, tmp_path):
    line = "levels.npy --limit 6 --levels 4 --draws 3 --importance_weighted --rtol 1e-4 --atol 1e-4"
    status, out, _ = run(f"{line} --plots false")
    assert status == 0 and "probability/lower bound" in out and "bits/dim" in out
    x = sdediff.data.read("levels.npy")[:6]
    result = model(folder).discrete_log_likelihood(
        x, sdediff.likelihood.Quantisation(4), draws=3, importance_weighted=True, rtol=1e-4, atol=1e-4
    )
    written = table(tmp_path / "l.csv")
    assert [float(row["log_prob"]) for row in written] == result.log_prob.tolist()
    assert [float(row["bits_per_dim"]) for row in written] == result.bits_per_dim().tolist()
    assert run(f"{line} --plots true --check_rows 4")[0] == 0
    assert (tmp_path / "l.calibration.png").exists()


MISTAKES = {
    "levels.npy --levels 4 --bin_width 1": (2, "--bin_width is for densities"),
    "levels.npy --levels 4 --dequantise": (2, "--dequantise is for densities"),
    "levels.npy --draws 4": (2, "--draws is for discrete data: give --levels"),
    "levels.npy --levels 3": (1, "holds 3, which is none of the 3 levels"),
    "x.npy --levels 4": (1, "none of the 4 levels"),
    "x.npy --dequantise": (1, "needs integer levels"),
    "x.npy --divergence exact --pattern fresh": (2, "--pattern belongs to --divergence hutchinson"),
    "x.npy --pattern never": (2, "--pattern was given 'never': give one of"),
    "x.npy --check_rows -1": (1, "check_rows=-1"),
    "x.npz:y": (1, "no array 'y': it holds x"),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_nothing(run, tmp_path, line):
    status, _, err = run(line)
    expected, words = MISTAKES[line]
    assert (status, err.count("\n")) == (expected, 1) and words in err
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_with_a_late_row_is_said_before_the_work(run, folder, tmp_path):
    x = np.load("x.npy")
    x[33, 1] = np.inf
    np.save(tmp_path / "late.npy", x)
    status, _, err = run(f"{tmp_path / 'late.npy'} --batch_size 4 {FAST}")
    assert status == 1 and "first in row 33" in err
    assert not (tmp_path / "l.csv.partial").exists()


# -- interruption


def interrupted(monkeypatch, after: int, error: type[BaseException] = KeyboardInterrupt) -> None:
    """Let the batch number `after` fail, once."""
    calls, honest = [], Evaluation.__call__

    def call(self, x, names):
        calls.append(names)
        if len(calls) == after + 1:
            raise error
        return honest(self, x, names)

    monkeypatch.setattr(Evaluation, "__call__", call)


LINE = f"x.npy --batch_size 8 --divergence hutchinson --seed 3 {FAST}"


@pytest.fixture
def whole(run, tmp_path):
    """Text of the table of an uninterrupted run."""
    assert run(LINE, "whole.csv")[0] == 0
    return (tmp_path / "whole.csv").read_bytes()


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(run, tmp_path, monkeypatch, whole):
    interrupted(monkeypatch, after=3)
    status, _, err = run(LINE)
    assert status == 130
    assert "24 of 40 rows are kept in" in err and "the same command goes on" in err
    assert not (tmp_path / "l.csv").exists()
    status, out, _ = run(LINE)
    assert status == 0 and "resumed   24 of 40 rows were done already" in out
    assert (tmp_path / "l.csv").read_bytes() == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["l.csv", "whole.csv"]


def test_a_file_cut_anywhere_goes_on_to_the_same_table(run, tmp_path, monkeypatch, whole):
    interrupted(monkeypatch, after=3)
    run(LINE)
    partial = tmp_path / "l.csv.partial"
    content = partial.read_bytes()
    begin = content.index(b"\n") + 1
    lines = [i + 1 for i in range(begin, len(content)) if content[i : i + 1] == b"\n"]  # where each ends
    header, batch = lines[0], lines[8]
    # Nothing but its first line; within and after the names; in the first batch; at, just before and after
    # the end of a batch; within the last line.
    for cut in (
        begin,
        begin + 5,
        header,
        header + 3,
        batch - 1,
        batch,
        batch + 1,
        lines[13],
        len(content) - 2,
    ):
        partial.write_bytes(content[:cut])
        done = max(n for n in (0, 8, 16, 24) if n == 0 or cut >= lines[n])
        status, out, _ = run(LINE)
        assert status == 0 and (f"resumed   {done} of 40" in out) == (done > 0)
        assert (tmp_path / "l.csv").read_bytes() == whole
    # A block that never reached the disk, and lines after it.
    partial.write_bytes(content[: lines[12]] + bytes(40) + content[lines[12] + 40 :])
    status, out, _ = run(LINE)
    assert "resumed   8 of 40" in out and (tmp_path / "l.csv").read_bytes() == whole


KILLED = """
import os, signal, sys
from sdediff.cli import main
from sdediff.cli.logprob_rows import Evaluation
honest, calls = Evaluation.__call__, []
def call(self, x, names):
    calls.append(names)
    if len(calls) == 3:
        print("third", flush=True)
        import time; time.sleep(60)
    return honest(self, x, names)
Evaluation.__call__ = call
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_process_loses_one_batch(run, folder, tmp_path, whole):
    words = ["logprob", "model.safetensors", *LINE.split(), "--out", str(tmp_path / "l.csv")]
    command = [sys.executable, "-c", "import torch; torch.set_num_threads(1)" + KILLED, *words]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "third\n"
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "l.csv").exists()
    status, out, _ = run(LINE)
    assert status == 0 and "resumed   16 of 40" in out
    assert (tmp_path / "l.csv").read_bytes() == whole


def test_interrupted_in_the_figures_only_those_are_left_to_do(run, tmp_path, monkeypatch):
    line = LINE.replace("--plots false", "--check_rows 5")
    with monkeypatch.context() as patch:
        patch.setattr(logprob_report, "check", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(line)[0] == 130
    first = (tmp_path / "l.csv").read_bytes()
    with monkeypatch.context() as patch:  # no row is evaluated again
        patch.setattr(Table, "append", None)
        status, out, _ = run(line)
    assert status == 0 and "resumed   40 of 40" in out
    assert (tmp_path / "l.csv").read_bytes() == first
    names = ["l.calibration.png", "l.csv", "l.histogram.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_a_partial_table_of_something_else_is_refused(run, folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted(patch, after=1)
        run(LINE)
    partial = tmp_path / "l.csv.partial"
    content = partial.read_bytes()

    def refused(line: str, *words: str) -> None:
        status, _, err = run(line)
        assert status == 1 and err.count("\n") == 1
        assert all(word in err for word in (*words, "another --out, or delete it")), err
        assert partial.read_bytes() == content

    refused(LINE.replace("--seed 3", "--seed 4"), "was begun with seed 3 instead of 4")
    refused(LINE.replace("--steps 8", "--steps 9"), "steps 8 instead of 9")
    refused(LINE.replace("--batch_size 8", "--batch_size 4"), "batch_size 8 instead of 4")
    refused(LINE + " --bin_width 1", "bin_width None instead of 1.0")
    stat = os.stat("x.npy")
    os.utime("x.npy", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    refused(LINE, "data x.npy of ")
    os.utime("x.npy", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other = model(folder)
    other.moments = other.moments.__class__(other.moments.mean + 1, *list(vars(other.moments).values())[1:])
    kept = (folder / "model.safetensors").read_bytes()
    try:
        other.save("model.safetensors")
        refused(LINE, "begun with model ")
    finally:
        (folder / "model.safetensors").write_bytes(kept)
    assert run(LINE)[0] == 0
    partial.write_text("my notes\n")
    status, _, err = run(LINE)
    assert status == 1 and "is no part of a table that could go on: move it away" in err
    assert partial.read_text() == "my notes\n"


# -- data larger than memory


def test_memory_does_not_grow_with_the_rows(folder, tmp_path, monkeypatch):
    rows, held = 1 << 22, []

    def instead(self, x, names):
        held.append(len(x))
        zero = torch.zeros(len(x), dtype=torch.float64)
        whole = zero.long()
        return LogLikelihood(
            zero, zero, zero, zero + torch.inf, whole, whole, whole, sdediff.likelihood.Kind("density/exact"),
            "matched", (1e-5, 1.0), 2,
        )  # fmt: skip

    monkeypatch.setattr(Evaluation, "__call__", instead)
    monkeypatch.setattr(logprob_rows, "_SCAN_NUMBERS", 1024)
    monkeypatch.setattr(logprob_report, "_KEPT", 500)
    big = np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.float32, (rows, 4))
    del big
    source = tables.RowFile(str(tmp_path / "big.npy"), (4,))
    peaks = []
    for limit in (2000, 6000):
        words = ["logprob", str(folder / "model.safetensors"), str(tmp_path / "narrow.npy")]
        narrow = np.lib.format.open_memmap(tmp_path / "narrow.npy", "w+", np.float32, (limit, 2))
        del narrow
        tracemalloc.start()
        options = ["--batch_size", "500", "--plots", "false", "--out", str(tmp_path / "l.csv")]
        assert main([*words, *options]) == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(held) == 500 and peaks[1] < 1.1 * peaks[0]
    tracemalloc.start()
    assert sum(len(x) for x in source.batches(1 << 16)) == rows
    assert source.take([5, rows - 1]).shape == (2, 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * (1 << 16) * 4 * 4 < rows * 4 * 4 / 20


def test_a_running_summary_is_that_of_all_values():
    rng = np.random.default_rng(0)
    values = 1e6 + rng.normal(size=5000)
    running = Running()
    for value in (*values, math.nan):
        running.add(value)
    assert running.n == 5000 and (running.low, running.high) == (values.min(), values.max())
    assert running.mean == pytest.approx(values.mean(), abs=1e-8)
    assert running.std_error == pytest.approx(values.std(ddof=1) / 5000**0.5, rel=1e-9)


# -- kinds


def rows_of(values: torch.Tensor, kind: str, error: float = 0.01) -> list[dict[str, str]]:
    zero = torch.zeros(len(values), dtype=torch.float64)
    whole = zero.long()
    result = LogLikelihood(
        values.double(), zero + error, zero + 1e-3, zero + 8, whole, whole, whole,
        sdediff.likelihood.Kind(kind), "matched", (1e-5, 1.0), 2,
    )  # fmt: skip
    made = columns(result, 0, None)
    return [dict(zip(made, map(str, row), strict=True)) for row in zip(*made.values(), strict=True)]


def test_different_kinds_are_never_averaged(capsys):
    a, b = torch.tensor([1.0, 3.0]), torch.tensor([-10.0, -20.0, -30.0])
    summaries = summarise([*rows_of(a, "density/exact"), *rows_of(b, "density/unbiased")])
    means = {kind.split(",")[0]: s.columns["log_prob"].mean for kind, s in summaries.items()}
    assert means == {"density/exact": 2.0, "density/unbiased": -20.0}
    for kind, summary in summaries.items():
        logprob_report._tell(kind, summary)
    out = capsys.readouterr().out
    assert "log_prob  2.0000 +- 1.0000 nats, mean of 2 rows" in out
    assert "log_prob  -20.0000 +- 5.7735 nats, mean of 3 rows" in out
    assert out.count("kind      density/") == 2


# -- figures


class FromRows:
    """What a figure needs of a table."""

    def __init__(self, rows):
        self._rows = rows
        self.done = len(rows)

    def rows(self):
        return iter(self._rows)


def test_the_histogram_counts_every_row_once_and_shows_the_error_to_scale():
    values = torch.from_numpy(np.random.default_rng(0).normal(size=500))
    values[3], values[7], values[9] = -1e5, 4e4, math.nan
    rows = rows_of(values, "density/exact")
    summaries = summarise(rows)
    (bins,) = histogram(FromRows(rows), summaries).values()
    near = np.sort(values[values.abs() < 100].numpy())
    assert np.array_equal(bins.counts, np.histogram(near, bins.edges)[0]) and bins.counts.sum() == 497
    assert (bins.below, bins.above, bins.failed, bins.total) == ((1, -1e5), (1, 4e4), 1, 499)
    half = (float(rows[0]["high"]) - float(rows[0]["low"])) / 2
    assert bins.half_width == pytest.approx(half, rel=1e-6)
    figure = viz.binned_log_prob({"density/exact": bins}, title="title")
    (axes,) = figure.axes
    drawn = axes.patches[0].get_data()
    assert np.array_equal(drawn.values, bins.counts) and np.array_equal(drawn.edges, bins.edges)
    (segment,) = axes.containers[0].lines[2][0].get_segments()
    assert segment[:, 0] == pytest.approx([bins.mean - half, bins.mean + half])
    said = " ".join(text.get_text() for text in axes.texts)
    assert f"± {half:.2g} nats" in said and "1 more, to -1e+05" in said and "1 more, to 4e+04" in said
    assert "499 rows" in axes.get_title(loc="left") and "1 failed" in axes.get_title(loc="left")
    with pytest.raises(ValueError, match="no log-likelihoods to show"):
        viz.binned_log_prob({"a": Bins(np.arange(2.0), np.zeros(1, int), (0, 0), (0, 0), 0, 0, 0)})


def stated(n: int, scale: float) -> tuple[LogLikelihood, LogLikelihood]:
    """Values with Gaussian errors of standard deviation `scale` and stated one 1, and the truth."""
    noise = torch.from_numpy(np.random.default_rng(1).normal(size=n)) * scale
    rows = rows_of(noise, "density/unbiased", error=1.0)
    values = likelihood(rows)
    values.degrees.fill_(torch.inf)
    values.solver_error.zero_()
    truth = likelihood(rows_of(torch.zeros(n), "density/exact", error=0.0))
    truth.solver_error.zero_()
    return values, truth


def test_calibration_sees_right_and_wrong_errors():
    right = Calibration.of(*stated(400, 1.0))
    # Right errors fail this with probability 0.03; the seed is fixed.
    assert not right.too_small and not right.too_large and "stated errors are right" in right.verdict
    from scipy.stats import binom, norm

    exact = [float((right.difference.abs() <= norm.ppf(0.5 + p / 2)).double().mean()) for p in LEVELS]
    assert right.observed.tolist() == exact
    assert right.low.tolist() == [binom.ppf(0.025, 400, p) / 400 for p in LEVELS]
    assert right.half_width.tolist() == pytest.approx([norm.ppf(0.975)] * 400)
    small = Calibration.of(*stated(400, 2.0))
    assert small.too_small and "stated errors are too small" in small.verdict
    large = Calibration.of(*stated(400, 0.3))
    assert large.too_large and "stated errors are larger than need be" in large.verdict
    values, truth = stated(400, 1.0)
    values.std_error[:10] = math.nan
    assert Calibration.of(values, truth).unknown == 10
    with pytest.raises(ValueError, match="kind"):
        Calibration.of(likelihood(rows_of(torch.zeros(3), "probability/lower bound")), truth.take(slice(3)))


def test_the_calibration_plot_draws_these_numbers():
    outcome = Calibration.of(*stated(50, 2.0))
    figure = viz.calibration(outcome, title="title")
    left, right = figure.axes
    (observed,) = [line for line in left.get_lines() if line.get_label().startswith("observed")]
    assert np.array_equal(observed.get_xydata(), np.stack([outcome.levels, outcome.observed], axis=1))
    points = np.concatenate([c.get_offsets() for c in right.collections])
    drawn = np.stack([outcome.half_width.numpy(), outcome.difference.abs().numpy()], axis=1)
    assert np.array_equal(np.sort(points, axis=0), np.sort(drawn, axis=0))
    labels = [text.get_text() for text in right.get_legend().get_texts()]
    assert labels == [f"inside: {outcome.inside}", f"outside: {50 - outcome.inside}"]
    assert f"{outcome.inside} of 50 inside" in figure.get_suptitle()
    empty = Calibration.of(*(part.take(slice(0)) for part in stated(3, 1.0)))
    with pytest.raises(ValueError, match="no row has a value and a known error"):
        viz.calibration(empty)


def test_rows_are_checked_by_an_independent_evaluation(run, folder, tmp_path, monkeypatch):
    seen = []
    honest = Calibration.of.__func__
    watch = classmethod(lambda cls, a, b: seen.append((a, b)) or honest(cls, a, b))
    monkeypatch.setattr(Calibration, "of", watch)
    status, out, _ = run("x.npy --probes 2 --check_rows 7 --seed 3 --rtol 1e-3 --atol 1e-3")
    assert status == 0
    assert "check     7 rows anew: the exact trace, dopri5 at 1e-07, 129 nodes, float64" in out
    ((values, other),) = seen
    numbers = [float(row["log_prob"]) for row in table(tmp_path / "l.csv")]
    chosen = [numbers.index(v) for v in values.log_prob.tolist()]
    assert chosen == sorted(set(chosen)) and len(chosen) == 7
    exact = model(folder).double()
    x = sdediff.data.read("x.npy")[chosen]
    options = {"rtol": 1e-7, "atol": 1e-7, "nodes": 129, "divergence": sdediff.Exact()}
    assert other.log_prob.tolist() == pytest.approx(exact.log_prob(x, **options).tolist(), abs=1e-10)
    assert (values.kind.estimator, other.kind.estimator) == ("unbiased", "exact")
    for name in ("l.histogram.png", "l.calibration.png"):
        assert (tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_check_takes_the_exact_trace_where_that_is_no_dearer_than_the_table(folder):
    probes = sdediff.Hutchinson(4)
    options = {"seed": 3, "rtol": None, "atol": 1e-8, "prior": "standard", "solver": "heun", "steps": 5}
    evaluation = Evaluation(model(folder), options, probes, None, False)
    other, how = evaluation.anew(64, 0)
    assert other.divergence == sdediff.Exact() and "the exact trace" in how
    other, how = evaluation.anew(1000, 1000 * 129 * 2 - 1)
    assert other.divergence == probes and "other probes" in how
    assert evaluation.anew(1000, 1000 * 129 * 2)[0].divergence == sdediff.Exact()
    expected = {"seed": 4, "rtol": 1e-9, "atol": 1e-9, "prior": "standard", "solver": "dopri5", "nodes": 129}
    assert other.options == {**expected, "on_failure": "ignore"}
    assert next(other.model.parameters()).dtype == torch.float64
    assert next(evaluation.model.parameters()).dtype == torch.float32


def test_one_probe_has_no_known_error_and_no_calibration(run, tmp_path):
    status, out, _ = run("x.npy --limit 5 --probes 1 --solver heun --steps 8")
    assert status == 0 and "none of them has a value and a known error" in out
    assert not (tmp_path / "l.calibration.png").exists()
