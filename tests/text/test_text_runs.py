"""Runs of text-to-text models: training, resumption, balancing, selection, saving, prediction, export, comparison."""

from __future__ import annotations

import functools
import json
import re

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from helpers_runs import AtStep, assert_same_state, log_of, randomise, trained_state
from helpers_text import SUITE
from tasklora.errors import ConfigError, DataError, InterruptedRun
from tasklora.evaluation import ScoredRows, predict_rows, read_predictions
from tasklora.export import export_task, export_task_merged
from tasklora.report import examples
from tasklora.tasks import METRICS, Answers, TaskRows, load_model, read_about, save_model
from tasklora.tasks.text_forms import TEXT_FORMS
from tasklora.training import RunDirectory, prepare, train_recipe
from tasklora.training.run import training_arguments
from tasklora.training.workloads import workload_of

TASKS = list(SUITE["tasks"])
FEW = "tasks.limits={train: 16, tune: 4, validation: 6}"


@functools.cache
def run_of(project, *overrides):
    path = project.root / "runs" / f"run-{abs(hash(overrides))}"
    results, prepared = train_recipe(project.load(*overrides), path, command="tasklora train")
    return path, results, prepared


def trainer_of(project, directory, *overrides):
    """Return the trainer of a recipe, with the model's updates filled with random numbers."""
    recipe = project.load(*overrides)
    work = workload_of(recipe)
    work.load_data(["train", "tune", "validation"])
    work.prepare()
    randomise(work.prepared.model)
    return work.trainer(training_arguments(recipe, RunDirectory(directory)), [])


def test_the_loss_of_a_step_is_divided_by_its_response_tokens(text_project, tmp_path):
    """Batch 8 equals batch 2 four times, though rows differ in their tokens."""
    gradients, losses = [], []
    for place, (size, times) in enumerate([(8, 1), (2, 4)]):
        trainer = trainer_of(
            text_project,
            tmp_path / str(place),
            f"training.batch_size={size}",
            f"training.gradient_accumulation_steps={times}",
        )
        rows = [dict(trainer.train_dataset[index]) for index in range(0, 128, 16)]
        batches = [trainer.data_collator(rows[start : start + size]) for start in range(0, 8, size)]
        batches, counts = trainer.get_batch_samples(iter(batches), times, torch.device("cpu"))
        assert int(counts) == sum(int(batch["response_tokens"].sum()) for batch in batches)
        trainer.model.train()
        losses.append(sum(float(trainer.training_step(trainer.model, batch, counts)) for batch in batches))
        gradients.append({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


def test_a_saved_model_answers_as_the_trained_one(text_project, tmp_path):
    prepared = prepare(text_project.load())
    randomise(prepared.model)
    save_model(prepared.model, prepared.about, tmp_path / "saved")
    model, about, base = load_model(tmp_path / "saved")
    assert about == prepared.about == read_about(tmp_path / "saved")
    rows = text_project.rows(FEW).split("validation")
    for task in TASKS:
        one = predict_rows(prepared.model, task, list(rows[task]), prepared.about.collator(prepared.base.tokenizer))
        other = predict_rows(model, task, list(rows[task]), about.collator(base.tokenizer))
        assert one.values.tolist() == other.values.tolist()
        np.testing.assert_array_equal(one.losses, other.losses)


def test_a_run_keeps_what_it_said_and_its_metrics_can_be_had_again(text_project):
    path, results, _ = run_of(text_project, FEW, "model.evaluation=likelihood")
    said = read_predictions(path / "predictions.jsonl")
    for task, score in results.scores["validation"].tasks.items():
        answers = said[task].answers(text_project.load().task_specs()[task])
        again = {name: METRICS[name].compute(answers) for name in score.metrics}
        assert again == pytest.approx(score.metrics, abs=1e-6, nan_ok=True)
    assert {entry for line in log_of(path) for entry in line if entry.startswith("loss/")} == {
        f"loss/{t}" for t in TASKS
    }


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(text_project, tmp_path):
    overrides = (FEW, "training.evaluate_every=2", "training.batch_size=8", "training.epochs=2", "tasks.include=[mood]")
    whole = train_recipe(text_project.load(*overrides), tmp_path / "whole", command="x")[1]

    def stop(control, **_):
        raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, InterruptedRun)):
        train_recipe(text_project.load(*overrides), tmp_path / "cut", command="x", callbacks=[AtStep(3, stop)])
    resumed = train_recipe(text_project.load(*overrides), tmp_path / "cut", command="x", resume=True)[1]
    assert_same_state(trained_state(whole.model), trained_state(resumed.model))


