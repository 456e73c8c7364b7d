"""Balancing: a step of every method is TorchJD's own on gradients that are computed one by one, however it is cut.

Runs with balancing (resumption, logs, comparisons, dense tasks) are in test_balanced_runs.py, bfloat16 in
test_balanced_precision.py.
"""

import pytest
import torch

from helpers_balancing import CLOSE, balanced, expect_same, plain, step
from helpers_runs import TASKS, randomise, use_method
from tasklora import auxiliary_loss
from tasklora.errors import ConfigError, NonFiniteLossError
from tasklora.tasks import split_by_task
from tasklora.training import balancing
from tasklora.training.balancer import own_draws, shared_parameters
from tasklora.training.balancing import BALANCING_METHODS, NOT_OFFERED
from tasklora.training.gradient_balancing import ScaleFreeRule

aggregation = pytest.importorskip("torchjd.aggregation", reason="TorchJD (tasklora[balancing]) is not installed")
scalarization = pytest.importorskip("torchjd.scalarization", reason="TorchJD (tasklora[balancing]) is not installed")

LOSSES = [name for name, method in BALANCING_METHODS.items() if method.balancer.balances == "losses"]
GRADIENTS = [name for name, method in BALANCING_METHODS.items() if method.balancer.balances == "gradients"]
MADE = {
    "uw": lambda: scalarization.UW(3),
    "imtl_l": lambda: scalarization.IMTLL(3),
    "famo": lambda: scalarization.FAMO(3),
    "dwa": lambda: scalarization.DWA(),
    "stch": lambda: scalarization.STCH(0.5),
    "cagrad": lambda: aggregation.CAGrad(0.4),
    "fairgrad": lambda: aggregation.FairGrad(1.0),
    "nash_mtl": lambda: aggregation.NashMTL(3),
}
LAMBDAS = torch.tensor([2.0, 0.5, 3.0])
WEIGHTED = "tasks.options={mood: {loss_weight: 2}, answer: {loss_weight: 0.5}, heat: {loss_weight: 3}}"


def of_torchjd(name):
    """Return TorchJD's own object of a method."""
    method = BALANCING_METHODS[name]
    module, _, cls = method.torchjd.rpartition(".")
    return MADE.get(name, getattr({"scalarization": scalarization, "aggregation": aggregation}[module], cls))()


def rows_of(trainer, counts):
    """Return a batch with so many rows of each task."""
    return trainer.data_collator(first_rows(trainer, counts))


def first_rows(trainer, counts):
    tasks = trainer.train_dataset.tasks
    return [{**rows[i], "task": name} for (name, rows), n in zip(tasks, counts, strict=True) for i in range(n)]


def gradients_by_hand(trainer, batch):
    """Return v_t of the tasks of a batch, from one forward, and by task what each trained parameter gets from it."""
    trainer.model.train()
    output = trainer.model(**batch)
    names = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    values, gradients = [], []
    for task, places in output.rows.items():
        values.append(LAMBDAS[task] * output.losses[places].mean())
        found = torch.autograd.grad(values[-1], names.values(), retain_graph=True, allow_unused=True)
        gradients.append(dict(zip(names, found, strict=True)))
    return torch.stack(values), gradients


@pytest.fixture(scope="module")
def trainer(project, tmp_path_factory):
    made = project.trainer(tmp_path_factory.mktemp("balanced"), WEIGHTED)
    randomise(made.model)
    return made


@pytest.fixture(scope="module")
def batch(trainer):
    return rows_of(trainer, (3, 5, 4))


