"""Packed training: what the trainer makes of a batch, and of a run, is the same with its rows packed and padded."""

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, MambaConfig, MambaForCausalLM

from helpers_balancing import step
from helpers_runs import randomise, use_method
from helpers_text import SUITE, VOCABULARY, save_decoder, small_tokenizer
from tasklora.errors import ConfigError, UnsupportedError
from tasklora.tasks import TextToTextModel, pack_rows
from tasklora.training import RunDirectory, train_recipe
from tasklora.training.run import training_arguments
from tasklora.training.workloads import workload_of

TASKS = list(SUITE["tasks"])
PACKED = "training.packing=true"
FEW = ("tasks.limits={train: 16, tune: 4, validation: 6}", "training.group_by_length=false")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {kind: save_decoder(root / kind, kind) for kind in ("llama", "qwen3")}


def trainer_of(project, directory, *overrides):
    """Return the trainer of a recipe, with the model's updates filled with random numbers."""
    recipe = project.load(*overrides)
    work = workload_of(recipe)
    work.load_data(["train", "tune", "validation"])
    work.prepare()
    if recipe.training.gradient_checkpointing:
        work.checkpoint_activations()
    randomise(work.prepared.model)
    return work.trainer(training_arguments(recipe, RunDirectory(directory)), [])


def rows_of_all_tasks(trainer, count=12):
    return [dict(trainer.train_dataset[index]) for index in range(0, len(trainer.train_dataset), 128 // count)]


def expect_close(given, expected):
    """Compare gradients within 1e-5 of the largest number among them: backward in single precision rounds by that."""
    assert given.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(
            given[name], gradient, rtol=1e-5, atol=1e-5 * largest, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture
def seen(monkeypatch):
    """Return the inputs of the base model, a list that grows."""
    calls = []
    said = TextToTextModel._said

    def spy(self, task_ids, targets, inputs):
        calls.append((task_ids, inputs))
        return said(self, task_ids, targets, inputs)

    monkeypatch.setattr(TextToTextModel, "_said", spy)
    return calls


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_packed_step_is_the_padded_one(text_project, bases, tmp_path, kind, seen):
    """Losses, loss and gradients through the trainer's own collator and compute_loss, several tasks in a sequence."""
    found = []
    for packing in ("false", "true"):
        trainer = trainer_of(
            text_project, tmp_path / packing, f"model.name={bases[kind]}", f"training.packing={packing}"
        )
        batches = [trainer.data_collator(rows_of_all_tasks(trainer))]
        batches, counts = trainer.get_batch_samples(iter(batches), 1, torch.device("cpu"))
        trainer.model.train()
        loss, output = trainer.compute_loss(trainer.model, batches[0], True, counts)
        loss.backward()
        gradients = {n: p.grad for n, p in trainer.model.named_parameters() if p.requires_grad}
        found.append((loss.detach(), output.losses.detach(), gradients))
    (padded_ids, padded), (ids, packed) = seen
    assert padded_ids.tolist() == batches[0]["task_ids"].tolist()
    assert "attention_mask" not in packed  # or transformers would not look for packed rows
    assert packed["input_ids"].numel() < 0.8 * padded["input_ids"].numel()
    packing = pack_rows(batches[0]["attention_mask"])
    several = [len(set(tasks[rows >= 0].tolist())) for tasks, rows in zip(ids, packing.rows, strict=True)]
    assert max(several) > 1
    assert set(ids.flatten().tolist()) == set(range(len(TASKS)))

    (loss, losses, gradients), (packed_loss, packed_losses, packed_gradients) = found
    torch.testing.assert_close(packed_loss, loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(packed_losses, losses, rtol=1e-5, atol=0)
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())
    expect_close(packed_gradients, gradients)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param((use_method("lora"),), id="one adapter for all"),
        pytest.param((use_method("per_task_lora"),), id="bank"),
        pytest.param((use_method("hydra_lora"),), id="routed"),
        pytest.param(("method.target_modules=[q_proj, lm_head]",), id="the head adapted"),
        pytest.param(("training.gradient_checkpointing=true",), id="recomputed"),
        pytest.param(("training.balancing={method: uw}",), id="balanced losses"),
        pytest.param(("training.balancing={method: pcgrad}",), id="combined gradients"),
    ],
)
def test_so_with(text_project, tmp_path, overrides):
    """In batches of a step that is cut in two, with every kind of update and what else reads a step's rows."""
    if "balancing" in overrides[0]:
        pytest.importorskip("torchjd", reason="TorchJD (tasklora[balancing]) is not installed")
    found = []
    for packing in (False, True):
        more = (PACKED,) if packing else ()
        trainer = trainer_of(text_project, tmp_path / str(packing), "training.max_steps=2", *overrides, *more)
        rows = rows_of_all_tasks(trainer)
        found.append(step(trainer, [trainer.data_collator(half) for half in (rows[::2], rows[1::2])]))
    expect_close(found[1], found[0])


def test_a_packed_run_ends_as_the_padded_one(text_project, tmp_path):
    """Training packs; what is scored is asked as ever."""
    options = (*FEW, "training.max_steps=4", "model.evaluation=likelihood", "tasks.include=[mood, pick, echo]")
    runs = [train_recipe(text_project.load(*options, *more), tmp_path / str(len(more))) for more in ((), (PACKED,))]
    (padded, prepared), (packed, packed_prepared) = runs
    states = [
        {n: p for n, p in each.model.named_parameters() if p.requires_grad} for each in (prepared, packed_prepared)
    ]
    for name, parameter in states[0].items():
        torch.testing.assert_close(states[1][name], parameter, rtol=1e-3, atol=1e-4, msg=name)
    for task, score in padded.scores["validation"].tasks.items():
        assert packed.scores["validation"].tasks[task].loss == pytest.approx(score.loss, rel=1e-3)


def test_bfloat16_and_dropout_train(text_project, tmp_path):
    options = (*FEW, PACKED, "tasks.include=[mood, echo]", "training.precision=bfloat16", "training.max_steps=3")
    dropout = "method={name: mtl_lora, r: 4, lora_alpha: 8, lora_dropout: 0.1}"
    results, _ = train_recipe(text_project.load(*options, dropout), tmp_path / "run")
    assert results.training.steps == 3
    assert all(0 < score.loss < 20 for score in results.scores["validation"].tasks.values())


# --- refusals


def test_what_has_heads_is_refused_when_the_recipe_is_read(text_project):
    with pytest.raises(ConfigError, match=r"^training\.packing is for model\.view: text_to_text: .*group_by_length"):
        text_project.load(PACKED, "model.view=heads", "model.max_new_tokens=32", "tasks.include=[mood]")
    with pytest.raises(ConfigError, match=r"'training\.packing'"):
        text_project.load("training.packing=tight")


def bloom():
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=2)
    return BloomForCausalLM(config), "query_key_value"


def mamba():
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)
    return MambaForCausalLM(config), "in_proj"


@pytest.mark.parametrize("make", [bloom, mamba])
def test_models_that_see_across_rows_are_refused_before_a_run_begins(text_project, tmp_path, make):
    torch.manual_seed(0)
    tokenizer = small_tokenizer("llama")
    model, target = make()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    method = f"method={{name: mtl_lora, r: 4, lora_alpha: 8, target_modules: [{target}]}}"
    options = (*FEW, f"model.name={tmp_path / 'base'}", method, "tasks.include=[mood, echo]", "training.max_steps=1")
    with pytest.raises(UnsupportedError, match="packed rows"):
        train_recipe(text_project.load(*options, PACKED), tmp_path / "run")
    assert not (tmp_path / "run").exists()
