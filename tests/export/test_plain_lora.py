"""Plain LoRA per task: the format of FACTS.md, section 5, field by field; and stock PEFT gives the same numbers.

`lora_alpha` equals `r` (scaling folded in), `target_modules` is a list of leaf names, every module of such a name has
factors (zero where it was not adapted: BERT's `pooler.dense`), and nothing but lora_A and lora_B is in the file.
"""

import json
import sys
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel

import tasklora
from helpers_exports import EXACT, ROUTED, exact_rank
from helpers_runs import HIDDEN, TASKS, in_subprocess, randomise, use_method, write_rows
from tasklora.demo.run import DEMO
from tasklora.errors import OutputError, TaskIdsError, UnknownTaskError, UnsupportedError
from tasklora.evaluation import predict_rows
from tasklora.export import export_lora, export_task
from tasklora.tasks import sha256_of

LEAVES = ["dense", "key", "query", "value"]
PATHS = [
    *(f"encoder.layer.{n}.attention.self.{leaf}" for n in range(2) for leaf in ("query", "key", "value")),
    *(
        f"encoder.layer.{n}.{place}"
        for n in range(2)
        for place in ("attention.output.dense", "intermediate.dense", "output.dense")
    ),
    "pooler.dense",
]
ROWS = [["good cake"], ["it was a very dull and awful day"], ["a lamp"]]


def tokens(prepared):
    return prepared.base.tokenizer([row[0] for row in ROWS], padding=True, return_tensors="pt")


@torch.no_grad()
def hidden(model, batch):
    return model(**batch).last_hidden_state


def ours(prepared, task):
    if tasklora.tuner.find_context(prepared.model) is None:
        return hidden(prepared.model.encoder, tokens(prepared))
    with tasklora.use_tasks(prepared.model.encoder, task):
        return hidden(prepared.model.encoder, tokens(prepared))