def added_up(gradients):
    """Return Σ_t of what each parameter gets, without those that get nothing."""
    total = {}
    for of_task in gradients:
        for name, gradient in of_task.items():
            if gradient is not None:
                total[name] = total.get(name, 0) + gradient
    return total


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_of_balanced_losses_is_torchjds(trainer, batch, name):
    values, gradients = gradients_by_hand(trainer, batch)
    with own_draws(torch.device("cpu"), balanced(trainer, name).balancer.seed):
        (weights,) = torch.autograd.grad(of_torchjd(name)(values), values)
    weighted = zip(gradients, weights, strict=True)
    expected = added_up([{n: g * w for n, g in each.items() if g is not None} for each, w in weighted])
    expect_same(step(trainer, [batch]), expected)


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_step_of_combined_gradients_is_torchjds(trainer, batch, name):
    _, gradients = gradients_by_hand(trainer, batch)
    shared = shared_parameters(trainer.model)
    jacobian = torch.stack([torch.cat([each[n].flatten() for n in shared]) for each in gradients])
    if BALANCING_METHODS[name].rule is ScaleFreeRule:
        size = jacobian.norm()
        assert size**2 > 1e-4  # above TorchJD's threshold, so that scaling changes nothing
    with own_draws(torch.device("cpu"), balanced(trainer, name).balancer.seed):
        combined = of_torchjd(name)(jacobian)
    parts = combined.split([p.numel() for p in shared.values()])
    expected = added_up(gradients)  # a task's own parameters get its plain gradient
    expected.update({n: part.view_as(p) for (n, p), part in zip(shared.items(), parts, strict=True)})
    expect_same(step(trainer, [batch]), expected)


@pytest.mark.parametrize("name", BALANCING_METHODS)
def test_a_step_may_be_cut_into_batches(trainer, batch, name):
    whole = step(balanced(trainer, name), [batch])
    uneven = [rows_of(trainer, (3, 0, 0)), rows_of(trainer, (0, 5, 0)), rows_of(trainer, (0, 0, 4))]
    expect_same(step(balanced(trainer, name), uneven), whole)
    halves = [trainer.data_collator(rows) for rows in _halves(trainer)]
    expect_same(step(balanced(trainer, name), halves), whole)


def _halves(trainer):
    rows = first_rows(trainer, (3, 5, 4))
    return rows[::2], rows[1::2]


@pytest.mark.parametrize("name", BALANCING_METHODS)
def test_a_task_that_is_absent_is_left_out(trainer, name):
    """With two of the three tasks, a step is that of TorchJD on two."""
    batch = rows_of(trainer, (4, 0, 3))
    values, gradients = gradients_by_hand(trainer, batch)
    with own_draws(torch.device("cpu"), balanced(trainer, name).balancer.seed):
        expected = _of_two(name, values, gradients, shared_parameters(trainer.model))
    given = step(trainer, [batch])
    assert not any(n.startswith("heads.answer") for n in given)
    expect_same({n: given[n] for n in expected}, expected)


def _of_two(name, values, gradients, shared):
    """Return what the shared parameters get of two tasks."""
    made = {"uw": lambda: scalarization.UW(2), "imtl_l": lambda: scalarization.IMTLL(2)}
    made |= {"famo": lambda: scalarization.FAMO(2), "nash_mtl": lambda: aggregation.NashMTL(2)}
    rule = made.get(name, lambda: of_torchjd(name))()
    jacobian = torch.stack([torch.cat([each[n].flatten() for n in shared]) for each in gradients])
    if name in LOSSES:
        (weights,) = torch.autograd.grad(rule(values), values)
        combined = weights @ jacobian
    else:
        combined = rule(jacobian)
    parts = combined.split([p.numel() for p in shared.values()])
    return {n: part.view_as(p) for (n, p), part in zip(shared.items(), parts, strict=True)}


def test_a_step_with_one_task_takes_its_gradient(trainer):
    batch = rows_of(trainer, (0, 4, 0))
    expected = added_up(gradients_by_hand(trainer, batch)[1])
    for name in GRADIENTS:
        expect_same(step(balanced(trainer, name), [batch]), expected)


def test_mean_is_the_familys_loss_where_each_task_has_as_many_rows(trainer):
    batch = rows_of(trainer, (4, 4, 4))
    expect_same(step(balanced(trainer, "mean"), [batch]), step(plain(trainer), [batch]))


