"""Whether an adapter file fits the model that it is loaded into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tasklora.errors import CheckpointError, listing
from tasklora.tuner.peft_types import PREFIX


def check_fit(
    model: nn.Module,
    layer_cls: type[Any],
    adapter: str,
    tensors: Mapping[str, Tensor],
    base: str | None,
    tasks: Sequence[str],
) -> None:
    """Raise unless a file's tensors are exactly those that the adapter's updates have in the model.

    PEFT loads what matches and only warns about the rest; a file of another base would pass almost in silence.

    Args:
        model: the adapted model.
        layer_cls: the class of its adapted layers, which hold their updates by adapter as ``task_updates``.
        adapter: the adapter's name.
        tensors: the file's tensors, by their names in the model.
        base: the base that the file says it was made for.
        tasks: the tasks that it says it has.

    Raises:
        CheckpointError: naming what is missing, unexpected or of another shape.
    """
    wanted = {
        f"{name}.{key}": parameter.shape
        for name, module in model.named_modules()
        if isinstance(module, layer_cls) and adapter in module.task_updates
        for key, parameter in module.named_parameters()
        if key.startswith(f"{PREFIX}.{adapter}.")
    }
    given = {key: value.shape for key, value in tensors.items() if f".{PREFIX}." in key}
    missing = [key for key in wanted if key not in given]
    unexpected = [key for key in given if key not in wanted]
    misshapen = [
        f"{key}: {tuple(given[key])} in the file, {tuple(shape)} in the model"
        for key, shape in wanted.items()
        if key in given and tuple(given[key]) != tuple(shape)
    ]
    if missing or unexpected or misshapen:
        details = [
            f"{len(group)} {what} ({listing(group, 2)})"
            for what, group in (
                ("tensors missing from the file", missing),
                ("tensors that the model has no place for", unexpected),
                ("tensors of another shape", misshapen),
            )
            if group
        ]
        raise CheckpointError(
            f"the adapter file does not fit this model: {'; '.join(details)}. It was made for base '{base}' with tasks "
            f"[{listing(tasks)}]; load it on that base with that task list, or make it anew."
        )
