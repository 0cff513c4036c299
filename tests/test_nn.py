"""Blocks, fields and models: counts, twins, shapes, and gradients through them."""

import gc
import math

import pytest
import torch
from torch import nn

import pyode
from pyode import nn as pn


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("model", "parameters", "tolerance"),
    [
        (pn.ecg_resnet, 182_853, 0),
        (pn.ecg_odenet, 59_333, 0),
        (pn.simple_odenet, 169_000, 0.01),
        (pn.simple_resnet, 169_000, 0.01),
        (lambda: pn.simple_resnet(blocks=3), 248_000, 0.01),
        (lambda: pn.simple_odenet(3), 1_270_000, 0.01),
        (lambda: pn.simple_resnet(3), 1_270_000, 0.01),
        (lambda: pn.simple_resnet(3, blocks=3), 2_470_000, 0.01),
        (pn.complex_odenet, 394_000, 0.01),
        (lambda: pn.complex_resnet(3), 413_000, 0.01),
        (pn.ResNet18, 11_689_512, 0),
    ],
)
def test_parameter_counts_are_those_reported(model, parameters, tolerance):
    assert abs(count(model()) - parameters) <= tolerance * parameters


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (pn.ecg_odenet, (2, 1, 187)),
        (pn.ecg_resnet, (2, 1, 187)),
        (pn.mnist_odenet, (2, 1, 28, 28)),
        (pn.simple_odenet, (2, 1, 28, 28)),
        (lambda: pn.simple_odenet(3), (2, 3, 32, 32)),
        (lambda: pn.complex_odenet(3), (2, 3, 32, 32)),
        (pn.complex_resnet, (2, 1, 28, 28)),
        (lambda: pn.ResNet18(1, 10), (2, 1, 28, 28)),
    ],
)
def test_models_classify_and_every_parameter_learns(model, shape):
    torch.manual_seed(0)
    net = model()
    out = net(torch.randn(shape))
    assert out.shape[0] == 2
    out.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize(("conv", "sides"), [(pn.ConcatConv1d, 1), (pn.ConcatConv2d, 2)])
def test_concat_conv_is_a_convolution_of_time_and_state(conv, sides):
    torch.manual_seed(0)
    layer = conv(3, 4, 3, padding=1).double()
    x = torch.randn(2, 3, *[5] * sides, dtype=torch.float64)
    plain = nn.functional.conv1d if sides == 1 else nn.functional.conv2d
    for t in (torch.tensor(0.7), torch.tensor([0.2, 0.9]).reshape(2, *[1] * (sides + 1))):
        time = t.double().expand(2, 1, *x.shape[2:])
        expected = plain(torch.cat([time, x], 1), layer.weight, layer.bias, padding=1)
        torch.testing.assert_close(layer(t.double(), x), expected)


def test_mnist_state_is_64_by_12_by_12():
    net = pn.mnist_odenet()
    assert net[:4](torch.randn(1, 1, 28, 28)).shape == (1, 64, 12, 12)


def test_resnet18_has_torchvision_names():
    names = set(dict(pn.ResNet18().named_parameters()))
    assert {"conv1.weight", "layer2.0.downsample.1.bias", "layer4.1.bn2.weight", "fc.bias"} <= names
    assert len(names) == 62


def test_piecewise_theta_with_euler_is_a_resnet_bitwise():
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(5)]
    x = torch.randn(4, 3)
    block = pn.NeuralODE(
        pn.Piecewise(layers, span=(0.0, 5.0), time=False), (0.0, 5.0),
        solver=pyode.Euler(step_size=1.0),
    )  # fmt: skip
    expected = x
    for layer in layers:
        expected = expected + layer(expected)
    assert torch.equal(block(x), expected)


def test_augment_appends_zero_channels():
    block = pn.NeuralODE(pn.MLP([5, 8, 5]), augment=3)
    out = block(torch.randn(2, 2))
    assert out.shape == (2, 5)
    assert torch.equal(block.augmented(torch.ones(2, 2))[:, 2:], torch.zeros(2, 3))


def test_with_solver_keeps_the_weights():
    torch.manual_seed(0)
    block = pn.NeuralODE(pn.MLP([2, 16, 2]), solver=pyode.Dopri5(rtol=1e-6, atol=1e-6))
    other = block.with_solver(pyode.RK4(step_size=0.05), adjoint=pyode.Interpolating())
    x = torch.randn(3, 2)
    torch.testing.assert_close(block(x), other(x), rtol=1e-4, atol=1e-5)
    assert other.field is block.field
    assert other.nfe > block.nfe > 0
    with pytest.raises(pyode.InputError, match="solvr"):
        block.with_solver(pyode.RK4(), solvr=1)


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        ({"span": (1.0, 1.0)}, "`span` got"),
        ({"span": (0.0, float("inf"))}, "`span` got"),
        ({"solver": "dopri5"}, "`solver` got 'dopri5'. Did you mean 'Dopri5'?"),
        ({"adjoint": "gaus"}, "`adjoint` got 'gaus'. Did you mean 'Gauss'?"),
        ({"rtol": 1e-3}, "has no option `rtol`: it is the solver's"),
        ({"maxsteps": 5}, "Did you mean 'max_steps'?"),
    ],
)
def test_a_block_refuses_wrong_options_when_it_is_made(options, phrase):
    for module in (pn.NeuralODE, pn.CNF):
        with pytest.raises(pyode.InputError) as caught:
            module(pn.MLP([2, 2]), **options)
        assert phrase in str(caught.value)


