"""What a command asks for goes to study.yaml, so that a later `run` does the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from patrolscope.pipeline.study.config import Settings, with_changes
from patrolscope.pipeline.study.store import SETTINGS_FILE, Study, create_study, open_study, study_at, study_files


def adopt(
    root: str,
    changes: dict[str, dict[str, Any]],
    *,
    may_make: bool = False,
    check: Callable[[Study], object] | None = None,
) -> list[str]:
    """Write settings, by section, to study.yaml; what is None leaves what is there.

    Parameters
    ----------
    may_make : make a study where there is none
    check : looks at the study with the new settings, and raises where they can not serve; nothing is written then

    Returns
    -------
    A line that says what has changed, or none

    Raises
    ------
    SettingsError : there is no study, or a value is impossible
    StudyLockedError : a run is at work on the study
    """
    fs, base = study_files(root)
    new = may_make and not fs.exists(f"{base}/{SETTINGS_FILE}")
    study = study_at(root, Settings()) if new else open_study(root)
    before = study.settings
    asked = {
        section: {name: value for name, value in values.items() if value is not None}
        for section, values in changes.items()
    }
    after = with_changes(before, asked)
    if after == before and not new:
        return []
    if check is not None:
        check(replace(study, settings=after))  # a mistyped name leaves the settings as they are
    with study.lock():
        create_study(root, after)
    changed = [
        f"{section}.{name}: {_in_yaml(getattr(getattr(after, section), name))}"
        for section, values in asked.items()
        for name in values
        if getattr(getattr(after, section), name) != getattr(getattr(before, section), name)
    ]
    return [f"{study.path(SETTINGS_FILE)} now says {'; '.join(changed)}"] if changed else []


def _in_yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
