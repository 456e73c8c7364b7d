"""A thousand tasks in one adapter: trained, scored, saved, loaded, exported and reported like three."""

import io
import random
import re
import time
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from rich.console import Console

from helpers_runs import SUITE, assert_same_state, log_of, tiny_row, trained_state, write_rows
from tasklora.evaluation import SplitScores, TaskScore
from tasklora.export import export_task
from tasklora.report import score_table
from tasklora.report.loading import load_source
from tasklora.report.many_tasks import PICKED, picked_tasks, which, with_tasks
from tasklora.report.page import render
from tasklora.tasks import TaskRows, TaskSpec, load_model, read_safetensors
from tasklora.tasks.saved_model import SavedModel
from tasklora.training import MultiTaskTrainer, RunDirectory, load_recipe, train_recipe
from tasklora.training.run import training_arguments
from tasklora.tuner import MTLLoraConfig

TASKS = 1000


@pytest.mark.slow
def test_a_thousand_tasks_train_and_save_without_special_care(project):
    from peft import get_peft_model

    generator, spec = random.Random(0), TaskSpec.model_validate(SUITE["tasks"]["mood"])
    names = [f"task_{place:04d}" for place in range(TASKS)]
    rows = {
        name: TaskRows(name, spec, Dataset.from_list([tiny_row("mood", generator) for _ in range(3)]), "train")
        for name in names
    }
    recipe = project.load("training.max_steps=20", "training.batch_size=64", "training.evaluate_every=20")
    base = project.base_model()
    config = MTLLoraConfig(tasks=names, r=4, lora_alpha=8, up_projections=2, target_modules=["query", "value"])
    about = SavedModel(
        base=str(project.base),
        fingerprint=base.fingerprint,
        hidden_size=base.hidden_size,
        pooling="mean",
        max_length=24,
        head_dropout=0.0,
        tasks=dict.fromkeys(names, spec),
        pair_encodings=dict.fromkeys(names, "joint"),
    )
    model = about.model_around(get_peft_model(base.model, config))
    before = trained_state(model)
    trainer = MultiTaskTrainer(
        model,
        about,
        training_arguments(recipe, RunDirectory("run")),
        rows,
        rows,
        about.collator(base.tokenizer),
        group_by_length=False,
    )
    began = time.perf_counter()
    trainer.train()
    print(f"20 steps of 64 rows, scoring {3 * TASKS} rows and a checkpoint: {time.perf_counter() - began:.1f} s")
    assert sum(trainer.drawn_rows().values()) == 20 * 64
    checkpoint = Path("run/checkpoints/checkpoint-20")
    assert checkpoint.is_dir()
    trained = trained_state(model)
    assert sum(not torch.equal(before[name], trained[name]) for name in trained) > 1.2 * TASKS  # heads that were drawn
    loaded, saved, _ = load_model(checkpoint)
    assert list(saved.tasks) == names
    assert_same_state(dict(loaded.heads.state_dict()), dict(model.heads.state_dict()))
    one = export_task(loaded, saved, "task_0500", "exported")
    assert read_safetensors(one / "adapter_model.safetensors")
    print(f"checkpoint: {sum(file.stat().st_size for file in checkpoint.iterdir()) / 2**20:.1f} MiB")


