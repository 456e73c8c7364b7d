"""`push_to_hub` through PEFT's own path, and model cards.

A small HTTP server stands in for the hub; another process pushes to it and loads from it with nothing but HF_ENDPOINT
changed, so that all of huggingface_hub is the real one.
"""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load, load_file

from helpers_models import ADAPTERS, adapt, config_of, tiny_bert
from helpers_runs import project, trained  # noqa: F401 - fixtures
from tasklora.errors import UnknownTaskError, UnsupportedError
from tasklora.tuner import METHODS
from tasklora.tuner.card import CardScores, with_section, write_scores
from tasklora.tuner.task_lists import remove_tasks
from tasklora.tuner.wrappers import note_scores

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROOT = Path(__file__).resolve().parents[2]


class Hub(ThreadingHTTPServer):
    """The part of the hub that a push of small files and a download need.

    Attributes:
        repos: repository → file → content.
        requests: what was asked, in order.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_) -> None:
        pass

    def answer(self, data=None, status: int = 200, content: bytes | None = None, **headers: str) -> None:
        body = json.dumps(data).encode() if content is None else content
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.split("?")[0]
        self.server.requests.append(f"POST {path}")
        if self.headers.get("Authorization") != "Bearer hf_stub":
            return self.answer({"error": "who are you?"}, 401)
        if path == "/api/repos/create":
            name = f"me/{json.loads(body)['name']}"
            self.server.repos.setdefault(name, {})
            return self.answer({"url": f"{self.server.url}/{name}", "name": name, "id": name})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        name, action = path.removeprefix("/api/models/").rsplit("/", 1)[0].rsplit("/", 1)
        if action == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            return self.answer({"files": [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        assert action == "commit", path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"{self.server.url}/{name}/commit/{COMMIT}"
        return self.answer({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        name, _, rest = self.path.lstrip("/").partition("/resolve/")
        if self.path.startswith("/api/models/"):
            name = "/".join(self.path.split("/")[3:5])
            files = [{"rfilename": file} for file in self.server.repos.get(name, {})]
            return self.answer({"id": name, "sha": COMMIT, "siblings": files})
        content = self.server.repos.get(name, {}).get(rest.partition("/")[2])
        if content is None:
            code = "EntryNotFound" if name in self.server.repos else "RepoNotFound"
            return self.answer({"error": code}, 404, X_Error_Code=code)
        return self.answer(content=content, ETag=f'"{hash(content):x}"')

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def hub():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def in_another_process(code: str, hub: Hub, home: Path) -> str:
    """Run Python code that sees the stub as the hub; return what it prints."""
    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_TOKEN")},
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_stub",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


PUSH = """
import torch
from peft import PeftModel
from helpers_models import adapt, config_of, run, tiny_bert
from tasklora.tuner.wrappers import note_scores

