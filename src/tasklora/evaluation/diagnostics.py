"""diagnostics.json: what each layer's update says of its tasks after training."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tasklora.errors import CheckpointError, ConfigError, UnsupportedError, first_line, listing
from tasklora.evaluation.subspaces import Factors, angle_cosines, cosines_of, inner_products, pairs_of, update_spaces
from tasklora.tasks import Strict, parse, write_text_whole
from tasklora.tuner.sharding import is_shard, reshard, whole
from tasklora.updates import LowRankUpdate
from tasklora.updates.streams import TaskFactors

DIAGNOSTICS_FILE = "diagnostics.json"
DIAGNOSTICS_VERSION = 2

MAX_COMPARED_TASKS = 64
"""Updates of more tasks are not compared: there would be T (T − 1) / 2 pairs in every layer."""

DIGITS = 4
"""Decimal places of what is said of pairs: their number grows with T²."""


class Diagnostics(Strict):
    """Content of diagnostics.json. Layers are named by their paths in the base model; null stands for undefined.

    Attributes:
        version: 1 had the entries of `per_task` at the top, and nothing else.
        tasks: names, in the order of the entries; empty where they are unknown (version 1).
        per_task: name → layer → an entry (a number or a list) per task: each method's own diagnostics, see
            :meth:`~tasklora.updates.LowRankUpdate.diagnostics`; of tasks with factors of their own also
            ``update_norm`` (‖ΔW_t‖_F) and ``update_rank``.
        per_pair: name → layer → an entry per pair of tasks (0, 1), (0, 2), …: a method's own, and of tasks with factors
            of their own ``update_cosine`` (⟨ΔW_t, ΔW_s⟩ / (‖ΔW_t‖ ‖ΔW_s‖), Frobenius); ``column_angles`` and
            ``row_angles`` (the principal angles in degrees, ascending); ``column_overlap`` and ``row_overlap`` (the
            mean cosine of those). See :mod:`tasklora.evaluation.subspaces`.
        notes: why something is left out.
    """

    format: Literal["tasklora/diagnostics"] = "tasklora/diagnostics"
    version: Literal[1, 2] = 2
    tasks: list[str] = []
    per_task: dict[str, dict[str, list[Any]]] = {}
    per_pair: dict[str, dict[str, list[Any]]] = {}
    notes: list[str] = []

    def matrices(self, name: str) -> dict[str, list[list[float | None]]]:
        """Return a diagnostic of pairs as symmetric matrices, layer → T × T, None on the diagonal."""
        found = {}
        for layer, entries in self.per_pair.get(name, {}).items():
            count = (1 + math.isqrt(1 + 8 * len(entries))) // 2
            matrix: list[list[float | None]] = [[None] * count for _ in range(count)]
            for (one, other), entry in zip(pairs_of(count), entries, strict=True):
                matrix[one][other] = matrix[other][one] = entry
            found[layer] = matrix
        return found


@contextlib.contextmanager
def gathered_updates(model: nn.Module) -> Iterator[None]:
    """Give the updates of a sharded model their whole parameters on the first process, for the ``with`` block.

    All processes call this in step; nothing happens where nothing is sharded. The model cannot run inside the block.
    """
    reshard(model)
    updates = [module for module in model.modules() if isinstance(module, (LowRankUpdate, TaskFactors))]
    held = [
        (module._parameters, name, parameter)
        for update in updates
        for module in update.modules()
        for name, parameter in module._parameters.items()
        if is_shard(parameter)
    ]
    for parameters, name, parameter in held:
        parameters[name] = nn.Parameter(whole(parameter), requires_grad=False)
    try:
        yield
    finally:
        for parameters, name, parameter in held:
            parameters[name] = parameter


@torch.no_grad()
def diagnose(
    model: nn.Module, task_ids: Sequence[int] | None = None, tasks: Sequence[str] | None = None
) -> Diagnostics:
    """Return what every layer's update says of its tasks, and how alike their ΔW are.

    Args:
        model: the model.
        task_ids: the tasks whose entries are wanted, in this order; None for all.
        tasks: their names, to be kept with the entries.

    Raises:
        ConfigError: if there are not as many names as entries.
    """
    found = Diagnostics(version=DIAGNOSTICS_VERSION, tasks=list(tasks or []))
    notes: dict[str, None] = {}
    for name, module in model.named_modules():
        if not isinstance(module, (LowRankUpdate, TaskFactors)):
            continue
        layer = layer_name(name)
        ids = list(range(module.num_tasks) if task_ids is None else task_ids)
        if isinstance(module, LowRankUpdate):
            for diagnostic, values in module.diagnostics().items():
                found.per_task.setdefault(diagnostic, {})[layer] = plain_numbers(values[ids].float().cpu().tolist())
            if 1 < len(ids) <= MAX_COMPARED_TASKS:
                for diagnostic, values in module.pair_diagnostics().items():
                    matrix = values[ids][:, ids].cpu()
                    entries = [float(matrix[pair]) for pair in pairs_of(len(ids))]
                    found.per_pair.setdefault(diagnostic, {})[layer] = plain_numbers(entries, DIGITS)
        if len(ids) > MAX_COMPARED_TASKS:
            found.notes = [f"updates of more than {MAX_COMPARED_TASKS} tasks are not compared; there are {len(ids)}."]
            continue
        try:
            factors = module.task_factors()
        except UnsupportedError as error:
            notes[first_line(error)] = None
            continue
        _compare(found, layer, [(down.cpu(), up.cpu()) for down, up in (factors[place] for place in ids)])
    if "update_norm" not in found.per_task:
        found.notes += list(notes)
    counts = {len(entries) for layers in found.per_task.values() for entries in layers.values()}
    if tasks is not None and counts - {len(found.tasks)}:
        raise ConfigError(f"{len(found.tasks)} names ({listing(found.tasks)}) for diagnostics of {max(counts)} tasks.")
    return found


def _compare(found: Diagnostics, layer: str, factors: Factors) -> None:
    """Add what the tasks' factors of one layer say."""
    spaces = update_spaces(factors)
    found.per_task.setdefault("update_rank", {})[layer] = spaces.ranks.tolist()
    inner = inner_products(factors)
    found.per_task.setdefault("update_norm", {})[layer] = plain_numbers(inner.diagonal().clamp(min=0).sqrt().tolist())
    if len(factors) < 2:
        return
    cosines = cosines_of(inner)
    of_pairs: dict[str, list[Any]] = {"update_cosine": [float(cosines[pair]) for pair in pairs_of(len(factors))]}
    for side, bases in (("column", spaces.columns), ("row", spaces.rows)):
        angles = angle_cosines(bases, spaces.ranks)
        of_pairs[f"{side}_overlap"] = [float(cosine.mean()) for cosine in angles]  # of no angle: NaN
        of_pairs[f"{side}_angles"] = [cosine.acos().rad2deg().tolist() for cosine in angles]
    for diagnostic, entries in of_pairs.items():
        found.per_pair.setdefault(diagnostic, {})[layer] = plain_numbers(entries, DIGITS)


