"""The one exception that means "the person can mend this"."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in an experiment, a command line or an input file.

    The message names the place, the value received, what is allowed and the mend. The command
    line prints it as it stands, without a traceback, and exits with code 2.
    """
