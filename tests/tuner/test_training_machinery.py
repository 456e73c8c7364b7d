"""Machinery around a forward: activation checkpointing, mixed precision, compilation.

Checkpointing must recompute with the ids of *its* forward, whatever ran since: the gradients differ by exactly 0.
"""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

import helpers_families as families
import tasklora
from helpers_models import (
    ADAPTERS,
    BERT_TARGETS,
    LLAMA_TARGETS,
    adapt,
    adapter_state,
    config_of,
    inputs_of,
    layers,
    run,
    tiny_bert,
    tiny_llama,
    tokens,
)
from tasklora.errors import TaskIdsError
from tasklora.tuner import METHODS
from tasklora.tuner.checkpointing import recompute_under_tasks

every_method = pytest.mark.parametrize("method", METHODS)
every_adapter = pytest.mark.parametrize("case", ADAPTERS, ids=lambda case: case.id)
FIRST, SECOND = torch.tensor([0, 2, 1]), torch.tensor([1, 1, 0])


class TwoLayers(nn.Module):
    """Two linear layers, the first of them under activation checkpointing when asked."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.context_fn = None

    def forward(self, x):
        def block(x):
            return torch.tanh(self.first(x))

        if self.context_fn is not None:
            x = checkpoint(block, x, use_reentrant=False, context_fn=self.context_fn)
        else:
            x = block(x)
        return self.second(x)


def gradients(case, checkpointed: bool, backward) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = adapt(TwoLayers(), config_of(case, target_modules=["first", "second"]))
    if checkpointed:
        model.get_base_model().context_fn = tasklora.context_of(model).checkpoint_contexts
    backward(model, torch.randn(3, 5, 8, requires_grad=True))
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def one_forward(model, x):
    model(x, task_ids=FIRST).square().sum().backward()


def two_forwards_one_backward(model, x):
    (model(x, task_ids=FIRST).square().sum() + model(x * 2, task_ids=SECOND).square().sum()).backward()


def two_backwards_of_one_forward(model, x):
    y = model(x, task_ids=FIRST).square()
    y[0].sum().backward(retain_graph=True)
    y[1:].sum().backward()


def another_task_before_backward(model, x):
    y = model(x, task_ids=FIRST).square().sum()
    with tasklora.use_tasks(model, SECOND):
        y.backward()


@every_adapter
@pytest.mark.parametrize(
    "backward",
    [one_forward, two_forwards_one_backward, two_backwards_of_one_forward, another_task_before_backward],
    ids=lambda f: f.__name__,
)
def test_checkpointing_changes_no_gradient(case, backward):
    plain, checkpointed = gradients(case, False, backward), gradients(case, True, backward)
    assert plain.keys() == checkpointed.keys()
    assert plain
    for name, grad in plain.items():
        assert torch.equal(grad, checkpointed[name]), name


def test_checkpointing_of_a_transformer():
    """transformers passes `context_fn` on from its gradient_checkpointing_kwargs."""

    def grads(checkpointed: bool):
        model = adapt(tiny_llama(), config_of(task_type="CAUSAL_LM", target_modules=LLAMA_TARGETS)).train()
        if checkpointed:
            context_fn = tasklora.context_of(model).checkpoint_contexts
            model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": context_fn})
            model.enable_input_require_grads()
        losses = [
            model(input_ids=tokens(), labels=tokens(), task_ids=ids, use_cache=False).loss for ids in (FIRST, SECOND)
        ]
        sum(losses).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    plain, checkpointed = grads(False), grads(True)
    assert all(torch.equal(grad, checkpointed[name]) for name, grad in plain.items())


# Checkpointing as a PEFT user enables it: on the wrapped model, without a word about task ids.


ENABLE = {
    "gradient_checkpointing_enable": lambda model: model.gradient_checkpointing_enable(),
    "activation_checkpointing_enable": lambda model: model.activation_checkpointing_enable(),
    "every_second_layer": lambda model: model.activation_checkpointing_enable(every_n_layers=2),
    "reentrant": lambda model: model.gradient_checkpointing_enable({"use_reentrant": True}),
    "not_reentrant": lambda model: model.gradient_checkpointing_enable({"use_reentrant": False}),
    "with_our_context_fn": lambda model: model.gradient_checkpointing_enable(
        {"use_reentrant": False, "context_fn": tasklora.context_of(model).checkpoint_contexts}
    ),
}


def transformer_gradients(family, method, enable=None, before=None):
    """Return the gradients of two forwards with other ids before one backward, and how often the first layer ran."""
    base = families.base_of(family)
    if before is not None:
        before(base)
    config = config_of(method, target_modules=families.FAMILIES[family].targets)
    model = adapt(base, config).train()
    if enable is not None:
        enable(model)
    runs = []
    layers(model)[0].register_forward_hook(lambda *_: runs.append(None))
    inputs = families.inputs_of(family)
    torch.manual_seed(0)  # dropout
    sum(model(**inputs, task_ids=ids).logits.square().mean() for ids in (FIRST, SECOND)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}, len(runs)


def expect_same_gradients(family, method, enable=None, before=None):
    (plain, once), (checkpointed, twice) = (
        transformer_gradients(family, method),
        transformer_gradients(family, method, enable, before),
    )
    assert once == 2
    assert twice >= 4  # it was recomputed (a layer of Swin for its block and for its stage)
    for name, grad in plain.items():
        assert torch.equal(grad, checkpointed[name]), name


@every_method
@pytest.mark.parametrize("enable", ENABLE)
def test_checkpointing_enabled_on_the_wrapper(method, enable):
    if enable == "every_second_layer" and not hasattr(PreTrainedModel, "activation_checkpointing_enable"):
        pytest.skip("this release of transformers checkpoints all layers or none")
    expect_same_gradients("llama", method, ENABLE[enable])


@pytest.mark.parametrize("family", ["t5", "vit", "swin", "whisper_encoder", "deberta_v2"])
@pytest.mark.parametrize("enable", ["gradient_checkpointing_enable", "reentrant"])
def test_checkpointing_of_other_families(family, enable):
    expect_same_gradients(family, "mtl_lora", ENABLE[enable])


@every_method
@pytest.mark.parametrize("reentrant", [False, True], ids=["not_reentrant", "reentrant"])
def test_checkpointing_enabled_before_the_model_was_adapted(method, reentrant):
    """As PEFT's `prepare_model_for_kbit_training` does."""
    options = {"use_reentrant": reentrant}
    expect_same_gradients("llama", method, before=lambda base: base.gradient_checkpointing_enable(options))


