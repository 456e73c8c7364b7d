"""Dense losses equal hand-computed numbers and add up over the parts of a step; nothing valid is zero, never NaN."""

import math

import pytest
import torch

from helpers_dense_tasks import SPECS, all_ignored, dense_case
from tasklora.errors import DataError
from tasklora.vision.losses import dense_loss, image_losses, step_counts, valid_pixels
from tasklora.vision.spec import DenseTaskSpec

every_kind = pytest.mark.parametrize("kind", SPECS)
MORE_SPECS = {
    **SPECS,
    "balanced edges": DenseTaskSpec(kind="edges"),
    "fixed saliency": DenseTaskSpec(kind="saliency", positive_weight=0.3),
}


def loss_of(spec, outputs, labels):
    return dense_loss(spec, outputs, labels, step_counts(spec, labels))


def gradient(spec, outputs, labels, counts):
    outputs = outputs.clone().requires_grad_()
    loss = dense_loss(spec, outputs, labels, counts)
    loss.backward()
    return loss.detach(), outputs.grad


def softplus(x):
    return math.log1p(math.exp(x))


def test_cross_entropy_by_hand():
    spec = DenseTaskSpec(kind="segmentation", labels=["no", "yes"])
    outputs = torch.tensor([[0.0, 2.0, 9.0], [1.0, 2.0, -9.0]])[None, :, None]  # (1, 2, 1, 3)
    labels = torch.tensor([[[1, 0, 255]]])
    assert valid_pixels(spec, labels).tolist() == [[[True, True, False]]]
    assert float(loss_of(spec, outputs, labels)) == pytest.approx((softplus(-1) + math.log(2)) / 2)


@pytest.mark.parametrize("kind", ["saliency", "edges"])
def test_balanced_cross_entropy_by_hand(kind):
    outputs = torch.tensor([[[[1.0, -2.0, 0.5, 7.0]]]])
    labels = torch.tensor([[[1.0, 0.0, 0.0, 255.0]]])
    spec = DenseTaskSpec(kind=kind)
    assert step_counts(spec, labels).tolist() == [3, 1]
    ones, zeros = softplus(-1), softplus(-2) + softplus(0.5)
    assert float(loss_of(spec, outputs, labels)) == pytest.approx((2 / 3 * ones + 1 / 3 * zeros) / 3)
    spec = DenseTaskSpec(kind=kind, positive_weight=0.95)
    assert float(loss_of(spec, outputs, labels)) == pytest.approx((0.95 * ones + 0.05 * zeros) / 3)


def test_a_step_of_one_kind_of_pixel_only_is_balanced_to_nothing_or_to_plain_sums():
    spec, outputs = SPECS["saliency"], torch.tensor([[[[1.0, -2.0]]]])
    assert float(loss_of(spec, outputs, torch.ones(1, 1, 2))) == 0
    assert float(loss_of(spec, outputs, torch.zeros(1, 1, 2))) == 0  # w = 1: zeros have weight 1 − w
    mixed = torch.tensor([2.0, 1.0])  # the step's balance, not the batch's: half of its pixels are ones
    assert float(dense_loss(spec, outputs, torch.ones(1, 1, 2), mixed)) == pytest.approx(
        0.5 * (softplus(-1) + softplus(2)) / 2
    )


def test_normals_by_hand():
    outputs = torch.tensor([[3.0, 0.0, 5.0], [0.0, 0.0, 5.0], [4.0, 0.0, 5.0]])[None, :, None]
    labels = torch.tensor([[0.0, 0.6, 255.0], [0.0, -0.8, 255.0], [1.0, 0.0, 255.0]])[None, :, None]
    # (0.6, 0, 0.8) against (0, 0, 1); the zero vector stays zero against (0.6, −0.8, 0); the third is ignored
    assert float(loss_of(SPECS["normals"], outputs, labels)) == pytest.approx((0.8 + 1.4) / 3 / 2)


def test_depth_by_hand():
    outputs = torch.tensor([[[[1.0, 4.0, 100.0]]]])
    labels = torch.tensor([[[1.5, 2.0, 0.0]]])
    assert float(loss_of(SPECS["depth"], outputs, labels)) == pytest.approx(1.25)


def test_a_normal_with_any_ignored_part_is_ignored():
    labels = torch.tensor([[0.0, 255.0, 0.0], [0.0, 0.0, 255.0], [1.0, 0.0, 255.0]])[None, :, None]
    assert valid_pixels(SPECS["normals"], labels).tolist() == [[[True, False, False]]]


@pytest.mark.parametrize("name", MORE_SPECS)
@pytest.mark.parametrize("cut", [[4, 4], [8], [1, 5, 2], [1] * 8], ids=str)
def test_parts_of_a_step_add_up_to_the_step(name, cut):
    spec = MORE_SPECS[name]
    outputs, labels = dense_case(spec, n=8)
    labels[5] = all_ignored(spec, labels[5])  # a part may have nothing valid
    whole, whole_gradient = gradient(spec, outputs, labels, step_counts(spec, labels))
    counts = sum(step_counts(spec, part) for part in labels.split(cut))
    assert counts.tolist() == step_counts(spec, labels).tolist()
    parts = [gradient(spec, *part, counts) for part in zip(outputs.split(cut), labels.split(cut), strict=True)]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.cat([grad for _, grad in parts]), whole_gradient, rtol=1e-12, atol=1e-15)
    if len(cut) > 1:  # and by the parts' own counts they would not
        own = sum(loss_of(spec, *part) for part in zip(outputs.split(cut), labels.split(cut), strict=True)) / len(cut)
        assert abs(own / whole - 1) > 1e-6


