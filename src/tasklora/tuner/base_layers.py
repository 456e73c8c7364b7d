"""What can be adapted, and how each kind of base layer is laid out.

The mathematics knows one layer: x (rows, …, in) times W (out, in). A :class:`Geometry` says how a base layer differs
from that. Whatever is not known here is refused by name; nothing is taken for a linear layer by its looks alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from tasklora.errors import UnsupportedError

LEAVE_OUT = "Leave it out of target_modules (exclude_modules)."

# Quantised linear layers that are no nn.Linear, or are one with a weight that is not what they multiply with. Found by
# the names in a class's MRO, so that none of their packages needs to be installed. All that is asked of them is
# in_features, out_features and a call with x (rows, …, in_features).
QUANTISED = frozenset(
    {
        "Linear4bit",  # bitsandbytes
        "Linear8bitLt",
        "QModuleMixin",  # optimum-quanto
        "HQQLinear",
        "BaseQuantLinear",  # GPT-QModel
        "WQLinear_GEMM",  # AutoAWQ
        "BitLinear",  # transformers' own
        "AutoBitLinear",
        "FP8Linear",
        "FbgemmFp8Linear",
        "EetqLinear",
        "FakeQuantizedLinear",  # torchao, quantisation-aware training
    }
)
# Embeddings that return ``super().forward(ids) * self.embed_scale`` and nothing else.
_SCALED = "ScaledWordEmbedding"


@dataclass(frozen=True)
class Geometry:
    """How a base layer is laid out.

    Attributes:
        in_features: columns of W; the number of ids of an embedding.
        out_features: rows of W.
        reads: "features": x (rows, …, in); "channels": x (rows, in, height, width); "ids": x (rows, …), integers that
            stand for their one-hot vectors.
        weight: how the base layer keeps W (out, in): as it is, transposed (in, out), or as a convolution's kernel
            (out, in, 1, 1).
        stride: which places a convolution looks at.
    """

    in_features: int
    out_features: int
    reads: Literal["features", "channels", "ids"] = "features"
    weight: Literal["linear", "transposed", "kernel"] = "linear"
    stride: tuple[int, int] = (1, 1)

    def laid_out(self, delta: Tensor) -> Tensor:
        """Return ΔW (out, in) in the layout of the base layer's weight."""
        if self.weight == "transposed":
            return delta.T
        return delta[:, :, None, None] if self.weight == "kernel" else delta

    def channels_last(self, x: Tensor) -> Tensor:
        """Return what a 1×1 convolution reads of x (rows, in, height, width) as (rows, height', width', in)."""
        if x.dim() != 4:
            raise UnsupportedError(
                f"an adapted convolution takes (rows, channels, height, width), got {tuple(x.shape)}: the task belongs "
                "to the row. Add the dimension of rows (x.unsqueeze(0))."
            )
        down, right = self.stride
        return x[:, :, ::down, ::right].movedim(1, -1)


def _is_named(layer: nn.Module) -> bool:
    return any(base.__name__ in QUANTISED for base in type(layer).__mro__)


def is_quantised(layer: nn.Module) -> bool:
    """Return whether a base layer multiplies with something else than a weight in floating point."""
    if _is_named(layer):
        return True
    weight = getattr(layer, "weight", None)
    if type(weight) is not nn.Parameter or not weight.is_floating_point():
        return True
    return weight.element_size() < 2  # what has one byte needs a scale beside it


