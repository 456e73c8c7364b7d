"""Models that cut, flatten or regroup rows inside: right where that is known by type, refused everywhere else."""

import pytest
import torch
import transformers as hf
from torch import nn

import tasklora
from helpers_families import DECODER, SWIN, base_of, inputs_of, outputs_of
from helpers_models import adapt, config_of, layers, tokens
from tasklora.errors import TaskIdsError
from tasklora.tuner.row_factors import MIXED, WINDOWED, place_of
from tasklora.updates import LayerPlace, TaskAssignment

IDS = torch.tensor([2, 0, 1])
CLAP = {"spec_size": 16, "num_mel_bins": 4, "patch_size": 2, "patch_stride": [2, 2], "patch_embeds_hidden_size": 16}

# What is windowed → config, model, its input of three rows.
IMAGES = {"pixel_values": torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
WINDOWS = {
    "SwinAttention": (hf.SwinConfig(**SWIN), hf.SwinModel, IMAGES),
    "Swinv2Attention": (hf.Swinv2Config(**SWIN), hf.Swinv2Model, IMAGES),
    "DonutSwinAttention": (hf.DonutSwinConfig(**SWIN), hf.DonutSwinModel, IMAGES),
    "MaskFormerSwinAttention": (
        hf.MaskFormerSwinConfig(**SWIN, out_features=["stage2"]),
        hf.MaskFormerSwinBackbone,
        IMAGES,
    ),
    "Swin2SRAttention": (
        hf.Swin2SRConfig(**{**SWIN, "patch_size": 1, "mlp_ratio": 2.0}),
        hf.Swin2SRModel,
        IMAGES,
    ),
    "ClapAudioAttention": (
        hf.ClapAudioConfig(
            **CLAP, depths=[2, 1], num_attention_heads=[2, 2], window_size=2, hidden_size=32, num_hidden_layers=2
        ),
        hf.ClapAudioModel,
        {"input_features": torch.randn(3, 1, 64, 4, generator=torch.Generator().manual_seed(0))},
    ),
}


def model_of(name: str):
    config, make, inputs = WINDOWS[name]
    torch.manual_seed(0)
    base = make(config).eval()
    return adapt(base, config_of(target_modules=["q_proj", "v_proj", "o_proj", "query", "value"])), inputs


def first(outputs):
    return outputs.feature_maps[0] if "feature_maps" in outputs else outputs[0]


def test_every_windowed_type_is_tested():
    assert WINDOWS.keys() == WINDOWED


@pytest.mark.parametrize("name", WINDOWS)
@torch.no_grad()
def test_windows_run_under_the_task_of_their_row(name):
    model, inputs = model_of(name)
    assert all(layer.place.rows == "windowed" for layer in layers(model))
    mixed = first(model(**inputs, task_ids=IDS))
    for row, task in enumerate(IDS.tolist()):
        alone = first(model(**{key: x[row : row + 1] for key, x in inputs.items()}, task_ids=task))
        torch.testing.assert_close(mixed[row : row + 1], alone, rtol=1e-4, atol=1e-4)
    weighted = first(model(**inputs, task_weights=torch.eye(3)[IDS]))
    torch.testing.assert_close(weighted, mixed, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(mixed, first(model(**inputs, task_ids=0)), atol=1e-3)


@pytest.mark.parametrize("name", WINDOWS)
def test_a_task_per_token_has_no_meaning_in_windows(name):
    model, inputs = model_of(name)
    with pytest.raises(TaskIdsError, match=r"per-token task_ids.*windows of rows.*one id per row"):
        model(**inputs, task_ids=torch.zeros(3, 64, dtype=torch.long))


def test_windows_that_are_no_multiple_of_the_rows():
    model = adapt(base_of("swin"), config_of(target_modules=["q_proj"]))
    with pytest.raises(TaskIdsError, match=r"q_proj's input has 48 rows .*windows of rows\) but task_ids describe 5"):
        model(**inputs_of("swin"), task_ids=[0, 1, 2, 0, 1])


def test_only_attention_over_windows_takes_a_multiple_of_the_rows():
    """Two ids for four images would fit the windows by number; the layers around them see through it."""
    model = adapt(base_of("swin"), config_of(target_modules=["q_proj", "fc1"]))
    with pytest.raises(TaskIdsError, match=r"fc1's input has 4 rows .* but task_ids describe 2"):
        model(**inputs_of("swin", rows=4), task_ids=[0, 1])


def test_merged_swin_has_no_windows_to_care_for():
    model = adapt(base_of("swin"), config_of(target_modules=["q_proj"]))
    expected = outputs_of(model, inputs_of("swin"), task_ids=[1, 1, 1])
    merged = outputs_of(tasklora.merge_task(model, "rte"), inputs_of("swin"))
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)


def test_a_type_is_known_by_its_class_not_by_its_name_alone():
    class SwinAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.query = nn.Linear(4, 4)

    class Renamed(hf.models.swin.modeling_swin.SwinAttention):
        pass

    own, renamed = nn.Module(), nn.Module()
    own.attention = SwinAttention()
    renamed.attention = Renamed(hf.SwinConfig(**SWIN), 16, 2, 2)
    assert place_of(own, "attention.query") == LayerPlace("attention.query")
    assert place_of(renamed, "attention.q_proj") == LayerPlace("attention.q_proj", "windowed")


# Mixtures of experts.


def qwen_moe():
    torch.manual_seed(0)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return hf.Qwen2MoeForCausalLM(hf.Qwen2MoeConfig(**DECODER, **experts, shared_expert_intermediate_size=16)).eval()


def mixtral():
    torch.manual_seed(0)
    return hf.MixtralForCausalLM(hf.MixtralConfig(**DECODER, num_local_experts=4)).eval()


def switch():
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2, "num_sparse_encoder_layers": 1}
    tokens = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1}
    config = hf.SwitchTransformersConfig(vocab_size=64, num_experts=3, expert_capacity=64, **sizes, **tokens)
    return hf.SwitchTransformersForConditionalGeneration(config).eval()


