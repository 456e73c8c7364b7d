"""Dense tasks of every kind, with random outputs and labels of which some are ignored."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tasklora.vision.spec import DenseTaskSpec

SPECS = {
    "segmentation": DenseTaskSpec(kind="segmentation", labels=["sky", "sea", "sand", "sun"]),
    "saliency": DenseTaskSpec(kind="saliency"),
    "edges": DenseTaskSpec(kind="edges", positive_weight=0.95),
    "normals": DenseTaskSpec(kind="normals"),
    "depth": DenseTaskSpec(kind="depth"),
}


def dense_case(
    spec: DenseTaskSpec, n=4, size=(9, 7), seed=0, ignored=0.2, dtype=torch.float64
) -> tuple[Tensor, Tensor]:
    """Return outputs (N, num_outputs, H, W) and labels; the images differ in how much of them is ignored."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(n, spec.num_outputs, *size, generator=generator, dtype=dtype)
    share = ignored * torch.linspace(0, 2, n)[:, None, None] if n > 1 else torch.full((1, 1, 1), ignored)
    mask = torch.rand(n, *size, generator=generator) < share
    if spec.kind == "segmentation":
        return outputs, torch.randint(spec.num_outputs, (n, *size), generator=generator).masked_fill(mask, 255)
    if spec.kind in ("saliency", "edges"):
        shares = torch.linspace(0.1, 0.6, n)[:, None, None]
        ones = torch.rand(n, *size, generator=generator) < shares
        return outputs, ones.float().masked_fill(mask, 255)
    if spec.kind == "normals":
        vectors = F.normalize(torch.randn(n, 3, *size, generator=generator), dim=1)
        return outputs, vectors.masked_fill(mask[:, None], 255)
    return outputs + 2, (0.5 + 4 * torch.rand(n, *size, generator=generator)).masked_fill(mask, 0)


def all_ignored(spec: DenseTaskSpec, labels: Tensor) -> Tensor:
    return torch.full_like(labels, 0 if spec.kind == "depth" else 255)
