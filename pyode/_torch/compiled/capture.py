"""f as a graph of tensor operations, by TorchDynamo; asked anew at every solve.

Dynamo's guards decide, each time, whether a graph it has still says what f would do: closures,
globals, attributes, modes, shapes and dtypes are looked at, and a change is a new graph. Tensors
that f reaches are inputs of the graph, handed over at every call: none is a constant.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import threading
import types
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..._state import Layout
from .convolutions import split_convolutions
from .inductor import Uncompilable, reason
from .known import Memory
from .products import share_products


class Graph:
    """One graph of f, and the programs that were compiled from it."""

    def __init__(self, run: Callable[..., Any]):
        self.run = run
        self.roles: list[str | int] | None = None  # "t", "y", or which of the tensors
        self.result: tuple[Tensor, ...] | None = None  # like f's, of the first call
        self.programs: dict[Any, Any] = {}
        self.why = ""  # it is not compiled: why
        self.proved = False  # an evaluation of f was looked at, as `solve` does, and was in order

    def __call__(self, t: Tensor, y: Tensor, tensors: Any) -> Tensor:
        given = {"t": t, "y": y}
        args = [given[r] if isinstance(r, str) else tensors[r] for r in self.roles or ()]
        return self.run(*args)[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Captured:
    """A graph of f, and the tensors it reads now."""

    graph: Graph
    tensors: list[Tensor]


class Tracer:
    """Dynamo's view of one f on one layout."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.lock = threading.Lock()
        self.hit: tuple[Graph, tuple[Any, ...]] | None = None
        self.why = ""
        self.proved = False  # one of its graphs was
        self.memory = Memory()
        # a code object of its own: Dynamo counts the graphs of each
        code = _flat.__code__.replace(co_name=f"f_{id(self)}")
        flat = types.FunctionType(code, globals(), code.co_name)
        # what Dynamo keeps with that code must not keep it alive
        backend = functools.partial(_backend, weakref.ref(self))
        self.call = torch.compile(flat, backend=backend, fullgraph=True, dynamic=False)

    def __call__(self, f: Any, t: Tensor, y: Tensor) -> Captured:
        """The graph that f is now.

        Raises:
            Uncompilable: Dynamo could not capture f, this time or before.
        """
        with self.lock:
            if self.why:
                raise Uncompilable(self.why)
            self.hit = None
            try:
                with warnings.catch_warnings(), torch.enable_grad():
                    warnings.simplefilter("ignore")
                    with _patched():
                        self.call(f, self.layout, t, y)
            except Exception as err:
                self.why = reason(err)
                raise Uncompilable(self.why) from None
            hit: Any = self.hit
            self.hit = None
        if hit is None:
            raise Uncompilable("f computes nothing")
        graph, args = hit
        if graph.why:
            raise Uncompilable(graph.why)
        return _read(graph, args, t, y)


def _backend(
    ref: weakref.ref[Tracer], module: torch.fx.GraphModule, examples: list[Any]
) -> Callable[..., Any]:
    """Of Dynamo: a graph for the tracer that asked for it."""
    graph = Graph(split_convolutions(share_products(copy.deepcopy(module))))
    (out,) = (node for node in module.graph.nodes if node.op == "output")
    if len(out.args[0]) != 1:
        graph.why = "f stores tensors outside itself, which would be lost"
    elif not all(isinstance(x, Tensor) for x in examples):
        graph.why = "f depends on a number that is no tensor and no constant"

    def run(*args: Any) -> Any:
        tracer = ref()
        if tracer is not None:  # as it is while it calls
            tracer.hit = graph, args
        if graph.why:
            return module(*args)
        if graph.result is None:
            graph.result = tuple(x.detach() for x in module(*args))
        return graph.result  # nobody looks at the values

    return run


def _flat(f: Any, layout: Layout, t: Tensor, vector: Tensor) -> Tensor:
    return layout.flatten(f(t, layout.unflatten(vector)))


def _read(graph: Graph, args: tuple[Any, ...], t: Tensor, y: Tensor) -> Captured:
    known = {id(t): "t", id(y): "y"}
    tensors = [x for x in args if id(x) not in known]
    if graph.roles is None:
        index = {id(x): i for i, x in enumerate(tensors)}
        graph.roles = [known.get(id(x), index.get(id(x), 0)) for x in args]
    return Captured(graph, tensors)


def _patched() -> Any:
    """Dynamo set to refuse side effects, and to look at modules' hooks."""
    import torch._dynamo.config as config

    return config.patch(side_effect_replay_policy="error", skip_nnmodule_hook_guards=False)


_TRACERS: weakref.WeakKeyDictionary[Any, dict[Any, Tracer]] = weakref.WeakKeyDictionary()


def capture(f: Any, layout: Layout, t: Tensor, y: Tensor) -> Captured:
    """What f does, as a graph.

    Args:
        f: the right-hand side.
        layout: of its state.
        t, y: a time as f sees it and a state `[n]`, of which the values do not matter.

    Raises:
        Uncompilable: with the reason.
    """
    known, key = _tracers(f, layout)
    if key not in known:
        known[key] = Tracer(layout)
    return known[key](f, t, y)


def recall(f: Any, layout: Layout, example: Callable[[], tuple[Tensor, Tensor]]) -> Captured | None:
    """What `capture` gives, if that is a graph proved before; else None.

    Args:
        f: the right-hand side.
        layout: of its state.
        example: gives a time and a state as `capture` wants them.
    """
    known, key = _tracers(f, layout)
    tracer = known.get(key)
    if tracer is None or tracer.why or not tracer.proved:
        return None
    found = tracer.memory.recall(f)
    if found is not None:
        return Captured(*found)
    try:
        captured = tracer(f, *example())
    except Uncompilable:
        tracer.why = ""  # f may be wrong: that is for `solve` to say
        return None
    if not captured.graph.proved:
        return None
    tracer.memory.remember(f, captured.graph, captured.tensors)
    return captured


def prove(f: Any, layout: Layout, graph: Graph) -> None:
    """Note that f, evaluated as it is, was in order, and every tensor it needs known."""
    known, key = _tracers(f, layout)
    graph.proved = known[key].proved = True


def _tracers(f: Any, layout: Layout) -> tuple[dict[Any, Tracer], Any]:
    """The tracers kept with f, and the key of that for this layout."""
    owner, code = _anchor(f)
    key = (code, repr(layout.spec), layout.shapes, layout.dtype, layout.device)
    return _TRACERS.setdefault(owner, {}), key


def _anchor(f: Any) -> tuple[Any, Any]:
    """What f's graphs are kept with: its module where it has one, and its code."""
    if isinstance(f, torch.nn.Module):
        return f, None
    if isinstance(f, functools.partial):
        owner, code = _anchor(f.func)
        return next((x for x in f.args if isinstance(x, torch.nn.Module)), owner), code
    if inspect.ismethod(f):
        code = f.__func__.__code__ if hasattr(f.__func__, "__code__") else None
        return (f.__self__ if isinstance(f.__self__, torch.nn.Module) else code or type(f)), code
    if isinstance(f, types.FunctionType):
        cells = [_content(cell) for cell in f.__closure__ or ()]
        return next((x for x in cells if isinstance(x, torch.nn.Module)), f.__code__), f.__code__
    return type(f), None


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a cell that is still empty
        return None
