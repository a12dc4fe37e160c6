"""Estimate where police are deployed from dashcam images."""

from __future__ import annotations

from importlib.metadata import version
from os import PathLike, fspath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patrolscope.dashboards.notebook import StudyView

__all__ = ["__version__", "open_study"]
__version__ = version("patrolscope")


def open_study(path: str | PathLike[str]) -> StudyView:
    """Open a study for reading, from a path or any fsspec URL.

    Returns
    -------
    StudyView
        ``tables`` as Dask frames, ``results`` as pandas frames, and ``figures``, each by name.

    Raises
    ------
    SettingsError
        If the folder holds no study.yaml, or one that cannot be read.

    Examples
    --------
    >>> study = patrolscope.open_study("demo-study")  # doctest: +SKIP
    >>> study.tables["annotated"].groupby("hour")["has_prediction"].mean().compute()  # doctest: +SKIP
    >>> study.results["estimates/tables"]  # doctest: +SKIP
    """
    from patrolscope.dashboards.notebook import view

    return view(fspath(path))
