"""What training refuses, what it takes over from nobody, and what it hands on to parts of a network."""

from __future__ import annotations

import errno
import logging

import pytest
import torch

import sdediff
from sdediff import files, networks, training
from sdediff.training.conditions import drop

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))


def make_model(**options):
    network = networks.MLP(dim=2, hidden=8, blocks=1, **options)
    return sdediff.DiffusionModel(network, sdediff.VP(), data_shape=(2,))


def quick(model, **options):
    return sdediff.fit(model, X, **{"steps": 4, "batch_size": 8, "progress": False, **options})


def test_snapshots_and_pictures_of_another_run_do_not_pass_for_this_one_s(tmp_path):
    averages = {"averages": [training.Power(0.1)], "snapshot_every": 2, "out": tmp_path}
    quick(make_model(), steps=8, **averages)
    (tmp_path / "previews").mkdir()
    for name in ("000000008-samples.png", "mine.png"):
        (tmp_path / "previews" / name).touch()
    quick(make_model(), steps=4, seed=1, **averages)
    assert [s.step for s in training.posthoc.snapshots(tmp_path)] == [2, 4]
    assert [p.name for p in (tmp_path / "previews").iterdir()] == ["mine.png"]
    quick(make_model(), steps=6, seed=1, resume=True, **averages)
    assert [s.step for s in training.posthoc.snapshots(tmp_path)] == [2, 4, 6]


def test_a_log_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog):
    write = files.write_text

    def full(path, text):
        if str(path).endswith("log.csv") and text.count("\n") < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    monkeypatch.setattr(files, "write_text", full)
    with caplog.at_level(logging.WARNING, logger="sdediff"):
        quick(make_model(), log_every=2, out=tmp_path)
    assert [r.getMessage().count("training goes on") for r in caplog.records] == [1]
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3  # the next time writes all lines


def test_a_snapshot_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog):
    write = files.write_tensors

    def full(path, *content):
        if path.parent.name == "ema" and path.stem == "000000002":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, *content)

    monkeypatch.setattr(files, "write_tensors", full)
    with caplog.at_level(logging.WARNING, logger="sdediff"):
        quick(make_model(), averages=[training.Power(0.1)], snapshot_every=2, out=tmp_path)
    assert [r.getMessage().count("training goes on") for r in caplog.records] == [1]
    assert [s.step for s in training.posthoc.snapshots(tmp_path)] == [4]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"cond_dropout": 0.1}, TypeError, r"cond_dropout=0.1 without conditions .* give cond="),
        ({"val_cond": torch.zeros(4, 1)}, TypeError, r"val_cond= .* give those too, val="),
        ({"lr": -1.0}, ValueError, r"peak=-1.0, .* give a positive learning rate"),
    ],
)
def test_arguments_that_would_have_no_effect_or_a_bad_one_are_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        quick(make_model(cond_dim=1, optional_cond=True), **options)


def test_a_cosine_over_no_steps_is_refused():
    with pytest.raises(ValueError, match=r"peak=0.001, total=0: give .* the number of steps"):
        training.Cosine(1e-3, 0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_a_label_left_out_is_minus_one_in_every_dtype(dtype):
    rows = torch.arange(200)
    out = drop(torch.full((200,), 3, dtype=dtype), 0.5, training.Draw(0, 0, rows, 200))
    assert out.dtype == torch.int64 and out.unique().tolist() == [-1, 3]


def test_a_head_for_variances_leaves_levels_their_units():
    inner = networks.Levels("MLP", levels=5, low=2.0, dim=4, hidden=8)
    network = networks.WithVariance(inner, networks.MLP(dim=4, hidden=8))
    model = sdediff.DiffusionModel(network, sdediff.VP(), data_shape=(4,))
    x = 2 + 5 * torch.rand(50, 4, generator=torch.Generator().manual_seed(1))
    model.set_units(x)
    assert torch.equal(inner.shift, model.shift.float()) and torch.equal(inner.scale, model.scale.float())
    denoised = model.denoise(100 * x, 1.0)
    assert bool(((denoised >= 2) & (denoised <= 7)).all())


@pytest.mark.parametrize("name", ["DDPMpp", "TableMLP", "nothing"])
def test_levels_names_the_networks_it_can_be_built_on(name):
    with pytest.raises(ValueError, match=rf"network='{name}': name one of MLP, UNet, DiT, SmallImageNet"):
        networks.Levels(name, levels=4)


@pytest.mark.parametrize(("values", "shape"), [(1, (0, 2)), (3, (0, 3, 2))])
def test_no_rows_make_an_output_of_no_rows(values, shape):
    net = networks.MLP(dim=2, hidden=8, values=values)
    assert net(torch.zeros(0, 2), torch.zeros(0)).shape == shape


def test_rows_of_nan_are_no_condition_where_the_network_can_do_without():
    model = make_model(cond_dim=3, optional_cond=True)
    torch.nn.init.normal_(model.network.output.weight, generator=torch.Generator().manual_seed(0))
    nothing = torch.full((4, 3), torch.nan)
    without = model.denoise(X[:4], 0.3)
    torch.testing.assert_close(model.denoise(X[:4], 0.3, nothing), without, rtol=0, atol=1e-6)
    assert float((model.denoise(X[:4], 0.3, torch.ones(4, 3)) - without).detach().abs().max()) > 0.01
    partly = nothing.clone()
    partly[1, 2] = 0.0
    for bad, network in ((partly, model), (nothing, make_model(cond_dim=3))):
        with pytest.raises(ValueError, match="cond has NaN or infinite values"):
            network.denoise(X[:4], 0.3, bad)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"cond_dropout": 2.0}, ValueError, "cond_dropout=2.0: give a probability"),
        ({"max_seconds": 0.0}, ValueError, "max_seconds=0.0: give a positive time"),
        ({"keep": 0}, ValueError, "keep=0: give at least 1"),
        ({"callbacks": [training.Preview()]}, TypeError, "run's folder: give out="),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(options, error, words, tmp_path):
    out = None if "callbacks" in options else tmp_path / "run"
    with pytest.raises(error, match=words):
        quick(make_model(), out=out, **options)
    assert not (tmp_path / "run").exists()


def test_pictures_that_cannot_be_written_are_a_warning(tmp_path, caplog):
    (tmp_path / "previews").touch()  # a file where the folder would be
    with caplog.at_level(logging.WARNING, logger="sdediff"):
        quick(make_model(), out=tmp_path, callbacks=[training.Preview(every=4, n=2, steps=2)])
    assert [r.getMessage().count("training goes on") for r in caplog.records] == [1]


def test_a_run_of_another_grid_is_another_run(tmp_path):
    grids = ("uniform", "log-snr")
    losses = [sdediff.chain.simple_loss(sdediff.chain.Chain.of(sdediff.VP(), 8, grid=grid)) for grid in grids]
    quick(make_model(), loss=losses[0], out=tmp_path)
    with pytest.raises(ValueError, match="differs in loss"):
        quick(make_model(), loss=losses[1], out=tmp_path, resume=True, steps=6)


def test_a_chain_beyond_the_process_s_noise_is_told(caplog):
    chain = sdediff.chain.Chain.from_betas(sdediff.chain.linear_betas(50))
    for process, told in ((sdediff.VP(), 0), (sdediff.VP(t_min=0.1, t_max=0.5), 1)):
        model = sdediff.reference.eight_gaussians().model(process)
        with caplog.at_level(logging.WARNING, logger="sdediff"):
            chain.reverse(model)
        assert sum("noise levels it has not seen" in r.getMessage() for r in caplog.records) == told
