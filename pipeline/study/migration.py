"""Migration of studies from earlier versions: renamed settings, and renamed stages."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from patrolscope.pipeline.errors import SettingsError
from patrolscope.pipeline.study.config import Settings, load_yaml
from patrolscope.pipeline.study.files import study_files
from patrolscope.pipeline.study.store import SETTINGS_FILE, Study, read_settings, study_at

BACKUP_FILE = f"{SETTINGS_FILE}.bak"
# Old to new names; None for settings that were removed.
SETTINGS = {
    "city.box": "city.bounds",
    "sources.labels": "sources.detections",
    "layers.neighbourhoods": "layers.neighborhoods",
    "images.score_above": "images.min_score",
    "images.iou_above": "images.nms_iou",
    "annotate.join": None,
    "estimate.redraw_calibration": "estimate.resample_calibration",
    "sensitivity.levels": "sensitivity.geographies",
}
# Defaults of `estimate` before presets, as studies were written then.
_BEFORE_PRESETS = {
    "bootstrap": ["image", "ride"],
    "replicates": 100,
    "resample_calibration": False,
    "interval": "percentile",
}
CATALOG_ENTRIES = {
    "neighbourhoods_2020": "neighborhoods_2020",
    "embedded_neighbourhoods": "embedded_neighborhoods",
}
# Old names of stages to those that replace them, and to the folder of their output.
STAGES = {
    "known": ("match_index", ""),
    "cells": ("counts", "staging/cells"),
    "clustered": ("counts", "staging/clustered"),
    "hourly": ("counts", "staging/hourly"),
    "clusters": ("unit_counts", "staging/clusters"),
    "map": ("figures", "figures"),
}


def migrate_settings(root: str | Path) -> list[str]:
    """Rename outdated settings in study.yaml, and keep the original as study.yaml.bak.

    Parameters
    ----------
    root : str or Path
        Path or URL of a study; nothing happens if there is no study.yaml.

    Returns
    -------
    list of str
        One line per renamed or removed setting.

    Raises
    ------
    SettingsError
        If study.yaml is not valid YAML, or sets both names of a setting.
    """
    fs, base = study_files(str(root))
    if not fs.isfile(f"{base}/{SETTINGS_FILE}"):
        return []
    text, where = read_settings(root)
    content = load_yaml(text, where=where)
    lines = [*_rename_settings(content, where), *_rename_entries(content), *_add_preset(content)]
    if lines:
        study = study_at(root, Settings())  # for its paths; its own settings may still be invalid
        study.write_bytes(text.encode(), BACKUP_FILE)
        study.write_bytes(
            yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100).encode(), SETTINGS_FILE
        )
        lines.append(f"{where} was rewritten; the original is {study.path(BACKUP_FILE)}")
    return lines


def _rename_settings(content: dict[str, Any], where: str) -> list[str]:
    """Rename keys in `content`, and return a line for each."""
    lines = []
    for old, new in SETTINGS.items():
        section, name = old.split(".")
        values = content.get(section)
        if not isinstance(values, dict) or name not in values:
            continue
        if new is None:
            del values[name]
            lines.append(f"{old} was removed from the settings: it no longer exists")
            continue
        renamed = new.split(".")[1]
        if renamed in values:
            raise SettingsError(f"{where}: {old} is an earlier name of {new}; expected one of them; remove {old}")
        # In place, so that the order of the settings stays.
        content[section] = {renamed if key == name else key: value for key, value in values.items()}
        lines.append(f"{old} is now {new}")
    return lines


def _rename_entries(content: dict[str, Any]) -> list[str]:
    """Rename entries of the data catalog in `content`, and return a line for each."""
    layers = content.get("layers")
    lines: list[str] = []
    if not isinstance(layers, dict):
        return lines
    for layer, value in layers.items():
        entry = value.get("entry") if isinstance(value, dict) else value
        new = CATALOG_ENTRIES.get(entry) if isinstance(entry, str) else None
        if new is not None:
            layers[layer] = {**value, "entry": new} if isinstance(value, dict) else new
            lines.append(f"layers.{layer}: {entry} is now {new}")
    return lines


def _add_preset(content: dict[str, Any]) -> list[str]:
    """Give `content` the recommended preset if it was written before presets, and return a line for it."""
    estimate = content.get("estimate")
    if not isinstance(estimate, dict) or "preset" in estimate or not estimate.keys() >= _BEFORE_PRESETS.keys():
        return []
    kept = {name: value for name, value in estimate.items() if _BEFORE_PRESETS.get(name, value) != value}
    others = {name: value for name, value in estimate.items() if name not in _BEFORE_PRESETS}
    content["estimate"] = {"preset": "recommended", **kept, **others}
    own = f"; your own values of {', '.join(kept)} are kept" if kept else ""
    changed = (
        "estimate.preset is recommended now: intervals resample rides and the validation set, with 1,000 replicates, "
        "and hold for few positive images; those of the paper are in estimates/published"
    )
    return [changed + own]


def remove_renamed_stages(study: Study, current: Collection[str]) -> list[str]:
    """Remove records and output of stages that have other names now.

    Parameters
    ----------
    study : Study
        Study of an earlier version.
    current : collection of str
        Names of the stages of this version.

    Returns
    -------
    list of str
        One line per removed stage, with the stage that rebuilds its output.

    Raises
    ------
    StudyLockedError
        If a run holds the study.
    """
    renamed = [name for name in study.stages() if name in STAGES and name not in current]
    if not renamed:
        return []
    lines = []
    with study.lock() as held:
        for name in renamed:
            new, output = STAGES[name]
            for folder in filter(None, (output, f"manifest/{name}")):
                if held.exists(folder):
                    held.fs.rm(held.path(folder), recursive=True)
            lines.append(f"stage {name} is now {new}: its output was removed, and this run rebuilds it")
    return lines
