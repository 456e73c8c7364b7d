"""The directory of a comparison.

COMPARISON/  comparison.json  METHOD-HASH/seed-K/ (each a run)  results.json  report.html

A cell is one run: a method with one setting and one seed. Its folder is named by everything that decides its numbers,
so a comparison that is run again skips the cells that are finished, whatever else was added to it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tasklora.errors import CheckpointError, OutputError
from tasklora.evaluation import SINGLE, write_text_whole
from tasklora.evaluation.results import COMPARISON_FILE, RESULTS_FILE
from tasklora.tasks import Strict, parse
from tasklora.training.dense_recipe import DenseRecipe
from tasklora.training.directory import RunDirectory
from tasklora.training.recipe import Recipe
from tasklora.training.recipes import AnyRecipe, changed
from tasklora.training.search import Settings
from tasklora.training.workload import RowDigests

FAILED_FILE = "failed.json"


class Plan(Strict):
    """Content of comparison.json: what is compared.

    Attributes:
        recipe: the recipe, whose method is the main one.
        methods: names: those of recipes of the shape and their variants, and for text ``lora_matched``.
        seeds: seeds; trials of a search run with the first one.
        search: the grids, as given.
        baseline: the method that the others are measured against.
        training_rows: seed → name → digest of the training rows.
        scored_rows: seed → split → name → digest of the other rows; older versions did not note them.
    """

    format: Literal["tasklora/comparison"] = "tasklora/comparison"
    version: Literal[1] = 1
    created: str
    command: str
    commit: str | None
    recipe: AnyRecipe
    methods: list[str]
    seeds: list[int]
    search: list[str]
    baseline: str
    training_rows: dict[int, dict[str, str]]
    scored_rows: dict[int, RowDigests] = {}


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    method: str
    settings: Settings
    recipe: Recipe | DenseRecipe
    run: RunDirectory

    @property
    def seed(self) -> int:
        """The seed."""
        return self.recipe.training.seed

    @property
    def is_single(self) -> bool:
        """Whether it is a run for each task."""
        return self.method.endswith(SINGLE)

    @property
    def failure(self) -> str | None:
        """Why the run could not be finished, and never will be; None otherwise."""
        path = self.run.path / FAILED_FILE
        return str(json.loads(path.read_text(encoding="utf-8"))["error"]) if path.is_file() else None

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.failure is not None or (self.run.is_run and self.run.results.is_file())


class ComparisonDirectory:
    """The directory of a comparison.

    Args:
        path: where it is.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.plan_file = self.path / COMPARISON_FILE
        self.results = self.path / RESULTS_FILE

    @property
    def is_comparison(self) -> bool:
        """Whether the directory holds a comparison. Others may write a comparison.json too, so the format counts."""
        try:
            plan = json.loads(self.plan_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(plan, dict) and plan.get("format") == Plan.model_fields["format"].default

    def plan(self) -> Plan:
        """Return what is compared.

        Raises:
            CheckpointError: if this is no comparison, or its plan is damaged.
        """
        try:
            data = json.loads(self.plan_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path} is no comparison: {error}.") from None
        return parse(Plan, data, str(self.plan_file))

    def begin(self, plan: Plan, overwrite: bool) -> None:
        """Write the plan; go on with the comparison that is there, if it is of the same recipe and rows.

        Raises:
            OutputError: if the directory holds something else.
        """
        if self.is_comparison and not overwrite:
            before = self.plan()
            if _without_place(before.recipe) != _without_place(plan.recipe):
                raise OutputError(
                    f"{self.path} holds a comparison of another recipe. Choose another --output, or replace it with "
                    "--overwrite."
                )
            for what, rows, noted in (
                ("training rows", plan.training_rows, before.training_rows),
                ("tune or scored rows", plan.scored_rows, before.scored_rows),
            ):
                for seed, digests in rows.items():
                    if noted.get(seed, digests) != digests:
                        raise OutputError(
                            f"the {what} of seed {seed} are no longer those that {self.path} was begun with. Restore "
                            "them, or choose another --output."
                        )
            plan.training_rows = {**before.training_rows, **plan.training_rows}
            plan.scored_rows = {**before.scored_rows, **plan.scored_rows}
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            if not self.is_comparison and not (overwrite and RunDirectory(self.path).is_run):
                raise OutputError(
                    f"the output directory {self.path} is not empty and holds no comparison, so it is not replaced. "
                    "Choose another (--output)."
                )
            shutil.rmtree(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text_whole(self.plan_file, plan.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise OutputError(
                f"cannot write to {self.path}: {error.strerror or error}. Choose another --output."
            ) from None

    def cell(self, recipe: Recipe | DenseRecipe, method: str, settings: Settings, seed: int) -> Cell:
        """Return the cell of a method's recipe with some settings and a seed."""
        recipe = changed(recipe, {**settings, "training.seed": seed})
        content = json.dumps(_without_place(recipe), sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:8]
        single = SINGLE if method.endswith(SINGLE) else ""
        path = self.path / f"{recipe.method.name}{single}-{digest}" / f"seed-{seed}"
        recipe.output.directory = str(path)
        return Cell(method, settings, recipe, RunDirectory(path))


def _without_place(recipe: Recipe | DenseRecipe) -> dict[str, Any]:
    """Return what decides a recipe's numbers beside the seed: not where rows and output are, nor what it is called."""
    # Recipes had no `shape` while all were of text, and cells are named by what is returned here.
    data = recipe.model_dump(mode="json", exclude={"output", "description", "shape"})
    del data["tasks"]["data_root"], data["training"]["seed"]
    for task in data["tasks"].get("define", {}).values():
        del task["files"]
    if not data["tasks"].get("define"):  # nor had they `define`
        data["tasks"].pop("define", None)
    for measured in ("workers", "gradient_cosines"):  # no number depends on them
        data["training"].pop(measured, None)
    # Nor had they these keys: where they say what was so before, cells keep the names that they had.
    mixing: dict[str, Any] = {"weights": None, "epoch_rows": None, "replacement": False, "schedule": None}
    later: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (data["training"], {"selection": "average", "balancing": None}),
        (data["training"].get("mixing", {}), mixing),
    ]
    for section, keys in later:
        for key, before in keys.items():
            if section.get(key) == before:
                section.pop(key, None)
    return data
