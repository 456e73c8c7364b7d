"""Full disks, memory that runs out, workers that die: what is said, what is kept, and that the run goes on."""

import contextlib
import errno
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from helpers_dense import dense_project  # noqa: F401
from helpers_runs import AtStep, assert_same_state, mostly_slow
from tasklora.errors import MemoryRanOutError, OutputError, WorkerDiedError
from tasklora.tasks import read_safetensors
from tasklora.tasks.whole_files import (
    PARTIAL,
    move_folder_into_place,
    remove_folder,
    tidy,
    write_text_whole,
    writing,
)
from tasklora.training import RunDirectory, train_recipe

FULL = Path("/dev/full")


def weights_of(directory):
    files = directory.glob("*.safetensors")
    return {f"{file.name}/{key}": value for file in files for key, value in read_safetensors(file).items()}


@pytest.fixture(scope="module")
def whole(project, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    train_recipe(project.load(), path)
    return path


class SmallFiles(TrainerCallback):
    """From one event on, no file of this process may grow beyond some bytes: what a full disk does to a write.

    Args:
        event: the callback's name.
        step: at which step.
        size: bytes.
    """

    def __init__(self, event, step, size):
        self.hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

        def act(args, state, control, **_):
            if state.global_step == step:
                self.limit(size)

        setattr(self, event, act)

    def limit(self, size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, self.hard))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.limit(resource.RLIM_INFINITY if self.hard == resource.RLIM_INFINITY else self.hard)


@pytest.mark.parametrize(
    ("event", "step", "size", "said"),
    [
        ("on_evaluate", 16, 4000, r"cannot write the checkpoint of step 16 to run/checkpoints: .*checkpoint-8 is kept"),
        ("on_step_end", 11, 1, r"cannot write the log to run/log.jsonl: File too large.*checkpoint-8 is kept"),
        *mostly_slow(
            [
                ("on_train_end", 16, 1000, r"cannot write the model to run/final: .*checkpoint-16 is kept"),
                (
                    "on_evaluate",
                    8,
                    4000,
                    r"cannot write the checkpoint of step 8 .*no checkpoint yet: the run will begin",
                ),
            ]
        ),
    ],
)
def test_a_disk_that_is_full_loses_nothing(project, whole, event, step, size, said):
    with SmallFiles(event, step, size) as small, pytest.raises(OutputError, match=said) as caught:
        train_recipe(project.load(), "run", callbacks=[small])
    assert "Go on with: tasklora train --resume run" in str(caught.value)
    kept = RunDirectory("run").latest_checkpoint()
    assert {path.name for path in Path("run/checkpoints").glob("checkpoint-*")} == ({kept.name} if kept else set()) | (
        {"checkpoint-8"} if step == 16 else set()
    )
    train_recipe(project.load(), "run", resume=True)
    for part in ("final", "best"):
        assert_same_state(weights_of(Path("run") / part), weights_of(whole / part))
    assert [path.name for path in Path("run").rglob(".*")] == []  # nothing is left of what was cut off


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_an_error_of_the_disk_says_what_was_written_and_where():
    with (
        pytest.raises(OutputError, match="cannot write the log to here: No space left on device") as caught,
        writing("the log", Path("here")),
        FULL.open("w") as file,
    ):
        file.write("text")
    assert caught.value.__cause__.errno == errno.ENOSPC
    with pytest.raises(OutputError, match="cannot write weights to /dev/full"), writing("weights", FULL):
        torch.save(torch.zeros(10), FULL)


def test_other_errors_pass():
    with pytest.raises(FileNotFoundError), writing("the log", Path("here")):
        Path("nowhere").read_text()


def test_a_directory_that_cannot_be_written_is_refused_before_training(project, cli):
    if os.geteuid() == 0:  # whom permissions do not stop
        locked = Path("/proc/run")
    else:
        Path("locked").mkdir(mode=0o555)
        locked = Path("locked/run")
    said = cli("train", project.recipe, "--output", locked)
    assert said.code == 2
    assert f"cannot write to {locked}" in said.err
    assert "step" not in said.out


