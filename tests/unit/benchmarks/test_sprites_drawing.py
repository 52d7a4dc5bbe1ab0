"""Sprites: masks are what is painted on top, and classes can be told apart by their shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from selfshot.benchmarks.sprites import classes as symbols
from selfshot.benchmarks.sprites import scenes
from selfshot.benchmarks.sprites.looks import look


class TestScenes:
    """A shot's masks are those of what is painted on top."""

    @pytest.mark.parametrize("seed", range(5))
    def test_masks_are_what_is_painted_on_top(
        self, seed: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def plain_background(rng: Any, height: int, width: int) -> np.ndarray:
            return np.zeros((height, width, 3), np.float32)

        def disc(rng: Any, name: str, side: float, path: np.ndarray, *size: int) -> np.ndarray:
            rows, columns = np.mgrid[: size[0], : size[1]]
            layer = np.zeros((len(path), *size, 4), np.float32)
            for frame, (x, y) in enumerate(path * size[::-1]):
                inside = np.hypot(rows - y, columns - x) < side * min(size) / 2
                layer[frame, inside, int(name)] = layer[frame, inside, 3] = 1
            return layer

        monkeypatch.setattr(scenes, "_background", plain_background)
        monkeypatch.setattr(scenes, "_layers", disc)
        objects = [("0", 0.6), ("1", 0.5), ("2", 0.4)]
        rng = np.random.default_rng(seed)
        made = scenes.shot(rng, objects, num_frames=5, height=37, width=53)
        assert made.classes == ("0", "1", "2") and made.frames.dtype == np.uint8
        top = made.frames.argmax(-1)
        top[made.frames.max(-1) < 128] = -1
        for index in range(3):
            painted = top == index
            for frame, mask in enumerate(made.masks[index]):
                # Slivers are left out; what remains is exact.
                if mask.any():
                    np.testing.assert_array_equal(mask, painted[frame])
                else:
                    assert painted[frame].sum() < scenes.MIN_VISIBLE_SHARE * 37 * 53

    def test_masks_are_disjoint_and_mostly_seen(self) -> None:
        rng = np.random.default_rng(0)
        objects = [("cat", 0.4), ("anchor", 0.4), ("heart", 0.4)]
        made = [scenes.shot(rng, objects, num_frames=3, height=48, width=32) for _ in range(5)]
        masks = np.stack([shot.masks for shot in made])
        assert masks.sum(1).max() == 1
        assert masks.any((2, 3, 4)).mean() > 0.8
        assert all(shot.frames.shape == (3, 48, 32, 3) for shot in made)

    def test_colour_never_exceeds_opacity(self) -> None:
        rng = np.random.default_rng(0)
        layers = scenes._layers(rng, "cat", 0.4, np.full((2, 2), 0.5), 64, 64)
        # In a premultiplied picture a colour above alpha is brighter than white.
        assert (layers[..., :3] <= layers[..., 3:] + 2 / 255).all()


class TestGlyphs:
    """Every class is a symbol that the font has, unlike every other."""

    @staticmethod
    def _bitmap(code: int) -> tuple[tuple[int, int], bytes]:
        mask = symbols._font().getmask(chr(code))
        return mask.size, bytes(mask)

    def test_none_is_missing_and_no_two_are_alike(self) -> None:
        missing = {self._bitmap(code) for code in (0x10FFFE, 0x0378)}
        assert len(missing) == 1, "codes without a symbol look the same"
        bitmaps = {name: self._bitmap(code) for name, code in symbols.GLYPHS.items()}
        assert not [name for name, bitmap in bitmaps.items() if bitmap in missing]
        assert len(set(bitmaps.values())) == len(symbols.GLYPHS)

    def test_shapes_can_be_told_apart(self) -> None:
        planes = np.stack([np.stack(symbols.shape(name)) for name in symbols.GLYPHS])
        assert planes.min() >= 0 and planes.max() <= 1
        assert (planes[:, 0] >= planes[:, 1] - 1e-6).all(), "ink lies on the body"
        distance = np.abs(planes[:, None] - planes[None]).sum(2).mean((2, 3))
        distance[np.diag_indices(len(planes))] = np.inf
        assert distance.min() > 0.05

    def test_the_body_is_centred_and_fills_four_fifths(self) -> None:
        for name in symbols.GLYPHS:
            body, _ = symbols.shape(name)
            rows, columns = np.nonzero(body > 0.5)
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert max(height, width) == pytest.approx(0.8 * symbols.BASE_SIZE, abs=4)
            assert rows.mean() == pytest.approx(symbols.BASE_SIZE / 2, abs=symbols.BASE_SIZE / 5)

    def test_a_look_of_every_class(self) -> None:
        rng = np.random.default_rng(0)
        for name in symbols.GLYPHS:
            picture = np.asarray(look(rng, name))
            assert picture.shape == (symbols.BASE_SIZE, symbols.BASE_SIZE, 4)
            assert (picture[..., 3] > 128).sum() > 150, name
