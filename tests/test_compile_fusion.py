"""Loops of a compiled program that share next to nothing stay apart, where tensors are large."""

from __future__ import annotations

import inspect
import re
import threading

import pytest
import torch
from torch import Tensor

from pyode._torch.compiled import fusion, inductor

pytestmark = pytest.mark.compiled


def fn(a: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """As in the transpose of a step: products, each copied for one more, and a sum of sums."""
    p = a @ w
    q = p.tanh() @ w
    r = q.tanh() @ w
    return p.t() @ a, q.t() @ a, r.t() @ a, p.sum(0) + q.sum(0) + r.sum(0)


def widest(a: Tensor, w: Tensor) -> int:
    """The most tensors that a kernel in the program of `fn` takes, once it is seen to be right."""
    run = inductor.compile_one(fn, [a, w])
    for found, expected in zip(run([a, w]), fn(a, w), strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3)
    source = inspect.getsource(getattr(run, "__func__", run))
    calls = re.findall(r"^ *cpp_fused\w*\((.*)\)$", source, re.MULTILINE)
    return max(call.count(",") + 1 for call in calls)


@pytest.fixture
def large(monkeypatch) -> tuple[Tensor, Tensor]:
    monkeypatch.setattr(inductor, "keep_scratch", lambda run: run)  # which leaves no source
    torch.manual_seed(0)
    return torch.randn(512, 128), torch.randn(128, 128) / 12


def test_loops_that_share_little_stay_apart(large, monkeypatch):
    apart = widest(*large)
    monkeypatch.setattr(fusion, "near", lambda: None)  # as Inductor has it
    monkeypatch.setattr(fusion, "LEAST", 10)
    assert widest(*large) > 2 * apart


def test_it_does_not_matter_what_the_thread_has_compiled_before(large, monkeypatch):
    """Nor does it to others what we have: Inductor keeps its choices for a thread."""
    from torch._inductor.choices import InductorChoices
    from torch._inductor.virtualized import V

    found = []

    def run() -> None:
        inductor.compile_one(lambda x: (x.sin(),), [torch.ones(3)])
        first = V.choices
        found.extend([widest(*large), V.choices is first, type(first) is InductorChoices])

    apart = widest(*large)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [apart, True, True]


def test_loops_that_read_the_same_are_one(large):
    def both(a: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return a.sin(), a.square().sum(0), a.t().contiguous()

    run = inductor.compile_one(both, list(large))
    source = inspect.getsource(getattr(run, "__func__", run))
    assert len(re.findall(r"^ *cpp_fused\w*\(", source, re.MULTILINE)) == 1
