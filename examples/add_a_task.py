"""A new task on a trained adapter: only what is its own is trained, the other tasks keep their outputs bit by bit."""

import tempfile

import torch
from peft import PeftModel, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, set_seed

import tasklora


def base_model() -> BertForSequenceClassification:
    set_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=2, initializer_range=0.2, **sizes))


def train(model: torch.nn.Module, tasks: list[str], steps: int) -> float:
    """Train on rows whose label is: is the first token even / large / a multiple of three?"""
    answers = {"even": lambda x: x % 2 == 0, "large": lambda x: x >= 32, "third": lambda x: x % 3 == 0}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        input_ids = torch.randint(0, 64, (32, 8))
        rows = [tasks[i] for i in torch.randint(0, len(tasks), (32,))]
        labels = torch.tensor([int(answers[task](x)) for task, x in zip(rows, input_ids[:, 0], strict=True)])
        loss = model(input_ids=input_ids, labels=labels, task_ids=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


rows = torch.randint(0, 64, (4, 8))
with tempfile.TemporaryDirectory() as folder:
    config = tasklora.MTLLoraConfig(tasks=["even", "large"], r=4, target_modules=["query", "value"])
    model = get_peft_model(base_model(), config)
    train(model, ["even", "large"], steps=40)
    model.save_pretrained(folder)
    expected = model.eval()(input_ids=rows, task_ids=["even", "large"] * 2).logits

    model = PeftModel.from_pretrained(base_model(), folder, is_trainable=True)
    tasklora.add_tasks(model, ["third"], like={"third": "even"})  # begins as a copy of a task that is like it
    print("trained now:", sorted({name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}))
    print("loss of the new task:", train(model, ["third"], steps=40))
    model.save_pretrained(folder)

model.eval()
same = torch.equal(model(input_ids=rows, task_ids=["even", "large"] * 2).logits, expected)
print("outputs of the other tasks are what they were, bit by bit:", same)
assert same

tasklora.rename_tasks(model, {"third": "multiple-of-three"})
tasklora.remove_tasks(model, ["large"])
print("tasks now, by id:", model.peft_config["default"].tasks)
