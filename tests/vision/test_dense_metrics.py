"""Dense metrics equal hand-computed numbers and scikit-learn's; they are sums over images, and NaN where undefined."""

import math

import numpy as np
import pytest
import scipy.ndimage
import sklearn.metrics
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers_dense_tasks import SPECS, all_ignored, dense_case
from tasklora.errors import BrokenAdapterError, DataError
from tasklora.vision.losses import valid_pixels
from tasklora.vision.metrics import (
    EDGE_THRESHOLDS,
    SALIENCY_THRESHOLDS,
    class_iou,
    dilated,
    metric_values,
    num_statistics,
    predictions,
    statistics,
)
from tasklora.vision.spec import DENSE_METRICS, DenseTaskSpec

every_kind = pytest.mark.parametrize("kind", SPECS)
seeds = st.integers(0, 2**31)


def scores(spec, outputs, labels):
    return {name: float(value) for name, value in metric_values(spec, totals(spec, outputs, labels)).items()}


def totals(spec, outputs, labels):
    return statistics(spec, outputs, labels).sum(dim=0).numpy()


def logits_of(probability):
    """(H, W) or (N, H, W) probabilities → (N, 1, H, W) logits."""
    values = torch.as_tensor(probability, dtype=torch.float64).logit()
    return values.reshape(-1, 1, *values.shape[-2:])


def labels_of(rows):
    values = torch.as_tensor(rows, dtype=torch.float32)
    return values.reshape(-1, *values.shape[-2:])


def class_outputs(ids, classes):
    """(N, H, W) class ids → outputs that say them."""
    return torch.nn.functional.one_hot(torch.as_tensor(ids), classes).movedim(-1, 1).double()


def test_segmentation_by_hand():
    spec = SPECS["segmentation"]
    labels = torch.tensor([[[0, 0, 1, 255]], [[1, 1, 255, 2]]])
    outputs = class_outputs([[[0, 1, 1, 3]], [[1, 0, 0, 0]]], 4)
    # IoU of 0: 1 of 4 pixels (two true, three predicted, one both); of 1: 2 of 4; of 2: 0 of 1; class 3 is nowhere
    got = totals(spec, outputs, labels)
    np.testing.assert_allclose(class_iou(spec, got), [1 / 4, 2 / 4, 0, np.nan])
    assert scores(spec, outputs, labels) == pytest.approx({"miou": 0.25, "pixel_accuracy": 0.5})