model = adapt(tiny_bert(), config_of("{method}", task_type="SEQ_CLS", target_modules=["query", "value"]))
note_scores(model, {{"rte": {{"accuracy": 0.75}}, "cola": {{"mcc": None}}}}, "validation")
model.push_to_hub("me/adapter", tags=["glue"])
model.save_pretrained("{folder}")
"""

LOAD_AND_PUSH_AGAIN = """
loaded = PeftModel.from_pretrained(tiny_bert(), "me/adapter").eval()
ids = ["sst2", "cola", "rte"]
assert torch.equal(run(loaded, ids), run(model, ids))
print(type(loaded).__name__, loaded.peft_config["default"].tasks)
model.push_to_hub("me/adapter", commit_message="once more")
"""


def test_push_and_load(hub, tmp_path):
    """What arrives is what `save_pretrained` writes; it loads from there; pushing again keeps the card."""
    code = PUSH.format(method="mtl_lora", folder=tmp_path / "saved")
    printed = in_another_process(code + LOAD_AND_PUSH_AGAIN, hub, tmp_path / "home")
    assert printed.strip() == "PeftModelForSequenceClassification ['cola', 'rte', 'sst2']"
    files = hub.repos["me/adapter"]
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert files["adapter_config.json"] == (tmp_path / "saved" / "adapter_config.json").read_bytes()
    assert json.loads(files["adapter_config.json"])["tasks"] == ["cola", "rte", "sst2"]
    saved, pushed = (
        load_file(tmp_path / "saved" / "adapter_model.safetensors"),
        load(files["adapter_model.safetensors"]),
    )
    assert saved.keys() == pushed.keys()
    assert all(torch.equal(saved[key], pushed[key]) for key in saved)
    card = files["README.md"].decode()
    check_card(card, "MTL_LORA")
    assert "glue" in ModelCard(card).data.tags  # given to push_to_hub
    assert "| `rte` | accuracy | 0.7500 |" in card
    assert "| `cola` | mcc | undefined |" in card
    assert card.count("## Scores") == card.count("## Loading this adapter") == 1  # also after the second push
    assert hub.requests.count("POST /api/models/me/adapter/commit/main") == 2


def check_card(card: str, peft_type: str) -> None:
    data = ModelCard(card).data
    assert data.library_name == "peft"
    assert {"tasklora", "multi-task", peft_type.lower()} <= set(data.tags)
    assert "import tasklora" in card
    assert "pip install tasklora" in card
    assert f"KeyError: '{peft_type}'" in card


@pytest.mark.parametrize("case", ADAPTERS, ids=lambda case: case.id)
def test_the_card_of_every_method(case, tmp_path):
    base = tiny_bert()
    base.config._name_or_path = base.name_or_path = "someone/tiny-bert"
    adapt(base, config_of(case, target_modules=["query"])).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    check_card(card, case.method.upper())
    assert ModelCard(card).data.base_model == "someone/tiny-bert"
    assert "# base_model: someone/tiny-bert" in card
    assert all(f"`{task}`" in card for task in ("cola", "rte", "sst2"))
    assert "task_ids=['cola', 'rte']" in card


def test_scores_in_a_saved_card(tmp_path):
    model = adapt(tiny_bert(), config_of(target_modules=["query"]))
    model.save_pretrained(tmp_path)
    assert "## Scores" not in (tmp_path / "README.md").read_text()
    note_scores(model, {"rte": {"accuracy": 0.5, "f1": 0.25}}, "validation")
    model.save_pretrained(tmp_path)
    note_scores(model, {"rte": {"accuracy": 1.0}}, "test")
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "On the test rows of each task" in card
    assert "| `rte` | accuracy | 1.0000 |" in card
    assert "validation" not in card  # replaced, not added


def test_what_else_the_card_says_is_kept(tmp_path):
    model = adapt(tiny_bert(), config_of(target_modules=["query"]))
    model.save_pretrained(tmp_path)
    path = tmp_path / "README.md"
    card = ModelCard.load(path)
    card.data.license = "mit"
    card.data.tags = [*card.data.tags, "mine"]
    card.text = f"My own words.\n{card.text}\n\n## My last section\n\nMore of them.\n"
    card.save(path)
    model.save_pretrained(tmp_path)
    again = ModelCard.load(path)
    assert again.data.license == "mit"
    assert "mine" in again.data.tags
    assert "My own words." in again.text
    assert "## My last section\n\nMore of them." in again.text
    assert again.text.count("## Loading this adapter") == 1


def test_scores_of_an_adapter_of_peft(tmp_path):
    """A run of plain LoRA has scores too; they are written into the card that PEFT made."""
    get_peft_model(tiny_bert(), LoraConfig(target_modules=["query"])).save_pretrained(tmp_path)
    write_scores(tmp_path, CardScores("validation", {"rte": {"accuracy": 0.5}}))
    assert "| `rte` | accuracy | 0.5000 |" in (tmp_path / "README.md").read_text()
    write_scores(tmp_path / "nowhere", CardScores("validation", {}))  # no card, nothing to do
    assert not (tmp_path / "nowhere").exists()


def test_the_scores_of_a_run_are_in_its_card(trained):  # noqa: F811
    card = (trained.path / "best" / "README.md").read_text()
    check_card(card, "MTL_LORA")
    (split, scores), *_ = trained.results.scores.items()
    assert f"On the {split} rows of each task" in card
    for task, score in scores.tasks.items():
        for metric, value in score.metrics.items():
            assert f"| `{task}` | {metric} | {'undefined' if value is None else f'{value:.4f}'} |" in card


def test_a_removed_task_is_not_in_the_card(tmp_path):
    model = adapt(tiny_bert(), config_of(target_modules=["query"]))
    remove_tasks(model, ["cola"])
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "`cola`" not in card
    assert "task_ids=['rte', 'sst2']" in card
    with pytest.raises(UnknownTaskError, match="a score of task 'cola'"):
        note_scores(model, {"cola": {"mcc": 0.5}}, "validation")


def test_scores_that_cannot_be_noted():
    model = adapt(tiny_bert(), config_of(target_modules=["query"]))
    with pytest.raises(UnknownTaskError, match=r"a score of task 'rtte'.*Did you mean 'rte'\?"):
        note_scores(model, {"rtte": {"accuracy": 0.5}}, "validation")
    assert model.task_scores is None
    with pytest.raises(UnsupportedError, match="not on BertForSequenceClassification"):
        note_scores(tiny_bert(), {}, "validation")


def test_sections():
    text = "---\n# Title\n\n## Scores\n\nold\n\n```python\n# a comment\n```\n\n## Other\n\nkept\n"
    assert with_section(text, "## Scores", "new") == "---\n# Title\n\n## Scores\n\nnew\n\n## Other\n\nkept\n"
    assert with_section("# Title", "## Scores", r"a \1") == "# Title\n\n## Scores\n\na \\1\n"
    assert with_section("## Scores\n\nold", "## Scores", "new") == "## Scores\n\nnew\n"


@pytest.mark.parametrize("method", ["mtl_lora"])
def test_without_the_import_peft_says_what_the_card_says_it_says(method, tmp_path):
    adapt(tiny_bert(), config_of(method, target_modules=["query"])).save_pretrained(tmp_path)
    code = f"from peft import PeftConfig; PeftConfig.from_pretrained({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip().splitlines()[-1] == f"KeyError: '{method.upper()}'"
    assert type(PeftConfig.from_pretrained(tmp_path)) is METHODS[method].config_cls
    assert isinstance(PeftModel.from_pretrained(tiny_bert(), tmp_path), PeftModel)
