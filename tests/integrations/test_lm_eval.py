"""The lm-eval bridge: each lm-eval task under its own adapter task, with the numbers of the merged model of that task.

Local task files with local rows, a tiny random Llama and a tokenizer of a few words; nothing is downloaded.
"""

import json
import logging

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import helpers_lm_eval
import tasklora
from helpers_lm_eval import (
    CHOICE,
    TASK_MAP,
    TEXT,
    TWIN,
    WRITE,
    adapter_of,
    assert_close,
    evaluate,
    merged,
    rows,
    tokenizer,
)
from helpers_models import LLAMA_TARGETS, adapt, config_of, tiny_bert, tiny_llama, tiny_t5
from tasklora.errors import CheckpointError, ConfigError, UnknownTaskError, UnsupportedError
from tasklora.evaluation.lm_eval_bridge import TaskLoraLM, read_task_map
from tasklora.tuner import METHODS

base, adapter, tasks = helpers_lm_eval.base, helpers_lm_eval.adapter, helpers_lm_eval.tasks  # fixtures
_quiet = helpers_lm_eval._no_questions_about_the_machine

every_method = pytest.mark.parametrize("method", list(METHODS))


def test_each_task_has_the_scores_of_its_merged_model(base, adapter, tasks, tmp_path):
    """One run of lm-eval over three tasks of three kinds, against plain `hf` on three merged checkpoints."""
    arguments = {"pretrained": str(base), "adapter": str(adapter), "task_map": TASK_MAP}
    scores, answers = evaluate("tasklora", TASK_MAP, tasks, arguments)
    for name, task in TASK_MAP.items():
        folder = merged(base, adapter, task, tmp_path / task)
        wanted, expected = evaluate("hf", [name], tasks, {"pretrained": str(folder)})
        assert_close(answers[name], expected[name])
        assert scores[name] == pytest.approx(wanted[name], rel=1e-4)


def answers_of(model, name):
    """Return the answers to requests of all kinds for one lm-eval task."""
    kinds = {
        "loglikelihood": lambda text: (text, " yes no"),
        "loglikelihood_rolling": lambda text: (text,),
        "generate_until": lambda text: (text, {"until": ["house"], "max_gen_toks": 5, "do_sample": False}),
    }
    return {
        kind: getattr(model, kind)(
            [Instance(kind, {}, arguments(row["text"]), i, (name, i, 1)) for i, row in enumerate(rows()[:5])],
            disable_tqdm=True,
        )
        for kind, arguments in kinds.items()
    }


@every_method
def test_every_kind_of_request_under_every_task(method, base, tmp_path):
    """Against plain `hf` on the merged model of the task, or, where there are no task ids, on the adapted model."""
    uses_ids = METHODS[method].update_cls.uses_task_ids
    adapter = adapter_of(tmp_path / "adapter", method)
    model = model_of(base, adapter, task_map=TASK_MAP if uses_ids else None)
    of_base = answers_of(HFLM(tiny_llama(), tokenizer=tokenizer(), batch_size=3), CHOICE)
    for name, task in TASK_MAP.items():
        plain = PeftModel.from_pretrained(tiny_llama(), adapter)
        plain = tasklora.merge_task(plain, task) if uses_ids else plain
        expected = answers_of(HFLM(plain, tokenizer=tokenizer(), batch_size=3), name)
        answers = answers_of(model, name)
        for kind in expected:
            assert_close(answers[kind], expected[kind])
            assert answers[kind] != of_base[kind]  # the adapter is seen


def test_the_same_prompts_under_two_tasks(base, adapter, tasks, tmp_path):
    """In one call of lm-eval, batch by batch: neither task sees the other's numbers."""
    arguments = f"pretrained={base},adapter={adapter},task_map={CHOICE}:cola;{TWIN}:rte"
    _, answers = evaluate("tasklora", [CHOICE, TWIN], tasks, arguments, batch_size=7)
    for name, task in ((CHOICE, "cola"), (TWIN, "rte")):
        folder = merged(base, adapter, task, tmp_path / task)
        _, expected = evaluate("hf", [name], tasks, {"pretrained": str(folder)})
        assert_close(answers[name], expected[name])
    assert answers[CHOICE] != answers[TWIN]


