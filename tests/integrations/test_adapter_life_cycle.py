"""What people do with adapters through PEFT and transformers, for every method.

Auto classes, several adapters (also of several methods), switching, deleting, unloading, swapping numbers in place; and
that what fails leaves the model as it was.
"""

import json

import pytest
import torch
from peft import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftMixedModel,
    PeftModel,
    get_peft_model,
)
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from safetensors.torch import load_file, save_file

import tasklora
from helpers_models import (
    ADAPTERS,
    BERT_TARGETS,
    LLAMA_TARGETS,
    TASKS,
    adapt,
    adapter_state,
    config_of,
    layers,
    run,
    tiny_bert,
    tiny_llama,
)
from tasklora.errors import CheckpointError, UnsupportedError
from tasklora.tuner import METHODS

every_method = pytest.mark.parametrize("method", list(METHODS))
every_task_method = pytest.mark.parametrize(
    "method", [name for name, method in METHODS.items() if method.update_cls.uses_task_ids]
)
every_adapter = pytest.mark.parametrize("case", ADAPTERS, ids=lambda case: case.id)

IDS = ["sst2", "cola", "rte"]
TARGETS = ["query", "value"]
WEIGHTS = "adapter_model.safetensors"


def saved(folder, method="mtl_lora", seed=0, base=None, **options):
    """Save an adapter of tiny BERT; return its folder and what the model with it says."""
    model = adapt(base or tiny_bert(), config_of(method, **{"target_modules": TARGETS, **options}), seed)
    model.save_pretrained(folder)
    tasks = options.get("tasks", IDS)
    return folder, run(model, [tasks[row % len(tasks)] for row in range(3)])


# Auto classes.


@every_method
@pytest.mark.parametrize(
    ("auto", "make", "task_type", "targets"),
    [
        (AutoPeftModelForCausalLM, tiny_llama, "CAUSAL_LM", LLAMA_TARGETS),
        (AutoPeftModelForSequenceClassification, tiny_bert, "SEQ_CLS", BERT_TARGETS),
        (AutoPeftModel, tiny_bert, None, BERT_TARGETS),
    ],
    ids=["causal_lm", "seq_cls", "untyped"],
)
def test_auto_classes(method, auto, make, task_type, targets, tmp_path):
    make().save_pretrained(tmp_path / "base")
    base = make()
    base.config._name_or_path = base.name_or_path = str(tmp_path / "base")
    model = adapt(base, config_of(method, task_type=task_type, target_modules=targets))
    model.save_pretrained(tmp_path / "adapter")
    loaded = auto.from_pretrained(tmp_path / "adapter").eval()
    assert type(loaded) is type(model)
    torch.testing.assert_close(run(loaded, IDS), run(model, IDS))
    torch.testing.assert_close(run(loaded, torch.tensor([2, 0, 1])), run(model, IDS))


# Life with several adapters.


@every_method
def test_load_switch_disable_delete_unload(method, tmp_path):
    first, expected = saved(tmp_path / "first", method)
    second, of_second = saved(
        tmp_path / "second", method, seed=5, tasks=["rte", "mnli", "cola"], target_modules=["key"]
    )
    of_base = run(tiny_bert())
    model = PeftModel.from_pretrained(tiny_bert(), first)
    model.load_adapter(second, "second")
    assert torch.equal(run(model, IDS), expected)  # the one loaded first stays active
    model.set_adapter("second")
    assert torch.equal(run(model, ["rte", "mnli", "cola"]), of_second)
    with model.disable_adapter():
        assert torch.equal(run(model), of_base)
    assert torch.equal(run(model, ["rte", "mnli", "cola"]), of_second)
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(run(model, IDS), expected)
    assert list(tasklora.context_of(model).tasks) == ["default"]
    plain = model.unload()
    assert not layers(plain)
    assert torch.equal(run(plain), of_base)


@every_method
def test_deleting_the_active_adapter_activates_another(method, tmp_path):
    first, expected = saved(tmp_path / "first", method)
    second, of_second = saved(tmp_path / "second", method, seed=5)
    model = PeftModel.from_pretrained(tiny_bert(), first)
    model.load_adapter(second, "second")
    with pytest.warns(UserWarning, match="was active which is now deleted"):
        model.delete_adapter("default")
    assert torch.equal(run(model, IDS), of_second)
    assert not torch.equal(of_second, expected)
    model.delete_adapter("second")
    assert torch.equal(run(model.unload()), run(tiny_bert()))


@every_method
def test_three_adapters_in_any_order(method, tmp_path):
    """Loaded, run and deleted in orders that differ; none sees another."""
    expected = {}
    for seed, name in enumerate(("a", "b", "c")):
        _, expected[name] = saved(
            tmp_path / name, method, seed, target_modules=[TARGETS, ["key"], ["value", "key"]][seed]
        )
    model = PeftModel.from_pretrained(tiny_bert(), tmp_path / "b", adapter_name="b")
    for name in ("c", "a"):
        model.load_adapter(tmp_path / name, name)
    for name in ("a", "c", "b", "a"):
        model.set_adapter(name)
        assert torch.equal(run(model, IDS), expected[name])
    model.delete_adapter("b")
    for name in ("c", "a"):
        model.set_adapter(name)
        assert torch.equal(run(model, IDS), expected[name])


