"""Tasks that come, go and change their names on an adapter that is there already; ids are stable.

Facts, for every method with task ids: only what is a new task's own is trained; the other tasks' outputs, and the part
of the file that holds them, do not change by a bit; all of it survives saving and loading.
"""

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

import tasklora
from helpers_models import ADAPTERS, BERT_TARGETS, TASKS, adapt, config_of, inputs_of, run, tiny_bert
from tasklora.errors import ConfigError, TaskIdsError, UnknownTaskError, UnsupportedError
from tasklora.tuner import METHODS
from tasklora.updates import LowRankUpdate, TaskAssignment

FIRST = {case.method: case for case in reversed(ADAPTERS)}  # one case of each method
WITH_TASKS = [case for case in FIRST.values() if case.uses_task_ids]
WITHOUT = [case for case in FIRST.values() if not case.uses_task_ids]
every_method = pytest.mark.parametrize("case", WITH_TASKS, ids=lambda case: case.id)


def made(case, **options):
    return adapt(tiny_bert(), config_of(case, target_modules=BERT_TARGETS, **options))


def train(model, task_ids, steps=3, rate=0.1):
    """Train with every optimiser's trap in it: momentum and weight decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=rate, weight_decay=0.1)
    model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        model(**inputs_of(model), task_ids=task_ids)[0].square().mean().backward()
        optimiser.step()
    return model.eval()


def updates(model):
    return [module for module in model.modules() if isinstance(module, LowRankUpdate)]


@every_method
def test_only_what_is_a_new_tasks_own_is_trained(case):
    model = made(case)
    before = {task: run(model, task) for task in TASKS}
    mixed = run(model, TASKS)
    parameters = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tasklora.add_tasks(model, ["wnli", "qnli"])
    for task in TASKS:
        assert torch.equal(run(model, task), before[task])
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all(name.endswith("_new") for name in trainable)
    assert trainable.isdisjoint(parameters)
    fresh = run(model, "wnli")
    train(model, ["wnli", "qnli", "wnli"])
    assert not torch.equal(run(model, "wnli"), fresh)
    for task in TASKS:
        assert torch.equal(run(model, task), before[task])
    assert torch.equal(run(model, TASKS), mixed)
    for name, parameter in model.named_parameters():
        if name in parameters:
            assert torch.equal(parameter, parameters[name]), name


@every_method
def test_new_and_old_tasks_in_one_batch_equal_their_rows_alone(case):
    model = made(case)
    tasklora.add_tasks(model, ["wnli"])
    for update in updates(model):
        for parameter in update.parameters():
            nn.init.normal_(parameter, std=0.3)
    rows = inputs_of(model)["input_ids"]
    tasks = ["wnli", "cola", "wnli"]
    together = model(input_ids=rows, task_ids=tasks)[0]
    for place, task in enumerate(tasks):
        alone = model(input_ids=rows[place : place + 1], task_ids=task)[0]
        torch.testing.assert_close(together[place : place + 1], alone, rtol=0, atol=1e-5)
    per_token = torch.tensor([[3, 0, 1, 3, 2, 2]] * 3)
    layer = next(module for module in model.modules() if hasattr(module, "task_updates"))
    update = layer.task_updates["default"].double()
    x = torch.randn(3, 6, update.in_features, dtype=torch.float64)
    mixed = update(x, TaskAssignment(ids=per_token))
    for task in range(4):
        down, up = update.lora_factors(TaskAssignment(ids=torch.tensor(task)))
        here = per_token == task
        torch.testing.assert_close(mixed[here], x[here] @ (up @ down).T, rtol=1e-10, atol=1e-10)


@every_method
def test_the_files_part_of_the_old_tasks_does_not_change(case, tmp_path):
    model = made(case)
    model.save_pretrained(tmp_path / "before")
    tasklora.add_tasks(model, ["wnli"])
    train(model, ["wnli"] * 3)
    model.save_pretrained(tmp_path / "after")
    before, after = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("before", "after"))
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    assert all(name.endswith("_new") for name in after.keys() - before.keys())
    assert after.keys() > before.keys()

    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path / "after", is_trainable=True)
    for task in [*TASKS, "wnli"]:
        assert torch.equal(run(loaded.eval(), task), run(model, task))
    trainable = [name for name, parameter in loaded.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all(name.endswith("_new") for name in trainable)
    loaded.set_adapter("default")
    assert trainable == [name for name, parameter in loaded.named_parameters() if parameter.requires_grad]


@every_method
def test_adding_again_freezes_what_was_added_before(case):
    model = made(case)
    tasklora.add_tasks(model, ["wnli"])
    train(model, ["wnli"] * 3)
    before = {task: run(model, task) for task in [*TASKS, "wnli"]}
    tasklora.add_tasks(model, ["qnli"])
    train(model, ["qnli"] * 3)
    for task, output in before.items():
        assert torch.equal(run(model, task), output)
    assert model.peft_config["default"].tasks == [*TASKS, "wnli", "qnli"]
    assert model.peft_config["default"].new_tasks == 1


@every_method
def test_joining_makes_new_tasks_ordinary(case, tmp_path):
    model = made(case)
    tasklora.add_tasks(model, ["wnli"])
    train(model, ["wnli"] * 3)
    before = {task: run(model, task) for task in [*TASKS, "wnli"]}
    tasklora.join_tasks(model)
    for task, output in before.items():
        assert torch.equal(run(model, task), output)
    assert all(parameter.requires_grad for update in updates(model) for parameter in update.parameters())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()
    for task, output in before.items():
        assert torch.equal(run(loaded, task), output)


@every_method
def test_a_new_task_can_begin_as_a_copy(case):
    model = made(case)
    tasklora.add_tasks(model, ["wnli", "qnli"], like={"wnli": "rte"})
    assert torch.equal(run(model, "wnli"), run(model, "rte"))
    assert not torch.equal(run(model, "qnli"), run(model, "rte"))


@every_method
def test_a_new_task_is_exported_and_merged_like_any_other(case, tmp_path):
    model = made(case)
    tasklora.add_tasks(model, ["wnli"], like={"wnli": "rte"})
    train(model, ["wnli"] * 3)
    expected = run(model, "wnli")
    tasklora.export_lora(model, "wnli", tmp_path / "plain")
    plain = PeftModel.from_pretrained(tiny_bert(), tmp_path / "plain").eval()
    torch.testing.assert_close(run(plain), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(run(tasklora.merge_task(model, "wnli")), expected, rtol=0, atol=1e-5)


@every_method
def test_removed_tasks_leave_their_ids_unused(case, tmp_path):
    model = made(case)
    before = {task: run(model, task) for task in ("cola", "sst2")}
    tasklora.remove_tasks(model, ["rte"])
    for update in updates(model):
        for name in update.per_task_parameters:
            assert update.get_parameter(name)[1].eq(0).all()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()
    for each in (model, loaded):
        for task, output in before.items():
            assert torch.equal(run(each, task), output)
        assert torch.equal(run(each, 2), before["sst2"])  # its id is what it was
        for refused in ("rte", 1, torch.tensor([0, 1, 2])):
            with pytest.raises((UnknownTaskError, TaskIdsError), match=r"rte|removed"):
                run(each, refused)
        with pytest.raises(TaskIdsError, match="must be 0 at ids 1"):
            each(**inputs_of(each), task_weights=torch.tensor([0.5, 0.5, 0.0]))
        each(**inputs_of(each), task_weights=torch.tensor([0.5, 0.0, 0.5]))
    tasklora.add_tasks(loaded, ["rte"])  # the name is free again, under another id
    assert loaded.peft_config["default"].tasks == ["cola", None, "sst2", "rte"]
    assert torch.equal(run(loaded, "sst2"), before["sst2"])


@pytest.mark.parametrize("case", FIRST.values(), ids=lambda case: case.id)
def test_a_new_name_keeps_id_and_numbers(case, tmp_path):
    model = made(case)
    before = run(model, TASKS)
    tasklora.rename_tasks(model, {"cola": "rte", "rte": "cola", "sst2": "sentiment"})
    model.save_pretrained(tmp_path)
    for each in (model, PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()):
        assert torch.equal(run(each, ["rte", "cola", "sentiment"]), before)
        assert torch.equal(run(each, torch.tensor([0, 1, 2])), before)


@pytest.mark.parametrize("case", WITHOUT, ids=lambda case: case.id)
def test_methods_without_task_ids_have_nothing_to_add_to(case):
    model = made(case)
    state = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    with pytest.raises(UnsupportedError, match=f"{METHODS[case.method].title} has nothing of a task's own"):
        tasklora.add_tasks(model, ["wnli"])
    assert model.peft_config["default"].tasks == TASKS
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_compiled_graphs_take_new_and_old_tasks_alike():
    model = made("mtl_lora")
    tasklora.add_tasks(model, ["wnli"], like={"wnli": "rte"})
    update = updates(model)[0]
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x, ids: update(x, TaskAssignment(ids=ids)), backend=backend, fullgraph=True)
    x = torch.randn(3, 6, update.in_features)
    for task_ids in ([0, 3, 1], [3, 3, 3], [2, 0, 0]):
        ids = torch.tensor(task_ids)
        torch.testing.assert_close(compiled(x, ids), update(x, TaskAssignment(ids=ids)), rtol=1e-5, atol=1e-5)
    assert len(graphs) == 1


def test_modules_trained_in_full_are_frozen_too(tmp_path):
    model = made("mtl_lora", task_type="SEQ_CLS")
    before = run(model, "cola")
    tasklora.add_tasks(model, ["wnli"])
    train(model, ["wnli"] * 3)
    assert torch.equal(run(model, "cola"), before)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path, is_trainable=True)
    for _ in range(2):
        assert all(name.endswith("_new") for name, p in loaded.named_parameters() if p.requires_grad)
        loaded.set_adapter("default")
    tasklora.join_tasks(loaded)
    assert any("classifier" in name for name, p in loaded.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda m: tasklora.add_tasks(m, ["rte"]), ConfigError, "no new task to add: rte. The adapter has: cola, rte"),
        (lambda m: tasklora.add_tasks(m, []), ConfigError, "none given"),
        (lambda m: tasklora.add_tasks(m, ["a", "a"]), ConfigError, "duplicate task names: a"),
        (lambda m: tasklora.add_tasks(m, ["a/b"]), ConfigError, "task names consist of"),
        (lambda m: tasklora.add_tasks(m, ["a"], like={"a": "rta"}), UnknownTaskError, "Did you mean 'rte'"),
        (lambda m: tasklora.add_tasks(m, ["a"], like={"rte": "cola"}), ConfigError, "must be among a"),
        (lambda m: tasklora.add_tasks(m, ["a"], adapter="other"), UnsupportedError, "no tasklora adapter 'other'"),
        (lambda m: tasklora.remove_tasks(m, ["rta"]), UnknownTaskError, "Did you mean 'rte'"),
        (lambda m: tasklora.remove_tasks(m, TASKS), ConfigError, "no task would be left"),
        (lambda m: tasklora.rename_tasks(m, {"rta": "x"}), UnknownTaskError, "Did you mean 'rte'"),
        (lambda m: tasklora.rename_tasks(m, {"rte": "cola"}), ConfigError, "duplicate task names: cola"),
    ],
)
def test_what_is_refused_changes_nothing(change, error, says):
    model = made("mtl_lora")
    state, config = {n: t.clone() for n, t in model.state_dict().items()}, model.peft_config["default"].to_dict()
    with pytest.raises(error, match=says):
        change(model)
    assert model.peft_config["default"].to_dict() == config
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in state.items()}
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_no_task_is_added_to_merged_weights():
    model = made("mtl_lora")
    with tasklora.use_tasks(model, "rte"):
        model.merge_adapter()
    with pytest.raises(UnsupportedError, match="unmerge_adapter"):
        tasklora.add_tasks(model, ["wnli"])


def test_a_config_cannot_call_all_tasks_new():
    with pytest.raises(ConfigError, match="new_tasks counts tasks that were added"):
        get_peft_model(tiny_bert(), config_of("mtl_lora", new_tasks=3))
