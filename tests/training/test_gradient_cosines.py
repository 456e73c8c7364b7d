"""Cosines of the tasks' gradients, measured while training goes on: the right numbers, and training does not notice."""

import json
import os
import signal

import pytest
import torch

from helpers_runs import AtStep, assert_same_state, use_method
from tasklora.errors import CheckpointError, ConfigError
from tasklora.evaluation import measure_gradients
from tasklora.evaluation.diagnostics import layer_name
from tasklora.evaluation.gradients import read_gradient_cosines, shared_parameters
from tasklora.tasks import read_safetensors
from tasklora.training import InterruptedRun, compare_methods, train_recipe
from tasklora.training.comparison_directory import ComparisonDirectory

DROPOUT = "model.head_dropout=0.3"  # so that a random state that was disturbed would show
EVERY = "training.gradient_cosines={every: 4, rows: 6}"
FILE = "gradient_cosines.jsonl"


def weights_of(run):
    files = [file for part in ("final", "best") for file in (run / part).glob("*.safetensors")]
    return {f"{file.relative_to(run)}/{key}": value for file in files for key, value in read_safetensors(file).items()}


def log_without_times(run):
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if "runtime" not in k and "per_second" not in k} for r in records]


@pytest.fixture(scope="module")
def measured(project, tmp_path_factory):
    """Return a run of two epochs (16 steps), accumulated and with dropout, that was measured every 4 steps."""
    path = tmp_path_factory.mktemp("measured") / "run"
    train_recipe(project.load(DROPOUT, EVERY, *ACCUMULATED), path)
    return path


ACCUMULATED = ("training.batch_size=8", "training.gradient_accumulation_steps=2")


def test_training_ends_bit_for_bit_the_same(project, measured, tmp_path):
    train_recipe(project.load(DROPOUT, *ACCUMULATED), tmp_path / "run")
    assert_same_state(weights_of(measured), weights_of(tmp_path / "run"))
    assert log_without_times(measured) == log_without_times(tmp_path / "run")
    assert not (tmp_path / "run" / FILE).exists()


def test_lines_are_whole_and_what_they_say_is_possible(measured):
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (measured / FILE).read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 4, 8, 12, 16]
    for line in lines:
        assert line["tasks"] == ["mood", "answer", "heat"]
        assert line["rows"] == [6, 6, 6]
        assert len(line["layers"]) == 12
        for found in [line["overall"], *line["layers"].values()]:
            assert len(found["cosines"]) == len(found["halves"]) == len(found["norms"]) == 3
            assert all(-1 <= cosine <= 1 for cosine in [*found["cosines"], *found["halves"]])
        total = sum(layer["norms"][0] ** 2 for layer in line["layers"].values()) ** 0.5
        assert line["overall"]["norms"][0] == pytest.approx(total, rel=1e-3)


def test_a_resumed_run_has_every_measurement_once(project, measured, tmp_path):
    recipe, run = project.load(DROPOUT, EVERY, *ACCUMULATED), tmp_path / "run"

    def crash(**_):
        raise RuntimeError("power cut")

    with pytest.raises(InterruptedRun):  # a checkpoint at step 6
        train_recipe(recipe, run, callbacks=[AtStep(6, lambda **_: os.kill(os.getpid(), signal.SIGINT))])
    with pytest.raises(RuntimeError, match="power cut"):  # after the measurement of step 8, before its checkpoint
        train_recipe(recipe, run, resume=True, callbacks=[AtStep(9, crash)])
    with (run / FILE).open("a") as file:
        file.write('{"step": 12, "tas')  # and a line that was torn
    train_recipe(recipe, run, resume=True)
    assert (run / FILE).read_text() == (measured / FILE).read_text()
    assert_same_state(weights_of(measured), weights_of(run))


def test_cosines_are_those_of_gradients_by_hand(project):
    prepared, rows = project.prepare(), project.rows().split("train")
    model, collator = prepared.model, prepared.about.collator(prepared.base.tokenizer)
    found = measure_gradients(model, rows, collator, rows_per_task=10**6, batch_size=7)
    assert found.rows == [len(of_task) for of_task in rows.values()]
    gradients = []
    for name, of_task in rows.items():
        model.zero_grad()
        model(**collator([{**row, "task": name} for row in of_task])).losses.mean().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if n.endswith((".A", ".B"))})
    layers = {layer_name(name.rpartition(".")[0]) for name in gradients[0]}
    assert layers == set(found.layers)
    for layer in layers:
        flat = [torch.cat([g.flatten() for n, g in of.items() if f".{layer}.task" in n]) for of in gradients]
        expected = [float(torch.cosine_similarity(flat[i], flat[j], dim=0)) for i, j in ((0, 1), (0, 2), (1, 2))]
        assert found.layers[layer].cosines == pytest.approx(expected, abs=1e-4)
        assert found.layers[layer].norms == pytest.approx([float(one.norm()) for one in flat], rel=1e-3)


