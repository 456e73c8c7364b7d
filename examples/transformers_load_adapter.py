"""An adapter put on a model by transformers itself: no PEFT wrapper, so tasks come from `tasklora.use_tasks`."""

import tempfile

import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

import tasklora


def base_model() -> LlamaForCausalLM:
    set_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, initializer_range=0.3, pad_token_id=0, **sizes)).eval()


prompts = torch.tensor([[5, 6, 7], [5, 6, 7]])
options = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": 5, "do_sample": False}

with tempfile.TemporaryDirectory() as folder:
    wrapped = get_peft_model(base_model(), tasklora.MTLLoraConfig(tasks=["chat", "code"], task_type="CAUSAL_LM", r=4))
    for parameter in wrapped.parameters():  # in place of training
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    expected = wrapped.eval().generate(input_ids=prompts, task_ids=["chat", "code"], **options)
    wrapped.save_pretrained(folder)

    model = base_model()
    model.load_adapter(folder)

with tasklora.use_tasks(model, ["chat", "code"]):  # one task per row
    answers = model.generate(input_ids=prompts, **options)
with tasklora.use_tasks(model, "code"):  # or one for all
    code = model.generate(input_ids=prompts, **options)

print("chat, code:", answers[:, 3:].tolist())
assert torch.equal(answers, expected)
assert torch.equal(code[1], expected[1])
try:
    model(input_ids=prompts)
except tasklora.TaskLoraError as error:
    print("without tasks:", str(error).split(":")[0])
