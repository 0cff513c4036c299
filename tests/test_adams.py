"""Adams methods: their weights, orders on unequal steps, beginnings, outputs and gradients."""

import math
import warnings
from fractions import Fraction

import pytest
import torch
from dropin import Net, both
from helpers import F64, leaf, name_of, slope
from torch.autograd import gradcheck, gradgradcheck

import pyode
from pyode._torch.adams import AdamsMethod, weights

EXPLICIT, IMPLICIT = pyode.AdamsBashforth, pyode.AdamsBashforthMoulton
KINDS = (EXPLICIT, IMPLICIT)
EXACT = {EXPLICIT: {}, IMPLICIT: {"rtol": 0.0, "atol": 0.0, "iterations": 3}}
TIMES = (0.0, 0.3, 0.5, 0.9, 1.4, 1.6)
# Hairer, Nørsett, Wanner (1993), III.1, (1.5) and (1.9)
PUBLISHED = {
    EXPLICIT: {3: (23, -16, 5), 4: (55, -59, 37, -9), 5: (1901, -2774, 2616, -1274, 251)},
    IMPLICIT: {3: (5, 8, -1), 4: (9, 19, -5, 1), 5: (251, 646, -264, 106, -19)},
}
DIVISORS = {3: 12, 4: 24, 5: 720}


def rate(p):
    return lambda t, y: torch.stack(
        [torch.sin(y[1]) * p[0] + 0.1 * t * y[0], p[1] * y[0] - y[1] * torch.cos(t)]
    )


def parameters():
    return leaf(1.0, 0.2), leaf(0.7, -0.3)


@pytest.mark.parametrize("order", [3, 4, 5])
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_weights_of_equal_steps(kind, order):
    first = 0.0 if kind is EXPLICIT else 1.0
    nodes = first - torch.arange(order, dtype=F64)
    expected = [float(Fraction(x, DIVISORS[order])) for x in PUBLISHED[kind][order]]
    found = weights(nodes, torch.tensor(0.0, dtype=F64), torch.tensor(1.0, dtype=F64))
    assert found.tolist() == pytest.approx(expected, rel=1e-14)


def test_weights_of_unequal_steps():
    """Polynomials below the number of nodes are integrated exactly, whatever the nodes."""
    nodes = [0.0, -0.3, -1.1, -1.2, -2.0, -2.9, 0.7, -3.3, -3.5, -4.0, -4.2, -5.0, 0.2]
    nodes = torch.tensor(nodes, dtype=F64)
    start, ends = torch.tensor(0.0, dtype=F64), torch.tensor([0.25, 0.7], dtype=F64)
    for q in range(1, 14):
        found = weights(nodes[:q], start, ends)
        for power in range(q):
            exact = ends ** (power + 1) / (power + 1)
            size = (found * nodes[:q] ** power).abs().sum(-1) + exact
            assert ((found @ nodes[:q] ** power - exact).abs() <= 1e-12 * size).all(), (q, power)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_order_on_unequal_steps(kind, order):
    """A step of order three, or four, stays at the start: four, or five, is the most there is."""
    if kind is IMPLICIT and order == 1:
        pytest.skip("of order two and more")
    _, p = parameters()
    y0 = torch.tensor([1.0, 0.2], dtype=F64)
    with torch.no_grad():
        exact = pyode.solve(rate(p), y0, (0.0, 2.0), solver=pyode.Dopri8(rtol=1e-13, atol=1e-13))
        sizes, errors = [], []
        for n in (120, 240, 480):
            x = torch.linspace(0.0, 1.0, n + 1, dtype=F64)
            grid = tuple((2.0 * (x + 0.04 * torch.sin(2 * math.pi * x))).tolist())
            more = {} if kind is EXPLICIT else {"rtol": 1e-14, "atol": 1e-14, "iterations": 30}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", pyode.ToleranceWarning)  # of rounding itself
                sol = pyode.solve(rate(p), y0, (0.0, 2.0),
                                  solver=kind(order=order, step_size=grid, **more))  # fmt: skip
            sizes.append(2.0 / n)
            errors.append(float((sol.ys[-1] - exact.ys[-1]).abs().max()))
    expected = min(order, 4 if kind is EXPLICIT else 5)
    assert slope(sizes, errors)[0] == pytest.approx(expected, abs=0.35)


