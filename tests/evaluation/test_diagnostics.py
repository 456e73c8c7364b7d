"""diagnostics.json: what each adapted layer says of its tasks, by the layer's path in the base model."""

import json

import pytest
import torch
from torch import nn

from helpers_runs import randomise, use_method
from tasklora.errors import CheckpointError, ConfigError
from tasklora.evaluation import diagnose, principal_angles, read_diagnostics
from tasklora.evaluation import diagnostics as diagnostics_module
from tasklora.tasks import load_model
from tasklora.training import prepare

OF_FACTORS = {"update_norm", "update_rank"}
OF_PAIRS = {"update_cosine", "column_overlap", "column_angles", "row_overlap", "row_angles"}


def test_a_run_keeps_those_of_every_adapted_layer(trained):
    found = read_diagnostics(trained.path / "diagnostics.json")
    base = trained.project.base_model().model
    linear = {name for name, module in base.named_modules() if isinstance(module, nn.Linear)} - {"pooler.dense"}
    assert (found.version, found.tasks, found.notes) == (2, ["mood", "answer", "heat"], [])
    assert found.per_task.keys() == {"up_projection_weights", "task_matrix_change"} | OF_FACTORS
    assert found.per_pair.keys() == {"task_matrix_distance"} | OF_PAIRS
    for layers in (*found.per_task.values(), *found.per_pair.values()):
        assert layers.keys() == linear
        assert {len(entries) for entries in layers.values()} == {3}  # tasks, and pairs of them
    model, _, _ = load_model(trained.path / "best")
    assert found == diagnose(model, tasks=["mood", "answer", "heat"])  # of the checkpoint that is scored
    assert all(change > 0 for changes in found.per_task["task_matrix_change"].values() for change in changes)


def test_pairs_are_those_of_the_layers_factors(project):
    model = project.prepare(use_method("per_task_lora")).model
    found = diagnose(model)
    name, module = next((n, m) for n, m in model.named_modules() if n.endswith("layer.1.output.dense"))
    factors = [(down.detach(), up.detach()) for down, up in module.task_updates["default"].task_factors()]
    layer = name.removeprefix("encoder.base_model.model.")
    columns, rows = principal_angles(factors[0], factors[2])
    assert found.per_pair["column_angles"][layer][1] == pytest.approx(columns.rad2deg().tolist(), abs=1e-4)
    assert found.per_pair["row_overlap"][layer][1] == pytest.approx(float(rows.cos().mean()), abs=1e-4)
    one, other = (up @ down for down, up in (factors[0], factors[2]))
    cosine = float((one * other).sum() / one.norm() / other.norm())
    assert found.per_pair["update_cosine"][layer][1] == pytest.approx(cosine, abs=1e-4)
    assert found.matrices("update_cosine")[layer][2][0] == found.per_pair["update_cosine"][layer][1]
    assert found.per_task["update_norm"][layer][0] == pytest.approx(float(one.norm()), rel=1e-5)
    chosen = diagnose(model, [2, 0])
    assert chosen.per_pair["update_cosine"][layer] == [found.per_pair["update_cosine"][layer][1]]
    assert chosen.per_task["update_norm"][layer] == [found.per_task["update_norm"][layer][place] for place in (2, 0)]


def test_an_update_of_zero_has_no_angles(project):
    found = diagnose(prepare(project.load(use_method("ta_lora"))).model)
    for name in OF_PAIRS - {"column_angles", "row_angles"}:
        assert {entry for entries in found.per_pair[name].values() for entry in entries} == {None}
    assert {str(entry) for entries in found.per_pair["row_angles"].values() for entry in entries} == {"[]"}
    assert {entry for entries in found.per_task["task_share"].values() for entry in entries} == {None}
    assert {entry for entries in found.per_task["update_rank"].values() for entry in entries} == {0}
    json.loads(found.model_dump_json(), parse_constant=pytest.fail)  # no NaN, which JSON does not have


@pytest.mark.parametrize("method", ["lora", "full_fine_tuning", "heads_only"])
def test_a_method_with_nothing_to_say_says_nothing(project, method):
    found = diagnose(prepare(project.load(use_method(method))).model)
    assert (found.per_task, found.per_pair, found.notes) == ({}, {}, [])


