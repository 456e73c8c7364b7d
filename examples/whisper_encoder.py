"""Speech: Whisper's encoder under a task per recording, for classification of what was said and of who said it."""

import tempfile

import torch
from peft import PeftModel, get_peft_model
from transformers import WhisperConfig, WhisperForAudioClassification, set_seed

import tasklora


def base_model() -> WhisperForAudioClassification:
    set_seed(0)
    sizes = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    shape = {"num_mel_bins": 8, "max_source_positions": 16, "num_labels": 4, "classifier_proj_size": 16}
    return WhisperForAudioClassification(WhisperConfig(vocab_size=64, **tokens, **sizes, **shape))


config = tasklora.MTLLoraConfig(tasks=["keyword", "speaker"], r=4, target_modules=["q_proj", "v_proj", "fc1", "fc2"])
model = get_peft_model(base_model(), config)
features = torch.randn(4, 8, 32)  # log-mel features, twice as many frames as the encoder has positions
task_ids = ["keyword", "speaker", "keyword", "speaker"]

optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
losses = []
for _ in range(30):
    loss = model(input_features=features, labels=torch.tensor([0, 1, 2, 3]), task_ids=task_ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(f"loss from {losses[0]:.3f} to {losses[-1]:.3f}")

model.eval()
with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
    expected = model(input_features=features, task_ids=task_ids).logits
    model.save_pretrained(folder)
    loaded = PeftModel.from_pretrained(base_model(), folder).eval()
    difference = (loaded(input_features=features, task_ids=task_ids).logits - expected).abs().max().item()
print("largest difference after loading:", difference)
assert losses[-1] < losses[0]
assert difference == 0
