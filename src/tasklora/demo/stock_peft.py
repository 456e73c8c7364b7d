"""Predicts with an exported task, with torch, transformers, PEFT and safetensors only.

Run as ``python stock_peft.py BASE EXPORT TEXTS.json``; prints predictions and probabilities as JSON. It is also the
shortest answer to "how do I serve an exported task without tasklora?".
"""

import json
import sys
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer


def main(base: str, export: str, texts_file: str) -> None:
    """Predict the texts of a JSON file."""
    manifest = json.loads(Path(export, "manifest.json").read_text())
    if (manifest["head"]["pooling"], manifest["head"]["reads"]) != ("mean", "u"):
        raise SystemExit("this script pools by the mean and reads single texts; see the manifest for this task's way.")
    head = load_file(Path(export, "head.safetensors"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(base), export).eval()
    texts = json.loads(Path(texts_file).read_text())
    batch = tokenizer(
        texts, padding=True, truncation=True, max_length=manifest["head"]["max_length"], return_tensors="pt"
    )
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        logits = pooled @ head["linear.weight"].T + head["linear.bias"]
    if "tasklora" in sys.modules:
        raise RuntimeError("tasklora was imported: this would prove nothing.")
    print(
        json.dumps(
            {
                "peft": peft.__version__,
                "predictions": logits.argmax(-1).tolist(),
                "probabilities": logits.softmax(-1).tolist(),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
