"""One directory holds a trained multi-task model: the adapter, the heads, and what they belong to.

adapter_config.json, adapter_model.safetensors    PEFT's own files, where an adapter was trained
encoder.safetensors                               all weights of the encoder, where all of them were trained
heads.safetensors                                 every head's weights, label statistics and class weights; of a
                                                  text-to-text model, which has none, no tensors
tasklora.json                                     tasks, base, pooling; format and version
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from safetensors.torch import load_model as load_module
from safetensors.torch import save_model as save_module

from tasklora.errors import CheckpointError, TaskLoraError, UnknownTaskError, did_you_mean, first_line, listing
from tasklora.tasks.base_model import BaseModel, load_base
from tasklora.tasks.model import Pooling
from tasklora.tasks.spec import TaskSpec
from tasklora.tasks.strict import Strict, parse
from tasklora.tasks.templates import TextToText
from tasklora.tasks.text_forms import template_columns
from tasklora.tasks.views import VIEWS, Collator, TaskModel, View
from tasklora.tasks.whole_files import LAST_FILE, written_whole
from tasklora.tuner.sharding import is_shard, placed_like, reshard, whole, writes

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ENCODER_FILE = "encoder.safetensors"
MODEL_FILE = LAST_FILE
HEADS_FILE = "heads.safetensors"
MODEL_FORMAT_VERSION = 1

EncoderKind = Literal["adapter", "full", "frozen"]


class SavedModel(Strict):
    """Content of ``tasklora.json``: all that is needed to rebuild the model around its weights.

    Attributes:
        encoder: what was trained of the encoder: an adapter on it, all of it ("full"), or nothing ("frozen").
        base: public name or path of the base model.
        fingerprint: digest of the base's weights; see :func:`tasklora.tasks.base_model.fingerprint`.
        tasks: name → task, in the order of the ids.
        pair_encodings: name → how pairs of texts are encoded.
        view: how it sees tasks, a name of :data:`tasklora.tasks.views.VIEWS`. Of a text-to-text model, `pooling`,
            `head_dropout` and `pair_encodings` mean nothing.
        text_to_text: templates and settings of a text-to-text model; None where there are heads.
    """

    format: Literal["tasklora/model"] = "tasklora/model"
    version: int = MODEL_FORMAT_VERSION
    encoder: EncoderKind = "adapter"
    base: str
    revision: str | None = None
    dtype: str = "float32"
    trust_remote_code: bool = False
    fingerprint: str
    hidden_size: int
    pooling: Pooling
    max_length: int
    head_dropout: float
    tasks: dict[str, TaskSpec]
    pair_encodings: dict[str, Literal["joint", "separate"]]
    view: Literal["heads", "text_to_text"] = "heads"
    text_to_text: TextToText | None = None

    def spec_of(self, task: str) -> TaskSpec:
        """Return a task by name.

        Raises:
            UnknownTaskError: if there is none of that name; the nearest is named.
        """
        if task not in self.tasks:
            given = f"unknown task '{task}'.{did_you_mean(task, self.tasks)}" if task else "no task was given."
            raise UnknownTaskError(f"{given} This model has: {listing(self.tasks)}.")
        return self.tasks[task]

    def seen(self) -> View:
        """Return how it sees tasks."""
        return VIEWS[self.view]

    def text(self) -> TextToText:
        """Return the templates and settings of a text-to-text model.

        Raises:
            CheckpointError: if there are none.
        """
        if self.text_to_text is None:
            raise CheckpointError(f"a model with view '{self.view}' needs its templates, under text_to_text.")
        return self.text_to_text

    def columns(self) -> dict[str, list[str]]:
        """Return task → the columns that its template reads besides those that its kind does."""
        if self.text_to_text is None:
            return {}
        return template_columns(self.tasks, self.text_to_text.templates)

    def model_around(self, encoder: torch.nn.Module) -> TaskModel:
        """Return the multi-task model with fresh heads around an encoder, or without any around a language model."""
        return self.seen().model(self, encoder)

    def collator(self, tokenizer: Any) -> Collator:
        """Return the collator that fits the model."""
        return self.seen().collator(self, tokenizer)


def save_model(model: TaskModel, about: SavedModel, directory: str | Path) -> None:
    """Write the model into `directory`, every file of it whole.

    The files are written beside it and then moved into place one by one, ``tasklora.json`` last: a new directory that
    has it is complete, and one without it is refused when loading.

    Of a model that FSDP2 has sharded, every process calls this, and the first one writes: the files are the same.

    Args:
        model: the model.
        about: what it is.
        directory: where; files of the same names in it are replaced.
    """
    reshard(model)
    gathered = whole(_sharded_parts(model.encoder, about.encoder))
    heads = whole(model.heads.state_dict())
    if not writes(model):
        return
    with written_whole(directory) as scratch:
        if about.encoder == "adapter":
            model.encoder.save_pretrained(  # type: ignore[operator]
                scratch, save_embedding_layers=False, state_dict=gathered or None
            )
        elif about.encoder == "full" and gathered:
            save_file(_contiguous(gathered), scratch / ENCODER_FILE, metadata={"format": "pt"})
        elif about.encoder == "full":
            save_module(model.encoder, str(scratch / ENCODER_FILE), metadata={"format": "pt"})
        save_file(_contiguous(heads), scratch / HEADS_FILE, metadata={"format": "pt"})
        (scratch / MODEL_FILE).write_text(about.model_dump_json(indent=2), encoding="utf-8")


def load_adapter_weights(encoder: torch.nn.Module, directory: Path) -> None:
    """Load the adapter of `directory` into an encoder that has one of the same make.

    Raises:
        CheckpointError: if the file is missing, damaged, or of another make.
    """
    from peft import set_peft_model_state_dict

    adapter = read_safetensors(directory / ADAPTER_FILE)
    there = check_adapter(encoder, adapter, directory)
    placed = {key: placed_like(value, there[key]) for key, value in adapter.items()}
    set_peft_model_state_dict(encoder, placed)


def load_weights(model: TaskModel, directory: str | Path) -> None:
    """Load what :func:`save_model` wrote into a model of the same make.

    Raises:
        CheckpointError: if a file is missing, damaged, or of another make.
    """
    reshard(model)
    directory = Path(directory)
    heads = read_safetensors(directory / HEADS_FILE)
    kind = read_about(directory).encoder
    if kind == "adapter":
        load_adapter_weights(model.encoder, directory)
    elif kind == "full":
        _load_all_weights(model.encoder, directory)
    _load_heads(model, heads, directory)


def load_model(
    directory: str | Path,
    base: BaseModel | None = None,
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
) -> tuple[TaskModel, SavedModel, BaseModel]:
    """Load a saved model, ready to evaluate.

    Args:
        directory: as written by :func:`save_model`.
        base: the base model, if it is loaded already.
        device: where to put the model.
        trust_remote_code: run code that comes with the base model. What the saved model says of itself does not count.

    Returns:
        The model in evaluation mode, what it is, and its base (whose modules the model has taken over).

    Raises:
        CheckpointError: if the directory is no saved model, a file is damaged, the base is another one, or it needs
            code that was not asked for.
    """
    directory = Path(directory)
    about = read_about(directory)
    if base is None:
        if about.trust_remote_code and not trust_remote_code:
            raise CheckpointError(
                f"{directory} was trained on '{about.base}' with code that comes with it. Such code runs only if you "
                "ask for it: trust_remote_code=True, or --trust-remote-code on the command line."
            )
        base = load_base(about.base, about.revision, about.dtype, trust_remote_code, about.seen().architecture)
    if base.fingerprint != about.fingerprint:
        raise CheckpointError(
            f"{directory} was trained on base '{about.base}' (fingerprint {about.fingerprint}), but the base "
            f"'{base.name}' has fingerprint {base.fingerprint}: another model, or other weights. Give it its own base."
        )
    heads = read_safetensors(directory / HEADS_FILE)
    encoder = base.model
    if about.encoder == "adapter":
        encoder = load_adapter(base.model, base.name, directory)
    elif about.encoder == "full":
        _load_all_weights(encoder, directory)
    adapter_tasks = getattr(getattr(encoder, "active_peft_config", None), "tasks", None)
    if adapter_tasks and list(adapter_tasks) != list(about.tasks):
        raise CheckpointError(
            f"{directory}: the adapter knows the tasks [{listing(adapter_tasks)}], the heads "
            f"[{listing(about.tasks)}]. The files do not belong together."
        )
    model = about.model_around(encoder)
    _load_heads(model, heads, directory)
    return model.to(device).eval(), about, base


def read_about(directory: Path) -> SavedModel:
    """Return what a saved model is.

    Raises:
        CheckpointError: if it is none, damaged, or of a newer format.
    """
    path = directory / MODEL_FILE
    if not path.is_file():
        raise CheckpointError(f"{directory} holds no saved tasklora model (no {MODEL_FILE}).")
    data = read_json(path)
    version = data.get("version")
    if isinstance(version, int) and version > MODEL_FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, this tasklora reads up to {MODEL_FORMAT_VERSION}. Upgrade tasklora."
        )
    return parse(SavedModel, data, str(path))


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"no file {path}. The directory is not a complete saved model.")
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}. Use another checkpoint.") from None
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping that a JSON file holds.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"no file {path}. The directory is not a complete saved model.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Use another checkpoint.") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is damaged: it holds no mapping. Use another checkpoint.")
    return data


def load_adapter(base: torch.nn.Module, name: str, directory: Path) -> torch.nn.Module:
    """Return a base, called `name`, with the adapter of `directory`.

    PEFT only warns where a file does not fit its own LoRA, so what was loaded is compared with what there is.

    Raises:
        CheckpointError: if a file is missing or damaged, or does not fit.
    """
    from peft import PeftModel

    read_json(directory / ADAPTER_CONFIG_FILE)
    adapter = read_safetensors(directory / ADAPTER_FILE)
    try:
        encoder: torch.nn.Module = PeftModel.from_pretrained(base, str(directory), torch_device="cpu")
    except TaskLoraError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the adapter in {directory} does not fit the base '{name}': {first_line(error)}"
        ) from error
    check_adapter(encoder, adapter, directory)
    return encoder


def _load_all_weights(encoder: torch.nn.Module, directory: Path) -> None:
    path = directory / ENCODER_FILE
    tensors = read_safetensors(path)  # says which file is missing or damaged
    there = _sharded_parts(encoder, "full")
    try:
        if there:
            if missing := there.keys() - tensors.keys():
                raise RuntimeError(f"without {listing(sorted(missing), 4)}")
            placed = {key: placed_like(value, there.get(key)) for key, value in tensors.items()}
            encoder.load_state_dict({**encoder.state_dict(), **placed})
        else:
            load_module(encoder, path)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the base: {first_line(error)}") from error


def _sharded_parts(encoder: torch.nn.Module, kind: EncoderKind) -> dict[str, Any]:
    """Return what of an encoder's state is saved, as this process holds it; nothing where it is not sharded.

    Of an adapter all of the state is returned, as PEFT wants it, but without the base's sharded weights.
    """
    from peft import get_peft_model_state_dict

    state = encoder.state_dict(keep_vars=True)
    if kind == "frozen" or not any(map(is_shard, state.values())):
        return {}
    if kind == "adapter":
        kept = {id(v) for v in get_peft_model_state_dict(encoder, state, save_embedding_layers=False).values()}
        return {name: value for name, value in state.items() if id(value) in kept or not is_shard(value)}
    names = {id(value): name for name, value in sorted(state.items(), reverse=True)}  # the first name of what is tied
    return {name: state[name] for name in sorted(names.values())}


def check_adapter(
    encoder: torch.nn.Module, adapter: Mapping[str, torch.Tensor], directory: Path
) -> dict[str, torch.Tensor]:
    """Return the adapted encoder's own tensors by the names in an adapter's file.

    Raises:
        CheckpointError: if the adapter has others.
    """
    from peft import get_peft_model_state_dict

    state: dict[str, torch.Tensor] = get_peft_model_state_dict(encoder, save_embedding_layers=False)
    wrong = tensor_differences(state, adapter)
    if wrong:
        raise CheckpointError(
            f"{directory / ADAPTER_FILE} does not fit the model: {listing(wrong, 4)} are missing, unexpected or of "
            "another shape. It was saved for another base or other tasks."
        )
    return state


def tensor_differences(wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names that are missing, unexpected or of another shape."""
    shapes = [{key: tuple(value.shape) for key, value in tensors.items()} for tensors in (wanted, given)]
    return sorted(key for key in wanted.keys() | given.keys() if shapes[0].get(key) != shapes[1].get(key))


def _load_heads(model: TaskModel, heads: Mapping[str, torch.Tensor], directory: Path) -> None:
    there = model.heads.state_dict()
    wrong = tensor_differences(there, heads)
    if wrong:
        raise CheckpointError(
            f"{directory / HEADS_FILE} does not fit the tasks [{listing(model.task_names)}]: {listing(wrong, 4)} "
            "are missing, unexpected or of another shape. It was saved for other tasks."
        )
    model.heads.load_state_dict({key: placed_like(value, there[key]) for key, value in heads.items()})


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
