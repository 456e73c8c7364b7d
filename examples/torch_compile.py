"""torch.compile: the layers read no value of the ids, so one whole graph serves every assignment of tasks."""

import torch
import torch._dynamo
from peft import get_peft_model
from torch._dynamo.testing import CompileCounter
from transformers import BertConfig, BertForSequenceClassification, set_seed

import tasklora

set_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
base = BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=3, **sizes))
config = tasklora.MTLLoraConfig(tasks=["a", "b", "c"], task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
model = get_peft_model(base, config).eval()
for parameter in model.parameters():  # in place of training
    if parameter.requires_grad:
        torch.nn.init.normal_(parameter, std=0.3)

counter = CompileCounter()  # counts graphs; leave `backend` out for the real compiler
compiled = torch.compile(model, fullgraph=True, backend=counter)
input_ids = torch.randint(0, 64, (4, 8))
difference = 0.0
with torch.no_grad():
    for task_ids in ([0, 1, 2, 0], [2, 2, 2, 2], [1, 0, 2, 1]):
        ids = torch.tensor(task_ids)  # ids as a tensor: names are looked up in Python, by `use_tasks` for example
        expected = model(input_ids=input_ids, task_ids=ids).logits
        difference = max(difference, (compiled(input_ids=input_ids, task_ids=ids).logits - expected).abs().max().item())

print(f"graphs compiled for three assignments: {counter.frame_count}; largest difference: {difference}")
assert counter.frame_count == 1
assert difference < 1e-5
