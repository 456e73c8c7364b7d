"""Selection per task: each task keeps the model of its own best evaluation, also over interrupts; no others stay."""

import dataclasses
import json
import os
import shutil
import signal

import pytest
import torch

from helpers_runs import TASKS, AtStep, assert_same_state, log_of, mostly_slow, randomise, use_method
from tasklora.errors import CheckpointError, ConfigError, InterruptedRun
from tasklora.evaluation import RunResults
from tasklora.report.loading import load_source
from tasklora.report.page import render
from tasklora.tasks import load_model, read_safetensors, save_model
from tasklora.tasks.metrics import METRICS
from tasklora.training import MultiTaskTrainer, RunDirectory, train_recipe, workload_of

PER_TASK = ("training.selection=per_task", "training.evaluate_every=3", "model.head_dropout=0.3")
PRIMARY = {"mood": "accuracy", "answer": "f1_macro", "heat": "pearson"}


def weights_of(directory):
    files = directory.glob("*.safetensors")
    return {f"{file.name}/{key}": value for file in files for key, value in read_safetensors(file).items()}


def spoil(task):
    """Return an action that makes a task's head useless, so that its best step stays an early one."""

    def action(model, **_):
        with torch.no_grad():
            model.heads[task].linear.weight.copy_(-5 * model.heads[task].linear.weight)

    return action


CAUSES = [(4, spoil("mood")), (10, spoil("heat"))]


def causes():
    return [AtStep(step, action) for step, action in CAUSES]


def chosen_of(run):
    return {
        name: (choice["step"], choice["tune_score"])
        for name, choice in json.loads((run / "best_per_task" / "tasks.json").read_text())["tasks"].items()
    }


def best_of_log(run):
    """Return each task's first best step and score, from the log alone."""
    records = {record["step"]: record for record in log_of(run) if "eval_average" in record}
    found = {}
    for task, primary in PRIMARY.items():
        key = f"eval_{task}_{primary}"
        scores = {step: record[key] for step, record in sorted(records.items()) if record.get(key) is not None}
        if scores:
            best = max(scores, key=lambda step: (scores[step], -step))
            found[task] = (best, scores[best])
    return found


@pytest.fixture(scope="module")
def whole(project, tmp_path_factory):
    """Return an uninterrupted run of 16 steps with its results."""
    path = tmp_path_factory.mktemp("whole") / "run"
    results, _ = train_recipe(project.load(*PER_TASK), path, callbacks=causes())
    return path, results


def test_each_task_has_the_step_that_the_log_says(whole):
    path, results = whole
    assert chosen_of(path) == best_of_log(path)
    steps = {step for step, _ in chosen_of(path).values()}
    assert len(steps) > 1  # the heads were spoilt at different times
    assert {folder.name for folder in (path / "best_per_task").iterdir()} == {
        "tasks.json",
        *(f"step-{step}" for step in steps),
    }
    assert {name: choice.step for name, choice in results.per_task.choices.items()} == {
        name: step for name, (step, _) in chosen_of(path).items()
    }


def test_a_tasks_model_scores_as_it_did_when_it_was_chosen(whole):
    path, _ = whole
    run = RunDirectory(path)
    for task, (step, score) in chosen_of(path).items():
        assert run.model(task) == path / "best_per_task" / f"step-{step}"
        work = workload_of(run.recipe())
        work.take(*load_model(run.model(task)))
        work.load_data(["tune"])
        assert work.score("tune", tasks=[task]).tasks[task].score == pytest.approx(score, abs=1e-6)
    assert run.model() == path / "best"
    assert run.model("nonesuch") == path / "best"


def test_the_results_hold_both_choices_on_the_report_split(whole, project):
    path, results = whole
    assert RunResults.read(path / "results.json") == results
    run, scores = RunDirectory(path), results.per_task.scores["validation"]
    for task in TASKS:
        work = workload_of(run.recipe())
        work.take(*load_model(run.model(task)))
        work.load_data(["validation"])
        assert work.score("validation", tasks=[task]).tasks[task].metrics == pytest.approx(scores.tasks[task].metrics)
    defined = [score.score for score in scores.tasks.values() if score.score is not None]
    assert scores.average == pytest.approx(sum(defined) / len(defined))
    plain = project.load(*PER_TASK, "training.selection=average")
    other, _ = train_recipe(plain, path.parent / "average", callbacks=causes())
    assert other.scores == results.scores  # the choice of the average is the same with and without
    assert other.per_task is None
    assert not (path.parent / "average" / "best_per_task").exists()
    assert RunDirectory(path.parent / "average").model("mood") == path.parent / "average" / "best"


