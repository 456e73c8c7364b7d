"""Each task, and each mixture of tasks, is a plain LoRA: exported exactly, loaded by PEFT without tasklora."""

import subprocess
import sys
import tempfile

import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

import tasklora

set_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
base = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
rows = torch.randint(0, 64, (2, 6))

# What another program does, which knows nothing of tasks.
STOCK_PEFT = """
import sys, torch
from peft import PeftModel
from transformers import LlamaForCausalLM
folder, rows = sys.argv[1], torch.load(f"{sys.argv[1]}/rows.pt")
for name in ("chat", "mixture"):
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(f"{folder}/base"), f"{folder}/{name}")
    torch.save(model(input_ids=rows).logits.detach(), f"{folder}/{name}.pt")
assert "tasklora" not in sys.modules
"""

with tempfile.TemporaryDirectory() as folder:
    base.save_pretrained(f"{folder}/base")
    torch.save(rows, f"{folder}/rows.pt")
    model = get_peft_model(base, tasklora.MTLLoraConfig(tasks=["chat", "code"], task_type="CAUSAL_LM", r=4)).eval()
    for parameter in model.parameters():  # in place of training
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    weights = torch.tensor([0.3, 0.7])
    with torch.no_grad():
        expected = {
            "chat": model(input_ids=rows, task_ids="chat").logits,
            "mixture": model(input_ids=rows, task_weights=weights).logits,
        }
    tasklora.export_lora(model, task="chat", directory=f"{folder}/chat")
    tasklora.export_lora(model, task_weights=weights, directory=f"{folder}/mixture")
    subprocess.run([sys.executable, "-c", STOCK_PEFT, folder], check=True)
    for name, logits in expected.items():
        difference = (torch.load(f"{folder}/{name}.pt") - logits).abs().max().item()
        print(f"{name}: stock PEFT differs by {difference:.1e}")
        assert difference < 1e-5
