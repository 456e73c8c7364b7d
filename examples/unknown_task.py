"""Rows of a task that nobody trained: weights by likeness to the known tasks, as one mixture of the adapter's tasks."""

import tempfile

import torch
from peft import PeftModel, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, set_seed

import tasklora


def base_model() -> BertForSequenceClassification:
    set_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=90, num_labels=2, initializer_range=0.2, **sizes))


def rows_about(first: int, last: int) -> dict[str, torch.Tensor]:
    """Rows whose tokens lie in a range of their own, as the words of different tasks do."""
    return {"input_ids": torch.randint(first, last, (64, 8))}


config = tasklora.MTLLoraConfig(tasks=["films", "cooking", "law"], r=4, target_modules=["query", "value"])
model = get_peft_model(base_model(), config).eval()
for name, parameter in model.named_parameters():  # stands for training
    if "task_updates" in name:
        torch.nn.init.normal_(parameter, std=0.3)

known = {"films": rows_about(0, 30), "cooking": rows_about(30, 60), "law": rows_about(60, 90)}
unknown = rows_about(28, 60)  # mostly about cooking, a little about films
nearest = tasklora.nearest_tasks(model, unknown, known)
print("similarities:", {task: round(value, 2) for task, value in nearest.similarities.items()})
print("weights:", {task: round(value, 2) for task, value in nearest.weights.items()})
assert next(iter(nearest.weights)) == "cooking"

with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
    mixed = model(**unknown, task_weights=nearest.task_weights).logits
    tasklora.export_lora(model, task_weights=nearest.task_weights, directory=f"{folder}/mixture")  # like a task
    plain = PeftModel.from_pretrained(base_model(), f"{folder}/mixture").eval()
    difference = (plain(**unknown).logits - mixed).abs().max().item()
print("largest difference of the exported mixture in stock PEFT:", difference)
assert difference < 1e-5