def test_what_a_method_adds_to_the_loss_is_added_as_it_is(project, tmp_path):
    trainer = project.trainer(tmp_path, WEIGHTED, use_method("ta_lora"))
    # A shared and a task's own branch of the other tests' random numbers add up to gradients of norm 44 and numbers of
    # 6, which backward rounds, in single precision, to 8e-6: more than is allowed here. These give 1.2 and 0.1.
    randomise(trainer.model, scale=0.1)
    batch = rows_of(trainer, (4, 4, 4))
    halves = [trainer.data_collator(rows) for rows in _halves(trainer)]
    whole = step(plain(trainer), [batch])
    expect_same(step(balanced(trainer, "mean"), [batch]), whole)
    expect_same(
        step(balanced(trainer, "pcgrad"), halves), step(balanced(trainer, "pcgrad"), [rows_of(trainer, (3, 5, 4))])
    )
    names = shared_parameters(trainer.model)
    added = torch.autograd.grad(auxiliary_loss(trainer.model), names.values(), allow_unused=True)
    jacobian = [torch.cat([each[n].flatten() for n in names]) for each in gradients_by_hand(trainer, batch)[1]]
    parts = of_torchjd("imtl_g")(torch.stack(jacobian)).split([p.numel() for p in names.values()])
    given = step(balanced(trainer, "imtl_g"), [batch])
    assert any(float(a.abs().max()) > 1e-4 for a in added if a is not None)
    for (name, parameter), part, extra in zip(names.items(), parts, added, strict=True):
        expected = part.view_as(parameter) + (0 if extra is None else extra)
        torch.testing.assert_close(given[name], expected, **CLOSE)


def test_rows_of_each_task_alone_give_the_losses_of_the_mixed_batch(project, tmp_path):
    trainer = project.trainer(tmp_path, "model.pair_encoding=separate", "tasks.options={heat: {pair_encoding: joint}}")
    randomise(trainer.model)
    mixed = trainer.data_collator([row for rows in _halves(trainer) for row in rows])
    parts = split_by_task(mixed)
    assert [part["task_ids"].unique().tolist() for part in parts] == [[0], [1], [2]]
    assert [len(part["task_ids"]) for part in parts] == [3, 5, 4]
    assert any(part["input_ids"].shape[1] < mixed["input_ids"].shape[1] for part in parts)
    with torch.no_grad():
        expected = trainer.model(**mixed).losses
        for task, part in enumerate(parts):
            given = trainer.model(**part).losses
            torch.testing.assert_close(given, expected[mixed["task_ids"] == task], **CLOSE)


# --- what is remembered


def test_learned_numbers_move_for_the_tasks_of_a_step_alone(trainer):
    rule = balanced(trainer, "uw").balancer.rule
    step(trainer, [rows_of(trainer, (4, 0, 3))])
    (numbers,) = rule.parameters()
    values, _ = gradients_by_hand(trainer, rows_of(trainer, (4, 0, 3)))
    expected = 0.5 - 0.5 * values.detach()  # ∂/∂s of ½ (e^(−s) v + s) at 0
    torch.testing.assert_close(numbers.grad, torch.stack([expected[0], torch.zeros(()), expected[1]]), **CLOSE)


def test_gradvac_keeps_the_cosines_of_tasks_that_are_absent(trainer):
    rule = balanced(trainer, "gradvac").balancer.rule
    step(trainer, [rows_of(trainer, (4, 4, 4))])
    before = rule.cosines.clone()
    assert (before.abs() > 0).sum() == 6
    step(trainer, [rows_of(trainer, (4, 0, 4))])
    moved = rule.cosines != before
    assert moved.nonzero().tolist() == [[0, 2], [2, 0]]


def test_nash_mtl_goes_on_from_the_last_weights_and_keeps_those_of_absent_tasks(trainer):
    rule = balanced(trainer, "nash_mtl", update_weights_every=2).balancer.rule
    step(trainer, [rows_of(trainer, (4, 4, 4))])
    first = rule.alpha.clone()
    assert not torch.equal(first, torch.ones(3, dtype=torch.float64))
    step(trainer, [rows_of(trainer, (2, 5, 3))])
    assert torch.equal(rule.alpha, first)  # the second step takes the weights of the first
    step(trainer, [rows_of(trainer, (2, 0, 3))])
    assert (rule.alpha != first).tolist() == [True, False, True]