STEPS = [(2, "dense", 0.21), (4, "dense", None), (4, "dense", 0.21), (4, "linear", 0.21),
         (4, "cubic", 0.21), (7, "dense", 0.21)]  # fmt: skip


@pytest.mark.parametrize(("order", "interp", "size"), STEPS)
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_gradients_of_the_steps(kind, order, interp, size):
    """Of y0, parameters and times, at ends of steps and between them, in both directions."""
    solver = kind(order=order, step_size=size, interp=interp, **EXACT[kind])

    def solve(y, t, p):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pyode.ToleranceWarning)
            return pyode.solve(rate(p), y, t, solver=solver, adjoint=pyode.Discrete(),
                               params=(p,)).ys  # fmt: skip

    y0, p = parameters()
    assert gradcheck(solve, (y0, leaf(*TIMES), p))
    assert gradcheck(solve, (y0, leaf(*(1.6 - t for t in TIMES)), p))


def test_second_derivatives():
    y0, p = parameters()
    solver = EXPLICIT(step_size=0.2)
    assert gradgradcheck(
        lambda y, p: pyode.solve(rate(p), y, (0.0, 1.0), solver=solver, params=(p,)).ys, (y0, p)
    )


CONTINUOUS = [
    pyode.Forward(),
    pyode.Interpolating(),
    pyode.Gauss(),
    pyode.Quadrature(),
    pyode.Backsolve(on_drift="ignore"),
]


@pytest.mark.parametrize("adjoint", CONTINUOUS, ids=name_of)
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_adjoints_agree(kind, adjoint):
    """`Forward` to rounding (and the iteration's tolerance), the others to that of their steps."""
    y0, p = parameters()
    more = {} if kind is EXPLICIT else {"rtol": 1e-12, "atol": 1e-12, "iterations": 12}
    solver = kind(step_size=0.01, **more)

    def gradient(adjoint):
        sol = pyode.solve(rate(p), y0, torch.linspace(0.0, 2.0, 5), solver=solver, adjoint=adjoint,
                          params=(p,))  # fmt: skip
        return sol, torch.cat(torch.autograd.grad((sol.ys**2).sum(), (y0, p)))

    (exact, expected), (sol, found) = gradient(pyode.Discrete()), gradient(adjoint)
    bound = 1e-11 if isinstance(adjoint, pyode.Forward) else 2e-7
    assert float((found - expected).abs().max()) <= bound
    bound = 1e-11 if isinstance(adjoint, pyode.Forward) else 1e-14  # its iterations see more
    assert torch.allclose(sol(0.777), exact(0.777), rtol=0, atol=bound)  # kept, or taken once more


def test_outputs_between_steps_are_of_the_steps_order():
    sizes, errors = (0.1, 0.05, 0.025), []
    t = torch.linspace(1.0, 2.0, 23, dtype=F64)
    for size in sizes:
        sol = pyode.solve(lambda t, y: torch.cos(t) * y, torch.ones(1, dtype=F64), (0.0, 2.0),
                          solver=EXPLICIT(order=4, step_size=size))  # fmt: skip
        errors.append(max(abs(float(sol(float(x))) - math.exp(math.sin(x))) for x in t))
    assert slope(sizes, errors)[0] == pytest.approx(4, abs=0.4)


def test_a_jump_is_a_beginning():
    """f before it is not the f after it: nothing is made of both."""

    def f(t, y):
        return torch.where(t < 0.5, y, -2.0 * y)

    y0 = torch.ones(1, dtype=F64, requires_grad=True)
    sol = pyode.solve(f, y0, (0.0, 1.0), solver=EXPLICIT(step_size=0.01), jumps=(0.5,))
    assert float(sol.ys[-1].detach()) == pytest.approx(math.exp(0.5 - 1.0), rel=1e-6)
    assert float(torch.autograd.grad(sol.ys[-1].sum(), y0)[0]) == pytest.approx(
        math.exp(-0.5), rel=1e-6
    )
    missed = pyode.solve(f, y0.detach(), (0.0, 1.0), solver=EXPLICIT(step_size=0.01))
    assert abs(float(missed.ys[-1]) / math.exp(-0.5) - 1) > 1e-4  # as it would be


