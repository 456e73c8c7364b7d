"""The commands on good input: help, version, params, methods, and train → evaluate → predict → export end to end."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel

import tasklora
from helpers_runs import METHODS, TASKS, in_subprocess, use_method
from tasklora.evaluation import ComparisonResults, RunResults, count_parameters, predict_rows
from tasklora.tasks import load_model
from tasklora.tuner import METHODS as REGISTRY

COMMANDS = [
    "train",
    "compare",
    "evaluate",
    "report",
    "predict",
    "export",
    "import",
    "convert",
    "params",
    "methods",
    "demo",
]


def test_help_lists_every_command(cli):
    said = cli("--help")
    assert said.code == 0
    assert all(f" {command} " in said.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(cli, command):
    said = cli(command, "--help")
    assert said.code == 0
    assert f"tasklora {command}" in said.out


def test_version(cli):
    assert cli("--version").out == f"tasklora {tasklora.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(project, arguments):
    code = (
        "import sys; from tasklora.cli import main; sys.argv = ['tasklora', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'numpy', 'sklearn', 'scipy'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    said = in_subprocess(project, "-c", code, *arguments)
    assert said.stdout.splitlines()[-1] == "HEAVY []", said.stderr


def test_python_m_tasklora_is_the_command(project):
    said = in_subprocess(project, "-m", "tasklora", "--version")
    assert (said.returncode, said.stdout) == (0, f"tasklora {tasklora.__version__}\n")


@pytest.mark.parametrize("method", METHODS)
def test_params_counts_what_the_real_model_has(cli, project, method):
    said = cli("params", project.recipe, "--json", "--set", use_method(method))
    counts = count_parameters(project.prepare(use_method(method)).model)
    data = json.loads(said.out)
    assert data["trainable"] == counts.trainable == sum(data["groups"].values())
    assert data["groups"] == counts.groups
    assert list(data)[:2] == ["trainable", "groups"]


def test_params_as_a_table(cli, project):
    said = cli("params", project.recipe)
    counts = count_parameters(project.prepare().model)
    assert said.code == 0
    for number in (*counts.groups.values(), counts.trainable, counts.total):
        assert f"{number:,}" in said.out


def test_params_needs_no_weights(cli, project, tmp_path):
    folder = shutil.copytree(project.base, tmp_path / "base")
    (folder / "model.safetensors").unlink()
    said = cli("params", project.recipe, "--json", "--set", f"model.name={folder}")
    assert json.loads(said.out) == json.loads(cli("params", project.recipe, "--json").out)


def test_methods_are_those_of_the_registry(cli):
    records = json.loads(cli("methods", "--json").out)
    assert [record["name"] for record in records] == [*REGISTRY, "mtlora"]
    for record, method in zip(records, REGISTRY.values(), strict=False):
        assert (record["method"], record["paper"], record["kind"]) == (
            method.title,
            method.paper,
            method.update_cls.kind,
        )
        assert record["task ids"] is method.update_cls.uses_task_ids
        assert record["plain LoRA per task"] is (method.update_cls.kind != "routed")


def test_methods_as_markdown_and_as_a_table(cli):
    header, rule, *rows = cli("methods", "--markdown").out.splitlines()
    assert rule.count("---") == header.count("|") - 1 == len(json.loads(cli("methods", "--json").out)[0])
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in [*REGISTRY, "mtlora"]]
    assert cli("methods").code == 0


# --- end to end


def test_train_evaluate_predict_export(cli, project, tmp_path):
    run = tmp_path / "run"
    said = cli("train", project.recipe, "--output", run, "--data-root", project.data, "--set", "training.epochs=1")
    assert said.code == 0, said.err
    assert "average on validation" in said.out
    assert all(task in said.out for task in TASKS)
    results = RunResults.read(run / "results.json")
    assert results.command.startswith("tasklora train ")
    assert str(project.recipe) in results.command

    said = cli("evaluate", run, "--json")
    assert json.loads(said.out) == json.loads(results.scores["validation"].model_dump_json())
    assert cli("predict", run, "--task", "mood", "a good film").code == 0
    assert cli("export", run, "--task", "mood", "--to", tmp_path / "mood").code == 0
    PeftModel.from_pretrained(AutoModel.from_pretrained(project.base), tmp_path / "mood")


def test_the_recipes_own_directory_is_the_default(cli, project, tmp_path):
    said = cli(
        "train", project.recipe, "--set", "training.max_steps=1", "--set", f"output.directory={tmp_path / 'own'}"
    )
    assert said.code == 0, said.err
    assert (tmp_path / "own" / "results.json").is_file()


def test_train_overwrites_when_asked_to(cli, project, tmp_path):
    short = ("--output", tmp_path / "run", "--set", "training.max_steps=1")
    assert [cli("train", project.recipe, *short).code for _ in range(2)] == [0, 2]
    assert cli("train", project.recipe, *short, "--overwrite").code == 0


def test_compare(cli, project, tmp_path):
    arguments = ["--methods", "lora, heads_only", "--seeds", "3", "--search", "lr=0.01", "--output", tmp_path / "out"]
    said = cli("compare", project.recipe, *arguments, "--set", "training.max_steps=1")
    assert said.code == 0, said.err
    assert "lora seed 3 learning_rate=0.01: average on tune" in said.out
    assert "heads only" in said.out
    results = ComparisonResults.read(tmp_path / "out" / "results.json")
    assert ([method.name for method in results.methods], results.seeds) == (["lora", "heads_only"], [3])
    assert results.command.startswith(f"tasklora compare {project.recipe} --methods 'lora, heads_only' --seeds 3 ")


@pytest.mark.parametrize("split", ["train", "tune", "validation"])
def test_evaluate_scores_any_split(cli, trained, split):
    scores = json.loads(cli("evaluate", trained.path, "--split", split, "--json").out)
    rows = {name: task["rows"] for name, task in scores["tasks"].items()}
    assert (
        rows
        == {
            "train": {"mood": 36, "answer": 54, "heat": 24},  # the rows that were trained on
            "tune": {"mood": 4, "answer": 6, "heat": 16},
            "validation": {"mood": 24, "answer": 24, "heat": 24},
        }[split]
    )
    if split == "tune":
        assert scores["average"] == pytest.approx(trained.results.training.best_tune_average)


def test_evaluate_on_other_rows_and_as_a_table(cli, trained, tmp_path):
    data = shutil.copytree(trained.project.data, tmp_path / "data")
    for task in TASKS:
        lines = (data / task / "validation.jsonl").read_text().splitlines()
        (data / task / "validation.jsonl").write_text("\n".join(lines[:5]))
    scores = json.loads(cli("evaluate", trained.path, "--data-root", data, "--json").out)
    assert {task["rows"] for task in scores["tasks"].values()} == {5}
    said = cli("evaluate", trained.path)
    assert f"{trained.results.scores['validation'].average:.4f}" in said.out


# --- predict


def predicted(said):
    assert said.code == 0, said.err
    return [json.loads(line) for line in said.out.splitlines()]


def expected(trained, task, rows):
    model, about, base = load_model(trained.path / "best")
    return predict_rows(model, task, [{"texts": row} for row in rows], about.collator(base.tokenizer))


def test_predict_texts(cli, trained):
    texts = ["a very good film", "the awful cake was dull", "[bold]good[/oops] [link=x]"]
    records = predicted(cli("predict", trained.path, "--task", "mood", "--json", *texts))
    values = expected(trained, "mood", [[text] for text in texts])
    assert [record["text"] for record in records] == texts
    assert [record["prediction"] for record in records] == [["bad", "good"][int(v)] for v in values.values]
    assert [record["probability"] for record in records] == pytest.approx(values.probabilities.max(axis=1), abs=1e-4)
    table = cli("predict", trained.path, "--task", "mood", *texts)
    assert table.code == 0
    assert "[/oops]" in table.out


def test_predict_pairs_and_numbers(cli, trained):
    texts = ["the cake", "it was icy", "a lamp", "so hot"]
    records = predicted(cli("predict", trained.path, "-t", "heat", "--json", *texts))
    assert [(record["first"], record["second"]) for record in records] == [tuple(texts[:2]), tuple(texts[2:])]
    values = expected(trained, "heat", [texts[:2], texts[2:]]).values
    assert [record["prediction"] for record in records] == pytest.approx(values.tolist(), abs=1e-4)
    assert "probability" not in records[0]


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv"])
def test_predict_files(cli, trained, tmp_path, suffix):
    texts = ["a very good film", "the awful, dull cake"]
    content = {
        "txt": "a very good film\n\nthe awful, dull cake\n",
        "jsonl": "".join(json.dumps({"text": text, "more": 1}) + "\n" for text in texts),
        "csv": 'more,text\n1,a very good film\n2,"the awful, dull cake"\n',
    }[suffix]
    file = tmp_path / f"rows.{suffix}"
    file.write_text(content)
    records = predicted(cli("predict", trained.path, "-t", "mood", "--file", file, "--json"))
    assert records == predicted(cli("predict", trained.path, "-t", "mood", "--json", *texts))


def test_predict_into_a_file(cli, trained, tmp_path):
    target, arguments = tmp_path / "out.jsonl", ("-t", "mood", "a good film")
    printed = cli("predict", trained.path, *arguments, "--json").out
    assert cli("predict", trained.path, *arguments, "--output", target).code == 0
    assert target.read_text() == printed
    target.write_text("mine")
    said = cli("predict", trained.path, *arguments, "--output", target)
    assert (said.code, target.read_text()) == (2, "mine")
    assert cli("predict", trained.path, *arguments, "--output", target, "--overwrite").code == 0
    assert target.read_text() == printed


def test_predict_with_a_saved_model_alone(cli, trained, tmp_path):
    alone = shutil.copytree(trained.path / "best", tmp_path / "alone")
    said = cli("predict", alone, "-t", "mood", "--json", "a good film")
    assert predicted(said) == predicted(cli("predict", trained.path, "-t", "mood", "--json", "a good film"))


# --- export


def test_export_all_tasks(cli, trained, tmp_path):
    assert cli("export", trained.path, "--all", "--to", tmp_path / "out").code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(TASKS)
    for task in TASKS:
        assert json.loads((tmp_path / "out" / task / "manifest.json").read_text())["task"] == task
    assert cli("export", trained.path, "--all", "--to", tmp_path / "out").code == 2
    assert cli("export", trained.path, "--all", "--to", tmp_path / "out", "--overwrite").code == 0


def test_export_merged(cli, trained, tmp_path):
    assert cli("export", trained.path, "--all", "--merged", "--to", tmp_path / "out").code == 0
    models = {task: AutoModel.from_pretrained(tmp_path / "out" / task) for task in TASKS}
    name = "encoder.layer.0.attention.self.query.weight"
    weights = [model.get_parameter(name) for model in models.values()]
    assert not any(torch.equal(weights[0], weight) for weight in weights[1:])  # each its own task, not one on another
    base = AutoModel.from_pretrained(trained.project.base).get_parameter(name)
    for task in TASKS:
        assert cli("export", trained.path, "--task", task, "--to", tmp_path / f"lora-{task}").code == 0
        lora = load_file(tmp_path / f"lora-{task}" / "adapter_model.safetensors")
        path = "base_model.model.encoder.layer.0.attention.self.query"
        delta = lora[f"{path}.lora_B.weight"] @ lora[f"{path}.lora_A.weight"]
        torch.testing.assert_close(models[task].get_parameter(name), base + delta, rtol=1e-5, atol=1e-6)


def test_export_in_half_precision(cli, trained, tmp_path):
    assert cli("export", trained.path, "-t", "mood", "--dtype", "bfloat16", "--to", tmp_path / "out").code == 0
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