@pytest.mark.parametrize(
    ("method", "note"),
    [
        ("hydra_lora", "HydraLora routes by the token: neither its ΔW nor its gates are constant per task"),
        ("multi_lora", "MultiLora knows no tasks: its ΔW is the same for all"),
    ],
)
def test_a_method_without_updates_of_tasks_says_why(project, method, note):
    found = diagnose(prepare(project.load(use_method(method))).model)
    assert (found.per_task, found.per_pair) == ({}, {})
    (said,) = found.notes
    assert said.startswith(note)


def test_one_task_has_no_pairs_and_very_many_are_not_compared(project, monkeypatch):
    one = diagnose(project.prepare("tasks.include=[heat]").model)
    assert one.per_pair == {}
    assert one.per_task.keys() >= OF_FACTORS
    model = project.prepare().model
    whole = diagnose(model)
    monkeypatch.setattr(diagnostics_module, "MAX_COMPARED_TASKS", 2)
    many = diagnose(model)
    assert many.per_pair == {}
    own = {name: layers for name, layers in whole.per_task.items() if name not in OF_FACTORS}
    assert many.per_task == own
    assert many.notes == ["updates of more than 2 tasks are not compared; there are 3."]


def test_names_must_be_as_many_as_tasks(project):
    with pytest.raises(ConfigError, match=r"2 names \(mood, heat\) for diagnostics of 3 tasks"):
        diagnose(project.prepare().model, tasks=["mood", "heat"])


def test_streams_of_images_have_factors_per_task_too(dense_project):
    from tasklora.training import workload_of

    work = workload_of(dense_project.load())
    work.prepare()
    randomise(work.prepared.model)
    found = diagnose(work.prepared.model, tasks=list(work.specs))
    assert found.per_pair.keys() == OF_PAIRS
    assert "encoder.layers.0.blocks.1.fc1" in found.per_pair["update_cosine"]
    assert {len(entries) for entries in found.per_pair["update_cosine"].values()} == {10}
    assert all(abs(cosine) < 0.9 for entries in found.per_pair["update_cosine"].values() for cosine in entries)


def test_files_of_the_first_version_are_still_read(tmp_path):
    (tmp_path / "diagnostics.json").write_text(json.dumps({"task_matrix_change": {"a.b": [0.5, 1.0]}}))
    found = read_diagnostics(tmp_path / "diagnostics.json")
    assert (found.version, found.tasks, found.per_pair) == (1, [], {})
    assert found.per_task == {"task_matrix_change": {"a.b": [0.5, 1.0]}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"task_matrix_change": ', r"cannot read .*diagnostics\.json"),
        ("[1]", r"cannot read .*diagnostics\.json"),
        ('{"format": "tasklora/diagnostics", "version": 2, "per_pear": {}}', "Did you mean 'per_pair'"),
        ('{"format": "tasklora/diagnostics", "version": 3}', "has version 3, this tasklora reads up to 2"),
    ],
)
def test_a_missing_file_is_nothing_and_a_damaged_one_is_named(tmp_path, content, message):
    assert read_diagnostics(tmp_path / "diagnostics.json").per_task == {}
    (tmp_path / "diagnostics.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_diagnostics(tmp_path / "diagnostics.json")


def test_ta_loras_share_and_angle_are_those_of_its_two_parts(project):
    model = project.prepare(use_method("ta_lora")).model
    module = next(m for n, m in model.named_modules() if n.endswith("layer.0.output.dense.task_updates.default"))
    shared = module.B[:, : module.r_shared] @ module.A[: module.r_shared]
    for task, gates in enumerate(module.gates(torch.arange(3))):
        own = module.B[:, module.r_shared :] @ torch.diag(gates) @ module.A[module.r_shared :]
        share = own.square().sum() / (own.square().sum() + shared.square().sum())
        cosine = (own * shared).sum() / own.norm() / shared.norm()
        found = module.diagnostics()
        torch.testing.assert_close(found["task_share"][task], share, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found["shared_cosine"][task], cosine, rtol=1e-3, atol=1e-5)