def test_memory_that_ran_out_says_what_to_lower_and_the_run_goes_on_with_it(project, whole):
    def demand(**_):
        torch.empty(2**60, dtype=torch.uint8)

    with pytest.raises(MemoryRanOutError) as caught:
        train_recipe(project.load(), "run", callbacks=[AtStep(10, demand)])
    said = str(caught.value)
    for part in (
        "memory ran out: ",
        "training.batch_size (it is 16; half of it with twice the gradient_accumulation_steps, which are 1, makes the",
        "training.eval_batch_size (it is 64), or turn training.gradient_checkpointing on, in run/recipe.resolved.yaml",
        "In a new run, model.max_length (it is 24) helps most.",
        "checkpoint-8 is kept. Go on with: tasklora train --resume run",
    ):
        assert part in said, said
    recipe = Path("run/recipe.resolved.yaml")
    lowered = recipe.read_text()
    for key, (before, after) in {
        "batch_size": (16, 8),
        "gradient_accumulation_steps": (1, 2),
        "eval_batch_size": (64, 5),
        "gradient_checkpointing": ("false", "true"),
    }.items():
        assert f"  {key}: {before}\n" in lowered
        lowered = lowered.replace(f"  {key}: {before}\n", f"  {key}: {after}\n")
    recipe.write_text(lowered)
    train_recipe(project.load(), "run", resume=True)
    expected = weights_of(whole / "final")
    for name, value in weights_of(Path("run/final")).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


def test_a_worker_that_dies_is_named_and_the_run_goes_on(dense_project, tmp_path):  # noqa: F811
    def kill(**_):
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)

    # Batches enough that the worker is in the midst of its epoch when it dies.
    parts = ("training.workers=1", "training.batch_size=1", "training.augmentation=null", "tasks.include=[depth]")
    recipe = dense_project.load(*parts)
    with pytest.raises(WorkerDiedError) as caught:
        train_recipe(recipe, "run", callbacks=[AtStep(1, kill)])
    assert "a process that loads images died: " in str(caught.value)
    assert "lower training.workers (it is 1; 0 loads in the main process) in run/recipe.resolved.yaml" in str(
        caught.value
    )
    resolved = Path("run/recipe.resolved.yaml")
    resolved.write_text(resolved.read_text().replace("workers: 1", "workers: 0"))
    results, _ = train_recipe(recipe, "run", resume=True)
    assert results.training.stopped == "finished"


# --- files and folders


def test_a_text_file_is_replaced_whole_or_not_at_all(monkeypatch):
    file = Path("results.json")
    write_text_whole(file, "old")

    def power_cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(os, "replace", power_cut)
        write_text_whole(file, "new")
    assert len(os.listdir()) == 2
    assert file.read_text() == "old"
    tidy(Path())
    assert os.listdir() == ["results.json"]


@pytest.mark.parametrize("cut", [1, 2, None])
def test_a_folder_that_replaces_another_is_never_absent(monkeypatch, cut):
    """After any of the two renames of a cut off replacement, tidying up leaves the old folder or the new one."""
    for name, text in (("checkpoint-3", "old"), ("new", "new")):
        Path(name).mkdir()
        (Path(name) / "file").write_text(text)
    real, calls = os.replace, []

    def replace(*arguments):
        calls.append(arguments)
        if len(calls) == cut:
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(os, "replace", replace)
        move_folder_into_place(Path("new"), Path("checkpoint-3"))
    assert len(calls) == (cut or 2)
    tidy(Path())
    assert (Path("checkpoint-3") / "file").read_text() == ("new" if cut is None else "old")
    assert not list(Path().glob(".*"))


def test_what_is_removed_is_never_there_in_part(monkeypatch):
    folder = Path("checkpoint-3")
    folder.mkdir()
    (folder / "one").touch()
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # killed before it does anything
        remove_folder(folder)
    assert os.listdir() == [".checkpoint-3.removed"]
    tidy(Path())
    assert os.listdir() == []


def test_half_a_checkpoint_takes_no_room_once_the_run_goes_on():
    run = RunDirectory("run")
    half = run.checkpoints / PARTIAL / "checkpoint-3"
    half.mkdir(parents=True)
    (half / "optimizer.pt").write_bytes(b"half")
    run.tidy()
    assert os.listdir(run.checkpoints) == []


def test_a_hidden_folder_of_others_stays():
    for name in (".git", ".ipynb_checkpoints"):
        Path(name).mkdir()
    tidy(Path())
    assert sorted(os.listdir()) == [".git", ".ipynb_checkpoints"]


def test_a_run_stopped_before_it_began_is_begun_again_without_overwriting(project, cli):
    run = RunDirectory("run")
    run.create(project.load(), "tasklora train", {"train": {}}, overwrite=False)
    run.recipe_file.unlink()
    said = cli("train", "--resume", "run")
    assert said.code == 2
    assert "It was stopped before it began: start it again as you did." in said.err
    run.check_free(overwrite=False)
    run.recipe_file.touch()
    with pytest.raises(OutputError, match="holds a run already"):
        run.check_free(overwrite=False)
