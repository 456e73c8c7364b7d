"""From a plain LoRA to several tasks: start MTL-LoRA where a LoRA has come to, and leave again with one LoRA per task.

Runs in seconds on a small random model, without a network: `python examples/import_a_lora.py`. With models of your own,
replace `small_llama()` by `AutoModelForCausalLM.from_pretrained(…)` and the first part by the LoRA that you have.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import tasklora

TOKENS = torch.arange(3, 15).view(2, 6)
TARGETS = ["q_proj", "v_proj"]


def small_llama() -> LlamaForCausalLM:
    """Return the same small random model each time."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **sizes)).eval()


def train_a_lora(directory: Path) -> torch.Tensor:
    """Write a LoRA of stock PEFT, as one might have it already; return its logits."""
    model = get_peft_model(small_llama(), LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(5):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(directory)
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def main(folder: Path) -> None:
    """Import, train one step on two tasks, export, and compare with stock PEFT."""
    before = train_a_lora(folder / "lora")

    config = tasklora.MTLLoraConfig(tasks=["sums", "words"], r=8, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(small_llama(), config).eval()
    done = tasklora.import_lora(model, folder / "lora")
    with torch.no_grad():
        after = model(input_ids=TOKENS, task_ids=["sums", "words"]).logits
    print(f"imported {len(done.modules)} layers of rank {done.rank}; ", end="")
    print(f"largest difference to the LoRA: {(after - before).abs().max():.1e}")
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(5):
        model(input_ids=TOKENS, labels=TOKENS, task_ids=["sums", "words"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    exports = tasklora.export_all(model, folder / "tasks")
    for task, directory in exports.items():
        stock = PeftModel.from_pretrained(small_llama(), directory).eval()
        with torch.no_grad():
            theirs, ours = stock(input_ids=TOKENS).logits, model(input_ids=TOKENS, task_ids=task).logits
        print(f"{task}: exported; largest difference of stock PEFT's logits: {(theirs - ours).abs().max():.1e}")
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
