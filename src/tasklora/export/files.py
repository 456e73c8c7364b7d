"""The files of an export: what they are called, where they may go, and that they appear whole or not at all.

OUT/  adapter_config.json  adapter_model.safetensors  [head.safetensors]  manifest.json      (plain LoRA)
OUT/  config.json  model.safetensors  [tokenizer…]    [head.safetensors]  manifest.json      (merged)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tasklora.errors import CheckpointError, OutputError
from tasklora.evaluation import package_versions
from tasklora.tasks import sha256_of, share_mode

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
HEAD_FILE = "head.safetensors"
MANIFEST_FILE = "manifest.json"
EXPORT_FORMAT = "tasklora/export"
EXPORT_VERSION = 1


def check_output(directory: str | Path, overwrite: bool) -> Path:
    """Return `directory` as a path that may be written to; nothing is made yet.

    Raises:
        OutputError: if none was given, it is a file, it holds something and `overwrite` is not set, or it cannot be
            written to.
    """
    if not str(directory):
        raise OutputError("no output directory was given: pass directory=….")
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file, not a directory. Choose another output directory.")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise OutputError(f"the output directory {path} is not empty. Choose another, or use --overwrite.")
    try:
        existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    except OSError as error:
        raise _cannot_write(path, error.strerror or str(error)) from None
    if not existing.is_dir():
        raise _cannot_write(path, f"{existing} is a file")
    if not os.access(existing, os.W_OK):
        raise _cannot_write(path, "permission denied")
    return path


def _cannot_write(path: Path, why: str) -> OutputError:
    return OutputError(f"cannot write to {path}: {why}. Choose another output directory.")


@contextlib.contextmanager
def filling(directory: Path) -> Iterator[Path]:
    """Yield an empty folder beside `directory`, whose files are moved there when the block has ended well.

    An earlier export in `directory` is removed then, and not before; other files stay. The manifest is moved last.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-")
    except OSError as error:
        raise _cannot_write(directory, error.strerror or str(error)) from None
    with scratch as name:
        yield Path(name)
        clear_export(directory)
        directory.mkdir(exist_ok=True)
        for file in sorted(Path(name).iterdir(), key=lambda file: (file.name == MANIFEST_FILE, file.name)):
            if file.is_file():
                share_mode(file)
            os.replace(file, directory / file.name)


def clear_export(directory: Path) -> None:
    """Empty a directory that holds an earlier export: a LoRA left beside a merged model would be applied twice."""
    try:
        manifest = json.loads((directory / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(manifest, dict) and manifest.get("format") == EXPORT_FORMAT:
        shutil.rmtree(directory)
        directory.mkdir()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, path, metadata={"format": "pt"})


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a mapping as JSON."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write ``manifest.json``: `facts`, the SHA-256 of every other file in `folder`, and the packages' versions."""
    files = {file.name: sha256_of(file) for file in sorted(folder.iterdir()) if file.is_file()}
    head = {"format": EXPORT_FORMAT, "version": EXPORT_VERSION}
    write_json(folder / MANIFEST_FILE, {**head, **facts, "files": files, "versions": package_versions()})


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """Return the manifest of an export.

    Raises:
        CheckpointError: if there is none, it is damaged, or of a newer version.
    """
    path = Path(directory) / MANIFEST_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}. Is {directory} an export of tasklora?") from None
    if not isinstance(data, dict) or data.get("format") != EXPORT_FORMAT:
        raise CheckpointError(f"{path} is no manifest of an export (format '{EXPORT_FORMAT}').")
    if data.get("version") != EXPORT_VERSION:
        raise CheckpointError(
            f"{path} has version {data.get('version')!r}, this tasklora reads {EXPORT_VERSION}. Upgrade tasklora."
        )
    return data


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name without ``torch.``."""
    return str(dtype).removeprefix("torch.")
