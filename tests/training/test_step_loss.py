"""The loss of a step and what is logged of it.

L = Σ_t λ_t Σ_{rows of t} ℓ / (rows of the whole step): checked against a computation by hand on the batches of a real
run, with class weights, loss weights and accumulation. Batch 8 equals batch 2 accumulated 4 times. Activation
checkpointing changes nothing. Task matrices and gates take no weight decay.
"""

import pytest
import torch
import torch.nn.functional as F

from helpers_runs import METHODS, TASKS, AtStep, log_of, mostly_slow, randomise, use_method
from tasklora.tasks import model as model_module
from tasklora.tasks import read_safetensors
from tasklora.training import train_recipe
from tasklora.updates import TALora

STILL = "training.learning_rate=1.0e-30"  # so that every step sees the weights of the first
LAMBDAS = {"mood": 2.0, "answer": 0.5, "heat": 3.0}
WEIGHTED = "tasks.options={mood: {loss_weight: 2}, answer: {loss_weight: 0.5}, heat: {loss_weight: 3}}"


def losses_by_hand(trainer, batch):
    """Return the unweighted-by-λ loss of each row of a batch, from logits alone."""
    rows = project_rows(trainer)
    counts = torch.bincount(torch.tensor(rows["answer"]).long(), minlength=3)
    weights = len(rows["answer"]) / (3 * counts)
    heat = torch.tensor(rows["heat"])
    output = trainer.model(**batch)
    losses = torch.zeros(len(batch["labels"]))
    for task_id, places in output.rows.items():
        logits, labels = output.logits[task_id], batch["labels"][places, 0]
        if TASKS[task_id] == "heat":
            losses[places] = (logits[:, 0] - (labels - heat.mean()) / heat.std(correction=0)) ** 2
        else:
            nll = -F.log_softmax(logits, dim=-1)[torch.arange(len(places)), labels.long()]
            losses[places] = nll * weights[labels.long()] if TASKS[task_id] == "answer" else nll
    return losses


def project_rows(trainer):
    return {name: rows.labels.tolist() for name, rows in trainer.train_dataset.tasks}


def steps_by_hand(trainer, accumulate):
    """Return for each step of the first epoch: its rows' losses and their task ids."""
    trainer.model.eval()
    with torch.no_grad():
        batches = [(losses_by_hand(trainer, batch), batch["task_ids"]) for batch in trainer.get_train_dataloader()]
    starts = range(0, len(batches), accumulate)
    return [tuple(map(torch.cat, zip(*batches[start : start + accumulate], strict=True))) for start in starts]


def train_logged(trainer):
    randomise(trainer.model)
    trainer.train()
    return [record for record in trainer.state.log_history if "loss" in record]


@pytest.mark.parametrize(("batch_size", "accumulate"), [(16, 1), (5, 3)])
def test_the_loss_of_a_step_is_the_formula(project, tmp_path, batch_size, accumulate):
    size = (f"training.batch_size={batch_size}", f"training.gradient_accumulation_steps={accumulate}")
    trainer = project.trainer(tmp_path, STILL, WEIGHTED, "training.epochs=1", *size)
    logs = train_logged(trainer)
    steps = steps_by_hand(trainer, accumulate)
    assert len(logs) == len(steps) == 8
    assert len(steps[-1][0]) < len(steps[0][0])  # the last step of an epoch is smaller, and divided by its own rows
    lambdas = torch.tensor(list(LAMBDAS.values()))
    for log, (losses, task_ids) in zip(logs, steps, strict=True):
        assert log["loss"] == pytest.approx(float((lambdas[task_ids] * losses).sum() / len(losses)), rel=1e-4)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(16, 1), (5, 3)])
def test_what_a_method_adds_to_the_loss_counts_once_a_step(project, tmp_path, batch_size, accumulate):
    size = (f"training.batch_size={batch_size}", f"training.gradient_accumulation_steps={accumulate}")
    trainer = project.trainer(tmp_path, STILL, use_method("ta_lora"), "training.epochs=1", *size)
    logs = train_logged(trainer)
    layers = [module for module in trainer.model.modules() if isinstance(module, TALora)]
    added = sum(layer.auxiliary_loss().item() for layer in layers) / len(layers)
    assert added > 1e-3
    for log, (losses, _) in zip(logs, steps_by_hand(trainer, accumulate), strict=True):
        assert log["loss"] == pytest.approx(float(losses.mean()) + added, rel=1e-4)