def test_dwa_weighs_by_the_average_losses_of_the_last_two_periods(trainer):
    rule = balanced(trainer, "dwa", period=2, temperature=1.5).balancer.rule
    own = scalarization.DWA(1.5)
    state, counts = trainer.state, ((3, 5, 4), (2, 2, 2), (5, 1, 3), (4, 4, 1))
    for number, rows in enumerate(counts, start=1):
        batch = rows_of(trainer, rows)
        step(trainer, [batch])
        own(gradients_by_hand(trainer, batch)[0])
        state.global_step = number
        rule.end_step(state)
        if number % 2 == 0:
            own.step()
    state.global_step = 0
    values = torch.ones(3, requires_grad=True)
    (expected,) = torch.autograd.grad(own(values), values)
    assert (expected - 1).abs().max() > 1e-3
    torch.testing.assert_close(rule.weights(torch.ones(3), torch.ones(3, dtype=torch.bool)), expected, **CLOSE)


def test_famo_learns_from_what_an_update_did(trainer):
    balancer, own = balanced(trainer, "famo").balancer, scalarization.FAMO(3)
    batch = rows_of(trainer, (3, 5, 4))
    step(trainer, [batch])
    own(gradients_by_hand(trainer, batch)[0])
    kept = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.mul_(0.9)
    balancer.after_update()
    own.update(gradients_by_hand(trainer, batch)[0])
    trainer.model.load_state_dict(kept, strict=False)
    given = balancer.rule.scalariser.state_dict()["_w"]
    torch.testing.assert_close(given, own.state_dict()["_w"], **CLOSE)
    assert given.abs().min() > 0.01


def test_famo_keeps_the_weight_of_an_absent_task(trainer):
    balancer = balanced(trainer, "famo").balancer
    step(trainer, [rows_of(trainer, (3, 0, 4))])
    with torch.no_grad():
        trainer.model.heads["mood"].linear.weight.mul_(0.5)
    balancer.after_update()
    with torch.no_grad():
        trainer.model.heads["mood"].linear.weight.mul_(2)
    moved = balancer.rule.scalariser.state_dict()["_w"]
    assert (moved != 0).tolist() == [True, False, True]
    assert moved[0] == pytest.approx(-float(moved[2]), rel=1e-3)  # against each other, not against the absent one


@pytest.mark.parametrize("name", ["cagrad", "upgrad", "dualproj"])
def test_small_gradients_are_weighed_as_large_ones(trainer, name):
    """Below ‖J‖² = 1e-4 TorchJD's own objects give another answer: no update at all in CAGrad's case."""
    rule = balanced(trainer, name).balancer.rule
    jacobian = torch.tensor([[1.0, -3.0, 0.2], [-0.8, 1.0, 0.1], [0.3, 0.4, 1.0]])
    present = torch.arange(3)
    large, small = (rule.combine(j, j @ j.T, present)[1] for j in (jacobian, jacobian * 1e-4))
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-4)
    own = of_torchjd(name)
    assert not torch.allclose(own(jacobian * 1e-4) * 1e4, own(jacobian), rtol=0.05)


def test_weights_that_are_not_finite_stop_the_run(trainer):
    balanced(trainer, "mgda")
    with pytest.raises(NonFiniteLossError, match=r"at step 1 gave NaN or infinity\. The model is as it was"):
        trainer.balancer._combined(torch.full((2, 4), torch.nan), torch.tensor([0, 1]))
    with pytest.raises(NonFiniteLossError, match="at step 1 found no solution: "):
        balanced(trainer, "fairgrad").balancer._combined(torch.full((2, 4), torch.inf), torch.tensor([0, 1]))


def test_random_draws_of_training_are_left_alone(trainer, batch):
    torch.manual_seed(7)
    expected = torch.rand(3)
    for name in ("random", "pcgrad", "graddrop"):
        torch.manual_seed(7)
        step(balanced(trainer, name), [batch])
        assert torch.equal(torch.rand(3), expected)


# --- what can be named


