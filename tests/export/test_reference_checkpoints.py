"""Checkpoints of MTL-LoRA's published code: converted, they give that code's numbers; anything else is refused by name.

The reference's formula is written out here, row by row, on a state dict in its own names and shapes; and its golden
numbers are met through a converted checkpoint (their folder: see tests/parity/test_golden.py).
"""

import json

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from helpers_models import LLAMA_TARGETS, adapt, config_of, inputs_of, run, tiny_llama
from parity.test_golden import FOLDER, relative_error
from tasklora.errors import BrokenAdapterError, CheckpointError, ConfigError, OutputError, UnsupportedError
from tasklora.export import PRESETS, convert_reference, write_reference
from tasklora.tuner import MTLLoraConfig

SETTINGS = {"tasks": ["one", "two", "three"], "lora_alpha": 6, "temperature": 0.7, "base": "some/base"}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def reference_state(base=None, tasks=3, r=4, n=2, diagonal=False, targets=PROJECTIONS, prefix="", dtype=torch.float32):
    """Return what the published code saves for a model: every tensor whose name contains "lora"."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape):
        return (torch.randn(*shape, generator=generator) * 0.3).to(dtype)

    state = {}
    for path, module in (base or tiny_llama()).named_modules():
        if isinstance(module, nn.Linear) and any(target in path for target in targets):
            name = f"{prefix}{path}"
            state[f"{name}.lora_A"] = numbers(1, r, module.in_features)
            state[f"{name}.lora_lambdas"] = numbers(tasks, r) if diagonal else numbers(tasks, r, r)
            state[f"{name}.lora_B"] = numbers(n, module.out_features, r)
            state[f"{name}.lora_B_w"] = numbers(tasks, n)
    return state


def merged_by_hand(state, task, alpha=6, temperature=0.7, prefix=""):
    """Return the base model with the reference's update of one task added to its weights."""
    model = tiny_llama()
    for key in [key for key in state if key.endswith(".lora_A")]:
        path = key.removesuffix(".lora_A")
        a, b, w = state[key][0], state[f"{path}.lora_B"], state[f"{path}.lora_B_w"][task]
        matrix = state[f"{path}.lora_lambdas"][task]
        matrix = torch.diag(matrix) if matrix.dim() == 1 else matrix
        weights = torch.softmax(w / temperature, dim=-1)
        delta = sum(weights[i] * b[i] for i in range(len(b))) @ matrix @ a * (alpha / a.shape[0])
        with torch.no_grad():
            model.get_submodule(path.removeprefix(prefix)).weight.add_(delta)
    return model


def convert(state, tmp_path, name="out", **options):
    torch.save(state, tmp_path / "final_checkpoint.pt")
    return convert_reference(tmp_path / "final_checkpoint.pt", tmp_path / name, **{**SETTINGS, **options})


