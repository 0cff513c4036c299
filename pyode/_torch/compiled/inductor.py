"""Functions of tensors to machine code: the one file that calls what torch does not publish.

A function is traced by `make_fx` on fake tensors (shapes without values, so that nothing of the
data can enter the program), its transpose taken by `torch.func.vjp`, the two parted where the
fewest bytes must be kept (the min-cut partitioner of AOTAutograd), and each compiled by Inductor,
whose cache on disk serves the next process. Dynamo takes no part in a call of the result.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from . import fusion
from .scratch import keep_scratch

functorch: Any = torch._C._functorch  # type: ignore[attr-defined]
autograd: Any = torch._C._autograd  # type: ignore[attr-defined]
Function = Callable[..., tuple[Tensor, ...]]
Run = Callable[[list[Any]], Sequence[Tensor]]
# torch that compiles steps: 2.9 loses side effects, 2.6 takes minutes, 2.4 gives zero gradients
OLDEST = "2.11"
TINY = 2**10  # entries that are joined sooner than a view of each part is made by Python
NEAR = 2**15  # entries of tensors that stay in the nearest cache: writing one costs next to nothing


class Uncompilable(Exception):
    """Why something was not compiled, in words."""


def refuse_older() -> None:
    """Nothing is compiled by a torch with which that was not tried.

    Raises:
        Uncompilable: torch is older than `OLDEST`.
    """
    if _older(torch.__version__):
        raise Uncompilable(
            f"this is torch {torch.__version__}; compiled steps need {OLDEST} or newer"
        )


@functools.cache
def _older(version: str) -> bool:
    return version < OLDEST  # compared as versions


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """A function and its transpose.

    `forward(inputs) -> [*outputs, *saved]`; `backward([*saved, *cotangents, *totals])` gives the
    gradient of each wanted input, those that have totals added to them.
    """

    forward: Run
    backward: Run
    outputs: int


def compile_one(fn: Function, inputs: list[Tensor]) -> Run:
    """`fn` without gradients; a call takes and gives a list.

    Raises:
        Uncompilable: with the reason.
    """
    with _in_words():
        return _compile(_trace(fn, *inputs))[0]


def compile_pair(
    fn: Function, inputs: list[Tensor], wanted: list[int], summed: list[int], outputs: int
) -> Pair:
    """`fn` and its transpose.

    Args:
        fn: the first `outputs` of its results have cotangents; the others are not differentiated.
        inputs: examples: their shapes, strides and dtypes are those of every call.
        wanted: inputs whose gradient is wanted.
        summed: of these, the ones whose gradient is added to a total that is given.
        outputs: see `fn`.

    Raises:
        Uncompilable: with the reason.
    """
    counts: dict[str, int] = {}

    def joint(primals: list[Tensor], tangents: list[Tensor]) -> list[Tensor]:
        def part(*xs: Tensor) -> Any:
            full = list(primals)
            for i, x in zip(wanted, xs, strict=True):
                full[i] = x
            out = fn(*full)
            return tuple(out[:outputs]), tuple(out[outputs:])

        made: Any = torch.func.vjp(part, *(primals[i] for i in wanted), has_aux=True)
        found, pull, rest = made
        grads = list(pull(tuple(tangents[:outputs])))
        for i, total in zip(summed, tangents[outputs:], strict=True):
            at = wanted.index(i)
            grads[at] = total + grads[at]
        counts["all"] = len(found) + len(rest)
        return [*found, *rest, *grads]

    with _in_words():
        from functorch.compile import min_cut_rematerialization_partition

        sample = [torch.zeros_like(x) for x in _shapes(fn, inputs)[:outputs]]
        tangents = sample + [torch.zeros_like(inputs[i]) for i in summed]
        graph = _trace(joint, inputs, tangents)
        parted: Any = min_cut_rematerialization_partition(
            graph, (inputs, tangents), num_fwd_outputs=counts["all"]
        )
        forward, backward = parted
        run, strides = _compile(forward, counts["all"])
        return Pair(run, _compile(backward, None, strides[counts["all"] :])[0], counts["all"])


def _shapes(fn: Function, inputs: list[Tensor]) -> list[Tensor]:
    """Tensors like fn's results."""
    graph = _trace(fn, *inputs)
    (out,) = (node for node in graph.graph.nodes if node.op == "output")
    like = [node.meta["val"] for node in out.args[0]]
    return [torch.zeros(x.shape, dtype=x.dtype) for x in like]


