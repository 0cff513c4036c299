"""Where a session's tensors live, and who waits for whom."""

from __future__ import annotations

import abc
import contextlib
import ctypes
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._errors import GradientUnavailable
from . import runtime

NOTHING = contextlib.nullcontext()


class Place(abc.ABC):
    """Memory that Julia and torch share.

    Attributes:
        kind, index: as `PyODE.place` has it.
        device: as torch has it.
    """

    kind: str
    index: int = 0
    device: torch.device

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A new tensor there, to be filled."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    @abc.abstractmethod
    def view(self, address: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor on memory of Julia's."""

    def guarded(self, call: Callable[..., int]) -> Callable[..., int]:
        """A function for Julia to call: what it asked for is done when it returns."""
        return call

    def entered(self) -> contextlib.AbstractContextManager[Any]:
        """Around a call of Julia."""
        return NOTHING


class Host(Place):
    """This process's memory."""

    kind = "cpu"

    device = torch.device("cpu")

    def view(self, address: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return on_host(address, shape, dtype)


class Device(Place):
    """Memory of a GPU. Torch and Julia have streams of their own, which do not wait for each other.

    So the host waits, at every crossing, for the stream of the side it leaves: before Julia is
    called and before a callback returns for torch's, in Julia for Julia's. Sharing one stream would
    save a few microseconds a call, and be wrong wherever f changes torch's stream.
    """

    def __init__(self, device: torch.device):
        self.device = device

    @abc.abstractmethod
    def settle(self) -> None:
        """Wait for what torch was asked for."""

    def guarded(self, call: Callable[..., int]) -> Callable[..., int]:
        def waited(*args: Any) -> int:
            went = call(*args)
            self.settle()
            return went

        return waited

    @contextlib.contextmanager
    def entered(self) -> Any:
        refuse_other_threads()
        self.settle()
        yield


class Cuda(Device):
    """Memory of a CUDA device."""

    kind = "cuda"

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.index = device.index or 0

    def view(self, address: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if math.prod(shape) == 0:
            return torch.empty(shape, dtype=dtype, device=self.device)
        tensor = torch.as_tensor(Exposed(address, shape, dtype), device=self.device)
        if tensor.data_ptr() != address:
            raise RuntimeError(f"bug in pyode: torch copied memory of Julia's on {self.device}")
        return tensor

    def settle(self) -> None:
        torch.cuda.current_stream(self.device).synchronize()

    @contextlib.contextmanager
    def entered(self) -> Any:
        # Julia makes the device current for this thread; torch's own comes back afterwards
        with super().entered(), torch.cuda.device(self.device):
            yield


class Exposed:
    """Memory on a CUDA device, as torch reads it (CUDA array interface, version 3)."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: torch.dtype):
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "<f4" if dtype == torch.float32 else "<f8",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


def on_host(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor on this process's memory."""
    if math.prod(shape) == 0:
        return torch.empty(shape, dtype=dtype)
    number = ctypes.c_float if dtype == torch.float32 else ctypes.c_double
    memory = (number * math.prod(shape)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


HOST = Host()


def place_of(device: torch.device) -> Place:
    """Where a state on a device is."""
    return Cuda(device) if device.type == "cuda" else HOST


def refuse_other_threads() -> None:
    """Julia runs in the thread that started it alone; torch's backward on a GPU has its own.

    Raises:
        GradientUnavailable: this is another thread.
    """
    if not runtime.at_home():
        raise GradientUnavailable(
            "the backward pass runs on another thread (torch has one for a GPU), and Julia on the "
            "one that started it alone. Call torch.autograd.set_multithreading_enabled(False) once "
            "before backward(): it then runs on the thread that calls it."
        )
