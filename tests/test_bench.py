"""The comparison of solvers: what it measures is right, and what it writes is whole."""

import csv
import dataclasses
import io
import itertools
import json
import math
import re

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

import sdediff
import solvers
from sdediff import bench, reference
from sdediff.bench.picture import spread
from sdediff.metrics import energy_distance

F64 = torch.float64
NATIVE = [n for n in solvers.available() if "/" not in n and not solvers.get(n).adaptive]


def compare(*arguments, **options):
    return bench.compare(*arguments, **({"samples": 64, "repeats": 0} | options))


def column(report, solver, attribute="error"):
    return [getattr(row, attribute) for row in report.rows if row.solver == solver]


# -- who takes part ------------------------------------------------------------------------------------------


def test_an_entry_from_its_words():
    entry = bench.Entry.of("ddim:eta=0.5:grid=rho")
    assert isinstance(entry.solver, solvers.DDIM) and entry.options == {"eta": 0.5, "grid": "rho"}
    assert bench.Entry.of("dopri5:rtol=0.01").solver.rtol == 0.01
    mine = solvers.Heun()
    assert bench.Entry.of(mine).solver is mine and bench.Entry.of(entry) is entry
    assert bench.Entry.of("heun").follows_the_flow and bench.Entry.of("ancestral:eta=0").follows_the_flow
    for name in ("ancestral", "ddim:eta=1", "pc", "pc:eta=0"):
        assert not bench.Entry.of(name).follows_the_flow
    with pytest.raises(ValueError, match="option without a value"):
        bench.Entry.of("ddim:eta")
    with pytest.raises(ValueError, match="no solver named 'huen'"):
        bench.Entry.of("huen")
    with pytest.raises(TypeError, match="no solver: give a name"):
        bench.Entry.of(3)


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("nfe", (1, 7, 20))
def test_the_most_steps_within_a_number_of_evaluations(name, nfe):
    entry = bench.Entry.of(name)
    problem = solvers.SemiLinear(sdediff.VP(), lambda t, x: 0 * x, entry.eta)

    def cost(steps):
        return int(solvers.solve(problem, torch.zeros(1, 1), solver=entry.solver, steps=steps).nfe[0])

    steps = entry.steps_within(nfe)
    assert cost(steps + 1) > nfe and (steps == 0 or cost(steps) <= nfe)


def test_the_default_solvers_exist_and_run():
    report = compare("eight-gaussians", nfe=(8,), tolerances=(1e-2,))
    assert [row.solver for row in report.rows] == list(bench.DEFAULT_SOLVERS)
    assert not any(row.failure for row in report.rows)
    assert all((row.error is None) != (row.distance is None) for row in report.rows)


# -- what is measured ----------------------------------------------------------------------------------------


def test_the_error_is_that_to_the_exact_flow():
    data = reference.random_product(4, dtype=F64)
    process = sdediff.RectifiedFlow()
    report = compare(data, ["ddim", "heun"], nfe=(12,), process=process, seed=3)
    model = data.model(process)
    noise = solvers.noise.normal(3, torch.arange(64), solvers.Stream.PRIOR, 0, (4,), F64)
    z = model.prior_at(process.t_max).transform(noise)
    exact = data.flow(process, z, process.t_max, process.t_min) / process.alpha(process.t_min)
    for row, steps in zip(report.rows, (12, 6), strict=True):
        x = model.sample(64, row.solver, steps=steps, seed=3, dtype=F64)
        assert row.error == pytest.approx(float((x - exact).square().mean().sqrt()), rel=1e-9)
        assert row.nfe == 12 and row.setting == f"{steps} steps" and row.kind == "ODE"
    assert report.truth == "the exact flow map" and report.truth_error == 0


def test_without_a_closed_form_the_flow_is_solved_tightly():
    report = compare("eight-gaussians", ["unipc-3", "dopri5"], nfe=(200,), tolerances=(1e-7,))
    assert report.rows[0].error < 2e-5 and report.rows[1].error < 2e-7
    assert 0 < report.truth_error < 1e-8


def test_errors_fall_with_the_order_of_the_solver():
    report = compare("product-4", ["ddim", "dpm++2m"], nfe=(100, 200))
    first, second = (column(report, name) for name in ("ddim", "dpm++2m"))
    assert 1.85 < first[0] / first[1] < 2.15
    assert 3.5 < second[0] / second[1] < 4.6


def test_stochastic_solvers_are_measured_by_law():
    """Exact to the noise with many steps (5 standard deviations; a fixed seed), far off with few."""
    report = compare("eight-gaussians", ["ancestral"], nfe=(3, 200), samples=500)
    few, many = column(report, "ancestral", "distance")
    mean, std = report.floor
    assert abs(many - mean) < 5 * std and few > mean + 5 * std
    assert column(report, "ancestral") == [None, None] and report.truth is None
    by_law = compare("eight-gaussians", ["ddim"], nfe=(3,), measure="distance")
    data = reference.eight_gaussians(dtype=F64)
    x, exact = data.model(sdediff.VP()).sample(64, "ddim", steps=3, dtype=F64), data.sample(256, seed=1 << 20)
    assert by_law.rows[0].error is None
    assert by_law.rows[0].distance == pytest.approx(float(energy_distance(x, exact)), rel=1e-9)