def requests(order):
    """One request for each (lm-eval task, text) of `order`."""
    texts = [row["text"] for row in rows()]
    return [
        Instance("loglikelihood", {}, (texts[i % len(texts)], " yes"), i, (name, i, 1)) for i, name in enumerate(order)
    ]


def model_of(base, adapter, **options):
    return TaskLoraLM(str(base), adapter=str(adapter), device="cpu", batch_size=3, **options)


def test_answers_come_in_the_order_of_the_requests(base, adapter):
    model = model_of(base, adapter, task_map=TASK_MAP)
    order = [CHOICE, TEXT, TEXT, WRITE, CHOICE, WRITE, TEXT, CHOICE, CHOICE, TEXT]
    mixed = model.loglikelihood(requests(order), disable_tqdm=True)
    for place, request in enumerate(requests(order)):
        assert mixed[place][0] == pytest.approx(model.loglikelihood([request], disable_tqdm=True)[0][0], abs=1e-4)
    assert model.loglikelihood([], disable_tqdm=True) == []
    assert tasklora.context_of(model.model).current == {}


def test_batch_size_auto(base, adapter):
    model = TaskLoraLM(
        str(base), str(adapter), TASK_MAP, device="cpu", batch_size="auto", max_batch_size=4, max_length=16
    )
    order = [CHOICE, TEXT, CHOICE, WRITE] * 2
    fixed = model_of(base, adapter, task_map=TASK_MAP).loglikelihood(requests(order), disable_tqdm=True)
    assert [a for a, _ in model.loglikelihood(requests(order), disable_tqdm=True)] == pytest.approx(
        [a for a, _ in fixed], abs=1e-4
    )


def test_a_model_in_memory(base, adapter):
    model = PeftModel.from_pretrained(tiny_llama(), adapter)
    ours = TaskLoraLM(model, task_map=TASK_MAP, tokenizer=tokenizer(), batch_size=3)
    order = [CHOICE, TEXT, WRITE]
    expected = model_of(base, adapter, task_map=TASK_MAP).loglikelihood(requests(order), disable_tqdm=True)
    assert_close(ours.loglikelihood(requests(order), disable_tqdm=True), expected)
    with pytest.raises(ConfigError, match="adapted already alone"):
        TaskLoraLM(tiny_llama(), tokenizer=tokenizer())
    with pytest.raises(ConfigError, match="adapted already alone"):
        TaskLoraLM(model, adapter=str(adapter), tokenizer=tokenizer())


# The map of tasks.


@pytest.mark.parametrize(
    "given",
    [
        "boolq:boolq;arc_easy:ARC-Easy",
        " boolq : boolq ; arc_easy:ARC-Easy ;",
        {"boolq": "boolq", "arc_easy": "ARC-Easy"},
    ],
    ids=["pairs", "spaces", "mapping"],
)
def test_task_map(given):
    assert read_task_map(given) == {"boolq": "boolq", "arc_easy": "ARC-Easy"}


def test_task_map_in_a_file(tmp_path):
    path = tmp_path / "map.json"
    path.write_text('{"boolq": "rte"}')
    assert read_task_map(str(path)) == {"boolq": "rte"}
    for content in ("[1]", "{", '{"boolq": 1}', "{}"):
        path.write_text(content)
        with pytest.raises(ConfigError, match="task_map"):
            read_task_map(str(path))
    with pytest.raises(ConfigError, match=r"task_map 'none\.json' cannot be read"):
        read_task_map("none.json")


@pytest.mark.parametrize("given", ["", ";", "boolq", ":rte", "boolq:", 3], ids=str)
def test_a_task_map_that_cannot_be_read(given):
    with pytest.raises(ConfigError, match=r"is no list of pairs\. Give task_map=LM_EVAL_TASK:ADAPTER_TASK"):
        read_task_map(given)


def test_a_task_named_twice():
    with pytest.raises(ConfigError, match="task_map names boolq more than once"):
        read_task_map("boolq:rte;boolq:cola")


