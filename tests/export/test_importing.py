"""Plain LoRA coming in: the update of the task (or of all) is the LoRA exactly; what does not fit changes nothing."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import tasklora
from helpers_exports import BANK_CASES, SHARED_CASES, cases
from helpers_models import (
    ADAPTERS,
    BERT_TARGETS,
    LLAMA_TARGETS,
    TASKS,
    adapt,
    adapter_state,
    config_of,
    run,
    tiny_bert,
    tiny_llama,
)
from tasklora.errors import (
    BrokenAdapterError,
    CheckpointError,
    ConfigError,
    TaskIdsError,
    UnknownTaskError,
    UnsupportedError,
)
from tasklora.export import bank_of_loras, read_lora
from tasklora.updates import LoraCore, UpdateOptions

ROOM = {"r": 4, "lora_alpha": 6}


def plain_lora(directory, seed=0, base=tiny_llama, **options):
    """Write a LoRA of stock PEFT with random factors and return its logits."""
    options = {"r": 2, "lora_alpha": 5, "target_modules": LLAMA_TARGETS, "task_type": "CAUSAL_LM", **options}
    model = get_peft_model(base(), LoraConfig(**options)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(directory)
    return run(model)


def room_for(case, rank=2):
    """Return options that give an adapter room for a LoRA of some rank."""
    if case.method == "moe_lora":
        return {"r": rank * case.options.experts}
    return {"r": rank + 1, **({"r_shared": rank} if case.method == "ta_lora" else {})}


def adapted(case="mtl_lora", **options):
    options = {"task_type": "CAUSAL_LM", "target_modules": LLAMA_TARGETS, **options}
    return adapt(tiny_llama(), config_of(case, **options), seed=3)


def assert_unchanged(model, before):
    after = adapter_state(model)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@cases(SHARED_CASES)
def test_the_start_of_a_shared_method_is_the_lora_for_every_task(tmp_path, case):
    expected = plain_lora(tmp_path / "lora")
    model = adapted(case, **room_for(case))
    done = tasklora.import_lora(model, tmp_path / "lora")
    assert (len(done.modules), done.zeroed, done.left_out, done.rank) == (6, [], [], 2)
    for task in TASKS if case.uses_task_ids else [None]:
        torch.testing.assert_close(run(model, task), expected, rtol=1e-5, atol=1e-5)


@cases(SHARED_CASES)
def test_the_start_can_be_trained_in_every_direction(tmp_path, case):
    """Room that the LoRA does not use must not be dead: with A and B both zero there, no gradient would ever come."""
    plain_lora(tmp_path / "lora", target_modules=["q_proj"])
    model = adapted(case, **room_for(case))
    tasklora.import_lora(model, tmp_path / "lora")
    model.train()
    model(input_ids=torch.arange(3, 9)[None], labels=torch.arange(3, 9)[None],
          **({"task_ids": ["rte"]} if case.uses_task_ids else {})).loss.backward()  # fmt: skip
    update = model.base_model.model.model.layers[0].self_attn.v_proj.task_updates["default"]
    grad = update.s.grad if case.method == "multi_lora" else update.B.grad
    assert torch.isfinite(grad).all()
    assert (grad.flatten(1).abs().amax(0) > 0).all()


@cases(BANK_CASES)
def test_the_entry_of_a_bank_is_the_lora_and_other_tasks_are_untouched(tmp_path, case):
    model = adapted(case, **ROOM)
    before = {task: run(model, task) for task in TASKS}
    expected = {}
    for seed, (task, rank) in enumerate((("sst2", 4), ("cola", 1))):
        expected[task] = plain_lora(tmp_path / task, seed, r=rank)
        tasklora.import_lora(model, tmp_path / task, task=task)
    for task in expected:
        torch.testing.assert_close(run(model, task), expected[task], rtol=1e-5, atol=1e-5)
    assert torch.equal(run(model, "rte"), before["rte"])
    by_id = tasklora.import_lora(model, tmp_path / "cola", task=1)
    assert by_id.rank == 1
    assert torch.equal(run(model, "rte"), run(model, "cola"))


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"layers.1.self_attn.v_proj": 9}},
        {"rank_pattern": {"down_proj": 3}, "alpha_pattern": {"down_proj": 1}, "use_rslora": True},
        {"target_modules": ["q_proj"]},
        {"target_modules": r".*layers\.0\.self_attn\.(q|v)_proj"},
        {"init_lora_weights": "gaussian"},
    ],
    ids=["rslora", "patterns", "patterns-rslora", "fewer-modules", "one-layer", "gaussian"],
)
@pytest.mark.parametrize("method", ["mtl_lora", "per_task_lora"])
def test_scalings_ranks_and_missing_modules(tmp_path, method, options):
    expected = plain_lora(tmp_path / "lora", **options)
    model = adapted(method, **ROOM)
    done = tasklora.import_lora(model, tmp_path / "lora", task="rte" if method == "per_task_lora" else None)
    assert len(done.modules) + len(done.zeroed) == 6
    assert bool(done.zeroed) is ("target_modules" in options)
    torch.testing.assert_close(run(model, "rte"), expected, rtol=1e-5, atol=1e-5)


@cases(ADAPTERS)
def test_what_was_exported_comes_back(tmp_path, case):
    """Out and in again: an export, which has zero factors for modules that were not adapted, has a place here."""
    targets = ["query", "dense"]
    config = config_of("mtl_lora", target_modules=targets, exclude_modules=["pooler.dense"], task_type="SEQ_CLS")
    source = adapt(tiny_bert(), config)
    tasklora.export_lora(source, "rte", tmp_path / "out")
    assert not load_file(tmp_path / "out" / "adapter_model.safetensors")[
        "base_model.model.bert.pooler.dense.lora_A.weight"
    ].any()
    options = {**room_for(case, 3), "target_modules": targets, "exclude_modules": ["pooler.dense"]}
    model = adapt(tiny_bert(), config_of(case, task_type="SEQ_CLS", **options), seed=8)
    tasklora.import_lora(model, tmp_path / "out", task="sst2" if case in BANK_CASES else None)
    task = "sst2" if case.uses_task_ids else None
    torch.testing.assert_close(run(model, task), run(source, "rte"), rtol=1e-5, atol=1e-5)


def test_heads_in_the_file_are_reported(tmp_path):
    options = {"target_modules": BERT_TARGETS, "task_type": "SEQ_CLS"}
    plain_lora(tmp_path / "lora", base=tiny_bert, **options)
    model = adapt(tiny_bert(), config_of("mtl_lora", **options))
    before = model.get_base_model().classifier.modules_to_save["default"].weight.detach().clone()
    done = tasklora.import_lora(model, tmp_path / "lora")
    assert done.left_out == ["base_model.model.classifier.bias", "base_model.model.classifier.weight"]
    assert torch.equal(model.get_base_model().classifier.modules_to_save["default"].weight, before)


def test_tasks_that_were_added_later(tmp_path):
    for method in ("per_task_lora", "mtl_lora"):
        model = adapted(method, **ROOM)
        tasklora.add_tasks(model, ["new"])
        expected = plain_lora(tmp_path / method)
        tasklora.import_lora(model, tmp_path / method, task="new" if method == "per_task_lora" else None)
        torch.testing.assert_close(run(model, "new"), expected, rtol=1e-5, atol=1e-5)


def test_a_pickled_lora_is_read_without_running_code(tmp_path):
    expected = plain_lora(tmp_path / "lora")
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    (tmp_path / "lora" / "adapter_model.safetensors").unlink()
    torch.save(tensors, tmp_path / "lora" / "adapter_model.bin")
    model = adapted("mtl_lora", **ROOM)
    tasklora.import_lora(model, tmp_path / "lora")
    torch.testing.assert_close(run(model, "rte"), expected, rtol=1e-5, atol=1e-5)
    torch.save({"weights": nn.Linear(2, 2)}, tmp_path / "lora" / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="holds pickled Python objects, which may run code"):
        tasklora.import_lora(model, tmp_path / "lora")


# --- refusals


@cases(ADAPTERS)
def test_a_rank_without_room_names_the_rank_needed(tmp_path, case):
    plain_lora(tmp_path / "lora", r=5, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 7})
    model = adapted(case, **room_for(case, 5))  # room for q_proj's 5, not for down_proj's 7
    before = adapter_state(model)
    with pytest.raises(CheckpointError, match=r"the LoRA has rank 7, the adapter has room for [56] here"):
        tasklora.import_lora(model, tmp_path / "lora", task="rte" if case in BANK_CASES else None)
    assert_unchanged(model, before)


@cases(ADAPTERS)
def test_the_task_is_named_where_there_are_tasks_and_only_there(tmp_path, case):
    plain_lora(tmp_path / "lora")
    model = adapted(case)
    before = adapter_state(model)
    if case in BANK_CASES:
        with pytest.raises(TaskIdsError, match=f"{case.method} keeps factors per task: say which one"):
            tasklora.import_lora(model, tmp_path / "lora")
        with pytest.raises(UnknownTaskError, match=r"unknown task 'ret'. Did you mean 'rte'\?"):
            tasklora.import_lora(model, tmp_path / "lora", task="ret")
    else:
        with pytest.raises(TaskIdsError, match=f"{case.method} shares its factors between all tasks"):
            tasklora.import_lora(model, tmp_path / "lora", task="rte")
    assert_unchanged(model, before)


def test_a_method_without_a_start_says_so():
    update = LoraCore(4, 3, 1, UpdateOptions(r=2))
    with pytest.raises(UnsupportedError, match="LoraCore has no exact start from a plain LoRA"):
        update.begin_as(torch.ones(1, 4), torch.ones(3, 1), None)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"peft_type": "LOHA"}, CheckpointError, "its peft_type is 'LOHA', expected 'LORA'"),
        ({"use_dora": True}, UnsupportedError, "more than factors A and B: use_dora"),
        ({"bias": "all"}, UnsupportedError, "more than factors A and B: bias='all'"),
        ({"lora_bias": True}, UnsupportedError, "lora_bias"),
        ({"layer_replication": [[0, 2]]}, UnsupportedError, "layer_replication"),
        ({"init_lora_weights": "pissa"}, UnsupportedError, "init_lora_weights='pissa'"),
        ({"r": 3}, CheckpointError, "has rank 2, but the config says 3"),
        ({"lora_alpha": None}, CheckpointError, "lora_alpha must be a number, got None"),
        ({"lora_alpha": "5"}, CheckpointError, "lora_alpha must be a number, got '5'"),
    ],
)
def test_configs_that_are_no_plain_lora(tmp_path, change, error, says):
    plain_lora(tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    model = adapted()
    before = adapter_state(model)
    with pytest.raises(error, match=says):
        tasklora.import_lora(model, tmp_path / "lora")
    assert_unchanged(model, before)


Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def with_key(name, value):
    return lambda tensors: {**tensors, name: value}


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda t: {k: v for k, v in t.items() if k != Q_A}, CheckpointError, "has lora_B alone"),
        (lambda t: {**t, Q_A: t[Q_A][:, :5]}, CheckpointError, r"q_proj: \(32 × 5\) in the file, \(32 × 32\) in"),
        (lambda t: {**t, Q_A: t[Q_A][:1]}, CheckpointError, r"have shapes \(1, 32\) and \(32, 2\)"),
        (lambda t: {**t, Q_A: t[Q_A][..., None]}, CheckpointError, r"have shapes \(2, 32, 1\)"),
        (lambda t: {**t, Q_A: t[Q_A] / 0}, BrokenAdapterError, "NaN or infinity in the factors of"),
        (with_key("a.lora_embedding_A", torch.ones(2)), UnsupportedError, "'a.lora_embedding_A', which is no factor"),
        (with_key("a.lora_magnitude_vector", torch.ones(2)), UnsupportedError, "lora_magnitude_vector"),
        (lambda t: {k.replace("layers.", "blocks."): v for k, v in t.items()}, CheckpointError, "adapts 6 modules"),
        (lambda t: {k.replace("model.layers", "layers"): v for k, v in t.items()}, CheckpointError, "adapts 6 modules"),
        (lambda t: {"other": torch.ones(1)}, CheckpointError, "holds no LoRA factors"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(tmp_path, change, error, says):
    plain_lora(tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_model.safetensors"
    save_file({name: value.contiguous() for name, value in change(load_file(path)).items()}, path)
    model = adapted()
    before = adapter_state(model)
    with pytest.raises(error, match=says):
        tasklora.import_lora(model, tmp_path / "lora")
    assert_unchanged(model, before)


def test_directories_that_are_damaged(tmp_path):
    plain_lora(tmp_path / "lora")
    model = adapted()
    before = adapter_state(model)
    for name, content, says in (
        ("adapter_model.safetensors", b"", "damaged"),
        ("adapter_model.safetensors", None, "no file"),
        ("adapter_config.json", b"{", "cannot read"),
        ("adapter_config.json", b"[]", "its peft_type is None"),
        ("adapter_config.json", None, "is no PEFT adapter: it has no adapter_config.json"),
    ):
        broken = tmp_path / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(tmp_path / "lora", broken)
        (broken / name).unlink()
        if content is not None:
            (broken / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=says):
            tasklora.import_lora(model, broken)
    assert_unchanged(model, before)


def test_merged_and_missing_adapters(tmp_path):
    plain_lora(tmp_path / "lora")
    model = adapted()
    with tasklora.use_tasks(model, "rte"):
        model.merge_adapter()
    with pytest.raises(UnsupportedError, match="merged into the base weights"):
        tasklora.import_lora(model, tmp_path / "lora")
    with pytest.raises(UnsupportedError, match="has no tasklora adapter"):
        tasklora.import_lora(tiny_llama(), tmp_path / "lora")


# --- several LoRAs as one adapter


def test_several_loras_become_one_adapter(tmp_path):
    expected = {
        "mood": plain_lora(tmp_path / "a", 1),
        "heat": plain_lora(tmp_path / "b", 2, r=4, use_rslora=True, target_modules=["q_proj", "o_proj"]),
    }
    config, left_out = bank_of_loras({"mood": tmp_path / "a", "heat": tmp_path / "b"}, tmp_path / "both")
    assert (config.tasks, config.r, left_out) == (["mood", "heat"], 4, [])
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "both").eval()
    for task, logits in expected.items():
        torch.testing.assert_close(run(model, task), logits, rtol=1e-5, atol=1e-5)
    mixed = run(model, ["heat", "mood", "heat"])
    torch.testing.assert_close(mixed[1], expected["mood"][1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed[2], expected["heat"][2], rtol=1e-5, atol=1e-5)


def test_loras_that_do_not_go_together(tmp_path):
    plain_lora(tmp_path / "llama")
    plain_lora(tmp_path / "bert", base=tiny_bert, target_modules=BERT_TARGETS, task_type="SEQ_CLS")
    plain_lora(tmp_path / "wide", base=lambda: tiny_llama(head_dim=8))
    for other, says in (("bert", "different task types"), ("wide", "not the same base model")):
        with pytest.raises(CheckpointError, match=says):
            bank_of_loras({"a": tmp_path / "llama", "b": tmp_path / other}, tmp_path / "both")
    path = tmp_path / "wide" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "another"}))
    with pytest.raises(CheckpointError, match=r"different base models: .*another"):
        bank_of_loras({"a": tmp_path / "llama", "b": tmp_path / "wide"}, tmp_path / "both")
    with pytest.raises(ConfigError, match="no LoRA was given"):
        bank_of_loras({}, tmp_path / "both")
    with pytest.raises(ConfigError, match="task names consist of"):
        bank_of_loras({"a/b": tmp_path / "llama"}, tmp_path / "both")
    assert not (tmp_path / "both").exists()
    assert read_lora(tmp_path / "llama").rank == 2
