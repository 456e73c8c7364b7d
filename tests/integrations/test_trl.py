"""TRL's SFTTrainer with a `task_ids` column: what it needs, what it drops, packed rows of several tasks."""

import warnings

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer, pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from helpers_models import LLAMA_TARGETS, TASKS, adapt, adapter_state, config_of, fill, tiny_llama
from tasklora.errors import TaskIdsError
from tasklora.tuner import METHODS

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "red", "green", "blue", "one", "two", "three", "up", "down", "copy", "name"]

# One method of each kind; the others take minutes in all.
ONE_OF_A_KIND = {method.update_cls.kind: name for name, method in METHODS.items()}.values()
every_method_slowly = pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in ONE_OF_A_KIND else pytest.mark.slow) for name in METHODS]
)
every_task_method = pytest.mark.parametrize(
    "method", [name for name, method in METHODS.items() if method.update_cls.uses_task_ids]
)


class TaskCollator(DataCollatorForLanguageModeling):
    """TRL's collator, which builds its batch from `input_ids` and `labels` only, and the rows' task ids."""

    def torch_call(self, examples):
        task_ids = torch.tensor([example["task_ids"] for example in examples])
        return {**super().torch_call(examples), "task_ids": task_ids}


class PackedTaskCollator(TaskCollator):
    """Rows packed of several tasks: `task_ids` (rows, sequence), and positions in place of an attention mask."""

    def torch_call(self, examples):
        rows = [torch.tensor(example["task_ids"]) for example in examples]
        batch = DataCollatorForLanguageModeling.torch_call(self, examples)
        del batch["attention_mask"]  # transformers then keeps the packed texts apart by their positions
        return {**batch, "task_ids": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)}


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def texts(**columns) -> Dataset:
    """Return prompts that each task answers in its own way, and the tasks."""
    prompts = ["red one ", "green two ", "blue three "] * 4
    answers = ["up", "down up", "copy"]
    task_ids = [index // 3 % 3 for index in range(len(prompts))]
    completions = [answers[task] for task in task_ids]
    return Dataset.from_dict({"prompt": prompts, "completion": completions, "task_ids": task_ids, **columns})


def trainer_of(model, folder, rows, collator=None, **options) -> SFTTrainer:
    arguments = {name: options.pop(name) for name in ("peft_config",) if name in options}
    settings = {
        "per_device_train_batch_size": 6,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "num_train_epochs": 8,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "remove_unused_columns": False,
        **options,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers' renamed options
        args = SFTConfig(output_dir=str(folder), **settings)
        return SFTTrainer(
            model=model,
            args=args,
            train_dataset=rows,
            processing_class=tokenizer(),
            data_collator=collator or TaskCollator(pad_token_id=0),
            **arguments,
        )


def losses_of(trainer: SFTTrainer) -> list[float]:
    return [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def config(method: str):
    return config_of(method, task_type="CAUSAL_LM", target_modules=LLAMA_TARGETS)


@every_method_slowly
@pytest.mark.parametrize("given", ["peft_config", "peft_model"])
def test_sft(method, given, tmp_path):
    """Gradient checkpointing is on, TRL's default; only the adapter learns."""
    if given == "peft_config":
        trainer = trainer_of(tiny_llama(), tmp_path, texts(), peft_config=config(method))
    else:
        trainer = trainer_of(adapt(tiny_llama(), config(method)), tmp_path, texts())
    assert trainer.args.gradient_checkpointing
    assert trainer.train_dataset["task_ids"][:4] == [0, 0, 0, 1]
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    losses = losses_of(trainer)
    assert len(losses) == 16
    assert all(0 < loss < 10 for loss in losses)
    assert sum(losses[-4:]) < sum(losses[:4]) - 0.3
    after = trainer.model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".task_updates." in name for name in changed)


@every_task_method
def test_checkpointing_changes_nothing(method, tmp_path):
    states = []
    for checkpointing in (True, False):
        model = adapt(tiny_llama(), config(method))
        trainer_of(model, tmp_path, texts(), gradient_checkpointing=checkpointing, max_steps=3).train()
        states.append(adapter_state(model))
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name


@every_task_method
@pytest.mark.parametrize("lost", ["by the collator", "with the column"])
def test_lost_ids_are_an_error(method, lost, tmp_path):
    """TRL's own collator ignores further columns, and the Trainer drops them by default."""
    trainer = trainer_of(
        adapt(tiny_llama(), config(method)),
        tmp_path,
        texts(),
        collator=DataCollatorForLanguageModeling(pad_token_id=0),
        remove_unused_columns=lost == "with the column",
    )
    with pytest.raises(TaskIdsError, match=r"3 tasks \(cola, rte, sst2\) and was run without task ids"):
        trainer.train()


def test_the_packing_of_trl_drops_the_column(tmp_path):
    """It keeps `input_ids` and `labels` only."""
    model = adapt(tiny_llama(), config("mtl_lora"))
    with pytest.raises(ValueError, match="custom data collator is not supported"):
        trainer_of(model, tmp_path, texts(), packing=True, max_length=16)
    trainer = trainer_of(model, tmp_path, texts(), packing=True, packing_strategy="wrapped", max_length=16)
    with pytest.raises(KeyError, match="task_ids"):
        trainer.train()


def tokenized(rows: Dataset) -> Dataset:
    """Return rows of tokens, labels and one task id per token."""
    encode = tokenizer()

    def row(example):
        prompt = encode(example["prompt"])["input_ids"]
        answer = encode(example["completion"] + " </s>")["input_ids"]
        ids = prompt + answer
        return {
            "input_ids": ids,
            "labels": [-100] * len(prompt) + answer,
            "task_ids": [example["task_ids"]] * len(ids),
        }

    return rows.map(row, remove_columns=rows.column_names)


@every_task_method
def test_packed_rows_of_several_tasks(method, tmp_path):
    """Packed before the trainer sees them, with ids per token: the same loss and gradients as row by row."""
    single = tokenized(texts())
    packed = pack_dataset(single, seq_length=16, strategy="bfd")
    assert len(packed) < len(single)
    assert any(len(set(row)) > 1 for row in packed["task_ids"])
    options = {"per_device_train_batch_size": 12, "max_steps": 1, "max_length": None, "optim": "sgd"}
    states, losses = [], []
    for rows in (single, packed):
        model = adapt(tiny_llama(), config(method))
        if rows is packed:
            collator = PackedTaskCollator(pad_token_id=0, return_position_ids=True)
        else:
            rows = rows.map(lambda row: {"task_ids": row["task_ids"][0]})
            collator = TaskCollator(pad_token_id=0)
        trainer = trainer_of(model, tmp_path, rows, collator, **options)
        trainer.train()
        states.append(adapter_state(model))
        losses += losses_of(trainer)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_each_task_answers_in_its_own_way(tmp_path):
    """The same prompt, one task each in one batch: what was learnt is told apart by the ids alone."""
    trainer = trainer_of(tiny_llama(), tmp_path, texts(), peft_config=config("mtl_lora"), num_train_epochs=40)
    fill(trainer.model, scale=0.1)
    trainer.train()
    prompts = tokenizer()(["red one"] * 3, return_tensors="pt")["input_ids"]
    answers = trainer.model.eval().generate(
        input_ids=prompts, attention_mask=torch.ones_like(prompts), task_ids=TASKS, max_new_tokens=3, do_sample=False
    )
    decoded = [text.strip() for text in tokenizer().batch_decode(answers[:, 2:], skip_special_tokens=True)]
    assert decoded == ["up", "down up", "copy"]
