"""Kernels: loops over affine memory, with the expressions in them."""

from __future__ import annotations

import dataclasses

from .ir import Move, Node, Shape


@dataclasses.dataclass(frozen=True, eq=False)
class Access:
    """A node's memory, affine in the loop's indices."""

    node: Node
    offset: int
    strides: Shape


@dataclasses.dataclass(frozen=True)
class Time:
    """The time."""


@dataclasses.dataclass(frozen=True)
class Sum:
    """What the loop's reduction has found."""


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """An operation on expressions."""

    op: str
    args: tuple[Expr, ...]


Expr = Access | Time | Sum | Call | float


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """`out[i] = post(reduce over r of term[i, r])`; the last `reduced` sizes are reduced."""

    sizes: Shape
    reduced: int
    reduction: str
    out: Access
    term: Expr
    post: Expr


@dataclasses.dataclass(frozen=True, eq=False)
class Moved:
    """A `Move` node as a kernel."""

    node: Move
    x: Access


Kernel = Loop | Moved


def accesses(expr: Expr) -> list[Access]:
    if isinstance(expr, Access):
        return [expr]
    return [a for x in expr.args for a in accesses(x)] if isinstance(expr, Call) else []


def rebuilt(expr: Expr, change: dict[int, Access]) -> Expr:
    """The expression with accesses replaced, by identity."""
    if isinstance(expr, Access):
        return change.get(id(expr), expr)
    if isinstance(expr, Call):
        return Call(expr.op, tuple(rebuilt(x, change) for x in expr.args))
    return expr


def reads(kernel: Kernel) -> list[Access]:
    """The memory a kernel reads."""
    if isinstance(kernel, Moved):
        return [kernel.x]
    return accesses(kernel.term) + accesses(kernel.post)
