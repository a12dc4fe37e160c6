"""Readers of the public data sets, by kind of source.

A reader takes a file and its data catalog entry, which maps our column names to those of the file. It returns codes as
text, and rejects content that it does not recognize. `police.read_felonies` is not in `READERS`, because it also needs
settings of the study.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.geography.catalog import CatalogEntry
from patrolscope.pipeline.geography.readers import boundaries, census, police

READERS: dict[str, Callable[[Path, CatalogEntry], pd.DataFrame]] = {
    reader.__name__: reader
    for reader in (
        boundaries.read_areas,
        boundaries.read_tracts,
        boundaries.read_tract_places,
        boundaries.read_regions,
        boundaries.read_districts,
        census.read_population,
        census.read_income,
        census.read_area_attributes,
        census.read_zoning,
        census.read_tract_counts,
        police.read_stations,
        police.read_levels,
    )
}


def read_layer(entry: CatalogEntry, path: Path, reader: str | None = None) -> pd.DataFrame:
    """Read a data set with the reader of its catalog entry.

    Parameters
    ----------
    entry : CatalogEntry
        Entry of the data set.
    path : Path
        File to read.
    reader : str, optional
        Name of a reader to use instead, such as "read_areas" to use tracts as the areas of a study.

    Raises
    ------
    SourceError
        If the file does not have the form that the reader expects; the message names the file and the problem.
    """
    name = reader or entry.reader
    if name not in READERS:
        raise SourceError(f"{entry.title}: {name!r} is not a reader of layers; expected one of {', '.join(READERS)}")
    return READERS[name](path, entry)
