"""Runs on tasks whose training rows are streamed: mixed, resumed, scored and refused like any other."""

import json
import random
import re

import pytest
import yaml

from helpers_runs import SUITE, AtStep, assert_same_state, log_of, tiny_row, trained_state, write_rows
from tasklora.errors import ConfigError, DataError
from tasklora.report.loading import load_source
from tasklora.report.page import render
from tasklora.tasks.streaming import StreamedSource
from tasklora.training import MixedRows, load_recipe, train_recipe

ROWS = 150
UNGROUPED = "training.group_by_length=null"


def numbered(task, count=ROWS):
    """Return rows of a task, of which each can be told from the others."""
    generator = random.Random(task)
    rows = [tiny_row(task, generator) for _ in range(count)]
    column = SUITE["tasks"][task]["inputs"][0]
    return [{**row, column: f"{row[column]} {index}"} for index, row in enumerate(rows)]


@pytest.fixture
def recipe_of(project, tmp_path):
    """Return a function that writes a recipe of own tasks, mood and heat streamed, and loads it."""
    for task, count in (("mood", ROWS), ("heat", 70), ("answer", 40)):
        write_rows(tmp_path / f"{task}.jsonl", numbered(task, count))

    def write(*overrides, mood=None, heat=None):
        of = {task: {**SUITE["tasks"][task], "files": f"{task}.jsonl"} for task in ("mood", "heat", "answer")}
        of["mood"]["streaming"] = mood or {"rows": ROWS, "buffer": 40}
        of["heat"]["streaming"] = heat or {"rows": 70, "buffer": 100}
        content = {**yaml.safe_load(project.recipe.read_text()), "tasks": {"define": of}}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return load_recipe(tmp_path / "recipe.yaml", [UNGROUPED, *overrides])

    return write


@pytest.fixture
def came(monkeypatch):
    """Return the texts of the rows that are drawn, by task, as they come."""
    seen = []
    original = MixedRows.__getitem__

    def watch(self, index):
        row = original(self, index)
        seen.append((row["task"], row["texts"][0]))
        return row

    monkeypatch.setattr(MixedRows, "__getitem__", watch)
    return seen


def of_task(came, task):
    return [text for name, text in came if name == task]


def test_streamed_tasks_train_beside_others(recipe_of, came, tmp_path, cli):
    results, _ = train_recipe(recipe_of("training.epochs=2.5"), tmp_path / "run")
    # held out: of mood's first 40 rows 8 and 3; of all of heat's 70, 14 and 5; of answer's 40, 8 and 3
    assert results.training.rows_per_task == {"mood": 139, "heat": 51, "answer": 29}
    assert {task: scores.rows for task, scores in results.scores["validation"].tasks.items()} == {
        "mood": 8,
        "heat": 14,
        "answer": 8,
    }
    assert results.scores["validation"].tasks["mood"].metrics["accuracy"] > 0.8
    epochs = [came[start : start + 219] for start in (0, 219)]
    for task, size in results.training.rows_per_task.items():
        passes = [of_task(one, task) for one in epochs]
        assert sorted(passes[0]) == sorted(passes[1])
        assert len(set(passes[0])) == size
        assert passes[0] != passes[1]
    said = cli("evaluate", tmp_path / "run", "--json")
    assert json.loads(said.out)["tasks"]["mood"] == json.loads(
        results.scores["validation"].tasks["mood"].model_dump_json()
    )
    page = render(load_source([tmp_path / "run"]))
    assert "mood, 2.5 ×" in page
    assert "streaming" not in (tmp_path / "run" / "best" / "tasklora.json").read_text()


def test_a_resumed_run_draws_the_rows_of_one_that_was_not_stopped(recipe_of, came, tmp_path):
    """Stopped in the third pass of a stream, where shares move and batches are accumulated."""
    recipe = recipe_of(
        "training.epochs=3",
        "training.batch_size=10",
        "training.gradient_accumulation_steps=2",
        "training.evaluate_every=12",
        "training.mixing={strategy: equal, schedule: {strategy: proportional, every: step}}",
        "model.head_dropout=0.2",
    )
    whole, prepared = train_recipe(recipe, tmp_path / "whole")
    expected = list(came)
    came.clear()

    def stop(**_):
        raise RuntimeError("crashed")

    with pytest.raises(RuntimeError, match="crashed"):
        train_recipe(recipe, tmp_path / "run", callbacks=[AtStep(29, stop)])
    came.clear()
    results, resumed = train_recipe(recipe, tmp_path / "run", resume=True)
    assert came == expected[2 * 219 + 2 * 20 :]  # from step 24 on; an epoch has 10 steps of 20 rows and one of 19
    assert_same_state(trained_state(resumed.model), trained_state(prepared.model))
    assert results.scores == whole.scores
    assert results.training.rows_drawn == whole.training.rows_drawn


