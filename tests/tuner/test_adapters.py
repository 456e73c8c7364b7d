"""Life with adapters: several on one model, switching, deleting, disabling; what is trained; patterns and targets.

Every adapter resolves task names by its own list.
"""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

import tasklora
from helpers_models import (
    ADAPTERS,
    BERT_TARGETS,
    TASKS,
    adapt,
    adapter_state,
    config_of,
    fill,
    inputs_of,
    layers,
    run,
    tiny_bert,
    tiny_llama,
)
from tasklora.errors import ConfigError, UnknownTaskError, UnsupportedError

every_adapter = pytest.mark.parametrize("case", ADAPTERS, ids=lambda case: case.id)


@every_adapter
def test_a_fresh_adapter_changes_nothing(case):
    model = get_peft_model(tiny_bert(), config_of(case, target_modules=BERT_TARGETS)).eval()
    for task in TASKS:
        assert torch.equal(run(model, task), run(tiny_bert()))


@every_adapter
def test_only_the_adapter_is_trainable(case):
    model = get_peft_model(tiny_bert(), config_of(case, target_modules=["query", "value"]))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == set(adapter_state(model))
    shared, per_task = case.parameters(32, 32, 3)
    assert model.get_nb_trainable_parameters()[0] == 4 * (shared + per_task)