@every_kind
def test_what_is_ignored_does_not_matter(kind):
    spec = SPECS[kind]
    outputs, labels = dense_case(spec)
    ignored = ~valid_pixels(spec, labels)
    assert 0 < int(ignored.sum()) < ignored.numel()
    changed = torch.where(ignored[:, None], 1e3, outputs)
    counts = step_counts(spec, labels)
    assert float(dense_loss(spec, outputs, labels, counts)) == float(dense_loss(spec, changed, labels, counts))
    _, grad = gradient(spec, outputs, labels, counts)
    assert bool((grad.movedim(1, -1)[ignored] == 0).all())
    assert bool((grad.movedim(1, -1)[~ignored] != 0).any(dim=-1).all())


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_valid_is_zero_with_a_zero_gradient(kind, dtype):
    spec = SPECS[kind]
    outputs, labels = dense_case(spec, dtype=dtype)
    labels = all_ignored(spec, labels)
    assert step_counts(spec, labels).tolist() == [0, 0]
    loss, grad = gradient(spec, outputs, labels, step_counts(spec, labels))
    assert float(loss) == 0
    assert bool((grad == 0).all())
    assert bool(image_losses(spec, outputs, labels).isnan().all())


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-20, 1e-8])
def test_a_vector_without_length_has_a_finite_gradient(length):
    outputs = torch.full((1, 3, 2, 2), length)
    labels = torch.tensor([0.0, 0.6, 0.8])[None, :, None, None].expand(1, 3, 2, 2)
    loss, grad = gradient(SPECS["normals"], outputs, labels, step_counts(SPECS["normals"], labels))
    assert math.isfinite(float(loss))
    assert bool(torch.isfinite(grad).all())
    assert float(grad.abs().max()) <= 1e6


@every_kind
def test_half_precision_is_computed_in_float32(kind):
    spec = SPECS[kind]
    outputs, labels = dense_case(spec, size=(33, 31), dtype=torch.float32)
    half = outputs.bfloat16()
    counts = step_counts(spec, labels)
    exact = dense_loss(spec, half.float(), labels, counts)
    assert exact.dtype == torch.float32
    leaf = half.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = dense_loss(spec, leaf, labels, counts)
    assert under.dtype == torch.float32
    assert float(under.detach()) == float(exact)
    under.backward()
    assert leaf.grad.dtype == torch.bfloat16
    single = dense_loss(spec, outputs, labels, counts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(dense_loss(spec, outputs, labels, counts)) == float(single)


@every_kind
def test_the_loss_of_an_image_is_that_of_a_step_of_its_own(kind):
    spec = SPECS[kind]
    outputs, labels = dense_case(spec)
    labels[2] = all_ignored(spec, labels[2])
    losses = image_losses(spec, outputs, labels)
    assert losses.shape == (4,)
    assert losses.isnan().tolist() == [False, False, True, False]
    for image in (0, 1, 3):
        alone = loss_of(spec, outputs[image : image + 1], labels[image : image + 1])
        torch.testing.assert_close(losses[image], alone, rtol=1e-12, atol=0)


@every_kind
def test_the_gradient_is_the_derivative(kind):
    spec = SPECS[kind]
    outputs, labels = dense_case(spec, n=2, size=(3, 2))
    counts = step_counts(spec, labels)
    assert torch.autograd.gradcheck(lambda x: dense_loss(spec, x, labels, counts), outputs.requires_grad_())


@every_kind
def test_no_images_are_no_loss(kind):
    spec = SPECS[kind]
    outputs, labels = (each[:0] for each in dense_case(spec))
    assert float(loss_of(spec, outputs, labels)) == 0
    assert image_losses(spec, outputs, labels).shape == (0,)


@every_kind
def test_shapes_that_do_not_fit_are_refused(kind):
    """Each of these would broadcast to a plausible number."""
    spec = SPECS[kind]
    outputs, labels = dense_case(spec, size=(6, 6))
    counts = step_counts(spec, labels)
    for wrong in (
        (outputs, labels[:1]),
        (outputs[:, :, :1], labels),
        (outputs, labels[..., :1]),
        (outputs.repeat(1, 2, 1, 1), labels),
        (outputs[:, 0], labels),
        (outputs, labels[:, None]),
    ):
        with pytest.raises(DataError, match=rf"a {kind} task takes outputs \(N, {spec.num_outputs}, H, W\)"):
            dense_loss(spec, *wrong, counts)
    with pytest.raises(DataError, match=r"counts must be of shape \(2,\)"):
        dense_loss(spec, outputs, labels, counts[:1])


@pytest.mark.parametrize("bad", [4, -1, 254, 256])
def test_unknown_classes_are_refused(bad):
    spec = SPECS["segmentation"]
    outputs, labels = dense_case(spec)
    labels[1, 2, 3] = bad
    for refused in (loss_of, image_losses):
        with pytest.raises(DataError, match=f"class id {bad}, but the task has the ids 0 to 3 and 255"):
            refused(spec, outputs, labels)