def expect_rows_alone(model, **inputs):
    mixed = outputs_of(model, {"input_ids": tokens(), **inputs}, task_ids=IDS)
    for row, task in enumerate(IDS.tolist()):
        one = {name: x[row : row + 1] for name, x in {"input_ids": tokens(), **inputs}.items()}
        torch.testing.assert_close(mixed[row : row + 1], outputs_of(model, one, task_ids=task), rtol=1e-4, atol=1e-4)


def test_flattened_rows_are_refused_and_can_be_left_out():
    model = adapt(qwen_moe(), config_of(target_modules="all-linear"))
    with pytest.raises(TaskIdsError, match=r"shared_expert.*'s input has 18 rows .*describe 3.*exclude_modules"):
        model(input_ids=tokens(), task_ids=IDS)
    assert torch.isfinite(outputs_of(model, {"input_ids": tokens()}, task_ids="rte")).all()
    exclude = r".*shared_expert.*"
    model = adapt(qwen_moe(), config_of(target_modules="all-linear", exclude_modules=exclude))
    expect_rows_alone(model)


def test_experts_that_are_no_linear_layers_are_not_adapted():
    model = adapt(mixtral(), config_of(target_modules="all-linear"))
    assert {layer.place.name.rpartition(".")[2] for layer in layers(model)} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    expect_rows_alone(model)


def test_experts_never_take_a_token_for_a_row():
    """An expert may get as many tokens as there are rows: ids of rows are refused there whatever the number."""
    model = adapt(switch(), config_of(target_modules=["q", "wo"]))
    experts = [layer for layer in layers(model) if layer.place.rows == "mixed"]
    assert experts
    decoder = {"decoder_input_ids": tokens(3, 4, seed=1)}
    with pytest.raises(TaskIdsError, match=r"experts.*tokens of all rows, regrouped"):
        model(input_ids=tokens(), task_ids=IDS, **decoder)
    with pytest.raises(TaskIdsError, match="regrouped"):
        TaskAssignment(ids=IDS).for_input(torch.randn(3, 32), experts[0].place)
    assert torch.isfinite(outputs_of(model, {"input_ids": tokens(), **decoder}, task_ids="rte")).all()
    left_out = adapt(switch(), config_of(target_modules=["q", "wo"], exclude_modules=r".*\.experts\..*"))
    assert len(layers(left_out)) < len(layers(model))
    expect_rows_alone(left_out, **decoder)


def test_every_type_that_mixes_rows_exists_in_transformers():
    from transformers.models.nllb_moe import modeling_nllb_moe as nllb
    from transformers.models.switch_transformers import modeling_switch_transformers as switch_transformers

    assert all(hasattr(nllb, name) or hasattr(switch_transformers, name) for name in MIXED)
