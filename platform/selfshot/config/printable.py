"""Names and messages as a terminal, a table or a page can show them."""

from __future__ import annotations


def printable(text: str, *, instead: str = "\N{REPLACEMENT CHARACTER}", kept: str = "") -> str:
    """A text without what would steer a terminal, break a line, or cannot be written.

    Names come from files that others wrote: they may hold terminal escapes, line breaks, marks that
    turn the direction of what follows, and halves of characters that no encoding has.

    Args:
        text: from anywhere.
        instead: what stands for each such character.
        kept: such characters that stay, a line break for one.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in kept else instead for one in text)
