"""MTLoRA's published names of a network's tensors, and ours.

The published code keeps q, k and v in one fused layer, and every task's factors apart; here q, k and v are
transformers' three layers under one update, and the tasks' factors are stacked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tasklora.errors import CheckpointError, listing

# Published name → transformers' name, inside "backbone."; both ways.
_OUTSIDE = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "patch_embed.norm": "embeddings.norm",
    "norm": "layernorm",
}
_IN_STAGE = {"downsample.norm": "downsample.norm", "downsample.reduction": "downsample.reduction"}
_IN_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn": "attention.relative_position_bias",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_UPDATES = {"attn.qkv": "qkv", "attn.proj": "proj", "mlp.fc1": "fc1", "mlp.fc2": "fc2"}
_QKV = ("q_proj", "k_proj", "v_proj")
_IN_HEAD = {"0": "fuse", "1": "norm", "3": "predict"}
# Buffers that are worked out from the sizes.
_DERIVED = re.compile(r"(relative_position_index|attn_mask)$")
_BLOCK = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.(.+)")
_STAGE = re.compile(r"layers\.(\d+)\.(.+)")
_FACTOR = re.compile(r"(.+)\.lora_(shared|tasks)_([AB])(?:\.(.+))?")
_HEAD = re.compile(r"decoders\.decoders\.(.+)\.last_layer\.(\d)\.(\w+)")
_REDUCE = re.compile(r"downsampler\.(.+)\.downsample_(\d)\.(\w+)")
_OUR_HEAD = re.compile(r"heads\.(.+)\.(reduce\.\d|fuse|norm|predict)\.(\w+)")


@dataclass
class ReferenceNetwork:
    """The tensors of a published checkpoint, sorted and renamed.

    Attributes:
        base: ``SwinModel``'s names → tensors, those that MTLoRA trains in full among them.
        updates: stage → names in :class:`~tasklora.vision.swin.updates.StageUpdates` → tensors.
        decoders: names in :class:`~tasklora.vision.decoders.MTLoRADecoders` → tensors.
        tasks: the tasks, in the order asked for.
    """

    base: dict[str, Tensor] = field(default_factory=dict)
    updates: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    decoders: dict[str, Tensor] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)


def read_reference(state: Mapping[str, Tensor], tasks: Sequence[str] | None = None) -> ReferenceNetwork:
    """Sort and rename the tensors of a published checkpoint.

    Args:
        state: what the checkpoint has under ``model``.
        tasks: their order; that of the checkpoint's names if left out.

    Raises:
        CheckpointError: if a tensor has no place here, or a task's are missing.
    """
    network = ReferenceNetwork(tasks=list(tasks or _tasks_in(state)))
    unknown = []
    of_tasks: dict[tuple[int, str, str], dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if _DERIVED.search(name):
            continue
        if (head := _HEAD.fullmatch(name)) and head[2] in _IN_HEAD:
            network.decoders[f"heads.{head[1]}.{_IN_HEAD[head[2]]}.{head[3]}"] = tensor
        elif reduce := _REDUCE.fullmatch(name):
            network.decoders[f"heads.{reduce[1]}.reduce.{reduce[2]}.{reduce[3]}"] = tensor
        elif not name.startswith("backbone.") or not _place(name.removeprefix("backbone."), tensor, network, of_tasks):
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors have no place in MTLoRA's Swin: {listing(unknown, 4)}. Give a checkpoint of "
            "MTLoRA's published code (its `model` entry)."
        )
    for (stage, layer, factor), parts in of_tasks.items():
        missing = [task for task in network.tasks if task not in parts]
        extra = [task for task in parts if task not in network.tasks]
        if missing or extra:
            raise CheckpointError(
                f"{layer} of stage {stage} has factors of {listing(sorted(parts))}; "
                f"asked for: {listing(network.tasks)}."
            )
        stacked = [parts[task] if factor == "A" else parts[task].mT for task in network.tasks]
        network.updates.setdefault(stage, {})[f"{layer}.tasks.{factor}"] = torch.cat(stacked)
    return network


def write_reference(network: ReferenceNetwork, ranks: Mapping[int, Sequence[int]]) -> dict[str, Tensor]:
    """Return the tensors under their published names: the way back of :func:`read_reference`.

    Args:
        network: the tensors.
        ranks: stage → r_t of each task.
    """
    state: dict[str, Tensor] = {}
    adapted = {
        (stage, re.sub(r"\.(shared|tasks|norm)\..*", "", key)) for stage, own in network.updates.items() for key in own
    }
    fused: dict[str, dict[str, Tensor]] = {}
    inside = {ours: theirs for theirs, ours in {**_IN_BLOCK, **_IN_STAGE, **_OUTSIDE}.items()}
    for name, tensor in network.base.items():
        name = name.removeprefix("encoder.")
        owner, _, leaf = name.rpartition(".")
        block = _BLOCK.fullmatch(owner)
        stage = _STAGE.fullmatch(owner)
        if block and block[3].removeprefix("attention.") in _QKV:
            key = f"backbone.layers.{block[1]}.blocks.{block[2]}.attn.qkv"
            layer = f"blocks.{block[2]}.qkv"
            middle = ".linear" if (int(block[1]), layer) in adapted else ""
            fused.setdefault(f"{key}{middle}.{leaf}", {})[block[3].removeprefix("attention.")] = tensor
            continue
        if block:
            theirs = inside[block[3]]
            update = _UPDATES.get(theirs)
            middle = ".linear" if update and (int(block[1]), f"blocks.{block[2]}.{update}") in adapted else ""
            state[f"backbone.layers.{block[1]}.blocks.{block[2]}.{theirs}{middle}.{leaf}"] = tensor
        elif stage:
            theirs = inside[stage[2]]
            middle = ".linear" if theirs.endswith("reduction") and (int(stage[1]), "reduction") in adapted else ""
            state[f"backbone.layers.{stage[1]}.{theirs}{middle}.{leaf}"] = tensor
        else:
            state[f"backbone.{inside[owner]}.{leaf}"] = tensor
    state |= {key: torch.cat([parts[part] for part in _QKV]) for key, parts in fused.items()}
    published = {ours: theirs for theirs, ours in _UPDATES.items()}
    for stage_id, own in network.updates.items():
        for key, tensor in own.items():
            layer, group, leaf = key.rsplit(".", 2)
            if layer == "reduction":
                owner = f"backbone.layers.{stage_id}.downsample.reduction"
            else:
                _, block_id, kind = layer.split(".")
                owner = f"backbone.layers.{stage_id}.blocks.{block_id}.{published[kind]}"
            if group == "shared":
                state[f"{owner}.lora_shared_{leaf}"] = tensor
            elif group == "norm":
                state[f"{owner}.lora_norm.{leaf}"] = tensor
            else:
                for task, part in zip(network.tasks, tensor.split(list(ranks[stage_id])), strict=True):
                    state[f"{owner}.lora_tasks_{leaf}.{task}"] = part if leaf == "A" else part.mT.contiguous()
    layers = {ours: theirs for theirs, ours in _IN_HEAD.items()}
    for key, tensor in network.decoders.items():
        head = _OUR_HEAD.fullmatch(key)
        if head is None:
            raise CheckpointError(f"'{key}' has no published name: only MTLoRA's own decoders have one.")
        task, part, leaf = head.groups()
        if part in layers:
            state[f"decoders.decoders.{task}.last_layer.{layers[part]}.{leaf}"] = tensor
        else:
            state[f"downsampler.{task}.downsample_{part.removeprefix('reduce.')}.{leaf}"] = tensor
    return state


def _tasks_in(state: Mapping[str, Tensor]) -> list[str]:
    found = [match[4] for name in state if (match := _FACTOR.fullmatch(name)) and match[4]]
    found += [name.split(".")[1] for name in state if name.startswith("downsampler.")]
    return list(dict.fromkeys(found))


def _place(
    name: str, tensor: Tensor, network: ReferenceNetwork, of_tasks: dict[tuple[int, str, str], dict[str, Tensor]]
) -> bool:
    """Put one tensor of the backbone where it belongs; return whether there is a place for it."""
    block, stage = _BLOCK.fullmatch(name), _STAGE.fullmatch(name)
    inner = block[3] if block else stage[2] if stage else name
    if factor := _FACTOR.fullmatch(inner):
        return stage is not None and _place_factor(block, stage, factor, tensor, network, of_tasks)
    owner, _, leaf = inner.rpartition(".")
    if owner.endswith(".lora_norm") and block:
        key = f"blocks.{block[2]}.{_UPDATES[owner.removesuffix('.lora_norm')]}.norm.{leaf}"
        network.updates.setdefault(int(block[1]), {})[key] = tensor
        return True
    owner = owner.removesuffix(".linear")
    if block and owner == "attn.qkv":
        for part, own in zip(_QKV, tensor.chunk(3), strict=True):
            network.base[f"encoder.layers.{block[1]}.blocks.{block[2]}.attention.{part}.{leaf}"] = own
        return True
    names = _IN_BLOCK if block else _IN_STAGE if stage else _OUTSIDE
    if owner not in names:
        return False
    where = f"encoder.layers.{block[1]}.blocks.{block[2]}." if block else f"encoder.layers.{stage[1]}." if stage else ""
    network.base[f"{where}{names[owner]}.{leaf}"] = tensor
    return True


def _place_factor(
    block: re.Match[str] | None,
    stage: re.Match[str],
    factor: re.Match[str],
    tensor: Tensor,
    network: ReferenceNetwork,
    of_tasks: dict[tuple[int, str, str], dict[str, Tensor]],
) -> bool:
    layer, kind, leaf, task = factor.groups()
    if block and layer in _UPDATES:
        ours = f"blocks.{block[2]}.{_UPDATES[layer]}"
    elif not block and layer == "downsample.reduction":
        ours = "reduction"
    else:
        return False
    if kind == "shared":
        network.updates.setdefault(int(stage[1]), {})[f"{ours}.shared.{leaf}"] = tensor
    else:
        of_tasks.setdefault((int(stage[1]), ours, leaf), {})[task] = tensor
    return True
