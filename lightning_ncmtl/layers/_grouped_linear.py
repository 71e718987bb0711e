"""The product of rows with the matrices of their tasks, and its derivatives of any order.

Shapes: B batch, N tasks, I features of a row, O features of its product.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_ncmtl.layers.routing import Plan, Routing, make_plan

# Numbers in copies of the matrix for each row, up to which that takes less time than planning, as measured by
# benchmarks/task_layers.py on a CPU. On a GPU the sum of their gradients would not have the same bits every time.
_LITTLE = 2**17


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor | None, routing: Routing) -> Tensor:
    """``weight[task] @ row + bias[task]`` for each row.

    Args:
        x: ``[B, I]``.
        weight: ``[N, O, I]``.
        bias: ``[N, O]`` or ``None``.
        routing: The task of each row.

    Returns:
        ``[B, O]``.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            return grouped_linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), routing)
    if kind == "cpu" and x.dtype == weight.dtype == torch.float16:  # torch's own products of it are 10 times slower
        return grouped_linear(x.float(), weight.float(), None if bias is None else bias.float(), routing).half()
    if torch.compiler.is_compiling():
        out: Tensor = _linear_op(x, weight, bias, *routing.sort())
        return out
    if kind == "cpu" and len(x) * weight[0].numel() <= _LITTLE:
        return _per_row(x, weight, bias, routing.task_ids.to(x.device, torch.int64))
    return _apply(x, weight, bias, routing.plan(weight[0].numel(), x.device))


def _per_row(x: Tensor, weight: Tensor, bias: Tensor | None, task_ids: Tensor) -> Tensor:
    """With a copy of the matrix for each row."""
    across = weight.index_select(0, task_ids).transpose(1, 2)
    rows = x.unsqueeze(1)
    if bias is None:
        return (rows @ across).squeeze(1)
    return torch.baddbmm(bias.index_select(0, task_ids).unsqueeze(1), rows, across).squeeze(1)


def _pad(rows: Tensor, plan: Plan) -> Tensor:
    """``[B, F]`` to ``[M, plan.depth, F]``, with zeros where a task has no row; as they are if there is no depth."""
    if not plan.depth:
        return rows
    return F.pad(rows, (0, 0, 0, 1)).index_select(0, plan.fill).view(-1, plan.depth, rows.shape[1])


def _select(parameter: Tensor, plan: Plan) -> Tensor:
    """What the tasks of the batched product have of a parameter ``[N, ...]``."""
    return parameter if plan.tasks is None else parameter.index_select(0, plan.tasks)


def _multiply(
    rows: Tensor, padded: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, transposed: bool = False
) -> Tensor:
    """The products ``[B, O]`` of rows ``[B, I]``; transposed, the products ``[B, I]`` of rows ``[B, O]``."""
    size = weight.shape[2 if transposed else 1]
    if plan.depth:
        across = _select(weight, plan)
        across = across if transposed else across.transpose(1, 2)
        out = padded @ across if bias is None else torch.baddbmm(_select(bias, plan).unsqueeze(1), padded, across)
        out = out.flatten(0, 1).index_select(0, plan.place)
    else:
        out = rows.new_empty(len(rows), size)
    if plan.large:
        rows = rows.index_select(0, plan.rows)
        products = rows.new_empty(len(rows), size)
        across = weight if transposed else weight.transpose(1, 2)
        for task, start, end in plan.large:
            if bias is None:
                torch.mm(rows[start:end], across[task], out=products[start:end])
            else:
                torch.addmm(bias[task], rows[start:end], across[task], out=products[start:end])
        out.index_copy_(0, plan.rows, products)
    return out


