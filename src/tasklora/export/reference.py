"""Checkpoints of MTL-LoRA's published code (pUmpKin-Co/MTL-LoRA), to and from adapters of tasklora.

That code saves ``checkpoint/final_checkpoint.pt``: a dict of every tensor whose name contains "lora", and no settings.

=====================  ==================  ===========================  ==========================
there                  shape               here                         shape
=====================  ==================  ===========================  ==========================
PATH.lora_A            (1, r, in)          PATH.task_updates.A          (r, in)
PATH.lora_B            (n, out, r)         PATH.task_updates.B          (out, n, r)
PATH.lora_lambdas      (T, r, r), (T, r)   PATH.task_updates.Lambda     the same
PATH.lora_B_w          (T, n)              PATH.task_updates.w          the same
=====================  ==================  ===========================  ==========================

α, τ, the tasks' names and the base are not in the file and must be given. Nor is the bias that its layers add to
bias-free ones, random and frozen: it draws a new one each time it loads, so the conversion leaves it out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasklora.errors import BrokenAdapterError, CheckpointError, ConfigError, OutputError, UnsupportedError, listing
from tasklora.export.checkpoints import MTL_LORA, kind_of, read_state
from tasklora.export.files import ADAPTER_FILE, CONFIG_FILE, check_output, filling, write_tensors
from tasklora.tasks import move_into_place, read_safetensors
from tasklora.tuner import MTLLoraConfig

_PART = re.compile(r"(?:module\.)?(?P<path>.+)\.lora_(?P<name>A|lambdas|B|B_w)")
_OURS = re.compile(r"base_model\.model\.(?P<path>.+)\.task_updates\.(?P<name>A|B|Lambda|w)")
_NAMES = {"A": "lora_A", "B": "lora_B", "Lambda": "lora_lambdas", "w": "lora_B_w"}


@dataclass(frozen=True)
class Preset:
    """The settings of one of the reference's scripts, for its own checkpoints."""

    tasks: tuple[str, ...]
    r: int
    lora_alpha: float
    temperature: float
    base: str
    task_type: str


