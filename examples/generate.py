"""Generation: greedy, sampling and beams with a task for each prompt, prompts of different lengths, a static cache."""

import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

import tasklora

set_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
base = LlamaForCausalLM(LlamaConfig(vocab_size=64, initializer_range=0.3, pad_token_id=0, eos_token_id=1, **sizes))
config = tasklora.MTLLoraConfig(tasks=["question", "summary"], task_type="CAUSAL_LM", r=4)
model = get_peft_model(base, config).eval()
for parameter in model.parameters():  # in place of training: a fresh adapter changes nothing
    if parameter.requires_grad:
        torch.nn.init.normal_(parameter, std=0.3)

# Prompts of different lengths are padded on the left, each with its own task.
input_ids = torch.tensor([[5, 6, 7, 8], [0, 0, 9, 4], [5, 6, 7, 8]])
attention_mask = (input_ids != 0).long()
tasks = ["question", "summary", "summary"]

ways = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},  # ids are repeated as the rows are
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static"},
}
answers = {}
for name, options in ways.items():
    answers[name] = model.generate(
        input_ids=input_ids, attention_mask=attention_mask, task_ids=tasks, max_new_tokens=6, **options
    )[:, input_ids.shape[1] :]
    print(f"{name}:", answers[name].tolist())

# Each row of a mixed batch is what it is alone, without its padding.
alone = model.generate(
    input_ids=torch.tensor([[9, 4]]), attention_mask=torch.ones(1, 2).long(), task_ids="summary", max_new_tokens=6
)[0, 2:]
print("the second prompt alone:", alone.tolist())
assert torch.equal(answers["greedy"][1, : len(alone)], alone)
assert not torch.equal(answers["greedy"][0], answers["greedy"][2])  # the same prompt, another task
assert torch.equal(answers["static cache"], answers["greedy"])
