"""What a function can read, remembered: whether anything of it is another now."""

from __future__ import annotations

import functools
import operator
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

PLAIN = (bool, int, float, complex, str, bytes, type(None))
DEPTH, MOST = 12, 2000  # how far is looked, and entries from which evaluating f is as cheap
HEAP = 1 << 9  # the flag of classes made by a class statement
_NOTHING = object()
# they hold nothing that could change without their being another object
FIXED = (
    type(None), str, bytes, int, float, complex, bool, type, types.ModuleType, types.CodeType,
    types.BuiltinFunctionType, torch.dtype, torch.device, torch.layout, range, slice,
)  # fmt: skip
DESCRIPTORS = (
    types.GetSetDescriptorType, types.MemberDescriptorType, types.WrapperDescriptorType,
    types.MethodDescriptorType, types.ClassMethodDescriptorType,
)  # fmt: skip
LIBRARIES = frozenset(("torch", "builtins", "abc", "typing", "functools"))


class Seen:
    """Tensors, modules, attributes, functions, closure cells and globals that f can reach, by
    identity.

    Of what changes in its place: whether tensors require grad, where their numbers are and how they
    lie there, the versions of those of integers or truth values, and what containers hold.
    `opaque`: something cannot be looked into.

    Args:
        f: the function.
        apart: objects that f is, or that its closure holds, which whoever asks knows to be the
            same: they are looked into, tensors among them are not, and none is held.
    """

    def __init__(self, f: Callable[..., Any], apart: Sequence[Any] = ()):
        self.opaque = False
        self._apart = {id(x) for x in apart}
        self.empty: list[Any] = []  # containers
        self.full: list[tuple[Any, Callable[[], Any], tuple[Any, ...]]] = []  # with their parts
        self.globals: list[tuple[dict[str, Any], str, Any]] = []
        self.cells: list[tuple[Any, Any]] = []
        # whether it requires grad, its address, and itself as it lay there
        self.tensors: list[tuple[Tensor, bool, int, Tensor]] = []
        self.counters: list[tuple[Tensor, int]] = []  # version
        self._known: set[int] = set()
        for x in (f, *(x for x in apart if x is not f)):
            if not (apart and isinstance(x, Tensor)):
                self._inside(x, DEPTH)
        self.opaque |= len(self.globals) + sum(len(then) for *_, then in self.full) > MOST
        if self.opaque:
            for held in (self.empty, self.full, self.globals, self.cells, self.tensors):
                held.clear()
            self.counters.clear()

    @property
    def same(self) -> bool:
        """Whether all of it is what it was; False where something is opaque."""
        if self.opaque or any(self.empty):
            return False
        try:  # loops: generators take a fifth longer
            for x, requires_grad, address, then in self.tensors:
                if x.requires_grad is not requires_grad or x.data_ptr() != address:
                    return False
                if x.dtype is not then.dtype or not x.is_set_to(then):
                    return False
            for cell, value in self.cells:
                if cell.cell_contents is not value:
                    return False
            for x, name, value in self.globals:
                if x.get(name, _NOTHING) is not value:
                    return False
            for x, parts, then in self.full:
                if len(x) != len(then) or not all(map(operator.is_, parts(), then)):
                    return False
            return all(x._version == version for x, version in self.counters)
        except ValueError:  # a cell that is empty now
            return False

    def _look(self, x: Any, depth: int) -> None:
        """Look into what is held from here on."""
        if id(x) in self._apart:
            self.opaque = True
            return
        self._inside(x, depth)

    def _inside(self, x: Any, depth: int) -> None:
        if id(x) in self._known or (isinstance(x, FIXED) and not _own(x)):
            return
        if depth < 0 or len(self.full) > MOST:
            self.opaque = True
            return
        if isinstance(x, type):
            self._class(x, depth)
            return
        self._known.add(id(x))
        if isinstance(x, Tensor):
            self._tensor(x)
        elif isinstance(x, torch.nn.Module):
            for module in x.modules():  # however deep
                self._known.add(id(module))
                self._mapping(vars(module), depth)
                self._class(type(module), depth)
        elif isinstance(x, functools.partial):
            self._several((x.func, *x.args), depth)
            self._mapping(x.keywords, depth)
        elif isinstance(x, types.MethodType):
            for part in (x.__self__, x.__func__):
                if id(part) not in self._apart:
                    self._look(part, depth - 1)
        elif isinstance(x, types.FunctionType):
            self._function(x, depth)
        elif isinstance(x, dict):
            if x:
                self.full.append((x, x.__iter__, tuple(x)))
            self._mapping(x, depth)
            self._attributes(x, depth)
        elif isinstance(x, (tuple, frozenset)):
            self._several(x, depth)
            self._attributes(x, depth)
        elif isinstance(x, (list, set)):
            self._container(x, x.__iter__, depth)
            self._attributes(x, depth)
        elif _plain(type(x)) and type(getattr(x, "__dict__", None)) is dict:
            self._attributes(x, depth)
        else:
            self.opaque = True

    def _several(self, parts: Any, depth: int) -> None:
        for part in parts:
            self._look(part, depth - 1)

    def _mapping(self, x: Mapping[Any, Any], depth: int) -> None:
        self._container(x, x.values, depth)

    def _container(self, x: Any, parts: Callable[[], Any], depth: int) -> None:
        then = tuple(parts())
        if then:
            self.full.append((x, parts, then))
        else:
            self.empty.append(x)
        self._several(then, depth)

    def _attributes(self, x: Any, depth: int) -> None:
        if type(x).__flags__ & HEAP and type(getattr(x, "__dict__", None)) is dict:
            self._mapping(x.__dict__, depth)
            self._class(type(x), depth)

    def _class(self, kind: type, depth: int) -> None:
        """The methods and attributes of a class, and of those it is derived from."""
        for part in kind.__mro__:
            if id(part) in self._known or _library(part):
                continue
            self._known.add(id(part))
            own = vars(part)
            self.full.append((own, own.values, tuple(own.values())))
            for key, value in own.items():
                method = value.fget if isinstance(value, property) else value
                method = getattr(method, "__func__", method)  # of a static or class method
                if isinstance(method, types.FunctionType) or not (
                    key.startswith("_") or isinstance(method, DESCRIPTORS)
                ):
                    self._look(method, depth - 1)

    def _tensor(self, x: Tensor) -> None:
        counted = not (x.is_floating_point() or x.is_complex())
        plain = x.layout is torch.strided and type(x) in (Tensor, torch.nn.Parameter)
        if not plain or (counted and x.is_inference()):
            self.opaque = True  # it has no address, or no version
            return
        self.tensors.append((x, x.requires_grad, x.data_ptr(), x.detach()))
        if counted:
            self.counters.append((x, x._version))

    def _function(self, f: types.FunctionType, depth: int) -> None:
        for cell in f.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:  # a cell that is still empty
                self.opaque = True
                continue
            if id(value) in self._apart:
                continue
            self.cells.append((cell, value))
            self._look(value, depth - 1)
        self._several(f.__defaults__ or (), depth)
        self._several((f.__kwdefaults__ or {}).values(), depth)
        self._mapping(f.__dict__, depth)
        if _library(f):  # what it holds may be the user's: torch.func.vmap(net)
            return
        codes = [f.__code__]
        while codes:
            code = codes.pop()
            codes.extend(c for c in code.co_consts if isinstance(c, types.CodeType))
            self._named(f.__globals__, code.co_names, depth)

    def _named(self, known: dict[str, Any], names: tuple[str, ...], depth: int) -> None:
        """Globals of those names; of modules among them, what has one of the names there."""
        for name in names:  # of modules that f imports itself, too
            value = known.get(name, sys.modules.get(name, _NOTHING))
            if isinstance(value, types.ModuleType):
                if depth > 0 and not _installed(value):
                    self._named(vars(value), names, depth - 1)
            elif value is not _NOTHING:
                self.globals.append((known, name, value))
                self._look(value, depth - 1)


