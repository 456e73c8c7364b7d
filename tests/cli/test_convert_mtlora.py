"""`tasklora convert` of MTLoRA's published checkpoints: both ways, told from text by content; wrong input."""

import os

import pytest
import torch
from PIL import Image

from helpers_mtlora import THEIRS, published_state, save_base, save_checkpoint, save_model, settings
from helpers_swin import pixels
from tasklora.vision import load_dense_model

TEXT = ["--tasks", "one,two", "--alpha", "6", "--temperature", "0.7", "--base", "some/base"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    state = published_state(folder)
    save_checkpoint(folder / "ckpt.pth", state, settings())
    save_checkpoint(folder / "bare.pth", state)
    return folder


def assert_refused(said, says):
    assert said.code == 2, said
    assert says in said.err
    assert said.err.startswith("error ")
    assert "Traceback" not in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_convert_predict_and_back(cli, made, tmp_path):
    base = ["--suite", "pascal_context@1", "--base", made / "base"]
    said = cli("convert", made / "ckpt.pth", "--to", tmp_path / "out", *base)
    assert said.code == 0, said.err
    words = " ".join(said.out.split())
    assert "MTLoRA, r 3, task r 2, scale 4.0, mode matrix: a dense model on" in words
    assert "tasks: semseg, parts (human_parts), saliency (sal), normals" in words
    with torch.no_grad():
        expected, outputs = (load_dense_model(d)[0](pixels()) for d in (made / "made", tmp_path / "out"))
    assert all(torch.equal(outputs[task], expected[task]) for task in expected)

    Image.new("RGB", (80, 60), (200, 40, 40)).save(tmp_path / "image.jpg")
    said = cli("predict", tmp_path / "out", tmp_path / "image.jpg", "--out", tmp_path / "pictures")
    assert said.code == 0, said.err
    assert any((tmp_path / "pictures").iterdir())

    said = cli("convert", tmp_path / "out", "--to-reference", tmp_path / "back.pth")
    assert said.code == 0, said.err
    assert "SHARED_SCALE 4.0" in " ".join(said.out.split())
    back, state = (torch.load(f, weights_only=True)["model"] for f in (tmp_path / "back.pth", made / "made.pth"))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_convert_with_the_checkpoints_own_backbone(cli, made, tmp_path):
    options = ["--suite", "pascal_context@1", "--base-from-checkpoint", tmp_path / "swin", "--tasks", ",".join(THEIRS)]
    given = ["--scale", "4", "--mode", "matrix", "--image-size", "64x96"]
    said = cli("convert", made / "bare.pth", "--to", tmp_path / "out", *options, *given)
    assert said.code == 0, said.err
    model, about, base = load_dense_model(tmp_path / "out")
    assert about.image_size == (64, 96)
    assert base.name == str(tmp_path / "swin")
    with torch.no_grad():
        expected = load_dense_model(made / "made")[0](pixels())
        outputs = model(pixels())
    assert all(torch.equal(outputs[task], expected[task]) for task in expected)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["CKPT", "--to", "out"], "give --suite"),
        (["CKPT", "--to", "out", "--suite", "pascal_context@1"], "say which backbone"),
        (["CKPT", "--to", "out", "--suite", "pascal", "--base", "BASE"], "'pascal'"),
        (["CKPT", "--to", "out", *TEXT], "MTLoRA, the vision method: leave out --alpha, --temperature"),
        (["CKPT", "--to", "out", "--preset", "commonsense"], "MTLoRA, the vision method: leave out --preset"),
        (["CKPT", "--to", "full", "--suite", "pascal_context@1", "--base", "BASE"], "full is not empty"),
        (["CKPT", "--to", "out", "--suite", "pascal_context@1", "--base", "nowhere"], "--base-from-checkpoint"),
        (["CKPT", "--to", "out", "--suite", "nyud@1", "--base", "BASE"], "has no 'parts'"),
        (["CKPT", "--to", "out", "--suite", "pascal_context@1", "--base", "BASE", "--tasks", "sal"], "missing: semseg"),
        (["CKPT", "--to", "out", "--suite", "pascal_context@1", "--base", "OTHER"], "frozen tensors differ"),
        (["BARE", "--to", "out", "--suite", "pascal_context@1", "--base", "BASE"], "give --scale"),
        (["BARE", "--to", "out", "--suite", "x", "--image-size", "4x4x4"], "--image-size takes a side"),
        (["BARE", "--to", "out", "--suite", "x", "--image-size", "big"], "--image-size takes a side"),
        (["text.pt", "--to", "out", *TEXT, "--suite", "pascal_context@1"], "method for text: leave out --suite"),
        (["text.pt", "--to", "out", *TEXT, "--base-from-checkpoint", "b"], "leave out --base-from-checkpoint"),
        (["cut.pth", "--to", "out", "--suite", "pascal_context@1"], "damaged or cut off"),
        (["trap.pth", "--to", "out", "--suite", "pascal_context@1"], "mkdir"),
        (["MADE", "--to", "out", "--suite", "pascal_context@1"], "is a saved adapter"),
        (["MADE", "--to-reference", "x.pth", "--suite", "pascal_context@1"], "leave out --suite"),
        (["MADE", "--to-reference", "full/mine"], "exists already"),
        (["LIGHT", "--to-reference", "x.pth"], "'segformer' decoders"),
    ],
)
def test_convert_with_wrong_input(cli, made, tmp_path, arguments, says):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({f"q.lora_{name}": torch.ones(1, 1, 1) for name in ("A", "B", "lambdas", "B_w")}, tmp_path / "text.pt")
    torch.save({"model": {"x": torch.ones(1)}, "config": Trap()}, tmp_path / "trap.pth")
    (tmp_path / "cut.pth").write_bytes((made / "ckpt.pth").read_bytes()[:5000])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    if "OTHER" in arguments:
        save_base(tmp_path / "other", seed=1)
    if "LIGHT" in arguments:
        save_model(tmp_path / "light", made / "base", decoder="segformer")
    places = {"CKPT": made / "ckpt.pth", "BARE": made / "bare.pth", "BASE": made / "base", "MADE": made / "made"}
    places |= {"OTHER": tmp_path / "other", "LIGHT": tmp_path / "light"}
    files = {path.name for path in tmp_path.iterdir()}
    assert_refused(cli("convert", *(places.get(argument, argument) for argument in arguments)), says)
    assert {path.name for path in tmp_path.iterdir()} == files
    assert {path.name for path in (tmp_path / "full").iterdir()} == {"mine"}
