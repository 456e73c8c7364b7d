"""Coming from plain LoRA: a PEFT directory becomes one task's entry of a bank, or the start of a shared method.

With (A, B) the file's factors, B scaled, the imported update is exactly B A:

==============  ====================================================  ==========================
method          what is set (s: the update's own scaling)             largest rank
==============  ====================================================  ==========================
bank            A_t := A, B_t := B/s, other tasks untouched           r
MTL-LoRA        A := A, every B_i := B/s, Λ_t := I (the softmax        r
                weights sum to one, whatever w is)
TA-LoRA         A_s := A, B_s := B/s, B := 0                          r_shared
MultiLoRA       A_1 := A, B_1 := B/s, s_1 := 1, other s_i := 0        r
MoELoRA         every A_i := A, every B_i := B/s (gates sum to one)   r / experts
HydraLoRA       A := A, every B_i := B/s (gates sum to one)           r
==============  ====================================================  ==========================

Where the file's rank is smaller, the further rows of A stay as they are and their columns of B are zero: the update is
the same and those directions can still be trained.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from tasklora.errors import BrokenAdapterError, CheckpointError, TaskIdsError, UnsupportedError, listing
from tasklora.export.adapted import config_of, the_adapter, updates_of
from tasklora.export.files import ADAPTER_FILE, CONFIG_FILE
from tasklora.tasks import read_safetensors
from tasklora.tuner import context_of, method_of
from tasklora.updates import LowRankUpdate, is_number

_FACTOR = re.compile(r"(?:base_model\.model\.)?(?P<path>.+)\.lora_(?P<which>[AB])\.weight")
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # others change the base's weights
_MORE_THAN_FACTORS = (
    "use_dora",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "megatron_config",
    "velora_config",
    "monteclora_config",
    "arrow_config",
    "kasa_config",
)


@dataclass(frozen=True)
class PlainLora:
    """A PEFT LoRA as read from its directory.

    Attributes:
        factors: module path → A (k, in) and B (out, k), scaling folded into B.
        left_out: names of its tensors that are no factors: heads and modules trained in full.
        config: its ``adapter_config.json``.
    """

    factors: dict[str, tuple[Tensor, Tensor]]
    left_out: list[str]
    config: dict[str, Any]

    @property
    def rank(self) -> int:
        """The largest rank of its layers."""
        return max(down.shape[0] for down, _ in self.factors.values())


@dataclass(frozen=True)
class ImportedLora:
    """What an import did.

    Attributes:
        modules: paths whose update now is the file's.
        zeroed: adapted paths that the file does not hold: their update now is zero.
        left_out: the file's tensors that no update can hold (heads, modules trained in full): load them yourself.
        rank: the file's largest rank.
    """

    modules: list[str]
    zeroed: list[str]
    left_out: list[str]
    rank: int


def import_lora(model: nn.Module, directory: str | Path, task: str | int | None = None) -> ImportedLora:
    """Load a plain PEFT LoRA into the active adapter: as one task of a bank, or as the start of a shared method.

    Afterwards the update of the task (of every task, for shared methods) equals the LoRA. If it fails, nothing is
    changed.

    Args:
        model: a PEFT model with one active adapter of this family.
        directory: with ``adapter_config.json`` and ``adapter_model.safetensors`` (or ``.bin``, read by
            ``weights_only=True``).
        task: for banks, the task's name or id; for the others leave it out.

    Raises:
        CheckpointError: if the directory is no plain LoRA, is damaged, or does not fit the model's modules or ranks.
        UnsupportedError: if it is more than factors (DoRA, biases, …), or the method has no exact start from a LoRA.
        TaskIdsError: if a task is missing, or given where all tasks share the factors.
        UnknownTaskError: if there is no such task.
        BrokenAdapterError: if a factor is NaN or infinite.

    Example:
        >>> tasklora.import_lora(model, "my-rte-lora", task="rte")          # doctest: +SKIP
    """
    adapter = the_adapter(model)
    if context_of(model).merged:
        raise UnsupportedError("the adapter is merged into the base weights; call model.unmerge_adapter() first.")
    method = method_of(config_of(model, adapter))
    index = _task_index(model, adapter, task, method.update_cls.kind == "bank", method.name)
    lora = read_lora(directory)
    updates = updates_of(model, adapter)
    _check_fit(lora, updates, directory)
    given = {path: lora.factors[path] for path in updates if path in lora.factors}
    before = {
        update: {name: p.detach().clone() for name, p in update.named_parameters()} for update in updates.values()
    }
    try:
        with torch.no_grad():
            for path, update in updates.items():
                update.begin_as(*given.get(path, _nothing(update)), index)
    except Exception:
        with torch.no_grad():
            for update, parameters in before.items():
                for name, value in parameters.items():
                    update.get_parameter(name).copy_(value)
        raise
    return ImportedLora(sorted(given), sorted(updates.keys() - given.keys()), lora.left_out, lora.rank)


def read_lora(directory: str | Path) -> PlainLora:
    """Read a plain PEFT LoRA.

    Raises:
        CheckpointError: if a file is missing, damaged, or the two do not belong together.
        UnsupportedError: if it is more than factors A and B.
        BrokenAdapterError: if a factor is NaN or infinite.
    """
    directory = Path(directory)
    config = _read_config(directory)
    pairs: dict[str, dict[str, Tensor]] = {}
    left_out = []
    for key, tensor in _read_tensors(directory).items():
        found = _FACTOR.fullmatch(key)
        if found:
            pairs.setdefault(found["path"], {})[found["which"]] = tensor
        elif "lora_" in key:
            raise UnsupportedError(f"{directory} holds '{key}', which is no factor of a linear layer's plain LoRA.")
        else:
            left_out.append(key)
    factors = {path: _scaled(path, pair, config, directory) for path, pair in pairs.items()}
    if not factors:
        raise CheckpointError(f"{directory / ADAPTER_FILE} holds no LoRA factors (….lora_A.weight, ….lora_B.weight).")
    return PlainLora(factors, sorted(left_out), config)


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{directory} is no PEFT adapter: it has no {CONFIG_FILE}.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}.") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise CheckpointError(f"{directory} is no plain LoRA: its peft_type is {kind!r}, expected 'LORA'.")
    more = [key for key in _MORE_THAN_FACTORS if config.get(key)]
    if config.get("bias", "none") != "none":
        more.append(f"bias='{config['bias']}'")
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        more.append(f"init_lora_weights='{start}' (it changes the base's weights)")
    if more:
        raise UnsupportedError(
            f"the LoRA in {directory} is more than factors A and B: {listing(more)}. Merge it with PEFT, or train it "
            "without."
        )
    return dict(config)


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    pickled = directory / "adapter_model.bin"
    if (directory / ADAPTER_FILE).is_file() or not pickled.is_file():
        return read_safetensors(directory / ADAPTER_FILE)
    from tasklora.export.checkpoints import read_state

    return read_state(pickled)


def _scaled(path: str, pair: Mapping[str, Tensor], config: Mapping[str, Any], directory: Path) -> tuple[Tensor, Tensor]:
    """Return A and scaling · B of one layer, checked against the config."""
    if set(pair) != {"A", "B"}:
        raise CheckpointError(f"{directory}: '{path}' has lora_{next(iter(pair))} alone. The file is not complete.")
    down, up = pair["A"], pair["B"]
    if down.dim() != 2 or up.dim() != 2 or down.shape[0] != up.shape[1]:
        raise CheckpointError(
            f"{directory}: the factors of '{path}' have shapes {tuple(down.shape)} and {tuple(up.shape)}; a linear "
            "layer's are (r, in) and (out, r)."
        )
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    rank = ranks.get(get_pattern_key(ranks, path), config.get("r"))
    alpha = alphas.get(get_pattern_key(alphas, path), config.get("lora_alpha"))
    if rank != down.shape[0]:
        raise CheckpointError(f"{directory}: '{path}' has rank {down.shape[0]}, but the config says {rank!r}.")
    if not isinstance(alpha, (int, float)) or not is_number(alpha):
        raise CheckpointError(f"{directory / CONFIG_FILE}: lora_alpha must be a number, got {alpha!r}.")
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise BrokenAdapterError(f"{directory}: NaN or infinity in the factors of '{path}'. Use another checkpoint.")
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return down.float(), up.float() * scaling


def _check_fit(lora: PlainLora, updates: Mapping[str, LowRankUpdate], directory: str | Path) -> None:
    """Raise CheckpointError unless every layer of the file that does something has its place in the model."""
    homeless = [path for path, (down, up) in lora.factors.items() if path not in updates and down.any() and up.any()]
    if homeless:
        raise CheckpointError(
            f"{directory} adapts {len(homeless)} modules that this adapter does not: {listing(homeless, 3)}. It has: "
            f"{listing(updates, 3)}. Adapt them too (target_modules), on the same kind of base model."
        )
    wrong = [
        f"{path}: ({up.shape[0]} × {down.shape[1]}) in the file, ({updates[path].out_features} × "
        f"{updates[path].in_features}) in the model"
        for path, (down, up) in lora.factors.items()
        if path in updates and (up.shape[0], down.shape[1]) != (updates[path].out_features, updates[path].in_features)
    ]
    if wrong:
        raise CheckpointError(f"{directory} was made for another base: {listing(wrong, 2)}.")
    if not any(path in updates for path in lora.factors):
        raise CheckpointError(f"{directory} adapts none of this adapter's modules: {listing(updates, 3)}.")


def _task_index(model: nn.Module, adapter: str, task: str | int | None, bank: bool, method: str) -> int | None:
    names = context_of(model).tasks[adapter]
    if bank and task is None:
        raise TaskIdsError(
            f"{method} keeps factors per task: say which one, task='NAME'. It has: {listing(names.names)}."
        )
    if not bank and task is not None:
        raise TaskIdsError(
            f"{method} shares its factors between all tasks: a LoRA becomes the start of all of them. Leave task out, "
            "or use per_task_lora."
        )
    return None if task is None else names.id_of(task)


def _nothing(update: LowRankUpdate) -> tuple[Tensor, Tensor]:
    return torch.zeros(0, update.in_features), torch.zeros(update.out_features, 0)
