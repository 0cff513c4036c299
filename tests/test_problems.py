"""The zoo: fields, registry, and every reference against SciPy's solvers."""

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from pyode import problems
from pyode._errors import InputError
from pyode.problems._problem import ADJOINTS

STIFF = {
    **{name: {} for name in ("brusselator", "hires", "oregonator", "pollution", "robertson")},
    "robertson-late": {"T": 1e11},
    "stiff-linear": {},
    "van-der-pol-stiff": {"mu": 1000.0, "T": 2000.0},
}
OTHERS = {
    **{name: {} for name in problems.names() if name not in STIFF},
    "cubic-spiral-short": {"T": 5.0},
    "lotka-volterra-short": {"T": 1.0},
    "lorenz-short": {"T": 2.0},
}


def build(label):
    """The problem of a label above: a name, perhaps with -late, -short, -stiff behind it."""
    options = {**STIFF, **OTHERS}[label]
    name = label if label in problems.names() else label.rsplit("-", 1)[0]
    return problems.get(name, **options)


def solve(problem, rtol, y0=None, ts=None):
    """SciPy's solution at the output times, as a tensor."""
    ts = (problem.ts if ts is None else ts).numpy()
    y0 = (problem.y0 if y0 is None else y0).numpy()

    def f(t, y):
        with torch.no_grad():
            return problem.f(torch.tensor(t, dtype=torch.float64), torch.tensor(y)).numpy()

    def jacobian(t, y):
        rows = torch.tensor(y).expand(len(y), -1).clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(problem.f(t, rows).diagonal().sum(), rows)[0].numpy()

    method = {"method": "LSODA", "jac": jacobian} if problem.stiff else {"method": "DOP853"}
    # an absolute tolerance of nothing: some species are 1e-17
    out = solve_ivp(f, (ts[0], ts[-1]), y0, t_eval=ts, rtol=rtol, atol=1e-12 * rtol, **method)
    assert out.success, out.message
    return torch.from_numpy(out.y.T.copy())


def loss(problem, direction, size):
    """L with y0 and every parameter moved by `size` times its magnitude, up or down by entry."""
    moved = copy.deepcopy(problem)
    y0 = problem.y0 + size * direction["y0"]
    with torch.no_grad():
        for name, parameter in moved.f.named_parameters():
            parameter += size * direction[name]
        return problem.loss(solve(moved, 1e-11, y0=y0)).item()


def direction(problem):
    """One up-or-down move for each entry: of its own size, or of a hundredth of the largest."""
    rng = np.random.default_rng(0)
    moves = {}
    for name, value in (("y0", problem.y0), *problem.f.named_parameters()):
        size = value.detach().abs()
        if name == "y0":
            size = torch.maximum(size, 1e-2 * size.max()) if size.any() else size + 1.0
        moves[name] = size * torch.from_numpy(rng.choice([-1.0, 1.0], size=tuple(value.shape)))
    return moves


