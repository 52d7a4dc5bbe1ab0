"""`selfshot encoders` lists the pretrained networks that are on this machine."""

from __future__ import annotations

from selfshot.cli.app import app


@app.command()
def encoders() -> None:
    """List the networks on this machine that --encoder and encoder.backbone can name.

    Those in the hub's cache, and the one that a package ships. Any other of timm or transformers
    is fetched with hf download, or read from a folder: timm/local-dir:FOLDER, hf/FOLDER.
    """
    from rich.console import Console
    from rich.table import Table

    from selfshot.models.pretrained_files import licence_warning
    from selfshot.models.pretrained_listing import networks_here
    from selfshot.studies.environment import LEARNED

    found, others = networks_here()
    columns = ("name", "reads", "dimension", "frame", "MB", "licence", "learned from")
    table = Table(*columns, box=None, pad_edge=False)
    for one in found:
        facts, frames = one.spec["facts"], one.spec["preprocessing"]
        clips = one.spec["num_frames"]
        table.add_row(
            one.name,
            f"clips of {clips}" if clips else "frames",
            str(one.spec["pooled_dim"]),
            f"{frames['height']}x{frames['width']}",
            f"{one.size / 1e6:.0f}",
            facts["licence"] or "not stated",
            LEARNED.get(facts["supervision"], "not stated"),
        )
    # As wide as it needs: a name that is cut cannot be copied.
    console = Console(width=200, highlight=False)
    console.print(table)
    for one in found:
        warning = licence_warning(one.spec["facts"])
        if warning:
            console.print(warning)
    for name, reason in others:
        console.print(f"not usable: {name}: {reason}", markup=False)
