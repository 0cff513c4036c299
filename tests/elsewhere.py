"""A CUDA device that is not there: tensors that say they are on it, with their numbers on the CPU.

An operation that mixes them with others raises, as on the device, and what would make the host wait
for the device is counted. Of kernels, streams and speed it shows nothing: `gpu` tests do.
"""

import collections
import traceback

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

import pyode._autograd

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
BETWEEN = {aten._to_copy.default, aten.copy_.default}
READ = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default}
waits: collections.Counter[str] = collections.Counter()


def waited():
    """Count a wait for the device, by the line of pyode that asked for it."""
    frames = [f for f in traceback.extract_stack() if "/pyode/" in f.filename]
    where = f"{frames[-1].filename.rpartition('/pyode/')[2]}:{frames[-1].name}" if frames else ""
    waits[where] += 1


def own(x):
    return x.inner if isinstance(x, There) else x


class There(torch.Tensor):
    """A tensor on the device."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="cpu",
        )
        made.inner = inner
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def data_ptr(self):
        return self.inner.data_ptr()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def tolist(self):
        waited()
        return self.inner.tolist()

    def numpy(self, **_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __repr__(self, **_):
        return f"There({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = [isinstance(x, There) for x in tensors]
        if func not in BETWEEN and any(
            x.dim() and not is_there for x, is_there in zip(tensors, there, strict=True)
        ):
            raise RuntimeError(f"{func}: tensors on {[str(x.device) for x in tensors]}")
        if func in READ:
            waited()
        to_there = any(there)
        if kwargs.get("device") is not None:
            to_there = torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = "cpu"
        if func is aten.copy_.default:
            to_there = there[0]
        out = func(*tree_map(own, args), **tree_map(own, kwargs))
        if not to_there:
            return out
        known = {id(x.inner): x for x in tensors if isinstance(x, There)}  # written in place
        return tree_map_only(
            torch.Tensor, lambda x: known[id(x)] if id(x) in known else There(x), out
        )


class Moved(torch.autograd.Function):
    """To the device or from it."""

    @staticmethod
    def forward(ctx, x, there):
        ctx.there = there
        if not there:
            waited()
        return There(x.detach().clone()) if there else x.inner.detach().clone()

    @staticmethod
    def backward(ctx, g):
        return (g.inner if ctx.there else There(g)), None


class Elsewhere(TorchFunctionMode):
    """Tensors that are made for the device, or moved, are there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name in ("to", "cuda", "cpu") and args and isinstance(args[0], torch.Tensor):
            return self._moved(func, name, args, kwargs)
        device = kwargs.get("device")
        if device is None or torch.device(device).type != "cuda":
            return func(*args, **kwargs)
        out = func(*tree_map(own, args), **{**kwargs, "device": "cpu"})
        return out if isinstance(out, There) else There(out)

    def _moved(self, func, name, args, kwargs):
        x, *rest = args
        device = {"cuda": CUDA, "cpu": torch.device("cpu")}.get(name, kwargs.pop("device", None))
        for i, given in enumerate(rest):
            if isinstance(given, (str, torch.device)):
                device = rest.pop(i)
                break
        if device is not None and (torch.device(device).type == "cuda") != isinstance(x, There):
            x = Moved.apply(x, torch.device(device).type == "cuda")
        return x.to(*rest, **kwargs) if rest or kwargs else x


def there(x):
    """A copy of a tensor on the device, a leaf."""
    return There(x.detach().clone()).requires_grad_(x.requires_grad)


def install(monkeypatch):
    """What torch does for the device, done on the CPU; in pyode's backward passes too."""
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device=None: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (10**10, 10**10))
    made = pyode._autograd
    for kind in vars(made).values():
        if isinstance(kind, type) and issubclass(kind, torch.autograd.Function):

            def backward(ctx, *grads, inner=kind.backward):
                with Elsewhere():
                    return inner(ctx, *grads)

            monkeypatch.setattr(kind, "backward", staticmethod(backward))
