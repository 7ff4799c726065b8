"""Networks: shapes, zero start, independent rows, derivatives in every mode, conditions, configs, errors."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacfwd, jacrev, jvp, vjp, vmap

from sdediff.networks import (
    ADM,
    MLP,
    REGISTRY,
    BlurredWaves,
    DDPMpp,
    DiT,
    FourierFeatures,
    NCSNpp,
    NoiseEmbedding,
    SizedDiT,
    UNet,
)
from sdediff.networks.blocks import Attention, Double, Halve, Style

CASES = {
    "mlp-1": (lambda **k: MLP(dim=1, hidden=16, blocks=2, **k), (1,)),
    "mlp-vector": (lambda **k: MLP(dim=5, hidden=16, blocks=2, **k), (5,)),
    "mlp-image": (lambda **k: MLP(dim=24, hidden=16, blocks=2, **k), (1, 4, 6)),
    "mlp-waves": (lambda **k: MLP(dim=3, hidden=16, blocks=1, frequencies=4, highest=20.0, **k), (3,)),
    "unet-signal": (lambda **k: UNet(channels=2, dims=1, base=8, multipliers=(1, 2, 2), **k), (2, 11)),
    "unet-odd": (lambda **k: UNet(channels=3, base=8, multipliers=(1, 2, 3), **k), (3, 7, 5)),
    "unet-pixel": (lambda **k: UNet(channels=1, base=4, groups=3, **k), (1, 1, 1)),
    "unet-line": (lambda **k: UNet(channels=1, base=8, attention=(), **k), (1, 1, 9)),
    "unet-attends": (lambda **k: UNet(channels=1, base=8, blocks=2, attention=(0, 1), **k), (1, 3, 2)),
    "unet-volume": (lambda **k: UNet(channels=1, dims=3, base=4, fir=True, **k), (1, 3, 2, 5)),
    "ddpmpp": (lambda **k: DDPMpp(**DDPMPP | k), (2, 9)),
    "ncsnpp": (lambda **k: NCSNpp(**NCSNPP | k), (1, 5, 3)),
    "ncsnpp-large": (lambda **k: NCSNpp(**NCSNPP | PYRAMIDS | k), (1, 3, 6)),
    "adm-like": (lambda **k: UNet(2, base=8, resample="block", rescale=False, **k), (2, 3, 5)),
    "dit-signal": (lambda **k: DiT(channels=2, dims=1, width=16, depth=1, heads=2, **k), (2, 7)),
    "dit-odd": (lambda **k: DiT(channels=3, patch=3, width=16, depth=2, heads=2, ratio=2, **k), (3, 5, 4)),
}
TINY = {"base": 8, "blocks": 1, "dropout": 0.0}
DDPMPP = {"channels": 2, "dims": 1, "multipliers": (1, 2), **TINY}
NCSNPP = {"channels": 1, "multipliers": (1, 1, 2), **TINY}
PYRAMIDS = {"input_pyramid": "skip", "output_pyramid": "skip"}
SMALL = ["mlp-vector", "unet-signal", "unet-pixel", "unet-attends", "ncsnpp-large", "adm-like", "dit-signal"]
KINDS = ["mlp-vector", "unet-odd", "ncsnpp", "ncsnpp-large", "adm-like", "dit-odd"]


def stir(net: nn.Module, scale: float = 0.3) -> nn.Module:
    """Move every weight off its start, so that no path through the network is shut by a zero."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(scale / math.sqrt(parameter[0].numel()) * noise.to(parameter.dtype))
    return net


