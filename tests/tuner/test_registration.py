"""`import tasklora` registers the methods with PEFT in either order of imports, and is light and silent by itself."""

import subprocess
import sys

import pytest
from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, TaskType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.peft_types import PeftType

from helpers_runs import mostly_slow
from tasklora.tuner import METHODS, TaskLoraModel, register


def python(code: str, *options: str) -> str:
    result = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def test_import_is_light_and_silent():
    heavy = "{'torch', 'peft', 'transformers', 'datasets', 'numpy'} & set(sys.modules)"
    code = f"import sys, tasklora; tasklora.__version__; dir(tasklora); print({heavy})"
    assert python(code, "-W", "error") == "set()\n"


KNOWN = "from peft.utils.peft_types import PeftType; print(PeftType('MTL_LORA').value, PeftType.SWIN_MTLORA.value)"


@pytest.mark.parametrize(
    "imports",
    [
        "import tasklora, peft",
        "import peft, tasklora",
        *mostly_slow(
            [
                "import tasklora.tuner, peft",  # PEFT's import falls into the middle of that of the tuner
                "import tasklora.vision.swin.tuner, peft",
                "import tasklora, importlib.util; importlib.util.find_spec('peft'); import peft",  # asked for, only
                "import tasklora.training, peft",  # as transformers does
            ]
        ),
    ],
)
def test_either_order_of_imports(imports):
    code = (
        f"import sys; {imports}; {KNOWN}; assert peft.__spec__.loader.__class__.__module__ != 'tasklora._registration'"
    )
    assert python(code) == "MTL_LORA SWIN_MTLORA\n"


def test_import_of_peft_without_peft_installed():
    """Where PEFT is missing, the waiting finder leaves Python's own error alone."""
    code = """
import sys, tasklora
sys.path[:] = [p for p in sys.path if "site-packages" not in p]
try:
    import peft
except ModuleNotFoundError as error:
    print(error)
"""
    assert python(code) == "No module named 'peft'\n"


def test_tables_of_peft():
    for method in METHODS.values():
        member = PeftType(method.name.upper())
        assert isinstance(member, PeftType)
        assert PeftType[method.name.upper()] is member
        assert member in list(PeftType)
        assert PEFT_TYPE_TO_CONFIG_MAPPING[member] is method.config_cls
        assert PEFT_TYPE_TO_TUNER_MAPPING[member] is TaskLoraModel
        assert "lora_" not in PEFT_TYPE_TO_PREFIX_MAPPING[member]  # PEFT takes that prefix for LoRA's own
        assert method.config_cls(tasks=["a"]).peft_type is member


def test_registering_again_changes_nothing():
    before = dict(MODEL_TYPE_TO_PEFT_MODEL_MAPPING)
    register()
    assert before == MODEL_TYPE_TO_PEFT_MODEL_MAPPING
    assert set(MODEL_TYPE_TO_PEFT_MODEL_MAPPING) <= {None, *(member.value for member in TaskType)}
