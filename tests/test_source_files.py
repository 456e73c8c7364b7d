"""The source: small files, and nothing in it that unpickles."""

import ast
from pathlib import Path

import pytest

import tasklora

SOURCE = Path(tasklora.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))


def name_of(path):
    return str(path.relative_to(SOURCE))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_stay_small(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_unpickled(path):
    """No pickle module, and no ``torch.load`` without ``weights_only=True``; YAML is loaded safely."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for module in modules:
                assert module.split(".")[0] not in {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            if call in {"torch.load", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "numpy.load", "np.load"}:
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert call == "torch.load", call
                assert options.get("weights_only") == "True"
            assert call not in {"eval", "exec"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
