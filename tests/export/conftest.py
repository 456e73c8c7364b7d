"""The tiny project of helpers_runs, and a published MTLoRA network, for this folder's tests."""

import pytest

from helpers_mtlora import published_state
from helpers_runs import _quiet_root, project, trained

__all__ = ["_quiet_root", "project", "trained"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    return folder, published_state(folder)


@pytest.fixture
def state(made):
    return {key: tensor.clone() for key, tensor in made[1].items()}


@pytest.fixture
def base(made):
    return str(made[0] / "base")
