"""MTL-LoRA in its published, per-sample form, as a peer of the library's own:

    y = W x + b + (α/r) · [Σ_i softmax(w_t / τ)_i B_i] Λ_t A dropout(x)

Each layer mixes the up-projections of *every* task of the adapter, (T, out, r), takes each row's, and multiplies row by
row. The factors are float32, and the input is cast to them. The parameters are those of ``tasklora.MTLLoraConfig``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RowTasks:
    """The tasks of the rows of the current batch, shared by all layers of a model."""

    ids: Tensor


class PerSampleMTLLora(nn.Module):
    """A frozen linear layer with MTL-LoRA beside it."""

    def __init__(self, base_layer: nn.Linear, tasks: RowTasks, num_tasks: int, r: int, alpha: float, n: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.tasks = tasks
        self.scaling = alpha / r
        self.temperature = 0.5
        place = {"device": base_layer.weight.device, "dtype": torch.float32}
        self.A = nn.Parameter(torch.empty(r, base_layer.in_features, **place))
        self.Lambda = nn.Parameter(torch.eye(r, **place).repeat(num_tasks, 1, 1))
        self.B = nn.Parameter(torch.zeros(base_layer.out_features, n, r, **place))
        self.w = nn.Parameter(torch.zeros(num_tasks, n, **place))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Return base(x) plus the update of each row's task."""
        result = self.base_layer(x)
        ids = self.tasks.ids
        gates = torch.softmax(self.w / self.temperature, dim=-1)  # (T, n)
        up = torch.einsum("tn,onr->tor", gates, self.B)  # (T, out, r), of every task
        h = F.linear(x.to(self.A.dtype), self.A)  # (rows, L, r)
        h = torch.bmm(h, self.Lambda[ids].transpose(1, 2))
        update = torch.bmm(h, up[ids].transpose(1, 2)) * self.scaling
        return result + update.to(result.dtype)


def adapt(model: nn.Module, num_tasks: int, r: int, alpha: float, n: int) -> RowTasks:
    """Put the layer around every linear layer of `model`; the tasks of a batch go into what is returned."""
    tasks = RowTasks()
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name, module in linears:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, PerSampleMTLLora(module, tasks, num_tasks, r, alpha, n))
    return tasks
