"""Errors that a user can act on. The message states what happened, what was expected, and how to fix it.

The command line prints the message of a `PatrolscopeError` without a stack trace and exits with its status.
Any other exception is a defect of the program and keeps its trace.
"""


class PatrolscopeError(Exception):
    """Base class of all errors whose message is meant for the user."""

    status = 2  # exit status of the command


class SettingsError(PatrolscopeError):
    """Unknown key or invalid value in study.yaml, a cluster profile, or the options of a command."""


class SourceError(PatrolscopeError):
    """Input file that is missing or does not have the format that its reader expects."""


class BadFileError(SourceError):
    """One damaged file among many. The stage finishes the others first, and reports all damaged files at once."""


class ContractError(PatrolscopeError):
    """Table that differs from its declaration in `patrolscope.pipeline.contract.tables`."""


class StudyLockedError(PatrolscopeError):
    """Study that another run is writing to."""


class StageNotRunError(PatrolscopeError):
    """Table that is read before the stage that writes it has run."""


class LedgerError(PatrolscopeError):
    """Ledger in which rows in differ from rows out plus rows dropped."""


class WeightsError(PatrolscopeError):
    """Weights of a detector that cannot be opened or do not support the requested operation."""


class StorageFullError(PatrolscopeError):
    """Full disk, or exhausted quota of the user, where the study is stored."""


class StorageError(PatrolscopeError):
    """Disk or object store that cannot be reached, read, or written."""


class InsufficientMemoryError(PatrolscopeError):
    """Shard that needs more memory than a worker has."""


class SchedulerLostError(PatrolscopeError):
    """Loss of the scheduler during a stage."""


class FailedShardsError(PatrolscopeError):
    """Shards that killed every worker they ran on; all other shards are finished."""

    status = 3


class PlanError(PatrolscopeError):
    """Plan that exceeds the capacity of the cluster; raised before any work starts."""


class TrainingError(PatrolscopeError):
    """Training that cannot start or continue with the requested options."""