def geometry_of(layer: nn.Module, name: str) -> Geometry:
    """Return how a base layer is laid out.

    Args:
        layer: the layer to adapt.
        name: its path in the model, for errors.

    Raises:
        UnsupportedError: if it cannot be adapted.
    """
    if isinstance(layer, NonDynamicallyQuantizableLinear):
        _refuse(
            name,
            "nn.MultiheadAttention reads its weight without calling it, so an update would have no effect.",
        )
    if isinstance(layer, nn.Linear):
        return Geometry(layer.in_features, layer.out_features)
    if isinstance(layer, Conv1D):
        _check_forward(layer, Conv1D, name)
        in_features, out_features = layer.weight.shape
        return Geometry(in_features, out_features, weight="transposed")
    if isinstance(layer, nn.Conv2d):
        return _geometry_of_conv(layer, name)
    if isinstance(layer, nn.Embedding):
        _check_embedding(layer, name)
        return Geometry(layer.num_embeddings, layer.embedding_dim, reads="ids", weight="transposed")
    if is_quantised_linear(layer):
        return Geometry(layer.in_features, layer.out_features)  # type: ignore[arg-type]
    if type(layer).__module__.startswith(("torch.ao.", "torch.nn.quantized")):
        _refuse(
            name,
            f"{type(layer).__name__} of torch's eager-mode quantisation has no weight to read and no backward. "
            "Quantise with torchao, bitsandbytes, optimum-quanto or HQQ instead.",
        )
    return _refuse(
        name,
        f"{type(layer).__name__} is not a linear layer, a Conv1D, a 1×1 Conv2d or an Embedding, nor a quantised linear "
        "layer that is known.",
    )


def is_quantised_linear(layer: nn.Module) -> bool:
    """Return whether `layer` is a quantised linear layer that is known by name; it need not be an ``nn.Linear``."""
    sizes = (getattr(layer, "in_features", None), getattr(layer, "out_features", None))
    return _is_named(layer) and all(isinstance(size, int) for size in sizes)


def embedding_scale(layer: nn.Module, like: Tensor) -> Tensor | float | None:
    """Return what an embedding multiplies its rows with, None if nothing."""
    scale = getattr(layer, "embed_scale", None)
    return scale.to(like.dtype) if isinstance(scale, Tensor) else scale


def _geometry_of_conv(layer: nn.Conv2d, name: str) -> Geometry:
    _check_forward(layer, nn.Conv2d, name)
    size, padding = tuple(layer.kernel_size), layer.padding
    unpadded = padding == "valid" or (not isinstance(padding, str) and not any(padding)) or padding == "same"
    if size != (1, 1) or layer.groups != 1 or not unpadded:
        _refuse(
            name,
            f"a Conv2d is linear in its channels only with a 1×1 kernel, one group and no padding; this one has kernel "
            f"{size}, {layer.groups} groups and padding {padding}.",
        )
    down, right = layer.stride
    return Geometry(layer.in_channels, layer.out_channels, "channels", "kernel", (down, right))


def _check_embedding(layer: nn.Embedding, name: str) -> None:
    if layer.max_norm is not None:
        _refuse(name, "max_norm rewrites the embedding's weight whenever it is called, so it is not frozen.")
    if layer.scale_grad_by_freq:
        _refuse(name, "scale_grad_by_freq has no meaning for an update whose factors all ids share.")
    if type(layer).__name__.endswith(_SCALED) and not hasattr(layer, "eoi_embedding"):
        scale = getattr(layer, "embed_scale", None)
        if isinstance(scale, (int, float)) or (isinstance(scale, Tensor) and scale.numel() == 1):
            return
    _check_forward(layer, nn.Embedding, name)


def _check_forward(layer: nn.Module, kind: type[nn.Module], name: str) -> None:
    """Refuse a subclass with a forward of its own: what it does beside W x is not known (other ids, scales, norms)."""
    if type(layer).forward is not kind.forward:
        _refuse(
            name,
            f"{type(layer).__name__} is a {kind.__name__} with a forward of its own, so what an update of its weight "
            "would do is not known.",
        )


def _refuse(name: str, why: str) -> NoReturn:
    raise UnsupportedError(f"cannot adapt '{name}': {why} {LEAVE_OUT}")


def shared_weights(model: nn.Module) -> dict[int, list[str]]:
    """Return the names of the modules that hold each weight, by the weight's id, for weights with several holders."""
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        weight: Any = module._parameters.get("weight")
        if isinstance(weight, torch.Tensor):
            holders.setdefault(id(weight), []).append(name)
    return {weight: names for weight, names in holders.items() if len(names) > 1}