def own_share(cosines: Tensor, norms: Tensor) -> float | None:
    """Return Σ_t ‖ΔW_t − M‖² / Σ_t ‖ΔW_t‖², M the mean of the tasks' updates: how much tasks do not share.

    0 where all tasks have the same update, (T − 1)/T where the updates are orthogonal and equally long; more, up to 1,
    where they point against each other. None where all are zero.

    Args:
        cosines: (T, T) of the updates; what is undefined may be anything.
        norms: (T,) ‖ΔW_t‖_F.
    """
    total = norms.square().sum()
    if not float(total):
        return None
    inner = cosines.nan_to_num(0.0).fill_diagonal_(1.0) * norms[:, None] * norms
    return float(1 - inner.mean() * len(norms) / total)  # Σ‖ΔW_t − M‖² = Σ‖ΔW_t‖² − T ‖M‖²


def plain_numbers(values: Any, digits: int | None = None) -> Any:
    """Return numbers for JSON: None for what is not finite, rounded if asked for."""
    if isinstance(values, list):
        return [plain_numbers(value, digits) for value in values]
    if isinstance(values, float) and not math.isfinite(values):
        return None
    return values if digits is None else round(values, digits)


def write_diagnostics(path: Path, diagnostics: Diagnostics) -> None:
    """Write the file."""
    write_text_whole(path, diagnostics.model_dump_json() + "\n")


def read_diagnostics(path: Path) -> Diagnostics:
    """Read the file, of any version; a run made before there were diagnostics has none.

    Raises:
        CheckpointError: if it is damaged, or of a newer version.
    """
    if not path.is_file():
        return Diagnostics()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or "format" not in data:
            return parse(Diagnostics, {"version": 1, "per_task": data}, str(path))
        if isinstance(data.get("version"), int) and data["version"] > DIAGNOSTICS_VERSION:
            raise CheckpointError(
                f"{path} has version {data['version']}, this tasklora reads up to {DIAGNOSTICS_VERSION}. Upgrade "
                "tasklora."
            )
        return parse(Diagnostics, data, str(path))
    except (OSError, ValueError) as error:  # a ConfigError is a ValueError
        raise CheckpointError(f"cannot read {path}: {error}. Remove it, or run that run again.") from None


def layer_name(module: str) -> str:
    """Return the path of an adapted layer inside the base model: no wrappers, no name of the adapter."""
    path = module.partition("base_model.model.")[2] or module
    layer, _, inside = path.partition(".task_updates.")  # an adapter's name, and where in a stage of streams
    return ".".join([layer, *(part for part in inside.split(".")[1:] if part != "tasks")])
