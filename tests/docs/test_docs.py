"""The docs are true: their Python runs, their commands parse, generated parts are fresh, links lead somewhere."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, SwinConfig, SwinModel

import tasklora
import tasklora.training
from tasklora.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
TINY_SWIN = SwinConfig(embed_dim=8, depths=[1, 1, 1, 2], num_heads=[1, 1, 2, 2], window_size=4)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> list[str]:
    found = []
    for page in PAGES:
        lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
        found += [line for line in lines if line.startswith("tasklora ")]
    return found


@pytest.fixture
def tiny_bert(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-bert"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "they", "drank", "the", "pub", "dry", "a", "gripping", "film", "."]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, pad_token_id=0
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def after_the_diff(page: Path) -> str:
    """The script that the README's diff leads to."""
    (diff,) = blocks(page, "diff")
    return "\n".join(line[2:] for line in diff.splitlines() if not line.startswith("-"))


@pytest.fixture
def namespace(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(after_the_diff(ROOT / "README.md").replace("bert-base-uncased", str(tiny_bert)), names)
    return names


def test_the_readmes_diff_is_short_and_its_script_runs(namespace: dict, tmp_path: Path) -> None:
    (diff,) = blocks(ROOT / "README.md", "diff")
    changed = [line for line in diff.splitlines() if line[:1] in ("+", "-")]
    assert len(changed) <= 8
    assert len(diff.splitlines()) <= 16
    assert torch.isfinite(namespace["loss"])
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "cola-lora" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/concepts.md", "docs/interference.md", "docs/balancing.md"])
def test_python_in_the_docs_runs(page: str, namespace: dict) -> None:
    snippets = blocks(ROOT / page, "python")
    assert snippets
    namespace |= {"swin": SwinModel(TINY_SWIN, add_pooling_layer=False), "images": torch.randn(1, 3, 64, 64)}
    for snippet in snippets:
        exec(snippet, namespace)


def test_python_of_the_export_page_runs(namespace: dict, tmp_path: Path) -> None:
    (snippet,) = blocks(ROOT / "docs" / "export.md", "python")
    exec(snippet.replace('"rte"', '"sst2"'), namespace)
    assert (tmp_path / "out" / "mix" / "adapter_config.json").is_file()


def test_python_of_the_vision_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    SwinModel(TINY_SWIN, add_pooling_layer=False).save_pretrained("tiny-swin")
    (snippet,) = blocks(ROOT / "docs" / "vision.md", "python")
    names: dict = {}
    exec(snippet.replace("microsoft/swin-tiny-patch4-window7-224", "tiny-swin").replace("224", "64"), names)
    assert {task: tuple(each.shape) for task, each in names["maps"].items()} == {
        "semseg": (2, 3, 64, 64),
        "normals": (2, 3, 64, 64),
    }
    assert names["features"][0].tasks.shape == (2, 2, 8, 8, 16)


@pytest.mark.parametrize("command", commands())
def test_commands_in_the_docs_parse(command: str) -> None:
    name, *arguments = shlex.split(command, comments=True)[1:]
    group = typer.main.get_command(app)
    group.commands[name].make_context(name, arguments)


def test_recipes_named_in_the_docs_load() -> None:
    named = {path for page in PAGES for path in re.findall(r"recipes/[\w./-]+\.yaml", page.read_text(encoding="utf-8"))}
    assert named
    for path in named:
        tasklora.training.load_recipe(ROOT / path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.slow  # `make docs-check` does the same
def test_generated_parts_are_fresh() -> None:
    check = subprocess.run(
        [sys.executable, ROOT / "tools" / "generate_docs.py", "--check"], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stderr


def test_every_method_has_a_section_in_the_docs() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for method in tasklora.METHODS.values():
        assert f"`tasklora.{method.config_cls.__name__}`, `{method.name}`" in text


def test_the_demos_row_counts_in_the_docs_are_right() -> None:
    text = (ROOT / "docs" / "tasks-and-data.md").read_text(encoding="utf-8")
    data = ROOT / "src" / "tasklora" / "demo" / "data"
    for task, train, validation in re.findall(r"\| `(\w+)` \| (\d+) \+ (\d+) \|", text):
        for split, count in (("train", train), ("validation", validation)):
            assert len((data / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()) == int(count)
