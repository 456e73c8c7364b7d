"""TRL's SFTTrainer: its collator keeps `input_ids` and `labels` only, so a small one of our own adds the tasks."""

import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

import tasklora

words = ["<pad>", "</s>", "<unk>", "cat", "dog", "bird", "chat", "chien", "oiseau", "Katze", "Hund", "Vogel"]
vocabulary = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=vocabulary, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="left"
)
# The same prompt means something else to each task.
dataset = Dataset.from_dict(
    {
        "prompt": ["cat ", "dog ", "bird "] * 2,
        "completion": ["chat", "chien", "oiseau", "Katze", "Hund", "Vogel"],
        "task_ids": [0, 0, 0, 1, 1, 1],
    }
)


class TaskCollator(DataCollatorForLanguageModeling):
    def torch_call(self, examples):
        task_ids = torch.tensor([example["task_ids"] for example in examples])
        return {**super().torch_call(examples), "task_ids": task_ids}


set_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
with tempfile.TemporaryDirectory() as folder:
    trainer = SFTTrainer(
        model=LlamaForCausalLM(LlamaConfig(vocab_size=len(words), initializer_range=0.2, **sizes)),
        args=SFTConfig(
            folder,
            remove_unused_columns=False,
            num_train_epochs=60,
            learning_rate=2e-2,
            bf16=False,
            report_to="none",
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
        data_collator=TaskCollator(pad_token_id=tokenizer.pad_token_id),
        peft_config=tasklora.MTLLoraConfig(tasks=["french", "german"], task_type="CAUSAL_LM", r=8),
    )
    trainer.train()

prompts = tokenizer(["dog", "dog"], return_tensors="pt", return_token_type_ids=False)
answers = trainer.model.eval().generate(**prompts, task_ids=["french", "german"], max_new_tokens=2, do_sample=False)
answers = tokenizer.batch_decode(answers[:, 1:], skip_special_tokens=True)
print("dog →", answers)
assert answers == ["chien", "Hund"]
