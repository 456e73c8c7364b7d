"""Bad input on the command line: exit code 2, one line "error …" on standard error, no traceback, nothing written."""

import json
import shutil

import pytest

from helpers_runs import in_subprocess
from tasklora.errors import TaskLoraError


def assert_refused(said, *says):
    assert said.code == 2
    assert said.err.startswith("error ")
    assert said.err.count("\n") == 1
    for part in says:
        assert part in said.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.yaml"], "no file nowhere.yaml"),
        (["RECIPE", "--set", "training.epoch=1"], "unknown key 'training.epoch'. Did you mean 'epochs'?"),
        (["RECIPE", "--set", "training.epochs"], "'training.epochs' is no override"),
        (["RECIPE", "--set", "training.epochs=no number"], "'training.epochs'"),
        (["RECIPE", "--set", "tasks.include=[moot]"], "has no task 'moot'. Did you mean 'mood'?"),
        (["RECIPE", "--set", "tasks.suite=gleu"], "unknown suite 'gleu'. Did you mean 'glue'?"),
        (["RECIPE", "--set", "method={name: mtl_lorra}"], "unknown method 'mtl_lorra'. Did you mean 'mtl_lora'?"),
        (["RECIPE", "--set", "method={name: lora, rr: 3}"], "has no option 'rr'"),
        (["RECIPE", "--set", "model.name=./nowhere"], "cannot load the base model './nowhere'"),
        (["RECIPE", "--data-root", "nowhere"], "task 'mood': no folder nowhere/mood"),
        (["RECIPE", "--set", "tasks.report_on=test"], "task 'mood': no file for split 'test'"),
        (["RECIPE", "--output", "file/below"], "file/below"),
        (["RECIPE", "--output", "."], "is not empty"),
        ([], "give a recipe to train, or --resume RUN"),
        (["RECIPE", "--resume", "."], "give a recipe to train, or --resume RUN"),
        (["--resume", "nowhere"], "nowhere is no run directory"),
        (["--resume", "TRAINED"], "is finished already; there is nothing to resume"),
        (["--resume", "TRAINED", "--overwrite"], "it takes no other options"),
    ],
)
def test_train(cli, project, trained, tmp_path, arguments, says):
    (tmp_path / "file").write_text("mine")
    places = {"RECIPE": str(project.recipe), "TRAINED": str(trained.path)}
    output = [] if {"--output", "--resume"} & set(arguments) or "RECIPE" not in arguments else ["--output", "run"]
    assert_refused(cli("train", *(places.get(a, a) for a in arguments), *output), says)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--methods", "lora,mtl_lorra"], "unknown method 'mtl_lorra'. Did you mean 'mtl_lora'? Methods: mtl_lora, "),
        (["--methods", "lora,lora"], "a method is named twice: lora, lora"),
        (["--methods", ","], "no method to compare"),
        (["--methods", "lora", "--seeds", "0,one"], "--seeds takes whole numbers separated by commas, e.g. 0,1,2; got"),
        (["--methods", "lora", "--seeds", "1,1"], "a seed is named twice: 1, 1"),
        (["--methods", "lora", "--seeds", "0,-1"], "'training.seed': Input should be greater than or equal to 0"),
        (
            ["--methods", "lora", "--baseline", "mtl_lora"],
            "the baseline 'mtl_lora' is not compared. Did you mean 'lora'?",
        ),
        (["--methods", "lora", "--search", "leaning_rate=1"], "is over 'leaning_rate', which cannot be searched"),
        (["--methods", "lora", "--search", "training.learning_rte=1"], "Did you mean 'training.learning_rate'?"),
        (["--methods", "lora", "--search", "training.seed=0,1"], "'training.seed', which cannot be searched"),
        (["--methods", "lora", "--search", "heads_only:lr=1"], "is for 'heads_only', which is not compared"),
        (["--methods", "lora", "--search", "lr=-1"], "'training.learning_rate': Input should be greater than 0"),
        (["--methods", "lora", "--search", "method.target_modules=[query,key]"], "cannot try the value '[query'"),
        (
            ["--methods", "mtl_lora,lora", "--search", "method.temperature=1"],
            "method 'lora' has no option 'temperature'",
        ),
        (["--methods", "lora,mtl_lora", "--search", "lora:lr=1,2"], "the numbers of trials differ: lora 2, mtl_lora 1"),
        (["--methods", "lora", "--set", "method={name: lora, rr: 3}"], "has no option 'rr'"),
        (["--methods", "lora", "--set", "model.name=./nowhere"], "cannot load the configuration of './nowhere'"),
        (["--methods", "lora", "--data-root", "nowhere"], "task 'mood': no folder nowhere/mood"),
        (["--methods", "lora", "--output", "file/below"], "file/below"),
        (["--methods", "lora", "--output", "."], "is not empty and holds no comparison"),
        (["--methods", "lora", "--output", ".", "--overwrite"], "is not empty and holds no comparison"),
    ],
)
def test_compare(cli, project, tmp_path, arguments, says):
    (tmp_path / "file").write_text("mine")
    output = [] if "--output" in arguments else ["--output", "comparison"]
    assert_refused(cli("compare", project.recipe, *arguments, *output), says)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_recipe_that_is_no_recipe(cli, tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: {name: [}")
    said = cli("train", "recipe.yaml")
    assert said.code == 2
    assert "Traceback" not in said.err
    assert said.err.startswith("error recipe.yaml is not valid YAML")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "nowhere"),
        (["RUN", "--split", "valid"], "unknown split 'valid'. Did you mean 'validation'? One of: train, tune"),
        (["RUN", "--split", "test"], "task 'mood': no file for split 'test'"),
        (["RUN", "--data-root", "nowhere"], "task 'mood': no folder nowhere/mood"),
    ],
)
def test_evaluate(cli, trained, arguments, says):
    assert_refused(cli("evaluate", *(str(trained.path) if a == "RUN" else a for a in arguments)), says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "-t", "mood", "text"], "nowhere is neither a run directory nor a saved model"),
        (["RUN", "text"], " has: mood, answer, heat."),
        (["RUN", "-t", "moot", "text"], "unknown task 'moot'. Did you mean 'mood'?"),
        (["RUN", "-t", "mood"], "give texts to predict, or --file FILE"),
        (["RUN", "-t", "mood", "text", "--file", "good.txt"], "give texts to predict, or --file FILE"),
        (["RUN", "-t", "heat", "one", "two", "three"], "task 'heat' reads pairs (first, second): give two texts"),
        (["RUN", "-t", "mood", "--file", "nowhere.txt"], "no file nowhere.txt"),
        (["RUN", "-t", "mood", "--file", "rows.xlsx"], "cannot read rows.xlsx: use one of .txt, .jsonl"),
        (["RUN", "-t", "heat", "--file", "good.txt"], "task 'heat' reads pairs: give a .jsonl or .csv"),
        (["RUN", "-t", "mood", "--file", "pairs.jsonl"], "no column 'text'. The file has: first, secnd."),
        (["RUN", "-t", "heat", "--file", "pairs.jsonl"], "no column 'second'. Did you mean 'secnd'?"),
        (["RUN", "-t", "mood", "--file", "numbers.jsonl"], "row 1: column 'text' holds None, not a text."),
        (["RUN", "-t", "mood", "--file", "broken.jsonl"], "cannot read broken.jsonl"),
        (["RUN", "-t", "mood", "--file", "empty.jsonl"], "empty.jsonl"),
        (["RUN", "-t", "mood", "--file", "empty.txt"], "empty.txt holds no rows"),
        (["RUN", "-t", "mood", "--file", "latin.txt"], "cannot read latin.txt: it is not UTF-8"),
        (["RUN", "-t", "mood", "text", "--output", "good.txt"], "good.txt exists already"),
        (["RUN", "-t", "mood", "text", "--output", "folder", "--overwrite"], "folder exists already"),
        (["RUN", "-t", "mood", "text", "--output", "nowhere/out.jsonl"], "no folder nowhere"),
    ],
)
def test_predict(cli, trained, tmp_path, arguments, says):
    (tmp_path / "folder").mkdir()
    files = {
        "good.txt": b"good\n",
        "rows.xlsx": b"x",
        "pairs.jsonl": b'{"first": "a", "secnd": "b"}\n',
        "numbers.jsonl": b'{"text": "a"}\n{"text": null}\n',
        "broken.jsonl": b'{"text": ',
        "empty.jsonl": b"",
        "empty.txt": b" \n",
        "latin.txt": b"caf\xe9\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert_refused(cli("predict", *(str(trained.path) if a == "RUN" else a for a in arguments)), says)
    assert {path.name for path in tmp_path.iterdir()} == {*files, "folder"}
    assert (tmp_path / "good.txt").read_bytes() == b"good\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "--task", "mood", "--to", "out"], "nowhere is neither a run directory nor a saved model"),
        (["RUN", "--to", "out"], "say what to export: --task NAME or --all"),
        (["RUN", "--to", "out", "--all", "--task", "mood"], "say what to export: --task NAME or --all"),
        (["RUN", "--to", "out", "--task", "moot"], "unknown task 'moot'. Did you mean 'mood'?"),
        (
            ["RUN", "--to", "out", "--task", "mood", "--dtype", "float61"],
            "unknown dtype 'float61'. Did you mean 'float16'?",
        ),
        (["RUN", "--to", "out", "--task", "mood", "--merged", "--dtype", "float16"], "a merged model keeps its base's"),
        (["RUN", "--to", "full", "--task", "mood"], "full is not empty"),
        (["RUN", "--to", "full", "--all"], "full is not empty"),
        (["RUN", "--to", "full/mine", "--task", "mood"], "full/mine is a file"),
        (["RUN", "--to", "full/mine/below", "--task", "mood"], "cannot write to full/mine/below"),
    ],
)
def test_export(cli, trained, tmp_path, arguments, says):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    assert_refused(cli("export", *(str(trained.path) if a == "RUN" else a for a in arguments)), says)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.name=./nowhere", "cannot load the configuration of './nowhere'"),
        ("method={name: mtl_lora, temprature: 1}", "Did you mean 'temperature'?"),
    ],
)
def test_params(cli, project, override, says):
    assert_refused(cli("params", project.recipe, "--set", override), says)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "heads.safetensors", "tasklora.json"])
