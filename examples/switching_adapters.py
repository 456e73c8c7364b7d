"""Several adapters of one method on one model: each has its own tasks; names are resolved by the active one."""

import torch
from peft import get_peft_model
from transformers import BertConfig, BertForSequenceClassification, set_seed

import tasklora

set_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
base = BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=3, **sizes)).eval()
targets = {"target_modules": ["query", "value"], "r": 4}
rows = torch.randint(0, 64, (2, 8))
with torch.no_grad():
    plain = base(input_ids=rows).logits

model = get_peft_model(base, tasklora.MTLLoraConfig(tasks=["cola", "rte"], **targets), adapter_name="first")
model.add_adapter("second", tasklora.MTLLoraConfig(tasks=["rte", "sst2", "mnli"], **targets))
for name, parameter in model.named_parameters():  # in place of training
    if ".task_updates." in name:
        torch.nn.init.normal_(parameter.data, std=0.3)
model.eval()


@torch.no_grad()
def logits(**tasks) -> torch.Tensor:
    return model(input_ids=rows, **tasks).logits


first = logits(task_ids="rte")  # task 1 of the first adapter
model.set_adapter("second")
second = logits(task_ids="rte")  # task 0 of the second
model.set_adapter("first")
again = logits(task_ids="rte")
with model.disable_adapter():
    disabled = logits()

print("rte, first and second adapter differ by", (first - second).abs().max().item())
print("back to the first adapter:", (again - first).abs().max().item())
print("disabled, against the base model:", (disabled - plain).abs().max().item())
assert not torch.allclose(first, second)
assert torch.equal(again, first)
assert torch.equal(disabled, plain)
try:
    logits(task_ids="mnli")  # a task of the other adapter
except tasklora.TaskLoraError as error:
    print(error)
model.delete_adapter("second")
print("adapters left:", list(model.peft_config))
