"""MTLoRA on transformers' Swin."""
