"""Real videos as a benchmark: a YouTube-VIS file with its frames, and a folder of clips.

Nothing is copied: the manifest points to where frames and clips are. Whatever is left out is named
in `quarantined` with its reason.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfshot.benchmarks.annotated import OnMessage, read_annotated
from selfshot.benchmarks.assembly import Shared, assemble
from selfshot.benchmarks.manifest import Benchmark
from selfshot.data.ytvis import Annotations
from selfshot.errors import UserError


def build_folder(
    folder: Path,
    *,
    annotations: Path,
    val_classes: Sequence[str],
    test_classes: Sequence[str],
    on_message: OnMessage,
    **shared: Any,
) -> Benchmark:
    """Write the manifest of a benchmark of real videos into `folder`.

    Every class that is not named is seen. A video that shows an unseen class never trains, and
    neither does another video of its source. The sources of an unseen class are dealt to queries
    and oracle supports, so that no support comes from its query's source; a video is a query of
    one class only.

    Args:
        folder: where the manifest is written.
        annotations: YouTube-VIS JSON.
        val_classes: unseen classes on which choices are made.
        test_classes: unseen classes that are scored.
        on_message: receives what was found.
        **shared: frames, corpus, corpus_labels, seed, height, width and num_frames, as `Shared`
            has them.

    Raises:
        UserError: an input cannot be read, a class is not known, or a split that is needed has
            nothing left.
    """
    found = read_annotated(annotations)
    split_of = name_splits(found.annotations, val_classes, test_classes, found.name)
    return assemble(
        folder,
        found,
        Shared(**shared),
        name="folder",
        kind="folder",
        split_of=split_of,
        on_message=on_message,
    )


def name_splits(
    annotations: Annotations, val_classes: Sequence[str], test_classes: Sequence[str], source: str
) -> dict[str, str]:
    """The split of each class of `source`, where the unseen ones are named.

    Raises:
        UserError: a name is none of the classes.
    """
    split_of = dict.fromkeys(sorted(annotations.categories.values()), "train")
    folded = {name.casefold(): name for name in split_of}
    problems: dict[str, str] = {}
    for split, names in (("val", val_classes), ("test", test_classes)):
        for name in names:
            if name in split_of:
                split_of[name] = split
                continue
            close = difflib.get_close_matches(name.casefold(), folded, 3, 0.5)
            nearest = " or ".join(repr(folded[one]) for one in close)
            hint = f" (did you mean {nearest}?)" if nearest else ""
            setting = f"benchmark.{split}_classes"
            problems[f"{setting}: {name!r} is no class of it{hint}"] = setting
    if problems:
        raise UserError(
            f"{'; '.join(problems)}; {source} has {', '.join(split_of)}",
            setting=next(iter(problems.values())),
        )
    return split_of
