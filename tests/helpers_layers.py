"""One row for each kind of base layer, and how the tests of layers put an adapter on one.

Each input is turned into features (rows, …, in) in the plainest way there is (an id into its one-hot vector), so that
every kind can be held to what a dense layer would give.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import nn
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.pytorch_utils import Conv1D

import tasklora
from helpers_models import ADAPTERS, config_of, fill, layers

IN, OUT = 12, 10
ROWS = [2, 0, 1, 2]


@dataclass(frozen=True)
class Kind:
    """One kind of base layer, its input for a number of rows, and how that input is one of features."""

    id: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    stride: tuple[int, int] = (1, 1)
    scale: float = 1.0

    @property
    def reads(self) -> str:
        return self.id.split("-")[0]

    def layer(self) -> nn.Module:
        torch.manual_seed(1)
        return self.make().double()

    def x(self, rows: int = 4):
        generator = torch.Generator().manual_seed(2)
        if self.reads == "embedding":
            return torch.randint(0, IN, (rows, *self.shape), generator=generator)
        return torch.randn(rows, *self.shape, dtype=torch.float64, generator=generator)

    def features(self, x):
        """Return x as (rows, …, in)."""
        if self.reads == "embedding":
            return F.one_hot(x, IN).double()
        if self.reads == "conv2d":
            return x[:, :, :: self.stride[0], :: self.stride[1]].permute(0, 2, 3, 1)
        return x

    def output(self, y):
        """Return y (rows, …, out) as the layer gives it."""
        return y.permute(0, 3, 1, 2) if self.reads == "conv2d" else y * self.scale


KINDS = [
    Kind("linear-2d", lambda: nn.Linear(IN, OUT), (IN,)),
    Kind("linear-3d", lambda: nn.Linear(IN, OUT, bias=False), (5, IN)),
    Kind("linear-4d", lambda: nn.Linear(IN, OUT), (2, 3, IN)),
    Kind("conv1d-2d", lambda: Conv1D(OUT, IN), (IN,)),
    Kind("conv1d-3d", lambda: Conv1D(OUT, IN), (5, IN)),
    Kind("conv1d-4d", lambda: Conv1D(OUT, IN), (2, 3, IN)),
    Kind("conv2d", lambda: nn.Conv2d(IN, OUT, 1), (IN, 3, 4)),
    Kind("conv2d-strided", lambda: nn.Conv2d(IN, OUT, 1, stride=(2, 3), bias=False), (IN, 5, 6), (2, 3)),
    Kind("embedding", lambda: nn.Embedding(IN, OUT), (5,)),
    Kind("embedding-1d", lambda: nn.Embedding(IN, OUT, sparse=True), ()),
    Kind("embedding-3d", lambda: nn.Embedding(IN, OUT), (2, 3)),
    Kind("embedding-padded", lambda: nn.Embedding(IN, OUT, padding_idx=3), (5,)),
    Kind("embedding-scaled", lambda: BartScaledWordEmbedding(IN, OUT, 1, embed_scale=4.0), (5,), scale=4.0),
    Kind("embedding-gemma", lambda: Gemma3TextScaledWordEmbedding(IN, OUT, 0, embed_scale=3.0), (5,), scale=3.0),
]
MAIN = ("linear-3d", "conv1d-3d", "conv2d-strided", "embedding-padded")
SEQUENCES = [kind for kind in KINDS if kind.shape in ((5,), (5, IN))]
FIRST = {case.method: case for case in reversed(ADAPTERS)}  # one case of each method


def routed(case) -> bool:
    return case.update_cls.kind == "routed"


def takes(case, kind) -> bool:
    return not (routed(case) and kind.reads == "embedding")


def pairs(cases, kinds):
    found = [(case, kind) for case in cases for kind in kinds if takes(case, kind)]
    return pytest.mark.parametrize(("case", "kind"), found, ids=[f"{case.id}-{kind.id}" for case, kind in found])


def kind_named(name):
    return next(kind for kind in KINDS if kind.id == name)


# Every method on a layer of each kind; the other shapes and kinds of embedding on a core and a bank.
MAIN_KINDS = [kind_named(name) for name in MAIN]
BOTH = (
    pairs(FIRST.values(), MAIN_KINDS).args[1]
    + pairs([FIRST["mtl_lora"], FIRST["per_task_lora"]], [kind for kind in KINDS if kind.id not in MAIN]).args[1]
)
every_pair = pytest.mark.parametrize(("case", "kind"), BOTH, ids=[f"{case.id}-{kind.id}" for case, kind in BOTH])
every_method = pairs(FIRST.values(), MAIN_KINDS)
task_methods = [case for case in FIRST.values() if case.uses_task_ids]
per_task = pytest.mark.parametrize("case", task_methods, ids=lambda case: case.id)


class Net(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.target = layer

    def forward(self, x):
        return self.target(x)


def adapted(case, kind, random=True, **options):
    model = get_peft_model(Net(kind.layer()), config_of(case, target_modules=["target"], **options)).double()
    if random:
        fill(model)
    return model.eval()


def expected(model, kind, x, task):
    """Return base(x) + (B A) features(x), or for routed updates what the update makes of the features."""
    (layer,) = layers(model)
    update, features = layer.task_updates["default"], kind.features(x)
    if update.kind == "routed":
        added = update(features, None)
    else:
        down, up = update.lora_factors(tasklora.context_of(model).tasks["default"].assign(task))
        added = features @ (up @ down).T
    return kind.layer()(x) + kind.output(added)