@given(seed=seeds, classes=st.integers(2, 7), n=st.integers(1, 4), height=st.integers(1, 9), width=st.integers(1, 9))
def test_segmentation_as_scikit_learn(seed, classes, n, height, width):
    spec = DenseTaskSpec(kind="segmentation", labels=[str(c) for c in range(classes)])
    outputs, labels = dense_case(spec, n, (height, width), seed)
    true, said = labels[labels != 255].numpy(), outputs.argmax(dim=1)[labels != 255].numpy()
    assume(len(true) > 0)
    got = scores(spec, outputs, labels)
    seen = np.union1d(true, said)
    jaccard = sklearn.metrics.jaccard_score(true, said, labels=seen, average="macro", zero_division=0.0)
    assert got["miou"] == pytest.approx(jaccard)
    assert got["pixel_accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(true, said))


def test_saliency_by_hand():
    outputs = logits_of([[[0.95, 0.62, 0.3, 0.1]], [[0.88, 0.1, 0.1, 0.1]], [[0.1, 0.1, 0.1, 0.85]]])
    labels = labels_of([[[1, 1, 0, 0]], [[0, 0, 0, 0]], [[0, 0, 0, 255]]])
    got = scores(SPECS["saliency"], outputs, labels)
    # above 0.9: IoU 1/2, 1 and 1 (empty against empty); above 0.6: 1, 0 and 1; the ignored 0.85 is no mistake
    assert got["max_iou"] == pytest.approx((1 / 2 + 1 + 1) / 3)
    # above 0.3 … 0.6: P = 1, 0, 0 and R = 1, 0, 0; averaged first, then F
    assert got["max_f"] == pytest.approx(1 / 3)


def test_precision_and_recall_are_averaged_before_f():
    outputs = logits_of([[[0.95, 0.95, 0.95, 0.95]], [[0.95, 0.05, 0.05, 0.05]]])
    labels = labels_of([[[1, 0, 0, 0]], [[1, 1, 1, 1]]])
    precision, recall = (1 / 4 + 1) / 2, (1 + 1 / 4) / 2
    assert scores(SPECS["saliency"], outputs, labels)["max_f"] == pytest.approx(
        2 * precision * recall / (precision + recall)
    )


@settings(max_examples=3)  # scikit-learn takes its time
@given(seed=seeds, height=st.integers(1, 9), width=st.integers(1, 9))
def test_saliency_as_scikit_learn(seed, height, width):
    spec = SPECS["saliency"]
    outputs, labels = dense_case(spec, 4, (height, width), seed, ignored=0.1)
    probability = outputs[:, 0].sigmoid()
    iou, precision, recall = (np.zeros((4, 15)) for _ in range(3))
    for image in range(4):
        keep = labels[image] != 255
        assume(bool(keep.any()))
        true = labels[image][keep].numpy() == 1
        for place, threshold in enumerate(np.linspace(0.2, 0.9, 15)):
            said = (probability[image][keep] > threshold).numpy()
            iou[image, place] = sklearn.metrics.jaccard_score(true, said, zero_division=1.0)
            precision[image, place] = sklearn.metrics.precision_score(true, said, zero_division=0.0)
            recall[image, place] = sklearn.metrics.recall_score(true, said, zero_division=0.0)
    p, r = precision.mean(axis=0), recall.mean(axis=0)
    f = np.divide(2 * p * r, p + r, out=np.zeros(15), where=p + r > 0)
    assert scores(spec, outputs, labels) == pytest.approx({"max_iou": iou.mean(axis=0).max(), "max_f": f.max()})


def test_f_of_one_image_is_scikit_learns():
    spec = SPECS["saliency"]
    outputs, labels = dense_case(spec, 1, (21, 17), ignored=0)
    probability, true = outputs[0, 0].sigmoid().flatten().numpy(), labels.flatten().numpy()
    best = max(sklearn.metrics.f1_score(true, probability > threshold) for threshold in SALIENCY_THRESHOLDS)
    assert scores(spec, outputs, labels)["max_f"] == pytest.approx(best)


@every_kind
def test_a_batch_of_one_image_is_one_image(kind):
    """The published saliency meter takes its pixel rows for images."""
    spec = SPECS[kind]
    outputs, labels = dense_case(spec, n=5, size=(11, 6))
    last = statistics(spec, outputs[4:], labels[4:])
    assert last.shape == (1, num_statistics(spec))
    whole = statistics(spec, outputs, labels)
    torch.testing.assert_close(torch.cat([statistics(spec, outputs[:4], labels[:4]), last]), whole)
    if kind == "saliency":
        assert last[0, 0] == 1  # not 11


def test_edges_by_hand():
    """A line one pixel beside the true one is within the tolerance of one pixel; one two pixels away is not."""
    spec = SPECS["edges"]
    true = torch.zeros(1, 9, 9)
    true[:, :, 4] = 1
    for away, f in ((0, 1.0), (1, 1.0), (2, 0.0)):
        said = torch.full((9, 9), 1e-3)
        said[:, 4 + away] = 0.7
        assert scores(spec, logits_of(said), true)["ods_f"] == pytest.approx(f)
    half = torch.full((9, 9), 1e-3)
    half[:4, 4] = 0.7  # finds its 4 pixels and the next one of 9, and all 4 are right
    assert scores(spec, logits_of(half), true)["ods_f"] == pytest.approx(2 * (5 / 9) / (1 + 5 / 9))


def test_edges_count_over_the_data_set_at_one_threshold():
    spec = SPECS["edges"]
    true = torch.zeros(2, 5, 8)
    true[:, 2, 1], true[1, 2, 3] = 1, 1
    said = torch.full((2, 5, 8), 1e-3, dtype=torch.float64)
    said[0, 2, 1], said[0, 2, 6], said[1, 2, 1], said[1, 2, 3] = 0.9, 0.5, 0.3, 0.3
    # above 0.3…: one right of one or two, one found of three; below 0.3: three right of four, three found of three
    assert scores(spec, logits_of(said), true)["ods_f"] == pytest.approx(2 * (3 / 4) / (3 / 4 + 1))


@settings(max_examples=6)
@given(seed=seeds, n=st.integers(1, 3))
def test_edges_as_brute_force(seed, n):
    """One grey dilation gives what thresholding first and SciPy's distances give, with a tolerance above one pixel."""
    spec, size = SPECS["edges"], (120, 211)
    outputs, labels = dense_case(spec, n, size, seed)
    rare = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)) < 0.03
    labels = torch.where((labels == 1) & ~rare, 0.0, labels)
    probability = outputs[:, 0].sigmoid()
    radius = 0.0075 * math.hypot(*size)
    assert 1 < radius < 2
    got = metric_values(spec, totals(spec, outputs, labels))["ods_f"]
    best = 0.0
    for threshold in (*EDGE_THRESHOLDS[::14], EDGE_THRESHOLDS[-1]):
        found = all_true = right = all_said = 0
        for image in range(n):
            keep = (labels[image] != 255).numpy()
            said = (probability[image] > threshold).numpy() & keep
            true = (labels[image] == 1).numpy()
            to_said, to_true = (scipy.ndimage.distance_transform_edt(~each) for each in (said, true))
            found += (true & (to_said <= radius) & said.any()).sum()
            right += (said & (to_true <= radius) & true.any()).sum()
            all_true, all_said = all_true + true.sum(), all_said + said.sum()
        precision, recall = right / max(all_said, 1), found / all_true
        f = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        best = max(best, f)
        place = EDGE_THRESHOLDS.index(threshold)
        sums = totals(spec, outputs, labels)
        assert sums[[0, 1 + place, 100 + place, 199 + place]].tolist() == [all_true, found, all_said, right]
    assert got >= best - 1e-12


