"""Checkpoints of MTLoRA's published code (scale-lab/MTLoRA), to and from saved dense models of tasklora.

That code saves ``ckpt_epoch_N.pth``: under ``model`` the whole network, the frozen backbone too, and under ``config``
its settings. Names and shapes are :mod:`tasklora.vision.swin.reference`'s. Ranks follow from the shapes, MTLoRA+ from
an update on the patch merging; this is read from the settings, or asked for where there are none:

=============  ===============================  ====================================================================
here           there                            remark
=============  ===============================  ====================================================================
order of tasks ``TASKS``                        else that of the file
scale          ``MODEL.MTLORA.SHARED_SCALE``    one for each stage
task_scale     ``MODEL.MTLORA.SCALE_PER_TASK``  else SHARED_SCALE; that code never reads its ``TASK_SCALE``
mode           ``MODEL.MTLORA.SHARED_MODE``
lora_dropout   ``MODEL.MTLORA.DROPOUT``         for further training; the greatest where stages differ, 0 without
drop_path      ``MODEL.DROP_PATH_RATE``         for further training; the base's own without
image_size     ``DATA.IMG_SIZE``
=============  ===============================  ====================================================================

Tasks that go by another name in the suites are renamed both ways: see :data:`TASK_NAMES`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from tasklora.errors import (
    BrokenAdapterError,
    CheckpointError,
    ConfigError,
    OutputError,
    UnsupportedError,
    did_you_mean,
    first_line,
    listing,
)
from tasklora.export.checkpoints import MTLORA, kind_of, read_checkpoint
from tasklora.export.files import check_output, filling
from tasklora.export.mtlora_bases import UNUSED, base_of, own_base
from tasklora.export.mtlora_settings import agreed, config_of, settings_of, stages_in
from tasklora.tasks.saved_model import tensor_differences
from tasklora.vision.base_model import DenseBase
from tasklora.vision.data import load_dense_suite
from tasklora.vision.model import DenseModel
from tasklora.vision.saved_model import SavedDenseModel, load_dense_model, read_dense_about, save_dense_model
from tasklora.vision.spec import DenseSuite
from tasklora.vision.swin.config import SwinMTLoRAConfig
from tasklora.vision.swin.forward import swin_of
from tasklora.vision.swin.reference import ReferenceNetwork, read_reference, write_reference

TASK_NAMES = {"human_parts": "parts", "sal": "saliency", "edge": "edges"}
"""Published name of a task → its name in the suites."""


@dataclass(frozen=True)
class ConvertedDense:
    """What a conversion wrote.

    Attributes:
        directory: the saved dense model.
        base: name or folder of its backbone.
        tasks: published name → name here, in the order of the ids.
        config: of the adapter.
    """

    directory: Path
    base: str
    tasks: dict[str, str]
    config: SwinMTLoRAConfig


def convert_mtlora(
    checkpoint: str | Path,
    directory: str | Path,
    *,
    suite: str,
    base: str | None = None,
    revision: str | None = None,
    base_from_checkpoint: str | Path | None = None,
    tasks: Sequence[str] | None = None,
    scale: float | None = None,
    mode: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    overwrite: bool = False,
) -> ConvertedDense:
    """Write a checkpoint of MTLoRA's published code as a dense model that :func:`load_dense_model` loads.

    Numbers stay as they are, bit by bit. Nothing is written unless everything fits.

    Args:
        checkpoint: the ``.pth`` file, or its ``model`` entry as safetensors.
        directory: where to; new or empty unless `overwrite`.
        suite: what the tasks are: a dense suite by name, ``name@version`` or path.
        base: name or folder of the Swin that was adapted. Its frozen weights must be the checkpoint's.
        revision: its revision.
        base_from_checkpoint: in place of `base`: a folder to write the checkpoint's own backbone to, as ``SwinModel``
            (where MTLoRA trains in full, it holds the trained weights: the pretrained ones are not in the checkpoint).
        tasks: the tasks' order, by their published names or the suite's.
        scale: s and s_t, where the file has no settings.
        mode: "matrix", "matrixv2" or "addition", where the file has no settings.
        image_size: side, or height and width, in pixels, where the file has no settings.
        overwrite: replace files of the same names.

    Raises:
        CheckpointError: if the file is damaged, of another kind or architecture, or was trained on another base.
        ConfigError: if a setting is missing, cannot be used, or contradicts the file's.
        UnsupportedError: if it has task modules where the published code does not use them.
        BrokenAdapterError: if a tensor holds NaN or infinity.
        OutputError: if a directory holds something.
    """
    if (base is None) == (base_from_checkpoint is None):
        raise ConfigError(
            "say which backbone: --base (a Swin's name or folder), or --base-from-checkpoint (a folder to write the "
            "checkpoint's own to), and not both."
        )
    if base is None and revision is not None:
        raise ConfigError("revision is the base's: give it with base, not with base_from_checkpoint.")
    out = check_output(directory, overwrite)
    base_out = check_output(base_from_checkpoint, overwrite) if base_from_checkpoint is not None else None
    if base_out is not None and base_out.absolute() == out.absolute():
        raise ConfigError(f"the model and its backbone cannot both go to {out}: give them folders of their own.")
    state, recorded = read_checkpoint(checkpoint)
    if kind_of(state, checkpoint) != MTLORA:
        raise CheckpointError(
            f"{checkpoint} holds a checkpoint of MTL-LoRA, the method for text: convert it with convert_reference, or "
            "`tasklora convert` with its settings."
        )
    _check_numbers(state, checkpoint)
    loaded_suite = load_dense_suite(suite)
    found = _sorted(state, checkpoint).tasks
    settings = settings_of(recorded, found, stages_in(state), checkpoint)
    order = _ordered(found, tasks or settings.tasks or found, loaded_suite)
    network = _sorted(state, checkpoint, order)
    if not network.base:
        raise CheckpointError(f"{checkpoint} is no whole network of MTLoRA: it has no tensors of the backbone.")
    names = {task: _name_in(loaded_suite, task, found) for task in order}
    config = config_of(state, network, settings, names, scale, mode)
    size = agreed(
        "image_size", settings.image_size, (image_size, image_size) if isinstance(image_size, int) else image_size
    )
    trained = tuple(config.modules_to_save or ())
    loaded = (
        base_of(checkpoint, network, trained, base, revision, settings.drop_path)
        if base is not None
        else own_base(checkpoint, network, size, settings.drop_path, str(base_out))
    )
    about = SavedDenseModel(
        base=loaded.name,
        revision=revision,
        drop_path=settings.drop_path,
        fingerprint=loaded.fingerprint,
        image_size=size,
        decoder="mtlora",
        tasks={ours: loaded_suite.tasks[ours] for ours in names.values()},
    )
    with contextlib.ExitStack() as stack:
        if base_out is not None:
            cast("Any", loaded.model).save_pretrained(stack.enter_context(filling(base_out)))
        model = _model(checkpoint, network, config, loaded, about, names)
        save_dense_model(model, about, stack.enter_context(filling(out)))
    return ConvertedDense(out, loaded.name, names, config)


def write_mtlora(
    directory: str | Path, file: str | Path, *, base: DenseBase | None = None, overwrite: bool = False
) -> SwinMTLoRAConfig:
    """Write a dense model with MTLoRA as ``{"model": state}`` in the published names: the way back.

    Buffers that the published code works out itself (``relative_position_index``, ``attn_mask``) are left out; it
    loads with ``strict=False``. Scales, mode and image size are not in the file: set them in its settings.

    Args:
        directory: the dense model, as :func:`save_dense_model` wrote it.
        file: where to, a ``.pth`` file.
        base: its backbone, if it is loaded already.
        overwrite: replace the file.

    Returns:
        The adapter's config, for its settings.

    Raises:
        CheckpointError: if the directory is no dense model, or its backbone cannot be had.
        UnsupportedError: if it holds what the published code has no place for.
        OutputError: if the file exists, or there is no folder for it.
    """
    from peft import PeftConfig

    directory, file = Path(directory), Path(file)
    if file.exists() and (not overwrite or file.is_dir()):
        raise OutputError(f"{file} exists already. Choose another file, or replace it with --overwrite.")
    if not file.parent.is_dir():
        raise OutputError(f"no folder {file.parent} to write {file.name} into. Make it, or choose another file.")
    about = read_dense_about(directory)
    config = PeftConfig.from_pretrained(str(directory)) if about.encoder == "adapter" else None
    if not isinstance(config, SwinMTLoRAConfig):
        kind = "no adapter" if config is None else type(config).__name__
        raise UnsupportedError(f"{directory} has no MTLoRA but {kind}: the published code cannot hold it.")
    if about.decoder != "mtlora":
        raise UnsupportedError(f"{directory} has '{about.decoder}' decoders: the published code has MTLoRA's own only.")
    if config.all_blocks:
        raise UnsupportedError(
            f"{directory} has task modules in all blocks: the published code would drop the streams that they carry."
        )
    theirs = {ours: published for published, ours in TASK_NAMES.items()}
    names = {ours: theirs.get(ours, ours) for ours in about.tasks}
    if len(set(names.values())) < len(names):
        raise UnsupportedError(f"the tasks {listing(names)} would share published names: {listing(names.values())}.")
    model, _, _ = load_dense_model(directory, base)
    swin = swin_of(model.encoder)
    stages = list(swin.encoder.layers)
    network = ReferenceNetwork(
        base={name: tensor for name, tensor in _backbone(swin).items() if name not in UNUSED},
        updates={place: dict(stage.active_updates().state_dict()) for place, stage in enumerate(stages)},
        decoders=_renamed(model.decoders.state_dict(), names),
        tasks=list(names.values()),
    )
    ranks = {place: config.stage_options(place, len(stages)).task_r for place in range(len(stages))}
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in write_reference(network, ranks).items()}
    scratch = file.with_name(f".{file.name}.partial")
    try:
        torch.save({"model": {key: tensor.clone() for key, tensor in state.items()}}, scratch)
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)
    return config


def _sorted(
    state: Mapping[str, Tensor], checkpoint: str | Path, tasks: Sequence[str] | None = None
) -> ReferenceNetwork:
    try:
        return read_reference(state, tasks)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from None
    except (ValueError, RuntimeError, KeyError, IndexError) as error:  # parts that do not go together
        raise CheckpointError(f"{checkpoint} is no whole network of MTLoRA: {first_line(error)}") from None


def _check_numbers(state: Mapping[str, Tensor], checkpoint: str | Path) -> None:
    floating = {key: tensor for key, tensor in state.items() if tensor.is_floating_point()}
    other = [key for key, tensor in floating.items() if tensor.dtype != torch.float32]
    if other:
        raise CheckpointError(
            f"{checkpoint} holds {len(other)} tensors that are not float32, as that code's are: {listing(other, 3)}. "
            "Save them as float32."
        )
    broken = [key for key, tensor in floating.items() if "attn_mask" not in key and not torch.isfinite(tensor).all()]
    if broken:
        raise BrokenAdapterError(f"{checkpoint}: NaN or infinity in {listing(broken, 3)}. Use another checkpoint.")


def _ordered(found: Sequence[str], asked: Sequence[str], suite: DenseSuite) -> list[str]:
    """Return the file's task names in the order asked for, in which either kind of name may stand."""
    ours = {_name_in(suite, task, found): task for task in found}
    if len(ours) < len(found):
        raise ConfigError(f"two of the checkpoint's tasks, {listing(found)}, are the same one of {suite.reference}.")
    order = [task if task in found else ours.get(task, task) for task in asked]
    unknown = [task for task in order if task not in found]
    missing = [task for task in found if task not in order]
    if unknown or missing or len(set(order)) < len(order):
        near = did_you_mean(unknown[0], [*found, *ours]) if unknown else ""
        raise ConfigError(
            f"the checkpoint has the tasks {listing(found)}; asked for, each once: {listing(asked)}. "
            f"Unknown: {listing(unknown) or 'none'}, missing: {listing(missing) or 'none'}.{near}"
        )
    return order


