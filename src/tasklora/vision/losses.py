"""Losses of dense tasks: masked sums over pixels, divided by what a whole optimiser step holds.

With V the valid pixels of the step (not ignored) and ℓ the loss of one pixel, the loss of a task is

    L = 1/|V| · Σ_{p ∈ V} ℓ_p

==============  =============================================================================================
segmentation    ℓ = −log softmax(z)_y
saliency, edges ℓ = w · softplus(−z) where y = 1, and (1 − w) · softplus(z) where y = 0
normals         ℓ = 1/3 · ‖v/‖v‖ − n‖₁
depth           ℓ = |d̂ − d| in metres
==============  =============================================================================================

The weight w is the task's ``positive_weight``; without one it is the share of the zeros among V, so that both kinds of
pixels count equally. Then pixels of a step with ones only have weight 0, as published. |V| and w come from labels alone
(:func:`step_counts`), summed over the step's batches and processes before any gradient is taken. So the parts of a step
add up to the loss of the step, however it is cut: 8 images are 2 × 4 accumulated.

Losses are computed in float32 at least, also under autocast. Source: Agiwal et al., MTLoRA, CVPR 2024, and the
published recipes of multi-task dense prediction that it follows; written from the definitions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tasklora.errors import DataError
from tasklora.vision.spec import IGNORED, NO_DEPTH, DenseTaskSpec

SHORTEST_NORMAL = 1e-6
"""A predicted vector shorter than this is divided by this, so that its gradient stays finite; zero stays zero."""


def valid_pixels(spec: DenseTaskSpec, labels: Tensor) -> Tensor:
    """Return which pixels count: not 255, or for depth not 0.

    Args:
        spec: the task.
        labels: (N, H, W), or (N, 3, H, W) of normals, where 255 in any part makes the pixel ignored.

    Returns:
        (N, H, W) bool.
    """
    if spec.kind == "depth":
        return labels != NO_DEPTH
    if spec.kind == "normals":
        return (labels != IGNORED).all(dim=1)
    return labels != IGNORED


def positive_pixels(spec: DenseTaskSpec, labels: Tensor) -> Tensor:
    """Return the valid pixels with label 1, (N, H, W) bool: of saliency and edges."""
    return (labels > 0.5) & valid_pixels(spec, labels)


def step_counts(spec: DenseTaskSpec, labels: Tensor) -> Tensor:
    """Return (2,) float64: valid pixels and positive pixels (0 unless saliency or edges) of a batch.

    Summed over the batches and processes of an optimiser step they are what :func:`dense_loss` wants.
    """
    return _image_counts(spec, labels).sum(dim=0)


def dense_loss(spec: DenseTaskSpec, outputs: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Return what this batch contributes to the loss of its optimiser step.

    Args:
        spec: the task.
        outputs: (N, num_outputs, H, W) logits, vectors or metres, of any floating dtype.
        labels: (N, H, W), or (N, 3, H, W) of normals, at the same resolution.
        counts: (2,) sums of :func:`step_counts` over the whole step.

    Returns:
        A scalar, float32 at least. Zero with a zero gradient where nothing is valid.

    Raises:
        DataError: on shapes that do not fit each other or the task, or class ids that it does not have (on a CPU;
            elsewhere the check would wait for the device, and torch asserts it there).
    """
    outputs = checked(spec, outputs, labels)
    if counts.shape != (2,):
        raise DataError(f"counts must be of shape (2,), as step_counts gives them, got {tuple(counts.shape)}.")
    if labels.device.type == "cpu":
        check_classes(spec, labels)
    losses = _pixel_losses(spec, outputs, labels, counts[None].to(outputs.device))
    return losses.sum() / counts[0].clamp(min=1).to(losses)


def image_losses(spec: DenseTaskSpec, outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of each image as if it were a step of its own, (N,); NaN where no pixel is valid.

    Raises:
        DataError: as :func:`dense_loss`.
    """
    outputs = checked(spec, outputs, labels)
    check_classes(spec, labels)
    counts = _image_counts(spec, labels)
    losses = _pixel_losses(spec, outputs, labels, counts)
    return losses.sum(dim=(1, 2)) / counts[:, 0].to(losses)  # 0/0 is the NaN


def checked(spec: DenseTaskSpec, outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the outputs in float32 at least, after a check of all shapes.

    Raises:
        DataError: if they do not fit: broadcasting would make a plausible wrong number of them.
    """
    normals = spec.kind == "normals"
    fits = outputs.dim() == 4 and outputs.shape[1] == spec.num_outputs
    if not fits or labels.shape != (outputs.shape if normals else outputs[:, 0].shape):
        raise DataError(
            f"a {spec.kind} task takes outputs (N, {spec.num_outputs}, H, W) and labels "
            f"{'(N, 3, H, W)' if normals else '(N, H, W)'} of the same size, "
            f"got outputs {tuple(outputs.shape)} and labels {tuple(labels.shape)}."
        )
    return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs


def check_classes(spec: DenseTaskSpec, labels: Tensor) -> None:
    """Refuse class ids of a segmentation task that are neither one of its labels nor 255.

    Raises:
        DataError: naming the first of them.
    """
    if spec.kind != "segmentation":
        return
    unknown = ((labels < 0) | (labels >= spec.num_outputs)) & (labels != IGNORED)
    if bool(unknown.any()):
        raise DataError(
            f"label map with class id {int(labels[unknown][0])}, but the task has the ids 0 to "
            f"{spec.num_outputs - 1} and {IGNORED} for ignored pixels. Correct the label or name the class in `labels`."
        )


def _image_counts(spec: DenseTaskSpec, labels: Tensor) -> Tensor:
    """(N, 2) float64: valid and positive pixels of each image."""
    valid = valid_pixels(spec, labels).sum(dim=(1, 2))
    weighed = spec.kind in ("saliency", "edges")
    positive = positive_pixels(spec, labels).sum(dim=(1, 2)) if weighed else torch.zeros_like(valid)
    return torch.stack([valid, positive], dim=1).double()


def _pixel_losses(spec: DenseTaskSpec, outputs: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """(N, H, W): ℓ, zero at ignored pixels; `counts` (1 or N, 2) weigh the positive pixels."""
    if spec.kind == "segmentation":
        return F.cross_entropy(outputs, labels.long(), ignore_index=IGNORED, reduction="none")
    valid = valid_pixels(spec, labels)
    labels = labels.to(outputs.dtype)
    if spec.kind == "normals":
        unit = F.normalize(outputs, dim=1, eps=SHORTEST_NORMAL)
        losses = (unit - labels).abs().mean(dim=1)
    elif spec.kind == "depth":
        losses = (outputs[:, 0] - labels).abs()
    else:
        positive = positive_pixels(spec, labels)
        weight = _positive_weight(spec, counts).to(outputs.dtype)[:, None, None]
        weights = torch.where(positive, weight, 1 - weight)
        losses = F.binary_cross_entropy_with_logits(
            outputs[:, 0], positive.to(outputs.dtype), weight=weights, reduction="none"
        )
    return losses.masked_fill(~valid, 0)


def _positive_weight(spec: DenseTaskSpec, counts: Tensor) -> Tensor:
    """(1 or N,): w."""
    if spec.positive_weight is not None:
        return torch.full_like(counts[:, 0], spec.positive_weight)
    return 1 - counts[:, 1] / counts[:, 0].clamp(min=1)
