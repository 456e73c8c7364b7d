"""FSDP2 as a launcher asks for it: what is read, what is refused, and sharded models saved, loaded and trained.

Here a group of one process shards, which takes a moment; `tests/integrations/test_sharded_recipes.py` starts two.
"""

import os

import pytest
import torch
import torch.distributed as dist

from helpers_runs import EVERY_METHOD, assert_same_state, randomise, trained_state, use_method
from tasklora.errors import ConfigError, UnsupportedError
from tasklora.evaluation import diagnose, gathered_updates, predict_tasks
from tasklora.tasks import load_model, load_weights, save_model
from tasklora.training import train_recipe
from tasklora.training.processes import check_launcher
from tasklora.training.run import training_arguments
from tasklora.training.sharding import Sharding, unseen_by_accelerate
from tasklora.tuner.sharding import is_shard, reshard, whole


@pytest.fixture
def launched(monkeypatch):
    """Return a function that sets what a launcher with FSDP2 sets, for two processes."""
    for name in [name for name in os.environ if name.startswith("FSDP_")]:
        monkeypatch.delenv(name)

    def launch(**settings: str) -> None:
        asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2", **settings}
        for name, value in asked.items():
            monkeypatch.setenv(name, value)

    return launch


@pytest.fixture
def group():
    """Make a group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_nothing_is_sharded_unless_the_launcher_asks(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert Sharding.of_launcher() is None
    with unseen_by_accelerate():
        pass
    assert "ACCELERATE_USE_FSDP" not in os.environ


def test_what_a_launcher_asks_for_is_read_and_kept_from_others(launched):
    launched(
        FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
        FSDP_TRANSFORMER_CLS_TO_WRAP="BertLayer,BertEmbeddings",
        FSDP_RESHARD_AFTER_FORWARD="false",
        FSDP_CPU_RAM_EFFICIENT_LOADING="true",  # accelerate's launcher always says so
        FSDP_STATE_DICT_TYPE="SHARDED_STATE_DICT",
    )
    assert Sharding.of_launcher() == Sharding(("BertLayer", "BertEmbeddings"), reshard_after_forward=False)
    with unseen_by_accelerate():
        assert "ACCELERATE_USE_FSDP" not in os.environ
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"FSDP_VERSION": "1"}, "with FSDP2 only: pass --fsdp_version 2"),
        ({"WORLD_SIZE": "1"}, "the launcher started one"),
        ({"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, "SIZE_BASED_WRAP, but a model is sharded by its blocks"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "set training.gradient_checkpointing in the recipe"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "FSDP_OFFLOAD_PARAMS=true, but parameters stay on the device"),
        ({"FSDP_IGNORED_MODULES": "heads"}, "FSDP_IGNORED_MODULES=heads, but all parameters are sharded"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "one mesh of all processes"),
        ({"FSDP_OFFLOAD_PARAMS": "perhaps"}, "FSDP_OFFLOAD_PARAMS=perhaps: give true or false"),
        ({"ACCELERATE_USE_FSDP": "yes"}, "ACCELERATE_USE_FSDP=yes: give true or false"),
        ({"ACCELERATE_USE_FSDP": "1", "FSDP_VERSION": "1"}, "with FSDP2 only"),
    ],
)
def test_what_is_not_done_is_refused_before_a_run_is_made(project, tmp_path, launched, settings, message):
    launched(**settings)
    with pytest.raises((UnsupportedError, ConfigError), match=message):
        train_recipe(project.load(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "error", "says"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", UnsupportedError, "ACCELERATE_USE_DEEPSPEED=true, but runs share"),
        ("ACCELERATE_USE_MEGATRON_LM", "1", UnsupportedError, "ACCELERATE_USE_MEGATRON_LM=1, but runs share"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", ConfigError, "=bf16, the recipe says training.precision: float32"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", ConfigError, "=fp16, the recipe says training.precision: float32"),
    ],
)
def test_what_the_recipe_does_not_say_is_not_done_for_a_launcher(
    project, tmp_path, monkeypatch, name, value, error, says
):
    monkeypatch.setenv(name, value)
    with pytest.raises(error, match=says):
        train_recipe(project.load(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_launcher_may_ask_for_the_precision_of_the_recipe(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    check_launcher("bfloat16")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # what accelerate's launcher says by itself
    check_launcher("bfloat16")
    check_launcher("float32")


@pytest.mark.parametrize("section", ["balancing={method: uw}", "gradient_cosines={every: 5}"])
def test_recipes_that_need_whole_parameters_are_refused(project, section):
    with pytest.raises(UnsupportedError, match=rf"training.{section.partition('=')[0]} takes gradients of whole"):
        Sharding().check(project.load(f"training.{section}"))


@pytest.mark.parametrize(
    ("overrides", "sharding", "error", "message"),
    [
        ([use_method("ta_lora")], Sharding(), UnsupportedError, "orthogonality: 0"),
        (
            [use_method("full_fine_tuning"), "model.dtype=bfloat16"],
            Sharding(),
            UnsupportedError,
            r"there are torch\.bfloat16, torch\.float32",
        ),
        ([], Sharding(("BertLyer",)), ConfigError, "no module of class 'BertLyer'. Did you mean 'BertLayer'"),
    ],
)
def test_models_that_cannot_be_sharded_are_refused(project, overrides, sharding, error, message):
    with pytest.raises(error, match=message):
        sharding.check_model(project.prepare(*overrides).model)


def test_a_base_that_says_of_no_blocks_is_refused(project):
    model = project.prepare().model
    model.encoder.get_base_model()._no_split_modules = set()
    with pytest.raises(ConfigError, match="FSDP_TRANSFORMER_CLS_TO_WRAP"):
        Sharding().check_model(model)


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_a_sharded_model_is_saved_and_loaded_bit_by_bit(project, tmp_path, group, method):
    overrides = [use_method(method)] if method != "ta_lora" else ["method={name: ta_lora, r: 4, orthogonality: 0}"]
    prepared, other = project.prepare(*overrides), project.prepare(*overrides)
    randomise(other.model, seed=1)
    states = [trained_state(each.model) for each in (prepared, other)]
    save_model(other.model, other.about, tmp_path / "other")
    Sharding().check_model(prepared.model)
    Sharding().shard(prepared.model)
    assert all(is_shard(parameter) for parameter in prepared.model.parameters())
    rows = project.rows().split("validation")
    predict_tasks(prepared.model, rows, prepared.about.collator(prepared.base.tokenizer))  # leaves some gathered
    save_model(prepared.model, prepared.about, tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {p.name for p in (tmp_path / "other").iterdir()}
    loaded, about, _ = load_model(tmp_path / "saved")
    loaded_state = {name: p.detach() for name, p in loaded.named_parameters() if name in states[0]}
    assert about == prepared.about
    assert_same_state(loaded_state, states[0])
    load_weights(prepared.model, tmp_path / "other")
    assert_same_state(whole(dict(trained_state(prepared.model))), states[1])


def test_diagnostics_of_a_sharded_model_are_those_of_the_whole_one(project, group):
    prepared = project.prepare()
    expected = diagnose(prepared.model)
    Sharding().shard(prepared.model)
    with gathered_updates(prepared.model):
        assert diagnose(prepared.model) == expected
    assert all(is_shard(parameter) for parameter in prepared.model.parameters())


def test_a_sharded_model_trains_scores_and_resumes_as_a_whole_one(project, tmp_path, group):
    """The checkpoint is that of one process: whole tensors, in the same order."""
    settings = ["training.max_steps=6", "training.evaluate_every=3", "training.weight_decay=0.5"]
    trainers = [project.trainer(tmp_path / name, *settings) for name in ("whole", "sharded", "resumed")]
    for trainer in trainers[1:]:
        Sharding().shard(trainer.model)
        assert trainer.is_sharded
    trainers[0].train()
    trainers[1].train()
    checkpoints = [tmp_path / name / "checkpoints" for name in ("whole", "sharded")]
    trainers[2].train(resume_from_checkpoint=str(checkpoints[1] / "checkpoint-3"))
    states = []
    for trainer in trainers:
        reshard(trainer.model)
        states.append(whole(trained_state(trainer.model)))
    assert_same_state(states[2], states[1])
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    logs = [[entry for entry in trainer.state.log_history if "loss" in entry] for trainer in trainers[:2]]
    for mine, theirs in zip(*logs, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)
        assert theirs["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-3)
    saved, expected = (torch.load(folder / "checkpoint-6" / "optimizer.pt") for folder in checkpoints[::-1])
    assert saved["param_groups"] == expected["param_groups"]
    assert saved["state"].keys() == expected["state"].keys()
    for index, entries in expected["state"].items():
        for key, value in entries.items():
            torch.testing.assert_close(saved["state"][index][key], value, rtol=1e-3, atol=1e-4)


def test_arguments_of_a_run_do_not_ask_for_another_sharding(project, tmp_path):
    """Were they to, the Trainer would shard by itself."""
    from tasklora.training import RunDirectory

    assert not training_arguments(project.load(), RunDirectory(tmp_path)).fsdp