def test_a_run_reads_no_more_of_a_stream_than_it_draws_and_holds(recipe_of, monkeypatch, tmp_path):
    write_rows(tmp_path / "mood.jsonl", numbered("mood", 5000))
    read = []
    original = StreamedSource.read

    def watch(self, columns=None):
        for row in original(self, columns):
            read.append(self.name)
            yield row

    monkeypatch.setattr(StreamedSource, "read", watch)
    recipe = recipe_of("training.max_steps=4", mood={"rows": 5000, "buffer": 30})
    results, _ = train_recipe(recipe, tmp_path / "run")
    drawn = results.training.rows_drawn["mood"]
    assert 30 < drawn <= 64
    # the first rows for tune and validation; then the buffer and those that are drawn, over rows that are held out
    assert read.count("mood") <= 30 + (30 + drawn + 16 + 1 + 6 + 3)


def test_unknown_sizes_need_shares_of_their_own(recipe_of, tmp_path):
    unknown = {"rows": "unknown", "buffer": 40}
    with pytest.raises(ConfigError, match="number of training rows of mood is unknown"):
        train_recipe(recipe_of(mood=unknown), tmp_path / "run")
    mixing = "training.mixing={strategy: equal, epoch_rows: 90}"
    results, _ = train_recipe(recipe_of(mixing, "training.epochs=2", mood=unknown), tmp_path / "run")
    assert results.training.rows_drawn == {"mood": 60, "heat": 60, "answer": 60}
    assert results.training.rows_per_task == {"heat": 51, "answer": 29}
    page = render(load_source([tmp_path / "run"]))
    assert "heat, 1.2 ×" in page
    assert re.search(r"mood, [\d.e+]+ ×", page) is None
    assert "on 29 to 51 training rows a task, and an unknown number of mood" in page


@pytest.mark.parametrize(
    ("overrides", "more", "says"),
    [
        (["training.group_by_length=true"], {}, "those of .* are streamed. Leave it out"),
        (["training.mixing={replacement: true}"], {}, "replacement draws from all rows of a task"),
        (["tasks.limits={train: 20}"], {}, "tasks.limits.train draws 20 of all rows"),
        ([], {"mood": {"rows": 20, "buffer": 40}}, "streaming.rows is 20, but its training data have 40 rows or more"),
    ],
)
def test_what_cannot_stream_is_refused_before_a_run_is_made(recipe_of, tmp_path, overrides, more, says):
    with pytest.raises((ConfigError, DataError), match=says):
        train_recipe(recipe_of(*overrides, **more), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rows": 0}, "'tasks.define.mood.streaming.rows"),
        ({"rows": "many"}, "Input should be a valid integer or 'unknown' (got 'many')"),
        ({"buffer": 9}, "'tasks.define.mood.streaming.rows' is missing"),
        ({"rows": 9, "bufer": 9}, "unknown key 'tasks.define.mood.streaming.bufer'. Did you mean 'buffer'?"),
        (True, "tasks.define.mood.streaming"),
    ],
)
def test_a_wrong_section_is_named_with_its_key(recipe_of, given, says):
    with pytest.raises(ConfigError) as caught:
        recipe_of(mood=given)
    assert says in str(caught.value)


def test_a_wrong_row_stops_the_run_which_goes_on_when_it_is_mended(recipe_of, tmp_path):
    recipe = recipe_of("training.evaluate_every=2", "training.epochs=1", "training.logging_steps=2")
    good = (tmp_path / "mood.jsonl").read_text()
    _, prepared = train_recipe(recipe, tmp_path / "whole")
    lines = good.splitlines(keepends=True)
    lines[120] = json.dumps({"text": "a day", "label": 5}) + "\n"
    (tmp_path / "mood.jsonl").write_text("".join(lines))
    with pytest.raises(DataError, match=r"row 120: label 5 is outside .*The last checkpoint is kept"):
        train_recipe(recipe, tmp_path / "run")
    assert log_of(tmp_path / "run")[-1]["step"] > 4
    (tmp_path / "mood.jsonl").write_text(good)
    _, resumed = train_recipe(recipe, tmp_path / "run", resume=True)
    assert_same_state(trained_state(resumed.model), trained_state(prepared.model))