def batch(shape: tuple[int, ...], rows: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.linspace(-2, 1.2, rows, dtype=torch.float64).to(dtype)


def build(case: str, **arguments: object) -> tuple[nn.Module, Tensor, Tensor]:
    make, shape = CASES[case]
    torch.manual_seed(0)
    return stir(make(**arguments).double()), *batch(shape)


@pytest.fixture(autouse=True)
def _keep_generator():
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.parametrize("case", CASES)
def test_starts_at_zero_then_keeps_shape_and_dtype(case: str) -> None:
    make, shape = CASES[case]
    net, (x, t) = make().double(), batch(shape)
    assert torch.equal(net(x, t), torch.zeros_like(x))
    y = stir(net)(x, t)
    assert y.shape == x.shape and y.dtype == torch.float64 and y.isfinite().all()
    assert (y.flatten(1).abs().amax(1) > 1e-3).all()
    assert net(x[:0], t[:0]).shape == (0, *shape)


@pytest.mark.parametrize("case", CASES)
def test_float32_agrees_with_float64(case: str) -> None:
    net, x, t = build(case)
    single = copy.deepcopy(net).float()(x.float(), t.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), net(x, t), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_rows_are_independent(case: str) -> None:
    net, x, t = build(case)
    y = net(x, t)
    for i in range(len(x)):
        assert torch.allclose(net(x[i : i + 1], t[i : i + 1]), y[i : i + 1], rtol=1e-12, atol=1e-12)
    rows = vmap(lambda x, t: net(x[None], t[None])[0])(x, t)
    assert torch.allclose(rows, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["mlp-vector", "unet-odd"])
def test_an_expanded_time_is_the_same_time(case: str) -> None:
    net, x, t = build(case)
    shared = t[1].expand(len(x))
    assert torch.allclose(net(x, shared), net(x, shared.contiguous()), rtol=1e-13, atol=1e-13)
    leaf = t[1].clone().requires_grad_()
    net(x, leaf.expand(len(x))).sum().backward()
    parts = shared.clone().requires_grad_()
    net(x, parts).sum().backward()
    assert torch.allclose(leaf.grad, parts.grad.sum(), rtol=1e-10)


@pytest.mark.parametrize("case", SMALL)
def test_every_mode_of_differentiation_gives_one_jacobian(case: str) -> None:
    net, x, t = build(case)
    x, t = x[:2], t[:2]
    size, v = x[0].numel(), torch.ones_like(x).cumsum(0)

    def one(x: Tensor, t: Tensor) -> Tensor:
        return net(x[None], t[None])[0]

    jacobian = vmap(jacrev(one))(x, t).reshape(2, size, size)
    exact = jacobian.diagonal(dim1=1, dim2=2).sum(1)
    assert exact.abs().min() > 1e-6
    forward = vmap(jacfwd(one))(x, t).reshape(2, size, size)
    assert torch.allclose(forward, jacobian, rtol=1e-10, atol=1e-12)

    basis = torch.eye(size, dtype=x.dtype).reshape(size, 1, *x.shape[1:]).expand(size, *x.shape)
    pull = vjp(lambda x: net(x, t), x)[1]
    pulled = vmap(lambda v: pull(v)[0])(basis)
    pushed = vmap(lambda v: jvp(lambda x: net(x, t), (x,), (v,))[1])(basis)
    leaf = x.clone().requires_grad_()
    (batched,) = torch.autograd.grad(net(leaf, t), leaf, basis, is_grads_batched=True)
    for columns in (pulled, pushed, batched):
        assert torch.allclose((columns * basis).flatten(2).sum((0, 2)), exact, rtol=1e-10, atol=1e-12)

    quadratic = torch.einsum("bi,bij,bj->b", v.flatten(1), jacobian, v.flatten(1))
    tangent = jvp(lambda x: net(x, t), (x,), (v,))[1]
    for product in (tangent, pull(v)[0]):
        assert torch.allclose((product * v).flatten(1).sum(1), quadratic, rtol=1e-10)


@pytest.mark.parametrize("case", SMALL)
def test_derivative_in_time_matches_a_central_difference(case: str) -> None:
    net, x, t = build(case)
    slope = jvp(lambda t: net(x, t), (t,), (torch.ones_like(t),))[1]
    difference = (net(x, t + 1e-5) - net(x, t - 1e-5)) / 2e-5
    assert slope.abs().max() > 1e-3
    assert torch.allclose(slope, difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", [*KINDS, "unet-attends", "unet-pixel", "dit-signal"])
def test_every_weight_is_used_and_every_pixel_is_seen(case: str) -> None:
    net, x, t = build(case)
    x.requires_grad_()
    net(x, t).square().sum().backward()
    assert not [name for name, p in net.named_parameters() if not p.grad.abs().max() > 1e-12]
    assert (x.grad.abs() > 1e-9).all()


@pytest.mark.parametrize("case", ["mlp-vector", "unet-signal", "unet-odd", "dit-odd"])
def test_conditions_matter_and_stay_in_their_row(case: str) -> None:
    for arguments, cond in (
        ({"cond_dim": 2}, torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, -1.0], [2.0, 2.0]])),
        ({"num_classes": 3}, torch.tensor([0, 1, 2, 1])),
    ):
        net, x, t = build(case, **arguments)
        y = net(x, t, cond)
        changed = cond.clone()
        changed[1] = cond[0]
        moved = (net(x, t, changed) - y).flatten(1).abs().amax(1)
        assert moved[1] > 1e-4 and moved[[0, 2, 3]].max() < 1e-13
        rows = vmap(lambda x, t, c, net=net: net(x[None], t[None], c[None])[0])(x, t, cond)
        assert torch.allclose(rows, y, rtol=1e-12, atol=1e-12)
        assert torch.allclose(net(x, t[1].expand(4), cond)[1], y[1], rtol=1e-12, atol=1e-12)
    assert torch.equal(net(x, t, cond.to(torch.uint8)), y)


