"""One directory holds a trained dense model: the adapter, the decoders, and what they belong to.

adapter_config.json, adapter_model.safetensors    PEFT's own files, where an adapter was trained
encoder.safetensors                               the backbone's tensors that were trained, where there is no adapter
decoders.safetensors                              every decoder's weights and statistics
tasklora.json                                     tasks, base, image size; format and version
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from tasklora.errors import CheckpointError, UnknownTaskError, did_you_mean, listing
from tasklora.tasks import Strict, parse
from tasklora.tasks.saved_model import (
    ENCODER_FILE,
    MODEL_FILE,
    load_adapter,
    load_adapter_weights,
    read_json,
    read_safetensors,
    tensor_differences,
)
from tasklora.tasks.whole_files import written_whole
from tasklora.vision.base_model import DenseBase, load_dense_base
from tasklora.vision.model import DenseModel
from tasklora.vision.separate import DenseEncoderKind, SeparateEncoders
from tasklora.vision.spec import DenseTaskSpec

DECODERS_FILE = "decoders.safetensors"
DENSE_FORMAT = "tasklora/dense-model"
DENSE_FORMAT_VERSION = 1
WHOLE_TENSORS = ("full", "separate")
"""Kinds of encoder whose trained tensors are saved as they are, without an adapter."""


class SavedDenseModel(Strict):
    """Content of a dense model's ``tasklora.json``: all that is needed to rebuild it around its weights.

    Attributes:
        encoder: what was trained of the encoder; see :data:`tasklora.vision.separate.DenseEncoderKind`.
        base: public name or path of the backbone.
        fingerprint: digest of the backbone's weights; see :func:`tasklora.tasks.base_model.fingerprint`.
        image_size: height and width that it was trained at, in pixels.
        tasks: name → task, in the order of the ids.
    """

    format: Literal["tasklora/dense-model"] = "tasklora/dense-model"
    version: int = DENSE_FORMAT_VERSION
    encoder: DenseEncoderKind = "adapter"
    base: str
    revision: str | None = None
    dtype: str = "float32"
    drop_path: float | None = None
    fingerprint: str
    image_size: tuple[int, int]
    decoder: str
    tasks: dict[str, DenseTaskSpec]

    def spec_of(self, task: str) -> DenseTaskSpec:
        """Return a task by name.

        Raises:
            UnknownTaskError: if there is none of that name; the nearest is named.
        """
        if task not in self.tasks:
            raise UnknownTaskError(
                f"unknown task '{task}'.{did_you_mean(task, self.tasks)} This model has: {listing(self.tasks)}."
            )
        return self.tasks[task]

    def model_around(self, encoder: torch.nn.Module) -> DenseModel:
        """Return the dense model with fresh decoders around an encoder."""
        return DenseModel(encoder, self.tasks, self.decoder)


def save_dense_model(model: DenseModel, about: SavedDenseModel, directory: str | Path) -> None:
    """Write the model into `directory`, every file of it whole; ``tasklora.json`` comes last.

    Args:
        model: the model.
        about: what it is.
        directory: where; files of the same names in it are replaced.
    """
    with written_whole(directory) as scratch:
        if about.encoder == "adapter":
            model.encoder.save_pretrained(scratch, save_embedding_layers=False)  # type: ignore[operator]
        elif about.encoder in WHOLE_TENSORS:
            _save(_trained(model), scratch / ENCODER_FILE)
        _save(model.decoders.state_dict(), scratch / DECODERS_FILE)
        (scratch / MODEL_FILE).write_text(about.model_dump_json(indent=2), encoding="utf-8")


def load_dense_weights(model: DenseModel, directory: str | Path) -> None:
    """Load what :func:`save_dense_model` wrote into a model of the same make.

    Raises:
        CheckpointError: if a file is missing, damaged, or of another make.
    """
    directory = Path(directory)
    decoders = read_safetensors(directory / DECODERS_FILE)
    kind = read_dense_about(directory).encoder
    if kind == "adapter":
        load_adapter_weights(model.encoder, directory)
    elif kind in WHOLE_TENSORS:
        _load_trained(model, directory)
    _load_decoders(model, decoders, directory)


def load_dense_model(
    directory: str | Path, base: DenseBase | None = None, device: str | torch.device = "cpu"
) -> tuple[DenseModel, SavedDenseModel, DenseBase]:
    """Load a saved dense model, ready to evaluate.

    Args:
        directory: as written by :func:`save_dense_model`.
        base: the backbone, if it is loaded already.
        device: where to put the model.

    Returns:
        The model in evaluation mode, what it is, and its backbone (whose modules the model has taken over).

    Raises:
        CheckpointError: if the directory is no saved dense model, a file is damaged, or the backbone is another one.
    """
    directory = Path(directory)
    about = read_dense_about(directory)
    if base is None:
        base = load_dense_base(about.base, about.revision, about.dtype, about.drop_path)
    if base.fingerprint != about.fingerprint:
        raise CheckpointError(
            f"{directory} was trained on backbone '{about.base}' (fingerprint {about.fingerprint}), but '{base.name}' "
            f"has fingerprint {base.fingerprint}: another model, or other weights. Give it its own backbone."
        )
    decoders = read_safetensors(directory / DECODERS_FILE)
    encoder = base.model
    if about.encoder == "adapter":
        encoder = load_adapter(base.model, base.name, directory)
    elif about.encoder == "separate":
        encoder = SeparateEncoders(base.model, len(about.tasks))
    model = about.model_around(encoder)
    if about.encoder in WHOLE_TENSORS:
        _load_trained(model, directory)
    _load_decoders(model, decoders, directory)
    return model.to(device).eval(), about, base


def read_dense_about(directory: Path) -> SavedDenseModel:
    """Return what a saved dense model is.

    Raises:
        CheckpointError: if it is none, damaged, or of a newer format.
    """
    path = directory / MODEL_FILE
    if not path.is_file():
        raise CheckpointError(f"{directory} holds no saved tasklora model (no {MODEL_FILE}).")
    data = read_json(path)
    if data.get("format") != DENSE_FORMAT:
        raise CheckpointError(f"{directory} holds no dense model but a '{data.get('format')}'.")
    version = data.get("version")
    if isinstance(version, int) and version > DENSE_FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, this tasklora reads up to {DENSE_FORMAT_VERSION}. Upgrade tasklora."
        )
    return parse(SavedDenseModel, data, str(path))


def is_dense(directory: Path) -> bool:
    """Return whether a directory holds a saved dense model."""
    try:
        data = json.loads((directory / MODEL_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and data.get("format") == DENSE_FORMAT


def _trained(model: DenseModel) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in model.encoder.named_parameters() if parameter.requires_grad}


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path, {"format": "pt"})


def _load_trained(model: DenseModel, directory: Path) -> None:
    tensors = read_safetensors(directory / ENCODER_FILE)
    own = dict(model.encoder.named_parameters())
    wrong = [name for name, value in tensors.items() if name not in own or own[name].shape != value.shape]
    if wrong:
        raise CheckpointError(
            f"{directory / ENCODER_FILE} does not fit the backbone: {listing(wrong, 4)} are unexpected or of another "
            "shape. It was saved for another backbone."
        )
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)


def _load_decoders(model: DenseModel, decoders: Mapping[str, torch.Tensor], directory: Path) -> None:
    wrong = tensor_differences(model.decoders.state_dict(), decoders)
    if wrong:
        raise CheckpointError(
            f"{directory / DECODERS_FILE} does not fit the tasks [{listing(model.task_names)}]: {listing(wrong, 4)} "
            "are missing, unexpected or of another shape. It was saved for other tasks, or another decoder."
        )
    model.decoders.load_state_dict(dict(decoders))
