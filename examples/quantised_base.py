"""A quantised base: torchao's int8 weights beneath, the adapter in float32 on top. Needs `pip install torchao`."""

import tempfile

import torch
from peft import PeftModel, get_peft_model
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

import tasklora


def base_model(quantised: bool) -> LlamaForCausalLM:
    set_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
    if quantised:
        quantize_(model.model, Int8WeightOnlyConfig())
    return model


config = tasklora.MTLLoraConfig(tasks=["chat", "code"], task_type="CAUSAL_LM", r=4)
model = get_peft_model(base_model(quantised=True), config)
input_ids = torch.randint(0, 64, (4, 6))
tasks = ["chat", "code", "code", "chat"]

optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
losses = []
for _ in range(10):
    loss = model(input_ids=input_ids, labels=input_ids, task_ids=tasks).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(f"trained on int8 weights: loss from {losses[0]:.3f} to {losses[-1]:.3f}")
assert losses[-1] < losses[0]

with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    model.save_pretrained(folder)
    expected = model.eval()(input_ids=input_ids, task_ids=tasks).logits
    for quantised in (True, False):
        loaded = PeftModel.from_pretrained(base_model(quantised), folder).eval()
        difference = (loaded(input_ids=input_ids, task_ids=tasks).logits - expected).abs().max().item()
        print(f"the same adapter on {'int8' if quantised else 'float32'} weights differs by {difference:.1e}")
        assert difference < (1e-6 if quantised else 0.05)
try:
    tasklora.merge_task(model, "chat")
except tasklora.TaskLoraError as error:
    print("merging:", error)