@pytest.mark.parametrize("case", ["mlp-vector", "unet-odd", "dit-signal"])
@pytest.mark.parametrize("kind", ["cond_dim", "num_classes"])
def test_a_condition_may_be_absent(case: str, kind: str) -> None:
    net, x, t = build(case, optional_cond=True, **{kind: 3})
    plain = build(case, **{kind: 3})[0]
    plain.load_state_dict({n: v for n, v in net.state_dict().items() if n in plain.state_dict()})
    if kind == "cond_dim":
        cond, none = torch.randn(4, 3, dtype=torch.float64), torch.full((3,), math.nan).double()
    else:
        cond, none = torch.tensor([0, 1, 2, 1]), torch.tensor(-1)
    y, absent = net(x, t, cond), net(x, t)
    assert torch.equal(plain(x, t, cond), y)  # as without the option, where there is a condition
    mixed = torch.where(torch.tensor([False, True, False, True]).view(4, *[1] * (cond.ndim - 1)), none, cond)
    expected = torch.stack([y[0], absent[1], y[2], absent[3]])
    assert torch.allclose(net(x, t, mixed), expected, rtol=1e-12, atol=1e-12)
    assert (y - absent).flatten(1).abs().amax(1).min() > 1e-4
    assert torch.allclose(net(x, t[1].expand(4))[1], absent[1], rtol=1e-12, atol=1e-12)
    rows = vmap(lambda x, t, c: net(x[None], t[None], c[None])[0])(x, t, mixed)
    assert torch.allclose(rows, expected, rtol=1e-12, atol=1e-12)
    v = torch.ones_like(x)
    tangent, pulled = jvp(lambda x: net(x, t, mixed), (x,), (v,))[1], vjp(lambda x: net(x, t, mixed), x)[1]
    assert torch.allclose((tangent * v).sum(), (pulled(v)[0] * v).sum(), rtol=1e-10)
    net(x, t, mixed).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("case", ["mlp-vector", "unet-odd", "dit-signal"])