def _trace(fn: Callable[..., Sequence[Tensor]], *inputs: Any) -> GraphModule:
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    from .decompositions import table

    trace: Any = make_fx(
        torch.func.functionalize(fn, remove="mutations"),
        decomposition_table={**select_decomp_table(), **table()},
        tracing_mode="fake",
        _allow_non_fake_inputs=True,
    )
    graph = trace(*inputs)
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.copy_.default and node.args[0].op == "placeholder":
            raise Uncompilable("f writes into a tensor it was given (BatchNorm in training mode?)")
    return graph


def _compile(
    graph: GraphModule, seen: int | None = None, strides: Sequence[tuple[int, ...] | None] = ()
) -> tuple[Run, list[tuple[int, ...] | None]]:
    """A graph's program, and the strides of its outputs.

    Args:
        graph: placeholders and output with fake tensors.
        seen: how many outputs keep their strides, None: all. Inductor chooses those of the others
            (channels last around a 2-D convolution).
        strides: of the first placeholders, as another program gives them.
    """
    import torch._inductor.config as config
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx_inner

    nodes = [node for node in graph.graph.nodes if node.op == "placeholder"]
    examples = [node.meta["val"] for node in nodes]
    fake: Any = examples[0].fake_mode
    context = TracingContext(fake)  # without it, Inductor's cache is passed by
    for i, stride in enumerate(strides):
        if stride is not None and tuple(examples[i].stride()) != tuple(stride):
            with fake:
                examples[i] = examples[i].as_strided(examples[i].shape, stride)
            nodes[i].meta["val"] = examples[i]
    (out,) = (node for node in graph.graph.nodes if node.op == "output")
    out.meta["user_visible_output_idxs"] = list(range(len(out.args[0]) if seen is None else seen))
    context.output_strides = []
    _lay_in_rows(graph)
    _write_factors(graph)
    wanted = _options(config, graph)
    chosen = fusion.applied(wanted.get("inductor_choices_class"))
    with torch.no_grad(), chosen, config.patch(wanted), tracing(context):
        made: Any = compile_fx_inner(graph, examples)
    # past a wrapper for autotuning and the debugger, which costs as much as a small step
    run = getattr(made, "current_callable", None) or made
    return keep_scratch(run), list(context.output_strides)


def _lay_in_rows(graph: GraphModule) -> None:
    """Small copies that are to lie in rows do: Inductor lays them out as what they are copies of.

    A loop over weights that lie in columns uses no vector instructions. Done to parted programs:
    the partitioner would keep what it does not know for the way back.
    """
    aten = torch.ops.aten
    for node in list(graph.graph.nodes):
        rows = node.kwargs.get("memory_format") is torch.contiguous_format
        if node.target is not aten.clone.default or not rows:
            continue
        value = node.meta["val"]
        if value.numel() > NEAR:
            continue
        _written(graph, node)
    graph.recompile()


def _write_factors(graph: GraphModule) -> None:
    """A small factor of a product is computed once, and not for every row or column of the other.

    Inductor sees one reader of it, an outer product, and makes it part of that.
    """
    for node in list(graph.graph.nodes):
        if node.target is not torch.ops.aten.unsqueeze.default:
            continue
        source = node.args[0]
        tags = getattr(getattr(source, "target", None), "tags", ())
        if torch.Tag.pointwise in tags and source.meta["val"].numel() <= NEAR:
            _written(graph, source)
    graph.recompile()


def _written(graph: GraphModule, node: Any) -> None:
    """Have a node's value written to memory as it lies, before anything reads it."""
    value, force = node.meta["val"], torch.ops.prims.inductor_force_stride_order.default
    if any(user.target is force for user in node.users):
        return
    with graph.graph.inserting_after(node):
        laid = graph.graph.call_function(force, (node, tuple(value.stride())))
    laid.meta["val"] = value
    node.replace_all_uses_with(laid, lambda user: user is not laid)