@pytest.mark.parametrize("radius", [1.0, 1.5, 2.0, 3.7, 5.0, 12.0])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (9, 2), (13, 17)], ids=str)
def test_the_dilation_is_a_disc(radius, size):
    values = torch.rand(2, *size)
    reach = int(radius)
    down, across = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = down**2 + across**2 <= radius**2
    wanted = [
        scipy.ndimage.grey_dilation(image, footprint=disc, mode="constant", cval=-np.inf) for image in values.numpy()
    ]
    np.testing.assert_array_equal(dilated(values, radius).numpy(), wanted)


def test_predictions_in_ignored_areas_find_no_edge():
    spec = SPECS["edges"]
    true = torch.zeros(1, 5, 5)
    true[:, :, 2], true[:, :, 3] = 1, 255
    said = torch.full((5, 5), 1e-3)
    said[:, 3] = 0.9
    assert scores(spec, logits_of(said), true)["ods_f"] == 0


def test_normals_by_hand():
    angles = torch.tensor([0.0, 11.0, 12.0, 29.0, 90.0, 180.0]).deg2rad().double()
    outputs = 7 * torch.stack([angles.sin(), torch.zeros(6), angles.cos()])[None, :, None]
    labels = torch.tensor([0.0, 0.0, 1.0])[None, :, None, None].repeat(1, 1, 1, 6)
    got = scores(SPECS["normals"], outputs, labels)
    assert got == pytest.approx(
        {"mean_angle": (11 + 12 + 29 + 90 + 180) / 6, "within_11.25": 2 / 6, "within_22.5": 3 / 6, "within_30": 4 / 6}
    )
    assert math.isnan(scores(SPECS["normals"], outputs, all_ignored(SPECS["normals"], labels))["mean_angle"])


def test_small_angles_are_not_lost_to_rounding():
    """In float32 the arc cosine gives 0 for them."""
    angle = 1e-4
    outputs = torch.tensor([math.sin(math.radians(angle)), 0, math.cos(math.radians(angle))])[None, :, None, None]
    labels = torch.tensor([0.0, 0.0, 1.0])[None, :, None, None]
    assert scores(SPECS["normals"], outputs, labels)["mean_angle"] == pytest.approx(angle, rel=1e-3)