PRESETS = {
    "commonsense": Preset(
        ("boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "ARC-Challenge", "ARC-Easy", "openbookqa"),
        r=8,
        lora_alpha=16,
        temperature=0.1,
        base="meta-llama/Llama-2-7b-hf",
        task_type="CAUSAL_LM",
    )
}
"""Name → what ``script/llama2_7B_mlora_qkvo.sh 8 16`` of the reference sets."""


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote.

    Attributes:
        directory: the adapter.
        layers: how many layers it adapts.
        config: its config.
    """

    directory: Path
    layers: int
    config: MTLLoraConfig


def convert_reference(
    checkpoint: str | Path,
    directory: str | Path,
    *,
    tasks: Sequence[str],
    lora_alpha: float,
    temperature: float,
    base: str,
    revision: str | None = None,
    lora_dropout: float = 0.0,
    task_type: str | None = None,
    expected_rank: int | None = None,
    overwrite: bool = False,
) -> Converted:
    """Write a checkpoint of MTL-LoRA's published code as an adapter that ``PeftModel.from_pretrained`` loads.

    r, n and the kind of Λ_t follow from the shapes; what the file does not hold is asked for. Numbers and dtype stay.

    Args:
        checkpoint: the ``.pt`` file (read with ``weights_only=True``), or the same as safetensors.
        directory: where to; new or empty unless `overwrite`.
        tasks: names of the tasks, in the order of the reference's ids.
        lora_alpha: α of the training script.
        temperature: τ of the training script (``--temperature``).
        base: name or path of the base model, for the adapter's config.
        revision: its revision.
        lora_dropout: of further training; the file does not depend on it.
        task_type: PEFT's, for example "CAUSAL_LM".
        expected_rank: refuse a file of another rank: α belongs to a rank.
        overwrite: replace files of the same names.

    Raises:
        CheckpointError: if the file is damaged, holds pickled objects, is of another kind, or shapes do not fit.
        ConfigError: if the number of names is not T, or an option cannot be used.
        BrokenAdapterError: if a tensor holds NaN or infinity.
        OutputError: if the directory holds something.
    """
    state = read_state(checkpoint)
    if kind_of(state, checkpoint) != MTL_LORA:
        raise CheckpointError(
            f"{checkpoint} holds a checkpoint of MTLoRA, the vision method (lora_shared_A, lora_tasks_B, …): convert "
            "it with convert_mtlora, or `tasklora convert CHECKPOINT --to DIR --suite SUITE`."
        )
    layers = _layers(state, checkpoint)
    sizes = _common_sizes(layers, checkpoint)
    if expected_rank not in (None, sizes["r"]):
        raise ConfigError(
            f"{checkpoint} has rank {sizes['r']}, the preset is for rank {expected_rank}: give --alpha as the training "
            "script had it."
        )
    if len(tasks) != sizes["T"]:
        raise ConfigError(
            f"{checkpoint} holds {sizes['T']} tasks, but {len(tasks)} names were given: {listing(tasks)}."
        )
    config = MTLLoraConfig(
        tasks=list(tasks),
        r=sizes["r"],
        lora_alpha=lora_alpha,
        up_projections=sizes["n"],
        temperature=temperature,
        task_matrix="full" if next(iter(layers.values()))["lambdas"].dim() == 3 else "diagonal",
        lora_dropout=lora_dropout,
        target_modules=_targets(layers),
        base_model_name_or_path=base,
        revision=revision,
        task_type=task_type,
        inference_mode=True,
    )
    path = check_output(directory, overwrite)
    tensors: dict[str, Tensor] = {}
    for layer, parts in layers.items():
        prefix = f"base_model.model.{layer}.task_updates"
        tensors[f"{prefix}.A"] = parts["A"][0]
        tensors[f"{prefix}.B"] = parts["B"].transpose(0, 1)
        tensors[f"{prefix}.Lambda"] = parts["lambdas"]
        tensors[f"{prefix}.w"] = parts["B_w"]
    with filling(path) as folder:
        write_tensors(folder / ADAPTER_FILE, tensors)
        config.save_pretrained(str(folder))
    return Converted(path, len(layers), config)


def write_reference(directory: str | Path, file: str | Path, *, overwrite: bool = False) -> int:
    """Write an MTL-LoRA adapter as a state dict that the published code loads (``--lora_weights``).

    Args:
        directory: the adapter, as ``save_pretrained`` wrote it.
        file: where to, a ``.pt`` file.
        overwrite: replace it.

    Returns:
        The number of layers.

    Raises:
        CheckpointError: if the directory is no adapter, or is damaged.
        UnsupportedError: if it is another method's, or holds more than the reference knows.
        OutputError: if the file exists.
    """
    from peft import PeftConfig

    directory, file = Path(directory), Path(file)
    if not (directory / CONFIG_FILE).is_file():
        raise CheckpointError(f"{directory} is no adapter: it has no {CONFIG_FILE}.")
    if file.exists() and (not overwrite or file.is_dir()):
        raise OutputError(f"{file} exists already. Choose another file, or replace it with --overwrite.")
    if not file.parent.is_dir():
        raise OutputError(f"no folder {file.parent} to write {file.name} into. Make it, or choose another file.")
    try:
        config = PeftConfig.from_pretrained(str(directory))
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"cannot read {directory / CONFIG_FILE}: {error}.") from None
    if not isinstance(config, MTLLoraConfig):
        raise UnsupportedError(f"{directory} is no MTL-LoRA but {type(config).__name__}: the reference cannot hold it.")
    if config.rank_pattern or config.alpha_pattern:
        raise UnsupportedError(
            "the reference has one rank and one alpha for all layers: no rank_pattern, no alpha_pattern."
        )
    state: dict[str, Tensor] = {}
    for key, tensor in read_safetensors(directory / ADAPTER_FILE).items():
        found = _OURS.fullmatch(key)
        if found is None:
            raise UnsupportedError(f"{directory} holds '{key}', for which the reference has no place.")
        name = found["name"]
        value = tensor[None] if name == "A" else tensor.transpose(0, 1) if name == "B" else tensor
        state[f"{found['path']}.{_NAMES[name]}"] = value.contiguous()
    scratch = file.with_name(f".{file.name}.partial")
    torch.save(state, scratch)
    move_into_place(scratch, file)
    return len(state) // len(_NAMES)


def _layers(state: Mapping[str, Tensor], checkpoint: str | Path) -> dict[str, dict[str, Tensor]]:
    """Return path → the four tensors of each layer.

    Raises:
        CheckpointError: on a name that is not MTL-LoRA's, or a layer that lacks one of the four.
        BrokenAdapterError: on NaN or infinity.
    """
    found = {key: _PART.fullmatch(key) for key in state}
    unknown = [key for key, match in found.items() if match is None]
    if unknown:
        raise CheckpointError(
            f"{checkpoint} holds {len(unknown)} tensors that are not MTL-LoRA's: {listing(unknown, 4)}. Only lora_A, "
            "lora_lambdas, lora_B and lora_B_w of linear layers can be converted; take the others out of the file if "
            "they do not matter."
        )
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, match in found.items():
        assert match is not None
        layers[match["path"]][match["name"]] = state[key]
    for path, parts in layers.items():
        missing = [name for name in ("A", "lambdas", "B", "B_w") if name not in parts]
        if missing:
            raise CheckpointError(
                f"{checkpoint} is not complete: '{path}' lacks {listing(f'lora_{name}' for name in missing)}."
            )
    broken = [key for key, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise BrokenAdapterError(f"{checkpoint}: NaN or infinity in {listing(broken, 3)}. Use another checkpoint.")
    return dict(layers)


def _common_sizes(layers: Mapping[str, Mapping[str, Tensor]], checkpoint: str | Path) -> dict[str, int]:
    """Return r, n and T, the same in every layer.

    Raises:
        CheckpointError: if a shape does not fit.
    """
    sizes: dict[str, int] = {}
    for path, parts in layers.items():
        a, b, matrices, w = (tuple(parts[name].shape) for name in ("A", "B", "lambdas", "B_w"))
        fits = len(a) == 3 and a[0] == 1 and len(b) == 3 and len(w) == 2
        if fits:
            here = {"r": a[1], "n": b[0], "T": w[0]}
            square = (here["T"], here["r"], here["r"])
            fits = b[2] == here["r"] and w[1] == here["n"] and matrices in (square, square[:2])
            fits = fits and here == (sizes or here) and len(matrices) == next(iter(layers.values()))["lambdas"].dim()
            sizes = sizes or here
        if not fits:
            raise CheckpointError(
                f"{checkpoint}: the shapes of '{path}' do not fit: lora_A {a}, lora_lambdas {matrices}, lora_B {b}, "
                f"lora_B_w {w}; expected (1, r, in), (T, r, r) or (T, r), (n, out, r), (T, n), with the same r, n and "
                "T in every layer."
            )
    return sizes


def _targets(layers: Mapping[str, Any]) -> list[str]:
    """Return leaf names where every block has all of them, else the full paths."""
    blocks: dict[str, set[str]] = defaultdict(set)
    shapes = defaultdict(set)
    for path in layers:
        parent, _, leaf = path.rpartition(".")
        numbers = ".".join(part for part in parent.split(".") if part.isdigit())
        blocks[leaf].add(numbers)
        shapes[leaf].add(re.sub(r"\.\d+(?=\.|$)", ".*", f".{parent}"))
    numbered = {frozenset(found) for found in blocks.values()}
    one_place = all(len(places) == 1 for places in shapes.values())
    (indices, *different) = numbered
    complete = indices == {""} or indices == {str(index) for index in range(len(indices))}
    return sorted(blocks) if one_place and not different and complete else sorted(layers)