# Loading into a name that is taken: numbers are replaced in place, but only by an adapter of the same make.


@every_adapter
def test_numbers_are_swapped_in_place(case, tmp_path):
    """PEFT's and transformers' trainers load so; compiled code stays valid, as no parameter becomes another one."""
    _, first = saved(tmp_path / "first", case)
    _, second = saved(tmp_path / "second", case, seed=5)
    model = PeftModel.from_pretrained(tiny_bert(), tmp_path / "first")
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    for name, expected in (("second", second), ("first", first)):
        model.load_adapter(tmp_path / name, "default")
        assert torch.equal(run(model, IDS), expected)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == places


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["x", "y", "z"]}, r"tasks: \['cola', 'rte', 'sst2'\] there, \['x', 'y', 'z'\] given"),
        ({"tasks": ["rte", "cola", "sst2"]}, r"tasks: .* there, \['rte', 'cola', 'sst2'\] given"),  # same, other order
        ({"tasks": ["cola", "rte"]}, r"tasks: .* there, \['cola', 'rte'\] given"),
        ({"lora_alpha": 5}, "lora_alpha: 6 there, 5 given"),
        ({"temperature": 0.3}, "temperature: .* there, 0.3 given"),
        ({"alpha_pattern": {"value": 30}}, "alpha_pattern: {} there, {'value': 30} given"),
    ],
    ids=["names", "order", "count", "alpha", "temperature", "alpha_pattern"],
)
def test_a_name_taken_by_an_adapter_of_another_make(options, message, tmp_path):
    saved(tmp_path / "first")
    saved(tmp_path / "second", seed=5, **options)
    model = PeftModel.from_pretrained(tiny_bert(), tmp_path / "first")
    before, expected = adapter_state(model), run(model, IDS)
    with pytest.raises(CheckpointError, match=rf"which is there already: {message}.*under another name"):
        model.load_adapter(tmp_path / "second", "default")
    assert all(torch.equal(value, before[name]) for name, value in adapter_state(model).items())
    assert torch.equal(run(model, IDS), expected)
    model.load_adapter(tmp_path / "second", "second")  # what the error says to do
    model.set_adapter("second")
    assert run(model, 0).isfinite().all()


def test_a_name_taken_by_an_adapter_of_another_method(tmp_path):
    saved(tmp_path / "first")
    saved(tmp_path / "second", "per_task_lora")
    get_peft_model(tiny_bert(), LoraConfig(target_modules=TARGETS)).save_pretrained(tmp_path / "lora")
    model = PeftModel.from_pretrained(tiny_bert(), tmp_path / "first")
    for folder, method in (("second", "PER_TASK_LORA"), ("lora", "LORA")):
        with pytest.raises(CheckpointError, match=f"method: MTL_LORA there, {method} given"):
            model.load_adapter(tmp_path / folder, "default")


def test_a_config_given_by_hand_with_other_tasks(tmp_path):
    """The weights of [cola, rte, sst2] under other names would serve every task the wrong way, in silence."""
    saved(tmp_path)
    with pytest.raises(CheckpointError, match=r"tasks: \['sst2', 'rte', 'cola'\] there"):
        PeftModel.from_pretrained(tiny_bert(), tmp_path, config=config_of(tasks=TASKS[::-1], target_modules=TARGETS))


@every_task_method
def test_a_task_list_edited_in_the_file(method, tmp_path):
    saved(tmp_path, method)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    for tasks in (["cola", "rte"], [*TASKS, "mnli"]):
        path.write_text(json.dumps({**config, "tasks": tasks}))
        with pytest.raises(CheckpointError, match="tensors of another shape"):
            PeftModel.from_pretrained(tiny_bert(), tmp_path)


def test_nothing_is_loaded_into_a_merged_adapter(tmp_path):
    saved(tmp_path / "first")
    saved(tmp_path / "second", seed=5)
    model = PeftModel.from_pretrained(tiny_bert(), tmp_path / "first")
    with tasklora.use_tasks(model, "rte"):
        model.merge_adapter()
    with pytest.raises(UnsupportedError, match=r"'default' is merged into the base weights.*unmerge_adapter"):
        model.load_adapter(tmp_path / "second", "default")
    model.unmerge_adapter()
    model.load_adapter(tmp_path / "second", "default")


# What fails leaves nothing behind.


def unchanged(model, expected):
    assert list(model.peft_config) == ["default"]
    assert list(tasklora.context_of(model).tasks) == ["default"]
    assert {name for layer in layers(model) for name in layer.task_updates} <= {"default"}
    assert model.active_adapters == ["default"]
    assert torch.equal(run(model, IDS), expected)