def test_strong_errors_are_along_one_path():
    """Euler-Maruyama has strong order 1; a solver that draws noise of its own has no strong error."""
    data = reference.Gaussian(torch.zeros(2, dtype=F64), torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=F64))
    report = compare(data, ["euler-maruyama", "pc"], nfe=(32, 128), samples=200, measure="strong")
    coarse, fine = column(report, "euler-maruyama")
    assert 3.4 < coarse / fine < 4.6
    assert column(report, "pc") == [None, None] and None not in column(report, "pc", "distance")


def test_a_fitted_grid_takes_part():
    report = compare("product-4", ["ddim", "ddim:grid=fitted"], nfe=(6,))
    assert report.rows[1].error < 0.95 * report.rows[0].error and report.rows[1].nfe == 6


def test_a_trained_model_takes_part():
    torch.manual_seed(0)
    net = sdediff.networks.MLP(dim=2, hidden=16, blocks=1)
    model = sdediff.DiffusionModel(net, sdediff.VP(), prediction="edm", data_shape=(2,))
    before = [p.clone() for p in model.parameters()]
    report = compare(model, ["heun", "dopri5", "ancestral"], nfe=(40,), tolerances=(1e-5,))
    assert report.dtype == "float32" and report.title == "MLP"
    assert report.rows[1].error < 1e-3 and report.rows[2].distance < 10 * report.floor[0]
    assert all(
        p.dtype == torch.float32 and torch.equal(p, q)
        for p, q in zip(model.parameters(), before, strict=True)
    )


class Spy(solvers.DDIM):
    """Writes down when it runs."""

    def __init__(self, log):
        self.log = log

    def integrate(self, problem, x, request):
        if len(x) > 1:
            self.log.append((id(self), len(request.times)))
        return super().integrate(problem, x, request)


def test_timed_runs_are_interleaved():
    log = []
    report = compare("eight-gaussians", [Spy(log), Spy(log)], nfe=(2, 4), repeats=3)
    assert len(log) == 4 * 4 and report.repeats == 3
    rounds = [log[i : i + 4] for i in range(0, 16, 4)]
    assert all(r == rounds[0] for r in rounds) and len(set(rounds[0])) == 4
    hurried = compare("eight-gaussians", ["ddim"], nfe=(2,), repeats=50, seconds=0.0)
    assert hurried.repeats == 1


class Broken(solvers.DDIM):
    """Returns NaN for one sample."""

    def step(self, problem, t, t_next, x, state, noise):
        step = super().step(problem, t, t_next, x, state, noise)
        return step._replace(x=torch.where(torch.arange(len(x))[:, None] == 5, math.nan, step.x))


class Refusing(solvers.DDIM):
    """Refuses."""

    def integrate(self, problem, x, request):
        if len(x) > 1:
            raise TypeError("not this one: take another")
        return super().integrate(problem, x, request)


def test_a_solver_that_fails_is_told_and_does_not_stop_the_others():
    report = compare("eight-gaussians", [Broken(), Refusing(), "ddim"], nfe=(5,), repeats=1)
    broken, refusing, fine = report.rows
    assert broken.failure == "1 of 64 samples failed" and broken.error is None and broken.nfe == 5
    assert refusing.failure == "not this one: take another" and refusing.nfe is None
    assert fine.error > 0 and not fine.failure
    for text in (report.table(), report.to_html()):
        assert "1 of 64 samples failed" in text and "not this one" in text
    json.loads(report.to_json())


def test_every_failure_is_a_row():
    class Divides(Refusing):
        def integrate(self, problem, x, request):
            return 1 / 0 if len(x) > 1 else super().integrate(problem, x, request)

    wrong = ["dopri5:grid=fitted", "ddim:eta=-1", "ddim:eta=loud", Divides()]
    report = compare("eight-gaussians", [*wrong, "ddim"], nfe=(5,), tolerances=(0.1,), repeats=1)
    assert [row.solver for row in report.rows[:3]] == wrong[:3]
    told = ("chooses its own", "eta", "'str'", "ZeroDivisionError")
    for row, words in zip(report.rows[:4], told, strict=True):
        assert words in row.failure and row.nfe is None
    assert report.rows[4].error > 0 and not report.rows[4].failure


def test_a_run_that_fails_later_keeps_its_result():
    class Tires(solvers.DDIM):
        runs = 0

        def integrate(self, problem, x, request):
            self.runs += len(x) > 1
            if self.runs > 1:
                raise RuntimeError("tired")
            return super().integrate(problem, x, request)

    report = compare("eight-gaussians", [Tires(), "ddim"], nfe=(5,), repeats=2)
    assert report.rows[0].error > 0 and report.rows[0].failure == "tired" and not report.rows[1].failure


