"""A run that extends another: its tasks get what is their own, and the other tasks keep their numbers bit by bit."""

import pytest
import torch

from helpers_runs import EVERY_METHOD, mostly_slow, use_method
from tasklora.errors import CheckpointError, ConfigError
from tasklora.evaluation import predict_tasks, read_diagnostics
from tasklora.report.page import write_report
from tasklora.tasks import load_model, read_safetensors
from tasklora.training import RunDirectory, count_recipe_parameters, load_recipe_data, train_recipe

FIRST, THEN = "tasks.include=[mood, heat]", "tasks.include=[answer]"
QUICK = ("training.epochs=1", "tasks.limits={train: 12, tune: 4, validation: 6}")


def trained(project, path, *overrides):
    train_recipe(project.load(FIRST, *QUICK, *overrides), path)
    return path


def predictions(project, run, *tasks):
    """Return the probabilities (or values) that a run's best model gives the validation rows of tasks."""
    model, about, base = load_model(run / "best")
    recipe = project.load(f"tasks.include=[{', '.join(tasks)}]", *QUICK)
    rows = load_recipe_data(recipe, recipe.task_specs()).split("validation")
    found = predict_tasks(model, rows, about.collator(base.tokenizer))
    return {
        task: torch.from_numpy(p.values if p.probabilities is None else p.probabilities) for task, p in found.items()
    }


@pytest.mark.parametrize("method", mostly_slow(EVERY_METHOD, "mtl_lora", "hydra_lora", "heads_only"))
def test_trained_tasks_keep_their_numbers_bit_by_bit(project, tmp_path, method):
    run = trained(project, tmp_path / "first", use_method(method))
    recipe = project.load(THEN, *QUICK, use_method(method), f"extends={run}", "training.learning_rate=0.05")
    results, _ = train_recipe(recipe, tmp_path / "extended")
    assert results.tasks == ["answer"]
    before, after = (predictions(project, each, "mood", "heat") for each in (run, tmp_path / "extended"))
    for task, numbers in before.items():
        assert torch.equal(numbers, after[task])
    for name in ("adapter_model.safetensors", "encoder.safetensors", "heads.safetensors"):
        if not (run / "best" / name).is_file():
            continue
        old, new = (read_safetensors(each / "best" / name) for each in (run, tmp_path / "extended"))
        assert all(torch.equal(tensor, new[key]) for key, tensor in old.items())
        assert all(key.endswith("_new") or key.startswith("answer.") for key in new.keys() - old.keys())
        assert name != "heads.safetensors" or new.keys() > old.keys()
    _, about, _ = load_model(tmp_path / "extended" / "best")
    assert list(about.tasks) == ["mood", "heat", "answer"]


@pytest.mark.parametrize("method", ["mtl_lora", "per_task_lora", "lora"])
def test_only_what_is_the_new_tasks_own_is_trained(project, tmp_path, method):
    run = trained(project, tmp_path / "first", use_method(method))
    recipe = project.load(THEN, *QUICK, use_method(method), f"extends={run}")
    counts = count_recipe_parameters(recipe)
    fresh = count_recipe_parameters(project.load(THEN, use_method(method))).groups  # one task
    assert counts.groups == {**fresh, "shared": 0}


def test_what_is_reported_is_of_the_new_tasks(project, tmp_path):
    run = trained(project, tmp_path / "first")
    recipe = project.load(THEN, *QUICK, f"extends={run}")
    train_recipe(recipe, tmp_path / "extended")
    for layers in read_diagnostics(tmp_path / "extended" / "diagnostics.json").per_task.values():
        assert all(len(tasks) == 1 for tasks in layers.values())
    assert "answer" in write_report([tmp_path / "extended"], tmp_path / "page.html").read_text()


def test_a_run_is_extended_twice_and_exported(project, tmp_path):
    from tasklora.export import export_task

    run = trained(project, tmp_path / "one", "tasks.include=[mood]")
    for name, task in (("two", "heat"), ("three", "answer")):
        train_recipe(project.load(f"tasks.include=[{task}]", *QUICK, f"extends={run}"), tmp_path / name)
        run = tmp_path / name
    for earlier, task in (("one", "mood"), ("two", "heat")):
        first, last = (predictions(project, tmp_path / each, task)[task] for each in (earlier, "three"))
        assert torch.equal(first, last)
    model, about, _ = load_model(run / "best")
    assert model.encoder.active_peft_config.tasks == ["mood", "heat", "answer"]
    export_task(model, about, "answer", tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_an_interrupted_extension_is_resumed_from_its_own_recipe(project, tmp_path):
    run = trained(project, tmp_path / "first")
    recipe = project.load(THEN, *QUICK, f"extends={run}")
    whole, _ = train_recipe(recipe, tmp_path / "whole")
    assert RunDirectory(tmp_path / "whole").recipe().extends == str(run)
    train_recipe(recipe, tmp_path / "cut")
    (tmp_path / "cut" / "results.json").unlink()
    resumed, _ = train_recipe(recipe, tmp_path / "cut", resume=True)
    assert resumed.scores == whole.scores


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("tasks.include=[heat, answer]",), "has the tasks heat already"),
        ((THEN, "model.pooling=cls"), r"model.pooling: 'cls', the run's is 'mean'"),
        ((THEN, use_method("ta_lora")), r"method.name: 'ta_lora', the run's is 'mtl_lora'"),
        ((THEN, "method.r=3"), r"method.r: 3, the run's is"),
    ],
)
def test_what_cannot_be_extended(project, tmp_path, overrides, says):
    run = trained(project, tmp_path / "first")
    with pytest.raises(ConfigError, match=says):
        train_recipe(project.load(*QUICK, *overrides, f"extends={run}"), tmp_path / "extended")
    assert not (tmp_path / "extended").exists()


def test_there_must_be_a_run(project, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere is no run directory"):
        train_recipe(project.load(THEN, f"extends={tmp_path / 'nowhere'}"), tmp_path / "extended")
