"""diagnostics.json: what each adapted layer says of its tasks, by the layer's path in the base model."""

import pytest
from torch import nn

from helpers_runs import use_method
from tasklora.errors import CheckpointError
from tasklora.evaluation import diagnose, read_diagnostics
from tasklora.tasks import load_model
from tasklora.training import prepare


def test_a_run_keeps_those_of_every_adapted_layer(trained):
    found = read_diagnostics(trained.path / "diagnostics.json")
    base = trained.project.base_model().model
    linear = {name for name, module in base.named_modules() if isinstance(module, nn.Linear)} - {"pooler.dense"}
    assert found.keys() == {"up_projection_weights", "task_matrix_change"}
    for layers in found.values():
        assert layers.keys() == linear
        assert {len(of_tasks) for of_tasks in layers.values()} == {3}
    model, _, _ = load_model(trained.path / "best")
    assert found == diagnose(model)  # of the checkpoint that is scored
    assert all(change > 0 for changes in found["task_matrix_change"].values() for change in changes)


@pytest.mark.parametrize("method", ["per_task_lora", "lora", "full_fine_tuning", "heads_only"])
def test_a_method_with_nothing_to_say_says_nothing(project, method):
    assert diagnose(prepare(project.load(use_method(method))).model) == {}


def test_a_missing_file_is_nothing_and_a_damaged_one_is_named(tmp_path):
    assert read_diagnostics(tmp_path / "diagnostics.json") == {}
    (tmp_path / "diagnostics.json").write_text('{"task_matrix_change": ')
    with pytest.raises(CheckpointError, match=r"cannot read .*diagnostics\.json"):
        read_diagnostics(tmp_path / "diagnostics.json")