@pytest.mark.parametrize("reentrant", [False, True], ids=["not_reentrant", "reentrant"])
def test_checkpointing_enabled_behind_the_wrappers_back(reentrant):
    """Recomputation without ids is an error that names the cure, never another task's gradient."""

    def enable(model):
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.get_base_model().enable_input_require_grads()

    with pytest.raises(TaskIdsError, match="enable checkpointing on the PEFT model itself"):
        transformer_gradients("llama", "mtl_lora", enable)

    def mend(model):
        enable(model)
        for _ in range(2):  # once is enough
            recompute_under_tasks(model, tasklora.context_of(model))

    expect_same_gradients("llama", "mtl_lora", mend)


def test_checkpointing_is_disabled_again():
    def enable_and_disable(model):
        model.gradient_checkpointing_enable()
        model.gradient_checkpointing_disable()

    plain, checkpointed = (transformer_gradients("llama", "mtl_lora", on) for on in (None, enable_and_disable))
    assert checkpointed[1] == plain[1] == 2


def test_a_copy_of_a_checkpointed_model_has_its_own_ids():
    model = adapt(tiny_llama(), config_of(target_modules=LLAMA_TARGETS)).train()
    model.gradient_checkpointing_enable()
    model(input_ids=tokens(), task_ids=FIRST).logits.square().mean().backward()
    expected = [p.grad for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    twin = copy.deepcopy(model)
    assert tasklora.context_of(twin) is not tasklora.context_of(model)
    twin(input_ids=tokens(), task_ids=FIRST).logits.square().mean().backward()
    grads = [p.grad for p in twin.parameters() if p.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_a_merged_model_keeps_its_checkpointing():
    model = adapt(tiny_llama(), config_of(target_modules=LLAMA_TARGETS))
    model.gradient_checkpointing_enable()
    merged = tasklora.merge_task(model, "rte").train()
    merged(input_ids=tokens()).logits.square().mean().backward()


# Accumulation.


@every_method
def test_accumulated_gradients_equal_those_of_the_whole_batch(method):
    """Rows of a task need not be in the same small batch."""
    x, ids = torch.randn(6, 5, 8), torch.tensor([2, 0, 1, 1, 2, 0])
    grads = []
    for size in (6, 2, 1):
        torch.manual_seed(0)
        model = adapt(TwoLayers(), config_of(method, target_modules=["first", "second"]))
        for rows, tasks in zip(x.split(size), ids.split(size), strict=True):
            model(rows, task_ids=tasks).square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, grad in grads[0].items():
        assert grad is not None, name
        for accumulated in grads[1:]:
            torch.testing.assert_close(accumulated[name], grad, rtol=1e-4, atol=1e-4 * float(grad.abs().max()))


# Precision.


@every_adapter
def test_bf16_base_with_fp32_adapter(case):
    """PEFT keeps the adapter in float32 on a half-precision base; the output has the base's dtype."""
    base = tiny_bert().to(torch.bfloat16)
    model = adapt(base, config_of(case, target_modules=BERT_TARGETS))
    assert {value.dtype for value in adapter_state(model).values()} == {torch.float32}
    y = run(model, FIRST)
    assert y.dtype == torch.bfloat16
    reference = adapt(tiny_bert(), config_of(case, target_modules=BERT_TARGETS))
    torch.testing.assert_close(y.float(), run(reference, FIRST), rtol=0.1, atol=0.1)
    model(**inputs_of(model), labels=FIRST, task_ids=FIRST).loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)


@every_method
@pytest.mark.parametrize("adapter_in_fp32", [True, False], ids=["fp32_adapter", "fp16_adapter"])
def test_fp16_weights(method, adapter_in_fp32):
    """A float16 base, with PEFT's default of a float32 adapter and without."""
    config = config_of(method, target_modules=BERT_TARGETS)
    model = adapt(tiny_bert().half(), config, autocast_adapter_dtype=adapter_in_fp32)
    assert {value.dtype for value in adapter_state(model).values()} == {
        torch.float32 if adapter_in_fp32 else torch.float16
    }
    y = run(model, FIRST)
    assert y.dtype == torch.float16
    reference = adapt(tiny_bert(), config_of(method, target_modules=BERT_TARGETS))
    torch.testing.assert_close(y.float(), run(reference, FIRST), rtol=0.02, atol=0.02)
    model(**inputs_of(model), labels=FIRST, task_ids=FIRST).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@every_method
@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
def test_autocast_training_of_a_bf16_base(method, checkpointed):
    """Autocast, a half-precision base, a float32 adapter and recomputation together."""
    grads = []
    for dtype in (torch.float32, torch.bfloat16):
        model = adapt(tiny_llama().to(dtype), config_of(method, target_modules=LLAMA_TARGETS)).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(input_ids=tokens(), labels=tokens(), task_ids=FIRST).loss
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    exact, rounded = grads
    assert rounded.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.98


def test_bf16_adapter_when_asked_for():
    config = config_of(target_modules=["query"])
    model = get_peft_model(tiny_bert().to(torch.bfloat16), config, autocast_adapter_dtype=False)
    assert {value.dtype for value in adapter_state(model).values()} == {torch.bfloat16}
    assert run(model, FIRST).dtype == torch.bfloat16


@every_adapter
def test_autocast_of_a_model(case):
    model = adapt(tiny_bert(), config_of(case, target_modules=BERT_TARGETS))
    expected = run(model, FIRST)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**inputs_of(model), labels=FIRST, task_ids=FIRST).loss.backward()
        torch.testing.assert_close(run(model, FIRST).float(), expected, rtol=0.1, atol=0.1)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_float64_base():
    model = adapt(tiny_bert().double(), config_of(target_modules=["query"]))
    assert run(model, FIRST).dtype == torch.float64


def test_layers_share_one_context():
    model = adapt(tiny_bert(), config_of(target_modules=BERT_TARGETS))
    assert {id(layer.context) for layer in layers(model)} == {id(tasklora.context_of(model))}
