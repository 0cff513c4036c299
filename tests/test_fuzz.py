"""Random problems and options: finite numbers and gradients, or an error of pyode's; no hang."""

import time
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyode

pytestmark = pytest.mark.timeout(280)

RATES = {
    "linear": lambda t, y, w: w * y,
    "forced": lambda t, y, w: w * (y - torch.cos(t)),
    "square": lambda t, y, w: w * y * y,
    "root": lambda t, y, w: w * torch.sqrt(y),
    "inverse": lambda t, y, w: w / y,
    "log": lambda t, y, w: w * torch.log(y),
    "exp": lambda t, y, w: w * torch.exp(y),
    "rotation": lambda t, y, w: w * torch.roll(y, 1, -1),
    "jump": lambda t, y, w: w * torch.where(t > 0.3, y, -y),
    "nan later": lambda t, y, w: w * y / (1.0 * (t < 0.7)),
    "norm": lambda t, y, w: w * y / torch.linalg.vector_norm(y - y.mean()),
    "unused": lambda t, y, w: -y + 0 * w,
}
SCALES = [0.0, 1e-3, 1.0, -1.0, 30.0, -30.0, -1e4, 1e8, -1e8, 1e30]

finite = st.floats(-10, 10, allow_nan=False, width=32)


@st.composite
def solvers(draw):
    if draw(st.booleans()):
        kind = draw(st.sampled_from([pyode.Euler, pyode.Midpoint, pyode.Heun, pyode.RK4]))
        return kind(step_size=draw(st.sampled_from([None, 0.05, 0.5, 1e-9])))
    kind = draw(
        st.sampled_from([pyode.HeunEuler, pyode.Bosh3, pyode.Dopri5, pyode.Tsit5, pyode.Dopri8])
        | st.just(pyode.Kvaerno5)
    )
    tol = 10.0 ** draw(st.integers(-9, 0))
    least = draw(st.sampled_from([0.0, 1e-12, 1e-2]))
    return kind(rtol=tol, atol=tol * draw(st.sampled_from([1.0, 1e-2])), min_step=least)


adjoints = st.sampled_from(
    [
        *(pyode.Discrete(), pyode.Discrete(memory="steps"), pyode.Discrete(memory=10_000)),
        *(pyode.Backsolve(), pyode.Backsolve(resync=False, seminorm=True)),
        *(pyode.Backsolve(on_drift="interpolate"), pyode.Interpolating(seminorm=True)),
        *(pyode.Interpolating(), pyode.Interpolating(checkpoints=3), pyode.Gauss()),
        *(pyode.Quadrature(), pyode.Forward()),
    ]
)
times = st.lists(finite, min_size=1, max_size=4, unique=True).map(sorted)


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    rate=st.sampled_from(sorted(RATES)),
    scale=st.sampled_from(SCALES),
    y0=st.lists(finite, min_size=0, max_size=4),
    ts=times,
    back=st.booleans(),
    solver=solvers(),
    adjoint=adjoints,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    wants=st.sets(st.sampled_from(["y0", "w", "ts"])),
)
def test_numbers_or_an_error(rate, scale, y0, ts, back, solver, adjoint, dtype, wants):
    w = torch.tensor([scale], dtype=dtype, requires_grad="w" in wants)
    start = torch.tensor(y0, dtype=dtype, requires_grad="y0" in wants)
    grid = torch.tensor(ts[::-1] if back else ts, dtype=torch.float64, requires_grad="ts" in wants)
    began = time.process_time()
    error = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            sol = pyode.solve(
                lambda t, y: RATES[rate](t, y, w),
                start,
                grid,
                solver=solver,
                adjoint=adjoint,
                max_steps=300,
                timeout=5,
            )
            if wants:
                sol.ys.sum().backward()
        except pyode.PyodeError as err:
            error = err
    grads = [x.grad for x in (w, start, grid) if x.requires_grad]
    if error is None:
        assert torch.isfinite(sol.ys).all()
        assert all(torch.isfinite(g).all() for g in grads)
    else:
        assert str(error)
        assert all(g is None for g in grads)
    if isinstance(error, pyode.SolveError):
        assert len(str(error).splitlines()) <= 12
        assert error.cause
        assert error.hint
    assert time.process_time() - began < 10
