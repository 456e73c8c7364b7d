"""A thousand tasks in one adapter: trained, scored, saved, loaded and exported like three."""

import random
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from helpers_runs import SUITE, assert_same_state, tiny_row, trained_state
from tasklora.export import export_task
from tasklora.tasks import TaskRows, TaskSpec, load_model, read_safetensors
from tasklora.tasks.saved_model import SavedModel
from tasklora.training import MultiTaskTrainer, RunDirectory
from tasklora.training.run import training_arguments
from tasklora.tuner import MTLLoraConfig

TASKS = 1000


@pytest.mark.slow
def test_a_thousand_tasks_train_and_save_without_special_care(project):
    from peft import get_peft_model

    generator, spec = random.Random(0), TaskSpec.model_validate(SUITE["tasks"]["mood"])
    names = [f"task_{place:04d}" for place in range(TASKS)]
    rows = {
        name: TaskRows(name, spec, Dataset.from_list([tiny_row("mood", generator) for _ in range(3)]), "train")
        for name in names
    }
    recipe = project.load("training.max_steps=20", "training.batch_size=64", "training.evaluate_every=20")
    base = project.base_model()
    config = MTLLoraConfig(tasks=names, r=4, lora_alpha=8, up_projections=2, target_modules=["query", "value"])
    about = SavedModel(
        base=str(project.base),
        fingerprint=base.fingerprint,
        hidden_size=base.hidden_size,
        pooling="mean",
        max_length=24,
        head_dropout=0.0,
        tasks=dict.fromkeys(names, spec),
        pair_encodings=dict.fromkeys(names, "joint"),
    )
    model = about.model_around(get_peft_model(base.model, config))
    before = trained_state(model)
    trainer = MultiTaskTrainer(
        model,
        about,
        training_arguments(recipe, RunDirectory("run")),
        rows,
        rows,
        about.collator(base.tokenizer),
        group_by_length=False,
    )
    began = time.perf_counter()
    trainer.train()
    print(f"20 steps of 64 rows, scoring {3 * TASKS} rows and a checkpoint: {time.perf_counter() - began:.1f} s")
    assert sum(trainer.drawn_rows().values()) == 20 * 64
    checkpoint = Path("run/checkpoints/checkpoint-20")
    assert checkpoint.is_dir()
    trained = trained_state(model)
    assert sum(not torch.equal(before[name], trained[name]) for name in trained) > 1.2 * TASKS  # heads that were drawn
    loaded, saved, _ = load_model(checkpoint)
    assert list(saved.tasks) == names
    assert_same_state(dict(loaded.heads.state_dict()), dict(model.heads.state_dict()))
    one = export_task(loaded, saved, "task_0500", "exported")
    assert read_safetensors(one / "adapter_model.safetensors")
    print(f"checkpoint: {sum(file.stat().st_size for file in checkpoint.iterdir()) / 2**20:.1f} MiB")
