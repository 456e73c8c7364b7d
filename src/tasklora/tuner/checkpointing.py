"""Activation checkpointing: every recomputation runs under the task ids of its own forward.

transformers keeps in each module that can be checkpointed a function that checkpoints a call. It is wrapped here, so
that what it calls brings its ids along. That serves both kinds of checkpointing (a ``context_fn`` only the one without
re-entrance), and several forwards before one backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tasklora.updates import TaskContext

_FUNCTION = "_gradient_checkpointing_func"  # transformers' name


class UnderItsTasks:
    """A function that checkpoints calls, each to be recomputed under the ids that are current now.

    Args:
        checkpoint: takes a function and its arguments, as ``torch.utils.checkpoint.checkpoint`` does.
        context: the task context of the model.
    """

    def __init__(self, checkpoint: Callable[..., Any], context: TaskContext) -> None:
        self.checkpoint = checkpoint
        self.context = context

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Checkpoint ``function(*args, **kwargs)``."""
        context, tasks = self.context, self.context.current
        if getattr(self.checkpoint, "keywords", {}).get("use_reentrant") and torch.is_grad_enabled():
            args = _one_with_gradient(args)

        def call(*args: Any, **kwargs: Any) -> Any:
            if context.current is tasks:  # the forward itself
                return function(*args, **kwargs)
            with context.use(tasks):
                return function(*args, **kwargs)

        return self.checkpoint(call, *args, **kwargs)


def _one_with_gradient(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return `args` with at least one tensor that requires gradients.

    Checkpointing with re-entrance trains nothing without one, and behind frozen embeddings (of text or of patches) the
    first block has none.
    """
    if any(isinstance(x, Tensor) and x.requires_grad for x in args):
        return args
    floating = next((i for i, x in enumerate(args) if isinstance(x, Tensor) and x.is_floating_point()), None)
    if floating is None:
        return args
    return (*args[:floating], args[floating].detach().requires_grad_(), *args[floating + 1 :])


def recompute_under_tasks(model: nn.Module, context: TaskContext) -> None:
    """Make every module of `model` that is set up for checkpointing recompute under the ids of its forward.

    Whoever enables checkpointing on the base model afterwards replaces the functions and calls this again.
    """
    for module in model.modules():
        function = getattr(module, _FUNCTION, None)
        if isinstance(function, UnderItsTasks):
            function = function.checkpoint
        if function is not None:
            setattr(module, _FUNCTION, UnderItsTasks(function, context))
