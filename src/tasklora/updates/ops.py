"""The arithmetic of the updates: a low-rank branch y + U C D x beside a frozen base layer.

Each operation stands here twice: plainly, as the formula says it, and fused, with a backward of its own. Both give the
same numbers and gradients; the plain ones serve compiled graphs (the compiler fuses by itself) and autocast.

What the fused forms save, per adapted layer and beside the products that no adapter can do without:

- the branch is added into the base layer's output in place: no (R, L, out) temporary, no pass over two of them;
- the gradient of x is added to the base layer's gradient of x by the product itself, not by a pass over both;
- for backward stay x (which its neighbours q, k, v share), h and the tiny C; C h is made again.

Shapes are written as comments on the lines that reshape: R rows, L positions per row, N = R·L tokens, T tasks. A
*weight* is (out, in) for all rows, (R, out, in) per row, or (blocks, out, in) with a :class:`BlockOrder` per token.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tasklora.updates.block_order import BlockOrder, flat


def wide_softmax(logits: Tensor, like: Tensor) -> Tensor:
    """Return softmax over the last dimension, computed in the wider of `like`'s dtype and float32."""
    return torch.softmax(logits, dim=-1, dtype=torch.promote_types(like.dtype, torch.float32))


def rows_of(table: Tensor, ids: Tensor) -> Tensor:
    """Return table[ids], (*ids.shape, …); faster than indexing, forward and backward."""
    return table.index_select(0, ids.reshape(-1)).view(*ids.shape, *table.shape[1:])


@functools.cache
def _cpu_multiplies(dtype: torch.dtype) -> bool:
    """Return whether this CPU has instructions for products in a half-precision type."""
    name = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    return any(name in feature and there is True for feature, there in torch.cpu.get_capabilities().items())


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the branch's products: that of x, but float32 where half precision would be emulated.

    On a CPU without instructions for it, a thin product in bfloat16 takes many times as long as in float32, the
    conversion of x included.
    """
    if x.dtype not in (torch.bfloat16, torch.float16) or x.device.type != "cpu":
        return x.dtype
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or _cpu_multiplies(x.dtype):
        return x.dtype
    return torch.float32


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Return x Wᵀ (R, L, out) of x (R, L, in) and W (out, in) or (R, out, in)."""
    if weight.dim() == 3:
        return torch.bmm(x, weight.transpose(1, 2))
    # Folded here: torch folds strided inputs or not by whether W takes gradients, which would change the last bit.
    return F.linear(flat(x), weight).view(*x.shape[:2], weight.shape[0])


def _transposed_product(g: Tensor, weight: Tensor) -> Tensor:
    """Return g W (R, L, in) of g (R, L, out)."""
    if weight.dim() == 3:
        return torch.bmm(g, weight)
    return (flat(g) @ weight).view(*g.shape[:2], weight.shape[1])