@pytest.mark.parametrize("name", problems.names())
class TestField:
    def test_is_vectorised_and_keeps_its_input(self, name):
        problem = problems.get(name)
        y = problem.y0.clone()
        dy = problem.f(problem.ts[0], y)
        assert (dy.shape, dy.dtype) == (y.shape, torch.float64)
        assert dy.isfinite().all()
        assert torch.equal(y, problem.y0)
        batch = torch.stack([y, 1.01 * y + 1e-3]).expand(3, 2, -1)
        times = torch.full((3, 2), 0.25, dtype=torch.float64)
        stacked = problem.f(times, batch)
        assert stacked.shape == batch.shape
        alone = problem.f(0.25, batch[2, 1])
        assert (stacked[0, 1] - alone).abs().max() <= 1e-12 * alone.abs().max()

    def test_moves_to_float32(self, name):
        problem = problems.get(name)
        single = problem.to(torch.float32)
        dy = single.f(single.ts[0], single.y0)
        assert dy.dtype == single.y0.dtype == single.ts.dtype == torch.float32
        assert problem.f(problem.ts[0], problem.y0).dtype == torch.float64
        if problem.reference:
            assert single.reference.y_end.dtype == torch.float64

    def test_has_right_derivatives(self, name):
        problem = problems.get(name)
        parameters = dict(problem.f.named_parameters())
        if name == "pollution":
            pytest.skip("rates up to 4e11 leave differences no digits; its reference checks it")

        def f(t, y, *values):
            state = dict(zip(parameters, values, strict=True))
            return torch.func.functional_call(problem.f, state, (t, y))

        t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        y = (1.1 * problem.y0 + 0.05).requires_grad_()
        inputs = (t, y, *parameters.values())
        large = sum(v.numel() for v in inputs) > 20
        assert torch.autograd.gradcheck(f, inputs, rtol=1e-5, atol=1e-5, fast_mode=large)

    def test_can_be_sent_and_built_afresh(self, name):
        problem, again = problems.get(name), problems.get(name)
        sent = pickle.loads(pickle.dumps(problem))
        assert torch.equal(sent.f(0.1, sent.y0), problem.f(0.1, problem.y0))
        for a, b in zip(problem.f.parameters(), again.f.parameters(), strict=True):
            assert a is not b
            assert torch.equal(a, b)
        assert name in repr(problem)[:120]

    def test_is_described(self, name):
        problem = problems.get(name, points=3)
        assert problem.description
        assert problem.source
        assert set(problem.verdicts) <= set(ADJOINTS)
        assert set(problem.verdicts.values()) <= {"right", "drifts", "fails"}
        assert problem.loss(problem.y0.expand(3, -1)).shape == ()


CASES = [label for label in (*OTHERS, *STIFF) if build(label).reference is not None]


@pytest.mark.parametrize("label", CASES)
def test_end_point(label):
    problem = build(label)
    y_end = problem.reference.y_end
    found = solve(problem, 1e-11 if problem.stiff else 1e-13)[-1]
    # over its period the Arenstorf orbit makes 1e6 of what goes wrong at the start
    rtol = 1e-6 if label == "arenstorf" else 1e-8
    assert ((found - y_end).abs() <= rtol * (y_end.abs() + 1e-3 * y_end.abs().max())).all()


@pytest.mark.parametrize("label", CASES)
def test_gradient_is_the_slope_of_the_loss(label):
    problem = build(label)
    moves = direction(problem)
    gradients = {"y0": problem.reference.dy0, **problem.reference.dtheta}
    parts = torch.cat([(gradients[name] * move).flatten() for name, move in moves.items()])
    h = min(1e-5, 1e-3 / parts.abs().max().item())
    slope = (loss(problem, moves, h) - loss(problem, moves, -h)) / (2 * h)
    assert abs(slope - parts.sum()) < (1e-3 if problem.stiff else 1e-4) * parts.abs().max()


def test_gradients_of_the_times_shift_with_them():
    for problem in (problems.nonautonomous(), problems.detest("e5"), problems.rotation()):
        h = 1e-5
        for i in range(len(problem.ts)):
            shift = torch.zeros_like(problem.ts)
            shift[i] = h
            late = problem.loss(solve(problem, 1e-13, ts=problem.ts + shift))
            early = problem.loss(solve(problem, 1e-13, ts=problem.ts - shift))
            slope = (late - early) / (2 * h)
            assert abs(slope - problem.reference.dt[i]) < 1e-6 * (1 + slope.abs())


def test_autonomous_problems_do_not_care_when_they_start():
    for label in ("lotka-volterra", "robertson", "hires", "detest-c5", "arenstorf"):
        dt = build(label).reference.dt
        assert abs(dt.sum()) < 1e-6 * dt.abs().max()


