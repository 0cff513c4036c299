"""Compiled programs of small networks: scratch that stays, and products along the better axis."""

from __future__ import annotations

import threading

import pytest
import torch
from helpers import F64, relative
from torch import Tensor

from pyode._torch.compiled import inductor, scratch

pytestmark = pytest.mark.compiled


def twice(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    h = torch.tanh(x @ w)
    return h @ w.t(), (h @ w.t()).sum(0)


def test_scratch_is_no_output():
    x, w = torch.randn(6, 3, dtype=F64), torch.randn(3, 40, dtype=F64)
    run = inductor.compile_one(twice, [x, w])
    code = getattr(run, "__func__", run).__code__
    assert code.co_filename == "<pyode scratch>"  # rewritten
    kept = run([x, w])
    first = [out.clone() for out in kept]
    run([x + 1.0, w])
    for out, value, exact in zip(kept, first, twice(x, w), strict=True):
        assert torch.equal(out, value)  # the second call wrote nowhere that the first gave away
        assert relative(out, exact) <= 1e-14


def test_scratch_of_two_threads():
    torch.manual_seed(0)
    xs, w = torch.randn(4, 6, 3, dtype=F64), torch.randn(3, 40, dtype=F64)
    run = inductor.compile_one(twice, [xs[0], w])
    expected = [run([x, w]) for x in xs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(2000):
            got = run([xs[i], w])
            wrong.extend(i for a, b in zip(got, expected[i], strict=True) if not torch.equal(a, b))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(xs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


@pytest.mark.parametrize(("rows", "kept"), [(10, True), (1000, False)])
def test_large_scratch_is_not_kept(rows, kept):
    def fn(x: Tensor) -> tuple[Tensor, ...]:
        h = torch.tanh(x)
        return ((h - h.mean(0)).square().sum(0),)

    x = torch.randn(rows, 400)  # h is scratch: 16 kB, or 1.6 MB
    run = inductor.compile_one(fn, [x])
    code = getattr(run, "__func__", run).__code__
    assert (code.co_filename == "<pyode scratch>") == kept
    assert relative(run([x])[0], fn(x)[0]) <= 1e-4


PROGRAM = """
def call(args):
    a, b = args
    args.clear()
    buf0 = empty_strided_cpu((4, ), (1, ), torch.float32)
    buf1 = empty_strided_cpu((4, ), (1, ), torch.float32)
    buf2 = buf1; del buf1  # reuse
    buf3 = empty_strided_cpu((8, ), (1, ), torch.float32)
    buf4 = reinterpret_tensor(buf3, (4, ), (1, ), 4)  # alias
    cpp_fused_0(a, buf0, buf2)
    buf5 = empty_strided_cpu((4, ), (1, ), torch.float32)
    extern_kernels.mm(a, b, out=buf5)
    buf6 = empty_strided_cpu((4, ), (1, ), torch.float32)
    cpp_fused_1(buf2, buf4, buf5, buf6)
    del buf6
    return (reinterpret_tensor(buf3, (2, ), (1, ), 0), )
"""


def test_what_counts_as_scratch():
    import ast

    (made,) = ast.parse(PROGRAM).body
    # not buf2 (two kernels), buf3 and its view (an output), buf5 (a library's, which lets go of
    # Python's lock)
    assert scratch._scratch(made.body).keys() == {"buf0", "buf6"}  # type: ignore[attr-defined]


SEEN = """
def call(self, args):
    buf0 = empty_strided_cpu((20, 2), (2, 1), torch.float32)
    buf1 = buf0; del buf0  # reuse
    buf2 = empty_strided_cpu((20, 2), (2, 1), torch.float32)
    buf3 = empty_strided_cpu((1, 2), (2, 1), torch.float32)
    buf4 = reinterpret_tensor(buf3, (2, ), (1, ), 0); del buf3  # reuse
    buf5 = empty_strided_cpu((20, 2), (2, 1), torch.float32)
    buf6 = empty_strided_cpu((20, 2), (2, 1), torch.float32)
    buf7 = empty_strided_cpu((20, 2), (2, 1), torch.float32)
    cpp_fused_0(buf1, buf2, buf4, buf5, buf6, buf7)
    extern_kernels.mm(buf6, buf5, out=buf6)
    return (reinterpret_tensor(buf1, (40, ), (1, ), 0), reinterpret_tensor(buf2, (20, ), (1, ), 0),
            reinterpret_tensor(buf5, (40, ), (1, ), 0), reinterpret_tensor(buf7, (40, ), (1, ), 0),
            buf4, buf6, buf7)
"""


def test_what_is_allocated_in_the_shape_of_its_views():
    import ast

    (made,) = ast.parse(SEEN).body
    scratch._shape(made.body)  # type: ignore[attr-defined]
    text = ast.unparse(made)
    # not buf2 (a part of it), buf5 (a library's, too), buf7 (an output as it is, too)
    assert "buf0 = empty_strided_cpu((40,), (1,), torch.float32)" in text
    assert "buf3 = empty_strided_cpu((2,), (1,), torch.float32)" in text
    assert "buf4 = buf3\n" in text
    assert "(buf1, reinterpret_tensor(buf2, (20,), (1,), 0), " in text
    assert text.count("empty_strided_cpu((20, 2), (2, 1), torch.float32)") == 4
    assert text.count("reinterpret_tensor") == 3


def test_weights_are_laid_in_rows(monkeypatch):
    """Of a layer's weights `[50, 2]` there is a transposed copy: loops over it use vectors."""
    import inspect

    def fn(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return (torch.tanh(x @ w.t()).sum(1),)

    x, w = torch.randn(20, 2, dtype=F64), torch.randn(50, 2, dtype=F64)
    monkeypatch.setattr(inductor, "keep_scratch", lambda run: run)  # which leaves no source
    run = inductor.compile_one(fn, [x, w])
    text = inspect.getsource(getattr(run, "__func__", run))
    assert "empty_strided_cpu((2, 50), (50, 1), torch.float64)" in text
    assert "empty_strided_cpu((2, 50), (1, 2), torch.float64)" not in text
    assert relative(run([x, w])[0], fn(x, w)[0]) <= 1e-14


def test_outputs_of_another_shape():
    def fn(x: Tensor) -> tuple[Tensor, ...]:
        y = torch.tanh(x)
        return y.reshape(-1), y.sum(0)

    x = torch.randn(6, 4, dtype=F64)
    run = inductor.compile_one(fn, [x])
    assert "reinterpret_tensor" not in getattr(run, "__func__", run).__code__.co_names
    for out, exact in zip(run([x]), fn(x), strict=True):
        assert out.shape == exact.shape
        assert out.is_contiguous()
        assert relative(out, exact) <= 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize(("left", "right"), [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("shape", [(20, 2, 50), (20, 50, 2), (50, 20, 2), (1, 7, 1), (3, 1, 4)])
def test_small_products(shape, left, right, dtype):
    torch.manual_seed(0)
    m, k, n = shape
    a = torch.randn(k, m, dtype=dtype).t() if left else torch.randn(m, k, dtype=dtype)
    b = torch.randn(n, k, dtype=dtype).t() if right else torch.randn(k, n, dtype=dtype)
    run = inductor.compile_one(lambda a, b: ((a * 2.0) @ b,), [a, b])
    (found,) = run([a, b])
    assert found.shape == (m, n)
    bound = 1e-6 if dtype is torch.float32 else 1e-14
    assert relative(found.double(), 2.0 * a.double() @ b.double()) <= bound