def test_everything_of_torchjd_is_offered_or_said_why_not():
    there = set()
    for module, base in (("scalarization", scalarization.Scalarizer), ("aggregation", aggregation.Aggregator)):
        classes = {name: getattr(__import__(f"torchjd.{module}", fromlist=[name]), name) for name in _public(module)}
        there |= {f"{module}.{name}" for name, cls in classes.items() if issubclass(cls, base) and cls is not base}
    there -= {"aggregation.WeightedAggregator", "aggregation.GramianWeightedAggregator"}  # bases
    offered = {method.torchjd for method in BALANCING_METHODS.values()}
    assert offered.isdisjoint(NOT_OFFERED)
    assert offered | set(NOT_OFFERED) == there


def _public(module):
    return {"scalarization": scalarization, "aggregation": aggregation}[module].__all__


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{method: pcgard}", "unknown balancing method 'pcgard'. Did you mean 'pcgrad'? Methods: sum, mean, "),
        ("{method: cagrad, cc: 0.4}", "method 'cagrad': 'c' is missing; unknown key 'cc'. Did you mean 'c'?"),
        ("{method: cagrad}", "method 'cagrad': 'c' is missing"),
        ("{method: pcgrad, c: 1}", "method 'pcgrad': unknown key 'c'. Valid keys: "),
        ("{method: cagrad, c: -1}", "'c': Input should be greater than or equal to 0 (got -1)"),
        ("{method: dwa, period: 0}", "'period': Input should be greater than 0 (got 0)"),
        ("{method: aligned_mtl, scale_mode: max}", "Input should be 'min', 'median' or 'rmse' (got 'max')"),
        ("{c: 1}", "'training.balancing.method' is missing"),
        ("pcgrad", "'training.balancing': "),
    ],
)
def test_what_a_recipe_cannot_say(project, given, said):
    with pytest.raises(ConfigError) as caught:
        project.load(f"training.balancing={given}")
    assert said in str(caught.value)


def test_a_resolved_recipe_names_every_option(project):
    recipe = project.load("training.balancing={method: famo, lr: 0.1}")
    assert "balancing:\n    method: famo\n    lr: 0.1\n    weight_decay: 0.001\n" in recipe.to_yaml()
    assert "balancing: null\n" in project.load().to_yaml()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([use_method("heads_only")], "pcgrad has nothing to balance: no trained parameter is shared"),
        ([use_method("per_task_lora")], "pcgrad has nothing to balance: no trained parameter is shared"),
        (["tasks.include=[mood]"], "pcgrad weighs tasks against each other, but 'mood' is the only one"),
    ],
)
def test_what_cannot_be_balanced(project, tmp_path, overrides, said):
    with pytest.raises(ConfigError, match=r"^training\.balancing: ") as caught:
        project.trainer(tmp_path, "training.balancing={method: pcgrad}", *overrides)
    assert said in str(caught.value)


def test_what_is_not_installed_is_said_with_the_command(monkeypatch, trainer):
    found = balancing.find_spec
    monkeypatch.setattr(balancing, "find_spec", lambda name: None if name == "quadprog" else found(name))
    assert balanced(trainer, "pcgrad")
    with pytest.raises(ConfigError) as caught:
        balanced(trainer, "upgrad")
    assert str(caught.value) == (
        "training.balancing: upgrad needs quadprog, not installed here. Install: pip install 'tasklora[balancing]'"
    )
    monkeypatch.setattr(balancing, "version", lambda name: "0.19.1")
    with pytest.raises(ConfigError, match=r"needs TorchJD 0\.18, found 0\.19\.1\. Install: "):
        balanced(trainer, "pcgrad")


def test_the_shared_parameters_are_the_encoders_but_for_the_tasks_own(project, tmp_path):
    def leaves(method):
        return {name.rpartition(".")[2] for name in shared_parameters(project.trainer(tmp_path, method).model)}

    assert leaves(use_method("mtl_lora")) == {"A", "B"}
    assert leaves(use_method("lora")) == {"weight"}  # lora_A.default.weight and lora_B.default.weight
    full = project.trainer(tmp_path, use_method("full_fine_tuning")).model
    expected = [name for name, p in full.named_parameters() if p.requires_grad and name.startswith("encoder.")]
    assert list(shared_parameters(full)) == expected
    assert TASKS == ["mood", "answer", "heat"]
