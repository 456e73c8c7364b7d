"""Saved multi-task models: the same outputs bit by bit, and a clear refusal of whatever does not belong.

A directory holds `heads.safetensors`, `tasklora.json` and what was trained of the encoder: PEFT's two files, all its
weights in `encoder.safetensors`, or nothing.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers_runs import EVERY_METHOD, METHODS, assert_same_state, randomise, save_base, trained_state, use_method
from tasklora.errors import CheckpointError, ConfigError
from tasklora.tasks import TRAINING_METHODS, load_base, load_model, load_weights, save_model

ADAPTER, HEADS, ABOUT, CONFIG = "adapter_model.safetensors", "heads.safetensors", "tasklora.json", "adapter_config.json"
ENCODER = "encoder.safetensors"
FILES = {"adapter": {ADAPTER, CONFIG}, "full": {ENCODER}, "frozen": set()}
ROWS = [
    {"task": "heat", "texts": ["the cake", "it was icy"]},
    {"task": "mood", "texts": ["good film and the walk"]},
    {"task": "answer", "texts": ["is it", "maybe so"]},
]


@torch.no_grad()
def logits(model, about, base):
    output = model(**about.collator(base.tokenizer)(ROWS))
    return torch.cat([output.logits[task_id].flatten() for task_id in sorted(output.logits)])


@pytest.fixture
def saved(project, tmp_path):
    """Return a saved MTL-LoRA model's directory."""
    prepared = project.prepare()
    save_model(prepared.model, prepared.about, tmp_path / "saved")
    return tmp_path / "saved"


def change_json(path, **changes):
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, **changes}))


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("method", EVERY_METHOD)
@pytest.mark.parametrize("encoding", ["joint", "separate"])
def test_loading_gives_the_same_outputs_bit_by_bit(project, tmp_path, method, encoding):
    prepared = project.prepare(use_method(method), f"model.pair_encoding={encoding}")
    prepared.model.heads["heat"].fit_labels(torch.tensor([1.0, 2.0, 4.0]), None)
    prepared.model.heads["answer"].fit_labels(torch.tensor([0.0]), torch.tensor([0.5, 2.0, 1.0]))
    save_model(prepared.model, prepared.about, tmp_path / "saved")
    files = {file.name for file in (tmp_path / "saved").iterdir()} - {"README.md"}  # PEFT's
    assert files == {HEADS, ABOUT} | FILES[TRAINING_METHODS[method].encoder]
    model, about, base = load_model(tmp_path / "saved")
    assert not model.training
    assert about == prepared.about
    assert torch.equal(logits(model, about, base), logits(prepared.model, about, prepared.base))
    assert_same_state(model.heads.state_dict(), prepared.model.heads.state_dict())


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_weights_are_loaded_into_a_model_of_the_same_make(project, tmp_path, method):
    prepared = project.prepare(use_method(method))
    save_model(prepared.model, prepared.about, tmp_path / "saved")
    state = trained_state(prepared.model)
    randomise(prepared.model, seed=1)
    load_weights(prepared.model, tmp_path / "saved")
    assert_same_state(trained_state(prepared.model), state)


def test_saving_again_replaces_and_leaves_no_scraps(project, tmp_path):
    prepared = project.prepare()
    save_model(prepared.model, prepared.about, tmp_path / "saved")
    files = {file.name for file in (tmp_path / "saved").iterdir()}
    randomise(prepared.model, seed=1)
    save_model(prepared.model, prepared.about, tmp_path / "saved")
    model, about, base = load_model(tmp_path / "saved")
    assert torch.equal(logits(model, about, base), logits(prepared.model, about, prepared.base))
    assert {file.name for file in (tmp_path / "saved").iterdir()} == files
    assert {file.name for file in tmp_path.iterdir()} == {"saved"}


@pytest.mark.parametrize("name", [ADAPTER, HEADS])
def test_a_truncated_file_is_refused(saved, name):
    cut(saved / name)
    with pytest.raises(CheckpointError, match=f"{name} is damaged or no safetensors file: .* Use another checkpoint"):
        load_model(saved)


@pytest.mark.parametrize("name", [ADAPTER, HEADS])
def test_a_foreign_file_is_refused(saved, name):
    torch.save({"weights": torch.ones(3)}, saved / name)  # a pickle under our name is never unpickled
    with pytest.raises(CheckpointError, match=f"{name} is damaged or no safetensors file"):
        load_model(saved)


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_of_other_layers_is_refused(project, tmp_path, method):
    prepared = project.prepare(use_method(method))
    save_model(prepared.model, prepared.about, tmp_path / "saved")
    tensors = load_file(tmp_path / "saved" / ADAPTER)
    save_file({f"foreign.{key}": value for key, value in tensors.items()}, tmp_path / "saved" / ADAPTER)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_model(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="does not fit"):
        load_weights(prepared.model, tmp_path / "saved")


