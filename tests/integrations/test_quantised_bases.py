"""Quantised bases: an update only calls its base layer, whatever that multiplies with.

Each package is asked for what it does on a CPU; where one is missing its tests are skipped and say so.
"""

import copy
import os

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")  # it looks for CUDA kernels and reports each one

import tasklora
from helpers_models import ADAPTERS, LLAMA_TARGETS, TASKS, adapt, config_of, fill, inputs_of, layers, run, tiny_llama
from helpers_updates import close
from tasklora.errors import UnsupportedError

IN, OUT = 64, 32


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.target = nn.Linear(IN, OUT)

    def forward(self, x):
        return self.target(x)


def each_linear(make):
    """Return a function that replaces every linear layer but the head by ``make(layer)``."""

    def quantise(model):
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear) and name != "lm_head":
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, make(layer))
        return model

    return quantise


def bitsandbytes_8(layer):
    import bitsandbytes as bnb

    made = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False)
    made.load_state_dict(layer.state_dict())
    return made.to("cpu")


def bitsandbytes_4(kind):
    def make(layer):
        import bitsandbytes as bnb

        sizes = layer.in_features, layer.out_features, layer.bias is not None
        made = bnb.nn.Linear4bit(*sizes, compute_dtype=torch.float32, quant_type=kind)
        made.load_state_dict(layer.state_dict())
        return made.to("cpu")

    return make


def hqq_4(layer):
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    config = BaseQuantizeConfig(nbits=4, group_size=16)
    return HQQLinear(copy.deepcopy(layer), config, compute_dtype=torch.float32, device="cpu")


def torchao(config):
    def quantise(model):
        from torchao import quantization

        quantization.quantize_(model, getattr(quantization, config)(), lambda m, name: _is_body(m, name))
        return model

    return quantise


def quanto(kind, freeze=True):
    def quantise(model):
        from optimum import quanto

        quanto.quantize(model, weights=getattr(quanto, kind), exclude=["lm_head"])
        if freeze:
            quanto.freeze(model)
        return model

    return quantise


def _is_body(module, name):
    return isinstance(module, nn.Linear) and name != "lm_head"


# name → package, how it quantises a model, class of the layers
BASES = {
    "bitsandbytes-int8": ("bitsandbytes", each_linear(bitsandbytes_8), "Linear8bitLt"),
    "bitsandbytes-nf4": ("bitsandbytes", each_linear(bitsandbytes_4("nf4")), "Linear4bit"),
    "bitsandbytes-fp4": ("bitsandbytes", each_linear(bitsandbytes_4("fp4")), "Linear4bit"),
    "torchao-int8": ("torchao", torchao("Int8WeightOnlyConfig"), "Linear"),
    "quanto-int8": ("optimum.quanto", quanto("qint8"), "QLinear"),
    "quanto-int8-not-frozen": ("optimum.quanto", quanto("qint8", freeze=False), "QLinear"),
    "hqq-int4": ("hqq", each_linear(hqq_4), "HQQLinear"),
}
# Without a backward: the adapter is trained on another base and runs here.
INFERENCE = {
    "torchao-int8-dynamic": ("torchao", torchao("Int8DynamicActivationInt8WeightConfig"), "Linear"),
}
every_trainable = pytest.mark.parametrize("name", BASES)
every_base = pytest.mark.parametrize("name", {**BASES, **INFERENCE})
METHODS = list({case.method: case for case in reversed(ADAPTERS)}.values())
every_method = pytest.mark.parametrize("case", METHODS, ids=lambda case: case.id)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning"),
]


def quantised(name, model):
    package, quantise, kind = {**BASES, **INFERENCE}[name]
    pytest.importorskip(package, reason=f"{package} is not installed")
    model = quantise(model).eval()
    assert any(type(module).__name__ == kind for module in model.modules())
    return model


def adapted(name, case):
    model = get_peft_model(quantised(name, Net()), config_of(case, target_modules=["target"]))
    fill(model)
    return model.eval()


@every_base
@every_method
def test_the_output_is_the_quantised_base_and_the_update(name, case):
    model, x = adapted(name, case), torch.randn(4, 5, IN)
    (layer,) = layers(model)
    update, names = layer.task_updates["default"], tasklora.context_of(model).tasks["default"]
    assert {parameter.dtype for parameter in update.parameters()} == {torch.float32}
    with torch.no_grad():
        result, base = model(x, task_ids=torch.tensor([2, 0, 1, 2])), layer.base_layer(x)
        for row, task in enumerate([2, 0, 1, 2]):
            if case.update_cls.kind == "routed":
                added = update(x[row : row + 1], None)[0]
            else:
                down, up = update.lora_factors(names.assign(task))
                added = x[row] @ (up @ down).T
            close(result[row], base[row] + added, 1e-6)
        with model.disable_adapter():
            assert torch.equal(model(x), base)