def test_a_step_takes_one_evaluation():
    y0 = torch.ones(2, dtype=F64)
    sol = pyode.solve(lambda t, y: -y, y0, (0.0, 1.0), solver=EXPLICIT(step_size=0.01))
    assert sol.stats.forward.accepted == 100
    assert sol.stats.forward.nfe <= 100 + 2 * 3 + 1  # two steps of four stages; f at the start


def test_what_is_kept_of_a_step_is_gone_with_its_derivatives():
    """A solve that keeps no steps takes the memory of one."""
    method = AdamsMethod(EXPLICIT(step_size=0.01), F64, torch.device("cpu"))
    y = torch.ones(2, dtype=F64)
    for i in range(50):
        k, y = method.attempt(lambda t, y: -y, i / 100, (i + 1) / 100, y, -y)
        del k
        assert len(method.nodes) <= 1


@pytest.mark.parametrize("order", [True, 4.0, "4"])
def test_an_order_is_an_int(order):
    with pytest.raises(pyode.InputError, match="`order` of AdamsBashforth got"):
        EXPLICIT(step_size=0.1, order=order)


def test_an_iteration_that_does_not_converge_is_told_once():
    y0 = torch.ones(1, dtype=F64)
    with pytest.warns(
        pyode.ToleranceWarning, match=r"did not converge in the step to t=0\.3.*smaller"
    ) as seen:
        pyode.solve(lambda t, y: -8 * y, y0, (0.0, 1.0), solver=IMPLICIT(step_size=0.1))
    assert len(seen) == 1


def test_a_solve_that_leaves_the_range_says_where():
    y0 = torch.ones(1, dtype=torch.float32)
    for solver in (EXPLICIT(step_size=0.01), IMPLICIT(step_size=0.01, rtol=1.0)):
        with pytest.raises(pyode.NonFiniteError, match=r"returned Inf .* at t=0\.03"):
            pyode.solve(lambda t, y: -1e6 * y, y0, (0.0, 10.0), solver=solver)


def test_trees_and_complex_states():
    w = leaf(0.5)

    def f(t, y):
        return {"a": 1j * w * y["a"] + y["b"], "b": -y["b"] * w * t}

    def solve(a, b, w_):
        sol = pyode.solve(f, {"a": a, "b": b + 0j}, (0.0, 0.7, 1.0), solver=EXPLICIT(step_size=0.1),
                          adjoint=pyode.Discrete())  # fmt: skip
        return torch.view_as_real(sol.ys["a"]), torch.view_as_real(sol.ys["b"])

    a = torch.tensor([1.0 + 0.5j, 0.2], dtype=torch.complex128, requires_grad=True)
    assert gradcheck(solve, (a, leaf(0.3, 1.0), w))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"solver": EXPLICIT(), "adjoint": pyode.Discrete(memory="steps")}, "memory='steps'.*RK4"),
        ({"solver": EXPLICIT(), "adjoint": pyode.Gauss(checkpoints=3)}, "one by one.*Backsolve"),
        ({"solver": EXPLICIT(), "batch": "independent"}, "adaptive solver"),
    ],
)
def test_what_needs_steps_of_their_own_is_refused(arguments, words):
    y0, p = parameters()
    with pytest.raises(pyode.InputError, match=words):
        pyode.solve(lambda t, y: -y * p[0], y0, (0.0, 1.0), params=(p,), **arguments)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (EXPLICIT, {"order": 13}, "order.*13.*1 to 12"),
        (IMPLICIT, {"order": 1}, "order.*2 to 12"),
        (IMPLICIT, {"iterations": 0}, "iterations.*positive"),
        (IMPLICIT, {"rtol": -1.0}, "rtol"),
    ],
)
def test_options_are_checked(kind, options, words):
    with pytest.raises(pyode.InputError, match=words):
        kind(**options)


def test_f_that_changed_is_refused():
    net = Net()
    y0 = torch.ones(2, 3, dtype=F64)
    sol = pyode.solve(net, y0, (0.0, 1.0), solver=EXPLICIT(step_size=0.1))
    net.w.data.mul_(2.0)
    with pytest.raises(pyode.BackwardError, match="changed"):
        sol.ys.sum().backward()


def test_random_f_is_warned_of():
    y0 = torch.ones(3, dtype=F64, requires_grad=True)
    with pytest.warns(pyode.RandomWarning):
        pyode.solve(lambda t, y: -y * torch.rand(3), y0, (0.0, 1.0), solver=EXPLICIT(step_size=0.2))


