"""Updates of an embedding: its input is a one-hot vector, so D x is a column of D and no product is needed.

    W one_hot(i) + ΔW_t one_hot(i) = W[:, i] + U C_t D[:, i]

Three things differ from a layer that reads features:

- *Init.* A product D x sums `in` numbers, so D begins with entries of size 1/√in, to give h the size of x. A lookup
  sums one number: the fan-in is 1, whatever the number of ids. So D begins uniform in (−1, 1), LoRA's own init for a
  fan-in of 1; with that of `in` (the vocabulary) h and every gradient of U would begin hundreds of times smaller.
- *Dropout* is the same mask on x. Of a one-hot x only one entry counts, so it drops the whole update of a token.
- *Padding.* The embedding's padding row is never trained; so D's column for it begins at zero and takes no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasklora.updates.ops import compute_dtype


@dataclass(frozen=True)
class OneHot:
    """What an update of an embedding knows of its ids.

    Attributes:
        padding_idx: the id that is never trained, if there is one.
    """

    padding_idx: int | None = None

    @torch.no_grad()
    def begin(self, down: Tensor) -> None:
        """Initialise D, or the tasks' own ones (…, k_d, in), for a fan-in of 1."""
        nn.init.uniform_(down, -1.0, 1.0)
        if self.padding_idx is not None:
            down[..., self.padding_idx] = 0.0

    def columns(self, down: Tensor, ids: Tensor, dropout: float) -> Tensor:
        """Return h = D dropout(x) (R, L, k_d) of D (k_d, in) and `ids` (R, …)."""
        columns = down.index_select(1, ids.reshape(-1)).mT  # (N, k_d)
        return self._dropped(columns.reshape(ids.shape[0], ids.shape[1:].numel(), down.shape[0]), ids, dropout)

    def columns_of_tasks(self, table: Tensor, tasks: Tensor, ids: Tensor, dropout: float) -> Tensor:
        """Return h = A_t dropout(x) (R, L, r) of `ids` (R, …).

        Args:
            table: A (T, r, in).
            tasks: of all rows (), of each row (R,) or of each id (R, L).
            ids: the ids.
            dropout: its rate.
        """
        flat = ids.reshape(ids.shape[0], ids.shape[1:].numel())  # (R, L)
        # Both indices as tensors of one shape: only then the columns come last. Indexing both at once reads r numbers
        # per token; gathering the tasks first would copy r × vocabulary for each row.
        tasks = (tasks.unsqueeze(-1) if tasks.dim() == 1 else tasks).expand(flat.shape)
        return self._dropped(table[tasks, :, flat], ids, dropout)

    def _dropped(self, h: Tensor, ids: Tensor, dropout: float) -> Tensor:
        """Return h without gradients for padding, after dropout of whole tokens, in the dtype of the products."""
        if self.padding_idx is not None:
            h = torch.where((ids == self.padding_idx).view(*h.shape[:2], 1), h.detach(), h)
        if dropout:
            h = h * F.dropout(torch.ones_like(h[..., :1]), dropout)
        device = h.device.type
        if torch.is_autocast_enabled(device) and h.dtype != torch.float64:
            return h.to(torch.get_autocast_dtype(device))
        return h.to(compute_dtype(h))