def _name_in(suite: DenseSuite, task: str, found: Sequence[str]) -> str:
    name = task if task in suite.tasks else TASK_NAMES.get(task, task)
    if name not in suite.tasks:
        raise ConfigError(
            f"the checkpoint has the tasks {listing(found)}, but suite {suite.reference} has no '{name}': it has "
            f"{listing(suite.tasks)}. Give the suite that it was trained on."
        )
    return name


def _model(
    checkpoint: str | Path,
    network: ReferenceNetwork,
    config: SwinMTLoRAConfig,
    base: DenseBase,
    about: SavedDenseModel,
    names: Mapping[str, str],
) -> DenseModel:
    """Return the network with the checkpoint's weights, in the base's modules."""
    from peft import get_peft_model

    base.model.load_state_dict(network.base, strict=False)
    encoder = get_peft_model(cast("Any", base.model), config)
    model = about.model_around(encoder)
    updates = {place: stage.task_updates["default"] for place, stage in enumerate(swin_of(encoder).encoder.layers)}
    decoders = _renamed(network.decoders, names)
    wrong = [
        f"stage {place} {name}"
        for place, own in updates.items()
        for name in tensor_differences(own.state_dict(), network.updates.get(place, {}))
    ]
    wrong += tensor_differences(model.decoders.state_dict(), decoders)
    if wrong:
        raise CheckpointError(
            f"{checkpoint} does not fit MTLoRA ({config.mode}{', plus' if config.plus else ''}) on '{base.name}' with "
            f"the suite's tasks {listing(names.values())}: {listing(wrong, 4)} are missing, unexpected or of another "
            "shape."
        )
    for place, own in updates.items():
        own.load_state_dict(network.updates[place])
    model.decoders.load_state_dict(decoders)
    return model


def _backbone(swin: Any) -> dict[str, Tensor]:
    """Return the backbone's tensors by ``SwinModel``'s names: what the adapter trained in full, else the base's."""
    found: dict[str, Tensor] = {}
    for name, parameter in swin.named_parameters():
        if ".task_updates." in name or ".original_module." in name:
            continue
        found[name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")] = parameter
    return found


def _renamed(decoders: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return ``heads.TASK.…`` with tasks renamed."""
    parts = {key: key.split(".", 2) for key in decoders}
    return {f"heads.{names[task]}.{rest}": decoders[key] for key, (_, task, rest) in parts.items()}
