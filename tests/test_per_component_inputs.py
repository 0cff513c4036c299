"""Tolerances per component as arguments: structures, shapes, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import re

import numpy as np
import pytest
import torch

import pyode

STATES = {
    "tensor": (torch.ones(2, 3), torch.full((3,), 1e-6)),
    "list of numbers": (torch.ones(3), [1e-6, 1e-5, 1e-4]),
    "array": (torch.ones(3), np.array([1e-6, 1e-5, 1e-4])),
    "integers": (torch.ones(3), torch.tensor([1, 1, 2])),
    "0-d": (torch.ones(2), torch.tensor(1e-6)),
    "tuple": ((torch.ones(2), torch.ones(3)), (1e-6, torch.full((3,), 1e-5))),
    "list for a tuple": ((torch.ones(2), torch.ones(3)), [1e-6, 1e-5]),
    "dict": ({"a": torch.ones(2), "b": torch.ones(3)}, {"b": 1e-6, "a": [1e-5, 1e-4]}),
    "number for a branch": ({"a": (torch.ones(1), torch.ones(2))}, {"a": 1e-6}),
    "nested": ([torch.ones(1), {"a": torch.ones(2)}], (1e-6, {"a": torch.full((2,), 1e-5)})),
    "complex": (torch.ones(2, dtype=torch.complex64), torch.tensor([1e-6, 1e-5])),
}


@pytest.mark.parametrize("case", STATES)
def test_structures(case):
    y0, atol = STATES[case]
    sol = pyode.solve(lambda t, y: torch.utils._pytree.tree_map(torch.neg, y), y0, (0.0, 1.0),
                      solver=pyode.Tsit5(rtol=1e-4, atol=atol))  # fmt: skip
    flat = sol.plan.solver.atol
    expected = {
        "tensor": [1e-6] * 6, "list of numbers": [1e-6, 1e-5, 1e-4], "array": [1e-6, 1e-5, 1e-4],
        "integers": [1, 1, 2], "tuple": [1e-6] * 2 + [1e-5] * 3,
        "list for a tuple": [1e-6] * 2 + [1e-5] * 3, "dict": [1e-5, 1e-4] + [1e-6] * 3,
        "number for a branch": [1e-6] * 3, "nested": [1e-6, 1e-5, 1e-5],
        "complex": [1e-6, 1e-6, 1e-5, 1e-5],
    }  # fmt: skip
    if case == "0-d":
        assert flat == float(torch.tensor(1e-6))
    else:
        assert flat.flat.tolist() == pytest.approx(expected[case])
        assert flat.flat.dtype == torch.float32
    for leaf in torch.utils._pytree.tree_leaves(sol.ys):
        assert torch.allclose(leaf[-1].abs(), torch.tensor(math.exp(-1.0)), rtol=1e-2)


def wrong(y0, rtol=1e-6, atol=1e-8):
    return pyode.solve(lambda t, y: y, y0, (0.0, 1.0), solver=pyode.Tsit5(rtol=rtol, atol=atol))


ONE, PAIR = torch.ones(2, 3), (torch.ones(2), torch.ones(3))
REFUSED = {
    "shape": (ONE, {"atol": torch.full((2,), 1e-6)}, "`atol` has shape [2], and y0 has [2, 3]"),
    "shape of a leaf": (PAIR, {"rtol": (1e-6, torch.ones(2))}, "`rtol`[1] has shape [2], and"),
    "too many dimensions": (torch.ones(3), {"atol": torch.ones(1, 3)}, "`atol` has shape [1, 3]"),
    "negative": (ONE, {"atol": torch.tensor([1e-6, -1.0, 1.0])}, "`atol` holds -1 at [1]"),
    "NaN": (ONE, {"rtol": torch.tensor([[math.nan]])}, "`rtol` holds nan at [0, 0]"),
    "infinite": (PAIR, {"rtol": (1.0, math.inf)}, "`rtol`[1] got inf"),
    "negative number": (PAIR, {"rtol": {"a": -1.0}}, "`rtol`['a'] got -1.0"),
    "both 0": (torch.ones(2), {"rtol": 0.0, "atol": [1e-6, 0.0]}, "in torch.float32, for y0[1]"),
    "both 0 in float32": (torch.ones(2), {"rtol": 0.0, "atol": [1e-60, 1.0]}, "for y0[0] (1 of 2"),
    "both 0 in a tree": (
        {"a": torch.ones(2)}, {"rtol": {"a": 0.0}, "atol": {"a": torch.tensor([1.0, 0.0])}},
        "for y0['a'][1]",
    ),
    "grad": (torch.ones(1), {"atol": torch.ones(1, requires_grad=True)}, "Pass atol.detach()"),
    "string": (ONE, {"atol": "tight"}, "`atol` got 'tight'. Pass a number"),
    "complex": (ONE, {"atol": torch.ones(3, dtype=torch.complex64)}, "a tensor of torch.complex64"),
    "bool": (ONE, {"rtol": torch.ones(3, dtype=torch.bool)}, "a tensor of torch.bool"),
    "meta": (ONE, {"rtol": torch.ones(3, device="meta")}, "on meta"),
    "keys": (
        {"a": torch.ones(1), "b": torch.ones(1)}, {"atol": {"a": 1.0}},
        "`atol` has the keys ['a'], and y0 has ['a', 'b']",
    ),
    "length": (PAIR, {"atol": (1.0,)}, "`atol` is a tuple of 1, and y0 is a tuple of 2"),
    "tensor for a tuple": (PAIR, {"atol": torch.ones(2)}, "`atol` is a tensor, and y0 is a tuple"),
    "dict for a tensor": (ONE, {"atol": {"a": 1.0}}, "`atol` is a dict, and y0 is a tensor"),
    "dict for a leaf": (PAIR, {"atol": (1.0, {"a": 1.0})}, "`atol`[1] is a dict, and y0[1] is a"),
    "ragged": (torch.ones(2), {"atol": [1.0, [1.0, 2.0]]}, "`atol` is a tuple of 2, and y0 is a"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_tolerance_is_refused(case):
    y0, options, message = REFUSED[case]
    with pytest.raises(pyode.InputError, match=re.escape(message)):
        wrong(y0, **options)


def test_a_solver_is_an_option_still():
    x = torch.tensor([1e-6, 1e-8])
    one, two = (
        pyode.Dopri5(rtol=x, atol={"a": 1e-8}),
        pyode.Dopri5(rtol=x.clone(), atol={"a": 1e-8}),
    )
    assert one == two
    assert hash(one) == hash(two)
    assert one != pyode.Dopri5(rtol=2 * x, atol={"a": 1e-8})
    assert one != pyode.Dopri5(rtol=x, atol={"b": 1e-8})
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    assert dataclasses.replace(one, first_step=0.1).rtol == one.rtol
    x.fill_(1.0)  # values were copied
    assert one == two
    assert repr(one) == "Dopri5(rtol=[1e-06, 1e-08], atol=[1e-08])"
    assert "[1e-06 to 1: 9]" in repr(pyode.Tsit5(rtol=torch.tensor([1.0] * 8 + [1e-6])))
