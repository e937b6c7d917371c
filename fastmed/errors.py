"""The errors that fastmed raises on purpose: one sentence that names the thing and what to do."""


class FastmedError(Exception):
    """Something that a user can act on; the command prints it as one line."""


class UsageError(FastmedError):
    """The call itself is wrong: an unknown flag value, an absent engine. Exit status 2."""


class SeriesError(FastmedError):
    """One series cannot be read or processed; the other series of the run go on."""


class BundleError(FastmedError):
    """A model folder is incomplete, damaged or contradicts itself."""
