"""Encoder-decoders: T5 and BART, a task for each row; beams repeat the decoder's rows, and the ids with them."""

import torch
from peft import get_peft_model
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

import tasklora

set_seed(0)
tokens = {"vocab_size": 64, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
t5_sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
bart_sizes = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
bart_sizes |= {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "init_std": 0.3}
bases = {
    "T5": (T5ForConditionalGeneration(T5Config(**t5_sizes, **tokens)), ["q", "v", "wi", "wo"]),
    "BART": (
        BartForConditionalGeneration(BartConfig(**bart_sizes, **tokens, bos_token_id=2, forced_eos_token_id=None)),
        ["q_proj", "v_proj", "fc1", "fc2"],
    ),
}
input_ids = torch.randint(3, 64, (3, 7))
labels = torch.randint(3, 64, (3, 5))

for name, (base, targets) in bases.items():
    config = tasklora.MTLLoraConfig(
        tasks=["translate", "summarise"], task_type="SEQ_2_SEQ_LM", r=4, target_modules=targets
    )
    model = get_peft_model(base, config)
    for parameter in model.parameters():  # in place of training
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    loss = model(input_ids=input_ids, labels=labels, task_ids=[0, 1, 1]).loss
    loss.backward()

    model.eval()
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    mixed = model.generate(input_ids=input_ids, task_ids=["translate", "summarise", "summarise"], **options)
    alone = model.generate(input_ids=input_ids[:1], task_ids="translate", **options)[0]
    print(f"{name}: loss {loss.item():.3f}, beams of the first row {mixed[0].tolist()}")
    assert torch.equal(mixed[0, : len(alone)], alone)