def test_a_vector_of_no_length_is_a_right_angle_off():
    labels = torch.tensor([0.0, 0.6, 0.8])[None, :, None, None]
    assert scores(SPECS["normals"], torch.zeros(1, 3, 1, 1), labels)["mean_angle"] == 90
    for length in (1e-30, 1e-42, 1e30):  # any other length is as good as 1, even where its square is 0 or infinite
        assert scores(SPECS["normals"], length * labels, labels)["mean_angle"] == pytest.approx(0, abs=0.1)


def test_depth_by_hand():
    outputs = torch.tensor([[[[1.0, 4.0, 50.0]]]])
    labels = torch.tensor([[[2.0, 2.0, 0.0]]])
    assert scores(SPECS["depth"], outputs, labels) == pytest.approx(
        {"rmse": math.sqrt((1 + 4) / 2), "log_rmse": math.log(2)}
    )


@pytest.mark.parametrize("said", [-3.0, 0.0, 1e-9, 1e-3])
def test_depth_of_nothing_counts_as_a_millimetre_in_the_logarithm(said):
    got = scores(SPECS["depth"], torch.full((1, 1, 1, 1), said), torch.full((1, 1, 1), 2.0))
    assert got == pytest.approx({"rmse": 2 - said, "log_rmse": math.log(2000)})


def test_depth_as_scikit_learn():
    outputs, labels = dense_case(SPECS["depth"])
    keep = labels > 0
    error = sklearn.metrics.root_mean_squared_error(labels[keep], outputs[:, 0][keep])
    assert scores(SPECS["depth"], outputs, labels)["rmse"] == pytest.approx(error)


@every_kind
@given(seed=seeds, n=st.integers(2, 6), height=st.integers(1, 13), width=st.integers(1, 13))
def test_statistics_are_sums_over_images(kind, seed, n, height, width):
    """However the images are cut into batches and ordered; and each image's depend on that image alone."""
    spec = SPECS[kind]
    outputs, labels = dense_case(spec, n, (height, width), seed)
    each = statistics(spec, outputs, labels)
    assert each.shape == (n, num_statistics(spec))
    assert each.dtype == torch.float64
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(statistics(spec, outputs[order], labels[order]), each[order], rtol=1e-12, atol=1e-12)
    parts = [statistics(spec, outputs[place:][:1], labels[place:][:1]) for place in range(n)]
    torch.testing.assert_close(torch.cat(parts), each, rtol=1e-12, atol=1e-12)


@every_kind
def test_values_of_many_totals_are_those_of_each(kind):
    """As for a bootstrap: (2000, K) at once; and resampling by counts is scoring the images drawn."""
    spec = SPECS[kind]
    outputs, labels = dense_case(spec, n=6)
    labels[0] = all_ignored(spec, labels[0])
    each = statistics(spec, outputs, labels).numpy()
    counts = np.random.default_rng(0).multinomial(6, np.full(6, 1 / 6), size=2000)
    counts[7] = [6, 0, 0, 0, 0, 0]  # nothing but the image without labels
    values = metric_values(spec, counts @ each)
    assert list(values) == list(DENSE_METRICS[kind])
    for of_all in values.values():
        assert of_all.shape == (2000,)
        assert math.isnan(of_all[7])
        assert np.isfinite(np.delete(of_all, 7)).all()
    drawn = np.repeat(np.arange(6), counts[3])
    for name, value in scores(spec, outputs[drawn], labels[drawn]).items():
        assert values[name][3] == pytest.approx(value)
    nested = metric_values(spec, (counts @ each).reshape(40, 50, -1))
    for name in values:
        np.testing.assert_array_equal(nested[name].reshape(-1), values[name])


@every_kind
def test_nothing_valid_is_undefined(kind):
    spec = SPECS[kind]
    outputs, labels = dense_case(spec)
    nothing = all_ignored(spec, labels)
    assert bool((statistics(spec, outputs, nothing) == 0).all())
    for sums in (totals(spec, outputs, nothing), np.zeros(num_statistics(spec)), totals(spec, outputs[:0], labels[:0])):
        for name, value in metric_values(spec, sums).items():
            assert math.isnan(value), name
    both = torch.cat([outputs, outputs]), torch.cat([labels, nothing])
    assert scores(spec, *both) == scores(spec, outputs, labels)


