"""Bad input gets one sentence that says what was given, what is needed and how to mend it; and whole runs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sdediff
import solvers
from sdediff.data import read_csv
from sdediff.networks import MLP, UNet
from sdediff.reference import GaussianMixture

ROOT = Path(__file__).resolve().parents[1]
DATA = GaussianMixture(means=[[-2.0, 0.0], [2.0, 1.0]], covs=[0.1, 0.3])
VP = sdediff.VP()


def exact() -> sdediff.DiffusionModel:
    return DATA.model(VP)


def untrained(**options) -> sdediff.DiffusionModel:
    return sdediff.DiffusionModel(
        MLP(dim=2, hidden=8), VP, **({"prediction": "eps", "data_shape": (2,)} | options)
    )


def fit(x, **options) -> sdediff.TrainingResult:
    return sdediff.fit(untrained(), x, **({"steps": 1, "batch_size": 4, "progress": False} | options))


def rows(n: int = 8) -> Tensor:
    return DATA.sample(n, seed=0)


def with_nan() -> Tensor:
    x = rows()
    x[3, 1] = math.nan
    return x


def with_constant() -> Tensor:
    x = rows()
    x[:, 1] = 7.0
    return x


ODE = solvers.ODE(lambda t, x: -x)
CASES = {
    # data
    "NaN in log_prob": (lambda: exact().log_prob(with_nan()), ValueError, "first in row 3: remove or fill"),
    "NaN in fit": (lambda: fit(with_nan()), ValueError, r"(?i)nan.*row 3|row 3.*(?i:nan)"),
    "infinity in score": (
        lambda: exact().score(rows() / 0, 0.5),
        ValueError,
        "NaN or infinite values, first in row 0",
    ),
    "wrong shape in log_prob": (
        lambda: exact().log_prob(torch.zeros(3, 5)),
        ValueError,
        r"shape \(3, 5\): give \(B, 2\)",
    ),
    "one row without a batch": (
        lambda: exact().log_prob(torch.zeros(2)),
        ValueError,
        r"shape \(2,\): give \(B, 2\)",
    ),
    "wrong shape in fit": (lambda: fit(torch.zeros(3, 5)), ValueError, r"\(3, 5\)|\(5,\)"),
    "wrong shape in encode": (lambda: exact().encode(torch.zeros(3, 5)), ValueError, r"give \(B, 2\)"),
    "wrong shape in decode": (lambda: exact().decode(torch.zeros(3, 5)), ValueError, r"z has shape \(3, 5\)"),
    "integers in log_prob": (
        lambda: exact().log_prob(torch.ones(3, 2, dtype=torch.int64)),
        ValueError,
        r"x\.float\(\)",
    ),
    "a list": (
        lambda: exact().log_prob([[0.0, 1.0]]),
        ValueError,
        "x is a list: give a floating-point tensor",
    ),
    "an empty batch in log_prob": (
        lambda: exact().log_prob(torch.zeros(0, 2)),
        ValueError,
        "at least one row",
    ),
    "an empty batch in fit": (lambda: fit(torch.zeros(0, 2)), ValueError, "(?i)empty|row"),
    "a constant column": (lambda: fit(with_constant()), ValueError, "column 1 is constant"),
    # solvers
    "an unknown solver": (
        lambda: exact().sample(2, solver="euler-maruyma"),
        ValueError,
        "did you mean euler-maruyama or",
    ),
    "an unknown foreign solver": (
        lambda: exact().sample(2, solver="scipy/RK54"),
        ValueError,
        "did you mean scipy/RK45",
    ),
    "no solver at all": (lambda: exact().sample(2, solver=5), TypeError, "neither a name nor a solver"),
    "a linear part is missing": (
        lambda: solvers.solve(ODE, torch.ones(2, 1), (0.0, 1.0), solver="ddim"),
        TypeError,
        'has none known: give a SemiLinear problem, or take "heun"',
    ),
    "a corrector without a score": (
        lambda: solvers.solve(ODE, torch.ones(2, 1), (0.0, 1.0), solver="pc"),
        TypeError,
        "give a SemiLinear problem",
    ),
    "steps for an adaptive solver": (
        lambda: exact().sample(2, steps=9),
        TypeError,
        "takes rtol= and atol=, not steps=",
    ),
    "rtol for a fixed one": (
        lambda: exact().sample(2, solver="heun", rtol=1e-3),
        TypeError,
        "not rtol= or atol=",
    ),
    "noise for an ODE solver": (
        lambda: exact().sample(2, eta=1.0),
        TypeError,
        'take "euler-maruyama", or eta=0',
    ),
    "no steps": (
        lambda: exact().sample(2, solver="heun", steps=0),
        ValueError,
        "steps=0 is not a number of steps",
    ),
    "half a step": (
        lambda: exact().sample(2, solver="heun", steps=2.5),
        ValueError,
        "a whole number of at least 1",
    ),
    "no training steps": (lambda: fit(rows(), steps=0), ValueError, "steps"),
    "a negative tolerance": (lambda: exact().sample(2, rtol=-1.0), ValueError, "positive"),
    # times
    "a time outside": (lambda: exact().score(rows(), 1.5), ValueError, r"t lies outside \[1e-05, 1\]"),
    "a time that is NaN": (lambda: exact().score(rows(), math.nan), ValueError, "t lies outside"),
    "times of another batch": (
        lambda: exact().score(rows(), torch.ones(3)),
        ValueError,
        r"a tensor of shape \(8,\)",
    ),
    "an interval outside": (lambda: exact().sample(2, t_span=(-1.0, 1.0)), ValueError, "t_span="),
    "an interval turned round": (
        lambda: exact().sample(2, t_span=(1.0, 0.1)),
        ValueError,
        "with t_min < t_max",
    ),
    # numbers
    "a fraction of a sample": (lambda: exact().sample(2.5), ValueError, "n=2.5 is not a number of samples"),
    "no samples": (lambda: exact().sample(0), ValueError, "a whole number of at least 1"),
    "text for a number": (lambda: exact().sample("10"), ValueError, "not a number of samples"),
    "rows of cond": (
        lambda: exact().sample(3, cond=torch.zeros(2, 1)),
        ValueError,
        "cond has 2 rows for 3 samples",
    ),
    "rows of cond in fit": (lambda: fit(rows(), cond=torch.zeros(3, 1)), ValueError, "(?i)cond.*3"),
    # names
    "an unknown prediction": (
        lambda: untrained(prediction="noise"),
        ValueError,
        "take one of eps, x0, score",
    ),
    "an unknown prior": (lambda: untrained(prior="normal"), ValueError, 'take "matched" or "standard"'),
    "an unknown prior of a call": (
        lambda: exact().sample(2, prior="normal"),
        ValueError,
        "an object with log_prob",
    ),
    "an unknown loss": (lambda: fit(rows(), loss="mse"), ValueError, "there is no loss 'mse'"),
    "an unknown scale": (lambda: untrained(scale_mode="row"), ValueError, "take one of column, channel"),
    # models
    "a number as data_shape": (lambda: untrained(data_shape=2), ValueError, r"such as \(2,\)"),
    "no data_shape": (
        lambda: sdediff.DiffusionModel(MLP(dim=2), VP),
        ValueError,
        "is not the shape of a datum",
    ),
    "a function as network": (
        lambda: sdediff.DiffusionModel(lambda x, t: x, VP, "eps", (2,)),
        TypeError,
        "wrap a function .* by sdediff.from_callable",
    ),
    "a name as process": (
        lambda: sdediff.from_callable(lambda x, t: x, "VP", data_shape=(2,)),
        TypeError,
        r"VP\(\)",
    ),
    "a network of another output": (
        lambda: sdediff.from_callable(lambda x, t: x[:, :1], VP, data_shape=(2,)).sample(2),
        ValueError,
        r"returned shape \(2, 1\) for input of shape \(2, 2\)",
    ),
    "one moment of two": (
        lambda: sdediff.from_callable(lambda x, t: x, VP, data_shape=(2,), data_mean=torch.zeros(2)),
        ValueError,
        "give both, or neither",
    ),
    "moments of another shape": (
        lambda: sdediff.from_callable(
            lambda x, t: x, VP, data_shape=(2,), data_mean=torch.zeros(3), data_cov=torch.eye(3)
        ),
        ValueError,
        r"do not fit data_shape=\(2,\)",
    ),
    "a covariance that is none": (
        lambda: sdediff.from_callable(
            lambda x, t: x,
            VP,
            data_shape=(2,),
            data_mean=torch.zeros(2),
            data_cov=torch.tensor([[1.0, 2.0], [2.0, 1.0]]),
        ),
        ValueError,
        "negative eigenvalue",
    ),
    "a covariance that is lopsided": (
        lambda: sdediff.from_callable(
            lambda x, t: x,
            VP,
            data_shape=(2,),
            data_mean=torch.zeros(2),
            data_cov=torch.tensor([[1.0, 0.5], [0.0, 1.0]]),
        ),
        ValueError,
        "not symmetric",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_gets_one_sentence(case):
    call, error, said = CASES[case]
    with pytest.raises(error, match=said) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and 15 < len(message) < 320, message


# -- files ---------------------------------------------------------------------------------------------------


def test_a_truncated_a_corrupt_and_a_foreign_model_file(tmp_path):
    path = tmp_path / "model.safetensors"
    untrained().save(path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:4], b"", b"\x00" * 100, b"{}" + whole[2:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged, cut short or no safetensors file") as caught:
            sdediff.load(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        sdediff.load(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="does not exist, create it first"):
        untrained().save(tmp_path / "folder" / "model.safetensors")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\nx,4\n", "line 3, column 'a': the value is 'x', not a finite number"),
        ("a,b\n1,2\n3,\n", "line 3, column 'b': the value is missing"),
        ("a,b\n1,2\n3,NaN\n", "line 3, column 'b': the value is missing"),
        ("a,b\n1,2\n3\n", "line 3: 1 cells where 2 are needed"),
        ("a,b\n1,2\n3,inf\n", "not a finite number"),
        ("", "is empty"),
    ],
)
def test_a_table_with_text_or_gaps(tmp_path, text, said):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        read_csv(path)
    assert "\n" not in str(caught.value)


# -- another process -----------------------------------------------------------------------------------------

PROGRAM = """
import json, sys, torch, sdediff
torch.set_num_threads(1)
model = sdediff.load(sys.argv[1])
x = torch.load(sys.argv[2], weights_only=True)
fixed = ("heun", "ancestral")
samples = {s: model.sample(6, solver=s, steps=10, seed=3, batch_size=4) for s in fixed}
samples["dopri5"] = model.sample(6, seed=3, batch_size=4)
logp = model.log_prob(x, batch_size=3, nodes=17)
random = model.log_prob(x, divergence=sdediff.Hutchinson(2), seed=5, batch_size=3, nodes=17)
rest = {"logp": logp, "random": random, "score": model.score(x, 0.3)}
numbers = {k: v.flatten().tolist() for k, v in (samples | rest).items()}
print(json.dumps({k: [n.hex() for n in v] for k, v in numbers.items()}))
"""


def test_a_new_process_computes_the_same_bits(tmp_path):
    """Samples, scores and log-densities of a loaded model, for the same seed and chunks."""
    torch.manual_seed(0)
    model = untrained()
    sdediff.fit(model, DATA.sample(200, seed=1), steps=20, batch_size=32, progress=False)
    model.save(tmp_path / "m.safetensors")
    torch.save(rows(7), tmp_path / "x.pt")
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "program.py", "m.safetensors", "x.pt"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    there = json.loads(run.stdout.splitlines()[-1])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums belongs to the number of threads
    try:
        here = {
            "heun": model.sample(6, solver="heun", steps=10, seed=3, batch_size=4),
            "ancestral": model.sample(6, solver="ancestral", steps=10, seed=3, batch_size=4),
            "dopri5": model.sample(6, seed=3, batch_size=4),
            "logp": model.log_prob(rows(7), batch_size=3, nodes=17),
            "random": model.log_prob(
                rows(7), divergence=sdediff.Hutchinson(2), seed=5, batch_size=3, nodes=17
            ),
            "score": model.score(rows(7), 0.3),
        }
    finally:
        torch.set_num_threads(threads)
    for name, value in here.items():
        assert [n.hex() for n in value.flatten().tolist()] == there[name], name


# -- whole runs, any shape -----------------------------------------------------------------------------------

SHAPES = {
    "one column": ((1,), lambda: MLP(dim=1, hidden=16, blocks=1)),
    "columns": ((5,), lambda: MLP(dim=5, hidden=16, blocks=1)),
    "signal": ((2, 9), lambda: MLP(dim=18, hidden=16, blocks=1)),
    "signal of one channel and one step": ((1, 1), lambda: MLP(dim=1, hidden=16, blocks=1)),
    "image": ((1, 4, 6), lambda: MLP(dim=24, hidden=16, blocks=1)),
    "image by a U-Net": ((2, 8, 12), lambda: UNet(channels=2, base=8, attention=())),
}


@pytest.mark.parametrize("case", SHAPES)
def test_every_shape_is_trained_sampled_and_weighed(case, tmp_path):
    shape, network = SHAPES[case]
    torch.manual_seed(0)
    x = 3 + 2 * torch.randn(64, *shape, generator=torch.Generator().manual_seed(1))
    model = sdediff.DiffusionModel(network(), VP, "v", shape)
    result = sdediff.fit(model, x, steps=3, batch_size=16, progress=False)
    assert result.steps == 3 and math.isfinite(result.history[-1]["loss"] if result.history else 0.0)
    for solver, options in (("dopri5", {}), ("ancestral", {"steps": 5}), ("pc", {"steps": 5})):
        assert model.sample(3, solver=solver, seed=0, rtol=None, **options).shape == (3, *shape)
    r = model.log_likelihood(x[:3], nodes=17)
    assert r.log_prob.shape == (3,) and bool(r.log_prob.isfinite().all()) and r.latent.shape == (3, *shape)
    assert r.dim == math.prod(shape)
    assert torch.allclose(model.decode(model.encode(x[:2])), x[:2], atol=0.05)
    y, logp = model.sample(2, return_log_prob=True)
    assert y.shape == (2, *shape) and logp.shape == (2,)
    model.save(tmp_path / "m.safetensors")
    again = sdediff.load(tmp_path / "m.safetensors")
    assert torch.equal(again.sample(3, solver="ddim", steps=4), model.sample(3, solver="ddim", steps=4))


def test_float64_data_and_a_float32_network():
    """NumPy's default dtype is accepted and taken to the network's; densities are summed in float64."""
    torch.manual_seed(0)
    model = untrained()
    torch.nn.init.normal_(model.network.output.weight, std=0.1)
    x = rows(3)
    wide = model.log_prob(x.double(), nodes=33)
    assert wide.dtype == torch.float64
    assert float((wide - model.log_prob(x, nodes=33)).abs().max()) < 1e-2
    assert torch.equal(model.score(x.double(), 0.5), model.score(x, 0.5))
