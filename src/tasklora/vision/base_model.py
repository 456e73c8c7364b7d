"""Loading a frozen Swin backbone: safetensors only, no remote code."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tasklora.errors import CheckpointError, ConfigError, did_you_mean, first_line
from tasklora.tasks.base_model import DTYPES, check_folder, fingerprint

# Sizes of published checkpoints, so that parameters can be counted without reaching for any file.
_WIDTHS = {
    "tiny": (96, [2, 2, 6, 2], [3, 6, 12, 24]),
    "small": (96, [2, 2, 18, 2], [3, 6, 12, 24]),
    "base": (128, [2, 2, 18, 2], [4, 8, 16, 32]),
    "large": (192, [2, 2, 18, 2], [6, 12, 24, 48]),
}
_SIZES = {("7", "224"): (7, 224), ("12", "384"): (12, 384)}
KNOWN_SWINS: dict[str, dict[str, Any]] = {
    f"microsoft/swin-{width}-patch4-window{window}-{image}{suffix}": {
        "embed_dim": embed,
        "depths": depths,
        "num_heads": heads,
        "window_size": sizes[0],
        "image_size": sizes[1],
    }
    for width, (embed, depths, heads) in _WIDTHS.items()
    for (window, image), sizes in _SIZES.items()
    for suffix in ("", "-in22k")
}

SCENES_SWIN = "tasklora/swin-scenes"
"""The small Swin that comes with tasklora, pretrained on rendered scenes to say what is in them: for trying things
without a network. Its folder says how it was made."""


def _source(name: str) -> str:
    """Return where a backbone is loaded from: the hub's name or the folder given, or that of the one in the package."""
    return str(resources.files("tasklora.vision") / "swin_scenes") if name == SCENES_SWIN else name


@dataclass(frozen=True)
class DenseBase:
    """A backbone as loaded.

    Attributes:
        name: its public name or the path the user gave.
        model: transformers' ``SwinModel``.
        fingerprint: see :func:`tasklora.tasks.base_model.fingerprint`.
    """

    name: str
    model: nn.Module
    fingerprint: str


def load_dense_base(
    name: str, revision: str | None = None, dtype: str = "float32", drop_path: float | None = None
) -> DenseBase:
    """Load a Swin backbone.

    Args:
        name: public name on the hub, a folder, or :data:`SCENES_SWIN`.
        revision: commit or tag on the hub.
        dtype: a key of :data:`tasklora.tasks.base_model.DTYPES`.
        drop_path: largest rate of stochastic depth, rising linearly over the blocks; None keeps the checkpoint's.

    Raises:
        CheckpointError: if the model cannot be loaded from safetensors.
        ConfigError: if it is no Swin.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, SwinModel

    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype '{dtype}'.{did_you_mean(dtype, DTYPES)} One of: {', '.join(DTYPES)}.")
    source = _source(name)
    check_folder(source, f"cannot load the backbone '{name}'")
    where = {} if Path(source).is_dir() else {"revision": revision}
    try:
        config = AutoConfig.from_pretrained(source, **where)
        _check_swin(name, config)
        if drop_path is not None:
            config.drop_path_rate = drop_path
        model = SwinModel.from_pretrained(
            source, config=config, dtype=DTYPES[dtype], use_safetensors=True, add_pooling_layer=False, **where
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot load the backbone '{name}' (safetensors only): {first_line(error)} "
            "Give the name of a Swin on the hub, or a folder that SwinModel.save_pretrained wrote."
        ) from error
    model.name_or_path = model.config._name_or_path = name
    return DenseBase(name, model, fingerprint(model))


def load_dense_skeleton(name: str, revision: str | None = None, drop_path: float | None = None) -> DenseBase:
    """Return a backbone of the right make without its weights (on the meta device).

    Nothing is read for the checkpoints of :data:`KNOWN_SWINS`, and only the configuration for others.

    Raises:
        CheckpointError: if the configuration cannot be had.
        ConfigError: if it is no Swin's.
    """
    from transformers import AutoConfig, SwinConfig, SwinModel

    if name in KNOWN_SWINS and not Path(name).is_dir():
        config: Any = SwinConfig(**KNOWN_SWINS[name])
    else:
        source = _source(name)
        check_folder(source, f"cannot load the configuration of '{name}'")
        where = {} if Path(source).is_dir() else {"revision": revision}
        try:
            config = AutoConfig.from_pretrained(source, **where)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot load the configuration of '{name}': {first_line(error)}") from error
        _check_swin(name, config)
    if drop_path is not None:
        config.drop_path_rate = drop_path
    with torch.device("meta"):
        model = SwinModel(config, add_pooling_layer=False)
    return DenseBase(name, model, fingerprint="")


def _check_swin(name: str, config: Any) -> None:
    if config.model_type != "swin":
        raise ConfigError(
            f"'{name}' is a '{config.model_type}' model; dense tasks need a Swin backbone, "
            "e.g. microsoft/swin-tiny-patch4-window7-224."
        )