@every_adapter
def test_a_training_step_moves_the_present_tasks_only(case):
    model = adapt(tiny_bert(), config_of(case, target_modules=["query", "value"])).train()
    before, base = adapter_state(model), {k: v.clone() for k, v in tiny_bert().state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    inputs = inputs_of(model)
    model(**inputs, labels=torch.tensor([0, 1, 2]), task_ids=torch.tensor([0, 2, 0])).loss.backward()
    optimizer.step()
    after = adapter_state(model)
    per_task = layers(model)[0].task_updates["default"].per_task_parameters
    for name, value in before.items():
        if name.rsplit(".", 1)[1] in per_task:
            assert torch.equal(after[name][1], value[1]), name
        else:
            assert not torch.equal(after[name], value), name
    for name, p in model.get_base_model().state_dict().items():
        key = name.replace(".base_layer", "")
        if key in base:
            assert torch.equal(p, base[key]), name


# Several adapters.


@pytest.fixture
def two_adapters():
    """Adapter `default` knows cola, rte, sst2; `other`, of another method and on other modules, mnli and cola."""
    model = adapt(tiny_bert(), config_of(target_modules=["query", "value"]))
    with pytest.raises(ValueError, match="peft type"):  # PEFT allows one method per model
        model.add_adapter("foreign", config_of("per_task_lora", target_modules=["query"]))
    model.add_adapter("other", config_of(tasks=["mnli", "cola"], r=2, target_modules=["value", "key"]))
    fill(model, seed=5, adapter="other")
    return model.eval()


def test_each_adapter_resolves_names_by_its_own_list(two_adapters):
    model = two_adapters
    first = run(model, "cola")
    assert torch.equal(first, run(model, 0))
    model.set_adapter("other")
    second = run(model, "cola")
    assert torch.equal(second, run(model, 1))
    assert not torch.equal(first, second)
    with pytest.raises(UnknownTaskError, match=r"unknown task 'rte'.*mnli, cola"):
        run(model, "rte")
    model.set_adapter("default")
    assert torch.equal(run(model, "cola"), first)


def test_two_active_adapters_add_up(two_adapters):
    model = two_adapters
    x = torch.randn(2, 5, 32)
    layer = next(layer for layer in layers(model) if set(layer.task_updates) == {"default", "other"})  # a `value`
    deltas = []
    for adapter, task in (("default", 0), ("other", 1)):
        assignment = tasklora.context_of(model).tasks[adapter].assign(task)
        deltas.append(layer.task_updates[adapter](x, assignment))
    model.base_model.set_adapter(["default", "other"])
    with tasklora.use_tasks(model, "cola"):
        torch.testing.assert_close(layer(x), layer.base_layer(x) + deltas[0] + deltas[1])
    assert run(model, "cola").isfinite().all()
    with pytest.raises(UnknownTaskError):
        run(model, "rte")  # known to one of the two only


def test_delete_adapter(two_adapters):
    model = two_adapters
    expected = run(model, "rte")
    model.delete_adapter("other")
    assert torch.equal(run(model, "rte"), expected)
    assert list(tasklora.context_of(model).tasks) == ["default"]
    assert not any("other" in name for name, _ in model.named_parameters())


def test_a_name_used_again_has_the_new_tasks(two_adapters):
    model = two_adapters
    model.delete_adapter("other")
    model.add_adapter("other", config_of(tasks=["wnli"], target_modules=["value"]))
    assert tasklora.context_of(model).tasks["other"].names == ("wnli",)


def test_loading_a_second_adapter(two_adapters, tmp_path):
    two_adapters.save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(tiny_bert(), tmp_path)
    model.load_adapter(tmp_path / "other", "other")
    for adapter in ("default", "other"):
        two_adapters.set_adapter(adapter)
        model.set_adapter(adapter)
        assert torch.equal(run(model, "cola"), run(two_adapters, "cola"))


def test_inactive_adapters_are_not_trained(two_adapters):
    two_adapters.set_adapter("other")
    trainable = {name for name, p in two_adapters.named_parameters() if p.requires_grad}
    assert trainable
    assert all(".other." in name for name in trainable)


def test_disable_adapter():
    model = adapt(tiny_bert(), config_of(task_type="SEQ_CLS", target_modules=BERT_TARGETS))
    expected = run(tiny_bert())
    assert not torch.equal(run(model, "rte"), expected)
    with model.disable_adapter():
        assert torch.equal(run(model), expected)  # without ids: nothing asks for them
        assert torch.equal(run(model, "rte"), expected)
    assert not torch.equal(run(model, "rte"), expected)


# What is adapted, and how.


def test_rank_and_alpha_patterns():
    config = config_of(
        target_modules=["query", "value"],
        rank_pattern={"query": 5},
        alpha_pattern={r"layer\.1\..*value": 30},
    )
    updates = {name: m.task_updates["default"] for name, m in named_layers(adapt(tiny_bert(), config))}
    assert {name: (u.r, u.scaling) for name, u in updates.items()} == {
        "layer.0.attention.self.query": (5, 6 / 5),
        "layer.1.attention.self.query": (5, 6 / 5),
        "layer.0.attention.self.value": (3, 6 / 3),
        "layer.1.attention.self.value": (3, 30 / 3),
    }


def named_layers(model):
    chosen = {id(layer) for layer in layers(model)}
    return [(name.split("encoder.")[-1], m) for name, m in model.named_modules() if id(m) in chosen]


def test_patterns_survive_saving(tmp_path):
    config = config_of(target_modules=["query", "value"], rank_pattern={"query": 5}, alpha_pattern={"value": 30})
    model = adapt(tiny_bert(), config)
    model.save_pretrained(tmp_path)
    assert torch.equal(run(PeftModel.from_pretrained(tiny_bert(), tmp_path), 1), run(model, 1))


def test_a_bad_rank_in_a_pattern():
    with pytest.raises(ConfigError, match="r must be a positive integer, got 0"):
        get_peft_model(tiny_bert(), config_of(target_modules=["query"], rank_pattern={"query": 0}))


def test_all_linear_leaves_the_head_out():
    model = adapt(tiny_llama(), config_of(task_type="CAUSAL_LM", target_modules="all-linear"))
    names = {name.split(".")[-1] for name, _ in named_layers(model)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(layers(model)) == 14
    run(model, "rte")


def test_exclude_modules():
    model = adapt(tiny_bert(), config_of(target_modules=BERT_TARGETS, exclude_modules=["pooler.dense"]))
    names = [name for name, _ in named_layers(model)]
    assert not any("pooler" in name for name in names)
    assert any(name.endswith("output.dense") for name in names)
    run(model, torch.zeros(3, 6, dtype=torch.long))  # no pooled rows left: per-token ids work


def test_regex_and_default_targets():
    assert len(layers(adapt(tiny_bert(), config_of(target_modules=r".*layer\.1.*(query|key)")))) == 2
    names = {name.split(".")[-1] for name, _ in named_layers(adapt(tiny_llama(), config_of()))}
    assert names == {"q_proj", "v_proj"}  # PEFT's own default for LLaMA


@pytest.mark.parametrize(
    ("module", "kind"),
    [(nn.EmbeddingBag(10, 8), "EmbeddingBag"), (nn.Conv1d(8, 8, 1), "Conv1d"), (nn.LayerNorm(8), "LayerNorm")],
    ids=["embedding bag", "conv", "norm"],
)
def test_targets_that_are_not_linear(module, kind):
    base = nn.ModuleDict({"target": module, "linear": nn.Linear(8, 8)})
    with pytest.raises(UnsupportedError, match=f"cannot adapt 'target': {kind} is not a linear layer"):
        get_peft_model(base, config_of(target_modules=["target"]))


def test_the_output_projection_of_torch_attention_is_refused():
    """nn.MultiheadAttention reads that weight and never calls the layer, so an adapter would do nothing."""
    base = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    with pytest.raises(UnsupportedError, match=r"cannot adapt 'attention.out_proj'.*would have no effect"):
        get_peft_model(base, config_of(target_modules=["out_proj"]))


# Configs.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["a", "b", "a"]}, "duplicate task names: a. Every task needs a name of its own"),
        ({"tasks": []}, "MTLLoraConfig needs tasks"),
        ({"tasks": "cola"}, "tasks must be a list of task names, got 'cola'"),
        ({"tasks": ["a/b"]}, "got 'a/b'"),
        ({"tasks": ["..", "b"]}, r"got '\.\.'"),
        ({"tasks": [""]}, "got ''"),
        ({"tasks": [1, 2]}, "got 1"),
        ({"r": 0}, "r must be a positive integer, got 0"),
        ({"lora_alpha": -1}, "lora_alpha must be positive, got -1"),
        ({"lora_dropout": 1.5}, r"lora_dropout must lie in \[0, 1\), got 1.5"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"task_matrix": "linear"}, "task_matrix must be one of"),
        ({"temprature": 0.1}, r"MTLLoraConfig has no option 'temprature'. Did you mean 'temperature'\?"),
        ({"target_module": ["q"]}, r"Did you mean 'target_modules'\?"),
    ],
    ids=str,
)
def test_bad_configs(options, message):
    with pytest.raises(ConfigError, match=message) as raised:
        tasklora.MTLLoraConfig(**{"tasks": ["a", "b"], **options})
    assert type(raised.value) is ConfigError


def test_the_base_config_is_no_method():
    with pytest.raises(TypeError, match=r"TaskLoraConfig is not a registered method; use one of.*MTLLoraConfig"):
        tasklora.TaskLoraConfig(tasks=["a"])
