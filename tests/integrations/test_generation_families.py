"""Generation on every family that generates: a mixed batch gives each row what it gets alone under its own task."""

import functools

import pytest
import torch

import tasklora
from helpers_families import FAMILIES, base_of, each, inputs_of
from helpers_models import adapt, config_of, tokens
from tasklora.errors import TaskIdsError, UnsupportedError
from tasklora.tuner import METHODS
from tasklora.tuner.row_factors import generation_factors

TASK_TYPES = {
    "llama": "CAUSAL_LM",
    "qwen2": "CAUSAL_LM",
    "qwen3": "CAUSAL_LM",
    "gpt2": "CAUSAL_LM",
    "t5": "SEQ_2_SEQ_LM",
    "bart": "SEQ_2_SEQ_LM",
    "whisper": None,
}
STRATEGIES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "beams_returned": {"num_beams": 3, "num_return_sequences": 2},
    "static_cache": {"cache_implementation": "static"},
    "static_cache_beams": {"cache_implementation": "static", "num_beams": 2, "num_return_sequences": 2},
}
IDS = [2, 0, 1]
LENGTH = {"max_new_tokens": 5, "min_new_tokens": 5}
GREEDY = {**LENGTH, "do_sample": False}

every_method = pytest.mark.parametrize("method", METHODS)
every_family = pytest.mark.parametrize("family", each(TASK_TYPES))
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def adapted(family: str, method: str = "mtl_lora"):
    return adapt(
        base_of(family), config_of(method, task_type=TASK_TYPES[family], target_modules=FAMILIES[family].targets)
    )


@functools.cache
def model_of(family: str, method: str = "mtl_lora"):
    return adapted(family, method)


def prompts_of(family: str) -> dict[str, torch.Tensor]:
    """Return three prompts without padding."""
    inputs = inputs_of(family)
    if "input_ids" in inputs:
        return {"input_ids": tokens(), "attention_mask": torch.ones_like(tokens())}
    return {"input_features": inputs["input_features"], "attention_mask": torch.ones(3, 20, dtype=torch.long)}


def row_of(prompts: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    return {name: x[row : row + 1] for name, x in prompts.items()}


def expect_rows_alone(model, prompts, **options):
    count = options.get("num_return_sequences", 1)
    mixed = model.generate(**prompts, task_ids=torch.tensor(IDS), **options)
    assert mixed.shape[0] == 3 * count
    for row, task in enumerate(IDS):
        alone = model.generate(**row_of(prompts, row), task_ids=task, **options)
        assert torch.equal(mixed[row * count : (row + 1) * count], alone)
    return mixed


@every_family
@every_strategy
def test_rows_alone(family, strategy):
    expect_rows_alone(model_of(family), prompts_of(family), **GREEDY, **STRATEGIES[strategy])


@pytest.mark.parametrize("family", ["llama", "t5"])
@every_strategy
@every_method
def test_rows_alone_for_every_method(family, strategy, method):
    expect_rows_alone(model_of(family, method), prompts_of(family), **GREEDY, **STRATEGIES[strategy])


@every_family
def test_tasks_generate_different_text(family):
    """Otherwise the comparisons above would prove nothing."""
    model, prompts = model_of(family), prompts_of(family)
    texts = [model.generate(**prompts, task_ids=task, **GREEDY) for task in range(3)]
    assert not torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[1], texts[2])


@every_family
def test_a_static_cache_changes_nothing(family):
    model, prompts = model_of(family), prompts_of(family)
    expected = model.generate(**prompts, task_ids=IDS, **GREEDY)
    assert torch.equal(model.generate(**prompts, task_ids=IDS, cache_implementation="static", **GREEDY), expected)
    assert torch.equal(model.generate(**prompts, task_ids=IDS, use_cache=False, **GREEDY), expected)