def test_augmentation_labels_matter_and_default_to_zeros(case: str) -> None:
    net, x, t = build(case, augment_dim=3, num_classes=2, optional_cond=True)
    labels, cond = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, -1, 1])
    assert torch.allclose(net(x, t, cond, 0 * labels), net(x, t, cond), rtol=1e-12, atol=1e-12)
    y = net(x, t, augment=labels)
    assert (y - net(x, t)).flatten(1).abs().amax(1).min() > 1e-4
    rows = vmap(lambda x, t, a: net(x[None], t[None], augment=a[None])[0])(x, t, labels)
    assert torch.allclose(rows, y, rtol=1e-12, atol=1e-12)
    assert torch.allclose(net(x, t[1].expand(4), augment=labels)[1], y[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("case", "arguments"),
    [
        *((case, {"cond_dim": 2, "dropout": 0.25}) for case in CASES),
        *((case, arguments) for case in KINDS for arguments in ({}, {"num_classes": 3})),
    ],
)
def test_config_rebuilds_the_network(case: str, arguments: dict[str, object]) -> None:
    net, x, t = build(case, **arguments)
    net.eval()
    config = json.loads(json.dumps(net.config))
    assert config == net.config and arguments.items() <= config.items()
    again = REGISTRY[type(net).__name__](**config).double().eval()
    again.load_state_dict(net.state_dict())
    cond = {"cond_dim": torch.ones(4, 2), "num_classes": torch.tensor([0, 2, 1, 1])}
    cond = next((value for name, value in cond.items() if config[name]), None)
    assert again.config == config and torch.equal(again(x, t, cond), net(x, t, cond))


def test_config_names_every_constructor_argument() -> None:
    for cls, net in ((MLP, MLP(3)), (UNet, UNet(base=4)), (DiT, DiT(width=8, depth=1))):
        names = cls.__init__.__code__.co_varnames[1 : cls.__init__.__code__.co_argcount]
        assert sorted(net.config) == sorted(names)


def test_dropout_acts_only_in_training() -> None:
    for case in ("mlp-vector", "unet-signal", "dit-signal"):
        net, x, t = build(case, dropout=0.5)
        assert not torch.equal(net(x, t), net(x, t))
        assert torch.equal(net.eval()(x, t), net(x, t))


@pytest.mark.parametrize("case", ["mlp-vector", "ncsnpp-large", "adm-like", "dit-odd"])
def test_learns_a_small_problem(case: str) -> None:
    make, shape = CASES[case]
    torch.manual_seed(0)
    net, (x, t) = make(), batch(shape, dtype=torch.float32)
    target = x.flip(-1) * t.view(-1, *[1] * len(shape))
    optimizer, losses = torch.optim.Adam(net.parameters(), lr=1e-2), []
    for _ in range(30):
        loss = (net(x, t) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[-5:]) < 0.3 * losses[0]


@pytest.mark.parametrize("case", ["mlp-image", "unet-odd", "ncsnpp-large", "dit-odd"])
def test_several_values_for_every_entry(case: str) -> None:
    make, shape = CASES[case]
    if case == "ncsnpp-large":  # a setting, which has one output, of a network that may have more
        net = UNet(**{**make().config, "values": 3}).double()
    else:
        net = make(values=3).double()
    x, t = batch(shape)
    assert stir(net)(x, t).shape == (4, 3, *shape)


def test_published_sizes() -> None:
    def millions(net: nn.Module, shifts_only: bool = False) -> float:
        scales = sum(p.numel() for p in net.embedding.modulation.parameters()) / 2
        return (sum(p.numel() for p in net.parameters()) - shifts_only * scales) / 1e6

    with torch.device("meta"):
        for size, published in ((64, 295.9), (128, 421.5), (256, 553.8)):
            assert millions(ADM(size=size, num_classes=1000)) == pytest.approx(published, rel=2e-3)
        for size, published in (("S", 33), ("B", 130), ("L", 458), ("XL", 675)):
            net = SizedDiT(size, channels=4, num_classes=1000, optional_cond=True)
            assert round(millions(net)) == published
        # Song et al. only shift, and attend once per level on the way up, not after each of five blocks.
        assert millions(DDPMpp(), shifts_only=True) == pytest.approx(62, rel=0.02)
        assert millions(NCSNpp(), shifts_only=True) == pytest.approx(62, rel=0.03)


@pytest.mark.parametrize("fir", [False, True])
@pytest.mark.parametrize("size", [(1,), (6,), (7,), (1, 4), (5, 2), (3, 2, 1)])
def test_changes_of_size_keep_constants_and_undo_each_other(size: tuple[int, ...], fir: bool) -> None:
    style = Style(len(size), 8, 0.0, True, 64, fir)
    ones = torch.ones(2, 3, *size, dtype=torch.float64) * torch.arange(1.0, 4).view(3, *[1] * len(size))
    half = Halve(style).double()(ones)
    assert half.shape[2:] == tuple(-(-n // 2) for n in size)
    assert torch.allclose(half, ones[(..., *(slice(n) for n in half.shape[2:]))], rtol=1e-14)
    assert torch.allclose(Double(style).double()(half, torch.Size(size)), ones, rtol=1e-14)


def test_the_filter_keeps_aliases_out_and_lines_straight() -> None:
    style = Style(1, 8, 0.0, True, 64, True)
    line = torch.arange(12, dtype=torch.float64).view(1, 1, -1)
    waves = (-1) ** line
    assert torch.allclose(Halve(style).double()(line)[0, 0, 1:-1], line[0, 0, 2:-2:2] + 0.5)
    assert Halve(style).double()(waves)[0, 0, 1:-1].abs().max() < 1e-14
    assert torch.allclose(Double(style).double()(line)[0, 0, 1:-1], torch.arange(1, 23).double() / 2 - 0.25)


@pytest.mark.parametrize("case", ["unet-odd", "ncsnpp-large", "dit-odd"])
def test_channels_last_gives_the_same(case: str) -> None:
    net, x, t = build(case)
    y = net(x, t)
    net.to(memory_format=torch.channels_last)
    assert torch.allclose(net(x.to(memory_format=torch.channels_last), t), y, rtol=1e-11, atol=1e-12)


def test_forward_leaves_the_generator_and_the_inputs_alone() -> None:
    for case in SMALL:
        net, x, t = build(case)
        before, kept = torch.get_rng_state(), (x.clone(), t.clone())
        net(x, t)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(x, kept[0]) and torch.equal(t, kept[1])


def test_image_of_an_mlp_is_its_flattened_vector() -> None:
    net, x, t = build("mlp-image")
    assert torch.equal(net(x, t).flatten(1), net(x.flatten(1), t))
    assert torch.equal(net(x.transpose(2, 3), t), net(x.transpose(2, 3).contiguous(), t))


def test_group_norms_divide_any_width() -> None:
    for base in (4, 5, 7, 12, 30):
        for module in UNet(base=base, multipliers=(1, 3), groups=32).modules():
            if isinstance(module, nn.GroupNorm):
                assert module.num_channels % module.num_groups == 0
                assert module.num_channels // module.num_groups >= 4


def test_attention_ignores_the_order_of_pixels() -> None:
    net, *_ = build("unet-attends")
    attention = next(m for m in net.modules() if type(m).__name__ == "Attention")
    x = torch.randn(2, attention.norm.num_channels, 3, 4, dtype=torch.float64)
    order = torch.randperm(12)
    y = attention(x).flatten(2)[..., order]
    assert torch.allclose(attention(x.flatten(2)[..., order]), y, rtol=1e-12, atol=1e-12)


def test_heads_attend_as_torch_does() -> None:
    attention = stir(Attention(Style(1, 8, 0.0, True, 64, False), 128).double())
    x = torch.randn(2, 128, 6, dtype=torch.float64)
    q, k, v = (
        part.reshape(2, 2, 64, 6).transpose(2, 3) for part in attention.qkv(attention.norm(x)).chunk(3, dim=1)
    )
    h = nn.functional.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(2, 128, 6)
    expected = (x + attention.output(h)) * math.sqrt(0.5)
    assert torch.allclose(attention(x), expected, rtol=1e-12, atol=1e-12)


def test_fourier_features_are_the_formula_and_survive_casts() -> None:
    features = FourierFeatures(6, lowest=0.5, highest=8.0).double()
    t = torch.tensor([-4.0, 0.3, 2.0], dtype=torch.float64)
    angle = t[:, None] * torch.tensor([0.5, 2.0, 8.0], dtype=torch.float64)
    assert torch.allclose(features(t), torch.cat([angle.cos(), angle.sin()], 1), rtol=0, atol=1e-5)
    assert features(t).square().sum(1).sub(3).abs().max() < 1e-14
    assert not features.state_dict()


def test_blurred_waves_are_averages_of_waves_over_the_noise() -> None:
    waves = BlurredWaves(3, lowest=0.5, highest=8.0).double()
    x, s = torch.randn(5, 2, dtype=torch.float64), torch.tensor([1e-9, 0.01, 0.1, 1.0, 3.0]).double()
    node = torch.linspace(-9, 9, 2001, dtype=torch.float64)
    weight = torch.exp(-0.5 * node.square())  # the trapezoid rule is exact to rounding
    y = x * (1 + s[:, None] ** 2).sqrt() + s[:, None] * node[:, None, None]  # (node, B, d)
    angle = (y[..., None] * torch.tensor([0.5, 2.0, 8.0]).double()).flatten(2)
    clean = torch.cat([angle.cos(), angle.sin()], dim=2)
    mean = (weight[:, None, None] * clean).sum(0) / weight.sum()
    assert torch.allclose(waves(x, s.log() / 4), mean, rtol=0, atol=2e-5)  # frequencies are of float32
    assert not waves.state_dict()


def test_modulation_starts_near_the_identity() -> None:
    embed = NoiseEmbedding([4, 6], features=8, dim=16)
    with torch.no_grad():
        embed.modulation.weight.zero_()
    for scale, shift in embed(torch.randn(3)):
        assert torch.equal(scale, torch.ones_like(scale)) and torch.equal(shift, torch.zeros_like(shift))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MLP(0), "dim=0: give a whole number of at least 1"),
        (lambda: MLP(2.0), "dim=2.0"),
        (lambda: MLP(2, hidden=True), "hidden=True"),
        (lambda: MLP(2, blocks=0), "blocks=0"),
        (lambda: MLP(2, time_dim=7), "dim=7, but its features come in pairs"),
        (lambda: MLP(2, dropout=1.0), "dropout=1.0"),
        (lambda: MLP(2, cond_dim=-1), "cond_dim=-1"),
        (lambda: MLP(2, cond_dim=1, num_classes=2), "one kind of condition"),
        (lambda: MLP(2, optional_cond=True), "optional_cond=True but no condition: give cond_dim"),
        (lambda: MLP(2, augment_dim=-1), "augment_dim=-1"),
        (lambda: MLP(2, frequencies=-1), "frequencies=-1"),
        (lambda: MLP(2, frequencies=4, highest=0.5), "from 1.0 to 0.5: give finite ones"),
        (lambda: UNet(channels=0), "channels=0"),
        (lambda: UNet(dims=4), "dims=4: give 1 for signals"),
        (lambda: UNet(base=3), "base=3"),
        (lambda: UNet(multipliers=()), "no multipliers"),
        (lambda: UNet(multipliers=2), "multipliers=2: give a sequence"),
        (lambda: UNet(multipliers=(1, 0)), "multiplier=0"),
        (lambda: UNet(attention=(2,)), r"attention=\(2,\) but has only levels 0 to 1"),
        (lambda: UNet(attention=(-3,)), "attention level=-3"),
        (lambda: UNet(groups=0), "groups=0"),
        (lambda: UNet(blocks=0), "blocks=0"),
        (lambda: UNet(dropout="much"), "dropout='much'"),
        (lambda: UNet(cond_dim=1, num_classes=2), "one kind of condition"),
        (lambda: UNet(resample="fir"), "resample='fir': take one of conv, block"),
        (lambda: UNet(input_pyramid="x"), "input_pyramid='x': take one of none, residual, skip"),
        (lambda: UNet(output_pyramid=True), "output_pyramid=True: take one of none, skip"),
        (lambda: UNet(head_channels=0), "head_channels=0"),
        (lambda: UNet(values=0), "values=0"),
        (lambda: ADM(size=32), "ADM was given size=32: take one of 64, 128, 256"),
        (lambda: SizedDiT("M"), "SizedDiT was given size='M': take one of S, B, L, XL"),
        (lambda: DiT(dims=4), "DiT was given dims=4"),
        (lambda: DiT(width=30), "width=30, which 4 heads and 4 parts of positions do not divide"),
        (lambda: DiT(patch=0), "DiT was given patch=0"),
        (lambda: FourierFeatures(4, lowest=2.0, highest=1.0), "lowest <= highest"),
    ],
)
def test_wrong_arguments_are_named(make, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert_one_sentence(caught.value)


PLAIN, VECTOR, LABEL = MLP(3, hidden=8), MLP(3, hidden=8, cond_dim=2), MLP(3, hidden=8, num_classes=4)
AUGMENTED, OPTIONAL = MLP(3, hidden=8, augment_dim=2), MLP(3, hidden=8, num_classes=4, optional_cond=True)
IMAGE, TRANSFORMER = UNet(channels=1, base=4), DiT(channels=1, width=8, depth=1)
X, T, LABELS = torch.zeros(2, 3), torch.zeros(2), torch.tensor([0, 3])


@pytest.mark.parametrize(
    ("net", "inputs", "said"),
    [
        (PLAIN, (torch.zeros(3), T), r"x of shape \(3,\): give \(B, \*E\) with E of total size 3"),
        (PLAIN, (torch.zeros(2, 4), T), r"x of shape \(2, 4\)"),
        (PLAIN, (X.double(), T.double()), r"x.to\(torch.float32\)"),
        (PLAIN, (X.long(), T), "torch.int64 x"),
        (PLAIN, (X, torch.tensor(0.0)), r"t of shape \(\)"),
        (PLAIN, (X, torch.zeros(2, 1)), r"t of shape \(2, 1\)"),
        (PLAIN, (X, torch.zeros(3)), r"noise levels of shape \(2,\)"),
        (PLAIN, (X, T.long()), "floating-point noise levels"),
        (PLAIN, (X, T, torch.zeros(2, 1)), "built without a condition"),
        (VECTOR, (X, T), r"given none: pass cond as a floating-point tensor of shape \(2, 2\)"),
        (VECTOR, (X, T, torch.zeros(2)), r"cond of shape \(2,\)"),
        (VECTOR, (X, T, torch.zeros(1, 2)), r"cond of shape \(1, 2\)"),
        (VECTOR, (X, T, torch.zeros(2, 2, dtype=torch.long)), "torch.int64: pass cond as a floating"),
        (LABEL, (X, T), r"pass cond as integer labels of shape \(2,\)"),
        (LABEL, (X, T, torch.tensor(1)), r"cond of shape \(\)"),
        (LABEL, (X, T, torch.zeros(2)), "torch.float32: pass cond as integer labels"),
        (LABEL, (X, T, LABELS > 0), "torch.bool"),
        (LABEL, (X, T, LABELS + 1), r"class label outside 0\.\.3"),
        (LABEL, (X, T, LABELS - 1), r"class label outside 0\.\.3"),
        (PLAIN, (X, T, None, torch.zeros(2, 4)), "drop it, or build the network with augment_dim=4"),
        (AUGMENTED, (X, T, None, torch.zeros(2)), r"augment of shape \(2,\)"),
        (AUGMENTED, (X, T, None, LABELS[:, None].expand(2, 2)), r"floating-point labels of shape \(2, 2\)"),
        (OPTIONAL, (X, T, LABELS - 2), r"class label outside 0\.\.3, or -1 for none"),
        (IMAGE, (torch.zeros(2, 1, 4), T), r"give \(B, 1, H, W\)"),
        (IMAGE, (torch.zeros(2, 3, 4, 4), T), r"x of shape \(2, 3, 4, 4\)"),
        (IMAGE, (torch.zeros(2, 1, 0, 4), T), "no empty axis"),
        (IMAGE, (torch.zeros(2, 1, 4, 4), T[:1]), "UNet was given t"),
        (TRANSFORMER, (torch.zeros(2, 3, 4, 4), T), r"DiT\(channels=1, dims=2\) was given x of shape"),
        (TRANSFORMER, (torch.zeros(2, 1, 4, 4), T[:1]), "DiT was given t"),
    ],
)
def test_wrong_inputs_are_named(net: nn.Module, inputs: tuple[Tensor, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        net(*inputs)
    assert_one_sentence(caught.value)


def assert_one_sentence(error: ValueError) -> None:
    message = str(error)
    assert message.endswith(".") and "\n" not in message and ". " not in message
