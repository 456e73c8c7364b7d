"""Reading other codes' checkpoints: tensors only, never a pickled object, and telling what a file holds.

One class is let through by name: ``yacs.config.CfgNode``, the settings that MTLoRA's published code saves beside its
tensors. An OrderedDict stands in for it, so nothing of yacs, and no code that a file names, is ever imported or run.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasklora.errors import CheckpointError, first_line, listing
from tasklora.tasks import read_safetensors

MTL_LORA = "mtl_lora"
MTLORA = "mtlora"
SETTINGS_CLASS = "yacs.config.CfgNode"
_MTL_LORA_PART = re.compile(r"(.*\.)?lora_(A|lambdas|B|B_w)")
_VISION_PART = re.compile(r".*\.lora_(shared|tasks)_[AB](\..+)?")
_FUSED_PART = re.compile(r".*\.lora_B_[qkv](_w)?")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return the tensors of a checkpoint, as :func:`read_state` does, and the settings saved beside them, if any.

    Raises:
        CheckpointError: as :func:`read_state`.
    """
    data, path = _content(path), Path(path)
    settings = data.get("config") if isinstance(data, dict) else None
    return _tensors_of(data, path), settings if isinstance(settings, dict) else None


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint: safetensors, or a state dict of ``torch.save`` read by ``weights_only=True``.

    A mapping that keeps its state dict under ``model`` or ``state_dict`` is opened there.

    Raises:
        CheckpointError: if there is no such file, it is damaged or cut off, holds pickled objects, or holds no tensors.
    """
    return _tensors_of(_content(path), Path(path))


def _content(path: str | Path) -> Any:
    path = Path(path)
    if path.is_dir():
        inside = listing(sorted(file.name for file in path.iterdir()), 6)
        if (path / "adapter_config.json").is_file():
            raise CheckpointError(f"{path} is a saved adapter ({inside}): there is nothing to convert to one.")
        raise CheckpointError(f"{path} is a folder ({inside}); give the checkpoint's file.")
    if not path.is_file():
        raise CheckpointError(f"no file {path}.")
    with path.open("rb") as file:
        start = file.read(8)
    if not start.startswith((_ZIP, _PICKLE)):
        return read_safetensors(path)
    return _load(path)


def _load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([(OrderedDict, SETTINGS_CLASS)]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = first_line(error)
        if "weights_only" not in str(error).lower():
            raise CheckpointError(f"{path} is damaged or cut off: {reason}") from None
        raise CheckpointError(
            f"{path} holds pickled Python objects, which may run code when they are read; only tensors are read here "
            f"(and, beside them, {SETTINGS_CLASS} as a plain dict). "
            f"Where you trust it, save its tensors alone: torch.save(model.state_dict(), …). ({_culprit(error)})"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged or cut off: {first_line(error)}") from None


def _culprit(error: Exception) -> str:
    found = re.search(r"(?:GLOBAL|class|function) [\w.]+", str(error))
    return found[0] if found else first_line(error)


def _tensors_of(data: Any, path: Path) -> dict[str, Tensor]:
    for key in ("model", "state_dict"):
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
    if not isinstance(data, Mapping) or not data:
        raise CheckpointError(f"{path} holds no state dict but {type(data).__name__}.")
    other = [str(key) for key, value in data.items() if not isinstance(value, Tensor) or not isinstance(key, str)]
    if other:
        raise CheckpointError(f"{path} is no state dict: besides tensors it holds {listing(other, 4)}.")
    return dict(data)


def kind_of(state: Mapping[str, Tensor], path: str | Path) -> str:
    """Return what a checkpoint is, by its names: :data:`MTL_LORA` (text) or :data:`MTLORA` (dense vision).

    Raises:
        CheckpointError: if it is nothing that can be converted; the message says what was found.
    """
    parts = [key for key in state if _MTL_LORA_PART.fullmatch(key)]
    if any(_VISION_PART.fullmatch(key) for key in state):
        return MTLORA
    if any(_FUSED_PART.fullmatch(key) for key in state):
        found = "MTL-LoRA on a fused q-k-v layer (lora_B_q, …), which has no counterpart here"
    elif any(key.endswith(("lora_lambdas", "lora_B_w")) for key in parts):
        return MTL_LORA
    elif any("task_updates." in key for key in state):
        found = "an adapter of tasklora already"
    elif any(key.endswith(("lora_A.weight", "lora_B.weight")) for key in state):
        found = "a plain LoRA of PEFT; load it with tasklora.import_lora, or with `tasklora import`"
    elif any("lora" in key for key in state):
        found = f"another kind of LoRA ({listing([key for key in state if 'lora' in key], 3)})"
    else:
        found = f"{len(state)} tensors without any of a LoRA ({listing(state, 3)})"
    raise CheckpointError(
        f"cannot convert {path}: it holds {found}. What can be read: checkpoints of "
        "the published codes of MTL-LoRA and MTLoRA."
    )