def test_each_tasks_own_loss_is_logged(project, tmp_path):
    trainer = project.trainer(tmp_path, STILL, WEIGHTED, "training.epochs=1", "training.logging_steps=3")
    logs = train_logged(trainer)
    steps = steps_by_hand(trainer, 1)
    for index, log in enumerate(logs):
        losses, task_ids = map(torch.cat, zip(*steps[3 * index : 3 * index + 3], strict=True))
        for task_id, name in enumerate(TASKS):  # the mean over the task's rows since the last log, without λ
            mine = losses[task_ids == task_id]
            assert log.get(f"loss/{name}", None) == (pytest.approx(float(mine.mean()), rel=1e-4) if len(mine) else None)


def test_a_label_of_minus_100_counts_as_a_row(project, tmp_path):
    # transformers takes −100 for "ignore"; for a regression it is a number
    trainer = project.trainer(tmp_path, STILL, "tasks.include=[heat]", "training.epochs=1")
    trainer.train_dataset.tasks[0][1].labels[:] = -100.0
    trainer.model.heads["heat"].label_mean.fill_(-100.0)  # the standardised label is 0
    logs = train_logged(trainer)
    with torch.no_grad():
        outputs = [trainer.model(**batch).logits[0] for batch in trainer.get_train_dataloader()]
    assert [log["loss"] for log in logs] == pytest.approx([float((o**2).mean()) for o in outputs], rel=1e-4)


def records(run):
    keys = ("loss", *(f"loss/{name}" for name in TASKS), "eval_average")
    return [{key: record[key] for key in keys if key in record} for record in log_of(run)]


def assert_same_run(one, other, tolerance):
    """Assert that two runs logged the same losses and ended with the same weights."""
    for mine, theirs in zip(records(one), records(other), strict=True):
        assert mine == {key: pytest.approx(value, rel=tolerance, abs=tolerance) for key, value in theirs.items()}
    for name in ("adapter_model.safetensors", "heads.safetensors"):
        mine, theirs = read_safetensors(one / "final" / name), read_safetensors(other / "final" / name)
        for key, value in theirs.items():
            torch.testing.assert_close(
                mine[key], value, rtol=tolerance, atol=tolerance, msg=lambda m, k=key: f"{k}: {m}"
            )


@pytest.mark.parametrize("method", mostly_slow(METHODS, "mtl_lora", "ta_lora"))
def test_batch_8_equals_batch_2_accumulated_4_times(project, tmp_path, method):
    common = (use_method(method), WEIGHTED, "training.epochs=1", "tasks.limits={train: 12}")
    train_recipe(project.load(*common, "training.batch_size=8"), tmp_path / "eight")
    accumulated = ("training.batch_size=2", "training.gradient_accumulation_steps=4")
    train_recipe(project.load(*common, *accumulated), tmp_path / "accumulated")
    assert len(records(tmp_path / "eight")) == 5 + 1 + 1  # steps (the last one of 4 rows), the evaluation, the summary
    assert_same_run(tmp_path / "accumulated", tmp_path / "eight", 1e-4)


@pytest.mark.parametrize("method", mostly_slow(METHODS, "mtl_lora", "hydra_lora"))
def test_activation_checkpointing_changes_nothing(project, tmp_path, method):
    common = (use_method(method), "training.epochs=1", "tasks.limits={train: 20}")
    train_recipe(project.load(*common), tmp_path / "plain")
    train_recipe(project.load(*common, "training.gradient_checkpointing=true"), tmp_path / "recomputed")
    assert_same_run(tmp_path / "recomputed", tmp_path / "plain", 1e-6)


