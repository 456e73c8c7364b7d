"""The commands between tasklora and other formats: rank-reduced export, import, convert; and each with wrong input."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import tasklora
from export.test_reference_checkpoints import merged_by_hand, reference_state
from helpers_exports import ROUTED
from helpers_models import run, tiny_llama
from helpers_runs import use_method
from tasklora.export import PRESETS, read_manifest

SETTINGS = ["--tasks", "one,two,three", "--alpha", "6", "--temperature", "0.7", "--base", "some/base"]


def assert_refused(said, says):
    assert said.code == 2, said
    assert says in said.err
    assert said.err.startswith("error ")
    assert "Traceback" not in said.err
    assert len(said.err.strip().splitlines()) == 1


@pytest.fixture
def checkpoint(tmp_path):
    torch.save(reference_state(), tmp_path / "final_checkpoint.pt")
    return tmp_path / "final_checkpoint.pt"


# --- export


def test_export_at_a_smaller_rank_says_what_it_lost(cli, trained, tmp_path):
    said = cli("export", trained.path, "--all", "--rank", "2", "--to", tmp_path / "out")
    assert said.code == 0, said.err
    assert " ".join(said.out.split()).count("rank 2 of 4: relative error ") == 3
    for task in ("mood", "answer", "heat"):
        manifest = read_manifest(tmp_path / "out" / task)
        assert (manifest["rank"], manifest["reduction"]["exact_rank"]) == (2, 4)
        assert f"{manifest['reduction']['relative_error']:.3g}" in said.out
    assert not (tmp_path / "out" / "README.md").exists()  # an encoder: nothing to serve with vLLM
    exact = cli("export", trained.path, "--task", "mood", "--to", tmp_path / "exact")
    assert "relative error" not in exact.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rank", "4"], "rank 4 reduces nothing: the exact plain LoRA has rank 4"),
        (["--rank", "0"], "rank must be a positive integer, got 0"),
        (["--rank", "2", "--merged"], "--rank is for a LoRA"),
    ],
)
def test_export_at_a_rank_that_makes_no_sense(cli, trained, tmp_path, arguments, says):
    assert_refused(cli("export", trained.path, "-t", "mood", "--to", tmp_path / "out", *arguments), says)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ROUTED)
def test_export_of_a_routed_run(cli, project, tmp_path, method):
    directory = tmp_path / "run"
    said = cli("train", project.recipe, "-o", directory, "--set", use_method(method), "--set", "training.epochs=1")
    assert said.code == 0, said.err
    for extra in (["--all"], ["-t", "mood", "--merged"], ["-t", "mood", "--rank", "1"]):
        assert_refused(cli("export", directory, "--to", tmp_path / "out", *extra), f"({method}) has no plain LoRA")
    assert not (tmp_path / "out").exists()


# --- import


def test_import_joins_exports_to_one_adapter(cli, trained, project, tmp_path):
    exported = cli("export", trained.path, "--all", "--to", tmp_path / "loras")
    assert exported.code == 0, exported.err
    pairs = [f"{task}={tmp_path / 'loras' / task}" for task in ("heat", "mood")]
    said = cli("import", *pairs, "--to", tmp_path / "both")
    assert said.code == 0, said.err
    assert "2 tasks, rank 4" in said.out
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(project.base), tmp_path / "both").eval()
    assert model.peft_config["default"].tasks == ["heat", "mood"]
    batch = {"input_ids": torch.arange(5, 13).view(2, 4)}
    mixed = model(**batch, task_ids=["mood", "heat"]).last_hidden_state
    for row, task in enumerate(("mood", "heat")):
        alone = PeftModel.from_pretrained(AutoModel.from_pretrained(project.base), tmp_path / "loras" / task).eval()
        torch.testing.assert_close(mixed[row], alone(**batch).last_hidden_state[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mood"], "a LoRA is given as TASK=DIRECTORY, got 'mood'"),
        (["=out"], "a LoRA is given as TASK=DIRECTORY, got '=out'"),
        (["a=x", "a=y"], "every task needs a name of its own, got: a, a"),
        (["mood=nowhere"], "nowhere is no PEFT adapter"),
    ],
)
def test_import_of_what_is_no_lora(cli, tmp_path, arguments, says):
    assert_refused(cli("import", *arguments, "--to", "out"), says)
    assert not (tmp_path / "out").exists()


# --- convert


def test_convert_and_back(cli, checkpoint, tmp_path):
    said = cli("convert", checkpoint, "--to", tmp_path / "out", *SETTINGS)
    assert said.code == 0, said.err
    assert "8 layers, r 4, n 2, 3 tasks, full task matrices" in said.out
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "out").eval()
    state = torch.load(checkpoint, weights_only=True)
    torch.testing.assert_close(run(model, "three"), run(merged_by_hand(state, 2)), rtol=1e-5, atol=1e-5)
    said = cli("convert", tmp_path / "out", "--to-reference", tmp_path / "back.pt")
    assert said.code == 0, said.err
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_convert_with_the_published_scripts_settings(cli, tmp_path):
    torch.save(reference_state(tasks=8, r=8, n=3), tmp_path / "c.pt")
    said = cli("convert", tmp_path / "c.pt", "--to", tmp_path / "out", "--preset", "commonsense")
    assert said.code == 0, said.err
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["tasks"] == list(PRESETS["commonsense"].tasks)
    assert (config["r"], config["lora_alpha"], config["temperature"], config["up_projections"]) == (8, 16, 0.1, 3)
    assert (config["base_model_name_or_path"], config["task_type"]) == ("meta-llama/Llama-2-7b-hf", "CAUSAL_LM")
    said = cli("convert", tmp_path / "c.pt", "--to", tmp_path / "own", "--preset", "commonsense", "--base", "my/base")
    assert json.loads((tmp_path / "own" / "adapter_config.json").read_text())["base_model_name_or_path"] == "my/base"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["CKPT", "--to", "out"], "does not hold its settings: give --tasks, --alpha, --temperature, --base"),
        (["CKPT", "--to", "out", *SETTINGS[2:]], "does not hold its settings: give --tasks as the training script"),
        (["CKPT", "--to", "out", "--preset", "comonsense"], "Did you mean 'commonsense'?"),
        (["CKPT", "--to", "out", "--preset", "commonsense"], "has rank 4, the preset is for rank 8: give --alpha"),
        (["CKPT", "--to", "out", "--preset", "commonsense", "--alpha", "8"], "holds 3 tasks, but 8 names were given"),
        (["CKPT", *SETTINGS], "say where to: --to DIRECTORY"),
        (["CKPT", "--to", "out", "--to-reference", "x.pt"], "say where to: --to DIRECTORY"),
        (["CKPT", "--to-reference", "x.pt"], "is no adapter"),
        (["CKPT", "--to-reference", "x.pt", "--alpha", "3"], "leave out --alpha"),
        (["nowhere.pt", "--to", "out", *SETTINGS], "no file nowhere.pt"),
        ([".", "--to", "out", *SETTINGS], "is a folder"),
        (["plain.safetensors", "--to", "out", *SETTINGS], "a plain LoRA of PEFT"),
        (["vision.pth", "--to", "out", *SETTINGS], "a checkpoint of MTLoRA, the vision method"),
        (["cut.pt", "--to", "out", *SETTINGS], "damaged or cut off"),
        (["object.pt", "--to", "out", *SETTINGS], "pickled Python objects"),
        (["CKPT", "--to", "full", *SETTINGS], "full is not empty"),
        (["CKPT", "--to", "out", *SETTINGS, "--temperature", "0"], "temperature must be positive"),
    ],
)
def test_convert_with_wrong_input(cli, checkpoint, tmp_path, arguments, says):
    save_file({"base_model.model.q.lora_A.weight": torch.ones(1)}, tmp_path / "plain.safetensors")
    torch.save({"model": {"x.lora_tasks_B.semseg": torch.ones(1)}}, tmp_path / "vision.pth")
    (tmp_path / "cut.pt").write_bytes(checkpoint.read_bytes()[:2000])
    torch.save(torch.nn.Linear(1, 1), tmp_path / "object.pt")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    files = {path.name for path in tmp_path.iterdir()}
    assert_refused(cli("convert", *(str(checkpoint) if a == "CKPT" else a for a in arguments)), says)
    assert {path.name for path in tmp_path.iterdir()} == files
    assert {path.name for path in (tmp_path / "full").iterdir()} == {"mine"}


def test_a_converted_adapter_is_exported_and_served(cli, checkpoint, tmp_path):
    """From the published code's file to a plain LoRA with a command for a server."""
    said = cli("convert", checkpoint, "--to", tmp_path / "out", *SETTINGS, "--task-type", "CAUSAL_LM")
    assert said.code == 0, said.err
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "out").eval()
    exports = tasklora.export_all(model, tmp_path / "loras")
    assert "vllm serve some/base " in (tmp_path / "loras" / "README.md").read_text()
    assert load_file(exports["two"] / "adapter_model.safetensors")