@pytest.mark.parametrize(
    "command", [["evaluate"], ["predict", "-t", "mood", "text"], ["export", "--all", "--to", "out"]]
)
def test_a_damaged_run(cli, trained, tmp_path, name, command):
    run = shutil.copytree(trained.path, tmp_path / "run")
    content = (run / "best" / name).read_bytes()
    (run / "best" / name).write_bytes(content[: len(content) // 2])
    assert_refused(cli(command[0], run, *command[1:]), name)
    assert not (tmp_path / "out").exists()


def test_a_run_whose_base_was_changed(cli, trained, tmp_path):
    run = shutil.copytree(trained.path, tmp_path / "run")
    about = json.loads((run / "best" / "tasklora.json").read_text())
    (run / "best" / "tasklora.json").write_text(json.dumps({**about, "fingerprint": "0" * 16}))
    assert_refused(cli("evaluate", run), "another model, or other weights")


def test_an_unfinished_run(cli, trained, tmp_path):
    run = shutil.copytree(trained.path, tmp_path / "run")
    shutil.rmtree(run / "best")
    assert_refused(cli("evaluate", run), "has no finished model", "tasklora train --resume")


def test_tracebacks_are_shown_when_asked_for(cli, monkeypatch):
    monkeypatch.setenv("TASKLORA_DEBUG", "1")
    with pytest.raises(TaskLoraError):
        cli("train", "nowhere.yaml")


def test_a_keyboard_interrupt_outside_training(cli, monkeypatch, trained):
    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("tasklora.tasks.load_model", interrupt)
    said = cli("evaluate", trained.path)
    assert said.code == 130
    assert "Traceback" not in said.err


def test_a_real_process_says_it_in_one_line(trained, tmp_path):
    """Nor do the libraries add lines of their own."""
    (tmp_path / "broken.jsonl").write_text('{"text": ')
    command = ["-m", "tasklora", "predict", str(trained.path), "-t", "mood", "--file", "broken.jsonl"]
    said = in_subprocess(trained.project, *command)
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr.startswith("error cannot read broken.jsonl: ")
    assert said.stderr.count("\n") == 1
