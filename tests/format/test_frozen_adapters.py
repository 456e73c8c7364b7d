"""Adapters written by earlier releases are read with the same numbers: the promise of docs/adapter-format.md."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from format.make_version import CONFIGS, TwoLayers
from tasklora.tuner import FORMAT_VERSION, METHODS, method_of

HERE = Path(__file__).resolve().parent
FROZEN = sorted(path.parent for path in HERE.glob("v*/*/adapter_config.json"))


@pytest.mark.parametrize("folder", FROZEN, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_a_frozen_adapter_gives_its_numbers(folder: Path) -> None:
    base = TwoLayers()
    base.load_state_dict(load_file(folder / "base.safetensors"))
    expected = load_file(folder / "expected.safetensors")
    model = PeftModel.from_pretrained(base, folder)
    torch.testing.assert_close(model(expected["x"], task_ids=expected["task_ids"]), expected["y"], rtol=1e-5, atol=1e-6)


def test_every_version_and_method_is_frozen() -> None:
    assert {folder.parent.name for folder in FROZEN} == {f"v{version}" for version in range(1, FORMAT_VERSION + 1)}
    assert {folder.name for folder in FROZEN if folder.parent.name == f"v{FORMAT_VERSION}"} == set(CONFIGS)
    assert {method_of(config).name for config in CONFIGS.values()} == set(METHODS)
