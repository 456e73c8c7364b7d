"""A run is resumed only as what it was: same rows, tasks, base and command; damaged checkpoints are passed over."""

import io
import json

import pytest
from rich.console import Console

from helpers_runs import Project
from tasklora.errors import CheckpointError, InterruptedRun, UnsupportedError
from tasklora.training import RunDirectory, compare_methods, train_recipe
from tasklora.training.callbacks import StopOnInterrupt


@pytest.fixture
def interrupted(project: Project, tmp_path, monkeypatch):
    """A run that was interrupted at its sixth step, with checkpoints at 3 and 6."""
    original = StopOnInterrupt.on_step_end

    def stop(self, args, state, control, **kwargs):
        self.interrupted = state.global_step >= 6
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(StopOnInterrupt, "on_step_end", stop)
    with pytest.raises(InterruptedRun):
        train_recipe(
            project.load("training.evaluate_every=3", "training.max_steps=9"), tmp_path / "run", command="as begun"
        )
    monkeypatch.setattr(StopOnInterrupt, "on_step_end", original)
    return tmp_path / "run"


def test_the_results_keep_the_command_that_began_the_run(interrupted):
    console = Console(record=True, file=io.StringIO(), width=200)
    results, _ = train_recipe(RunDirectory(interrupted).recipe(), interrupted, resume=True, console=console)
    assert "from checkpoint-6" in console.export_text()
    assert results.command == "as begun"
    assert results.training.steps == 9


@pytest.mark.parametrize("split", ["train", "tune", "validation"])
def test_other_rows_are_refused(interrupted, split):
    path = interrupted / "manifest.json"
    manifest = json.loads(path.read_text())
    digests = manifest["training_rows"] if split == "train" else manifest["scored_rows"][split]
    digests["mood"] = "0" * 16
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=f"the {split} rows of mood are no longer those"):
        train_recipe(RunDirectory(interrupted).recipe(), interrupted, resume=True)


def test_another_number_of_processes_is_refused_where_steps_would_have_other_rows(interrupted, monkeypatch):
    monkeypatch.setattr("tasklora.training.directory.process_count", lambda: 2)
    with pytest.raises(CheckpointError, match=r"begun with 16 rows a step, but 2 processes of .*: 16 make 32\."):
        RunDirectory(interrupted).check_resumable(RunDirectory(interrupted).recipe(), {})
    recipe = RunDirectory(interrupted).recipe()
    recipe.training.batch_size = 8
    RunDirectory(interrupted).check_resumable(recipe, {})


def test_a_run_of_an_older_version_noted_training_rows_alone(interrupted):
    path = interrupted / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["scored_rows"], manifest["rows_per_step"]
    path.write_text(json.dumps(manifest))
    results, _ = train_recipe(RunDirectory(interrupted).recipe(), interrupted, resume=True)
    assert results.training.steps == 9


@pytest.mark.parametrize("key", ["fingerprint", "order"])
def test_another_base_and_another_order_of_tasks_are_refused(interrupted, key):
    path = interrupted / "checkpoints" / "checkpoint-6" / "tasklora.json"
    about = json.loads(path.read_text())
    if key == "order":
        about["tasks"] = dict(reversed(about["tasks"].items()))
    else:
        about["fingerprint"] = "0" * 16
    path.write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=f"{key}.*changed since"):
        train_recipe(RunDirectory(interrupted).recipe(), interrupted, resume=True)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "adapter_model.safetensors", "trainer_state.json"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(interrupted, name):
    file = interrupted / "checkpoints" / "checkpoint-6" / name
    file.write_bytes(file.read_bytes()[:40])
    assert RunDirectory(interrupted).latest_checkpoint().name == "checkpoint-3"


def test_a_comparison_by_a_group_of_processes_is_refused(project: Project, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnsupportedError, match="a comparison is made by one process, but the launcher started 2"):
        compare_methods(project.load(), tmp_path / "run", ["lora"], [0])
    assert not (tmp_path / "run").exists()
