"""A loop of your own with accelerate: accumulation, a checkpoint, and going on from it.

Run it with `python`, or on several processes with `accelerate launch --cpu --num_processes 2 accelerate_loop.py`.
"""

import tempfile

import torch
from accelerate import Accelerator
from peft import get_peft_model
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, set_seed

import tasklora

set_seed(0)
rows = []
for _ in range(256):
    input_ids, task = torch.randint(0, 64, (8,)), int(torch.randint(0, 2, ()))
    label = int(input_ids[0] % 2 == 0) if task == 0 else int(input_ids[0] >= 32)
    rows.append({"input_ids": input_ids, "labels": label, "task_ids": task})

sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
base = BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=2, **sizes, **no_dropout))
config = tasklora.MTLLoraConfig(tasks=["even", "large"], task_type="SEQ_CLS", r=4, target_modules=["query", "value"])

accelerator = Accelerator(gradient_accumulation_steps=2)
model = get_peft_model(base, config)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(rows, batch_size=16))


def epoch() -> list[float]:
    losses = []
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch).loss  # `task_ids` is one of the batch's columns
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


with tempfile.TemporaryDirectory() as folder:
    epoch()
    folder = accelerator.gather_for_metrics([folder], use_gather_object=True)[0]  # that of the main process
    accelerator.save_state(folder)
    first = epoch()
    accelerator.load_state(folder)
    accelerator.wait_for_everyone()
    again = epoch()

accelerator.print("mean loss of the second epoch:", sum(first) / len(first))
accelerator.print("the same, from the checkpoint: ", sum(again) / len(again))
assert first == again
