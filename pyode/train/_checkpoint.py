"""Checkpoints that a kill at any time leaves readable."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pathlib
import pickle
from typing import Any

import torch

from .._errors import DataError

log = logging.getLogger("pyode.train")
MAGIC = b"pyode-checkpoint-1\n"


class CheckpointError(DataError, RuntimeError):
    """A checkpoint cannot be written or read; the message names the file and what is wrong."""


def save_checkpoint(path: str | os.PathLike[str], state: dict[str, Any]) -> pathlib.Path:
    """Write `state` (tensors, numbers, strings, lists, dicts) with its checksum.

    The file is written beside its place, flushed to the disk, and renamed over it; the one that was
    there before is kept as `NAME.previous`. At no time is there no readable checkpoint.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    path = pathlib.Path(path)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            keep = previous(path)
            keep.unlink(missing_ok=True)
            os.link(path, keep)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as err:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path} could not be written ({len(payload)} bytes): {err}. The checkpoint before it "
            "is untouched. Free some space, or pass another folder."
        ) from err
    return path


def previous(path: pathlib.Path) -> pathlib.Path:
    """Where the checkpoint before the last one is kept."""
    return path.with_name(path.name + ".previous")


def _sync_folder(folder: pathlib.Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint; if it is damaged, the one before it, and a warning is logged.

    No code in it is ever run.

    Raises:
        CheckpointError: neither can be read; says why for each.
    """
    path = pathlib.Path(path)
    reasons = []
    for candidate in (path, previous(path)):
        try:
            state = _read(candidate)
        except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as err:
            reasons.append(f"{candidate.name}: {str(err).splitlines()[0]}")
        else:
            if reasons:
                log.warning("%s; %s is taken instead", reasons[0], candidate)
            return state
    raise CheckpointError(f"no readable checkpoint at {path}: " + "; ".join(reasons) + ".")


def _read(path: pathlib.Path) -> dict[str, Any]:
    raw = path.read_bytes()
    if not raw.startswith(MAGIC):
        raise ValueError("not a pyode checkpoint")
    head, _, payload = raw[len(MAGIC) :].partition(b"\n")
    found = hashlib.sha256(payload).hexdigest()
    if found.encode() != head:
        raise ValueError(f"checksum {found[:12]} instead of {head.decode(errors='replace')[:12]}")
    return torch.load(io.BytesIO(payload), weights_only=True)
