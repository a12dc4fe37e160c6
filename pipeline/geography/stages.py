"""Stage of the reference layers: writes the tables and polygon indexes of areas/."""

from __future__ import annotations

from patrolscope.pipeline.contract.tables import AREAS, BOUNDARIES, CENSUS, FELONIES, REGIONS, STATIONS, TRACTS
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.geography import catalog
from patrolscope.pipeline.geography.census import build_census, build_regions, build_tracts
from patrolscope.pipeline.geography.codes import check_population
from patrolscope.pipeline.geography.extent import check_extent, count_outside
from patrolscope.pipeline.geography.layers import (
    AREA_INDEX_FILE,
    AREAS_FILE,
    BOUNDARIES_FILE,
    CENSUS_FILE,
    FELONIES_FILE,
    PRECINCT_INDEX_FILE,
    REGIONS_FILE,
    STATIONS_FILE,
    TRACTS_FILE,
    build_areas,
    build_boundaries,
    build_index,
    locate_layer,
    read_area_tables,
    read_layer,
    read_tracts,
    report_faults,
)
from patrolscope.pipeline.geography.readers.police import read_felonies
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Output, Study


def plan_layers(study: Study) -> list[Shard]:
    """Plan a single shard, which depends on the content of all layer files."""
    files = {}
    for name, layer in study.settings.layers:
        if layer is not None:
            entry, path = locate_layer(study, layer)
            files[name] = (layer.entry, catalog.layer_fingerprint(entry, path))
    settings = study.settings
    work = {
        "files": files,
        "city": settings.city.model_dump(mode="json", include={"time_zone", "crs", "bounds"}),
        "zone_share": settings.estimate.zone_share,
        "missing_population": settings.estimate.missing_population,
        "felony_category": settings.annotate.felony_category,
        "tables": [table.fingerprint() for table in (AREAS, CENSUS, TRACTS, REGIONS, BOUNDARIES, STATIONS, FELONIES)],
    }
    return [Shard("layers", work)]


def process_layers(study: Study, _shard: Shard) -> Output:
    """Write the tables and the polygon indexes."""
    settings = study.settings
    layers, crs = settings.layers, settings.city.crs
    tables = read_area_tables(study)
    ledger = Ledger("felonies", 0)
    check_population(tables.boundaries["area"], tables.population, settings.estimate.missing_population, ledger)
    if tables.respelled:
        ledger.note("codes of areas whose leading zeros differ between the layers: taken as the same", tables.respelled)
    areas = build_areas(study, tables)
    tracts = build_tracts(read_tracts(study), read_layer(study, layers.tract_counts), crs)
    census = build_census(
        areas,
        population=tables.population,
        income=tables.income,
        attributes=tables.attributes,
        precincts=read_layer(study, layers.precincts),
        crs=crs,
    )
    boundaries = build_boundaries(study, tracts)
    stations = read_layer(study, layers.stations)
    stations = STATIONS.conform(STATIONS.empty() if stations is None else stations)
    felonies = FELONIES.empty()
    if layers.complaints is not None:
        entry, path = locate_layer(study, layers.complaints)
        felonies = read_felonies(
            path,
            entry,
            category=settings.annotate.felony_category,
            time_zone=settings.city.time_zone,
            ledger=ledger,
        )
        check_extent(felonies, layers.complaints.entry, settings.city.bounds)
    for what, layer in (("areas", areas), ("boundaries", boundaries), ("stations", stations), ("felonies", felonies)):
        if outside := count_outside(layer, settings.city.bounds):
            ledger.note(f"{what} outside city.bounds", outside)
    files = [
        study.write(AREAS, areas, AREAS_FILE),
        study.write(CENSUS, census, CENSUS_FILE),
        study.write(TRACTS, tracts, TRACTS_FILE),
        study.write(REGIONS, build_regions(areas, census, tracts), REGIONS_FILE),
        study.write(BOUNDARIES, boundaries, BOUNDARIES_FILE),
        study.write(STATIONS, stations.sort_values("station_id", ignore_index=True), STATIONS_FILE),
        study.write(FELONIES, felonies, FELONIES_FILE),
    ]
    precincts = boundaries[boundaries["geography"] == "precinct"]
    for what, layer, key, file in (
        ("areas", areas, "area", AREA_INDEX_FILE),
        ("precincts", precincts, "region", PRECINCT_INDEX_FILE),
    ):
        if len(layer):
            index = build_index(layer, key)
            report_faults(what, layer, index, crs, ledger)
            files.append(study.write_bytes(index.to_bytes(), file))
    facts = {"areas": len(areas), "persons": float(areas["persons"].sum()), "stations": len(stations)}
    return Output(
        files=tuple(files),
        rows_in=ledger.rows_in,
        rows_out=len(felonies),
        ledger=(ledger.close(len(felonies)),),
        facts=facts,
    )


LAYERS = Stage("layers", unit="files", folders=("areas",), plan=plan_layers, process=process_layers, version=5)