@pytest.mark.parametrize("diagonal", [False, True], ids=["full", "diagonal"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_converted_checkpoint_gives_the_references_logits(tmp_path, diagonal, prefix):
    state = reference_state(diagonal=diagonal, prefix=prefix)
    done = convert(state, tmp_path)
    assert done.layers == 8
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "out").eval()
    for index, task in enumerate(SETTINGS["tasks"]):
        expected = run(merged_by_hand(state, index, prefix=prefix))
        torch.testing.assert_close(run(model, task), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(run(model, "one"), run(model, "two"), atol=1e-3)


def test_what_the_config_says(tmp_path):
    convert(reference_state(n=3, r=2), tmp_path, revision="abc", task_type="CAUSAL_LM", lora_dropout=0.05)
    config = MTLLoraConfig.from_pretrained(tmp_path / "out")
    assert (config.r, config.up_projections, config.task_matrix) == (2, 3, "full")
    assert (config.lora_alpha, config.temperature, config.lora_dropout) == (6, 0.7, 0.05)
    assert (config.tasks, config.target_modules) == (SETTINGS["tasks"], set(PROJECTIONS))
    assert (config.base_model_name_or_path, config.revision, config.task_type) == ("some/base", "abc", "CAUSAL_LM")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}


def test_layers_that_leaf_names_cannot_tell_apart_are_named_in_full(tmp_path):
    state = reference_state(targets=["layers.1.self_attn.q_proj"])
    convert(state, tmp_path)
    config = MTLLoraConfig.from_pretrained(tmp_path / "out")
    assert config.target_modules == {"model.layers.1.self_attn.q_proj"}
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "out").eval()
    torch.testing.assert_close(run(model, "two"), run(merged_by_hand(state, 1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mtl_lora_full", "mtl_lora_diagonal"])
def test_the_golden_numbers(tmp_path, name):
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path} (set TASKLORA_GOLDEN to the folder of golden files)")
    golden = load_file(path)
    with safe_open(path, framework="pt") as file:
        meta = json.loads(file.metadata()["meta"])
    names = {"A": "lora_A", "B": "lora_B", "Lambda": "lora_lambdas", "w": "lora_B_w"}
    state = {f"layer.{theirs}": golden[ours] for ours, theirs in names.items()}
    settings = {"tasks": [f"t{i}" for i in range(meta["T"])], "lora_alpha": meta["alpha"], "temperature": meta["tau"]}
    convert(state, tmp_path, **settings)
    base = nn.ModuleDict({"layer": nn.Linear(meta["i"], meta["o"], bias=meta["bias"])}).double()
    base.forward = lambda x: base["layer"](x)
    with torch.no_grad():
        base["layer"].weight.copy_(golden["W"])
        if meta["bias"]:
            base["layer"].bias.copy_(golden["b"])
    model = PeftModel.from_pretrained(base, tmp_path / "out", autocast_adapter_dtype=False).eval()
    y = model(golden["x"], task_ids=golden["task_ids"])
    assert y.dtype == torch.float64
    assert relative_error(y, golden["y"]) <= 1e-10


@pytest.mark.parametrize("task_matrix", ["full", "diagonal"])
def test_there_and_back_bit_by_bit(tmp_path, task_matrix):
    model = adapt(tiny_llama(), config_of("mtl_lora", target_modules=LLAMA_TARGETS, task_matrix=task_matrix, r=4))
    model.save_pretrained(tmp_path / "adapter")
    assert write_reference(tmp_path / "adapter", tmp_path / "back.pt") == 6
    state = torch.load(tmp_path / "back.pt", weights_only=True)
    config = model.peft_config["default"]
    settings = {"tasks": config.tasks, "lora_alpha": config.lora_alpha, "temperature": config.temperature}
    convert_reference(tmp_path / "back.pt", tmp_path / "again", base="some/base", **settings)
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    expected = run(model, "rte")
    torch.testing.assert_close(
        run(merged_by_hand(state, 1, config.lora_alpha, config.temperature)), expected, rtol=1e-5, atol=1e-5
    )


def test_safetensors_and_bf16(tmp_path):
    state = reference_state(dtype=torch.bfloat16)
    save_file(state, tmp_path / "checkpoint.safetensors")
    convert_reference(tmp_path / "checkpoint.safetensors", tmp_path / "out", **SETTINGS)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    key = "model.layers.0.self_attn.q_proj"
    assert torch.equal(tensors[f"base_model.model.{key}.task_updates.B"], state[f"{key}.lora_B"].transpose(0, 1))


def test_the_preset_is_the_published_scripts(tmp_path):
    known = PRESETS["commonsense"]
    assert (known.r, known.lora_alpha, known.temperature, len(known.tasks)) == (8, 16, 0.1, 8)
    assert known.tasks[5:7] == ("ARC-Challenge", "ARC-Easy")
    MTLLoraConfig(tasks=list(known.tasks))  # the names are usable as they are


# --- refusals

Q = "model.layers.0.self_attn.q_proj"


def without(*names):
    return lambda state: {key: value for key, value in state.items() if key not in names}


def changed(name, change):
    return lambda state: {**state, name: change(state[name])}


def added(name, *shape):
    return lambda state: {**state, name: torch.ones(shape)}


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (without(f"{Q}.lora_B_w"), CheckpointError, f"is not complete: '{Q}' lacks lora_B_w"),
        (without(f"{Q}.lora_A", f"{Q}.lora_B"), CheckpointError, "lacks lora_A, lora_B"),
        (changed(f"{Q}.lora_A", lambda t: t[0]), CheckpointError, rf"shapes of '{Q}' do not fit: lora_A \(4, 32\)"),
        (changed(f"{Q}.lora_A", lambda t: t[:, :3]), CheckpointError, "do not fit"),
        (changed(f"{Q}.lora_B", lambda t: t[:, :, :3]), CheckpointError, "do not fit"),
        (changed(f"{Q}.lora_B_w", lambda t: t[:2]), CheckpointError, "do not fit"),
        (changed(f"{Q}.lora_lambdas", lambda t: t[:, 0]), CheckpointError, "do not fit"),
        (changed(f"{Q}.lora_lambdas", lambda t: t[:2]), CheckpointError, "do not fit"),
        (changed(f"{Q}.lora_B", lambda t: t / 0), BrokenAdapterError, "NaN or infinity in .*lora_B"),
        (added(f"{Q}.lora_scaler"), CheckpointError, "1 tensors that are not MTL-LoRA's: .*lora_scaler"),
        (added("model.norm.weight", 32), CheckpointError, "that are not MTL-LoRA's: model.norm.weight"),
        (added(f"{Q}.lora_B_q", 2, 3), CheckpointError, "fused q-k-v layer"),
    ],
)
def test_files_that_do_not_fit(tmp_path, change, error, says):
    with pytest.raises(error, match=says):
        convert(change(reference_state()), tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"backbone.layers.0.lora_shared_A": torch.ones(1)}, "a checkpoint of MTLoRA, the vision method"),
        ({"x.lora_tasks_B.semseg": torch.ones(1)}, "a checkpoint of MTLoRA, the vision method"),
        (
            {"base_model.model.q.lora_A.weight": torch.ones(1)},
            r"a plain LoRA of PEFT; load it with tasklora\.import_lora",
        ),
        ({"base_model.model.q.task_updates.A": torch.ones(1)}, "an adapter of tasklora already"),
        ({"q.lora_route.weight": torch.ones(1)}, "another kind of LoRA"),
        ({"model.norm.weight": torch.ones(1)}, "1 tensors without any of a LoRA"),
    ],
)
def test_other_kinds_of_checkpoint_are_named(tmp_path, state, says):
    for wrapped in (state, {"model": state}):
        with pytest.raises(CheckpointError, match=says):
            convert(wrapped, tmp_path)


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save(reference_state(), path)
    whole = path.read_bytes()

    def attempt(says, content=None):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match=says):
            convert_reference(path, tmp_path / "out", **SETTINGS)

    attempt("damaged or cut off", whole[: len(whole) // 2])
    attempt("damaged", b"")
    attempt("damaged", b"not a checkpoint at all")
    attempt("damaged or cut off", b"\x80\x02}q\x00")
    torch.save(nn.Linear(2, 2), path)
    attempt(r"holds pickled Python objects, .* torch\.save\(model\.state_dict\(\)")
    torch.save([torch.ones(1)], path)
    attempt("holds no state dict but list")
    torch.save({"epoch": 3, "a.lora_A": torch.ones(1)}, path)
    attempt("is no state dict: besides tensors it holds epoch")
    path.unlink()
    attempt("no file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="folder is a folder"):
        convert_reference(tmp_path / "folder", tmp_path / "out", **SETTINGS)
    assert not (tmp_path / "out").exists()


def test_no_code_of_a_pickle_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"a.lora_A": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="pickled Python objects"):
        convert_reference(tmp_path / "checkpoint.pt", tmp_path / "out", **SETTINGS)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tasks": ["one", "two"]}, "holds 3 tasks, but 2 names were given: one, two"),
        ({"tasks": ["one", "one", "two"]}, "duplicate task names: one"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be positive"),
        ({"expected_rank": 8}, "has rank 4, the preset is for rank 8"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, options, says):
    with pytest.raises(ConfigError, match=says):
        convert(reference_state(), tmp_path, **options)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(OutputError, match="is not empty"):
        convert(reference_state(), tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    convert(reference_state(), tmp_path, overwrite=True)
    assert (tmp_path / "out" / "mine").read_text() == "mine"
    (tmp_path / "back.pt").write_text("mine")
    with pytest.raises(OutputError, match=r"back\.pt exists already"):
        write_reference(tmp_path / "out", tmp_path / "back.pt")
    with pytest.raises(OutputError, match="no folder"):
        write_reference(tmp_path / "out", tmp_path / "no" / "back.pt")
    assert (tmp_path / "back.pt").read_text() == "mine"
    assert write_reference(tmp_path / "out", tmp_path / "back.pt", overwrite=True) == 8


def test_what_the_reference_cannot_hold(tmp_path):
    def saved(name, method="mtl_lora", **options):
        model = adapt(tiny_llama(), config_of(method, **{"target_modules": LLAMA_TARGETS, **options}))
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    for folder, says in (
        (saved("bank", "per_task_lora"), "is no MTL-LoRA but PerTaskLoraConfig"),
        (saved("ranks", rank_pattern={"q_proj": 5}), "one rank and one alpha for all layers"),
        (
            saved("head", modules_to_save=["lm_head"]),
            "'base_model.model.lm_head.weight', for which the reference has no",
        ),
    ):
        with pytest.raises(UnsupportedError, match=says):
            write_reference(folder, tmp_path / "back.pt")
    with pytest.raises(CheckpointError, match="is no adapter"):
        write_reference(tmp_path, tmp_path / "back.pt")
    assert not (tmp_path / "back.pt").exists()


def test_the_model_that_is_compared_with_is_adapted(tmp_path):
    """The logits of the tests above are not the base's."""
    state = reference_state()
    convert(state, tmp_path)
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "out").eval()
    with torch.no_grad():
        base = tiny_llama()(**inputs_of(model))[0]
    assert (run(model, "one") - base).abs().max() > 1e-2
