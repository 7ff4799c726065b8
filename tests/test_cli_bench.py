"""``sdediff bench``."""

import json

import torch

import sdediff
from sdediff.cli import main

QUICK = ["--nfe", "[5,10]", "--samples", "50", "--repeats", "1"]


def test_bench_of_a_reference(tmp_path, capsys):
    out = tmp_path / "out"
    words = ["bench", "product-3", "--solvers", "[ddim,dpm++2m:grid=rho,ancestral]", "--process", "EDM"]
    assert main([*words, *QUICK, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "dpm++2m:grid=rho" in printed and "EDM(" in printed and f"torch {torch.__version__}" in printed
    assert f"wrote     {out}/: diagram.png, report.html, table.csv, table.json, table.txt" in printed
    assert [row["nfe"] for row in json.loads((out / "table.json").read_text())["rows"]] == [5, 10] * 3


def test_bench_of_a_file(tmp_path, capsys):
    torch.manual_seed(0)
    net = sdediff.networks.MLP(dim=2, hidden=8, blocks=1)
    sdediff.DiffusionModel(net, sdediff.VP(), data_shape=(2,)).save(tmp_path / "mine.safetensors")
    words = ["bench", str(tmp_path / "mine.safetensors"), "--solvers", "[heun]", "--device", "cpu"]
    assert main([*words, *QUICK, "--out", str(tmp_path / "out")]) == 0
    assert "mine.safetensors, 2 dimensions" in capsys.readouterr().out


def test_bench_complains_in_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, status, complaint in (
        ([], 2, "a model is needed: give the folder of a run"),
        (["ringz"], 1, "there is no file and no reference problem ringz: did you mean rings?"),
        (["rings", "--solvers", "[huen]"], 1, "there is no solver named 'huen': did you mean heun?"),
        (["rings", "--nfe", "5"], 2, "--nfe was given '5': give a list such as [1,2]"),
        (["rings", "--sample", "5"], 2, "did you mean --samples?"),
    ):
        assert main(["bench", *words]) == status
        assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_fitted_grid_goes_to_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = sdediff.networks.MLP(dim=2, hidden=8, blocks=1)
    model = sdediff.DiffusionModel(net, sdediff.VP(), data_shape=(2,))
    model.save("mine.safetensors")
    sdediff.save_grid(sdediff.fit_grid(model, 4, "ddim", samples=16, candidates=8), "grid.json")
    words = ["sample", "mine.safetensors", "--solver", "ddim", "--n", "3", "--device", "cpu"]
    assert main([*words, "--grid", "grid.json"]) == 0
    assert "solver    ddim, grid=4 steps fitted for DDIM()" in capsys.readouterr().out
    assert main([*words, "--grid", "nope"]) == 1
    assert "there is no grid named 'nope'" in capsys.readouterr().err
    assert main([*words, "--grid", "nope.json"]) == 1
    assert "there is no file nope.json" in capsys.readouterr().err
