"""The recipes for decoders: their settings and numbers, and each run offline on a tiny model of its architecture."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from transformers import LlamaConfig, Qwen3Config

from helpers_runs import write_rows
from helpers_text import save_decoder
from tasklora.evaluation import read_predictions
from tasklora.tasks import TEXT_FORMS, load_suite, load_tasks, read_about, shipped_templates
from tasklora.training import count_recipe_parameters, load_recipe, train_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
DATA = Path(os.environ.get("TASKLORA_DATA", RECIPES.parents[1] / "shared" / "data")) / "commonsense"
LLAMA_2 = LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
LLAMA_3 = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_key_value_heads=8,
    max_position_embeddings=131072,
)
QWEN_3 = Qwen3Config(
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=12288,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=40960,
)
# recipe → architecture, its full size, its parameters in billions
CASES = {
    "commonsense-llama2-7b": ("llama", LLAMA_2, 6.74),
    "commonsense-llama3.1-8b": ("llama", LLAMA_3, 8.03),
    "commonsense-qwen3-8b": ("qwen3", QWEN_3, 8.19),
    "glue-text-to-text": ("llama", LLAMA_3, 8.03),
}
LEADS = {
    "boolq": ("Please answer the following question with true or false, question: is it {}?", ["true", "false"]),
    "piqa": ("Please choose the correct solution to the question: the {}", ["solution1", "solution2"]),
    "social_i_qa": ("Please choose the correct answer to the question: the {}", ["answer1", "answer2", "answer3"]),
    "hellaswag": ("Please choose the correct ending to complete the given sentence: the {}", ["ending1", "ending2"]),
    "winogrande": ("Please choose the correct answer to fill in the blank: the {} _", ["option1", "option2"]),
}


def instruction_row(task: str, place: int) -> dict[str, str]:
    """Return a made-up row of a commonsense task."""
    lead, names = LEADS.get(
        task, ("Please choose the correct answer to the question: the {}", [f"answer{n}" for n in range(1, 5)])
    )
    texts = "" if task == "boolq" else "\n\n" + " ".join(f"{name.capitalize()}: thing {name[-1]}" for name in names)
    answer = names[place % len(names)]
    instruction = f"{lead.format(f'word {place}')}{texts}\n\nAnswer format: {'/'.join(names)}"
    return {"instruction": instruction, "input": "", "output": f"the correct answer is {answer}", "answer": answer}


def write_commonsense(root: Path) -> Path:
    for task in load_suite("commonsense").tasks:
        for split, count in {"train": 20, "test": 20}.items():
            folder = root / task
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{split}.json").write_text(json.dumps([instruction_row(task, i) for i in range(count)]))
    return root


def write_glue(root: Path) -> Path:
    for task, spec in load_suite("glue").tasks.items():
        labels = [0.0, 2.5, 5.0] if spec.labels is None else list(range(len(spec.labels)))
        for split in ("train", "tune", "validation"):
            rows = [
                {**{column: f"the {column} {i}" for column in spec.inputs}, "label": labels[i % len(labels)]}
                for i in range(6)
            ]
            write_rows(root / task / f"{split}.jsonl", rows)
    return root


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_states_the_parameters_that_its_architecture_gives(name, tmp_path):
    _, config, billions = CASES[name]
    config.save_pretrained(tmp_path / "base")
    counts = count_recipe_parameters(load_recipe(RECIPES / f"{name}.yaml", [f"model.name={tmp_path / 'base'}"]))
    stated = re.search(r"([\d.]+) M trained|trained parameters  ([\d.]+) M", (RECIPES / f"{name}.yaml").read_text())
    assert stated is not None
    assert counts.trainable / 1e6 == pytest.approx(float(stated[1] or stated[2]), abs=0.006)
    assert counts.groups["heads"] == counts.groups["other"] == 0
    assert counts.total / 1e9 == pytest.approx(billions, abs=0.03)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[pytest.mark.slow] if name in ("commonsense-llama2-7b", "commonsense-llama3.1-8b") else []
        )
        for name in CASES
    ],
)
def test_a_recipe_trains_and_answers_offline_on_a_tiny_model_of_its_architecture(name, tmp_path):
    base = save_decoder(tmp_path / "base", CASES[name][0])
    glue = name.startswith("glue")
    data = (write_glue if glue else write_commonsense)(tmp_path / "data")
    overrides = [f"model.name={base}", f"tasks.data_root={data}", "training.max_steps=1", "training.logging_steps=1"]
    if not glue:
        overrides += ["tasks.limits={train: 3, tune: 1, test: 2}", "model.max_new_tokens=4"]
    recipe = load_recipe(RECIPES / f"{name}.yaml", overrides)
    results, _ = train_recipe(recipe, tmp_path / "run", command="tasklora train")
    suite = load_suite("glue" if glue else "commonsense")
    (scores,) = results.scores.values()
    assert list(scores.tasks) == list(suite.tasks)
    predictions = read_predictions(tmp_path / "run" / "predictions.jsonl")
    assert set(predictions) == set(suite.tasks)
    about = read_about(tmp_path / "run" / "best")
    assert about.view == "text_to_text"
    assert about.text().evaluation == ("likelihood" if glue else "greedy")
    assert {task: about.text().templates[task] for task in suite.tasks} == shipped_templates(suite.name)


def test_the_commonsense_recipes_have_the_published_settings():
    for name in CASES:
        if name.startswith("commonsense"):
            recipe = load_recipe(RECIPES / f"{name}.yaml")
            options, training = recipe.method.options, recipe.training
            assert (options["r"], options["lora_alpha"], options["lora_dropout"]) == (8, 16, 0.05)
            assert (options["up_projections"], options["temperature"]) == (3, 0.1)
            assert options["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
            assert (training.learning_rate, training.epochs, training.warmup_ratio) == (3e-4, 3, 0.01)
            assert (training.batch_size, training.weight_decay, training.max_grad_norm) == (8, 0.0, 1.0)
            assert (recipe.model.max_length, recipe.model.max_new_tokens) == (256, 32)
            assert (recipe.model.dtype, training.precision, training.scheduler) == ("bfloat16", "bfloat16", "linear")
            # The ids that the published code gives them.
            assert list(recipe.task_specs()) == (
                ["boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "ARC-Challenge", "ARC-Easy", "openbookqa"]
            )


def test_a_copy_of_a_suite_keeps_its_templates(tmp_path):
    copy = yaml.safe_load((RECIPES.parent / "src/tasklora/tasks/suites/commonsense.yaml").read_text())
    for task in copy["tasks"].values():
        task.pop("splits", None)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(copy))
    recipe = load_recipe(RECIPES / "commonsense-llama2-7b.yaml", [f"tasks.suite={tmp_path / 'mine.yaml'}"])
    assert recipe.text_to_text().templates == shipped_templates("commonsense")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data folder {DATA}; name one with TASKLORA_DATA")
@pytest.mark.parametrize("task", ["boolq", "winogrande", "openbookqa", "piqa"])
def test_real_rows_are_asked_in_their_own_words_and_their_outputs_are_read_right(task):
    spec, template = load_suite("commonsense").tasks[task], shipped_templates("commonsense")[task]
    form = TEXT_FORMS[spec.kind]
    columns = {task: [*form.columns(spec, template), "output"]}
    rows = load_tasks({task: spec}, ["test"], DATA, {"test": 60}, keep=columns).split("test")[task]
    assert len(rows) == 60
    for row in rows:
        options = form.options(spec, template, task, row)
        assert template.respond(form.answer(spec, options, row["label"])) == row["columns"]["output"]
        assert form.of_text(spec, template, options, row["columns"]["output"]) == row["label"]
        prompt = form.prompt(spec, template, task, row)
        assert f"### Instruction:\n{row['columns']['instruction']}\n\n### Response:\n" in prompt