def _sum_outer(grad: Tensor, padded: Tensor, x: Tensor, tasks: int, plan: Plan) -> tuple[Tensor, Tensor]:
    """The gradients of all weights ``[N, O, I]`` and biases ``[N, O]``; zeros for absent tasks."""
    shape = (tasks, grad.shape[1], x.shape[1])
    if plan.depth:
        weight, bias = padded.transpose(1, 2) @ _pad(x, plan), padded.sum(1)
        if plan.tasks is not None:
            weight = grad.new_zeros(shape).index_copy_(0, plan.tasks, weight)
            bias = grad.new_zeros(shape[:2]).index_copy_(0, plan.tasks, bias)
    else:
        new = grad.new_empty if len(plan.large) == tasks else grad.new_zeros
        weight, bias = new(shape), new(shape[:2])
    if plan.large:
        grad, x = grad.index_select(0, plan.rows), x.index_select(0, plan.rows)
        for task, start, end in plan.large:
            torch.mm(grad[start:end].t(), x[start:end], out=weight[task])
            torch.sum(grad[start:end], 0, out=bias[task])
    return weight, bias


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, plan: Plan, of_x: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of ``x``, ``weight`` and a bias, given that ``[B, O]`` of the products."""
    if torch.is_autocast_enabled(x.device.type):  # where backward() is called under it; types are those of forward
        with torch.autocast(x.device.type, enabled=False):
            return _gradients(grad, x, weight, plan, of_x, of_weight)
    padded = _pad(grad, plan)
    grad_x = _multiply(grad, padded, weight, None, plan, transposed=True) if of_x else None
    return grad_x, *(_sum_outer(grad, padded, x, len(weight), plan) if of_weight else (None, None))


class _Linear(torch.autograd.Function):
    """Autograd of a batched product would give the weights' gradient transposed, to be copied."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
        return _multiply(x, _pad(x, plan), weight, bias, plan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.plan = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        # Gradients are enabled only for second derivatives.
        gradients: Callable[..., Any] = _apply_gradients if torch.is_grad_enabled() else _gradients
        grads = gradients(grad, *ctx.saved_tensors, ctx.plan, of_x, of_weight or of_bias)
        return (*(found if needed else None for found, needed in zip(grads, ctx.needs_input_grad, strict=False)), None)


class _Gradients(torch.autograd.Function):
    """Its derivatives are products and gradients again: the two functions give derivatives of any order."""

    @staticmethod
    def forward(grad: Tensor, x: Tensor, weight: Tensor, plan: Plan, of_x: bool, of_weight: bool) -> Any:
        return _gradients(grad, x, weight, plan, of_x, of_weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.plan, ctx.of_x, ctx.of_weight = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, of_x: Tensor | None, of_weight: Tensor | None, of_bias: Tensor | None) -> Any:
        (grad, x, weight), plan = ctx.saved_tensors, ctx.plan
        grad_grad = grad_x = grad_weight = None
        if of_x is not None:
            grad_grad = _apply(of_x, weight, None, plan)
            grad_weight = _apply_gradients(grad, of_x, weight, plan, False, True)[1]
        if of_weight is not None:
            more = _apply(x, of_weight, of_bias, plan)
            grad_grad = more if grad_grad is None else grad_grad + more
            grad_x = _apply_gradients(grad, x, of_weight, plan, True, False)[0]
        return grad_grad, grad_x, grad_weight, None, None, None


_apply: Callable[..., Tensor] = _Linear.apply
_apply_gradients: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Gradients.apply


# For torch.compile: one step each, inside of which shapes may depend on values.
@torch.library.custom_op("lightning_ncmtl::grouped_linear", mutates_args=())
def _linear_op(x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor, counts: Tensor) -> Tensor:
    plan = make_plan(order, counts, weight[0].numel(), x.device)
    return _multiply(x, _pad(x, plan), weight, bias, plan)


@_linear_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor, counts: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@torch.library.custom_op("lightning_ncmtl::grouped_linear_backward", mutates_args=())
def _gradients_op(
    grad: Tensor, x: Tensor, weight: Tensor, order: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    plan = make_plan(order, counts, weight[0].numel(), x.device)
    return _gradients(grad, x, weight, plan, True, True)  # type: ignore[return-value]


@_gradients_op.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, order: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), weight.new_empty(weight.shape), weight.new_empty(weight.shape[:2])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, order, counts = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight, order, counts)


def _backward(ctx: Any, grad: Tensor) -> Any:
    grad_x, grad_weight, grad_bias = _gradients_op(grad, *ctx.saved_tensors)
    return grad_x, grad_weight, grad_bias if ctx.has_bias else None, None, None


_linear_op.register_autograd(_backward, setup_context=_save)
