"""Which loops Inductor makes one of, where tensors are large.

By default everything that shares anything is one loop nest after another in one kernel, put where
the last of it can run. In the transpose of a step these are, say, copies of all stages' cotangents
that meet in a sum of a few numbers each: by then the first of them have left the cache.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

LEAST = 2**14  # bytes two loops must share: fewer are dearer to wait for than to write and read


@functools.cache
def near() -> Any:
    """A class for Inductor's `inductor_choices_class`."""
    from torch._inductor.choices import InductorChoices

    class Near(InductorChoices):
        """Loops that share little stay apart."""

        def uuid(self) -> str:
            """Part of the key of Inductor's cache."""
            return f"pyode near {LEAST}"

        @staticmethod
        def can_fuse_vertical(
            scheduler: Any, node1: Any, node2: Any, shared_data_score: int
        ) -> bool:
            return shared_data_score >= LEAST and InductorChoices.can_fuse_vertical(
                scheduler, node1, node2, shared_data_score
            )

    return Near


def applied(kind: Any) -> contextlib.AbstractContextManager[None]:
    """Let Inductor choose by that class, None: as it does, until the end.

    It makes its choices once in a thread, and keeps those of the first program compiled there. To
    be entered before `inductor_choices_class` is set: what it finds is put back.
    """
    if kind is None:
        return contextlib.nullcontext()
    from torch._inductor.virtualized import V

    return V.set_choices_handler(kind())
