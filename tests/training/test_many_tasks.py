"""A thousand tasks in one adapter: trained, scored, saved, loaded, exported and extended like three."""

import json

import pytest
import yaml

from helpers_runs import SUITE, tiny_row, write_rows
from tasklora.tasks import load_model, read_safetensors
from tasklora.training import train_recipe

TASKS = 1000


@pytest.mark.slow
def test_a_thousand_tasks(project, cli, tmp_path):
    import random

    generator = random.Random(0)
    names = [f"task_{place:04d}" for place in range(TASKS)]
    suite = {"name": "many", "version": 1, "tasks": dict.fromkeys(names, SUITE["tasks"]["mood"])}
    (tmp_path / "suite.yaml").write_text(json.dumps(suite))  # YAML would write one task and refer to it
    for name in names:
        for split, count in {"train": 3, "tune": 2, "validation": 2}.items():
            write_rows(tmp_path / "data" / name / f"{split}.jsonl", [tiny_row("mood", generator) for _ in range(count)])
    recipe = project.load(
        f"tasks.suite={tmp_path / 'suite.yaml'}",
        f"tasks.data_root={tmp_path / 'data'}",
        "training.max_steps=20",
        "training.batch_size=64",
        "training.evaluate_every=10",
    )
    results, prepared = train_recipe(recipe, "run")
    assert results.tasks == names
    assert sum(results.training.rows_drawn.values()) == 20 * 64
    assert len(results.scores["validation"].tasks) == TASKS
    model, about, _ = load_model("run/best")
    assert list(about.tasks) == names
    saved = read_safetensors(tmp_path / "run" / "best" / "adapter_model.safetensors")
    assert {len(value) for key, value in saved.items() if "task" in key} <= {TASKS}
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in prepared.model.parameters())
    said = cli("export", "run", "--task", "task_0500", "--to", "exported")
    assert said.code == 0, said.err
    assert read_safetensors(tmp_path / "exported" / "adapter_model.safetensors")
    assert yaml.safe_load((tmp_path / "run" / "recipe.resolved.yaml").read_text())["tasks"]["suite"]
    said = cli("report", "run", "--overwrite")
    assert said.code == 0, said.err
    assert (tmp_path / "run" / "report.html").stat().st_size < 20e6
