"""transformers' own Trainer with a `task_ids` column: no subclass, no hook.

What it trains equals a plain loop bit by bit, also resumed; ids that get lost on the way give an error.
"""

import json
import warnings

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

import tasklora
from helpers_models import TYPED, adapt, adapter_state, config_of, layers
from tasklora.errors import TaskIdsError
from tasklora.tuner import METHODS

ROWS, LENGTH = 22, 6

every_method = pytest.mark.parametrize("method", list(METHODS))
# One method of each kind; the others take minutes in all.
ONE_OF_A_KIND = {method.update_cls.kind: name for name, method in METHODS.items()}.values()
every_method_slowly = pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in ONE_OF_A_KIND else pytest.mark.slow) for name in METHODS]
)
every_task_method = pytest.mark.parametrize(
    "method", [name for name, method in METHODS.items() if method.update_cls.uses_task_ids]
)
both_types = pytest.mark.parametrize("task_type", ["SEQ_CLS", "CAUSAL_LM"])


def model_of(method: str = "mtl_lora", task_type: str = "SEQ_CLS", dropout: float = 0.0, **options):
    make, targets = TYPED[task_type]
    rates = ("hidden_dropout_prob", "attention_probs_dropout_prob") if task_type == "SEQ_CLS" else ()
    base = make(**dict.fromkeys(rates, dropout))
    return adapt(base, config_of(method, task_type=task_type, target_modules=targets, **options)).train()


def rows_of(task_type: str = "SEQ_CLS", rows: int = ROWS, **columns) -> Dataset:
    """Return rows of three tasks in mixed order, labels that depend on the task."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, 64, (rows, LENGTH), generator=generator)
    task_ids = torch.randint(0, 3, (rows,), generator=generator)
    labels = (input_ids[:, 0] + task_ids) % 3 if task_type == "SEQ_CLS" else input_ids
    return Dataset.from_dict(
        {"input_ids": input_ids.tolist(), "labels": labels.tolist(), "task_ids": task_ids.tolist(), **columns}
    )


def trainer_of(model, folder, rows=None, **options) -> Trainer:
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "remove_unused_columns": False,
        **options,
    }
    arguments = {name: settings.pop(name) for name in ("compute_metrics", "eval_dataset") if name in settings}
    args = TrainingArguments(output_dir=str(folder), **settings)
    return Trainer(model=model, args=args, train_dataset=rows_of() if rows is None else rows, **arguments)


def losses_of(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def same_state(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@every_method_slowly
@both_types
def test_trains_what_a_plain_loop_trains(method, task_type, tmp_path):
    trainer = trainer_of(model_of(method, task_type), tmp_path, rows_of(task_type), seed=3, max_grad_norm=0)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()

    twin = model_of(method, task_type)
    loop = trainer_of(twin, tmp_path, rows_of(task_type), seed=3, max_grad_norm=0)  # for its batches only
    optimizer = torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad], lr=0.01, weight_decay=0.0)
    losses = []
    for batch in list(loop.get_train_dataloader())[:6]:
        assert batch["task_ids"].shape == batch["labels"].shape[:1]
        loss = twin(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    assert losses_of(trainer) == pytest.approx(losses, rel=1e-4, abs=1e-4)
    for name, value in adapter_state(twin).items():
        torch.testing.assert_close(adapter_state(trainer.model)[name], value, rtol=1e-5, atol=1e-6, msg=name)
    for name, value in trainer.model.state_dict().items():
        frozen = not (".task_updates." in name or "modules_to_save" in name)
        assert torch.equal(value, before[name]) == frozen or "original_module" in name, name


@every_method_slowly
def test_resumed_equals_uninterrupted(method, tmp_path):
    """Bit for bit: adapter, head, optimiser, order of rows and dropout."""

    def trainer(folder: str, **options) -> Trainer:
        options = {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 2, "max_steps": -1, **options}
        return trainer_of(model_of(method, dropout=0.1, lora_dropout=0.2), tmp_path / folder, **options)

    whole = trainer("whole")
    whole.train()
    trainer("cut").train()  # its checkpoint-4 is as good as that of a killed run; the rest is thrown away
    resumed = trainer("cut")
    for layer in layers(resumed.model):
        for parameter in layer.task_updates.parameters():
            parameter.data.zero_()  # so that what it ends with can come from the checkpoint only
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut/checkpoint-4"))
    assert resumed.state.global_step == whole.state.global_step == 12
    same_state(adapter_state(resumed.model), adapter_state(whole.model))
    same_state(resumed.model.state_dict(), whole.model.state_dict())
    assert losses_of(resumed) == losses_of(whole)


@every_method
def test_evaluation_and_prediction(method, tmp_path):
    """The last batch holds fewer rows; each row is scored under its own task."""
    rows = rows_of()
    trainer = trainer_of(model_of(method).eval(), tmp_path, eval_dataset=rows, per_device_eval_batch_size=8)
    predicted = trainer.predict(rows)
    batch = {name: torch.tensor(rows[:][name]) for name in rows.column_names}
    with torch.no_grad():
        expected = trainer.model(**batch)
        swapped = trainer.model(**{**batch, "task_ids": (batch["task_ids"] + 1) % 3})
    torch.testing.assert_close(torch.tensor(predicted.predictions), expected.logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.tensor(predicted.label_ids), batch["labels"])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.loss.item(), rel=1e-4)
    uses_ids = METHODS[method].update_cls.uses_task_ids
    assert torch.allclose(expected.logits, swapped.logits, atol=1e-4) != uses_ids


def test_best_model_is_loaded_at_the_end(tmp_path):
    scores = iter([0.1, 0.9, 0.3])  # the second evaluation is the best, whatever was learnt
    trainer = trainer_of(
        model_of(),
        tmp_path,
        eval_dataset=rows_of(rows=4),
        compute_metrics=lambda _: {"score": next(scores)},
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="score",
    )
    trainer.train()
    files = {step: load_file(tmp_path / f"checkpoint-{step}/adapter_model.safetensors") for step in (4, 6)}
    trainer.save_model(str(tmp_path / "best"))
    best = load_file(tmp_path / "best/adapter_model.safetensors")
    same_state(best, files[4])
    assert any(not torch.equal(value, files[6][name]) for name, value in best.items())
    config = json.loads((tmp_path / "best/adapter_config.json").read_text())
    assert config["tasks"] == ["cola", "rte", "sst2"]


@every_method_slowly
@pytest.mark.parametrize("kwargs", [None, {"use_reentrant": True}], ids=["default", "reentrant"])
def test_gradient_checkpointing(method, kwargs, tmp_path):
    """`gradient_checkpointing=True` alone: each recomputation runs under the ids of its own forward."""
    states = []
    for checkpointing in (False, True):
        model = model_of(method, "CAUSAL_LM")
        options = {"gradient_checkpointing": checkpointing, "gradient_checkpointing_kwargs": kwargs, "max_steps": 3}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of the options' new names
            trainer_of(model, tmp_path, rows_of("CAUSAL_LM"), **options).train()
        assert model.get_base_model().is_gradient_checkpointing == checkpointing
        states.append(adapter_state(model))
    same_state(*states)


@every_task_method
def test_accumulation_equals_large_batches(method, tmp_path):
    """Of a language model: transformers adds up the losses of BERT's classifier, adapted or not."""
    states = []
    for size, steps in ((8, 1), (2, 4)):
        model = model_of(method, "CAUSAL_LM")
        rows = rows_of("CAUSAL_LM", rows=16)
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 2}
        trainer_of(model, tmp_path, rows, optim="sgd", learning_rate=0.1, **options).train()
        states.append(adapter_state(model))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6, msg=name)