def stock(project, directory, prepared):
    """Return the hidden states of stock PEFT, which must load the file without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = PeftModel.from_pretrained(AutoModel.from_pretrained(project.base), directory).eval()
    assert isinstance(model.peft_config["default"], LoraConfig)
    return hidden(model, tokens(prepared))


def assert_format(directory, rank, leaves=LEAVES, dtype=torch.float32):
    config = json.loads((directory / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["r"] == config["lora_alpha"] == rank
    assert config["target_modules"] == leaves
    assert (config["bias"], config["modules_to_save"]) == ("none", None)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {})
    assert (config["use_dora"], config["use_rslora"], config["fan_in_fan_out"]) == (False, False, False)
    assert config["lora_dropout"] == 0.0
    assert not any("task" in key and value for key, value in config.items())
    tensors = load_file(directory / "adapter_model.safetensors")
    sizes = dict.fromkeys(PATHS, (HIDDEN, HIDDEN))
    sizes |= {path: (HIDDEN, 48) for path in PATHS if path.endswith("intermediate.dense")}
    sizes |= {path: (48, HIDDEN) for path in PATHS if path.endswith(("0.output.dense", "1.output.dense"))}
    expected = {}
    for path, (size_in, size_out) in sizes.items():
        if path.rpartition(".")[2] in leaves:
            expected[f"base_model.model.{path}.lora_A.weight"] = (rank, size_in)
            expected[f"base_model.model.{path}.lora_B.weight"] = (size_out, rank)
    assert {key: tuple(value.shape) for key, value in tensors.items()} == expected
    assert {value.dtype for value in tensors.values()} == {dtype}
    return tensors


@pytest.mark.parametrize("method", EXACT)
def test_format_and_numbers_of_every_method_and_task(project, tmp_path, method):
    prepared = project.prepare(use_method(method))
    rank = 4 if method == "lora" else exact_rank(prepared.model)
    for task in TASKS:
        out = export_task(prepared.model, prepared.about, task, tmp_path / task)
        tensors = assert_format(out, rank)
        assert not tensors["base_model.model.pooler.dense.lora_A.weight"].any()
        assert not tensors["base_model.model.pooler.dense.lora_B.weight"].any()
        torch.testing.assert_close(stock(project, out, prepared), ours(prepared, task), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "trained"), [("full_fine_tuning", "all weights of the encoder"), ("heads_only", "heads only")]
)
def test_without_an_adapter_there_is_no_lora(project, tmp_path, method, trained):
    prepared = project.prepare(use_method(method))
    with pytest.raises(UnsupportedError, match=f"this run trained {trained}: there is no adapter .* with --merged"):
        export_task(prepared.model, prepared.about, "mood", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["mtl_lora", "per_task_lora"])
def test_tasks_differ(project, method):
    prepared = project.prepare(use_method(method))
    assert (ours(prepared, "mood") - ours(prepared, "heat")).abs().max() > 0.01


@pytest.mark.parametrize("method", ["lora", "mtl_lora", "per_task_lora"])
def test_different_ranks_are_padded_to_the_largest(project, tmp_path, method):
    pattern = "rank_pattern: {query: 2, layer.1.output.dense: 6}, alpha_pattern: {key: 5}"
    targets = "target_modules: [query, key, dense]"
    prepared = project.prepare(f"method={{name: {method}, r: 4, lora_alpha: 8, {pattern}, {targets}}}")
    export_task(prepared.model, prepared.about, "answer", tmp_path / "out")
    tensors = assert_format(tmp_path / "out", 6, ["dense", "key", "query"])
    query = tensors["base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"]
    assert query[:2].any()
    assert not query[2:].any()
    torch.testing.assert_close(
        stock(project, tmp_path / "out", prepared), ours(prepared, "answer"), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("method", ["mtl_lora", "per_task_lora"])
def test_a_mixture_of_tasks(project, tmp_path, method):
    prepared = project.prepare(use_method(method))
    weights = torch.tensor([0.2, 0.0, 0.9])
    export_lora(prepared.model.encoder, directory=tmp_path / "out", task_weights=weights)
    with tasklora.use_tasks(prepared.model.encoder, task_weights=weights):
        expected = hidden(prepared.model.encoder, tokens(prepared))
    rank = 4 if method == "mtl_lora" else 8  # two tasks of rank 4 take part
    assert_format(tmp_path / "out", rank)
    torch.testing.assert_close(stock(project, tmp_path / "out", prepared), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_may_be_written_in_half_precision(project, tmp_path, dtype):
    prepared = project.prepare()
    export_task(prepared.model, prepared.about, "mood", tmp_path / "out", dtype=dtype)
    assert_format(tmp_path / "out", 4, dtype=dtype)


def test_a_task_may_be_given_by_id(project, tmp_path):
    encoder = project.prepare().model.encoder
    export_lora(encoder, 2, tmp_path / "by-id")
    export_lora(encoder, "heat", tmp_path / "by-name")
    assert sha256_of(tmp_path / "by-id" / "adapter_model.safetensors") == sha256_of(
        tmp_path / "by-name" / "adapter_model.safetensors"
    )


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_the_head_beside_it_is_enough_to_predict(project, tmp_path, pooling):
    """From the files alone, as docs/export.md says it: a regression on separately encoded pairs."""
    prepared = project.prepare("model.pair_encoding=separate", f"model.pooling={pooling}")
    prepared.model.heads["heat"].fit_labels(torch.tensor([0.0, 1.0, 4.0]), None)
    export_task(prepared.model, prepared.about, "heat", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())["head"]
    head = load_file(tmp_path / "out" / "head.safetensors")
    assert (manifest["reads"], manifest["pooling"]) == ("[u, v, |u - v|, u * v]", pooling)
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(project.base), tmp_path / "out").eval()
    pairs = [["the cake", "icy"], ["a", "it was very hot"], ["so", "warm"]]

    def embed(text):
        states = hidden(model, prepared.base.tokenizer([text], return_tensors="pt"))[0]
        return {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]

    values = []
    for u, v in ((embed(a), embed(b)) for a, b in pairs):
        features = torch.cat([u, v, (u - v).abs(), u * v])
        value = head["linear.weight"] @ features + head["linear.bias"]
        low, high = manifest["task"]["range"]
        values.append(float((value * head["label_std"] + head["label_mean"]).clamp(low, high)))
    rows = [{"texts": pair} for pair in pairs]
    expected = predict_rows(prepared.model, "heat", rows, prepared.about.collator(prepared.base.tokenizer)).values
    assert values == pytest.approx(expected.tolist(), abs=1e-4)


def test_the_manifest_says_what_it_belongs_to(project, tmp_path):
    prepared = project.prepare()
    export_task(prepared.model, prepared.about, "answer", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.safetensors",
        "manifest.json",
    }
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"], manifest["kind"]) == ("tasklora/export", 1, "lora")
    assert (manifest["task"], manifest["rank"]) == ("answer", 4)
    assert manifest["base"] == {
        "name": str(project.base),
        "revision": None,
        "fingerprint": project.base_model().fingerprint,
    }
    written = ["adapter_config.json", "adapter_model.safetensors", "head.safetensors"]
    assert manifest["files"] == {name: sha256_of(tmp_path / "out" / name) for name in written}
    assert (manifest["method"], manifest["tasks"], manifest["reduction"]) == ("mtl_lora", TASKS, None)
    assert manifest["commands"] == {}  # an encoder with heads of its own
    head = manifest["head"]
    assert (head["reads"], head["pooling"], head["max_length"]) == ("u", "mean", 24)
    assert head["task"]["labels"] == ["yes", "maybe", "no"]
    assert set(manifest["versions"]) >= {"python", "tasklora", "torch", "peft"}
    linear = load_file(tmp_path / "out" / "head.safetensors")["linear.weight"]
    assert torch.equal(linear, prepared.model.heads["answer"].linear.weight)


def test_a_process_without_tasklora_predicts_the_same(project, tmp_path):
    prepared = project.prepare()
    export_task(prepared.model, prepared.about, "mood", tmp_path / "out")
    texts = [row[0] for row in ROWS]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    script = [str(DEMO / "stock_peft.py"), str(project.base), str(tmp_path / "out"), str(tmp_path / "texts.json")]
    answer = in_subprocess(project, "-I", *script)  # it fails by itself if tasklora is imported
    assert answer.returncode == 0, answer.stderr
    assert "missing" not in answer.stderr
    theirs = json.loads(answer.stdout)
    rows = [{"texts": [text]} for text in texts]
    prediction = predict_rows(prepared.model, "mood", rows, prepared.about.collator(prepared.base.tokenizer))
    assert theirs["predictions"] == prediction.values.tolist()
    torch.testing.assert_close(
        torch.tensor(theirs["probabilities"], dtype=torch.float64),
        torch.tensor(prediction.probabilities, dtype=torch.float64),
        rtol=1e-5,
        atol=1e-5,
    )


# --- refusals


@pytest.mark.parametrize("method", ROUTED)
def test_a_routed_method_is_refused_by_name(project, tmp_path, method):
    prepared = project.prepare(use_method(method))
    with pytest.raises(UnsupportedError, match=rf"\({method}\) has no plain LoRA and cannot be merged"):
        export_task(prepared.model, prepared.about, "mood", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_unknown_tasks(project, tmp_path):
    prepared = project.prepare()
    for export in (
        lambda: export_task(prepared.model, prepared.about, "moot", tmp_path / "out"),
        lambda: export_lora(prepared.model.encoder, "moot", tmp_path / "out"),
    ):
        with pytest.raises(UnknownTaskError, match=r"unknown task 'moot'. Did you mean 'mood'\?.* mood, answer, heat"):
            export()
    with pytest.raises(UnknownTaskError, match="task id 3 is out of range"):
        export_lora(prepared.model.encoder, 3, tmp_path / "out")
    with pytest.raises(TaskIdsError, match="either task_ids or task_weights"):
        export_lora(prepared.model.encoder, directory=tmp_path / "out")
    with pytest.raises(TaskIdsError, match="either task_ids or task_weights"):
        export_lora(prepared.model.encoder, "mood", tmp_path / "out", task_weights=torch.ones(3))
    assert not (tmp_path / "out").exists()


def test_places_that_cannot_be_written(project, tmp_path):
    prepared = project.prepare()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for place, says in (
        ("full", "is not empty. Choose another"),
        ("file", "is a file"),
        ("file/below", "cannot write to"),
    ):
        with pytest.raises(OutputError, match=says):
            export_task(prepared.model, prepared.about, "mood", tmp_path / place)
    with pytest.raises(OutputError, match="no output directory was given"):
        export_lora(prepared.model.encoder, "mood")
    assert {path.name for path in (tmp_path / "full").iterdir()} == {"mine"}


def test_overwriting_replaces_an_export_and_leaves_other_files(project, tmp_path):
    prepared = project.prepare()
    export_task(prepared.model, prepared.about, "mood", tmp_path / "out")
    first = sha256_of(tmp_path / "out" / "adapter_model.safetensors")
    with pytest.raises(OutputError, match="is not empty"):
        export_task(prepared.model, prepared.about, "heat", tmp_path / "out")
    export_task(prepared.model, prepared.about, "heat", tmp_path / "out", overwrite=True)
    assert sha256_of(tmp_path / "out" / "adapter_model.safetensors") != first
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["task"] == "heat"
    other = write_rows(tmp_path / "other" / "mine.jsonl", [{"mine": 1}])
    export_task(prepared.model, prepared.about, "heat", tmp_path / "other", overwrite=True)
    assert other.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]  # no scraps


def test_a_merged_adapter_is_not_exported(project, tmp_path):
    encoder = project.prepare().model.encoder
    with tasklora.use_tasks(encoder, "mood"):
        encoder.merge_adapter()
    with pytest.raises(UnsupportedError, match=r"merged into the base weights; call model.unmerge_adapter\(\) first"):
        export_lora(encoder, "mood", tmp_path / "out")
    encoder.unmerge_adapter()
    export_lora(encoder, "mood", tmp_path / "out")


def test_one_adapter_must_be_active(project, tmp_path):
    encoder = project.prepare().model.encoder
    encoder.add_adapter("second", encoder.peft_config["default"])
    encoder.base_model.set_adapter(["default", "second"])
    with pytest.raises(UnsupportedError, match=r"exactly one active adapter, there are 2: \['default', 'second'\]"):
        export_lora(encoder, "mood", tmp_path / "out")
    with pytest.raises(UnsupportedError, match="has no tasklora adapter"):
        export_lora(nn.Linear(2, 2), "mood", tmp_path / "out")


@pytest.mark.parametrize("method", EXACT)
def test_what_a_plain_lora_cannot_hold_is_refused(project, tmp_path, method):
    prepared = project.prepare(f"method={{name: {method}, r: 4, modules_to_save: [LayerNorm]}}")
    with pytest.raises(UnsupportedError, match=r"LayerNorm"):
        export_task(prepared.model, prepared.about, "mood", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_dora_is_no_plain_lora(project, tmp_path):
    prepared = project.prepare("method={name: lora, r: 4, use_dora: true}")
    with pytest.raises(UnsupportedError, match=r"more than its factors A and B: .*magnitude"):
        export_task(prepared.model, prepared.about, "mood", tmp_path / "out")


def test_scaling_of_pefts_own_lora_is_folded_in(project, tmp_path):
    prepared = project.prepare("method={name: lora, r: 4, lora_alpha: 3, use_rslora: true}")
    randomise(prepared.model, seed=3)
    export_task(prepared.model, prepared.about, "mood", tmp_path / "out")
    assert_format(tmp_path / "out", 4)
    torch.testing.assert_close(stock(project, tmp_path / "out", prepared), ours(prepared, "mood"), rtol=1e-5, atol=1e-5)
    assert "tasklora" in sys.modules
