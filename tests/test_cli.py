"""The command line: round trips, and one sentence for every mistake."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import sdediff
from sdediff.cli import main
from sdediff.cli.tables import natural_shape, read_rows, split
from sdediff.files import read_tensors

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--network.hidden", "16", "--network.time_dim", "16", "--network.blocks", "1", "--batch_size", "32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small files, and a run trained on each kind."""
    path = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(100, 3)) @ np.array([[1, 0.5, 0], [0, 1, 0], [0, 0, 2.0]]) + [0, 10, -5]
    np.savetxt(path / "table.csv", rows, delimiter=",", header="u,v,w", comments="")
    np.savetxt(path / "swapped.csv", rows[:, [1, 0, 2]], delimiter=",", header="v,u,w", comments="")
    np.savetxt(path / "narrow.csv", rows[:, :2], delimiter=",")
    (path / "words.csv").write_text("u,v,w\n1,2,3\nred,3,4\n")
    (path / "missing.csv").write_text("u,v,w\n1,2,3\n4,,5\n")
    np.savetxt(path / "constant.csv", rows * [1, 0, 1], delimiter=",", header="u,v,w", comments="")
    rows[17, 1] = np.nan
    np.save(path / "nan.npy", rows)
    images = rng.integers(0, 17, size=(40, 6, 5)).astype(np.uint8)
    np.savez(path / "images.npz", images=images, labels=np.arange(40))
    assert main(["train", str(path / "table.csv"), "--out", str(path / "run"), "--steps", "6", *SMALL]) == 0
    unet = ["--steps", "2", "--network.base", "8", "--batch_size", "8", "--dequantise"]
    assert main(["train", f"{path / 'images.npz'}:images", "--out", str(path / "pictures"), *unet]) == 0
    return path


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Run a command in the folder of the small files; returns (status, stdout, stderr)."""
    monkeypatch.chdir(folder)

    def call(line: str):
        capsys.readouterr()
        status = main(line.split())
        out, err = capsys.readouterr()
        return status, out, err

    return call


def same_model(first: Path, second: Path) -> bool:
    """Whether two model files hold the same numbers and description, in whatever order."""
    (a, config), (b, other) = (read_tensors(path, "model") for path in (first, second))
    return config == other and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def table(path: Path) -> dict[str, list]:
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    words = ("status", "kind", "prior")
    return {name: [row[name] if name in words else float(row[name]) for row in rows] for name in rows[0]}


# -- round trips


def test_a_table_is_trained_on_sampled_and_evaluated(run, folder, tmp_path):
    samples, values = tmp_path / "s.csv", tmp_path / "l.csv"
    status, out, _ = run(f"sample run --n 7 --solver heun --steps 5 --seed 3 --out {samples}")
    assert status == 0
    assert "NFE       10 a sample" in out
    model = sdediff.load(folder / "run" / "model.safetensors")
    expected = model.sample(7, solver="heun", steps=5, seed=3)
    assert samples.read_text().splitlines()[0] == "u,v,w"
    assert torch.equal(sdediff.data.read(samples), expected)  # nine digits are all of a float32

    status, out, _ = run(f"logprob run table.csv --limit 9 --batch_size 4 --bin_width 0.5 --out {values}")
    assert status == 0
    assert "density/exact, prior matched, t_span (1e-05, 1)" in out
    result = model.log_likelihood(sdediff.data.read(folder / "table.csv")[:9])
    written = table(values)
    assert list(written)[:4] == ["row", "log_prob", "std_error", "solver_error"]
    assert written["row"] == list(range(9))
    assert written["log_prob"] == pytest.approx(result.log_prob.tolist(), abs=1e-4)  # other batches, float32
    assert written["bits_per_dim"] == pytest.approx(result.bits_per_dim(0.5).tolist(), abs=1e-4)
    assert written["divergence_evaluations"] == result.divergence_evaluations.tolist()
    mean, error = np.mean(written["log_prob"]), np.std(written["log_prob"], ddof=1) / 3
    assert f"log_prob  {mean:.4f} +- {error:.4f} nats, mean of 9 rows" in out


def test_images_are_trained_on_sampled_and_evaluated(run, folder, tmp_path):
    from PIL import Image

    status, out, _ = run(
        f"sample pictures --n 5 --solver ddim --steps 3 --out {tmp_path / 'a.png'} --levels [0,16]"
    )
    assert status == 0
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (
            3 * 6 - 1,
            2 * 7 - 1,
        )  # three across, two down, one pixel between; width 5, height 6
        pixels = np.asarray(image)
    model = sdediff.load(folder / "pictures" / "model.safetensors")
    assert model.data_shape == (1, 6, 5)
    expected = model.sample(5, solver="ddim", steps=3)[0, 0].numpy()
    assert np.array_equal(pixels[:6, :5], np.rint(np.clip(expected / 16, 0, 1) * 255).astype(np.uint8))

    line = "logprob pictures images.npz:images --limit 3 --dequantise --probes 3 --nodes 9 --rtol 1e-2"
    status, out, _ = run(f"{line} --bin_width 1 --seed 5 --out {tmp_path / 'l.csv'}")
    assert status == 0
    assert "density/unbiased" in out
    written = table(tmp_path / "l.csv")
    assert written["divergence_evaluations"] == [3 * 9] * 3
    assert min(written["std_error"]) > 0
    assert run(f"{line} --bin_width 1 --seed 5 --batch_size 1 --out {tmp_path / 'm.csv'}")[0] == 0
    # A row's probes and levels do not depend on the batch.
    assert table(tmp_path / "m.csv")["log_prob"] == pytest.approx(written["log_prob"], abs=2e-2)
    bits = [-(v / 30) / np.log(2) for v in written["log_prob"]]
    assert written["bits_per_dim"] == pytest.approx(bits, rel=1e-12)


def test_held_out_rows_are_the_last_of_the_standard_shuffle(run, folder):
    order = np.random.default_rng(0).permutation(100)
    x = sdediff.data.read(folder / "table.csv")
    assert torch.equal(sdediff.data.read(folder / "run" / "held_out.npy"), x[order[90:]])
    kept = sdediff.data.read(folder / "pictures" / "held_out.npy")
    assert (kept.dtype, tuple(kept.shape)) == (torch.uint8, (4, 1, 6, 5))
    assert run("logprob run run/held_out.npy --out l.csv")[0] == 0


def test_samples_keep_their_kind_of_file(run, tmp_path):
    for name in ("s.npy", "s.npz"):
        assert run(f"sample run --n 3 --solver euler --steps 2 --out {tmp_path / name}")[0] == 0
    array = np.load(tmp_path / "s.npy")
    assert array.shape == (3, 3)
    assert np.array_equal(array, np.load(tmp_path / "s.npz")["samples"])


# -- configurations


def test_the_written_configuration_gives_the_same_run(run, folder, tmp_path):
    assert run(f"train --config run/config.yaml --out {tmp_path / 'again'}")[0] == 0
    for name in ("config.yaml", "held_out.npy"):
        assert (folder / "run" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert same_model(folder / "run/model.safetensors", tmp_path / "again/model.safetensors")


def test_the_command_line_overrides_the_configuration(run, tmp_path):
    (tmp_path / "mine.yaml").write_text("steps: 2\nclip: null\nprocess:\n  name: VP\n  beta_max: 12\n")
    line = f"train table.csv --config {tmp_path / 'mine.yaml'} --steps 3 --process.beta_min 0.2"
    assert run(f"{line} {' '.join(SMALL)} --out {tmp_path / 'a'}")[0] == 0
    config = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    assert (config["steps"], config["clip"]) == (3, None)
    assert config["process"] == {"name": "VP", "beta_min": 0.2, "beta_max": 12.0, "t_min": 1e-5, "t_max": 1.0}
    assert repr(sdediff.load(tmp_path / "a" / "model.safetensors").process) == repr(sdediff.VP(0.2, 12.0))


def test_another_process_does_not_inherit_times(run, tmp_path):
    status, out, _ = run(f"train --config run/config.yaml --process EDM --out {tmp_path / 'a'}")
    assert status == 0
    assert "EDM instead of the configuration's VP" in out
    assert repr(sdediff.load(tmp_path / "a" / "model.safetensors").process) == repr(sdediff.EDM())


def test_resume_goes_on_as_if_never_stopped(run, folder, tmp_path):
    assert run(f"train --config run/config.yaml --steps 4 --out {tmp_path / 'a'}")[0] == 0
    assert run(f"train --resume --steps 6 --out {tmp_path / 'a'}")[0] == 0
    assert same_model(folder / "run/model.safetensors", tmp_path / "a/model.safetensors")
    before = (tmp_path / "a" / "config.yaml").read_text()
    assert before == (folder / "run" / "config.yaml").read_text()
    status, _, err = run(f"train --resume --lr 0.5 --out {tmp_path / 'a'}")
    assert status == 1
    assert "differs in rate" in err
    assert (tmp_path / "a" / "config.yaml").read_text() == before


def test_interrupted_training_says_how_to_go_on(run, tmp_path, monkeypatch):
    import sdediff.training.trainer as trainer

    steps = []

    def advance(self, *rest, inner=trainer.Trainer.advance):
        inner(self, *rest)
        steps.append(self.step)
        if len(steps) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "advance", advance)
        status, _, err = run(f"train --config run/config.yaml --out {tmp_path / 'a'}")
    assert status == 130
    assert f"sdediff train --out {tmp_path / 'a'} --resume" in err
    assert not (tmp_path / "a" / "model.safetensors").exists()
    assert run(f"train --out {tmp_path / 'a'} --resume")[0] == 0
    assert same_model(Path("run/model.safetensors"), tmp_path / "a/model.safetensors")


# -- mistakes

MISTAKES = {
    # in the command's own words: 2
    "smaple run": (2, "no command 'smaple': did you mean sample?"),
    "sample": (2, "a model is needed"),
    "sample run other": (2, "'other' is one word too many"),
    "sample run --stepz 3": (2, "no option --stepz: did you mean --steps?"),
    "sample run --steps many": (2, "--steps was given 'many': give a whole number"),
    "sample run --steps": (2, "--steps needs a value"),
    "sample run --device nowhere": (2, "cannot compute on 'nowhere'"),
    "logprob run": (2, "data are needed too"),
    "logprob run table.csv --divergence hutch": (2, "give one of exact, hutchinson"),
    "logprob run table.csv --divergence exact --probes 2": (2, "--probes belongs to --divergence hutchinson"),
    "train table.csv": (2, "a folder for the run"),
    "train table.csv --out new --process VQ": (2, "no process 'VQ': did you mean VP?"),
    "train table.csv --out new --process.betamax 3": (2, "did you mean --process.beta_max?"),
    "train table.csv --out new --network.blocks 3": (2, "--network.blocks is an option of which network?"),
    "train table.csv --out new --loss eedm": (2, "--loss was given 'eedm': give one of balanced"),
    "train table.csv --out new --config none.yaml": (2, "no file none.yaml"),
    # in data, model or solve: 1
    "sample run --solver huen": (1, "no solver named 'huen': did you mean heun"),
    "sample run --solver dopri5 --steps 5": (1, "rtol= and atol=, not steps="),
    "sample run --solver heun --rtol 1e-3": (1, "takes steps= or grid=, not rtol="),
    "sample run --solver heun --steps 0": (1, "steps=0 is not a number of steps"),
    "sample run --n 0": (1, "n=0 is not a number of samples"),
    "sample run --out s.txt": (1, "give one of .npy, .npz, .csv, .png"),
    "sample run --out s.png": (1, "images of 1 or 3 channels"),
    "sample pictures --out s.csv": (1, "rows of numbers"),
    "sample run --out none/s.npy": (1, "does not exist, create it first"),
    "sample pictures --out s.png --levels [3]": (1, "levels=[3.0]"),
    "sample cut.safetensors": (1, "damaged, cut short"),
    "sample table.csv": (1, "damaged, cut short"),
    "sample run/checkpoints/000000006.safetensors": (1, "holds a checkpoint where a model is needed"),
    "sample nothing": (1, "there is no file nothing"),
    "sample .": (1, "without a model.safetensors"),
    "logprob run narrow.csv": (1, "has 2 columns where 3 columns are needed"),
    "logprob run swapped.csv": (1, "the model was trained on u, v, w"),
    "logprob run nan.npy": (1, "NaN or infinite values, first in row 17"),
    "logprob run words.csv": (1, "line 3, column 'u': the value is 'red'"),
    "logprob run missing.csv": (1, "line 3, column 'v': the value is missing"),
    "logprob run none.csv": (1, "there is no file none.csv"),
    "logprob run table.csv --batch_size 0": (1, "batch_size=0"),
    "logprob run table.csv --limit 0": (1, "limit=0"),
    "logprob pictures images.npz:labels": (1, "has 1 columns where rows of shape (1, 6, 5) are needed"),
    "train table.csv --out run": (1, "run holds a run already: give --resume"),
    "train constant.csv --out new": (1, "column 'v' is constant"),
    "train nan.npy --out new": (1, "first in row 17"),
    "train words.csv --out new": (1, "column 'u': the value is 'red'"),
    "train images.npz --out new": (1, "images.npz:name"),
    "train table.csv --out new --steps 0": (1, "steps=0: give at least 1"),
    "train table.csv --out new --network UNet": (1, "take --network MLP"),
    "train table.csv --out new --dequantise": (1, "dequantise needs integer levels"),
    "train table.csv --out new --val_fraction 1": (1, "val_fraction=1.0"),
    "train table.csv --out new --data_shape [2,2]": (
        1,
        "has 3 columns where rows of shape (2, 2) are needed",
    ),
    "train table.csv --out new --process.beta_min 30": (1, "0 < beta_min < beta_max"),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_sentence(run, folder, line):
    (folder / "cut.safetensors").write_bytes((folder / "run" / "model.safetensors").read_bytes()[:3000])
    before = set(folder.rglob("*"))
    status, _, err = run(line)
    expected, words = MISTAKES[line]
    assert status == expected, err
    assert err.startswith("sdediff") and words in err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert set(folder.rglob("*")) == before  # nothing half-made is left


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepz: 3", "sets stepz, which is no option: did you mean steps?"),
        (
            "process:\n  name: VP\n  betamax: 3",
            "sets process.betamax, which is no option: did you mean process.beta_max?",
        ),
        ("process:\n  name: VQ", "no process 'VQ'"),
        ("steps: many", "--steps was given 'many'"),
        ("- steps", "holds no options"),
        ("a: [", "is no YAML text"),
    ],
)
def test_a_wrong_configuration_is_one_sentence(run, tmp_path, text, words):
    (tmp_path / "c.yaml").write_text(text)
    status, _, err = run(f"train table.csv --out new --config {tmp_path / 'c.yaml'}")
    assert status == 2
    assert words in err and err.count("\n") == 1


def test_debug_keeps_the_traceback(run):
    with pytest.raises(ValueError, match="no solver named"):
        run("sample run --solver none --debug")


# -- the rest


def test_help_lists_what_there_is(run):
    status, out, _ = run("--help")
    assert status == 0
    assert all(f"  {name} " in out for name in ("demo", "train", "sample", "logprob", "bench", "doctor"))
    assert run("")[0] == 2
    for command in ("demo", "train", "sample", "logprob", "bench", "doctor"):
        status, out, _ = run(f"{command} --help")
        assert status == 0
        assert "``" not in out and ":class:" not in out
    assert "--process.sigma_max" in run("train --process VE --help")[1]


def test_doctor_is_content(run):
    status, out, _ = run("doctor")
    assert status == 0
    assert out.count("\nOK ") == 5 and "FAILED" not in out and "MISSING" not in out
    assert f"torch {torch.__version__}" in out


def test_doctor_finds_a_fault(run, monkeypatch):
    honest = sdediff.Exact.traces
    monkeypatch.setattr(sdediff.Exact, "traces", lambda *arguments: 1.01 * honest(*arguments))
    status, out, _ = run("doctor")
    assert status == 1
    assert out.count("\nFAILED ") == 1 and "FAILED log-likelihood of a mixture" in out


def test_the_console_script_answers():
    code = "import sys; from sdediff.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "sample", "nothing"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "sdediff sample: there is no file nothing\n"


def test_rows_become_what_a_model_takes(tmp_path):
    assert natural_shape((3, 8, 8)) == (3, 8, 8)
    last = np.arange(2 * 6 * 5 * 3).reshape(2, 6, 5, 3)
    np.save(tmp_path / "last.npy", last)
    x = read_rows(str(tmp_path / "last.npy")).values
    assert np.array_equal(x.numpy(), last.transpose(0, 3, 1, 2))
    np.save(tmp_path / "one.npy", np.arange(4.0))
    assert read_rows(str(tmp_path / "one.npy")).values.shape == (4, 1)
    np.save(tmp_path / "flat.npy", np.arange(24.0).reshape(2, 12))
    assert read_rows(str(tmp_path / "flat.npy"), [1, 3, 4]).values.shape == (2, 1, 3, 4)
    with pytest.raises(ValueError, match=r"rows of shape \(2, 6\)"):
        np.save(tmp_path / "other.npy", np.zeros((2, 2, 6)))
        read_rows(str(tmp_path / "other.npy"), [3, 4])


def test_split_holds_out_the_fraction():
    x = torch.arange(10.0)[:, None]
    train, val = split(x, 0.25, seed=1)
    assert (len(train), len(val)) == (7, 3)
    assert sorted(torch.cat([train, val]).flatten().tolist()) == list(range(10))
    assert len(split(x, 0.0, seed=1)[1]) == 0
