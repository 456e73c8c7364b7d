"""DistributedDataParallel: run with `torchrun --standalone --nproc-per-node 2 ddp.py`.

Every process has rows of its own, of any tasks. A task that is absent from a process has a gradient of zeros there, so
DDP needs no `find_unused_parameters`.
"""

import os

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

import tasklora

torch.set_num_threads(1)
dist.init_process_group("gloo")  # "nccl" on GPUs
rank = int(os.environ["RANK"])

set_seed(0)  # the same adapter everywhere
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
base = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
config = tasklora.MTLLoraConfig(tasks=["a", "b", "c"], task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
model = DistributedDataParallel(get_peft_model(base, config))

optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
for _ in range(3):
    input_ids = torch.randint(0, 64, (8, 6))
    task_ids = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])  # all rows of one process have one task, none has the third
    mine = slice(rank * 4, rank * 4 + 4)
    loss = model(input_ids=input_ids[mine], labels=input_ids[mine], task_ids=task_ids[mine]).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

# All processes hold the same adapter.
for name, parameter in model.module.named_parameters():
    if parameter.requires_grad:
        theirs = parameter.detach().clone()
        dist.broadcast(theirs, src=0)
        assert torch.equal(theirs, parameter), name
if rank == 0:
    print(f"two processes, one adapter: loss {loss.item():.3f} on the rows of process 0")
dist.destroy_process_group()
