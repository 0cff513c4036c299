"""Arguments in forms that are less usual: kinds of dicts, inference tensors, times asked for."""

import collections

import pytest
import torch

import pyode

F64 = torch.float64
ADJOINTS = [
    *(pyode.Discrete(), pyode.Discrete(memory="steps"), pyode.Backsolve(), pyode.Interpolating()),
    *(pyode.Gauss(), pyode.Quadrature(), pyode.Forward()),
]


def default(**items):
    return collections.defaultdict(list, items)


KINDS = [dict, collections.OrderedDict, default]


@pytest.mark.parametrize("given", KINDS)
@pytest.mark.parametrize("returned", KINDS)
def test_kinds_of_dicts(given, returned):
    y0 = given(b=torch.ones(1, dtype=F64), a=torch.ones(2, dtype=F64))
    ys = pyode.solve(lambda t, y: returned(a=-y["a"], b=0 * y["b"]), y0, (0.0, 1.0)).ys
    assert type(ys) is type(y0)
    assert list(ys) == ["b", "a"]
    assert torch.equal(ys["b"], torch.ones(2, 1, dtype=F64))
    torch.testing.assert_close(ys["a"][-1], torch.tensor([-1.0, -1.0], dtype=F64).exp())


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_times_made_in_inference_mode(adjoint):
    with torch.inference_mode():
        ts = torch.linspace(0, 1, 3, dtype=F64)
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    ys = pyode.solve(lambda t, y: -y, y0, ts, adjoint=adjoint).ys
    (got,) = torch.autograd.grad(ys[-1].sum(), y0)
    torch.testing.assert_close(got, torch.full_like(y0, -1.0).exp(), rtol=1e-5, atol=0)


def dense():
    return pyode.odeint_dense(lambda t, y: -y, torch.ones(2, dtype=F64), 0.0, 1.0)


def solution():
    return pyode.solve(lambda t, y: -y, torch.ones(2, dtype=F64), (0.0, 1.0))


@pytest.mark.parametrize("made", [solution, dense])
def test_times_at_which_a_solution_is_asked_for(made):
    y = made()
    for wrong in ("a", None, 1j, torch.tensor(1j), [0.1, None], {"a": 1}):
        with pytest.raises(pyode.InputTypeError, match=r"`t` got .* Pass a number"):
            y(wrong)
    with pytest.raises(pyode.InputError, match=r"`t` has shape \[1, 2\]"):
        y([[0.1, 0.2]])
    with pytest.raises(pyode.InputError, match="nan, outside"):
        y(float("nan"))
    assert y([]).shape == (0, 2)
    assert torch.equal(y([0.1, 0.2])[1], y(0.2))


def computed_outside():
    raw = torch.tensor([0.5], dtype=F64, requires_grad=True)
    w = torch.exp(raw)
    return raw, w, lambda t, y: w * y


@pytest.mark.parametrize("solver", [pyode.Tsit5(), pyode.Kvaerno5()], ids=str)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_params_that_f_uses_only_through_another_tensor(adjoint, solver):
    raw, w, f = computed_outside()
    y0 = torch.ones(1, dtype=F64)

    def gradient(given):
        sol = pyode.solve(f, y0, (0.0, 1.0), params=(given,), adjoint=adjoint, solver=solver)
        return torch.autograd.grad(sol.ys[-1].sum(), raw)[0]

    with pytest.raises(pyode.MissingGradientError, match="outside f from one of `params`"):
        gradient(raw)
    raw, w, f = computed_outside()
    want = w.detach() * w.detach().exp()
    torch.testing.assert_close(gradient(w), want, rtol=1e-4, atol=0)


@pytest.mark.compiled
def test_what_is_computed_from_parameters_is_no_constant_of_compiled_steps():
    raw, _, f = computed_outside()
    y0, engine = torch.ones(1, dtype=F64), pyode.Torch(compile=True)
    with pytest.warns(pyode.CompileWarning, match="computed from one of `params`, outside f"):
        sol = pyode.solve(f, y0, (0.0, 1.0), params=(raw,), engine=engine)
    with pytest.raises(pyode.MissingGradientError):
        sol.ys[-1].sum().backward()
