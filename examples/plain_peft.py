"""PEFT as you know it, with tasks: wrap, train on mixed batches, save, load, export one task as plain LoRA."""

import tempfile

import torch
from peft import PeftModel, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, set_seed

import tasklora


def base_model() -> BertForSequenceClassification:
    set_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=2, initializer_range=0.2, **sizes))


config = tasklora.MTLLoraConfig(
    tasks=["even", "large"], task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "value"]
)
model = get_peft_model(base_model(), config)
model.print_trainable_parameters()

# Two tasks about the same rows: is the first token even, is it large? Rows of both are mixed in every batch.
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
for step in range(61):
    input_ids = torch.randint(0, 64, (32, 8))
    task_ids = torch.randint(0, 2, (32,))  # or names: ["even", "large", …], one per row
    first = input_ids[:, 0]
    labels = torch.where(task_ids == 0, (first % 2 == 0).long(), (first >= 32).long())
    loss = model(input_ids=input_ids, labels=labels, task_ids=task_ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 20 == 0:
        print(f"step {step:2d}  loss {loss.item():.3f}")

model.eval()
rows = torch.randint(0, 64, (4, 8))
with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
    expected = model(input_ids=rows, task_ids=["even", "large", "even", "large"]).logits

    model.save_pretrained(f"{folder}/adapter")
    loaded = PeftModel.from_pretrained(base_model(), f"{folder}/adapter").eval()
    after_loading = loaded(input_ids=rows, task_ids=["even", "large", "even", "large"]).logits

    tasklora.export_lora(model, task="large", directory=f"{folder}/large")  # an ordinary LoRA, no tasklora needed
    merged = tasklora.merge_task(loaded, "large")  # an ordinary transformers model
    after_merging = merged(input_ids=rows).logits

print("largest difference after loading:", (after_loading - expected).abs().max().item())
print("largest difference after merging one task:", (after_merging - expected)[[1, 3]].abs().max().item())
assert torch.equal(after_loading, expected)
assert torch.allclose(after_merging[[1, 3]], expected[[1, 3]], atol=1e-5)
