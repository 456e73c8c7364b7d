"""transformers' own Trainer: a `task_ids` column, and `remove_unused_columns=False` so that it arrives."""

import tempfile

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

import tasklora

set_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
base = BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=2, initializer_range=0.2, **sizes))
config = tasklora.MTLLoraConfig(tasks=["even", "large"], task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
model = get_peft_model(base, config)


def rows(count: int) -> Dataset:
    input_ids = torch.randint(0, 64, (count, 8))
    task_ids = torch.randint(0, 2, (count,))
    first = input_ids[:, 0]
    labels = torch.where(task_ids == 0, (first % 2 == 0).long(), (first >= 32).long())
    columns = {"input_ids": input_ids, "labels": labels, "task_ids": task_ids}
    return Dataset.from_dict({name: value.tolist() for name, value in columns.items()})


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


with tempfile.TemporaryDirectory() as folder:
    args = TrainingArguments(
        output_dir=folder,
        remove_unused_columns=False,  # the Trainer would drop `task_ids`: the base model does not name it
        gradient_checkpointing=True,  # each layer is recomputed under the ids of its own forward
        per_device_train_batch_size=32,
        num_train_epochs=4,
        learning_rate=1e-2,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=args, train_dataset=rows(256), eval_dataset=rows(128), compute_metrics=accuracy)
    trainer.train()
    scores = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
    best = trainer.evaluate()["eval_accuracy"]

print("accuracy after each epoch:", [round(score, 3) for score in scores])
print("accuracy of the best checkpoint, which was loaded at the end:", round(best, 3))
assert best == max(scores)
