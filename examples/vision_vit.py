"""Images: a vision transformer, two tasks over the same pixels."""

import torch
from peft import get_peft_model
from transformers import ViTConfig, ViTForImageClassification, set_seed

import tasklora

set_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
base = ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_labels=2, initializer_range=0.2, **sizes))
config = tasklora.MTLLoraConfig(
    tasks=["bright", "red"],
    r=8,
    target_modules="all-linear",
    exclude_modules=["classifier"],
    modules_to_save=["classifier"],
)
model = get_peft_model(base, config)

optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
for step in range(41):
    brightness, redness = torch.randint(0, 2, (2, 16))
    pixels = 0.3 * torch.randn(16, 3, 16, 16) + brightness[:, None, None, None]
    pixels[:, 0] += 2 * redness[:, None, None]
    task_ids = torch.randint(0, 2, (16,))
    labels = torch.where(task_ids == 0, brightness, redness)
    output = model(pixel_values=pixels, labels=labels, task_ids=task_ids)
    output.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 0:
        print(f"step {step:2d}  loss {output.loss.item():.3f}")

accuracy = (output.logits.argmax(-1) == labels).float().mean().item()
print(f"accuracy on the last batch, both tasks mixed: {accuracy:.2f}")
assert accuracy > 0.8