@pytest.mark.parametrize(
    "setting",
    [
        "training.balancing={method: pcgrad}",
        pytest.param("training.balancing={method: uw}", marks=pytest.mark.slow),
        pytest.param("training.mixing={strategy: equal}", marks=pytest.mark.slow),
        "training.selection=per_task",
        "training.gradient_checkpointing=true",
        pytest.param("model.evaluation=likelihood_per_character", marks=pytest.mark.slow),
        pytest.param("method={name: hydra_lora, r: 4, lora_alpha: 8}", marks=pytest.mark.slow),
        pytest.param("method={name: lora, r: 4, lora_alpha: 8}", marks=pytest.mark.slow),
        pytest.param("method={name: per_task_lora, r: 4, lora_alpha: 8}", marks=pytest.mark.slow),
    ],
)
def test_a_run_works_with(setting, text_project, tmp_path):
    tasks = "tasks.include=[mood, echo]" if "per_character" not in setting else "tasks.include=[mood, pick]"
    recipe = text_project.load(FEW, tasks, "training.max_steps=2", setting)
    results, _ = train_recipe(recipe, tmp_path / "run", command="x")
    assert results.training.steps == 2
    assert all(np.isfinite(score.loss) for score in results.scores["validation"].tasks.values())


def test_checkpointed_activations_give_the_same_gradients(text_project, tmp_path):
    gradients = []
    for checkpointed in (False, True):
        recipe = text_project.load()
        work = workload_of(recipe)
        work.load_data(["train", "tune", "validation"])
        work.prepare()
        randomise(work.prepared.model)
        if checkpointed:
            work.checkpoint_activations()
        trainer = work.trainer(training_arguments(recipe, RunDirectory(tmp_path / str(checkpointed))), [])
        batch = trainer.data_collator([dict(trainer.train_dataset[index]) for index in (0, 40, 70, 100)])
        trainer.model.train()(**batch).losses.sum().backward()
        gradients.append({n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-7)


def test_an_exported_task_answers_in_stock_peft_and_merged(text_project, tmp_path):
    prepared = prepare(text_project.load("tasks.include=[mood, echo]"))
    randomise(prepared.model, scale=0.1)
    model, about = prepared.model.eval(), prepared.about
    tokens = torch.tensor(
        [prepared.about.collator(prepared.base.tokenizer).prompt({"task": "echo", "texts": ["the lamp"]})]
    )
    with torch.no_grad():
        expected = model.encoder(input_ids=tokens, task_ids="echo").logits
    export_task(model, about, "echo", tmp_path / "lora")
    files = {file.name for file in (tmp_path / "lora").iterdir()}
    assert "adapter_model.safetensors" in files
    assert "head.safetensors" not in files
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    manifest = json.loads((tmp_path / "lora" / "manifest.json").read_text())
    assert manifest["text_to_text"]["template"]["response"] == " {answer}"
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(text_project.base), tmp_path / "lora").eval()
    with torch.no_grad():
        torch.testing.assert_close(stock(input_ids=tokens).logits, expected, rtol=1e-4, atol=1e-5)
    export_task_merged(model, about, "echo", tmp_path / "merged", prepared.base.tokenizer)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=tokens).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_run_gets_new_tasks_and_keeps_its_own(text_project, tmp_path):
    path, _, _first = run_of(text_project, FEW, "tasks.include=[mood, echo]", "training.max_steps=2")
    recipe = text_project.load(FEW, "tasks.include=[pick]", "training.max_steps=2", f"extends={path}")
    _, prepared = train_recipe(recipe, tmp_path / "more", command="x")
    assert list(prepared.about.tasks) == list(prepared.about.text().templates) == ["mood", "echo", "pick"]
    rows = text_project.rows(FEW).split("validation")["mood"]
    model, about, base = load_model(path / "best")
    before = predict_rows(model, "mood", list(rows), about.collator(base.tokenizer))
    after = predict_rows(prepared.model, "mood", list(rows), prepared.about.collator(prepared.base.tokenizer))
    np.testing.assert_array_equal(before.losses, after.losses)


