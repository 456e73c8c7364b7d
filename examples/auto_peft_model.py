"""PEFT's Auto classes: base and adapter from one directory, tasks by name."""

import tempfile

import torch
from peft import AutoPeftModelForSequenceClassification, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, set_seed

import tasklora  # registers the methods with PEFT; the adapter's model card says so too

set_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
rows = torch.randint(0, 64, (3, 8))

with tempfile.TemporaryDirectory() as folder:
    BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=3, **sizes)).save_pretrained(f"{folder}/base")
    base = BertForSequenceClassification.from_pretrained(f"{folder}/base")
    config = tasklora.MTLLoraConfig(
        tasks=["cola", "rte", "sst2"], task_type="SEQ_CLS", r=4, target_modules=["query", "value"]
    )
    model = get_peft_model(base, config).eval()
    for parameter in model.parameters():  # in place of training
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        expected = model(input_ids=rows, task_ids=["cola", "rte", "sst2"]).logits
    model.save_pretrained(f"{folder}/adapter")

    loaded = AutoPeftModelForSequenceClassification.from_pretrained(f"{folder}/adapter", num_labels=3)

with torch.no_grad():
    difference = (loaded(input_ids=rows, task_ids=["cola", "rte", "sst2"]).logits - expected).abs().max().item()
print(f"{type(loaded).__name__} with tasks {loaded.active_peft_config.tasks}; largest difference: {difference}")
assert difference == 0