def ctrl_c(**_):
    os.kill(os.getpid(), signal.SIGINT)


def interrupt(recipe, run, step):
    """Train until Ctrl-C comes at a step."""
    with pytest.raises(InterruptedRun):
        train_recipe(recipe, run, callbacks=[*causes(), AtStep(step, ctrl_c)])


def assert_same_choices(one, other):
    assert chosen_of(one) == chosen_of(other)
    folders = [sorted(path.name for path in (run / "best_per_task").iterdir()) for run in (one, other)]
    assert folders[0] == folders[1]
    for folder in (name for name in folders[0] if name.startswith("step-")):
        assert_same_state(weights_of(one / "best_per_task" / folder), weights_of(other / "best_per_task" / folder))


@pytest.mark.parametrize("step", mostly_slow([2, 6, 11, 16], 6))
def test_a_resumed_run_chooses_what_an_uninterrupted_one_does(project, whole, tmp_path, step):
    run = tmp_path / "run"
    interrupt(project.load(*PER_TASK), run, step)
    results, _ = train_recipe(project.load(), run, resume=True, callbacks=causes())
    assert_same_choices(run, whole[0])
    assert results.per_task == whole[1].per_task


def test_a_crash_between_evaluation_and_checkpoint_forgets_what_came_after_it(project, whole, tmp_path, monkeypatch):
    """What was chosen after the last checkpoint belongs to steps that the resumed run makes again, or never does."""
    run, lucky = tmp_path / "run", []
    accuracy, save = METRICS["accuracy"], MultiTaskTrainer._save_checkpoint

    def score(*answers):
        return 1.5 if lucky else accuracy.compute(*answers)

    def crash(self, *arguments):
        if lucky:
            raise RuntimeError("power cut")
        save(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(MultiTaskTrainer, "_save_checkpoint", crash)
        patch.setitem(METRICS, "accuracy", dataclasses.replace(accuracy, compute=score))  # better than it can be
        with pytest.raises(RuntimeError, match="power cut"):
            train_recipe(project.load(*PER_TASK), run, callbacks=[*causes(), AtStep(11, lambda **_: lucky.append(1))])
    assert (run / "best_per_task" / "step-12").is_dir()
    (run / "best_per_task" / ".step-12-cut-off").mkdir()
    train_recipe(project.load(), run, resume=True, callbacks=causes())
    assert_same_choices(run, whole[0])


def test_a_passed_over_checkpoint_finds_the_models_of_the_one_before(project, whole, tmp_path):
    run = tmp_path / "run"
    interrupt(project.load(*PER_TASK), run, 13)
    newest = RunDirectory(run).latest_checkpoint()
    assert newest.name == "checkpoint-13"
    (newest / "trainer_state.json").write_text("{")
    train_recipe(project.load(), run, resume=True, callbacks=causes())
    assert_same_choices(run, whole[0])


def test_a_model_that_was_removed_is_missed_before_the_first_step(project, tmp_path):
    run = tmp_path / "run"
    interrupt(project.load(*PER_TASK), run, 4)
    shutil.rmtree(run / "best_per_task" / "step-3")
    with pytest.raises(CheckpointError, match=r"step-3 is gone, the model of mood's best step so far"):
        train_recipe(project.load(), run, resume=True)


def test_no_more_models_are_there_than_checkpoints_need(project, tmp_path):
    """Every evaluation is better than the one before, for all tasks; the models of earlier ones go."""
    seen = []

    def look(**_):
        folder = tmp_path / "run" / "best_per_task"
        seen.append(len(list(folder.glob("step-*"))) if folder.is_dir() else 0)

    recipe = project.load("training.selection=per_task", "training.evaluate_every=1", "training.epochs=3")
    train_recipe(recipe, tmp_path / "run", callbacks=[AtStep(step, look) for step in range(1, 25)])
    assert max(seen) <= 3 * len(TASKS)  # now, and at each of the two checkpoints that are kept
    steps = {step for step, _ in chosen_of(tmp_path / "run").values()}
    assert len(list((tmp_path / "run" / "best_per_task").glob("step-*"))) == len(steps)


def test_a_task_without_any_score_falls_back_to_the_model_of_all(project, tmp_path):
    def flatten(model, **_):
        with torch.no_grad():
            model.heads["heat"].linear.weight.zero_()

    recipe = project.load(
        *PER_TASK, "tasks.include=[mood, heat]", "training.max_steps=3", "training.learning_rate=1e-30"
    )
    results, _ = train_recipe(recipe, tmp_path / "run", callbacks=[AtStep(3, flatten)])
    assert set(results.per_task.choices) == {"mood"}
    assert RunDirectory(tmp_path / "run").model("heat") == tmp_path / "run" / "best"
    assert set(results.per_task.scores["validation"].tasks) == {"mood", "heat"}
    assert results.per_task.scores["validation"].undefined == ["heat"]


def test_a_whole_encoder_is_not_kept_per_task(project, tmp_path):
    with pytest.raises(ConfigError, match=r"'full_fine_tuning' trains the whole encoder.*Take selection: average"):
        train_recipe(project.load(*PER_TASK, use_method("full_fine_tuning")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_choice_is_named(whole, tmp_path):
    run = shutil.copytree(whole[0], tmp_path / "run")
    (run / "best_per_task" / "tasks.json").write_text('{"tasks": {"mood": {"step": "x"}}}')
    with pytest.raises(ConfigError, match=r"tasks.json: 'tasks.mood.step'"):
        RunDirectory(run).model("mood")


# --- the command line


@pytest.fixture
def run(whole, tmp_path):
    """Return a copy of the run whose models answer differently: each step's weights are random ones of their own."""
    copy = shutil.copytree(whole[0], tmp_path / "copy")
    for place, folder in enumerate([copy / "best", *sorted((copy / "best_per_task").glob("step-*"))]):
        model, about, _ = load_model(folder)
        randomise(model, seed=place)
        save_model(model, about, folder)
    return copy


def test_export_takes_each_tasks_own_step_and_says_so(cli, run, tmp_path):
    for merged in (False, True):
        for task, (step, _) in chosen_of(run).items():
            flags = ["--merged"] if merged else []
            said = cli("export", run, "--task", task, "--to", tmp_path / f"{task}{merged}", *flags)
            assert said.code == 0, said.err
            assert f"its own best step, best_per_task/step-{step}" in " ".join(said.out.split())
            model, _, _ = load_model(run / "best_per_task" / f"step-{step}")
            head = read_safetensors(tmp_path / f"{task}{merged}" / "head.safetensors")
            assert torch.equal(head["linear.weight"], model.heads[task].linear.weight)
    said = cli("export", run, "--all", "--to", tmp_path / "all")
    assert said.code == 0, said.err
    for task in TASKS:
        one, other = (
            read_safetensors(tmp_path / name / "adapter_model.safetensors") for name in (f"all/{task}", f"{task}False")
        )
        assert_same_state(one, other)


def test_the_average_choice_is_had_by_its_folder(cli, run, tmp_path):
    said = cli("export", run / "best", "--task", "mood", "--to", tmp_path / "out")
    assert said.code == 0, said.err
    assert "own best step" not in said.out
    model, _, _ = load_model(run / "best")
    head = read_safetensors(tmp_path / "out" / "head.safetensors")
    assert torch.equal(head["linear.weight"], model.heads["mood"].linear.weight)


def test_predict_and_evaluate_take_each_tasks_own_step_and_say_so(cli, run, whole, project):
    text = "the cake was good"
    step, _ = chosen_of(run)["mood"]
    said = cli("predict", run, text, "--task", "mood", "--json")
    assert said.code == 0, said.err
    assert f"mood: its own best step, best_per_task/step-{step}" in said.err
    other = cli("predict", run / "best_per_task" / f"step-{step}", text, "--task", "mood", "--json")
    assert json.loads(said.out) == json.loads(other.out)  # and standard output is JSON alone
    assert "own best" not in other.err
    said = cli("evaluate", whole[0], "--json")
    assert said.code == 0, said.err
    expected = json.loads(whole[1].per_task.scores["validation"].model_dump_json())
    assert json.loads(said.out)["tasks"] == expected["tasks"]
    said = cli("evaluate", whole[0])
    assert "each task at its own best step on tune" in " ".join(said.out.split())


def test_an_unknown_task_is_named_before_anything_is_loaded(cli, run, tmp_path):
    said = cli("export", run, "--task", "modo", "--to", tmp_path / "out")
    assert said.code == 2
    assert "unknown task 'modo'. Did you mean 'mood'?" in said.err


def test_the_report_shows_both_choices(whole):
    page = render(load_source([whole[0]]))
    assert "score at its own step" in page
    assert "own step" in page
    assert f"from step {whole[1].training.best_step}, where" in page
    assert "Neither choice saw validation" in page
    for name, choice in whole[1].per_task.choices.items():
        value = whole[1].per_task.scores["validation"].tasks[name].metrics[PRIMARY[name]]
        assert f'data-value="{value}" class="strong">{value:.3f}</td><td data-value="{choice.step}">' in page