def test_predict_and_evaluate_answer_on_the_command_line(text_project, cli, tmp_path):
    path, results, _ = run_of(text_project, FEW, "model.evaluation=likelihood")
    said = cli("predict", path, "--task", "mood", "a lovely film", "--json")
    assert said.code == 0, said.err
    record = json.loads(said.out)
    assert record["text"] == "a lovely film"
    assert record["prediction"] in ("bad", "good")
    assert 0.5 <= record["probability"] <= 1
    said = cli("predict", path, "--task", "echo", "the lamp", "--json")
    assert isinstance(json.loads(said.out)["prediction"], str)
    said = cli("evaluate", path, "--json")
    assert said.code == 0, said.err
    again = json.loads(said.out)
    assert str(results.scores["validation"].average)[:6] in json.dumps(again)


@pytest.mark.slow
def test_methods_are_compared_and_reported(text_project, cli, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    settings = (FEW, "training.max_steps=2", "tasks.include=[mood, pick, echo]", "model.evaluation=greedy")
    recipe.write_text(text_project.load(*settings).to_yaml())
    said = cli("compare", recipe, "--methods", "mtl_lora,lora", "--seeds", "0", "--output", tmp_path / "both")
    assert said.code == 0, said.err
    page = next((tmp_path / "both").rglob("*.html")).read_text()
    assert "no option" in page  # what a random model says names none
    assert "nan%" not in page
    assert "word F1" in page


def test_bootstrap_counts_unread_answers_as_wrong():
    from tasklora.evaluation.bootstrap import resample_counts, resampled_metric

    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 40).astype(float)
    said = np.where(generator.random(40) < 0.3, np.nan, generator.integers(0, 3, 40))
    counts = resample_counts(40, 20, generator)
    for metric in ("accuracy", "mcc", "f1_macro"):
        drawn = [np.repeat(np.arange(40), of) for of in counts]
        expected = [METRICS[metric].compute(Answers(labels[d], said[d])) for d in drawn]
        np.testing.assert_allclose(resampled_metric(metric, Answers(labels, said), counts), expected, rtol=1e-9)
    right = Answers(np.array([0.0, 1.0]), np.array([np.nan, 1.0]))
    assert METRICS["accuracy"].compute(right) == 0.5
    assert METRICS["f1"].compute(right) == 1.0
    assert METRICS["f1_macro"].compute(right) == 0.5


def test_worst_errors_of_generated_answers_are_shown(text_project):
    spec = text_project.load().task_specs()["mood"]
    rows = ScoredRows([["x"]], np.array([1.0]), np.array([np.nan]), np.array([np.nan]), np.array([0.1]))
    (example,) = examples.worst_errors("mood", spec, rows, {}).examples
    assert (example.label, example.prediction, example.certainty) == ("good", "no option", "wrong")


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["model.pooling=cls"], "pooling means nothing with `view: text_to_text`"),
        (["model.pair_encoding=separate"], "pair_encoding means nothing"),
        (["model.view=heads"], "max_new_tokens means nothing with `view: heads`"),
        (["model.view=heads", "model.max_new_tokens=32"], "task 'echo' is generation, which has no head"),
        (["model.evaluation=greedy"], "task 'heat' is regression: a generated text need not be a number"),
        (["tasks.options={mood: {class_weights: balanced}}"], "class_weights and pair_encoding are a head's"),
        (["tasks.options={mood: {template: {prompt: '{text}', options: [a, b, c]}}}"], "options must be 2 names"),
        (["tasks.options={pick: {template: {prompt: '{text}', options: [a, b]}}}"], "choices differ from row to row"),
        (["tasks.options={echo: {template: {prompt: '{text}', options: [a, b]}}}"], "has neither options"),
        (["tasks.options={heat: {template: {prompt: '{first}', options: [a, b]}}}"], "is no number"),
        (["tasks.options={heat: {template: {prompt: '{first}', options: ['0', nan]}}}"], "'nan' .* is no number"),
        (
            ["tasks.options={heat: {template: {prompt: '{first}', options: ['0', '5']}}}"],
            "the option '5' is outside the task's range, 0 to 4",
        ),
        (["tasks.options={mood: {template: {prompt: '{text}', respnse: x}}}"], "Did you mean 'response'"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_when_it_is_read(overrides, what, text_project):
    with pytest.raises(ConfigError, match=what):
        text_project.load(*overrides)


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["method={name: heads_only}"], "nothing would be trained"),
        (["model.max_length=508"], "more than the 512 positions"),
        (["model.max_length=5"], "leaves no room for its prompt"),
        (["tasks.options={mood: {template: {prompt: '{txt}'}}}"], "no column 'txt'. Did you mean 'text'"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_it_begins(overrides, what, text_project, tmp_path):
    with pytest.raises((ConfigError, DataError), match=what):
        train_recipe(text_project.load(*overrides), tmp_path / "run", command="x")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (
            {"kind": "classification", "inputs": ["options"]},
            "input column 'options' stands for something else in a prompt",
        ),
        ({"kind": "classification", "inputs": ["a:b"]}, "input column 'a:b' cannot stand in braces: rename the column"),
        ({"kind": "classification", "inputs": ["a {b}"]}, "input column 'a {b}' cannot stand in braces"),
        ({"kind": "multiple_choice", "inputs": ["choices"], "choices": "others"}, "input column 'choices' stands for"),
        (
            {"kind": "regression", "inputs": ["text"], "range": [1, 1 + 1e-13]},
            "26 numbers from 1 to 1.0000000000001 do not differ in 11 digits",
        ),
    ],
)
def test_columns_and_ranges_that_cannot_be_written_are_refused_by_name(task, says, text_project):
    metric = "rmse" if task["kind"] == "regression" else "accuracy"
    labels = {"labels": ["bad", "good"]} if task["kind"] == "classification" else {}
    task = {**task, **labels, "metrics": [metric], "primary": metric}
    with pytest.raises(ConfigError, match=re.escape(says)):
        text_project.load("tasks.suite=null", f"tasks.define={json.dumps({'mine': task})}")