@every_family
@every_method
def test_greedy_equals_the_merged_model(family, method):
    """For a routed method, which has none, its own rows without a wrapper: the base model under use_tasks."""
    model, prompts = adapted(family, method), prompts_of(family)
    expected = model.generate(**prompts, task_ids="rte", **GREEDY)
    if METHODS[method].update_cls.kind == "routed":
        with pytest.raises(UnsupportedError, match="cannot be merged"):
            tasklora.merge_task(model, "rte")
        with tasklora.use_tasks(model, "rte"):
            assert torch.equal(model.get_base_model().generate(**prompts, **GREEDY), expected)
        return
    assert torch.equal(tasklora.merge_task(model, "rte").generate(**prompts, **GREEDY), expected)


# Sampling. What is drawn for a row depends on the rows before it; what it is drawn from does not.


@every_family
@pytest.mark.parametrize("count", [1, 2])
@torch.no_grad()
def test_samples_are_drawn_from_the_logits_of_their_own_task(family, count):
    model, prompts = model_of(family), prompts_of(family)
    torch.manual_seed(0)
    options = {"do_sample": True, "num_return_sequences": count, "output_logits": True, "top_k": 0}
    out = model.generate(**prompts, task_ids=IDS, return_dict_in_generate=True, **LENGTH, **options)
    drawn = torch.stack(out.logits, dim=1)  # (3 · count, new tokens, vocabulary)
    for row in range(3 * count):
        inputs = row_of(prompts, row // count)
        sequence = out.sequences[row : row + 1, :-1]
        if TASK_TYPES[family] == "CAUSAL_LM":
            inputs = {"input_ids": sequence}
        else:
            inputs["decoder_input_ids"] = sequence
        logits = model(**inputs, task_ids=IDS[row // count]).logits[:, -drawn.shape[1] :]
        allowed = torch.isfinite(drawn[row])
        torch.testing.assert_close(drawn[row][allowed], logits[0][allowed], rtol=1e-4, atol=1e-4)


@every_method
def test_seeded_samples_equal_the_merged_models(method):
    model, prompts = adapted("llama", method), prompts_of("llama")

    def sample(model, seed, **ids):
        torch.manual_seed(seed)
        return model.generate(**prompts, **ids, do_sample=True, num_return_sequences=2, temperature=2.0, **LENGTH)

    first = sample(model, 0, task_ids="rte")
    assert torch.equal(sample(model, 0, task_ids=[1, 1, 1]), first)
    assert not torch.equal(sample(model, 1, task_ids="rte"), first)
    if METHODS[method].update_cls.kind != "routed":
        assert torch.equal(sample(tasklora.merge_task(model, "rte"), 0), first)


# Prompts of different lengths.


@pytest.mark.parametrize("family", each(name for name, kind in TASK_TYPES.items() if kind == "CAUSAL_LM"))
@pytest.mark.parametrize("strategy", ["greedy", "beams_returned", "static_cache"])
def test_left_padding(family, strategy):
    model, options = model_of(family), {**GREEDY, **STRATEGIES[strategy]}
    count = options.get("num_return_sequences", 1)
    prompts, mask = tokens(), torch.ones_like(tokens())
    for row, padding in enumerate([3, 0, 1]):
        prompts[row, :padding], mask[row, :padding] = 0, 0
    mixed = model.generate(input_ids=prompts, attention_mask=mask, task_ids=IDS, **options)
    for row, task in enumerate(IDS):
        prompt = prompts[row : row + 1, mask[row] == 1]
        alone = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), task_ids=task, **options)
        rows = slice(row * count, (row + 1) * count)
        assert torch.equal(mixed[rows, prompts.shape[1] :], alone[:, prompt.shape[1] :])


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_right_padding_of_an_encoder(family):
    model, prompts = model_of(family), prompts_of(family)
    prompts["attention_mask"][1, 4:] = 0
    mixed = model.generate(**prompts, task_ids=IDS, num_beams=2, **GREEDY)
    alone = model.generate(input_ids=prompts["input_ids"][1:2, :4], task_ids=IDS[1], num_beams=2, **GREEDY)
    assert torch.equal(mixed[1:2], alone)


# Ids.


@every_family
@pytest.mark.parametrize("strategy", ["greedy", "beams_returned"])
def test_under_use_tasks(family, strategy):
    model, prompts, options = model_of(family), prompts_of(family), {**GREEDY, **STRATEGIES[strategy]}
    expected = model.generate(**prompts, task_ids=IDS, **options)
    with tasklora.use_tasks(model, ["sst2", "cola", "rte"]):
        assert torch.equal(model.generate(**prompts, **options), expected)
        if strategy == "greedy":  # the base model's own generate repeats rows without telling anybody
            assert torch.equal(model.get_base_model().generate(**prompts, **options), expected)


@every_family
def test_ids_that_do_not_fit_the_prompts(family):
    model, prompts = model_of(family), prompts_of(family)
    for wrong in ([0, 1], [0, 1, 2, 0, 1, 2]):
        with pytest.raises(TaskIdsError, match=rf"3 prompts but task_ids describe {len(wrong)} rows"):
            model.generate(**prompts, task_ids=wrong, num_beams=2, **GREEDY)
    with pytest.raises(UnsupportedError, match="generate needs one task per row"):
        model.generate(**prompts, task_ids=torch.zeros(3, 6, dtype=torch.long), **GREEDY)
    with pytest.raises(TaskIdsError, match="was run without task ids"):
        model.generate(**prompts, **GREEDY)
    model.generate(**prompts, task_ids=IDS, **GREEDY)  # a refusal leaves nothing behind


def test_beams_of_a_base_model_alone_are_not_guessed():
    model, prompts = model_of("llama"), prompts_of("llama")
    with (
        tasklora.use_tasks(model, IDS),
        pytest.raises(TaskIdsError, match=r"input has 6 rows .* task_ids describe 3"),
    ):
        model.get_base_model().generate(**prompts, num_beams=2, **GREEDY)


def test_whisper_repeats_its_input_before_its_beams():
    whisper, llama = base_of("whisper"), base_of("llama")
    assert generation_factors(llama, 3, 2) == (1, 3)
    assert generation_factors(whisper, 3, 1) == (1, 3)
    # Four sequences of two prompts become two when one prompt's are done: two rows must not be taken for the prompts.
    assert generation_factors(whisper, 1, 2) == (2, 2)
    assert generation_factors(whisper, 3, 2) == (2, 6)


# Other ways to decode.


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_constraints_see_their_own_rows(family):
    """Each row may only use tokens of its own third of the vocabulary."""
    model, prompts = model_of(family), prompts_of(family)

    def allowed(first: int):
        return lambda batch, _: list(range(3 + 20 * (batch + first), 23 + 20 * (batch + first)))

    mixed = model.generate(**prompts, task_ids=IDS, prefix_allowed_tokens_fn=allowed(0), num_beams=2, **GREEDY)
    for row, task in enumerate(IDS):
        options = {**GREEDY, "num_beams": 2, "prefix_allowed_tokens_fn": allowed(row)}
        assert torch.equal(mixed[row : row + 1], model.generate(**row_of(prompts, row), task_ids=task, **options))


@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 3}, {"assistant": True}], ids=["lookup", "assistant"])
@every_method
def test_assisted_decoding_of_one_prompt(method, options):
    """The assistant proposes, the adapted model decides under its task."""
    model, prompt = model_of("llama", method), row_of(prompts_of("llama"), 0)
    options = {"assistant_model": base_of("llama")} if "assistant" in options else options
    for task in ("cola", "sst2"):
        expected = model.generate(**prompt, task_ids=task, **GREEDY)
        assert torch.equal(model.generate(**prompt, task_ids=task, **GREEDY, **options), expected)


def test_assisted_decoding_of_several_prompts_is_refused_by_transformers():
    with pytest.raises(ValueError, match="batch_size = 1"):
        model_of("llama").generate(**prompts_of("llama"), task_ids=IDS, assistant_model=base_of("llama"), **GREEDY)