# literals of published tables and of 30-digit computations made elsewhere
KNOWN = [
    ("linear-spiral", {}, {
        "A": [-1.39960477420773666, 1.15667854106714433, -1.0352154244968482, -1.52106789077803282],
        "T": [3.11723679841770796],
    }),
    ("cubic-spiral", {"T": 5.0}, {
        "y": [-0.26301283547011421, 0.93024594425456598],
        "A": [-38.391398364072034, -5.0377458029996868, 3.1139256306892845, -38.389081169408838],
    }),
    ("logistic", {}, {
        "y": [1.444464335752449], "y0": [4.223428706548075], "T": [0.5215934452586872],
        "r": [1.203677181366201], "K": [0.5110607325488208],
    }),
    ("lotka-volterra", {"T": 1.0}, {
        "y": [2.7728509018411121, 0.25871087814256395],
        "y0": [3.5202568952661548, -2.1927133764650720],
        "p": [4.3411475425334066, -2.0009338167918046, 1.0101206767629060, -1.3955943267338018],
    }),
]  # fmt: skip
PUBLISHED = [
    ("robertson", {}, 1e-12, [7.158270687194e-1, 9.185534764558e-6, 2.841637457458e-1]),
    ("robertson", {"T": 1e11}, 1e-13,
     [2.083340149701255e-8, 8.333360770334713e-14, 9.999999791665050e-1]),
    ("van-der-pol", {"mu": 1e3, "T": 2e3}, 1e-14, [1.706167732170469, -8.928097010248125e-4]),
    ("oregonator", {}, 1e-12, [1.000814870318523, 1228.178521549917, 132.0554942846706]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "values"), KNOWN)
def test_agrees_with_values_computed_elsewhere(name, options, values):
    known = problems.get(name, **options).reference
    found = {"y": known.y_end, "y0": known.dy0, "T": known.dt[-1:], **known.dtheta}
    for what, numbers in values.items():
        expected = torch.tensor(numbers, dtype=torch.float64)
        miss = (found[what].flatten() - expected).abs().max()
        assert miss <= 5e-15 * expected.abs().max(), what


@pytest.mark.parametrize(("name", "options", "rtol", "values"), PUBLISHED)
def test_agrees_with_published_end_points(name, options, rtol, values):
    known = problems.get(name, **options).reference
    expected = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(known.y_end, expected, rtol=rtol, atol=0)


def test_nine_sensitivities_of_robertson():
    rows = [problems.robertson(component=i).reference.dtheta["k"] for i in range(3)]
    jacobian = torch.stack(rows)
    published = torch.tensor([-4.2475587717, 4.5911962493e-5, 4.2475128597], dtype=torch.float64)
    torch.testing.assert_close(jacobian[:, 0], published, rtol=3e-11, atol=0)
    # mass is conserved
    assert (jacobian.sum(0).abs() < 1e-15 * jacobian.abs().sum(0) + 1e-20).all()


def test_arenstorf_returns():
    problem = problems.arenstorf()
    torch.testing.assert_close(problem.reference.y_end, problem.y0, rtol=0, atol=1e-15)


def test_neural_field_keeps_its_lipschitz_constant():
    problem = problems.neural(lipschitz=3.0, depth=3, seed=1)
    state = torch.random.get_rng_state()
    assert torch.equal(problem.y0, problems.neural(lipschitz=3.0, depth=3, seed=1).y0)
    assert torch.equal(state, torch.random.get_rng_state())
    jacobian = torch.autograd.functional.jacobian(lambda y: problem.f(0.0, y), problem.y0)
    assert torch.linalg.matrix_norm(jacobian, 2) <= 3.0
    norms = [torch.linalg.matrix_norm(layer.weight, 2) for layer in problem.f.layers]
    assert abs(torch.stack(norms).prod() - 3.0) < 1e-12


