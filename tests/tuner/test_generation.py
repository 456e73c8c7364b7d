"""Generation with mixed tasks gives each row what it gets alone: greedy, beams, several sequences per prompt.

In an encoder-decoder the encoder sees the rows as they are and the decoder sees them repeated for the beams.
"""

import pytest
import torch
from transformers import GenerationConfig

import tasklora
from helpers_models import ADAPTERS, LLAMA_TARGETS, T5_TARGETS, adapt, config_of, tiny_llama, tiny_t5, tokens
from tasklora.errors import TaskIdsError, UnsupportedError

STRATEGIES = {
    "greedy": {},
    "beams": {"num_beams": 2},
    "beams_all_returned": {"num_beams": 2, "num_return_sequences": 2},
    "more_beams": {"num_beams": 3, "num_return_sequences": 2},
}
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
IDS = [2, 0, 1]
LENGTH = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module")
def llamas():
    return {
        case.method: adapt(tiny_llama(), config_of(case, task_type="CAUSAL_LM", target_modules=LLAMA_TARGETS))
        for case in reversed(ADAPTERS)
    }


@pytest.fixture(scope="module")
def t5():
    return adapt(tiny_t5(), config_of(task_type="SEQ_2_SEQ_LM", target_modules=T5_TARGETS))


def expect_rows_alone(model, **options):
    prompts, count = tokens(), options.get("num_return_sequences", 1)
    mixed = model.generate(
        input_ids=prompts, attention_mask=torch.ones_like(prompts), task_ids=torch.tensor(IDS), **options
    )
    assert mixed.shape[0] == 3 * count
    for row, task in enumerate(IDS):
        prompt = prompts[row : row + 1]
        alone = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), task_ids=task, **options)
        assert torch.equal(mixed[row * count : (row + 1) * count], alone)


@every_strategy
@pytest.mark.parametrize("method", ["mtl_lora", "per_task_lora"])
def test_causal(llamas, method, strategy):
    expect_rows_alone(llamas[method], **LENGTH, **strategy)


@every_strategy
def test_encoder_decoder(t5, strategy):
    expect_rows_alone(t5, **LENGTH, **strategy)


def test_tasks_generate_different_text(llamas):
    """Otherwise the comparisons above would prove nothing."""
    prompts = tokens()
    texts = [llamas["mtl_lora"].generate(input_ids=prompts, task_ids=task, **LENGTH) for task in range(3)]
    assert not torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[1], texts[2])


@every_strategy
def test_use_tasks_around_generate(llamas, strategy):
    model, prompts = llamas["mtl_lora"], tokens()
    expected = model.generate(input_ids=prompts, task_ids=IDS, **LENGTH, **strategy)
    with tasklora.use_tasks(model, IDS):
        assert torch.equal(model.generate(input_ids=prompts, **LENGTH, **strategy), expected)


def test_mixtures(llamas):
    model, prompts = llamas["mtl_lora"], tokens()
    one_hot = torch.eye(3)[IDS]
    for strategy in STRATEGIES.values():
        expected = model.generate(input_ids=prompts, task_ids=IDS, **LENGTH, **strategy)
        assert torch.equal(model.generate(input_ids=prompts, task_weights=one_hot, **LENGTH, **strategy), expected)


def test_settings_from_a_generation_config(llamas):
    model, prompts = llamas["mtl_lora"], tokens()
    expected = model.generate(input_ids=prompts, task_ids=IDS, num_beams=2, **LENGTH)
    config = GenerationConfig(num_beams=2, **LENGTH)
    assert torch.equal(model.generate(input_ids=prompts, task_ids=IDS, generation_config=config), expected)
    model.generation_config.num_beams = 2  # what the passed config leaves open comes from the model's own
    try:
        plain = GenerationConfig(**LENGTH)
        assert torch.equal(model.generate(input_ids=prompts, task_ids=IDS, generation_config=plain), expected)
        assert torch.equal(model.generate(input_ids=prompts, task_ids=IDS, **LENGTH), expected)
    finally:
        model.generation_config.num_beams = None


def test_sampling_several_sequences(llamas):
    model, prompts = llamas["mtl_lora"], tokens()
    options = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 3, "top_k": 1}
    sampled = model.generate(input_ids=prompts, task_ids=IDS, **options)
    greedy = model.generate(input_ids=prompts, task_ids=IDS, do_sample=False, max_new_tokens=3)
    assert torch.equal(sampled, greedy.repeat_interleave(2, dim=0))


def test_generate_without_ids(llamas):
    with pytest.raises(TaskIdsError, match="was run without task ids"):
        llamas["mtl_lora"].generate(input_ids=tokens(), **LENGTH)


def test_wrong_number_of_rows(llamas):
    """Four ids for two prompts with two beams would fit by size alone; a repetition is declared, never guessed."""
    with pytest.raises(TaskIdsError, match="2 prompts but task_ids describe 4 rows"):
        llamas["mtl_lora"].generate(input_ids=tokens(2), task_ids=torch.zeros(4, dtype=torch.long), **LENGTH)
    with pytest.raises(TaskIdsError, match="3 prompts but task_ids describe 6 rows"):
        llamas["mtl_lora"].generate(
            input_ids=tokens(3),
            task_ids=torch.zeros(6, dtype=torch.long),
            num_return_sequences=2,
            num_beams=2,
            **LENGTH,
        )


def test_token_ids_are_refused(llamas):
    with pytest.raises(UnsupportedError, match="generate needs one task per row"):
        llamas["mtl_lora"].generate(input_ids=tokens(), task_ids=torch.zeros(3, 6, dtype=torch.long), **LENGTH)