def recipe_of_many(project, folder, count):
    """Return a recipe of tasks of one's own, each with a file of six rows, and their names."""
    generator, names = random.Random(0), [f"task_{place:04d}" for place in range(count)]
    define = {}
    for name in names:
        path = write_rows(folder / f"{name}.jsonl", [tiny_row("mood", generator) for _ in range(6)])
        define[name] = {**SUITE["tasks"]["mood"], "files": str(path)}
    content = {**yaml.safe_load(project.recipe.read_text()), "tasks": {"define": define}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    settings = ["max_steps=4", "batch_size=64", "logging_steps=2", "evaluate_every=4"]
    return load_recipe(folder / "recipe.yaml", [f"training.{setting}" for setting in settings]), names


def check_a_run_of_many(project, folder, count):
    """Train a recipe of so many tasks, save, load and report it."""
    recipe, names = recipe_of_many(project, folder, count)
    said, began = io.StringIO(), time.perf_counter()
    results, prepared = train_recipe(recipe, folder / "run", console=Console(file=said, width=100))
    print(f"{count} tasks, 4 steps and two scorings: {time.perf_counter() - began:.1f} s")
    assert len(said.getvalue().splitlines()) < 20
    assert max(map(len, said.getvalue().splitlines())) <= 100
    assert list(results.scores["validation"].tasks) == names
    assert sum(results.training.rows_drawn.values()) == 4 * 64
    logged = [record for record in log_of(folder / "run") if "loss" in record]
    assert all(1 < sum(key.startswith("loss/") for key in record) <= 128 for record in logged)  # the tasks drawn
    loaded, saved, _ = load_model(folder / "run" / "best")
    assert list(saved.tasks) == names
    assert_same_state(dict(loaded.heads.state_dict()), dict(prepared.model.heads.state_dict()))

    began = time.perf_counter()
    source = load_source([folder / "run"])
    page = render(source)
    print(f"report: {time.perf_counter() - began:.1f} s, {len(page) / 2**20:.2f} MiB")
    assert len(page) < 600_000 + 3_000 * count
    heights = [float(height) for height in re.findall(r'<svg[^>]*height="([\d.]+)', page)]
    assert heights
    assert max(heights) < 1500
    note = f"Shown are {PICKED} of {count:,} tasks: those with the lowest and the highest scores."
    assert page.count(note) >= 4  # scores, both curves, errors
    table = page.split('id="table-tasks"')[1].split("</table>")[0]
    assert all(f">{name}<" in table for name in names)
    return results


@pytest.mark.slow
@pytest.mark.parametrize("count", [66, TASKS])
def test_a_recipe_of_very_many_tasks_trains_saves_and_reports(project, tmp_path, count):
    check_a_run_of_many(project, tmp_path, count)


def scores_of(count):
    """Return scores of so many tasks, higher ones for later tasks, the third without any."""
    tasks = {
        f"t{place}": TaskScore(rows=3, metrics={"accuracy": value}, primary="accuracy", score=value, loss=1.0)
        for place, value in enumerate(place / count for place in range(count))
    }
    undefined = {"metrics": {"accuracy": None}, "score": None}
    return SplitScores.of({**tasks, "t2": tasks["t2"].model_copy(update=undefined)})


def test_the_table_of_very_many_tasks_has_the_worst_and_the_best():
    said = io.StringIO()
    console = Console(file=said, width=100)
    console.print(score_table({"validation": scores_of(1000)}, "many"))
    shown = re.findall(r"^│ (t\d+) ", said.getvalue(), re.MULTILINE)
    assert shown == [*(f"t{place}" for place in range(12)), *(f"t{place}" for place in range(988, 1000))]
    assert "24 of 1,000 tasks" in said.getvalue()
    console.file = few = io.StringIO()
    console.print(score_table({"validation": scores_of(64)}, "few"))
    assert len(re.findall(r"^│ (t\d+) ", few.getvalue(), re.MULTILINE)) == 64


def test_what_is_shown_of_many_tasks_is_theirs(trained, tmp_path):
    """Names, scores and diagnostics of the picked tasks stay together."""
    source = load_source([trained.path])
    assert with_tasks(source, picked_tasks(source)) is source
    assert which(source) == ""
    two = with_tasks(source, ["mood", "heat"])
    assert list(two.results.metrics) == ["mood", "heat"]
    assert list(two.results.methods[0].tasks) == ["mood", "heat"]
    assert two.results.methods[0].average == source.results.methods[0].average
    whole, part = source.shown.diagnostics, two.shown.diagnostics
    assert part.tasks == ["mood", "heat"]
    for name, layers in whole.per_task.items():
        for layer, (mood, _, heat) in layers.items():
            assert part.per_task[name][layer] == [mood, heat]