def test_model_and_gradients_and_random_numbers_stay_as_they_are(project):
    prepared, rows = project.prepare(), project.rows().split("train")
    model, collator = prepared.model, prepared.about.collator(prepared.base.tokenizer)
    model.train()
    model.encoder.base_model.model.encoder.layer[0].eval()  # a part that somebody keeps in evaluation mode
    modes = [module.training for module in model.modules()]
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 0.25)
    before, state = {name: p.clone() for name, p in model.named_parameters()}, torch.get_rng_state()
    with torch.no_grad():
        first = measure_gradients(model, rows, collator, rows_per_task=4, step=7, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert_same_state(before, dict(model.named_parameters()))
    assert all(bool(p.grad.eq(0.25).all()) for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    again = [measure_gradients(model, rows, collator, rows_per_task=4, step=step, seed=3) for step in (7, 8)]
    assert again[0] == first  # the rows go by seed and step
    assert again[1].overall != first.overall


def test_only_what_tasks_share_is_measured(project):
    model = project.prepare().model
    names = {id(parameter): name.rpartition(".")[2] for name, parameter in model.named_parameters()}
    assert {names[id(p)] for layer in shared_parameters(model).values() for p in layer} == {"A", "B"}
    lora = shared_parameters(project.prepare(use_method("lora")).model)
    assert lora.keys() == shared_parameters(model).keys()
    assert {len(of_layer) for of_layer in lora.values()} == {2}


@pytest.mark.parametrize("method", ["lora", "ta_lora", "hydra_lora"])
def test_methods_that_share_something_are_measured(project, tmp_path, method):
    train_recipe(project.load(use_method(method), EVERY, "training.max_steps=4"), tmp_path / "run")
    first, last = read_gradient_cosines(tmp_path / "run" / FILE)
    assert (first.step, last.step) == (0, 4)
    assert None not in last.overall.cosines


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((use_method("per_task_lora"),), "low-rank parameters that tasks share, and this method trains none"),
        ((use_method("heads_only"),), "low-rank parameters that tasks share, and this method trains none"),
        (("tasks.include=[heat]",), "the gradients of 2 to 64 tasks, the recipe has 1"),
    ],
)
def test_where_there_is_nothing_to_measure_no_run_begins(project, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        train_recipe(project.load(EVERY, *settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{rows: 8}", r"training\.gradient_cosines\.every"),
        ("{every: 0}", r"training\.gradient_cosines\.every"),
        ("{every: 2, rows: 1}", r"training\.gradient_cosines\.rows"),
        ("{every: 2, row: 8}", "Did you mean 'rows'"),
    ],
)
def test_bad_settings_are_named(project, section, message):
    with pytest.raises(ConfigError, match=message):
        project.load(f"training.gradient_cosines={section}")


def test_recipes_on_images_do_not_have_the_key(dense_project):
    with pytest.raises(ConfigError, match=r"training\.gradient_cosines"):
        dense_project.load("training.gradient_cosines={every: 4}")


def test_a_comparison_measures_the_methods_that_share_and_its_cells_stay_the_same(project, tmp_path):
    recipe = project.load(EVERY, "training.max_steps=2")
    results = compare_methods(recipe, tmp_path / "comparison", ["mtl_lora", "heads_only"], [0])
    mtl, heads = (tmp_path / "comparison" / method.runs[0] for method in results.methods)
    assert (mtl / FILE).is_file()
    assert not (heads / FILE).exists()
    plain = project.load("training.max_steps=2")
    cells = [ComparisonDirectory(tmp_path).cell(one, "mtl_lora", {}, 0).run.path for one in (recipe, plain)]
    assert cells[0] == cells[1]  # nothing that decides the numbers differs


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / FILE).write_text('{"step": 1, "tasks": []}\n')
    with pytest.raises(CheckpointError, match=r"cannot read .*gradient_cosines\.jsonl"):
        read_gradient_cosines(tmp_path / FILE)
    assert read_gradient_cosines(tmp_path / "none.jsonl") == []