@pytest.mark.parametrize("engine", ["torch", "scipy"])
def test_a_block_takes_its_engines_usual_adjoint(engine):
    torch.manual_seed(0)
    x = torch.randn(4, 2)
    block = pn.NeuralODE(pn.MLP([2, 8, 2]), solver=pyode.Dopri5(), engine=engine)
    flow = pn.CNF(pn.MLP([2, 8, 2]), engine=engine)
    flow.log_prob(block(x)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


def test_regularizers_integrate_their_density():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor([[0.0, 1.0], [-2.0, 0.0]], dtype=torch.float64))

        def forward(self, t, y):
            return y @ self.a.T

    torch.manual_seed(0)
    f = Linear()
    jacobian = pn.JacobianFrobenius(weight=1.0)
    block = pn.NeuralODE(
        f, (0.0, 2.0), solver=pyode.Dopri5(rtol=1e-8, atol=1e-10),
        regularizers=[pn.Kinetic(weight=0.0), jacobian],
    )  # fmt: skip
    x = torch.randn(3, 2, dtype=torch.float64)
    block(x)
    exact = 2.0 * (jacobian.noise[0] @ f.a).square().mean()
    torch.testing.assert_close(block.penalty, exact, rtol=1e-6, atol=1e-8)
    block.penalty.backward()
    got = f.a.grad.clone()
    f.a.grad = None
    (2.0 * (jacobian.noise[0] @ f.a).square().mean()).backward()
    torch.testing.assert_close(got, f.a.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("terms", [[], [pn.Kinetic()], [pn.JacobianFrobenius()]])
def test_a_batch_leaves_no_tensors_behind(terms):
    block = pn.NeuralODE(pn.MLP([2, 8, 2]), regularizers=terms)
    x, counts = torch.randn(4, 2), []
    for _ in range(6):
        loss = block(x).sum()
        (loss if block.penalty is None else loss + block.penalty).backward()
        block.zero_grad()
        counts.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))
    assert counts[-1] == counts[2]


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_cnf_of_a_linear_field_is_a_gaussian(trace):
    class Shrink(nn.Module):
        def __init__(self):
            super().__init__()
            self.k = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

        def forward(self, t, y):
            return -self.k * y

    flow = pn.CNF(Shrink(), trace=trace, solver=pyode.Dopri5(rtol=1e-9, atol=1e-9))
    x = torch.randn(5, 2, dtype=torch.float64)
    scale = math.exp(0.7)  # z = x e^{-k}: the data are normal with standard deviation e^k
    exact = torch.distributions.Normal(0.0, scale).log_prob(x).sum(1)
    torch.testing.assert_close(flow.log_prob(x), exact, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(flow.to_data(flow.to_latent(x)), x, rtol=1e-7, atol=1e-7)
    assert flow.sample(7).shape == (7, 2)
    flow.log_prob(x).sum().backward()
    assert torch.isfinite(flow.field.k.grad)


def test_galerkin_starts_as_its_module_and_depends_on_time():
    torch.manual_seed(0)
    base = pn.MLP([2, 4, 2])
    for basis in ("polynomial", "fourier"):
        field = pn.Galerkin(base, terms=3, basis=basis)
        y = torch.randn(3, 2)
        torch.testing.assert_close(field(torch.tensor(0.3), y), base(torch.tensor(0.3), y))
        with torch.no_grad():
            field.coefficients[0][1] += 1.0
        assert not torch.equal(field(torch.tensor(0.1), y), field(torch.tensor(0.2), y))
        pn.NeuralODE(field)(y).sum().backward()
        assert all(c.grad is not None for c in field.coefficients)


def test_latent_ode_shapes_and_learning_signal():
    torch.manual_seed(0)
    model = pn.LatentODE(observed=2, latent=3)
    ts = torch.linspace(0, 1, 9)
    posterior = model(ts, torch.randn(9, 4, 2))
    assert posterior.decoded.shape == (9, 4, 2)
    assert posterior.mean.shape == (4, 3)
    (-model.elbo(posterior, torch.randn(9, 4, 2))).backward()
    assert all(p.grad is not None for p in model.parameters())
