"""What is special about embeddings, which base layers are refused and how, and GPT-2 as a whole."""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import tasklora
from helpers_layers import FIRST, IN, OUT, ROWS, Net, adapted, kind_named, per_task, routed
from helpers_models import ADAPTERS, adapt, config_of, fill, layers, run
from helpers_updates import close
from tasklora.errors import TaskIdsError, UnsupportedError


@per_task
def test_the_lookup_begins_as_for_a_fan_in_of_one(case):
    """h = D[:, id] must begin with the size of a LoRA's h, not with that of 1/√vocabulary."""
    model = get_peft_model(Net(nn.Embedding(5000, 8, padding_idx=7)), config_of(case, target_modules=["target"]))
    down = layers(model)[0].task_updates["default"].A.detach()
    assert down[..., 7].eq(0).all()
    rest = torch.cat([down[..., :7], down[..., 8:]], dim=-1)
    assert rest.std() == pytest.approx(3**-0.5, rel=0.05)
    assert rest.abs().max() <= 1


@per_task
def test_padding_stays_as_the_base_has_it(case):
    kind = kind_named("embedding-padded")
    model = adapted(case, kind, random=False).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    x = torch.tensor([[3, 1, 2], [0, 3, 5]])
    for _ in range(3):
        (model(x, task_ids=torch.tensor([0, 2])) - 1).square().sum().backward()
        optimizer.step()
    after = model(x, task_ids=torch.tensor([0, 2]))
    base = kind.layer()(x)
    assert torch.equal(after[x == 3], base[x == 3])
    assert (after[x != 3] - base[x != 3]).abs().min() > 0


@per_task
def test_dropout_on_ids_drops_the_update_of_whole_tokens(case):
    """One mask on the one-hot x: a token's update is either zero or 1 / (1 − p) times itself."""
    kind = kind_named("embedding")
    model, x = adapted(case, kind, lora_dropout=0.25), torch.randint(0, IN, (4, 200))
    base = kind.layer()(x)
    full = model(x, task_ids=torch.tensor(ROWS)) - base
    dropped = model.train()(x, task_ids=torch.tensor(ROWS)) - base
    kept = dropped.abs().amax(-1) > 1e-12
    assert 0.15 < 1 - kept.double().mean() < 0.35
    close(dropped, torch.where(kept[..., None], full / 0.75, torch.zeros_like(full)))


class ShiftedEmbedding(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids + 2)


class NormedConv(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight / self.weight.norm())


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (nn.Embedding(9, 8, max_norm=1.0), "max_norm rewrites the embedding's weight"),
        (nn.Embedding(9, 8, scale_grad_by_freq=True), "scale_grad_by_freq has no meaning"),
        (ShiftedEmbedding(9, 8), "ShiftedEmbedding is a Embedding with a forward of its own"),
        (nn.EmbeddingBag(9, 8), "EmbeddingBag is not a linear layer"),
        (nn.Conv2d(8, 8, 3), r"only with a 1×1 kernel.*has kernel \(3, 3\), 1 groups and padding \(0, 0\)"),
        (nn.Conv2d(8, 8, 1, groups=2), r"this one has kernel \(1, 1\), 2 groups"),
        (nn.Conv2d(8, 8, 1, padding=1), r"this one has kernel \(1, 1\), 1 groups and padding \(1, 1\)"),
        (nn.ConvTranspose2d(8, 8, 1), "ConvTranspose2d is not a linear layer"),
        (NormedConv(8, 8, 1), "NormedConv is a Conv2d with a forward of its own"),
        (nn.Conv1d(8, 8, 1), "Conv1d is not a linear layer"),
        (nn.Conv3d(8, 8, 1), "Conv3d is not a linear layer"),
        (nn.Bilinear(8, 8, 8), "Bilinear is not a linear layer"),
        (nn.MultiheadAttention(8, 2), "MultiheadAttention is not a linear layer"),
        (nn.MultiheadAttention(8, 2).out_proj, "nn.MultiheadAttention reads its weight without calling it"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_is_refused_says_which_module_and_what_to_do(layer, why):
    with pytest.raises(UnsupportedError, match=rf"cannot adapt 'target': .*{why}.*Leave it out of target_modules"):
        get_peft_model(Net(layer), config_of(target_modules=["target"]))


@pytest.mark.parametrize("case", [case for case in ADAPTERS if routed(case)], ids=lambda case: case.id)
def test_a_gate_that_reads_features_refuses_embeddings_by_name(case):
    with pytest.raises(UnsupportedError, match=r"cannot adapt 'target': the gate of \w+ reads.*gets ids"):
        get_peft_model(Net(nn.Embedding(9, 8)), config_of(case, target_modules=["target"]))


def test_a_convolution_without_rows_is_refused():
    model = adapted(FIRST["mtl_lora"], kind_named("conv2d"))
    with pytest.raises(UnsupportedError, match=r"takes \(rows, channels, height, width\), got \(12, 3, 4\)"):
        model(torch.randn(IN, 3, 4, dtype=torch.float64), task_ids="rte")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.head = nn.Embedding(IN, OUT), nn.Linear(OUT, IN, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids))


