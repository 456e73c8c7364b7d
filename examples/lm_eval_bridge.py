"""lm-eval with a task of the adapter for each benchmark; the scores are those of the merged model of that task.

Needs `pip install lm_eval`. The same from the command line, from the repository's root:

    lm_eval --model tasklora --device cpu --include_path examples/lm_eval_tasks --tasks likes,reads \
        --model_args "pretrained=BASE,adapter=ADAPTER,task_map=likes:choose;reads:score"
"""

import math
import os
import tempfile
from pathlib import Path

import lm_eval
import torch
from lm_eval.tasks import TaskManager
from peft import PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

import tasklora
import tasklora.evaluation.lm_eval_bridge  # makes `tasklora` known to lm-eval

ROOT = Path(__file__).resolve().parents[1]
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
WORDS = [*SPECIAL.values(), "the", "a", "cat", "dog", "bird", "old", "likes", "sees", "house", "tree"]


def save_base(folder: str) -> None:
    """Save a tiny random Llama and a tokenizer of a few words."""
    set_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), initializer_range=0.3, **sizes)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, **SPECIAL).save_pretrained(folder)


def scores(model: str, tasks: list[str], **model_args: str) -> dict[str, float]:
    """Evaluate a model by lm-eval; return the score of each task."""
    manager = TaskManager(include_path=str(ROOT / "examples" / "lm_eval_tasks"), include_defaults=False)
    results = lm_eval.simple_evaluate(model, model_args, tasks, task_manager=manager, device="cpu", batch_size=4)
    names = {"likes": "acc,none", "reads": "word_perplexity,none"}
    return {task: float(results["results"][task][names[task]]) for task in tasks}


os.chdir(ROOT)  # the task files name their rows from here
with tempfile.TemporaryDirectory() as folder:
    base, adapter = f"{folder}/base", f"{folder}/adapter"
    save_base(base)
    config = tasklora.MTLLoraConfig(tasks=["choose", "score"], task_type="CAUSAL_LM", target_modules="all-linear", r=4)
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), config)
    for parameter in model.parameters():  # in place of training
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(adapter)

    ours = scores("tasklora", ["likes", "reads"], pretrained=base, adapter=adapter, task_map="likes:choose;reads:score")
    print("lm-eval, each benchmark under its own task:", ours)

    for benchmark, task in (("likes", "choose"), ("reads", "score")):
        merged = tasklora.merge_task(PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), adapter), task)
        merged.save_pretrained(f"{folder}/{task}")
        plain = scores("hf", [benchmark], pretrained=f"{folder}/{task}", tokenizer=base)
        print(f"{benchmark}, merged model of {task}:", plain)
        assert math.isclose(plain[benchmark], ours[benchmark], rel_tol=1e-4)

    try:
        scores("tasklora", ["likes"], pretrained=base, adapter=adapter, task_map="likes:chose")
    except tasklora.TaskLoraError as error:
        print(error)
