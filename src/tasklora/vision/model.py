"""A Swin backbone, adapted to dense tasks, with one decoder per task."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tasklora.errors import ConfigError, did_you_mean, listing
from tasklora.tuner import find_context, use_tasks
from tasklora.vision.decoders import DECODERS
from tasklora.vision.separate import SeparateEncoders
from tasklora.vision.spec import DenseTaskSpec
from tasklora.vision.swin.forward import stage_features, swin_of


class DenseModel(nn.Module):
    """Every image has all tasks: one forward gives a map of each.

    How the encoder sees the tasks is its own affair: with streams (MTLoRA) an image goes through once; with an adapter
    that chooses by task ids (one LoRA per task) once for each task; with separate backbones once through each;
    otherwise once, and all decoders read the same.

    Args:
        encoder: a ``SwinModel``, adapted or not, or :class:`~tasklora.vision.separate.SeparateEncoders`.
        specs: task name → task, in the order of the task ids.
        decoder: a key of :data:`tasklora.vision.decoders.DECODERS`.

    Raises:
        ConfigError: on an unknown decoder, an encoder without a Swin, or one that was adapted to other tasks.
    """

    def __init__(self, encoder: nn.Module, specs: Mapping[str, DenseTaskSpec], decoder: str = "mtlora") -> None:
        super().__init__()
        if decoder not in DECODERS:
            raise ConfigError(
                f"unknown decoder '{decoder}'.{did_you_mean(decoder, DECODERS)} Decoders: {', '.join(DECODERS)}."
            )
        self.encoder = encoder
        self.specs = dict(specs)
        adapted = getattr(getattr(encoder, "active_peft_config", None), "tasks", None)
        if adapted and list(adapted) != self.task_names:
            raise ConfigError(
                f"the encoder was adapted to the tasks [{listing(adapted)}], the model has "
                f"[{listing(self.task_names)}]: give the same ones in the same order."
            )
        self._has_task_ids = find_context(encoder) is not None
        outputs = {name: spec.num_outputs for name, spec in self.specs.items()}
        self.decoders = DECODERS[decoder](stage_channels(encoder), outputs)

    @property
    def task_names(self) -> list[str]:
        """Task names in the order of their ids."""
        return list(self.specs)

    def features(self, pixel_values: Tensor) -> list[Tensor]:
        """Return the features of each stage, (T, N, C, H, W), or (1, N, C, H, W) where tasks share them.

        Args:
            pixel_values: (N, 3, height, width).
        """
        if isinstance(self.encoder, SeparateEncoders):
            of_tasks = [[stage.maps() for stage in stage_features(one, pixel_values)] for one in self.encoder]
            return [torch.cat(stage) for stage in zip(*of_tasks, strict=True)]
        if not self._has_task_ids:
            return [stage.maps() for stage in stage_features(self.encoder, pixel_values)]
        count, images = len(self.specs), pixel_values.shape[0]
        ids = torch.arange(count, device=pixel_values.device).repeat_interleave(images)
        with use_tasks(self.encoder, ids):
            stages = stage_features(self.encoder, pixel_values.repeat(count, 1, 1, 1))
        return [stage.maps().unflatten(1, (count, images)).squeeze(0) for stage in stages]

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return task → (N, outputs, height, width): logits, vectors or metres per pixel of the input.

        Args:
            pixel_values: (N, 3, height, width), normalised as :mod:`tasklora.vision.augment` does.
        """
        outputs: dict[str, Tensor] = self.decoders(self.features(pixel_values), pixel_values.shape[-2:])
        return outputs


def stage_channels(encoder: nn.Module) -> list[int]:
    """Return the channels of each stage's features, behind its patch merging."""
    config = swin_of(encoder).config
    stages = len(config.depths)
    return [int(config.embed_dim * 2 ** min(stage + 1, stages - 1)) for stage in range(stages)]