@pytest.mark.parametrize("name", [ADAPTER, HEADS, ABOUT, CONFIG])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_model(saved)


def test_an_adapter_without_its_files_is_not_read_as_heads_alone(saved):
    for name in (ADAPTER, CONFIG):
        (saved / name).unlink()
    with pytest.raises(CheckpointError, match=CONFIG):
        load_model(saved)


def test_a_model_saved_before_there_were_kinds_is_an_adapter(project, saved):
    new = load_model(saved)
    about = json.loads((saved / ABOUT).read_text())
    assert about.pop("encoder") == "adapter"
    (saved / ABOUT).write_text(json.dumps(about))
    assert torch.equal(logits(*load_model(saved)), logits(*new))


def test_a_kind_that_does_not_exist_is_refused(saved):
    change_json(saved / ABOUT, encoder="adaptor")
    with pytest.raises(ConfigError, match="'encoder': Input should be 'adapter', 'full' or 'frozen'"):
        load_model(saved)


def foreign_pickle(path):
    torch.save({"weights": torch.ones(3)}, path)


def foreign_names(path):
    save_file({f"foreign.{key}": value for key, value in load_file(path).items()}, path)


def another_size(path):
    tensors = load_file(path)
    tensors["embeddings.word_embeddings.weight"] = torch.ones(7, 32)
    save_file(tensors, path)


def one_missing(path):
    save_file(dict(list(load_file(path).items())[1:]), path)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (Path.unlink, "no file"),
        (cut, "damaged or no safetensors file"),
        (foreign_pickle, "damaged or no safetensors file"),
        (foreign_names, "does not fit the base"),
        (another_size, "does not fit the base"),
        (one_missing, "does not fit the base"),
    ],
)
def test_weights_of_the_encoder_that_cannot_be_used_are_named(project, tmp_path, spoil, says):
    prepared = project.prepare(use_method("full_fine_tuning"))
    save_model(prepared.model, prepared.about, tmp_path)
    spoil(tmp_path / ENCODER)
    for load in (lambda: load_model(tmp_path), lambda: load_weights(prepared.model, tmp_path)):
        with pytest.raises(CheckpointError, match=says) as caught:
            load()
        assert str(tmp_path / ENCODER) in str(caught.value)


@pytest.mark.parametrize("name", [ABOUT, CONFIG])
@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_a_damaged_description_is_refused(saved, name, content):
    (saved / name).write_text(content)
    with pytest.raises((CheckpointError, ConfigError), match=name):
        load_model(saved)


@pytest.mark.parametrize("name", [ABOUT, CONFIG])
def test_a_newer_format_is_refused(saved, name):
    change_json(saved / name, version=99)
    with pytest.raises(CheckpointError, match=r"format version 99, .* reads up to \d. Upgrade tasklora"):
        load_model(saved)


def test_heads_of_other_tasks_are_refused(project, saved, tmp_path):
    other = project.prepare("tasks.include=[mood, heat]")
    save_model(other.model, other.about, tmp_path / "other")
    shutil.copy(tmp_path / "other" / HEADS, saved / HEADS)
    with pytest.raises(CheckpointError, match=r"does not fit the tasks \[mood, answer, heat\]: answer\..*other tasks"):
        load_model(saved)


def test_an_adapter_of_other_tasks_is_refused(project, saved, tmp_path):
    other = project.prepare("tasks.include=[answer, mood, heat]")  # the same tasks under other ids
    save_model(other.model, other.about, tmp_path / "other")
    for name in (ADAPTER, CONFIG):
        shutil.copy(tmp_path / "other" / name, saved / name)
    with pytest.raises(
        CheckpointError, match=r"adapter knows the tasks \[answer, mood, heat\], the heads \[mood, answer"
    ):
        load_model(saved)


def test_another_base_of_the_same_shape_is_refused(project, saved, tmp_path):
    other = save_base(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"trained on base .*fingerprint .*another model, or other weights"):
        load_model(saved, load_base(str(other)))
    change_json(saved / ABOUT, base=str(other))
    with pytest.raises(CheckpointError, match="another model, or other weights"):
        load_model(saved)


def test_a_base_that_is_gone_is_named(saved):
    change_json(saved / ABOUT, base="./gone")
    with pytest.raises(CheckpointError, match=r"cannot load the base model './gone'"):
        load_model(saved)


def test_a_directory_that_is_no_model(tmp_path):
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match=r"holds no saved tasklora model \(no tasklora.json\)"):
            load_model(directory)
