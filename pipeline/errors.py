"""Errors that a user can act on: what came, what was expected, what to do now.

The command line prints the message of a `PatrolscopeError` and exits with status 2, without a stack trace.
Anything else is a defect of the program and keeps its trace.
"""


class PatrolscopeError(Exception):
    """Base of every error whose message is meant for the user."""


class SettingsError(PatrolscopeError):
    """study.yaml, or a cluster profile, holds a key or a value that can not be used."""


class SourceError(PatrolscopeError):
    """An input file is missing, or is not in the form that its reader expects."""


class ContractViolation(PatrolscopeError):
    """A table does not hold what its declaration in `pipeline.tables` says."""


class StudyBusy(PatrolscopeError):
    """Another run is writing into the study."""


class NotYetMade(PatrolscopeError):
    """A table is asked for before the command that makes it has run."""


class LedgerError(PatrolscopeError):
    """Rows in differ from rows out plus rows dropped: rows were lost or invented."""


class WeightsError(PatrolscopeError):
    """A detector's weights can not be opened, or can not do what is asked of them."""


class TrainingError(PatrolscopeError):
    """A training can not go on, or not as it was asked for."""
