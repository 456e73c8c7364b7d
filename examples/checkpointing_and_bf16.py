"""Less memory: activation checkpointing, a bf16 base with a float32 adapter, autocast."""

import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

import tasklora

input_ids = torch.arange(3, 27).reshape(4, 6)
tasks = torch.tensor([0, 1, 2, 0])


def gradients(dtype: torch.dtype = torch.float32, checkpointing: bool = False, autocast: bool = False) -> torch.Tensor:
    """Return the gradients of the adapter of one step, as one vector."""
    set_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).to(dtype)
    config = tasklora.MTLLoraConfig(tasks=["a", "b", "c"], task_type="CAUSAL_LM", r=4)
    model = get_peft_model(base, config).train()
    adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in adapter} == {torch.float32}  # also on a bf16 base
    for parameter in adapter:  # in place of training
        torch.nn.init.normal_(parameter, std=0.1)
    if checkpointing:
        model.gradient_checkpointing_enable()  # each layer is recomputed under the ids of its own forward
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = model(input_ids=input_ids, labels=input_ids, task_ids=tasks).loss
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in adapter])


plain = gradients()
for name, options in {
    "checkpointing": {"checkpointing": True},
    "bf16 base": {"dtype": torch.bfloat16},
    "bf16 base and checkpointing": {"dtype": torch.bfloat16, "checkpointing": True},
    "autocast": {"autocast": True},
}.items():
    other = gradients(**options)
    difference = ((other - plain).norm() / plain.norm()).item()
    print(f"{name}: gradients differ by {difference:.1e} of their norm")
    assert difference < (1e-6 if name == "checkpointing" else 0.05)
