"""Photos with masks → clips: a camera moves over a photo, and objects of other photos over it.

What is drawn depends on the random generator alone, so a clip is the same on every machine. The
masks are those of what is visible after occlusion.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageFilter

from selfshot.config.benchmarks import SceneConfig
from selfshot.data.clips import ClipReader, TrackMasks, average_cells
from selfshot.data.images import read_image
from selfshot.data.ytvis import Track, resolve_frame
from selfshot.ops.cameras import centres_that_show, glide, inverse_view, view
from selfshot.ops.masks import decode_rles, rle_area

TRIES = 4
"""Draws of a query until its object is seen in most frames; the last one has nothing pasted."""

MIN_VISIBLE = 0.004
"""Share of a frame that an object covers at least to be seen in it."""

BORDER = 2
"""An object that comes so near to the photo's border, in pixels, is cut by it: it is not pasted."""

MARGIN = 0.15
"""What a photo is continued by at each side, mirrored, for views that are turned or tilted."""

UNREST = 0.03

Box = tuple[float, float, float, float]

MOST_OBJECTS = 200
"""Of a photo, the largest; the others are background."""

NOTHING: Box = (0.0, 0.0, 0.0, 0.0)
"""No box: a view may be anywhere."""


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo and its objects.

    Attributes:
        pixels: uint8 (h, w, 3).
        labels: uint8 (h, w): 0 for what is no object, else 1 + the place of its track.
        tracks: the objects, of one frame; crowds are left out.
    """

    pixels: np.ndarray
    labels: np.ndarray
    tracks: tuple[Track, ...]

    def box(self, place: int) -> Box:
        """Left, top, right and bottom of an object's visible pixels."""
        rows, columns = np.nonzero(self.labels == place + 1)
        if not len(rows):
            return 0.0, 0.0, float(self.labels.shape[1]), float(self.labels.shape[0])
        left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        return float(left), float(top), float(right), float(bottom)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A clip that was composed.

    Attributes:
        frames: uint8 (T, H, W, 3).
        labels: uint8 (T, H, W): 0 for what is no object, else 1 + the place of its class.
        classes: category id of each object.
    """

    frames: np.ndarray
    labels: np.ndarray
    classes: tuple[int, ...]

    def masks_of(self, category_id: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Masks bool (m, T, H, W) of the visible objects of a class, or of all; their classes."""
        frame = self.labels[0].size
        places = [
            place
            for place, category in enumerate(self.classes, start=1)
            if category_id in (None, category)
            and (self.labels == place).sum((1, 2)).max() >= MIN_VISIBLE * frame
        ]
        masks = self.labels == np.array(places, np.uint8)[:, None, None, None]
        return masks, np.array([self.classes[place - 1] for place in places], np.int64)

    def tracks(self, stride: int, category_id: int | None = None) -> TrackMasks:
        """The same as a `ClipReader` gives them; see `ClipReader.tracks`."""
        masks, classes = self.masks_of(category_id)
        _, height, width = self.labels.shape
        size = (-(-height // stride), -(-width // stride))
        present: np.ndarray = np.any(masks, (2, 3))
        boxes = np.zeros((*present.shape, 4), np.float32)
        for place in zip(*np.nonzero(present), strict=True):
            rows, columns = np.nonzero(masks[place])
            left, right = columns.min() / width, (columns.max() + 1) / width
            top, bottom = rows.min() / height, (rows.max() + 1) / height
            boxes[place] = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
        return TrackMasks(average_cells(masks, size), classes, present, boxes)


class SceneComposer:
    """Composes clips of some photos, with objects of some others."""

    def __init__(
        self,
        reader: ClipReader,
        scene: SceneConfig,
        *,
        others: Sequence[int],
        min_object: float,
    ) -> None:
        """Find out which objects can be pasted.

        Args:
            reader: of the photos, as videos of one frame.
            scene: how clips are made.
            others: photos that distractors come from and that targets are pasted into.
            min_object: share of a photo that an object covers at least to be a target.
        """
        self.reader, self.scene, self.min_object = reader, scene, min_object
        self.others = sorted(others)
        self.categories_of = {
            video: {track.category_id for track in reader.annotations.tracks_of(video)}
            for video in self.others
        }
        self.pool: dict[int, list[tuple[int, int]]] = {}
        for video in self.others:
            for place, track in enumerate(self._objects(video)):
                if self._is_whole(video, track):
                    self.pool.setdefault(track.category_id, []).append((video, place))

    def query(
        self, rng: np.random.Generator, video: int, category_id: int, num_frames: int
    ) -> Scene:
        """A clip with an object of a class, which its photo shows, among distractors."""
        places = self._targets(video, category_id)
        for attempt in range(TRIES):
            last = attempt == TRIES - 1
            base = self._photo(video)
            target = places[int(rng.integers(len(places)))]
            focus, pasted = base.box(target), self._distractors(rng, category_id)
            is_pasted = rng.random() < self.scene.pasted_target
            if is_pasted and not last and self._is_whole(video, base.tracks[target]):
                strangers = [v for v in self.others if category_id not in self.categories_of[v]]
                if strangers:
                    pasted.append((base, target))
                    base = self._photo(strangers[int(rng.integers(len(strangers)))])
                    focus = NOTHING
            if last:
                pasted = []
            views = self._views(rng, base, focus, num_frames, zoom=self.scene.zoom)
            made = self._compose(rng, base, views, pasted, num_frames)
            masks, _ = made.masks_of(category_id)
            if last or (masks.any(0).mean((1, 2)) >= MIN_VISIBLE).mean() >= 0.5:
                return made
        raise AssertionError("the last try is always taken")

    def support(
        self, rng: np.random.Generator, video: int, category_id: int, num_frames: int
    ) -> Scene:
        """A clip that looks at an object of a class in its photo, without any other photo's."""
        photo = self._photo(video)
        places = self._targets(video, category_id)
        target = places[int(rng.integers(len(places)))]
        views = self._views(rng, photo, photo.box(target), num_frames, close_up=self.scene.close_up)
        return self._compose(rng, photo, views, [], num_frames)

    def picture(self, rng: np.random.Generator, video: int) -> Scene:
        """A clip of one frame of any view, with distractors."""
        photo = self._photo(video)
        shown = np.unique(photo.labels[photo.labels > 0])
        box = photo.box(int(rng.choice(shown)) - 1) if len(shown) else NOTHING
        views = self._views(rng, photo, box, 1, zoom=self.scene.zoom)
        return self._compose(rng, photo, views, self._distractors(rng, None), 1)

    def _distractors(
        self, rng: np.random.Generator, category_id: int | None
    ) -> list[tuple[Photo, int]]:
        """Objects of other classes than the given one, each class as often as another."""
        names = sorted(name for name in self.pool if name != category_id)
        low, high = self.scene.distractors
        found = []
        for _ in range(int(rng.integers(low, high + 1)) if names else 0):
            objects = self.pool[names[int(rng.integers(len(names)))]]
            video, place = objects[int(rng.integers(len(objects)))]
            found.append((self._photo(video), place))
        return found

    def _objects(self, video: int) -> list[Track]:
        tracks = [
            track
            for track in self.reader.annotations.tracks_of(video)
            if not track.iscrowd and track.has_pixels
        ]
        # As many as labels have numbers for.
        if len(tracks) <= MOST_OBJECTS:
            return tracks
        return sorted(tracks, key=lambda t: -rle_area(t.segmentations[0] or {}))[:MOST_OBJECTS]

    def _targets(self, video: int, category_id: int) -> list[int]:
        """Places of a class's large objects in a photo; of all of that class where none is."""
        objects = list(enumerate(self._objects(video)))
        large = [place for place, t in objects if self._is_target(video, t, category_id)]
        return large or [place for place, t in objects if t.category_id == category_id]

    def _is_target(self, video: int, track: Track, category_id: int) -> bool:
        entry, rle = self.reader.annotations.videos[video], track.segmentations[0]
        whole = entry.width * entry.height
        return (
            track.category_id == category_id
            and rle is not None
            and rle_area(rle) >= self.min_object * whole
        )

    def _is_whole(self, video: int, track: Track) -> bool:
        entry = self.reader.annotations.videos[video]
        box = track.boxes[0]
        if box is None or not self._is_target(video, track, track.category_id):
            return False
        return (
            box[0] >= BORDER
            and box[1] >= BORDER
            and box[0] + box[2] <= entry.width - BORDER
            and box[1] + box[3] <= entry.height - BORDER
        )

    def _photo(self, video: int) -> Photo:
        entry = self.reader.annotations.videos[video]
        path = resolve_frame(self.reader.frames_root, entry.file_names[0])
        pixels = read_image(path, entry.height, entry.width, (entry.height, entry.width))
        tracks = tuple(self._objects(video))
        labels = np.zeros((entry.height, entry.width), np.uint8)
        masks = decode_rles([t.segmentations[0] for t in tracks], entry.height, entry.width)
        # Small objects in front of large ones, as a rule: what covers less is drawn last.
        for place in sorted(range(len(tracks)), key=lambda i: -int(masks[i].sum())):
            labels[masks[place]] = place + 1
        return Photo(pixels, labels, tracks)

    def _views(
        self,
        rng: np.random.Generator,
        photo: Photo,
        box: Box,
        num_frames: int,
        *,
        zoom: tuple[float, float] | None = None,
        close_up: tuple[float, float] | None = None,
    ) -> Float[np.ndarray, "time 3 3"]:
        """A camera's path over a photo that keeps a box in sight."""
        scene = self.scene
        height, width = self.reader.height, self.reader.width
        plane = photo.labels.shape
        aspect = width / height
        largest = min(plane[1], plane[0] * aspect)
        needed = max(box[2] - box[0], (box[3] - box[1]) * aspect)
        least = min(width / scene.enlarged, largest)
        if close_up is not None:
            low, high = np.log(close_up).tolist()
            sides = needed * np.exp(rng.uniform(low, high, 2))
        else:
            assert zoom is not None
            sides = np.maximum(largest * rng.uniform(zoom[0], zoom[1], 2), 1.1 * needed)
        # From one size to another, and not too far from it.
        sides = np.clip([sides[0], sides[0] + 0.5 * (sides[1] - sides[0])], least, largest)
        ends = []
        for side in sides:
            low, high = centres_that_show(box, (side / aspect, side), (plane[0], plane[1]))
            ends.append(low + rng.random(2) * (high - low))
        ends[1] = ends[0] + scene.travel * (ends[1] - ends[0])
        angles = np.radians(rng.uniform(-scene.turn, scene.turn, 2))
        tilts = rng.uniform(-scene.tilt, scene.tilt, (2, 2))
        start, end = (
            np.array([*ends[i], math.log(sides[i] / width), angles[i], *tilts[i]]) for i in range(2)
        )
        path = glide(rng, start, end, num_frames, UNREST)
        return np.stack(
            [
                view((x, y), math.exp(scale), angle, (right, down), (height, width))
                for x, y, scale, angle, right, down in path
            ]
        )

    def _compose(
        self,
        rng: np.random.Generator,
        base: Photo,
        views: Float[np.ndarray, "time 3 3"],
        pasted: Sequence[tuple[Photo, int]],
        num_frames: int,
    ) -> Scene:
        height, width = self.reader.height, self.reader.width
        pixels, places, views = _continued(base, views, (height, width))
        numbers = _Numbers()
        base_numbers = np.array([0, *(numbers.of(t.category_id) for t in base.tracks)], np.uint8)
        labels = Image.fromarray(base_numbers[places])
        frames = np.empty((num_frames, height, width, 3), np.uint8)
        shown = np.empty((num_frames, height, width), np.uint8)
        for t, matrix in enumerate(views):
            frames[t] = _seen(pixels, matrix, height, width, Image.Resampling.BILINEAR)
            shown[t] = _seen(labels, matrix, height, width, Image.Resampling.NEAREST)
        for index in rng.permutation(len(pasted)):
            photo, place = pasted[index]
            number = numbers.of(photo.tracks[place].category_id)
            cutout, matrices = self._moving(rng, photo, place, num_frames)
            for t, matrix in enumerate(matrices):
                seen = _seen(cutout, matrix, height, width, Image.Resampling.BILINEAR)
                alpha = seen[..., 3:].astype(np.float32) / 255
                if not alpha.any():
                    continue
                mixed = frames[t] * (1 - alpha) + seen[..., :3] * alpha
                frames[t] = mixed.round()
                shown[t][alpha[..., 0] > 0.5] = number
        if rng.random() < 0.5:
            frames, shown = frames[:, :, ::-1], shown[:, :, ::-1]
        frames = self._lit(rng, frames)
        return Scene(np.ascontiguousarray(frames), np.ascontiguousarray(shown), numbers.classes)

    def _moving(
        self, rng: np.random.Generator, photo: Photo, place: int, num_frames: int
    ) -> tuple[Image.Image, Float[np.ndarray, "time 3 3"]]:
        """An object cut out of its photo, and its way over the frame."""
        scene = self.scene
        height, width = self.reader.height, self.reader.width
        left, top, right, bottom = map(int, photo.box(place))
        mask = photo.labels == place + 1
        # A pixel less at the edge, which has the photo's background in it, and soft.
        alpha = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.MinFilter(3))
        alpha = alpha.filter(ImageFilter.GaussianBlur(0.7))
        box = (
            max(left - 2, 0), max(top - 2, 0),
            min(right + 2, mask.shape[1]), min(bottom + 2, mask.shape[0]),
        )  # fmt: skip
        cutout = Image.fromarray(photo.pixels)
        cutout.putalpha(alpha)
        cutout = cutout.crop(box)
        long = max(cutout.size)
        side = min(height, width) * rng.uniform(*scene.object_side)
        scale = min(side / long, scene.enlarged)
        if scale < 0.8:  # Pillow's transform does not average what it makes smaller.
            small = (max(1, round(cutout.width * scale)), max(1, round(cutout.height * scale)))
            cutout = cutout.resize(small, Image.Resampling.BILINEAR)
            scale = 1.0
        middle = rng.uniform((0.15, 0.2), (0.85, 0.8)) * (width, height)
        direction = rng.uniform(0, 2 * np.pi)
        way = 0.5 * width * rng.uniform(0, scene.object_travel)
        step = way * np.array([np.cos(direction), np.sin(direction)])
        angles = np.radians(rng.uniform(-scene.object_turn, scene.object_turn, 2))
        growth = rng.uniform(-0.12, 0.12)
        start = np.array([*(middle - step), math.log(scale) - growth, angles[0]])
        end = np.array([*(middle + step), math.log(scale) + growth, angles[1]])
        if rng.random() < 0.5:
            cutout = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        path = glide(rng, start, end, num_frames, UNREST)
        size = (cutout.height, cutout.width)
        return cutout, np.stack(
            [inverse_view((x, y), math.exp(log), angle, size) for x, y, log, angle in path]
        )

    def _lit(
        self, rng: np.random.Generator, frames: UInt8[np.ndarray, "time height width 3"]
    ) -> UInt8[np.ndarray, "time height width 3"]:
        """Another light, which changes a little; motion blur; noise."""
        scene = self.scene
        light = scene.light
        time = np.linspace(-0.5, 0.5, len(frames))[:, None]
        gain = 1 + light * rng.uniform(-1, 1) + 0.3 * light * rng.uniform(-1, 1, 3)
        drift = 0.3 * light * rng.uniform(-1, 1, 3) * time
        offset = 255 * 0.3 * light * rng.uniform(-1, 1)
        gamma = np.exp(light * rng.uniform(-1, 1))
        # One table a frame and channel: 256 values in place of every pixel.
        grey = 255 * (np.arange(256) / 255) ** gamma
        tables = (grey - 128) * (gain + drift)[..., None] + 128 + offset
        tables = tables.clip(0, 255).round().astype(np.uint8)
        found = np.empty_like(frames)
        for t in range(len(frames)):
            for channel in range(3):
                found[t, ..., channel] = tables[t, channel][frames[t, ..., channel]]
        if rng.random() < scene.blur:
            reach = rng.uniform(-2.5, 2.5, 2)
            steps = [tuple((share * reach).round().astype(int)) for share in (-1, 0, 1)]
            moved = np.stack([np.roll(found, step, (1, 2)) for step in steps])
            found = (moved.sum(0, dtype=np.uint16) // len(steps)).astype(np.uint8)
        if scene.noise:
            # One field for all frames, at another place in each: drawing it costs more than adding.
            strength = rng.uniform(0, scene.noise)
            noise = rng.normal(0, strength, found.shape[1:]).round().astype(np.int16)
            for t, shift in enumerate(rng.integers(0, 64, (len(found), 2))):
                noisy = found[t].astype(np.int16) + np.roll(noise, tuple(shift), (0, 1))
                found[t] = noisy.clip(0, 255)
        return found


class SceneReader(ClipReader):
    """A reader whose training clips are composed anew at each draw; `frames` gives the photos."""

    def __init__(self, composer: SceneComposer) -> None:
        """Read the photos of a composer, in clips of the length and size of its reader's."""
        photos = composer.reader
        super().__init__(
            photos.annotations,
            photos.frames_root,
            num_frames=photos.num_frames,
            height=photos.height,
            width=photos.width,
        )
        self.composer = composer

    def drawn_query(
        self, video_id: int, category_id: int, stride: int, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, TrackMasks, np.ndarray]:
        """See `ClipReader.drawn_query`."""
        assert rng is not None, "composed clips are drawn"
        scene = self.composer.query(rng, video_id, category_id, self.num_frames)
        return scene.frames, scene.tracks(stride, category_id), np.ones(self.num_frames, bool)

    def drawn_support(
        self, video_id: int, category_id: int, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, int]:
        """See `ClipReader.drawn_support`."""
        assert rng is not None, "composed clips are drawn"
        scene = self.composer.support(rng, video_id, category_id, self.num_frames)
        return scene.frames, self.num_frames

    def drawn_frame(
        self, video_id: int, index: int, stride: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, TrackMasks]:
        """See `ClipReader.drawn_frame`."""
        scene = self.composer.picture(rng, video_id)
        return scene.frames[0], scene.tracks(stride)


class _Numbers:
    """Gives each object of a scene a number from 1 on."""

    def __init__(self) -> None:
        self.classes: tuple[int, ...] = ()

    def of(self, category_id: int) -> int:
        if len(self.classes) == 255:
            return 0  # More than a mask has numbers for: what is beyond is background.
        self.classes = (*self.classes, category_id)
        return len(self.classes)


def _continued(
    photo: Photo, views: Float[np.ndarray, "time 3 3"], frame: tuple[int, int]
) -> tuple[Image.Image, UInt8[np.ndarray, "height width"], Float[np.ndarray, "time 3 3"]]:
    """The photo, mirrored at its borders and as small as its views allow; the views of that."""
    height, width = photo.labels.shape
    margin = [round(MARGIN * side) for side in (height, width)]
    pads = [(side, side) for side in margin]
    pixels = Image.fromarray(np.pad(photo.pixels, [*pads, (0, 0)], "reflect"))
    labels = np.pad(photo.labels, pads, "reflect")
    # Pixels of the photo to one of a frame: where it is above one, it is averaged first.
    column, row = frame[1] / 2, frame[0] / 2
    seen = views @ np.array([[column, column + 1], [row, row], [1, 1]])
    points = seen[:, :2] / seen[:, 2:]
    finest = float(np.linalg.norm(points[..., 1] - points[..., 0], axis=1).min())
    shift = np.array([[1, 0, margin[1]], [0, 1, margin[0]], [0, 0, 1.0]])
    if finest > 1.25:
        size = (round(pixels.width / finest), round(pixels.height / finest))
        shift = np.diag([size[0] / pixels.width, size[1] / pixels.height, 1]) @ shift
        pixels = pixels.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        places = [
            ((np.arange(new) + 0.5) * old / new).astype(int)
            for new, old in zip(size[::-1], labels.shape, strict=True)
        ]
        labels = labels[np.ix_(*places)]
    return pixels, labels, shift @ views


def _seen(
    picture: Image.Image,
    matrix: Float[np.ndarray, "3 3"],
    height: int,
    width: int,
    resampling: Image.Resampling,
) -> UInt8[np.ndarray, "height width channels"]:
    """What a view shows of a picture; nothing (0) beside it."""
    coefficients = (matrix / matrix[2, 2]).ravel()[:8].tolist()
    seen = picture.transform((width, height), Image.Transform.PERSPECTIVE, coefficients, resampling)
    return np.asarray(seen)
