"""Settings that a command was given, written to study.yaml so that a later `run` uses them too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from patrolscope.pipeline.study.config import Settings, with_changes
from patrolscope.pipeline.study.files import study_files
from patrolscope.pipeline.study.store import SETTINGS_FILE, Study, create_study, open_study, study_at


def adopt(
    root: str,
    changes: dict[str, dict[str, Any]],
    *,
    may_make: bool = False,
    check: Callable[[Study], object] | None = None,
) -> list[str]:
    """Write settings to study.yaml.

    Parameters
    ----------
    root : str
        Path or URL of the study.
    changes : dict of str to dict
        Values by section and name. None keeps the current value.
    may_make : bool, default False
        Whether to create the study if it does not exist.
    check : callable, optional
        Called with the study under its new settings before anything is written. It raises if they cannot work.

    Returns
    -------
    list of str
        Line with the changed settings, or nothing.

    Raises
    ------
    SettingsError
        If the study does not exist, or a value is invalid.
    StudyLockedError
        If a run holds the study.
    """
    fs, base = study_files(root)
    new = may_make and not fs.exists(f"{base}/{SETTINGS_FILE}")
    study = study_at(root, Settings()) if new else open_study(root)
    before = study.settings
    given = {
        section: {name: value for name, value in values.items() if value is not None}
        for section, values in changes.items()
    }
    after = with_changes(before, given)
    if after == before and not new:
        return []
    if check is not None:
        check(replace(study, settings=after))  # a mistyped name leaves the settings unchanged
    with study.lock():
        create_study(root, after)
    changed = [
        f"{section}.{name}: {_as_yaml(getattr(getattr(after, section), name))}"
        for section, values in given.items()
        for name in values
        if getattr(getattr(after, section), name) != getattr(getattr(before, section), name)
    ]
    return [f"{study.path(SETTINGS_FILE)} now has {'; '.join(changed)}"] if changed else []


def _as_yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
