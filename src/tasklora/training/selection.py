"""Selection per task: every task keeps the model of its own best evaluation on tune.

RUN/best_per_task/  tasks.json        task → the step of its best evaluation, and its score there
                    step-N/           the model at such a step: adapter and heads, once for all tasks that chose it

A task's own step is where its primary metric on tune was best, the first one of equals. There are at most as many
models as there are tasks, and as evaluations: tasks that chose the same step share one.

While a run goes on, the choices follow from the evaluations in the Trainer's state, which every checkpoint holds, and a
model is removed only once no checkpoint needs it any more. So a run that is resumed chooses among the very evaluations
that one without interruption has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from tasklora.errors import CheckpointError
from tasklora.evaluation import SplitScores, TaskChoice, write_text_whole
from tasklora.tasks import Split, Strict, parse
from tasklora.tasks.metrics import METRICS
from tasklora.tasks.saved_model import MODEL_FILE, read_json
from tasklora.tasks.whole_files import remove_folder
from tasklora.training.workload import Workload
from tasklora.tuner.sharding import is_sharded

CHOICES_FILE = "tasks.json"
STEP_PREFIX = "step-"


class Choices(Strict):
    """Content of ``tasks.json``.

    Attributes:
        tasks: task → its choice. A task whose primary metric was never defined on tune has none.
    """

    format: Literal["tasklora/best-per-task"] = "tasklora/best-per-task"
    version: Literal[1] = 1
    tasks: dict[str, TaskChoice] = {}


def step_folder(folder: Path, step: int) -> Path:
    """Return where the model of a step is."""
    return folder / f"{STEP_PREFIX}{step}"


def read_choices(folder: Path) -> dict[str, TaskChoice]:
    """Return the choice of each task of a finished run; empty for a run that was made without.

    Args:
        folder: its ``best_per_task``.

    Raises:
        CheckpointError: if the file is damaged.
    """
    path = folder / CHOICES_FILE
    return parse(Choices, read_json(path), str(path)).tasks if path.is_file() else {}


class BestPerTask(TrainerCallback):
    """Keeps the model of each task's best evaluation.

    Args:
        folder: ``RUN/best_per_task``.
        primaries: task → its primary metric.
        save: writes the model in training into a directory.

    Attributes:
        choices: task → its choice so far.
    """

    def __init__(self, folder: Path, primaries: Mapping[str, str], save: Callable[[Path], None]) -> None:
        self.folder = folder
        self.primaries = primaries
        self.save = save
        self.choices: dict[str, TaskChoice] = {}
        self._chosen_at: dict[int, set[int]] = {}  # step of an evaluation → the steps chosen after it

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Choose among the evaluations that a resumed run has behind it.

        Raises:
            CheckpointError: if a model that was chosen is gone.
        """
        self.choices, self._chosen_at = {}, {0: set()}
        for record in state.log_history:
            self._choose(record, record["step"])
        for name, choice in self.choices.items():
            if not (step_folder(self.folder, choice.step) / MODEL_FILE).is_file():
                raise CheckpointError(
                    f"{step_folder(self.folder, choice.step)} is gone, the model of {name}'s best step so far. Restore "
                    "it, or start a new run."
                )
        if state.is_world_process_zero:
            self._prune(args)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Any = None,
        model: Any = None,
        **_: Any,
    ) -> None:
        """Write the model if it is the best so far of any task."""
        is_best = self._choose(metrics or {}, state.global_step)
        if is_best and (state.is_world_process_zero or is_sharded(model)):
            self.save(step_folder(self.folder, state.global_step))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Remove models that no checkpoint needs."""
        if state.is_world_process_zero:
            self._prune(args)

    def write(self) -> None:
        """Write ``tasks.json``."""
        self.folder.mkdir(exist_ok=True)
        write_text_whole(self.folder / CHOICES_FILE, Choices(tasks=self.choices).model_dump_json(indent=2) + "\n")

    def keep_chosen(self) -> None:
        """Remove all models but those that were chosen in the end."""
        self._keep({choice.step for choice in self.choices.values()})

    def _choose(self, metrics: Mapping[str, Any], step: int) -> bool:
        """Take note of an evaluation; return whether it is the best so far of any task."""
        if "eval_average" not in metrics:
            return False
        found = False
        for name, primary in self.primaries.items():
            value = metrics.get(f"eval_{name}_{primary}")
            if value is None:
                continue  # undefined on its tune rows
            score = float(value) if METRICS[primary].higher_is_better else -float(value)
            best = self.choices.get(name)
            if best is None or score > best.tune_score:
                self.choices[name] = TaskChoice(step=step, tune_score=score)
                found = True
        self._chosen_at[step] = {choice.step for choice in self.choices.values()}
        return found

    def _prune(self, args: TrainingArguments) -> None:
        """Keep what the choices need, those now and those as they were at each checkpoint that is there."""
        needed = {choice.step for choice in self.choices.values()}
        for checkpoint in Path(str(args.output_dir)).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            at = checkpoint.name.rpartition("-")[2]
            before = [step for step in self._chosen_at if at.isdigit() and step <= int(at)]
            needed |= self._chosen_at[max(before)] if before else set()
        self._keep(needed)

    def _keep(self, steps: Collection[int]) -> None:
        names = {f"{STEP_PREFIX}{step}" for step in steps}
        for path in self.folder.glob(f"*{STEP_PREFIX}*"):  # also the scratch folder of a write that was cut off
            if path.name not in names:
                remove_folder(path)


def score_choices(
    work: Workload, split: Split, best: SplitScores | None, folder: Path, choices: Mapping[str, TaskChoice]
) -> SplitScores:
    """Return the scores of a split, each task with the model of its own best step.

    The weights of the prepared model are others afterwards.

    Args:
        work: the workload, its rows loaded; its model holds the weights that tasks without a choice are scored with.
        split: which split.
        best: scores of these weights, if they are known; otherwise they are scored where needed.
        folder: ``RUN/best_per_task``.
        choices: task → its choice.
    """
    found = {}
    without = [name for name in work.specs if name not in choices]
    if without:
        found.update((best or work.score(split, tasks=without)).tasks)
    for step in sorted({choice.step for choice in choices.values()}):
        work.load(step_folder(folder, step))
        found.update(work.score(split, tasks=[name for name in choices if choices[name].step == step]).tasks)
    return SplitScores.of({name: found[name] for name in work.specs})