# Ids that are lost on the way: an error, never a wrong result.


@every_task_method
def test_a_dropped_column_is_an_error(method, tmp_path):
    """The Trainer drops columns that the base model's signature does not name, which is its default."""
    rows = rows_of()
    trainer = trainer_of(model_of(method), tmp_path, rows, eval_dataset=rows, remove_unused_columns=True)
    before = adapter_state(trainer.model)
    for call in (trainer.train, trainer.evaluate, lambda: trainer.predict(rows)):
        with pytest.raises(TaskIdsError, match=r"3 tasks \(cola, rte, sst2\) and was run without task ids"):
            call()
    same_state(adapter_state(trainer.model), before)


@every_task_method
def test_names_that_the_collator_drops_are_an_error(method, tmp_path):
    """transformers' default collator leaves strings out."""
    rows = rows_of(task_ids=["cola", "rte"] * (ROWS // 2))
    with pytest.raises(TaskIdsError, match="was run without task ids"):
        trainer_of(model_of(method), tmp_path, rows).train()


def test_a_task_too_many_is_an_error(tmp_path):
    with pytest.raises(TaskIdsError, match="got values from 7 to 7"):
        trainer_of(model_of(), tmp_path, rows_of(task_ids=[7] * ROWS)).train()


def test_label_smoothing_keeps_the_ids(tmp_path):
    """The Trainer then takes the labels out of the batch and makes the loss itself."""
    trainer = trainer_of(model_of(), tmp_path, label_smoothing_factor=0.1)
    trainer.train()
    losses = losses_of(trainer)
    assert len(losses) == 6
    assert all(0 < loss < 10 for loss in losses)


def test_one_task_for_the_whole_run(tmp_path):
    """A dataset of one task needs no column: `use_tasks` around the call."""
    states = []
    for rows in (rows_of(task_ids=[1] * ROWS), rows_of().remove_columns("task_ids")):
        trainer = trainer_of(model_of(), tmp_path, rows, optim="sgd")
        with tasklora.use_tasks(trainer.model, "rte"):
            trainer.train()
        states.append(adapter_state(trainer.model))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-5, msg=name)
