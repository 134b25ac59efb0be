"""What can be wrong before, around or after an experiment, as one family.

A text is for the user: what happened, where, and behind a semicolon what to do. The command line
prints it and exits with BAD_USAGE.
"""

from __future__ import annotations

BAD_USAGE = 2


class GatescopeError(Exception):
    """Something that the user can put right."""


class UsageError(GatescopeError):
    """Arguments of the command line that do not go together, or name what is not there."""


class ConfigError(GatescopeError):
    """An experiments.toml that cannot be run."""


class DatasetError(GatescopeError):
    """A dataset that cannot be used; the text names file and line."""


class BackendError(GatescopeError):
    """A backend that cannot be served, or a server that cannot be asked, on this machine."""


class FileError(GatescopeError):
    """A file or directory that cannot be read or written, or is not what it should be."""


class GateLogError(GatescopeError):
    """A gate log that cannot be read; the text names the file and what is wrong with it."""


class LoadError(GatescopeError):
    """A load that cannot be started; the text says why."""


class NoDataError(GatescopeError):
    """Nothing to draw or to report; the text says what is missing."""
