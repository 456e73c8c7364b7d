"""Packed rows: every token once, attention inside rows, and the numbers of the padded batch with every method."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    BertModel,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from helpers_models import ADAPTERS, BERT_TARGETS, LLAMA_TARGETS, adapt, config_of, tiny_bert, tiny_llama
from tasklora.errors import ConfigError, UnsupportedError
from tasklora.tasks.packing import IGNORED, check_packs_causal, first_fit_decreasing, pack_causal, pack_rows

LENGTHS = [9, 2, 7, 1, 4, 9, 3, 5]
lengths = st.lists(st.integers(0, 20), min_size=1, max_size=30)


def mask_of(lengths, width=None):
    return (torch.arange(width or max(1, *lengths)) < torch.tensor(lengths)[:, None]).long()


@given(lengths, st.integers(0, 30))
def test_every_row_is_in_one_sequence_within_the_capacity(lengths, more):
    capacity = max(lengths) + more
    sequences = first_fit_decreasing(lengths, capacity)
    assert sorted(row for rows in sequences for row in rows) == [row for row, n in enumerate(lengths) if n]
    assert all(sum(lengths[row] for row in rows) <= capacity for rows in sequences)
    filled = sorted(sum(lengths[row] for row in rows) for rows in sequences)
    assert len(filled) < 2 or filled[0] + filled[1] > capacity  # no two sequences would fit into one


@given(lengths, st.integers(0, 5), st.integers(0, 30))
def test_unpacking_undoes_packing(lengths, padding, more):
    mask = mask_of([*lengths, 1], max([*lengths, 1]) + padding)
    x = torch.arange(1, mask.numel() + 1).view_as(mask) * mask
    packing = pack_rows(mask, max([*lengths, 1]) + more)
    assert torch.equal(packing.unpack(packing.pack(x).unsqueeze(-1)).squeeze(-1), x)
    assert int((packing.source >= 0).sum()) == int(mask.sum())
    row, position = packing.rows, packing.position_ids
    filled = packing.source >= 0
    assert torch.equal(packing.pack(x)[filled], x[row[filled], position[filled]])
    assert torch.equal(row.ge(0), filled)


def test_a_token_sees_its_own_row_alone():
    packing = pack_rows(mask_of([3, 2, 2]), capacity=8)
    seen = packing.attention_mask(torch.float64)[0, 0] == 0
    assert packing.rows.tolist() == [[0, 0, 0, 1, 1, 2, 2]]
    assert torch.equal(seen, packing.rows[0][:, None] == packing.rows[0])
    assert torch.equal(packing.attention_mask(torch.float64, causal=True)[0, 0] == 0, seen.tril())


def test_places_where_nothing_is_packed_have_a_finite_softmax():
    packing = pack_rows(mask_of([4, 3, 3]))
    assert (packing.rows == -1).any()
    assert packing.attention_mask(torch.float32).softmax(-1).isfinite().all()


@pytest.mark.parametrize(
    ("mask", "capacity", "said"),
    [
        ([[0, 1, 1], [1, 1, 1]], None, "padding_side='right'"),
        ([[1, 0, 1], [1, 1, 1]], None, "padding_side='right'"),
        ([[0, 0], [0, 0]], None, "none of the 2 rows has a token"),
        ([[1, 1, 1], [1, 0, 0]], 2, "a row has 3 tokens, which do not fit into a sequence of 2"),
    ],
)
def test_what_cannot_be_packed_is_refused(mask, capacity, said):
    with pytest.raises(ConfigError, match=said):
        pack_rows(torch.tensor(mask), capacity)


def causal_batch(tasks=3):
    generator = torch.Generator().manual_seed(3)
    mask = mask_of(LENGTHS)
    input_ids = torch.randint(3, 64, mask.shape, generator=generator) * mask
    answered = torch.rand(mask.shape, generator=generator) < 0.6  # the loss is on some tokens, rows' first ones too
    labels = torch.where(answered & mask.bool(), input_ids, IGNORED)
    labels[:, 0] = input_ids[:, 0]
    return {
        "input_ids": input_ids,
        "attention_mask": mask,
        "labels": labels,
        "task_ids": torch.arange(len(LENGTHS)) % tasks,
    }


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def qwen3(**config):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=64, num_key_value_heads=1, head_dim=16, **sizes, **config))


@pytest.mark.parametrize("capacity", [None, 20])
@pytest.mark.parametrize("case", ADAPTERS, ids=lambda case: case.id)
def test_a_packed_decoder_has_the_loss_and_gradients_of_the_padded_one(case, capacity):
    """In double precision, but for the loss, which transformers computes in single precision of the logits."""
    model = adapt(tiny_llama(), config_of(case, target_modules=LLAMA_TARGETS, task_type="CAUSAL_LM")).double()
    padded, batch = causal_batch(), pack_causal(causal_batch(), capacity)
    assert batch["input_ids"].numel() < padded["input_ids"].numel()
    expected, found = loss_and_gradients(model, padded), loss_and_gradients(model, batch)
    assert len(expected[1]) == sum(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [tiny_llama, qwen3], ids=["llama", "qwen3"])
def test_so_in_single_precision_with_either_attention_and_checkpointing(make, attention):
    config = config_of("mtl_lora", target_modules=LLAMA_TARGETS, task_type="CAUSAL_LM")
    model = adapt(make(attn_implementation=attention), config)
    expected = loss_and_gradients(model, causal_batch())
    torch.testing.assert_close(loss_and_gradients(model, pack_causal(causal_batch())), expected, rtol=1e-5, atol=1e-5)
    model.gradient_checkpointing_enable()
    model.train()  # nothing here has dropout
    torch.testing.assert_close(loss_and_gradients(model, pack_causal(causal_batch())), expected, rtol=1e-5, atol=1e-5)


def test_the_order_and_company_of_rows_change_nothing():
    model = adapt(tiny_llama(), config_of("mtl_lora", target_modules=LLAMA_TARGETS, task_type="CAUSAL_LM")).double()
    batch = causal_batch()
    turned = {name: value.flip(0) for name, value in batch.items()}
    torch.testing.assert_close(
        loss_and_gradients(model, pack_causal(batch)),
        loss_and_gradients(model, pack_causal(turned)),
        rtol=1e-5,
        atol=1e-6,
    )


def test_where_nothing_is_packed_no_other_task_is_named():
    """A task that was removed may have the id 0."""
    batch = causal_batch()
    batch["task_ids"] = batch["task_ids"] + 4
    packed = pack_causal(batch)
    assert (pack_rows(batch["attention_mask"]).source < 0).any()
    assert set(packed["task_ids"].unique().tolist()) <= {4, 5, 6}


def test_labels_on_padding_and_unknown_keys_are_refused():
    batch = causal_batch()
    with pytest.raises(ConfigError, match="a batch with token_type_ids cannot be packed"):
        pack_causal({**batch, "token_type_ids": batch["input_ids"]})
    with pytest.raises(ConfigError, match="labels stand on padding"):
        pack_causal({**batch, "labels": batch["input_ids"]})


@pytest.mark.parametrize("case", ADAPTERS, ids=lambda case: case.id)
def test_an_adapted_decoder_packs(case):
    model = adapt(tiny_llama(), config_of(case, target_modules=LLAMA_TARGETS, task_type="CAUSAL_LM"))
    model.train()
    check_packs_causal(model, torch.tensor([0, 1, 2]))
    assert model.training


def hidden_and_gradients(model, pack):
    """Return the token vectors of a mixed batch and the gradients of a loss of theirs, padded or packed."""
    batch = causal_batch()
    mask, position_types = batch["attention_mask"], (torch.arange(9) > 2).long() * batch["attention_mask"]
    model.zero_grad()
    if pack:
        packing = pack_rows(mask)
        assert packing.source.numel() < mask.numel()
        types = packing.pack(position_types)
        output = model(
            input_ids=packing.pack(batch["input_ids"]),
            token_type_ids=types,
            position_ids=packing.position_ids,
            attention_mask=packing.attention_mask(model.dtype),
            task_ids=packing.pack_tasks(batch["task_ids"]),
        )
        hidden = packing.unpack(output.last_hidden_state)
    else:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "task_ids")}
        hidden = model(**inputs, token_type_ids=position_types).last_hidden_state * mask.unsqueeze(-1)
    hidden.pow(3).mean().backward()
    return hidden.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", ADAPTERS, ids=lambda case: case.id)
def test_a_packed_encoder_has_the_vectors_and_gradients_of_the_padded_one(case, attention):
    config = config_of(case, target_modules=BERT_TARGETS, exclude_modules=["pooler.dense"])  # it sees no sequence
    model = adapt(tiny_bert(BertModel, attn_implementation=attention), config).double()
    expected, found = hidden_and_gradients(model, pack=False), hidden_and_gradients(model, pack=True)
    assert len(expected[1]) == sum(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2))


def mamba():
    return MambaForCausalLM(MambaConfig(**SIZES))


def bloom():
    return BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=2))


def test_learned_positions_pack_too():
    torch.manual_seed(0)
    check_packs_causal(gpt2())


@pytest.mark.parametrize(("make", "said"), [(mamba, "packed rows"), (bloom, "packed rows")])
def test_models_that_see_across_rows_are_refused(make, said):
    torch.manual_seed(0)
    with pytest.raises(UnsupportedError, match=said):
        check_packs_causal(make())