@every_method
def test_a_load_that_fails(method, tmp_path):
    """Wrong base, missing and damaged files: the adapter that was there goes on, and the name stays free."""
    saved(tmp_path / "first", method)
    good, of_good = saved(tmp_path / "good", method, seed=5)
    saved(tmp_path / "wide", method, base=tiny_bert(hidden=48))
    saved(tmp_path / "deep", method, base=tiny_bert(num_hidden_layers=3))
    cut, _ = saved(tmp_path / "cut", method)
    (cut / WEIGHTS).write_bytes((cut / WEIGHTS).read_bytes()[:100])
    lacking, _ = saved(tmp_path / "lacking", method)
    save_file(dict(list(load_file(lacking / WEIGHTS).items())[1:]), lacking / WEIGHTS)
    model = PeftModel.from_pretrained(tiny_bert(), tmp_path / "first")
    expected = run(model, IDS)
    for folder, message in (
        ("wide", "tensors of another shape"),
        ("deep", "tensors that the model has no place for"),
        ("cut", "damaged or was cut off"),
        ("lacking", "1 tensors missing from the file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            model.load_adapter(tmp_path / folder, "second")
        unchanged(model, expected)
    with pytest.raises(ValueError, match="nowhere"):
        model.load_adapter(tmp_path / "nowhere", "second")
    unchanged(model, expected)
    model.load_adapter(good, "second")
    model.set_adapter("second")
    assert torch.equal(run(model, IDS), of_good)


def test_an_add_that_fails_half_way():
    """The query layers come before the module that cannot be adapted; none of them keeps the new adapter."""
    model = adapt(tiny_bert(), config_of(target_modules=TARGETS))
    expected = run(model, IDS)
    with pytest.raises(UnsupportedError, match="LayerNorm is not"):
        model.add_adapter("bad", config_of(target_modules=["query", "output.LayerNorm"]))
    unchanged(model, expected)
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter("default", config_of(target_modules=["query"]))
    unchanged(model, expected)
    with pytest.raises(ValueError, match="peft types"):
        model.add_adapter("lora", LoraConfig(target_modules=["query"]))
    unchanged(model, expected)


@pytest.mark.parametrize("name", ["nope", ""])
def test_unknown_adapters(name):
    model = adapt(tiny_bert(), config_of(target_modules=TARGETS))
    expected = run(model, IDS)
    with pytest.raises(ValueError, match="not found"):
        model.set_adapter(name)
    with pytest.raises(ValueError, match="does not exist"):
        model.delete_adapter(name)
    unchanged(model, expected)


def test_a_base_survives_an_adapter_that_does_not_fit(tmp_path):
    """Its weights are untouched, and the right adapter can be loaded onto the same object."""
    saved(tmp_path / "wide", base=tiny_bert(hidden=48))
    good, expected = saved(tmp_path / "good")
    base = tiny_bert()
    with pytest.raises(CheckpointError, match="does not fit this model"):
        PeftModel.from_pretrained(base, tmp_path / "wide")
    kept = {name.replace(".base_layer", ""): p for name, p in base.named_parameters() if ".task_updates." not in name}
    assert all(torch.equal(p, kept[name]) for name, p in tiny_bert().named_parameters())
    assert torch.equal(run(PeftModel.from_pretrained(base, good), IDS), expected)


# What PEFT has for its own LoRA: refused by name.


@every_method
def test_add_weighted_adapter_is_refused(method):
    model = adapt(tiny_bert(), config_of(method, target_modules=TARGETS))
    expected = run(model, IDS)
    with pytest.raises(UnsupportedError, match=r"task_weights=.*export_lora"):
        model.add_weighted_adapter(["default", "default"], [0.5, 0.5], "mix")
    unchanged(model, expected)


@every_method
def test_hotswap_adapter_is_refused(method, tmp_path):
    """By PEFT, before anything is changed; `load_adapter` under the same name does it (see above)."""
    saved(tmp_path / "second", method, seed=5)
    model = adapt(tiny_bert(), config_of(method, target_modules=TARGETS))
    expected = run(model, IDS)
    with pytest.raises(ValueError, match=f"Hotswapping only supports LORA but {method.upper()} was passed"):
        hotswap_adapter(model, str(tmp_path / "second"), "default")
    with pytest.raises(ValueError, match="No adapter layers found"):
        prepare_model_for_compiled_hotswap(model)
    unchanged(model, expected)


@every_method
def test_mixed_models_are_refused(method, tmp_path):
    saved(tmp_path, method)
    name = method.upper()
    with pytest.raises(ValueError, match=f"'{name}' is not compatible with the `PeftMixedModel`"):
        get_peft_model(tiny_bert(), config_of(method, target_modules=TARGETS), mixed=True)
    with pytest.raises(ValueError, match=f"{name} is not supported for mixed models"):
        PeftMixedModel.from_pretrained(tiny_bert(), tmp_path)
    lora = get_peft_model(tiny_bert(), LoraConfig(target_modules=TARGETS), mixed=True)
    with pytest.raises(ValueError, match=f"'{name}' is not compatible with the `PeftMixedModel`"):
        lora.add_adapter("second", config_of(method, target_modules=TARGETS))


@every_method
def test_adapter_names_are_refused(method):
    model = adapt(tiny_bert(), config_of(method, target_modules=TARGETS))
    with pytest.raises(UnsupportedError, match="pass task_ids"):
        run(model, "rte", adapter_names=["default", "__base__", "default"])
