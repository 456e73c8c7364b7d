"""Metrics of dense tasks, as functions of per-image statistics that are summed over images.

:func:`statistics` turns the outputs and labels of each image into K numbers; :func:`metric_values` turns sums of them
into metrics. So streaming, several processes and bootstrap resamples of images are all the same sum. A value is NaN
where it is undefined, which is: where the images have no valid pixel (not 255, for depth not 0), or where it says so
below. An image without a valid pixel changes no value. All scores are taken at the resolution of the outputs.

================  ========  =====================================================================================
miou              fraction  IoU = TP / (TP + FP + FN) of each class over all pixels of all images, averaged over the
                            classes. All classes count, a background too. A class that neither labels nor
                            predictions have is undefined and left out (the published code counts it as 0).
pixel_accuracy    fraction  share of valid pixels with the right class
max_iou           fraction  saliency: IoU of {p > t} with the salient pixels of each image, averaged over images;
                            the largest over 15 thresholds t = 0.2, 0.25, …, 0.9. Empty against empty is 1.
max_f             fraction  saliency: F = 2 P R / (P + R) of the precision P and the recall R averaged over images;
                            the largest over the same thresholds. Here 0/0 is 0, as published: an image without
                            salient pixels has R = 0, and one without predicted ones P = 0.
ods_f             fraction  edges, see below. Undefined where the labels have no edge at all.
mean_angle        degrees   mean angle between predicted and true normal over all pixels. Published tables call it
                            "rmse". A zero vector has no direction and counts as 90°.
within_11.25 …    fraction  share of pixels with an angle below so many degrees
rmse              metres    root of the mean squared error of depth over all pixels
log_rmse          log m     the same of natural logarithms. A predicted depth below 1 mm, as negative ones are,
                            counts as 1 mm: a large, finite error (published: those up to 0 count as 1 nm).
================  ========  =====================================================================================

**Edges.** ``ods_f`` is the F-measure at the best threshold for the whole data set (ODS) of the BSDS benchmark, with
its 99 thresholds 0.01 … 0.99, its tolerance of 0.0075 diagonals (at least one pixel) and its sums over all images:
P = predicted edge pixels near a true one / predicted, R = true edge pixels near a predicted one / true. Two things are
left out: nearness is distance alone (dilation by a disc), where the benchmark matches pixels one to one, and
predictions are not thinned. The published SEISM ``odsF`` does both, with MATLAB tools of its own; here one dilation per
image is all. So a predicted line as thick as the tolerance costs nothing, values tend to lie above ``odsF``, and the
two must not be compared with each other. Edges in ignored areas are unknown: predictions there neither count nor find
anything.

Sources: MTLoRA (CVPR 2024) for the definitions, Martin, Fowlkes and Malik (TPAMI 2004) and Arbeláez et al. (TPAMI 2011)
for edges; written from the definitions.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tasklora.errors import BrokenAdapterError, DataError
from tasklora.vision.losses import check_classes, checked, positive_pixels, valid_pixels
from tasklora.vision.spec import DenseTaskSpec

Array = NDArray[np.float64]

SALIENCY_THRESHOLDS = tuple(float(t) for t in np.linspace(0.2, 0.9, 15))
EDGE_THRESHOLDS = tuple(k / 100 for k in range(1, 100))
EDGE_TOLERANCE = 0.0075
"""Share of the image's diagonal within which a predicted edge pixel is right."""
ANGLES = (11.25, 22.5, 30.0)
NO_DIRECTION = 90.0
"""Angle in degrees between a zero vector and any other."""
SMALLEST_DEPTH = 1e-3
"""Metres; predictions below it are raised to it before their logarithm is taken."""


def num_statistics(spec: DenseTaskSpec) -> int:
    """Return K, the number of statistics of an image."""
    return {
        "segmentation": 3 * spec.num_outputs,
        "saliency": 1 + 3 * len(SALIENCY_THRESHOLDS),
        "edges": 1 + 3 * len(EDGE_THRESHOLDS),
        "normals": 2 + len(ANGLES),
        "depth": 3,
    }[spec.kind]


