"""Balancing under bfloat16 autocast, also of a step cut into batches: single precision within bfloat16's rounding."""

import pytest
import torch

from helpers_balancing import balanced, plain, step
from helpers_runs import randomise
from tasklora.training.balancer import shared_parameters
from tasklora.training.balancing import BALANCING_METHODS

pytest.importorskip("torchjd", reason="TorchJD (tasklora[balancing]) is not installed")

ROUNDING = 2.0**-8  # of one number in bfloat16
# Relative distance that is allowed. GradDrop keeps or drops a coordinate by a draw: near it, rounding decides.
MOST = {"graddrop": 32 * ROUNDING}
PRECISIONS = ("float32", "bfloat16")
METHODS = ["none", *BALANCING_METHODS]


@pytest.fixture(scope="module")
def gradients(project, tmp_path_factory):
    """Return precision → method → whether it was cut → gradients of a step, by the shared parameters and by the rest.

    One precision after the other: accelerate keeps it per process.
    """
    found = {}
    for precision in PRECISIONS:
        trainer = project.trainer(tmp_path_factory.mktemp(precision), f"training.precision={precision}")
        randomise(trainer.model, scale=0.1)
        trainer.model = trainer.accelerator.prepare_model(trainer.model)  # as `train` does; autocast is its forward's
        rows = [dict(trainer.train_dataset[index]) for index in (0, 1, 2, 40, 41, 42, 43, 100, 101, 102, 103, 104)]
        shared = shared_parameters(trainer.model)
        for method in METHODS:
            for cut, parts in ((False, [rows]), (True, [rows[::2], rows[1::2]])):
                trainer = plain(trainer) if method == "none" else balanced(trainer, method)  # without memory
                of_step = step(trainer, [trainer.data_collator(part) for part in parts])
                assert {gradient.dtype for gradient in of_step.values()} == {torch.float32}
                sides = {True: [], False: []}
                for name, gradient in of_step.items():
                    sides[name in shared].append(gradient.flatten())
                found[precision, method, cut] = {side: torch.cat(each) for side, each in sides.items()}
    return found


def distance(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("method", METHODS)
def test_a_cut_step_is_that_of_single_precision(gradients, method):
    for is_shared in (True, False):
        exact = gradients["float32", method, False][is_shared]
        whole, cut = (gradients["bfloat16", method, cut][is_shared] for cut in (False, True))
        assert whole.isfinite().all()
        assert cut.isfinite().all()
        assert 0 < distance(whole, exact) < MOST.get(method, 4 * ROUNDING)
        assert 0 < distance(cut, exact) < MOST.get(method, 4 * ROUNDING)
        assert distance(gradients["float32", method, True][is_shared], exact) < 1e-5


@pytest.mark.parametrize("name", ["uw", "pcgrad"])
def test_a_run_in_bfloat16(project, tmp_path, name):
    losses = {}
    for precision in PRECISIONS:
        common = ("training.batch_size=8", "training.gradient_accumulation_steps=2", "training.max_steps=2")
        balancing = f"training.balancing={{method: {name}}}"
        trainer = project.trainer(
            tmp_path, f"training.precision={precision}", balancing, "training.evaluate_every=99", *common
        )
        randomise(trainer.model)
        trainer.train()
        losses[precision] = [record["loss"] for record in trainer.state.log_history if "loss" in record]
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