def test_a_budget_below_one_step_is_told():
    report = compare("eight-gaussians", ["rk4"], nfe=(3, 4))
    assert [(row.setting, row.nfe) for row in report.rows] == [("NFE 3", None), ("1 steps", 4.0)]
    assert report.rows[0].failure == "a budget below one step, which takes 4" and not report.rows[1].failure


def test_the_evaluations_told_are_those_spent():
    """An implicit solver takes more than on the network of zeros by which its steps are chosen."""
    model, spent = reference.eight_gaussians(dtype=F64).model(sdediff.VP()), []
    report = compare("eight-gaussians", ["torchdiffeq/implicit_adams"], nfe=(20,), seed=1)
    handle = model.network.register_forward_hook(lambda *_: spent.append(1))
    steps = int(report.rows[0].setting.split()[0])
    model.sample(64, "torchdiffeq/implicit_adams", steps=steps, seed=1, dtype=F64)
    handle.remove()
    assert report.rows[0].nfe == len(spent) > 20


def test_errors_that_are_not_finite_are_written(tmp_path):
    report = compare("eight-gaussians", ["ddim"], nfe=(5, 10))
    row = dataclasses.replace(report.rows[0], error=math.inf)
    report = dataclasses.replace(report, rows=[row, report.rows[1]], truth_error=math.nan)
    content = json.loads(report.to_json())
    assert content["rows"][0]["error"] is None and content["truth_error"] is None
    assert content["rows"][1]["error"] == report.rows[1].error and len(report.save(tmp_path)) == 5


# -- what is written -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report():
    return compare("eight-gaussians", nfe=(5, 10, 20), tolerances=(1e-1, 1e-2), title="a <b> & c")


def test_the_table_says_all_and_what_it_ran_on(report):
    text = report.table()
    assert len(text.split("\n\n")[0].splitlines()) == 2 + len(report.rows)
    for words in (f"torch {torch.__version__}", "CPUs with", "seed 0", "noise floor", "64 samples", "VP("):
        assert words in text
    assert report.table("markdown").splitlines()[1].startswith("| --- | --- | --- | ---: |")
    with pytest.raises(ValueError, match="not known"):
        report.table("latex")


def test_everything_is_written(report, tmp_path):
    written = report.save(tmp_path / "new")
    assert {path.name for path in written} == {
        "diagram.png",
        "report.html",
        "table.csv",
        "table.json",
        "table.txt",
    }
    assert (tmp_path / "new" / "diagram.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "new" / "table.csv").read_text())))
    content = json.loads((tmp_path / "new" / "table.json").read_text())
    assert len(rows) == len(content["rows"]) == len(report.rows)
    assert float(rows[0]["error"]) == content["rows"][0]["error"] == report.rows[0].error
    assert content["ran_on"]["threads"] == torch.get_num_threads()


def test_the_page_stands_alone(report):
    text = report.to_html()
    assert "a &lt;b&gt; &amp; c" in text and "<b>" not in text
    fetched = re.findall(r'(?:src|href)\s*=\s*"([^"#]+)"|url\((?!#)', text)
    assert not fetched and "<link" not in text and "<img" not in text and "@import" not in text
    assert text.count("<tr>") == 1 + len(report.rows) and text.count("<svg") == 1
    assert '<td data-value="5">5 steps</td>' in text and '<td data-value="0.1">tol 0.1</td>' in text


def test_labels_of_the_diagram_do_not_overlap(report):
    figure = report.figure()
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    assert len(figure.axes) == 4
    for axes in figure.axes:
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
        assert len(boxes) >= 4
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        assert all(box.x1 <= figure.bbox.x1 for box in boxes)
        ticks = [tick.get_window_extent(renderer) for tick in axes.get_xticklabels() if tick.get_text()]
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(ticks))


def test_a_report_without_results_has_a_picture():
    report = compare("eight-gaussians", [Refusing()], nfe=(5,))
    assert [text.get_text() for text in report.figure().texts][-1] == "no run has a result"


@pytest.mark.parametrize("seed", range(20))
def test_spread_keeps_the_order_and_the_distance(seed):
    heights = torch.rand(7, generator=torch.Generator().manual_seed(seed)).tolist()
    placed = spread(heights, 0.1)
    assert [placed.index(p) for p in sorted(placed)] == [heights.index(h) for h in sorted(heights)]
    assert all(b - a > 0.1 - 1e-9 for a, b in itertools.pairwise(sorted(placed)))
    assert spread([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]


def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match="no reference problem 'circles'"):
        compare("circles")
    with pytest.raises(TypeError, match="no model: give a DiffusionModel"):
        compare(3)
    with pytest.raises(TypeError, match="leave process out"):
        compare(reference.eight_gaussians().model(sdediff.VP()), process=sdediff.EDM())
    with pytest.raises(ValueError, match="measure='fid' is not known"):
        compare("rings", measure="fid")
    with pytest.raises(ValueError, match="2 samples or more"):
        compare("rings", samples=1)
    assert bench.reference_model("product-16").dim == 16 and bench.reference_model("product-0") is None