def predictions(spec: DenseTaskSpec, outputs: Tensor) -> Tensor:
    """Return what the outputs (N, num_outputs, H, W) say.

    Returns:
        (N, H, W) class ids, probabilities of 1, or metres; (N, 3, H, W) unit vectors of normals, a zero vector staying
        zero. Float32 at least.
    """
    if spec.kind == "segmentation":
        return outputs.argmax(dim=1)
    outputs = outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs
    if spec.kind == "normals":
        # By the largest part first: squares of tiny parts would vanish, and of huge ones overflow.
        largest = outputs.abs().amax(dim=1, keepdim=True)
        return F.normalize(outputs / torch.where(largest > 0, largest, 1), dim=1)
    return outputs[:, 0] if spec.kind == "depth" else outputs[:, 0].sigmoid()


@torch.no_grad()
def statistics(spec: DenseTaskSpec, outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the sufficient statistics of each image, (N, K) float64, on the device of the outputs.

    Args:
        spec: the task.
        outputs: (N, num_outputs, H, W) logits, vectors or metres, of any floating dtype.
        labels: (N, H, W), or (N, 3, H, W) of normals, at the same resolution.

    Raises:
        DataError: on shapes that do not fit each other or the task, or class ids that it does not have.
        BrokenAdapterError: if an output is NaN or infinite: it would be scored as some class, or poison every sum.
    """
    outputs = checked(spec, outputs, labels)
    check_classes(spec, labels)
    if not bool(torch.isfinite(outputs).all()):
        bad = int((~torch.isfinite(outputs).flatten(1).all(dim=1)).sum())
        raise BrokenAdapterError(
            f"the outputs of a {spec.kind} task are NaN or infinite in {bad} of {len(outputs)} images. "
            "Score an earlier checkpoint, or train with a lower learning rate."
        )
    predicted = predictions(spec, outputs)
    if spec.kind == "segmentation":
        return _of_segmentation(spec, predicted, labels)
    valid = valid_pixels(spec, labels)
    if spec.kind == "saliency":
        return _of_saliency(predicted, positive_pixels(spec, labels), valid)
    if spec.kind == "edges":
        return _of_edges(predicted, positive_pixels(spec, labels), valid)
    labels = labels.to(predicted.dtype)
    return _of_normals(predicted, labels, valid) if spec.kind == "normals" else _of_depth(predicted, labels, valid)


def metric_values(spec: DenseTaskSpec, totals: Array) -> dict[str, Array]:
    """Return the task's metrics from sums of statistics.

    Args:
        spec: the task.
        totals: (..., K) sums of :func:`statistics` over images; leading dimensions are resamples, splits and so on.

    Returns:
        Each of ``spec.metrics`` → (...), NaN where it is undefined; units as in the module's table.

    Raises:
        DataError: if K is not the task's.
    """
    values = {
        "segmentation": _segmentation_values,
        "saliency": _saliency_values,
        "edges": _edges_values,
        "normals": _normals_values,
        "depth": _depth_values,
    }[spec.kind](_checked_totals(spec, totals))
    return {name: values[name] for name in spec.metrics}


def class_iou(spec: DenseTaskSpec, totals: Array) -> Array:
    """Return the IoU of each class of a segmentation task, (..., classes), NaN where it is undefined.

    Args:
        spec: the task.
        totals: (..., K), as of :func:`metric_values`.

    Raises:
        DataError: if K is not the task's, or it is not a segmentation task.
    """
    if spec.kind != "segmentation":
        raise DataError(f"only segmentation tasks have classes, got a {spec.kind} task.")
    hit, said, true = _by_class(_checked_totals(spec, totals))
    return _ratio(hit, said + true - hit)


def _checked_totals(spec: DenseTaskSpec, totals: Array) -> Array:
    totals = np.asarray(totals, dtype=np.float64)
    if totals.ndim == 0 or totals.shape[-1] != num_statistics(spec):
        raise DataError(
            f"a {spec.kind} task has {num_statistics(spec)} statistics, as statistics() gives them; "
            f"got totals of shape {totals.shape}."
        )
    return totals


def _of_segmentation(spec: DenseTaskSpec, predicted: Tensor, labels: Tensor) -> Tensor:
    """Per class: pixels predicted rightly, predicted, and true."""
    valid = valid_pixels(spec, labels)
    counts = [
        _histogram(classes, mask, spec.num_outputs)
        for classes, mask in ((labels, valid & (predicted == labels)), (predicted, valid), (labels, valid))
    ]
    return torch.cat(counts, dim=1).double()


def _by_class(totals: Array) -> tuple[Array, Array, Array]:
    hit, said, true = np.split(totals, 3, axis=-1)
    return hit, said, true


def _segmentation_values(totals: Array) -> dict[str, Array]:
    hit, said, true = _by_class(totals)
    union = said + true - hit
    iou = np.where(union > 0, _ratio(hit, union), 0.0)
    return {
        "miou": _ratio(iou.sum(axis=-1), (union > 0).sum(axis=-1)),
        "pixel_accuracy": _ratio(hit.sum(axis=-1), true.sum(axis=-1)),
    }


def _of_saliency(probability: Tensor, salient: Tensor, valid: Tensor) -> Tensor:
    """1 for an image with valid pixels, then its IoU, precision and recall at each threshold."""
    hit = _counts_above(probability, salient, SALIENCY_THRESHOLDS)
    said = _counts_above(probability, valid, SALIENCY_THRESHOLDS)
    true = salient.sum(dim=(1, 2)).double()[:, None].expand_as(hit)
    union = said + true - hit
    iou = torch.where(union > 0, hit / union, 1.0)
    precision = torch.where(said > 0, hit / said, 0.0)
    recall = torch.where(true > 0, hit / true, 0.0)
    counts = valid.flatten(1).any(dim=1, keepdim=True).double()
    return torch.cat([counts, iou * counts, precision * counts, recall * counts], dim=1)


def _saliency_values(totals: Array) -> dict[str, Array]:
    images, (iou, precision, recall) = totals[..., :1], np.split(totals[..., 1:], 3, axis=-1)
    f = _f_measure(_ratio(precision, images), _ratio(recall, images))
    return {"max_iou": _ratio(iou, images).max(axis=-1), "max_f": f.max(axis=-1)}


def _of_edges(probability: Tensor, edges: Tensor, valid: Tensor) -> Tensor:
    """True edge pixels; then at each threshold those found, the predicted pixels, and those of them near a true one."""
    radius = max(1.0, EDGE_TOLERANCE * math.hypot(*edges.shape[-2:]))
    near = dilated(edges.to(probability.dtype), radius) > 0
    # The dilation of {p > t} is {dilation of p > t}: one of grey values stands for those of all thresholds.
    reach = dilated(probability.masked_fill(~valid, -math.inf), radius)
    found = _counts_above(reach, edges, EDGE_THRESHOLDS)
    said = _counts_above(probability, valid, EDGE_THRESHOLDS)
    right = _counts_above(probability, valid & near, EDGE_THRESHOLDS)
    return torch.cat([edges.sum(dim=(1, 2)).double()[:, None], found, said, right], dim=1)


def _edges_values(totals: Array) -> dict[str, Array]:
    true, (found, said, right) = totals[..., :1], np.split(totals[..., 1:], 3, axis=-1)
    precision = np.where(said > 0, _ratio(right, said), 0.0)  # nothing predicted finds nothing
    return {"ods_f": _f_measure(precision, _ratio(found, true)).max(axis=-1)}


def _of_normals(unit: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Valid pixels, the sum of their angles in degrees, and how many lie below each of :data:`ANGLES`."""
    # The arc cosine of the product alone would lose small angles to rounding.
    across = torch.linalg.cross(unit, labels, dim=1).norm(dim=1)
    along = (unit * labels).sum(dim=1)
    angles = torch.atan2(across, along).rad2deg()
    angles = torch.where((across == 0) & (along == 0), NO_DIRECTION, angles).double()
    sums = [valid.double(), angles.masked_fill(~valid, 0), *((valid & (angles < most)).double() for most in ANGLES)]
    return torch.stack([each.sum(dim=(1, 2)) for each in sums], dim=1)


def _normals_values(totals: Array) -> dict[str, Array]:
    names = ["mean_angle", *(f"within_{angle:g}" for angle in ANGLES)]
    means = _ratio(totals[..., 1:], totals[..., :1])
    return {name: means[..., place] for place, name in enumerate(names)}


def _of_depth(metres: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Valid pixels, and the sums of squared errors of their depths and of the logarithms of these."""
    true = torch.where(valid, labels, 1.0).double()
    said = torch.where(valid, metres, 1.0).double()
    errors = (said - true, said.clamp(min=SMALLEST_DEPTH).log() - true.log())
    return torch.stack([valid.double().sum(dim=(1, 2)), *((e**2).sum(dim=(1, 2)) for e in errors)], dim=1)


def _depth_values(totals: Array) -> dict[str, Array]:
    means = np.sqrt(_ratio(totals[..., 1:], totals[..., :1]))
    return {"rmse": means[..., 0], "log_rmse": means[..., 1]}


def dilated(values: Tensor, radius: float) -> Tensor:
    """Return the largest value within `radius` pixels (a disc, its rim included) of each pixel.

    Args:
        values: (N, H, W) of a floating dtype.
        radius: at least 1; a fraction counts for the disc's rim.
    """
    height = values.shape[1]
    largest = values
    for down in range(-int(radius), int(radius) + 1):
        if abs(down) >= height:
            continue
        across = int(math.sqrt(radius**2 - down**2))
        row = F.max_pool2d(values[:, None], (1, 2 * across + 1), stride=1, padding=(0, across))[:, 0]
        largest = torch.maximum(largest, _shifted_down(row, down))
    return largest


def _shifted_down(values: Tensor, rows: int) -> Tensor:
    """(N, H, W) moved down by `rows`; −∞ comes in."""
    kept = values[:, : values.shape[1] - rows] if rows >= 0 else values[:, -rows:]
    return F.pad(kept, (0, 0, max(rows, 0), max(-rows, 0)), value=-math.inf)


def _counts_above(values: Tensor, mask: Tensor, thresholds: tuple[float, ...]) -> Tensor:
    """(N, thresholds) float64: how many pixels of the mask have a value above each threshold; one pass for all."""
    limits = torch.tensor(thresholds, dtype=values.dtype, device=values.device)
    # A value is above as many thresholds as its place says.
    counts = _histogram(torch.bucketize(values.contiguous(), limits), mask, len(thresholds) + 1)
    return counts.flip(1).cumsum(dim=1).flip(1)[:, 1:].double()


def _histogram(places: Tensor, mask: Tensor, size: int) -> Tensor:
    """(N, size): how many pixels of the mask each image has at each place (N, H, W)."""
    n = len(places)
    first = torch.arange(n, device=places.device)[:, None, None] * size
    places = torch.where(mask, places + first, n * size)  # all others into one cell, which is cut off
    return torch.bincount(places.flatten(), minlength=n * size + 1)[:-1].view(n, size)


def _f_measure(precision: Array, recall: Array) -> Array:
    """2 P R / (P + R); 0 where both are 0, NaN where one is undefined."""
    both = precision + recall
    return np.where(both == 0, 0.0, _ratio(2 * precision * recall, both))


def _ratio(above: Array, below: Array) -> Array:
    """The quotient, NaN where `below` is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        quotient: Array = np.where(below == 0, np.nan, above / below)
    return quotient
