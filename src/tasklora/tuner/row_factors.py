"""Which rows a layer sees, where that is known from the type of a module around it.

Most layers see the rows of the batch. What follows is known by type, never guessed from shapes:

- Attention over windows (the Swin family) sees each row cut into windows. The windows of one row follow one another,
  so the row's task holds for as many consecutive rows as there are windows.
- ``generate`` repeats the rows for beams and sequences to return, in most models once and after the encoder.
- A linear expert of a mixture of experts sees the tokens of all rows that were routed to it. Their number says nothing
  about rows, even where it happens to fit, so such a layer takes one task for the whole batch and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from tasklora.updates import LayerPlace

# transformers' classes, by name: importing the models would take seconds. A copy or a subclass under another name is
# found by its base class, if it has one of these.
WINDOWED = frozenset(
    {
        "SwinAttention",
        "Swinv2Attention",
        "DonutSwinAttention",
        "MaskFormerSwinAttention",
        "Swin2SRAttention",
        "ClapAudioAttention",
    }
)
MIXED = frozenset({"SwitchTransformersExperts", "NllbMoeExperts"})
# Repeats its input for each sequence to return, and then for the beams. Rows that are done are dropped from long input:
# the number of prompts is left out of what fits, as it could be reached that way.
REPEATS_PROMPTS = frozenset({"WhisperGenerationMixin"})


def place_of(model: nn.Module, name: str) -> LayerPlace:
    """Return what is known of the rows of the module called `name` in `model`.

    Args:
        model: the model that is being adapted.
        name: the module's path in it.
    """
    for ancestor in _ancestors(model, name):
        if _is_one_of(ancestor, WINDOWED):
            return LayerPlace(name, "windowed")
        if _is_one_of(ancestor, MIXED):
            return LayerPlace(name, "mixed")
    return LayerPlace(name)


def generation_factors(model: nn.Module, beams: int, sequences: int) -> tuple[int, ...]:
    """Return how often a prompt's row may be repeated in a layer while `model` generates.

    Args:
        model: the base model.
        beams: ``num_beams``.
        sequences: ``num_return_sequences``.
    """
    if sequences > 1 and _is_one_of(model, REPEATS_PROMPTS):
        return sequences, sequences * beams
    return 1, max(beams, sequences)  # an encoder sees the rows as they are


def _is_one_of(module: nn.Module, names: frozenset[str]) -> bool:
    return any(cls.__name__ in names and cls.__module__.startswith("transformers.") for cls in type(module).__mro__)


def _ancestors(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """Yield the modules around `name`, outermost first."""
    module = model
    yield module
    for part in name.split(".")[:-1]:
        module = getattr(module, part)
        yield module
