"""Options that cannot be used are refused by name, with the value that was given."""

import math

import pytest

from tasklora.errors import ConfigError
from tasklora.updates import MTLLoraOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "r must be a positive integer, got 0"),
        ({"r": -2}, "r must be a positive integer, got -2"),
        ({"r": 2.0}, "r must be a positive integer, got 2.0"),
        ({"r": True}, "r must be a positive integer, got True"),
        ({"r": "8"}, "r must be a positive integer, got '8'"),
        ({"lora_alpha": 0}, "lora_alpha must be positive, got 0"),
        ({"lora_alpha": math.nan}, "lora_alpha must be positive, got nan"),
        ({"lora_alpha": "16"}, "lora_alpha must be positive, got '16'"),
        ({"lora_dropout": 1.0}, r"lora_dropout must lie in \[0, 1\), got 1.0"),
        ({"lora_dropout": -0.1}, r"lora_dropout must lie in \[0, 1\), got -0.1"),
        ({"lora_dropout": None}, r"lora_dropout must lie in \[0, 1\), got None"),
        ({"temperature": 0}, "temperature must be positive, got 0"),
        ({"temperature": -1.0}, "temperature must be positive, got -1.0"),
        ({"temperature": math.inf}, "temperature must be positive, got inf"),
        ({"temperature": "hot"}, "temperature must be positive, got 'hot'"),
        ({"up_projections": 0}, "up_projections must be a positive integer, got 0"),
        ({"task_matrix": "diagnal"}, r"got 'diagnal'. Did you mean 'diagonal'\?"),
        ({"task_matrix": None}, "task_matrix must be one of"),
    ],
    ids=str,
)
def test_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        MTLLoraOptions(**options).check()


def test_accepted():
    MTLLoraOptions(r=1, lora_alpha=0.5, lora_dropout=0, up_projections=1, temperature=1e-3).check()
