"""LoRA as a core update has the numbers of PEFT's LoRA: outputs, all gradients, and the merged weight."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from helpers_updates import IN, OUT, close, ids, randn
from tasklora.updates import LoraCore, UpdateOptions


@pytest.fixture
def pair() -> tuple[nn.Module, LoraCore]:
    """PEFT's adapted linear layer and our update with the same factors, in float64."""
    model = nn.Sequential(nn.Linear(IN, OUT)).double()
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["0"])
    layer = get_peft_model(model, config, autocast_adapter_dtype=False).base_model.model[0]
    update = LoraCore(IN, OUT, 1, UpdateOptions(r=3, lora_alpha=7)).double()
    with torch.no_grad():
        layer.lora_B.default.weight.normal_()
        update.A.copy_(layer.lora_A.default.weight)
        update.B.copy_(layer.lora_B.default.weight)
    return layer, update


@pytest.mark.parametrize("shape", [(4, IN), (4, 5, IN)])
def test_outputs_and_gradients(pair, shape):
    layer, update = pair
    x = randn(*shape)
    probe = randn(*shape[:-1], OUT)
    theirs, ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    y_theirs = layer(theirs)
    y_ours = layer.base_layer(ours) + update(ours, None)
    close(y_ours, y_theirs)
    (y_theirs * probe).sum().backward()
    (y_ours * probe).sum().backward()
    close(ours.grad, theirs.grad)
    close(update.A.grad, layer.lora_A.default.weight.grad)
    close(update.B.grad, layer.lora_B.default.weight.grad)


def test_merged_weight(pair):
    layer, update = pair
    close(update.delta_weight(ids(0)), layer.get_delta_weight("default"))