def hooked() -> bool:
    """Whether hooks are called for every module there is, whatever f holds."""
    return bool(torch.nn.modules.module._has_any_global_hook())


def _library(x: Any) -> bool:
    """Whether a class or function is of a library that nobody changes while f is used."""
    return (x.__module__ or "").partition(".")[0] in LIBRARIES


def _plain(kind: type) -> bool:
    """Whether objects of a class hold what their `__dict__` holds, and nothing else."""
    written = all(part is object or part.__flags__ & HEAP for part in kind.__mro__)
    return written and not hasattr(kind, "__slots__")


def _own(x: Any) -> bool:
    """Whether a module or class is the user's, whose attributes may be settings."""
    if isinstance(x, types.ModuleType):
        return not _installed(x)
    if not isinstance(x, type) or not x.__flags__ & HEAP or _library(x):
        return False
    module = sys.modules.get(x.__module__)
    return module is None or not _installed(module)


def _installed(x: types.ModuleType) -> bool:
    """Whether a module is Python's own or was installed with a package."""
    top = x.__name__.partition(".")[0]
    return top in sys.stdlib_module_names or "-packages" in (getattr(x, "__file__", None) or "")


def identity(f: Any) -> tuple[Any, list[Any]]:
    """A key that is the same for a function made anew with the same code over the same objects."""
    if hasattr(f, "__self__") and hasattr(f, "__func__"):
        return (id(f.__self__), f.__func__), [f.__self__]
    if not isinstance(f, types.FunctionType) or f.__defaults__ or f.__kwdefaults__:
        return id(f), [f]
    try:
        held = [cell.cell_contents for cell in f.__closure__ or ()]
    except ValueError:
        return id(f), [f]
    if not all(isinstance(x, (Tensor, torch.nn.Module, types.FunctionType, *PLAIN)) for x in held):
        return id(f), [f]
    parts = tuple(x if isinstance(x, PLAIN) else id(x) for x in held)
    return (f.__code__, parts), [f.__code__, *(x for x in held if not isinstance(x, PLAIN))]