def backsolve(problem):
    """dL/dy0, dL/dθ and the recovered start, with RK45 and (y, λ, g) as one backward system."""

    def f(t, y):
        with torch.no_grad():
            return problem.f(torch.tensor(t, dtype=torch.float64), torch.tensor(y)).numpy()

    def backward(t, z):
        y = torch.tensor(z[:n], requires_grad=True)
        dy = problem.f(torch.tensor(t, dtype=torch.float64), y)
        a = torch.tensor(z[n : 2 * n])
        pull = torch.autograd.grad(dy, [y, *parameters], a, materialize_grads=True)
        return torch.cat([dy.detach(), *(-g.flatten() for g in pull)]).numpy()

    parameters, n = list(problem.f.parameters()), problem.y0.numel()
    ts, options = problem.ts.numpy(), {"rtol": problem.rtol, "atol": problem.atol}
    ys = solve_ivp(f, (ts[0], ts[-1]), problem.y0.numpy(), t_eval=ts, **options).y.T.copy()
    ys = torch.from_numpy(ys).requires_grad_()
    (jumps,) = torch.autograd.grad(problem.loss(ys), ys)
    z = np.zeros(2 * n + sum(p.numel() for p in parameters))
    z[:n], z[n : 2 * n] = ys[-1].detach(), jumps[-1]
    for i in range(len(ts) - 1, 0, -1):
        out = solve_ivp(backward, (ts[i], ts[i - 1]), z, **options)
        if not out.success:
            return None
        z = out.y[:, -1]
        z[n : 2 * n] += jumps[i - 1].numpy()
    return torch.from_numpy(z[n : 2 * n]), torch.from_numpy(z[2 * n :]), torch.from_numpy(z[:n])


QUICK = ("decay", "running-cost", "rotation", "lotka-volterra", "van-der-pol", "detest-b3")
VERDICTS = [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
    for name in problems.names()
    if name not in STIFF and name not in ("lorenz", "neural")
]


@pytest.mark.parametrize("name", VERDICTS)
def test_verdict_on_backsolve(name):
    problem = problems.get(name)
    answer = backsolve(problem)
    if problem.verdicts["backsolve"] == "fails":
        assert answer is None
        return
    dy0, dtheta, start = answer
    known = problem.reference
    scale = torch.cat([p.detach().flatten() for p in problem.f.parameters()] or [dtheta])
    true = torch.cat([g.flatten() for g in known.dtheta.values()] or [dtheta])
    misses = [
        (start - problem.y0).norm() / max(problem.y0.norm(), 0.1 * known.y_end.norm()),
        (dy0 - known.dy0).norm() / known.dy0.norm().clamp_min(100 * problem.atol),
        ((dtheta - true) * scale).norm() / (true * scale).norm().clamp_min(100 * problem.atol),
    ]
    worst = max(misses)
    assert worst < 5e-2 if problem.verdicts["backsolve"] == "right" else worst > 1e-2


class TestRegistry:
    def test_names_and_spelling(self):
        assert len(problems.names()) == len(set(problems.names())) >= 45
        assert problems.get("Lotka_Volterra", T=1.0).name == "lotka-volterra"
        assert problems.get("detest-C5").y0.numel() == 30
        assert problems.detest("c5").name == "detest-c5"

    def test_unknown_names_get_a_suggestion(self):
        with pytest.raises(ValueError, match=r"`name` got 'lotka-voltera'.*'lotka-volterra'"):
            problems.get("lotka-voltera")
        with pytest.raises(InputError, match="`problem` got 'A6'"):
            problems.detest("A6")

    def test_unknown_options_raise(self):
        with pytest.raises(InputError, match=r"'decay'.*got 'rate'.*Pass one of: T, k, points"):
            problems.get("decay", rate=1.0)

    def test_unusable_options_are_named(self):
        for name, option, value in (
            ("decay", "T", 0.0),
            ("decay", "k", float("nan")),
            ("rotation", "points", 1),
            ("robertson", "component", 3),
            ("brusselator", "n", 0),
            ("stiff-linear", "ratio", 1.0),
            ("neural", "lipschitz", -1.0),
        ):
            with pytest.raises(InputError, match=f"`{option}` got"):
                problems.get(name, **{option: value})

    def test_untabulated_options_have_no_reference(self):
        assert problems.lorenz().reference is None
        assert problems.lotka_volterra(T=3.0).reference is None
        assert problems.cubic_spiral(points=7).reference.dt.shape == (7,)
