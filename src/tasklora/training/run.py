"""A run: from a recipe to a directory that holds everything about it (see :class:`RunDirectory`)."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments, set_seed
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from tasklora.errors import InterruptedRun, OutputError
from tasklora.evaluation import (
    PerTaskResults,
    RunResults,
    SplitScores,
    TrainingSummary,
    count_parameters,
    diagnose,
    gathered_updates,
    machine_description,
    package_versions,
    peak_memory,
    source_commit,
    write_diagnostics,
    write_text_whole,
)
from tasklora.tasks.whole_files import writing
from tasklora.training.base_trainer import TasksTrainer
from tasklora.training.callbacks import (
    JsonLog,
    LastStepLog,
    ProgressBar,
    ProgressDisplay,
    StepClock,
    StopOnInterrupt,
    check_reporters,
)
from tasklora.training.dense_recipe import DenseRecipe, DenseTrainingSection
from tasklora.training.dense_workload import DensePrepared
from tasklora.training.directory import RunDirectory
from tasklora.training.faults import explained
from tasklora.training.preparing import Prepared
from tasklora.training.processes import Processes, check_alone, check_launcher
from tasklora.training.recipe import Recipe
from tasklora.training.selection import BestPerTask, score_choices
from tasklora.training.sharding import Sharding, unseen_by_accelerate
from tasklora.training.workload import Workload
from tasklora.training.workloads import workload_of
from tasklora.tuner.card import CardScores, write_scores


def train_recipe(
    recipe: Recipe | DenseRecipe,
    output: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    command: str | None = None,
    console: Console | None = None,
    score_untrained: bool = False,
    callbacks: list[TrainerCallback] | None = None,
    progress: ProgressDisplay | None = None,
) -> tuple[RunResults, Prepared | DensePrepared]:
    """Train a recipe of either shape into a run directory.

    In a group of processes (torchrun, accelerate launch) each calls this; the main one writes, and all return the same.
    Where the launcher asks for FSDP2, the model that is returned is sharded: all processes run it together, or none.

    Args:
        recipe: what to run.
        output: the run directory.
        overwrite: replace a run that is there.
        resume: go on from the newest complete checkpoint.
        command: the command line to note; this process's by default.
        console: where progress goes; a quiet one by default.
        score_untrained: score the report split before training too.
        callbacks: further Trainer callbacks.
        progress: a display to show the steps on, where several runs share one.

    Returns:
        The results, as written to results.json, and the trained model.

    Raises:
        OutputError: if the directory cannot be used.
        CheckpointError: if a run to resume no longer has its rows, base or tasks.
        ConfigError: if the recipe cannot be run as it is, also where `report_to` names what is not there, or the
            launcher wants another precision.
        UnsupportedError: on images in a group of processes; under DeepSpeed; under FSDP, if it is not FSDP2 or the
            recipe needs whole parameters while it trains.
        NonFiniteLossError: if the loss becomes NaN; the last good checkpoint is kept.
        MemoryRanOutError: saying what to lower; the run can be resumed.
        WorkerDiedError: if a process that loads images died; the run can be resumed.
        InterruptedRun: on Ctrl-C; the run can be resumed.
    """
    if recipe.shape == "dense":
        check_alone("a run on images")
    sharding = Sharding.of_launcher()
    processes = Processes()
    console = console if console and processes.is_main else Console(quiet=True)
    command = command or shlex.join(["tasklora", *sys.argv[1:]])
    commit = source_commit()  # now: the source may change while the run goes on
    run = RunDirectory(output)
    checkpoint = None
    if resume:
        recipe = run.recipe()
        if run.results.is_file():
            raise OutputError(
                f"{run.path} is finished already; there is nothing to resume. `tasklora report {run.path}` writes its "
                "report anew."
            )
        command = str(run.manifest()["command"])
        processes.on_main(run.tidy)
        checkpoint = run.latest_checkpoint()
        going_on = f"from {checkpoint.name}" if checkpoint else "from the beginning: there is no complete checkpoint"
        console.print(f"resuming {run.path} {going_on}", highlight=False)
    else:
        processes.on_main(lambda: run.check_free(overwrite))
    check_launcher(recipe.training.precision)
    check_reporters(recipe.training.report_to)
    if sharding is not None:
        sharding.check(recipe)
    work = workload_of(recipe)
    split = recipe.tasks.report_on
    # before anything is written: bad data leaves no half-made run
    processes.main_first(lambda: work.load_data(["train", "tune", split]))
    with unseen_by_accelerate():
        work.prepare()
    if sharding is not None:
        sharding.check_model(work.prepared.model)
    if recipe.training.balancing is not None:
        recipe.training.balancing.check(work.prepared.model, list(work.specs))
    fingerprints = work.fingerprints()
    if not resume:
        processes.on_main(lambda: run.create(recipe, command, fingerprints, overwrite))
    else:
        run.check_resumable(recipe, fingerprints)
    also = callbacks or []
    with explained(run, recipe):
        results = _train(
            recipe,
            run,
            work,
            processes,
            console,
            checkpoint,
            command,
            commit,
            score_untrained,
            also,
            progress,
            sharding,
        )
    return results, work.prepared


def _train(
    recipe: Recipe | DenseRecipe,
    run: RunDirectory,
    work: Workload,
    processes: Processes,
    console: Console,
    checkpoint: Path | None,
    command: str,
    commit: str | None,
    score_untrained: bool,
    callbacks: list[TrainerCallback],
    progress: ProgressDisplay | None,
    sharding: Sharding | None,
) -> RunResults:
    """Train what was prepared, score it, and write what came out."""
    split = recipe.tasks.report_on
    untrained: dict[Any, SplitScores] = {}
    if score_untrained:
        untrained[split] = work.score(split)
        set_seed(recipe.training.seed)

    if recipe.training.gradient_checkpointing:
        work.checkpoint_activations()
    if sharding is not None:
        sharding.shard(work.prepared.model)
    interrupt, bar, clock = StopOnInterrupt(processes), ProgressBar(console, progress), StepClock()
    selection = _best_per_task(recipe, run, work)
    watching = [
        LastStepLog(),
        JsonLog(run.log),
        bar,
        *_early_stopping(recipe),
        *([selection] if selection else []),
        *callbacks,
        interrupt,
        clock,
        *work.measuring(run),
    ]
    with unseen_by_accelerate():
        trainer = work.trainer(training_arguments(recipe, run), watching)
    for default in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(default)
    for reporter in trainer.callback_handler.callbacks:
        if isinstance(reporter, TensorBoardCallback) and reporter.logging_dir is None:  # the environment says nothing
            reporter.logging_dir = str(run.tensorboard)
    started = time.perf_counter()
    seconds_before = _seconds_so_far(run)
    try:
        with interrupt.listening():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        bar.stop()
        seconds = seconds_before + time.perf_counter() - started
        if processes.is_main:
            with contextlib.suppress(OSError):  # a full disk must not hide what went wrong before
                write_text_whole(run.path / ".seconds", f"{seconds:.3f}\n")
    if interrupt.interrupted:
        raise InterruptedRun(
            f"interrupted at step {trainer.state.global_step}; a checkpoint is kept. "
            f"Go on with: tasklora train --resume {run.path}"
        )
    if not (processes.is_main or sharding):
        processes.wait()
        work.load(run.best)
        return RunResults.read(run.results)
    # The main process alone, or where the model is sharded all of them together, of which the main one writes.
    with writing("the model", run.final):
        work.save(run.final)
    if selection and processes.is_main:
        selection.write()
    best = _best_checkpoint(trainer, run)
    if best is not None:
        work.load(best)
    with writing("the model", run.best):
        work.save(run.best)
    console.print(f"scoring {split} …", highlight=False)
    started = time.perf_counter()
    with writing("predictions", run.predictions):
        scores = work.score(split, run.predictions if processes.is_main else None)
    model = work.prepared.model
    with gathered_updates(model):
        if processes.is_main:
            write_diagnostics(run.diagnostics, diagnose(model, work.diagnosed_tasks(), list(work.specs)))
    per_task = None
    if selection:
        chosen = score_choices(work, split, scores, selection.folder, selection.choices)
        per_task = PerTaskResults(choices=selection.choices, scores={split: chosen})
        work.load(run.best)
    if not processes.is_main:
        processes.wait()
        return RunResults.read(run.results)
    results = RunResults(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        commit=commit,
        seed=recipe.training.seed,
        method=recipe.method.name,
        base=work.prepared.about.base,
        suite=recipe.suite().reference,
        tasks=list(work.specs),
        scores={split: scores},
        per_task=per_task,
        untrained=untrained,
        parameters=count_parameters(model),
        training=TrainingSummary(
            steps=trainer.state.global_step,
            epochs=float(trainer.state.epoch or 0),
            best_step=trainer.state.best_global_step,
            best_tune_average=trainer.state.best_metric if trainer.state.best_global_step else None,
            seconds=seconds,
            step_seconds=clock.median(),
            rows_per_task=work.rows_per_task(),
            rows_drawn=trainer.drawn_rows(),
            stopped="finished" if trainer.state.global_step >= trainer.state.max_steps else "early_stopping",
        ),
        evaluation_seconds=time.perf_counter() - started,
        memory=peak_memory(),
        versions=package_versions(),
        machine=machine_description(),
    )
    write_scores(run.best, CardScores(split, {name: s.metrics for name, s in scores.tasks.items()}))
    if selection:
        selection.keep_chosen()
    (run.path / ".seconds").unlink(missing_ok=True)
    with writing("the results", run.results):
        results.write(run.results)  # last of all: a run that has them is finished
    processes.wait()
    return results


def training_arguments(recipe: Recipe | DenseRecipe, run: RunDirectory) -> TrainingArguments:
    """Return transformers' training arguments of a recipe."""
    section = recipe.training
    by_epoch = section.evaluate_every == "epoch"
    return TrainingArguments(
        output_dir=str(run.checkpoints),
        num_train_epochs=section.epochs,
        max_steps=section.max_steps or -1,
        per_device_train_batch_size=section.batch_size,
        per_device_eval_batch_size=section.eval_batch_size,
        gradient_accumulation_steps=section.gradient_accumulation_steps,
        learning_rate=section.learning_rate,
        weight_decay=section.weight_decay,
        warmup_steps=section.warmup_ratio,
        lr_scheduler_type=section.scheduler,
        max_grad_norm=section.max_grad_norm,
        bf16=section.precision == "bfloat16",
        use_cpu=not torch.accelerator.is_available(),  # else transformers refuses bfloat16 where there is only a CPU
        logging_steps=section.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="epoch" if by_epoch else "steps",
        save_strategy="epoch" if by_epoch else "steps",
        eval_steps=None if by_epoch else section.evaluate_every,
        save_steps=500 if by_epoch else section.evaluate_every,
        # With a limit of 1, transformers removes the newest checkpoint on the way out if it is not the best one: an
        # interrupted run could not go on from there.
        save_total_limit=max(section.keep_checkpoints, 2),
        metric_for_best_model="average",
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
        seed=section.seed,
        disable_tqdm=True,
        dataloader_num_workers=section.workers if isinstance(section, DenseTrainingSection) else 0,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=section.report_to or "none",
    )


def _early_stopping(recipe: Recipe | DenseRecipe) -> list[TrainerCallback]:
    patience = recipe.training.early_stopping_patience
    return [EarlyStoppingCallback(patience)] if patience is not None else []


def _best_per_task(recipe: Recipe | DenseRecipe, run: RunDirectory, work: Workload) -> BestPerTask | None:
    if recipe.training.selection == "average":
        return None
    primaries = {name: spec.primary for name, spec in work.specs.items()}
    return BestPerTask(run.best_per_task, primaries, work.save)


def _best_checkpoint(trainer: TasksTrainer, run: RunDirectory) -> Path | None:
    """Return the best checkpoint, found by its step: its recorded path is another one if the run was moved."""
    best = run.checkpoints / f"checkpoint-{trainer.state.best_global_step}"
    return best if best.is_dir() else None


def _seconds_so_far(run: RunDirectory) -> float:
    try:
        return float((run.path / ".seconds").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0.0
