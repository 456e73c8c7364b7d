"""A local lm-eval: task files with local rows, a tiny random Llama, a tokenizer of a few words, adapters of it."""

import json
from pathlib import Path

import lm_eval
import pytest
import yaml
from lm_eval.tasks import TaskManager
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import tasklora
import tasklora.evaluation.lm_eval_bridge  # makes the model known to lm-eval
from helpers_models import LLAMA_TARGETS, adapt, config_of, tiny_llama
from tasklora.tuner import METHODS

WORDS = ["the", "a", "cat", "dog", "bird", "sees", "likes", "hears", "red", "old", "house", "tree", "yes", "no", "it"]
CHOICE, WRITE, TEXT = "local_choice", "local_write", "local_text"
TASK_MAP = {CHOICE: "cola", WRITE: "sst2", TEXT: "rte"}
# The same rows as CHOICE, so that the same prompts are asked under two tasks.
TWIN = "local_choice_twin"


def rows() -> list[dict]:
    subjects, verbs, objects = ["the cat", "a dog", "the bird"], ["sees", "likes", "hears"], ["a tree", "the old house"]
    sentences = [f"{s} {v} {o}" for s in subjects for v in verbs for o in objects]
    return [{"text": text, "answer": i % 2, "word": WORDS[i % 5]} for i, text in enumerate(sentences)]


def task_files(folder: Path) -> Path:
    """Write the local tasks: one of choices and its twin, one of generation, one of whole texts."""
    folder.mkdir()
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
    }
    choice = {
        **shared,
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": ["yes", "no it likes"],
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    write = {
        **shared,
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{word}}",
        "generation_kwargs": {"until": ["house"], "max_gen_toks": 5, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    text = {
        **shared,
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    for name, task in ((CHOICE, choice), (TWIN, choice), (WRITE, write), (TEXT, text)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **task}))
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    vocabulary |= {f"w{i}": i for i in range(len(vocabulary), 64)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


@pytest.fixture(autouse=True)
def _no_questions_about_the_machine(monkeypatch):
    """lm-eval asks pip, git and others for its report, which takes longer than a tiny model."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda *_: None)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The saved base model with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    tiny_llama().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return task_files(tmp_path_factory.mktemp("lm_eval") / "tasks")


def adapter_of(folder: Path, method: str = "mtl_lora", **options) -> Path:
    if not METHODS[method].update_cls.uses_task_ids:
        options.setdefault("tasks", [])
    options = {"task_type": "CAUSAL_LM", "target_modules": LLAMA_TARGETS, **options}
    adapt(tiny_llama(), config_of(method, **options), seed=7).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return adapter_of(tmp_path_factory.mktemp("adapter"))


def merged(base: Path, adapter: Path, task: str, folder: Path) -> Path:
    """Save the merged model of a task: what plain `hf` can evaluate."""
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), adapter)
    tasklora.merge_task(model, task).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def evaluate(model, names, tasks, model_args=None, **options):
    """Run lm-eval; return scores per task and the answers per task, in the order of the rows."""
    results = lm_eval.simple_evaluate(
        model=model,
        model_args=model_args,
        tasks=list(names),
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        batch_size=options.pop("batch_size", 4),
        device="cpu" if isinstance(model, str) else None,
        bootstrap_iters=0,
        **options,
    )
    scores = {name: numbers(results["results"][name]) for name in names}
    answers = {
        name: [sample["resps"] for sample in sorted(results["samples"][name], key=lambda sample: sample["doc_id"])]
        for name in names
    }
    return scores, answers


def numbers(result):
    """Return the scores of a task, without their standard errors."""
    return {key: value for key, value in result.items() if "," in key and "stderr" not in key}


def assert_close(answers, expected):
    """Compare answers: texts are equal, log-likelihoods within rounding."""
    assert len(answers) == len(expected)
    for given, wanted in zip(_leaves(answers), _leaves(expected), strict=True):
        if isinstance(given, float):
            assert given == pytest.approx(wanted, abs=1e-4)
        else:
            assert given == wanted


def _leaves(nested):
    return [leaf for part in nested for leaf in _leaves(part)] if isinstance(nested, (list, tuple)) else [nested]