def test_activations_are_really_recomputed(project, tmp_path, monkeypatch):
    monkeypatch.setattr(model_module, "MIN_GROUP", 1000)  # all rows of a step go through the encoder at once
    calls = {True: 0, False: 0}
    for on in calls:

        def watch(model, on=on, **_):
            layer = model.encoder.get_base_model().encoder.layer[0].attention.self.query
            layer.register_forward_hook(lambda *_: calls.__setitem__(on, calls[on] + 1))

        overrides = (f"training.gradient_checkpointing={str(on).lower()}", "training.max_steps=3")
        train_recipe(
            project.load(*overrides), tmp_path / str(on), callbacks=[AtStep(1, lambda control, **k: watch(**k))]
        )
    assert calls[True] == calls[False] + 2  # steps 2 and 3, once more each


def test_bfloat16_autocast_trains(project, tmp_path):
    train_recipe(project.load("training.epochs=1"), tmp_path / "float32")
    train_recipe(project.load("training.epochs=1", "training.precision=bfloat16"), tmp_path / "bfloat16")
    full, half = (
        [record["loss"] for record in log_of(tmp_path / run) if "loss" in record] for run in ("float32", "bfloat16")
    )
    assert half != full
    assert half[:3] == pytest.approx(full[:3], rel=0.05)
    state = read_safetensors(tmp_path / "bfloat16" / "final" / "adapter_model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_a_base_in_half_precision_trains(project, tmp_path, dtype):
    results, _ = train_recipe(project.load(f"model.dtype={dtype}", "training.epochs=1"), tmp_path / "run")
    losses = [record["loss"] for record in log_of(tmp_path / "run") if "loss" in record]
    assert all(0 < loss < 10 for loss in losses)
    assert results.scores["validation"].average is not None


@pytest.mark.parametrize("method", METHODS)
def test_what_takes_weight_decay(project, tmp_path, method):
    trainer = project.trainer(tmp_path, use_method(method), "training.weight_decay=0.1")
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    groups = {
        decay: {
            names[id(p)]
            for group in trainer.optimizer.param_groups
            if group["weight_decay"] == decay
            for p in group["params"]
        }
        for decay in (0.0, 0.1)
    }
    without = {
        name
        for name in names.values()
        if name.endswith((".Lambda", ".w", ".e", ".G", ".s", "linear.bias")) and name in groups[0.0] | groups[0.1]
    }
    assert groups[0.0] == without
    assert groups[0.1] == {name for name, p in trainer.model.named_parameters() if p.requires_grad} - without
    if method == "mtl_lora":
        assert {name.rpartition(".")[2] for name in groups[0.1]} == {"A", "B", "weight"}
        assert {name.rpartition(".")[2] for name in groups[0.0]} == {"Lambda", "w", "bias"}


def test_a_run_draws_each_epoch_in_its_own_order_and_mixes_tasks(project, tmp_path):
    trainer, seen = project.trainer(tmp_path, "training.epochs=2"), []
    collate = trainer.data_collator

    def watched(rows):
        seen.append([(row["task"], *row["texts"]) for row in rows])
        return collate(rows)

    trainer.data_collator = watched
    trainer.evaluate = lambda **_: {"eval_average": 0.0}
    trainer.train()
    first, second = seen[:8], seen[8:]
    rows = [sorted(row for batch in epoch for row in batch) for epoch in (first, second)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 114
    assert first != second
    assert sum(len({row[0] for row in batch}) > 1 for batch in first) >= 7


@pytest.mark.parametrize(
    ("mixing", "per_epoch"),
    [
        ("{strategy: equal}", {"mood": 38, "answer": 38, "heat": 38}),
        ("{strategy: capped, cap: 10}", {"mood": 10, "answer": 10, "heat": 10}),
        ("{strategy: temperature, temperature: 1}", {"mood": 36, "answer": 54, "heat": 24}),
    ],
)
def test_the_recipes_mixing_is_what_is_drawn(project, tmp_path, mixing, per_epoch):
    trainer = project.trainer(tmp_path, f"training.mixing={mixing}")
    task_ids = torch.cat([batch["task_ids"] for batch in trainer.get_train_dataloader()])
    assert dict(zip(TASKS, torch.bincount(task_ids).tolist(), strict=True)) == per_epoch
    assert trainer.num_examples(None) == sum(per_epoch.values())