def test_edges_without_a_true_edge_are_undefined_and_without_a_predicted_one_zero():
    spec = SPECS["edges"]
    no, yes = torch.zeros(1, 6, 6), torch.ones(1, 6, 6)
    assert math.isnan(scores(spec, logits_of(torch.full((6, 6), 0.9)), no)["ods_f"])
    assert scores(spec, logits_of(torch.full((6, 6), 1e-3)), yes)["ods_f"] == 0


def test_saliency_of_nothing_found_rightly_is_one_in_iou_and_zero_in_f():
    outputs, labels = logits_of(torch.full((3, 3), 0.01)), torch.zeros(1, 3, 3)
    assert scores(SPECS["saliency"], outputs, labels) == {"max_iou": 1, "max_f": 0}


@every_kind
def test_the_best_outputs_get_the_best_scores(kind):
    spec = SPECS[kind]
    _, labels = dense_case(spec, size=(17, 23))
    if kind == "segmentation":
        outputs = class_outputs(labels.where(labels < 4, 0), 4)
    else:
        outputs = labels if kind == "normals" else labels[:, None]
        outputs = (20.0 * (outputs == 1) - 10) if kind in ("saliency", "edges") else outputs
    perfect = {name: 0.0 if name in ("mean_angle", "rmse", "log_rmse") else 1.0 for name in DENSE_METRICS[kind]}
    assert scores(spec, outputs, labels) == pytest.approx(perfect, abs=1e-5)


@every_kind
def test_predictions(kind):
    spec = SPECS[kind]
    outputs, labels = dense_case(spec, dtype=torch.bfloat16)
    said = predictions(spec, outputs)
    assert said.shape == labels.shape
    assert said.dtype == (torch.int64 if kind == "segmentation" else torch.float32)
    if kind == "normals":
        torch.testing.assert_close(said.norm(dim=1), torch.ones(4, 9, 7))
    if kind in ("saliency", "edges"):
        assert bool(((said > 0) & (said < 1)).all())
    if kind == "depth":
        assert bool((said == outputs[:, 0].float()).all())


@every_kind
def test_only_the_metrics_asked_for(kind):
    name = DENSE_METRICS[kind][-1]
    spec = SPECS[kind].model_copy(update={"metrics": [name], "primary": name})
    assert list(scores(spec, *dense_case(spec))) == [name]


@every_kind
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_that_are_no_numbers_are_refused(kind, bad):
    spec = SPECS[kind]
    outputs, labels = dense_case(spec)
    outputs[1, 0, 2, 2] = bad
    with pytest.raises(BrokenAdapterError, match=f"outputs of a {kind} task are NaN or infinite in 1 of 4 images"):
        statistics(spec, outputs, labels)


@every_kind
def test_wrong_input_is_refused(kind):
    spec = SPECS[kind]
    outputs, labels = dense_case(spec)
    with pytest.raises(DataError, match=f"a {kind} task takes outputs"):
        statistics(spec, outputs, labels[..., :1])
    size = num_statistics(spec)
    for wrong in (np.zeros(size + 1), np.zeros((size, 2)), np.zeros(())):
        with pytest.raises(DataError, match=f"a {kind} task has {size} statistics"):
            metric_values(spec, wrong)
    if kind == "segmentation":
        labels[0, 0, 0] = 17
        with pytest.raises(DataError, match="class id 17"):
            statistics(spec, outputs, labels)
    else:
        with pytest.raises(DataError, match=f"only segmentation tasks have classes, got a {kind} task"):
            class_iou(spec, np.zeros(size))


@every_kind
def test_statistics_leave_their_input_and_gradients_alone(kind):
    spec = SPECS[kind]
    outputs, labels = dense_case(spec)
    before = outputs.clone(), labels.clone()
    assert not statistics(spec, outputs.requires_grad_(), labels).requires_grad
    assert torch.equal(outputs, before[0])
    assert torch.equal(labels, before[1])
    assert int(valid_pixels(spec, labels).sum()) > 0
