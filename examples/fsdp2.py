"""FSDP2: run with `torchrun --standalone --nproc-per-node 2 fsdp2.py`.

Base model and adapter are sharded alike. The adapter is gathered for saving and loads anywhere, on one process too.
"""

import tempfile

import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

import tasklora

torch.set_num_threads(1)
dist.init_process_group("gloo")  # "nccl" on GPUs
rank = dist.get_rank()


def base_model() -> LlamaForCausalLM:
    set_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))


config = tasklora.MTLLoraConfig(tasks=["a", "b", "c"], task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
model = get_peft_model(base_model(), config)
for block in model.get_base_model().model.layers:
    fully_shard(block)
fully_shard(model)

optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
for _ in range(3):
    input_ids = torch.randint(0, 64, (4, 6))
    loss = model(input_ids=input_ids, labels=input_ids, task_ids=torch.tensor([0, 1, 2, 0])).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

with torch.no_grad():
    expected = model(input_ids=input_ids, task_ids=["a", "b", "c", "a"]).logits  # by all processes together
state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
if rank == 0:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, state_dict=state)
        loaded = PeftModel.from_pretrained(base_model(), folder)
    with torch.no_grad():
        difference = (loaded(input_ids=input_ids, task_ids=["a", "b", "c", "a"]).logits - expected).abs().max().item()
    print("sharded training, saved, loaded in one process; largest difference:", difference)
    assert difference < 1e-5
dist.destroy_process_group()