def test_compiled_steps_are_refused_in_words():
    y0 = torch.ones(3)
    with pytest.warns(pyode.CompileWarning, match="AdamsBashforth is a multistep method"):
        pyode.solve(lambda t, y: -y, y0, (0.0, 1.0), solver=EXPLICIT(step_size=0.2),
                    engine=pyode.Torch(compile=True))  # fmt: skip


# the weights of torchdiffeq's steps do not depend on t: their dL/dt is of no solution
TIMED = {"t": math.inf}


@pytest.mark.compiled
def test_a_compiled_solve_with_such_a_backward_solve():
    """The forward steps are compiled, the others run eagerly and say so."""
    net, y0 = Net(), torch.ones(2, 3, dtype=F64)
    found = []
    for compiled in (False, True):
        sol = pyode.solve(net, y0, (0.0, 1.0), engine=pyode.Torch(compile=compiled),
                          adjoint=pyode.Interpolating(solver=EXPLICIT(step_size=0.05)))  # fmt: skip
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            found.append(torch.autograd.grad(sol.ys[-1].sum(), net.w)[0])
        assert [str(w.message) for w in seen if "multistep" in str(w.message)] or not compiled
    assert torch.allclose(*found, rtol=1e-6, atol=1e-8)


class TestTorchdiffeq:
    """The steps of torchdiffeq's methods, on the equal steps that its weights are for."""

    @pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
    @pytest.mark.parametrize("options", [{}, {"max_order": 5}, {"interp": "cubic"}], ids=str)
    @pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
    def test_explicit(self, interface, options, back):
        options = {"step_size": 0.01, "max_order": 12, **options}
        both(interface, 1e-9, TIMED, method="explicit_adams", options=options, back=back)

    @pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
    def test_implicit(self, interface):
        options = {"step_size": 0.01, "max_order": 5}
        both(interface, 1e-8, TIMED, method="implicit_adams", options=options)

    @pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams", "fixed_adams"])
    def test_of_low_order_it_is_rk4(self, method):
        f, y0, t = Net(), torch.ones(2, 3, dtype=F64), torch.linspace(0.0, 1.0, 5)
        with pytest.warns(UserWarning, match="max_order=3, below 4, is rk4"):
            found = pyode.odeint(f, y0, t, method=method, options={"max_order": 3})
        assert torch.equal(found, pyode.odeint(f, y0, t, method="rk4"))

    def test_perturb_evaluates_beside_the_ends(self):
        """And goes on from step to step all the same."""
        seen = []

        def f(t, y):
            seen.append(float(t))
            return torch.cos(t) * y

        y0, t = torch.ones(1, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
        calls = {}
        for perturb in (False, True):
            seen.clear()
            options = {"step_size": 0.1, "perturb": perturb}
            y = pyode.odeint(f, y0, t, method="explicit_adams", options=options)
            assert float(y[-1]) == pytest.approx(math.exp(math.sin(1.0)), rel=2e-4)
            calls[perturb] = len(seen)
        assert calls[True] <= calls[False] + 2
        assert 0.5 not in seen
        assert math.nextafter(0.5, 1.0) in seen

    @pytest.mark.parametrize("options", [{"max_order": 13}, {"max_order": 4.5}, {"max_iters": 0}])
    def test_options_are_checked(self, options):
        y0, t = torch.ones(1, dtype=F64), torch.tensor([0.0, 1.0])
        with pytest.raises(pyode.InputError, match=r"max_order|iterations"):
            pyode.odeint(lambda t, y: -y, y0, t, method="implicit_adams", options=options)

    def test_events(self):
        y0 = torch.tensor([1.0], dtype=F64, requires_grad=True)
        t, ys = pyode.odeint_event(lambda t, y: -y, y0, torch.tensor(0.0, dtype=F64),
                                   event_fn=lambda t, y: y.sum() - 0.5, method="explicit_adams",
                                   options={"step_size": 0.01, "interp": "cubic"})  # fmt: skip
        assert float(t.detach()) == pytest.approx(math.log(2.0), rel=1e-6)
        assert float(torch.autograd.grad(t, y0)[0]) == pytest.approx(1.0, rel=1e-5)
        assert float(ys[-1].detach()) == pytest.approx(0.5, rel=1e-9)
