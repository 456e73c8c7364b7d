"""Settings of every test: few threads, a fixed seed, and random shapes that are the same on every machine."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings

settings.register_profile("tasklora", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("tasklora")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
