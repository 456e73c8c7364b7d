"""Parity of dense scores and losses with the published meters and losses, by the golden file of both.

Facts: every score and loss that the file's metadata names equals the reference's number; the absolute difference is at
most 1e-5 in the reference's unit (fractions; degrees; per cent for shares of angles; metres). The file marks pixels
without depth with 255; here they are 0. Scores are of given predictions, so outputs are made that say exactly these.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from tasklora.vision.losses import dense_loss, image_losses, step_counts, valid_pixels
from tasklora.vision.metrics import metric_values, predictions, statistics
from tasklora.vision.spec import DenseTaskSpec

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("TASKLORA_GOLDEN", REPOSITORY.parent / "shared" / "golden"))
FILE = FOLDER / "dense_metrics.safetensors"
TOLERANCE = 1e-5

pytestmark = pytest.mark.skipif(
    not FILE.is_file(), reason=f"no {FILE.name} in {FOLDER}: set TASKLORA_GOLDEN to the folder that has it"
)


def classes(count: int) -> DenseTaskSpec:
    return DenseTaskSpec(kind="segmentation", labels=[f"class {c}" for c in range(count)])


SALIENCY, NORMALS, DEPTH = (DenseTaskSpec(kind=kind) for kind in ("saliency", "normals", "depth"))
EDGES = DenseTaskSpec(kind="edges", positive_weight=0.95)

SCORES = {
    "sal": (SALIENCY, {"mIoU": ("max_iou", 1), "maxF": ("max_f", 1)}),
    "normals": (
        NORMALS,
        {
            "mean": ("mean_angle", 1),
            "rmse": ("mean_angle", 1),  # the published name of the same number
            "11.25": ("within_11.25", 100),
            "22.5": ("within_22.5", 100),
            "30": ("within_30", 100),
        },
    ),
    "semseg": (classes(21), {"mIoU": ("miou", 1)}),
    "human_parts": (classes(7), {"mIoU": ("miou", 1)}),
    "depth": (DEPTH, {"rmse": ("rmse", 1), "log_rmse": ("log_rmse", 1)}),
}
"""Task in the file → ours, and its scores → our metric and what makes our unit theirs."""

LOSSES = {
    "cross_entropy_ignore255": (classes(5), "ce", "logits"),
    "balanced_bce": (SALIENCY, "bce", "logits"),
    "balanced_bce_pos_weight_0.95": (EDGES, "bce", "logits"),
    "normals_l1_normalised": (NORMALS, "normals", "pred"),
    "depth_l1": (DEPTH, "depth", "pred"),
}
"""Loss in the file → our task, and the names of its label and prediction."""


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, dict[str, float]], dict[str, Tensor]]:
    with safe_open(FILE, framework="pt") as handle:
        return json.loads(handle.metadata()["meta"]), {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118


def as_label(spec: DenseTaskSpec, label: Tensor) -> Tensor:
    if spec.kind == "depth":
        label = label.masked_fill(label == 255, 0)
    return label.long() if spec.kind == "segmentation" else label


def outputs_of(task: str, spec: DenseTaskSpec, golden: dict[str, Tensor]) -> Tensor:
    """Return outputs that say the file's predictions."""
    if spec.kind == "segmentation":
        return F.one_hot(golden[f"{task}.pred"].long(), spec.num_outputs).movedim(-1, 1).double()
    if spec.kind == "saliency":
        return (golden[f"{task}.pred_0_255"].double() / 255).logit()[:, None]
    if spec.kind == "normals":
        return (golden[f"{task}.pred_0_255"].double() * 2 / 255 - 1).movedim(-1, 1)
    return golden[f"{task}.pred"][:, None]


@pytest.mark.parametrize("task", SCORES)
def test_scores(task, golden):
    meta, tensors = golden
    spec, names = SCORES[task]
    labels, outputs = as_label(spec, tensors[f"{task}.gt"]), outputs_of(task, spec, tensors)
    if spec.kind == "segmentation":
        assert torch.equal(predictions(spec, outputs), tensors[f"{task}.pred"].long())
    each = statistics(spec, outputs, labels)
    values = metric_values(spec, each.sum(dim=0).numpy())
    assert set(meta["scores"][task]) == set(names)
    for theirs, (ours, unit) in names.items():
        assert float(values[ours]) * unit == pytest.approx(meta["scores"][task][theirs], rel=0, abs=TOLERANCE), theirs
    streamed = sum(statistics(spec, outputs[i:][:1], labels[i:][:1]) for i in range(len(labels)))
    for name, value in metric_values(spec, streamed.sum(dim=0).numpy()).items():
        assert float(value) == pytest.approx(float(values[name]), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, golden):
    meta, tensors = golden
    spec, key, outputs = LOSSES[name]
    outputs, labels = tensors[f"loss.{key}.{outputs}"], tensors[f"loss.{key}.label"]
    labels = as_label(spec, labels if spec.kind == "normals" else labels[:, 0])
    counts = step_counts(spec, labels)
    assert float(dense_loss(spec, outputs, labels, counts)) == pytest.approx(meta["losses"][name], rel=0, abs=TOLERANCE)
    parts = [dense_loss(spec, outputs[i:][:1], labels[i:][:1], counts) for i in range(len(labels))]
    assert float(sum(parts)) == pytest.approx(meta["losses"][name], rel=0, abs=TOLERANCE)
    assert bool(torch.isfinite(image_losses(spec, outputs, labels)).all())


def test_every_number_of_the_file_is_compared(golden):
    meta, tensors = golden
    assert set(meta) == {"scores", "losses"}
    assert set(meta["scores"]) == set(SCORES)
    assert set(meta["losses"]) == set(LOSSES)
    used = set(SCORES) | {"loss"}
    assert {name.split(".")[0] for name in tensors} == used
    # the hard parts are in it: ignored pixels, an image that is all ignored, one without salient pixels
    parts = valid_pixels(SCORES["human_parts"][0], as_label(SCORES["human_parts"][0], tensors["human_parts.gt"]))
    assert 0 in parts.sum(dim=(1, 2)).tolist()
    assert 0 in (tensors["sal.gt"] == 1).sum(dim=(1, 2)).tolist()