def _options(config: Any, graph: GraphModule) -> dict[str, Any]:
    """Inductor's settings, those that this torch has.

    A sum over two or three inputs of a small layer stays a sum of its own: unrolled into what
    follows it, it would keep that (a tanh, say) from using vector instructions. Where all tensors
    are small, what is read twice is written once: Inductor would compute it again for every reader,
    an activation for each of the next layer's outputs. Parts of a tiny tensor are copied into it:
    else Python makes a view of it for each of them, at every call. Where they are large, loops that
    share next to nothing stay apart. Products and sums are contracted (one rounding for two). Sizes
    and strides of inputs are those of the examples: Dynamo's guards and the loop see to it. What a
    library call gives is looked at where calls take much longer than the look. Nothing is laid out
    channels last for a convolution: norms lose more by it than it gains.
    """
    from torch._inductor.lowering import fallbacks

    aten: Any = torch.ops.aten
    slow = {*fallbacks, aten.convolution.default, aten.convolution_backward.default}
    asserts = any(node.target in slow for node in graph.graph.nodes)
    wanted = {
        "unroll_reductions_threshold": 1,
        "size_asserts": asserts,
        "cpp_wrapper": False,
        "layout_optimization": False,
        "cpp.enable_floating_point_contract_flag": "fast",
    }
    if _largest(graph) <= NEAR:
        wanted |= {"realize_opcount_threshold": 12, "realize_reads_threshold": 0}
        joined = _largest(graph, (aten.cat.default, aten.stack.default))
        wanted["force_pointwise_cat"] = joined <= TINY
    elif _known(config, "inductor_choices_class"):
        wanted["inductor_choices_class"] = fusion.near()
        wanted["score_fusion_memory_threshold"] = fusion.LEAST
    return {key: value for key, value in wanted.items() if _known(config, key)}


def _largest(graph: GraphModule, made_by: Sequence[Any] = ()) -> int:
    """Entries of the largest tensor in a graph, or of those that are made by some operations."""
    nodes = [node for node in graph.graph.nodes if not made_by or node.target in made_by]
    values = [node.meta.get("val") for node in nodes]
    return max((x.numel() for x in values if isinstance(x, Tensor)), default=0)


def _known(config: Any, key: str) -> bool:
    """Whether this torch has a setting, `a.b` included."""
    *path, last = key.split(".")
    return hasattr(functools.reduce(getattr, path, config), last)


class _in_words:
    """What torch raises while it compiles, as `Uncompilable`; its own warnings are not ours.

    Transforms of `torch.func` that were under way (f's own, perhaps) are ended with it: left as
    they are, every operation from then on would be part of them, and hooks on saved tensors, which
    they forbid, would stay forbidden.
    """

    def __enter__(self) -> None:
        self.depth = functorch.get_dynamic_layer_stack_depth()
        self.forbidden = autograd._saved_tensors_hooks_get_disabled_error_message()
        self.quiet = warnings.catch_warnings()
        self.quiet.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, kind: Any, err: BaseException | None, trace: Any) -> None:
        self.quiet.__exit__(None, None, None)
        if err is not None:
            functorch.pop_dynamic_layer_stack_and_undo_to_depth(self.depth)
            if self.forbidden is None:
                autograd._saved_tensors_hooks_enable()
            else:
                autograd._saved_tensors_hooks_disable(self.forbidden)
        if isinstance(err, Exception) and not isinstance(err, Uncompilable):
            raise Uncompilable(reason(err)) from err


def reason(err: BaseException) -> str:
    """The first line of what torch said."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    text = lines[0] if lines else type(err).__name__
    if "recompile_limit" in str(err) or type(err).__name__ == "FailOnRecompileLimitHit":
        text = "it was another f too often, as by a Python number that changes: hold it in a tensor"
    if "side effects" in text:
        text = "f has side effects (it sets attributes, counts or appends), which would be lost"
    if "INTERNAL ASSERT" in text or "Functionalize rule" in text:
        text = "f uses transforms of torch.func or an autograd.Function, which were not traced"
    if "compiler" in text.lower() and "c++" in text.lower():
        text = f"no C++ compiler: {text}"
    return text[:200].rstrip(".")