@pytest.mark.parametrize(("target", "other"), [("embed", "head"), ("head", "embed")])
def test_a_tied_weight_is_adapted_but_not_merged(target, other):
    """Merging would change the other module too."""
    model = get_peft_model(Tied(), config_of(target_modules=[target])).eval()
    fill(model)
    x = torch.randint(0, IN, (3, 5))
    result, weight = model(x, task_ids="rte"), model.get_base_model().head.weight.detach().clone()
    assert not torch.equal(result, Tied()(x))
    for merge in (lambda: tasklora.merge_task(model, "rte"), lambda: merge_under(model, "rte")):
        with pytest.raises(
            UnsupportedError, match=rf"cannot merge into '{target}': its weight is tied to that of {other}"
        ):
            merge()
    assert torch.equal(model.get_base_model().head.weight, weight)
    assert torch.equal(model(x, task_ids="rte"), result)
    untied = Tied()
    untied.head.weight = nn.Parameter(untied.head.weight.detach().clone())  # what the error says
    free = get_peft_model(untied, config_of(target_modules=[target])).eval()
    free.load_state_dict(model.state_dict())
    torch.testing.assert_close(tasklora.merge_task(free, "rte")(x), result)


def merge_under(model, task):
    with tasklora.use_tasks(model, task):
        model.merge_adapter()


def test_an_embedding_at_two_places_is_refused():
    base = Tied()
    base.again = base.embed
    with pytest.raises(UnsupportedError, match="the same embedding also stands at again"):
        get_peft_model(base, config_of(target_modules=["embed"]))


def test_an_added_task_begins_as_a_task_of_an_embedding_does():
    kind = kind_named("embedding-padded")
    model = adapted(FIRST["per_task_lora"], kind)
    update = copy.deepcopy(layers(model)[0].task_updates["default"])
    update.add_tasks(1)
    assert update.A_new[0, :, 3].eq(0).all()
    assert 0.3 < update.A_new.std() < 0.8
    assert update.B_new.eq(0).all()


@pytest.mark.parametrize("name", ["conv2d", "embedding"])
def test_what_plain_lora_has_no_place_for_is_not_exported(name, tmp_path):
    model = adapted(FIRST["mtl_lora"], kind_named(name))
    with pytest.raises(UnsupportedError, match=r"target is an embedding or a convolution.*export the merged model"):
        tasklora.export_lora(model, "rte", tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def tiny_gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=1, n_head=2)).eval()


def test_gpt2_with_its_embedding_takes_mixed_rows_and_tokens():
    model = adapt(tiny_gpt2(), config_of(target_modules=["c_attn", "c_proj", "wte"]))
    assert {layer.geometry.reads for layer in layers(model)} == {"features", "ids"}
    mixed = run(model, [2, 0, 1])
    for row, task in enumerate([2, 0, 1]):
        torch.testing.assert_close(mixed[row], run(model, task)[row], rtol=1e-5, atol=1e-5)
    ids = torch.tensor([2, 0, 1])[:, None].expand(3, 6)
    torch.testing.assert_close(run(model, ids), mixed, rtol=1e-5, atol=1e-5)
    with pytest.raises(UnsupportedError, match=r"cannot merge into 'transformer.wte': its weight is tied.*lm_head"):
        tasklora.merge_task(model, "rte")
    positions = adapt(tiny_gpt2(), config_of(target_modules=["wpe"]))
    run(positions, "rte")  # one task for all rows: the positions are one row
    with pytest.raises(TaskIdsError, match=r"transformer.wpe's input has 1 rows.*task_ids describe 3"):
        run(positions, [2, 0, 1])


def test_gpt2s_conv1d_merges_into_a_plain_model_and_exports_for_stock_peft(tmp_path):
    model = adapt(tiny_gpt2(), config_of(target_modules=["c_attn", "c_proj"], task_type="CAUSAL_LM"))
    expected = run(model, "rte")
    tasklora.export_lora(model, "rte", tmp_path / "lora")
    loaded = PeftModel.from_pretrained(tiny_gpt2(), tmp_path / "lora").eval()
    torch.testing.assert_close(run(loaded), expected, rtol=1e-5, atol=1e-5)
    tasklora.merge_task(model, "rte").save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(run(GPT2LMHeadModel.from_pretrained(tmp_path / "merged").eval()), expected)


def test_all_linear_finds_conv1d():
    model = adapt(tiny_gpt2(), config_of(target_modules="all-linear"))
    assert len(layers(model)) == 4
    assert all(layer.geometry.weight == "transposed" for layer in layers(model))
