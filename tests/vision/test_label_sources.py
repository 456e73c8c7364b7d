"""Labels of one's own folders: derived maps, what a source may say, and label files that are refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers_dense_folders import folder_suite, write_image, write_npy, write_png
from tasklora.errors import ConfigError, DataError
from tasklora.vision.data import load_dense
from tasklora.vision.layouts.derived import (
    Intrinsics,
    boundaries,
    depth_edges,
    foreground,
    normals_from_depth,
    thinned,
)


class TestDerived:
    def test_boundaries_are_single_lines_and_know_ignored_pixels(self) -> None:
        ids = np.zeros((9, 12), dtype=int)
        ids[:, 6:] = 7
        edges = boundaries(ids)
        assert edges.sum(axis=1).tolist() == [0] + [1] * 8, "thinning may take the last pixel of a line"
        assert edges[:, 5:7].sum() == edges.sum()
        ignored = np.zeros(ids.shape, dtype=bool)
        ignored[:, 6:] = True
        assert boundaries(ids, ignored).tolist() == [[0.0] * 6 + [255.0] * 6] * 9, "no class, no boundary"
        assert (boundaries(ids, np.ones_like(ignored)) == 255).all()

    def test_boundaries_between_classes_whose_ids_cancel_in_a_laplacian(self) -> None:
        ids = np.repeat([[1, 2, 3]], 5, axis=0)
        assert boundaries(ids).any()

    def test_thinning_keeps_connections(self) -> None:
        from scipy.ndimage import label

        blobs = np.random.default_rng(0).random((40, 40)) < 0.6
        thin = thinned(blobs)
        assert not (thin & ~blobs).any()
        assert thin.sum() < blobs.sum()
        eight = np.ones((3, 3))
        assert label(thin, eight)[1] == label(blobs, eight)[1]
        assert (thinned(thin) == thin).all()
        assert thinned(np.zeros((0, 3), dtype=bool)).shape == (0, 3)

    def test_foreground(self) -> None:
        ids = np.array([[0, 1, 9, 255]])
        assert foreground(ids, [0, 9], ids == 255).tolist() == [[0, 1, 0, 255]]

    @pytest.mark.parametrize("normal", [(0, 0, 1), (0, 1, 0.4), (0.6, 0.3, 0.8), (-0.7, 0.1, 0.5), (0.1, -0.8, 0.6)])
    def test_normals_of_a_plane_are_exact_at_any_slant(self, normal: tuple[float, float, float]) -> None:
        camera = Intrinsics(fx=100, fy=110, cx=31, cy=22.5)
        expected = np.array(normal) / np.linalg.norm(normal)
        depth = plane(expected, camera, (48, 64))
        depth[20:24, 30:33] = 0
        normals = normals_from_depth(depth, camera, step=2)
        known = normals[0] != 255
        assert not known[20:24, 30:33].any()
        assert known.mean() > 0.95
        np.testing.assert_allclose(normals[:, known], np.repeat(expected[:, None], known.sum(), 1), atol=1e-4)

    def test_normals_do_not_mix_surfaces_and_are_unit(self) -> None:
        camera = Intrinsics(300, 300, 20, 20)
        depth = np.full((40, 40), 3.0, dtype=np.float32)
        depth[:, 20:] = 1.0
        normals = normals_from_depth(depth, camera, step=2)
        np.testing.assert_allclose(normals[2], 1, atol=1e-5)
        assert (normals_from_depth(np.zeros((8, 8), np.float32), camera, 2) == 255).all()

    def test_depth_edges_lie_on_the_nearer_side_and_not_on_slanted_planes(self) -> None:
        depth = plane(np.array([0.0, 0.9, 0.436]), Intrinsics(100, 100, 32, 24), (48, 64))
        assert not (depth_edges(depth, 0.05, 0) == 1).any()
        depth[10:30, 20:40] *= 0.8
        edges = depth_edges(depth, 0.05, 0)
        on = np.argwhere(edges == 1)
        assert on.min(axis=0).tolist() == [10, 20]
        assert on.max(axis=0).tolist() == [29, 39]
        assert len(on) == 2 * 18 + 2 * 18, "thinning cuts the four corners"
        assert not (depth_edges(depth, 0.5, 0) == 1).any(), "a step of 20 % is below one of 50 %"

    def test_a_shadow_beside_a_contour_is_bridged_and_ignored(self) -> None:
        depth = np.full((10, 30), 2.0, dtype=np.float32)
        depth[:, 15:] = 1.0
        depth[:, 10:15] = 0
        bridged, unbridged = depth_edges(depth, 0.05, gap=5), depth_edges(depth, 0.05, gap=4)
        assert (bridged[:, 15] == 1).all()
        assert (bridged[:, 10:15] == 255).all()
        assert (bridged == 1).sum() == 10
        assert not (unbridged == 1).any()
        assert (unbridged[:, 15] == 255).all(), "what lies beside the hole is not known"


def plane(normal: np.ndarray, camera: Intrinsics, size: tuple[int, int]) -> np.ndarray:
    """Depth (H, W) of a plane two metres off, with a normal in our axes."""
    v, u = np.mgrid[: size[0], : size[1]]
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(size)])
    return (-2 / np.tensordot(normal * [1, -1, -1], rays, 1)).astype(np.float32)


class TestSources:
    """One's own folders: what a task's source may say, and what comes out."""

    def label(self, root: Path, task: dict[str, Any]) -> np.ndarray:
        write_image(root / "images/a.png")
        suite = folder_suite({"t": task}, splits={"validation": {"rest": True}})
        return load_dense(suite, suite.tasks, ["validation"], root).split("validation")[0].labels["t"]

    def test_classes_mapped_and_ignored(self, tmp_path: Path) -> None:
        task = {
            "kind": "segmentation",
            "labels": ["no", "yes"],
            "source": {"map": {"no": [0, 7], "yes": [3000]}, "ignored": [9]},
        }
        write_png(tmp_path / "t/a.png", np.tile([0, 7, 3000, 9, 0, 0], (4, 1)), np.uint16)
        assert self.label(tmp_path, task).tolist() == [[0, 0, 1, 255, 0, 0]] * 4

    def test_classes_of_arrays_all_ignored(self, tmp_path: Path) -> None:
        write_npy(tmp_path / "t/a.npy", np.full((4, 6), 255), np.int64)
        assert (self.label(tmp_path, {"kind": "segmentation", "labels": ["a", "b"]}) == 255).all()

    @pytest.mark.parametrize(
        ("source", "expected"),
        [
            ({"positive": [255]}, [0, 1, 0]),
            ({"threshold": 100}, [0, 1, 0]),
            ({"positive": [255], "ignored": [0]}, [255, 1, 255]),
        ],
    )
    def test_masks(self, tmp_path: Path, source: dict[str, Any], expected: list[int]) -> None:
        write_png(tmp_path / "t/a.png", np.tile([0, 255, 0], (4, 2)))
        assert self.label(tmp_path, {"kind": "saliency", "source": source}).tolist() == [expected * 2] * 4

    def test_what_255_means_in_a_mask_is_never_guessed(self, tmp_path: Path) -> None:
        write_png(tmp_path / "t/a.png", np.tile([0, 255, 0], (4, 2)))
        with pytest.raises(DataError) as error:
            self.label(tmp_path, {"kind": "edges"})
        assert str(error.value) == (
            f"task 't': {tmp_path}/t/a.png holds 255 besides 0 and 1. Say in the task's source what they mean: "
            "`positive: [255]`, `ignored: [255]` or `threshold: 127`."
        )

    def test_normals_with_an_axis_the_other_way_round(self, tmp_path: Path) -> None:
        vectors = np.zeros((4, 6, 3))
        vectors[..., 1], vectors[..., 2] = 3, 4
        write_npy(tmp_path / "t/a.npy", vectors)
        label = self.label(tmp_path, {"kind": "normals", "source": {"flip": ["y"]}})
        np.testing.assert_allclose(label[:, 0, 0], [0, -0.6, 0.8], atol=1e-6)

    def test_depth_of_16_bits(self, tmp_path: Path) -> None:
        write_png(tmp_path / "t/a.png", np.tile([0, 1000, 65535], (4, 2)), np.uint16)
        source = {"scale": 0.001, "invalid": [65535]}
        np.testing.assert_allclose(self.label(tmp_path, {"kind": "depth", "source": source}), [[0, 1, 0] * 2] * 4)

    @pytest.mark.parametrize(
        ("kind", "source", "match"),
        [
            ("depth", {}, r"'scale' is missing"),
            ("depth", {"scale": 1, "invald": [3]}, r"unknown key 'invald'\. Did you mean 'invalid'\?"),
            ("depth", {"derive": "boundaries"}, r"depth cannot be derived by 'boundaries'. It is for edges. Labels of"),
            ("edges", {"derive": "boundary"}, r"Did you mean 'boundaries'\? Known for edges: boundaries, depth_edges"),
            ("edges", {"folder": "../x"}, r"leads out of the data folder"),
            ("edges", {"folder": "/etc"}, r"leads out of the data folder"),
            ("saliency", {"derive": "foreground"}, r"'background' is missing"),
            ("saliency", {"positive": [1], "threshold": 3}, r"not both"),
            ("normals", {"derive": "normals_from_depth", "scale": 1}, r"say `camera: .*` or `camera_file"),
            ("segmentation", {"map": {"a": [0], "c": [1]}}, r"map names c, which the task has not: a, b"),
            ("segmentation", {"map": {"a": [0]}}, r"map gives no id to b"),
            ("segmentation", {"map": {"a": [0], "b": [0]}}, r"map and ignored have 0 more than once"),
        ],
    )
    def test_sources_are_read_strictly(self, tmp_path: Path, kind: str, source: dict[str, Any], match: str) -> None:
        labels = {"labels": ["a", "b"]} if kind == "segmentation" else {}
        with pytest.raises(ConfigError, match=match):
            self.label(tmp_path, {"kind": kind, "source": source, **labels})

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            (None, "cannot read the camera file"),
            ('{"other": 1}', "has no 'k'; it has: other"),
            ('{"k": [[1, 2], [3]]}', "is not a matrix"),
            ('{"k": [[1, 5, 0], [0, 1, 0], [0, 0, 1]]}', "is not a matrix"),
        ],
    )
    def test_camera_files_are_checked_when_loading(self, tmp_path: Path, content: str | None, match: str) -> None:
        write_png(tmp_path / "t/a.png", np.ones((4, 6)))
        if content:
            (tmp_path / "camera.json").write_text(content)
        camera = {"file": "camera.json", "key": "k"}
        source = {"derive": "normals_from_depth", "scale": 1, "camera_file": camera}
        with pytest.raises(DataError, match=match):
            self.label(tmp_path, {"kind": "normals", "source": source})


class TestLabelFiles:
    def read(self, root: Path) -> np.ndarray:
        write_image(root / "images/a.png")
        task = {"kind": "segmentation", "labels": ["a", "b"], "source": {}}
        suite = folder_suite({"t": task}, splits={"validation": {"rest": True}})
        return load_dense(suite, suite.tasks, ["validation"], root).split("validation")[0].labels["t"]

    @pytest.mark.parametrize(
        ("mode", "message"),
        [
            ("RGB", "holds colours (mode RGB) where ids are expected. Write a greyscale PNG whose values are the ids"),
            ("RGBA", "holds colours (mode RGBA) where ids are expected. Write a greyscale PNG"),
            (
                "P",
                "holds a palette where ids are expected. Say `palette: true` in the task's source if its indices are",
            ),
        ],
    )
    def test_colours_where_ids_are_expected(self, tmp_path: Path, mode: str, message: str) -> None:
        (tmp_path / "t").mkdir()
        Image.new(mode, (6, 4)).save(tmp_path / "t/a.png")
        with pytest.raises(DataError) as error:
            self.read(tmp_path)
        assert str(error.value).startswith(f"label {tmp_path}/t/a.png {message}")

    @pytest.mark.parametrize("bits", [1, 2, 4, 8])
    def test_greys_of_2_and_4_bits_would_be_stretched_and_are_refused(self, tmp_path: Path, bits: int) -> None:
        (tmp_path / "t").mkdir()
        (tmp_path / "t/a.png").write_bytes(png_of_bits([[0, 1, 0, 1, 1, 0]] * 4, bits))
        if bits in (1, 8):
            assert self.read(tmp_path).tolist() == [[0, 1, 0, 1, 1, 0]] * 4
        else:
            with pytest.raises(DataError, match=f"is a greyscale PNG of {bits} bits, whose values PNG readers stretch"):
                self.read(tmp_path)

    @pytest.mark.parametrize(
        ("write", "match"),
        [
            (lambda p: Image.new("L", (6, 4)).save(p, "JPEG"), "is not a PNG file; other formats lose or bend labels"),
            (lambda p: p.write_bytes(b""), "cannot be read"),
            (lambda p: write_truncated(p), "cannot be read"),
            (lambda p: write_npy(p.with_suffix(".npy"), np.zeros((4, 6))), "array of float32 .*; integers"),
            (
                lambda p: (write_npy(p.with_suffix(".npy"), np.zeros((4, 6))), write_png(p, np.zeros((4, 6)))),
                "two labels",
            ),
        ],
    )
    def test_files_that_hold_no_ids(self, tmp_path: Path, write: Any, match: str) -> None:
        (tmp_path / "t").mkdir()
        write(tmp_path / "t/a.png")
        with pytest.raises(DataError, match=match):
            self.read(tmp_path)


def write_truncated(path: Path) -> None:
    write_png(path, np.random.default_rng(0).integers(0, 2, (4, 6)))
    path.write_bytes(path.read_bytes()[:-24])


def png_of_bits(rows: list[list[int]], bits: int) -> bytes:
    """Return a greyscale PNG of a bit depth that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packed = b""
    for row in rows:
        digits = "".join(format(value, f"0{bits}b") for value in row)
        digits += "0" * (-len(digits) % 8)
        packed += b"\0" + bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")