@every_trainable
@every_method
def test_gradients_reach_the_updates_and_the_input_only(name, case):
    model, x = adapted(name, case), torch.randn(4, 5, IN, requires_grad=True)
    (layer,) = layers(model)
    ids = torch.tensor([2, 0, 1, 2])
    model(x, task_ids=ids).square().sum().backward()
    got = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert got
    assert set(got) == {n for n, _ in model.named_parameters() if ".task_updates." in n}
    # What the base passes on is its own affair; the update's part is checked on top of it.
    again = x.detach().clone().requires_grad_()
    g = 2 * model(x, task_ids=ids).detach()
    (layer.base_layer(again) * g).sum().backward()
    extra = x.detach().clone().requires_grad_()
    assignment = tasklora.context_of(model).tasks["default"].assign(ids) if case.uses_task_ids else None
    (layer.task_updates["default"](extra, assignment) * g).sum().backward()
    close(x.grad, again.grad + extra.grad, 1e-5)


@every_base
def test_what_was_trained_on_one_copy_runs_on_a_fresh_one(name, tmp_path):
    model = adapt(quantised(name, tiny_llama()), config_of(target_modules=LLAMA_TARGETS, task_type="CAUSAL_LM"))
    expected = run(model, TASKS)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(quantised(name, tiny_llama()), tmp_path).eval()
    assert torch.equal(run(loaded, TASKS), expected)
    assert not torch.equal(run(loaded, TASKS[::-1]), expected)


@every_trainable
def test_training_lowers_the_loss(name):
    model = get_peft_model(quantised(name, tiny_llama()), config_of(target_modules=LLAMA_TARGETS)).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if ".task_updates." not in n}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    inputs = inputs_of(model)
    losses = []
    for _ in range(6):
        loss = model(**inputs, labels=inputs["input_ids"], task_ids=TASKS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.01
    after = dict(model.named_parameters())
    assert all(torch.equal(_plain(after[n]), _plain(value)) for n, value in before.items())


def _plain(weight):
    return weight.dequantize() if type(weight) is not nn.Parameter and hasattr(weight, "dequantize") else weight


@every_base
def test_merging_is_refused_and_changes_nothing(name):
    model = adapt(quantised(name, tiny_llama()), config_of(target_modules=LLAMA_TARGETS))
    expected = run(model, TASKS)
    with pytest.raises(
        UnsupportedError, match=r"quantised base layer \(\w+\): load the base model unquantised, or export"
    ):
        tasklora.merge_task(model, "rte")
    with pytest.raises(UnsupportedError, match="quantised base layer"), tasklora.use_tasks(model, "rte"):
        model.merge_adapter()
    assert not any(layer.merged for layer in layers(model))
    assert torch.equal(run(model, TASKS), expected)


@every_base
def test_the_plain_lora_of_a_task_is_exported(name, tmp_path):
    """It is the LoRA that an unquantised base gives, and stock PEFT puts it on one."""
    config = config_of(target_modules=LLAMA_TARGETS, task_type="CAUSAL_LM")
    model, plain = adapt(quantised(name, tiny_llama()), config), adapt(tiny_llama(), config)
    tasklora.export_lora(model, "rte", tmp_path / "lora")
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "lora").eval()
    torch.testing.assert_close(run(loaded), run(plain, "rte"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", INFERENCE)
def test_training_through_a_base_without_a_backward_is_refused(name):
    model = adapt(quantised(name, tiny_llama()), config_of(target_modules=LLAMA_TARGETS))
    with pytest.raises(UnsupportedError, match=r"q_proj \(Linear\) gives no gradient to its input"):
        model(**inputs_of(model), task_ids=TASKS)
    run(model, TASKS)


def test_torchs_eager_mode_layers_are_refused():
    model = torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(UnsupportedError, match="cannot adapt 'target': Linear of torch's eager-mode quantisation"):
        get_peft_model(model, config_of(target_modules=["target"]))


class HQQLinear(nn.Module):
    """Has the name, but not what is asked of such a layer."""


def test_a_known_name_alone_is_not_enough():
    base = Net()
    base.target = HQQLinear()
    with pytest.raises(UnsupportedError, match="HQQLinear is not a linear layer"):
        get_peft_model(base, config_of(target_modules=["target"]))


class FakeFP8(nn.Linear):
    def __init__(self) -> None:
        super().__init__(IN, OUT, bias=False)
        self.weight = nn.Parameter(self.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)

    def forward(self, x):
        return x @ self.weight.float().T * 2


def test_one_byte_floats_are_not_merged_into():
    """They are floating point, and mean nothing without the scale that stands elsewhere."""
    base = Net()
    base.target = FakeFP8()
    model = get_peft_model(base, config_of(target_modules=["target"])).eval()
    assert {p.dtype for p in layers(model)[0].task_updates.parameters()} == {torch.float32}
    assert layers(model)[0].task_updates["default"].A.unique().numel() > 100  # never rounded to fp8 on the way
    fill(model)
    x = torch.randn(3, IN)
    expected = model(x, task_ids=TASKS)
    with pytest.raises(UnsupportedError, match="quantised base layer"):
        tasklora.merge_task(model, "rte")
    assert torch.equal(model(x, task_ids=TASKS), expected)