def test_which_task_a_name_means(base, adapter, tmp_path):
    mapped = model_of(base, adapter, task_map="mmlu_law:rte;mmlu_*:cola")
    assert [mapped.task_of(name) for name in ("mmlu_law", "mmlu_art", "cola", None)] == ["rte", "cola", None, None]
    same = model_of(base, adapter)  # without a map: by name
    assert [same.task_of(name) for name in ("rte", "boolq")] == ["rte", None]
    one = model_of(base, adapter_of(tmp_path / "one", tasks=["only"]))
    assert one.task_of("boolq") == "only"


def test_unmapped_tasks_are_named_before_anything_is_run(base, adapter, monkeypatch):
    model = model_of(base, adapter, task_map="local_text:rte")
    monkeypatch.setattr(HFLM, "_model_call", lambda *_, **__: pytest.fail("something was run"))
    with pytest.raises(
        UnknownTaskError, match=r"for these lm-eval tasks: local_choice, local_write. It has: cola, rte"
    ):
        model.loglikelihood(requests([TEXT, CHOICE, WRITE, CHOICE]))


# Wrong input: refused before the base model is loaded, as far as that is possible.


@pytest.fixture
def no_base(monkeypatch):
    monkeypatch.setattr(HFLM, "__init__", lambda *_, **__: pytest.fail("the base model was loaded"))


@pytest.mark.usefixtures("no_base")
class TestRefusedWithoutTheBase:
    def test_no_adapter(self, base):
        with pytest.raises(ConfigError, match="--model tasklora needs adapter="):
            TaskLoraLM(str(base))

    def test_a_missing_adapter(self, base, tmp_path):
        with pytest.raises(CheckpointError, match=r"no adapter can be loaded from '.*nowhere'"):
            TaskLoraLM(str(base), str(tmp_path / "nowhere"))

    def test_an_adapter_that_is_not_ours(self, base, tmp_path):
        get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match="PEFT's LORA, not of tasklora: evaluate it with --model hf"):
            TaskLoraLM(str(base), str(tmp_path))

    def test_an_adapter_of_a_classifier(self, base, tmp_path):
        model = adapt(tiny_bert(), config_of(task_type="SEQ_CLS", target_modules=["query"]))
        model.save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match="was made for SEQ_CLS; lm-eval scores and generates text"):
            TaskLoraLM(str(base), str(tmp_path))

    def test_a_map_to_a_task_that_the_adapter_does_not_have(self, base, adapter):
        with pytest.raises(UnknownTaskError, match=r"sends 'boolq' to 'rtte'.*Did you mean 'rte'\?"):
            TaskLoraLM(str(base), str(adapter), "boolq:rtte")

    @pytest.mark.parametrize("option", ["peft", "delta"])
    def test_other_ways_to_give_an_adapter(self, option, base, adapter):
        with pytest.raises(UnsupportedError, match=f"takes no {option}="):
            TaskLoraLM(str(base), str(adapter), **{option: str(adapter)})


def test_an_adapter_of_a_base_of_another_size(base, tmp_path):
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    wide = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **sizes))
    adapt(wide, config_of(task_type="CAUSAL_LM", target_modules=LLAMA_TARGETS)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not fit this model: .* tensors of another shape"):
        model_of(base, tmp_path)


def test_an_adapter_of_another_architecture(base, tmp_path):
    adapt(tiny_t5(), config_of(task_type="SEQ_2_SEQ_LM", target_modules=["q", "wo"])).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not fit '.*base.*Target modules"):
        model_of(base, tmp_path)


def test_an_adapter_made_for_a_base_of_another_name_is_told(base, tmp_path, caplog):
    path = adapter_of(tmp_path) / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "someone/llama"}))
    with caplog.at_level(logging.WARNING, "tasklora"):
        model_of(base, tmp_path)
    assert "was made for base 'someone/llama'; it is evaluated on" in caplog.text


def test_the_cache_of_answers_is_refused(base, adapter, tasks, tmp_path):
    with pytest.raises(UnsupportedError, match="--use_cache finds answers by their prompt alone"):
        evaluate(model_of(base, adapter, task_map=TASK_MAP), [CHOICE], tasks, use_cache=str(tmp_path / "cache"))