def test_a_text_to_write_may_be_asked_with_a_column_of_any_plain_name(text_project):
    task = {"kind": "generation", "inputs": ["options"], "metrics": ["rouge_l"], "primary": "rouge_l"}
    recipe = text_project.load("tasks.suite=null", f"tasks.define={json.dumps({'mine': task})}")
    form, row = TEXT_FORMS["generation"], {"texts": ["so it is"], "label": "x"}
    prompt = form.prompt(recipe.task_specs()["mine"], recipe.text_to_text().templates["mine"], "mine", row)
    assert prompt == "options: so it is\nAnswer:"


def test_an_input_column_goes_before_the_field_of_its_name(text_project):
    task = {"kind": "multiple_choice", "inputs": ["choices"], "choices": "others", "metrics": ["accuracy"]}
    define = f"tasks.define={json.dumps({'mine': {**task, 'primary': 'accuracy'}})}"
    given = "tasks.options={mine: {template: {prompt: 'asked: {choices}'}}}"
    recipe = text_project.load("tasks.suite=null", define, given)
    form, row = TEXT_FORMS["multiple_choice"], {"texts": ["which?", "this", "that"], "label": 0}
    prompt = form.prompt(recipe.task_specs()["mine"], recipe.text_to_text().templates["mine"], "mine", row)
    assert prompt == "asked: which?"


def test_names_for_fewer_choices_than_a_row_has_are_refused(text_project):
    task = {
        "kind": "multiple_choice",
        "inputs": ["question"],
        "choices": ["first", "second", "third"],
        "metrics": ["accuracy"],
        "primary": "accuracy",
    }
    define = ["tasks.suite=null", f"tasks.define={json.dumps({'pick': task})}"]
    text_project.load(*define, "tasks.options={pick: {template: {prompt: '{question}', options: [a, b, c]}}}")
    with pytest.raises(ConfigError, match="options must be 3 names, one of each column of choices"):
        text_project.load(*define, "tasks.options={pick: {template: {prompt: '{question}', options: [a, b]}}}")


def test_kinds_without_a_form_as_text_are_refused(text_project):
    task = {
        "kind": "multi_label",
        "inputs": ["text"],
        "labels": ["a", "b"],
        "metrics": ["f1_micro"],
        "primary": "f1_micro",
    }
    with pytest.raises(ConfigError, match="multi_label, which has no answer of a few words"):
        text_project.load("tasks.suite=null", f"tasks.define={json.dumps({'many': task})}")


def test_digests_of_rows_tell_texts_apart(text_project):
    rows = text_project.rows(FEW).split("train")["echo"]
    assert rows.labels.dtype == object
    again = TaskRows("echo", rows.spec, rows.rows, "train")
    assert again.fingerprint() == rows.fingerprint()
    other = rows.rows.map(lambda row: {"label": row["label"] + "s"})
    assert TaskRows("echo", rows.spec, other, "train").fingerprint() != rows.fingerprint()
