"""Errors that a user can act on: what came, what was expected, what to do now.

The command line prints the message of a `PatrolscopeError` and exits with its status, without a stack trace.
Anything else is a defect of the program and keeps its trace.
"""


class PatrolscopeError(Exception):
    """Base of every error whose message is meant for the user."""

    status = 2  # of the command


class SettingsError(PatrolscopeError):
    """study.yaml, or a cluster profile, holds a key or a value that can not be used."""


class SourceError(PatrolscopeError):
    """An input file is missing, or is not in the form that its reader expects."""


class ContractError(PatrolscopeError):
    """A table does not hold what its declaration in `patrolscope.pipeline.contract.tables` says."""


class StudyLockedError(PatrolscopeError):
    """Another run is writing into the study."""


class StageNotRunError(PatrolscopeError):
    """A table is asked for before the command that makes it has run."""


class LedgerError(PatrolscopeError):
    """Rows in differ from rows out plus rows dropped: rows were lost or invented."""


class WeightsError(PatrolscopeError):
    """A detector's weights can not be opened, or can not do what is asked of them."""


class StorageFullError(PatrolscopeError):
    """The disk of the study, or the user's share of it, is full."""


class StorageError(PatrolscopeError):
    """A disk or an object store can not be reached, read or written."""


class InsufficientMemoryError(PatrolscopeError):
    """A shard needs more memory than a worker has."""


class SchedulerLostError(PatrolscopeError):
    """The scheduler ended in the middle of a stage."""


class FailedShardsError(PatrolscopeError):
    """Some shards killed every worker that took them; all others are finished."""

    status = 3


class PlanError(PatrolscopeError):
    """A plan can not be carried out where it shall be: said before anything is begun."""


class TrainingError(PatrolscopeError):
    """A training can not go on, or not as it was asked for."""