def _weight_gradient(g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return Σ gᵀ x in the shape of W; g is (R, L, out), x (R, L, in)."""
    if weight.dim() == 3:
        return torch.bmm(g.transpose(1, 2), x)
    g, x = flat(g), flat(x)
    if g.shape[1] <= x.shape[1]:
        return g.transpose(0, 1) @ x
    return (x.transpose(0, 1) @ g).transpose(0, 1)  # a short and wide product is up to twice as fast as a tall one


def _add_product(y: Tensor, x: Tensor, weight: Tensor, in_place: bool) -> Tensor:
    """Return y + x W (R, L, in) of x (R, L, out) in the dtype of y, into y itself where it is ours."""
    if y.dtype != x.dtype:
        added = _transposed_product(x, weight)
        return y.add_(added) if in_place else y + added.to(y.dtype)
    if weight.dim() == 3:
        return y.baddbmm_(x, weight) if in_place else torch.baddbmm(y, x, weight)
    x = flat(x)
    if in_place:
        y.view(x.shape[0], y.shape[2]).addmm_(x, weight)
        return y
    return torch.addmm(flat(y), x, weight).view_as(y)


@dataclass(frozen=True)
class Branch:
    """What is added to a base layer's output: U C h, with h = D dropout(x).

    Attributes:
        h: (R, L, k_d); (blocks, BLOCK, k_d) where `up` is per block.
        up: U, a weight (out, k_u).
        core: C (k_u, k_d) as a weight; None for the identity.
        order: the blocks of weights per block.
        shape: the shape of the output, (R, …, out).
    """

    h: Tensor
    up: Tensor
    core: Tensor | None
    order: BlockOrder | None
    shape: tuple[int, ...]


def _mixed(h: Tensor, core: Tensor | None, up: Tensor, order: BlockOrder | None) -> Tensor:
    """Return C h in the layout that U takes: (R, L, k_u), or blocks where U is per block."""
    if core is None:
        return h
    if order is None:
        return product(h, core)
    return order.scatter(product(order.gather(h), core)).view(*h.shape[:2], core.shape[-2])


def branch_output(branch: Branch) -> Tensor:
    """Return U C h, plainly: (R, …, out)."""
    out = product(_mixed(branch.h, branch.core, branch.up, branch.order), branch.up)
    if branch.order is not None and branch.up.dim() == 3:
        out = branch.order.scatter(out)
    return out.reshape(branch.shape)


def add_branch(y: Tensor, branch: Branch, in_place: bool) -> Tensor:
    """Return y + U C h.

    Args:
        y: (R, …, out), the base layer's output.
        branch: the branch.
        in_place: whether y may be written to: nobody else has it, and no backward needs it.
    """
    if torch.compiler.is_compiling() or not y.is_contiguous():
        return y + branch_output(branch).to(y.dtype)
    parts = (y, branch.h, branch.core, branch.up, branch.order, in_place)
    if torch.is_grad_enabled():
        return _AddBranch.apply(*parts)  # type: ignore[no-any-return]
    return _sum(*parts)


def _sum(y: Tensor, h: Tensor, core: Tensor | None, up: Tensor, order: BlockOrder | None, in_place: bool) -> Tensor:
    """Return y + U C h, in y itself if that is allowed."""
    out = y.detach()  # not y itself: autograd would copy an input of a Function that is a view and was written to
    if order is not None and up.dim() == 3:
        added = order.scatter(product(h, up)).view_as(y)
        return out.add_(added) if in_place else out + added.to(y.dtype)
    rows = out.view(*h.shape[:2], y.shape[-1])  # (R, L, out)
    if order is None and core is not None and _folding_pays(h, core):
        added = _add_product(*_by_core(rows, h, core), _folded(core, up), in_place)
    else:
        added = _add_product(rows, _mixed(h, core, up, order), up.mT, in_place)
    return out if in_place else added.view_as(y)


# Where this many times as many operations are saved as making U C costs, folding is faster; below it is not, as
# products of one row each are thinner. Measured on two cores, widths 256 to 2048, 16 to 128 tokens a row.
_FOLDING_GAIN = 2


def _folding_pays(h: Tensor, core: Tensor) -> bool:
    """Return whether U C for each row, and its product with h, is cheaper than the product of U with C h."""
    k_u, k_d = core.shape[-2:]
    length = h.shape[1] if core.dim() == 3 else h.shape[0] * h.shape[1]
    return length * (k_u - k_d) >= _FOLDING_GAIN * k_u * k_d


def _by_core(y: Tensor, h: Tensor, core: Tensor) -> tuple[Tensor, Tensor]:
    """Return y and h as (R, L, …), one row for each core: a core for all rows makes them one."""
    if core.dim() == 3:
        return y, h
    return flat(y).unsqueeze(0), flat(h).unsqueeze(0)


def _folded(core: Tensor, up: Tensor) -> Tensor:
    """Return (U C)ᵀ (R, k_d, out), as one product for all rows."""
    k_u, k_d = core.shape[-2:]
    stacked = core.mT.reshape(-1, k_u)  # (R·k_d, k_u)
    return (stacked @ up.mT).view(-1, k_d, up.shape[0])


def _folded_gradients(g: Tensor, h: Tensor, core: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of h, C and U where U C was folded: with V = U C, ∂/∂V = g hᵀ, ∂/∂U = (∂/∂V) Cᵀ."""
    k_u, k_d = core.shape[-2:]
    g_rows, h_rows = _by_core(g, h, core)
    folded = _folded(core, up)
    g_h = torch.bmm(folded, g_rows.mT).mT  # in this order the long dimension is the contiguous one
    g_folded = torch.bmm(h_rows.mT, g_rows).view(-1, up.shape[0])  # (R·k_d, out)
    stacked = core.mT.reshape(-1, k_u)  # (R·k_d, k_u)
    g_up = (stacked.mT @ g_folded).mT
    g_core = (g_folded @ up).view(-1, k_d, k_u).mT
    return g_h.reshape(h.shape), g_core.reshape(core.shape), g_up


class _AddBranch(torch.autograd.Function):
    """z = y + U C h. With g = ∂/∂z and m = C h, summed over the rows that share a weight:

        ∂/∂y = g    ∂/∂U = g mᵀ    ∂/∂m = Uᵀ g    ∂/∂C = (∂/∂m) hᵀ    ∂/∂h = Cᵀ (∂/∂m)

    m is made again in backward: C h costs less than keeping it, k_u numbers a token.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        h: Tensor,
        core: Tensor | None,
        up: Tensor,
        order: BlockOrder | None,
        in_place: bool,
    ) -> Tensor:
        ctx.save_for_backward(h, core, up)
        ctx.order = order
        ctx.rows = (y.shape[0], y.shape[1:-1].numel())
        return _sum(y, h, core, up, order, in_place)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        h, core, up = ctx.saved_tensors
        order = ctx.order
        blocked = order is not None and up.dim() == 3
        g_rows = g.reshape(*ctx.rows, g.shape[-1]).to(h.dtype)  # (R, L, out)
        if order is None and core is not None and _folding_pays(h, core):
            return g, *_folded_gradients(g_rows, h, core, up), None, None
        outer = order.gather(g_rows) if blocked else g_rows  # in the layout of U: blocks where it is per block
        g_up = _weight_gradient(outer, _mixed(h, core, up, order), up)
        g_m = _transposed_product(outer, up)  # (R, L, k_u), or blocks
        if core is None:
            return g, g_m, None, g_up, None, None
        if order is None:
            return g, _transposed_product(g_m, core), _weight_gradient(g_m, h, core), g_up, None, None
        g_m = order.gather(g_m) * order.filled
        g_h = order.scatter(_transposed_product(g_m, core)).view_as(h)
        return g, g_h, _weight_gradient(g_m, order.gather(h), core), g_up, None, None


def project_down(
    x: Tensor, down: Tensor, order: BlockOrder | None, dropout: float, in_place: bool
) -> tuple[Tensor, Tensor]:
    """Return x, to be given to the base layer, and h = D dropout(x).

    Args:
        x: (R, …, in).
        down: D, a weight (k_d, in), in the dtype of the products (:func:`compute_dtype`).
        order: the blocks, if D is per block.
        dropout: rate of the one mask on x; 0 for none.
        in_place: whether the gradient that x gets from the base layer may be written to: nobody else has it.

    Returns:
        x and (R, L, k_d), or (blocks, BLOCK, k_d) for a D per block.
    """
    fused = (
        torch.is_grad_enabled()
        and x.requires_grad
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled(x.device.type)
    )
    if not fused:
        dropped = F.dropout(x, dropout) if dropout else x
        dropped = (dropped.unsqueeze(1) if x.dim() == 2 else dropped.flatten(1, -2)).to(down.dtype)  # (R, L, in)
        if order is None or down.dim() == 2:
            return x, product(dropped, down)
        return x, product(order.gather(dropped), down) * order.filled
    keep = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - dropout) if dropout else None
    through, h = _ProjectDown.apply(x, down, order, keep, dropout, in_place)
    return through, h


class _ProjectDown(torch.autograd.Function):
    """(x, h) with h = D (s ⊙ x), s the scaled dropout mask. With g_x from the base layer and g_h from the branch:

        ∂/∂x = g_x + s ⊙ (Dᵀ g_h)    ∂/∂D = g_h (s ⊙ x)ᵀ

    That x passes through is what lets the two gradients of x meet here, so that the product adds to the first one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        down: Tensor,
        order: BlockOrder | None,
        keep: Tensor | None,
        dropout: float,
        in_place: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, down, keep)
        ctx.order, ctx.scale, ctx.in_place = order, 1 / (1 - dropout), in_place
        ctx.set_materialize_grads(False)
        h = product(_ProjectDown._input(x, keep, ctx.scale, order).to(down.dtype), down)
        return x.view_as(x), h if order is None else h * order.filled

    @staticmethod
    def _input(x: Tensor, keep: Tensor | None, scale: float, order: BlockOrder | None) -> Tensor:
        """Return s ⊙ x as (R, L, in), or as blocks."""
        if keep is not None:
            x = (x * keep).mul_(scale)
        x = x.unsqueeze(1) if x.dim() == 2 else x.flatten(1, -2)
        return x if order is None else order.gather(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        g_x, g_h = grads
        x, down, keep = ctx.saved_tensors
        order = ctx.order
        if g_h is None:
            return g_x, None, None, None, None, None
        if order is not None:
            g_h = g_h * order.filled
        g_down = None
        if ctx.needs_input_grad[1]:
            dropped = _ProjectDown._input(x, keep, ctx.scale, order).to(down.dtype)
            g_down = _weight_gradient(g_h, dropped, down)
        if g_x is None or keep is not None or order is not None:
            added = _transposed_product(g_h, down)
            if order is not None:
                added = order.scatter(added)
            added = added.view_as(x)
            if keep is not None:
                added = added * keep * ctx.scale
            added = added.to(x.dtype)
            return added if g_x is None else g_x + added, g_down, None, None, None, None
        own = ctx.in_place and g_x.is_contiguous() and not torch.is_grad_enabled()
        g_x = _add_product(g_x.reshape(*g_h.shape[:2], x.shape[-1]), g_h, down, own).view_as(x)
        return g_x, g_down, None, None, None, None
