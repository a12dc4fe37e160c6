"""Commands for results: export, reproduce, compare, release, dashboard, map, dictionary."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from patrolscope.cli.app import app
from patrolscope.cli.errors import echo, handle_errors
from patrolscope.cli.execution import command_stages, execute
from patrolscope.cli.options import ClusterOption, StudyOption

PANEL = "Results"


@app.command(rich_help_panel=PANEL)
def export(
    study: StudyOption,
    out: Annotated[str, typer.Option(help="File that ends in .csv or .parquet, or folder for many files.")],
    published: Annotated[
        bool, typer.Option("--published", help="Wide file with the published names and order of columns.")
    ] = False,
    form: Annotated[str | None, typer.Option("--format", help="Format of files in a folder: parquet or csv.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that `export` did not write.")] = False,
    cluster: ClusterOption = "local",
) -> None:
    """Write every image with all columns of its area, tract, and felonies, to one wide file or a folder of them."""
    with handle_errors():
        from patrolscope.cli.progress import show_progress
        from patrolscope.cluster.connect import connection
        from patrolscope.pipeline.errors import SettingsError
        from patrolscope.pipeline.export.export import export_published
        from patrolscope.pipeline.study.store import open_study

        if not published:
            raise SettingsError("no export was chosen; expected --published, the wide file; add that option")
        opened = open_study(study)
        with show_progress() as progress, connection(cluster, progress.log) as client:
            written = export_published(opened, out, client=client, form=form, force=force, progress=progress)
    echo(written)


@app.command(rich_help_panel=PANEL)
def reproduce(
    results: Annotated[str, typer.Argument(help="Folder with released JSON files, or estimates/ of a study.")],
    out: Annotated[Path, typer.Option(help="Folder for tables and figures, new or of an earlier run.")],
) -> None:
    """Write the tables, figures, and map of the paper from released results, or from those of a study."""
    with handle_errors():
        from patrolscope.dashboards.report.reproduction import write_reproduction

        for line in write_reproduction(results, out):
            echo(line)


@app.command(rich_help_panel=PANEL)
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Folder of results, as for `reproduce`.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Folder of other results.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the comparison as CSV files.")] = None,
) -> None:
    """Compare two sets of results: rates, and differences and ratios with intervals."""
    with handle_errors():
        from patrolscope.analysis.estimators.compare import compare as compare_tables
        from patrolscope.analysis.estimators.compare import summarize
        from patrolscope.analysis.stages.compared_results import find_dependence, read_results
        from patrolscope.analysis.stages.reproduce import INTERVAL_PERCENT
        from patrolscope.dashboards.report.comparison import print_comparison
        from patrolscope.pipeline.study.output_folder import check_folder, fill_folder

        if out is not None:
            check_folder(out, known_by="comparison.csv")
        both = read_results(a), read_results(b)
        for name, results in zip("AB", both, strict=True):
            missing = f", without {', '.join(results.missing)}" if results.missing else ""
            echo(f"{name}: {results.folder}{missing}")
        if both[0].preset != both[1].preset:
            presets = [results.preset or "not stated" for results in both]
            echo(f"the presets differ: A {presets[0]}, B {presets[1]}; a difference can come from the method")
        dependence = find_dependence(*both)
        if dependence:
            echo(f"no intervals of differences and ratios: {dependence}")
        elif not (both[0].study and both[1].study):
            echo("results outside a study do not name their images; the intervals hold only if A and B share none")
        compared = compare_tables(
            both[0].table,
            both[1].table,
            (both[0].replicates, both[1].replicates),
            percent=INTERVAL_PERCENT,
            dependence=dependence,
        )
        summary = summarize(compared)
        print_comparison(compared, summary)
        if out is not None:
            frames = {"comparison.csv": compared, "summary.csv": summary}
            fill_folder(out, {name: frame.to_csv(index=False).encode() for name, frame in frames.items()})
            echo(f"{out}: {', '.join(frames)}")


@app.command(rich_help_panel=PANEL)
def release(
    study: StudyOption,
    out: Annotated[Path, typer.Option(help="Folder of the release, new or of an earlier one.")],
    minimum_images: Annotated[
        int, typer.Option(help="Number of images below which an area is withheld. 1 withholds none.")
    ] = 100,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder with other files.")] = False,
) -> None:
    """Write aggregates for publication that do not disclose areas with few images."""
    with handle_errors():
        from patrolscope.analysis.disclosure.release_folder import write_release
        from patrolscope.pipeline.study.store import open_study

        for line in write_release(open_study(study), out, minimum=minimum_images, force=force):
            echo(line)


@app.command(rich_help_panel=PANEL)
def dashboard(
    study: StudyOption,
    address: Annotated[
        str,
        typer.Option(help="Address to listen on. Any but a loopback address exposes the study to the network."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on. 0: any free one.")] = 5006,
    allow: Annotated[
        list[str] | None, typer.Option(help="host:port under which browsers may open the pages. Repeatable.")
    ] = None,
    published: Annotated[str, typer.Option(help="Folder of released results to show next to those of the study.")] = "",
    static: Annotated[Path | None, typer.Option(help="Folder for HTML files that need no server.")] = None,
    show: Annotated[bool, typer.Option("--show/--no-show", help="Open the browser.")] = False,
    cluster: ClusterOption = "local",
) -> None:
    """Explore a study in the browser: map, disparities, detector, image coverage, and run."""
    with handle_errors():
        from patrolscope.cluster.launch import dashboard_link

        stages, scheduler = tuple(command_stages("run", study)), dashboard_link(cluster)
        _check_origins(allow or ())
        if published:
            from patrolscope.analysis.stages.published import read_released

            read_released(published)
    site = _site("dashboard", study, cluster, published=published, stages=stages, scheduler=scheduler)
    with handle_errors():
        if static is not None:
            from patrolscope.dashboards.app.static import write_static

            for line in write_static(site, static):
                echo(line)
            return
        from patrolscope.dashboards.app.server import serve

        serve(site, address=address, port=port, origins=allow or (), show=show, echo=echo)


def _check_origins(origins: Sequence[str]) -> None:
    from patrolscope.pipeline.errors import SettingsError

    for origin in origins:
        if not re.fullmatch(r"([\w.-]+|\[[\da-fA-F:]+\])(:\d{1,5})?", origin):
            raise SettingsError(
                f"--allow {origin} is not an origin; expected host:port; copy it from the browser's address bar"
            )


@app.command(name="map", rich_help_panel=PANEL)
def draw_map(
    study: StudyOption,
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    measure: Annotated[str, typer.Option(help="images, detection-rate, or deployment-rate.")] = "deployment-rate",
    geography: Annotated[
        str, typer.Option(help="area, precinct, neighborhood, community_district, or borough.")
    ] = "neighborhood",
    region: Annotated[str, typer.Option(help="Region of the geography to show instead of the whole city.")] = "",
    view: Annotated[str, typer.Option(help="Query of a map page: the part of its address after the ?.")] = "",
    width: Annotated[int, typer.Option(min=800, help="Width of the map, in pixels.")] = 12_000,
    cluster: ClusterOption = "local",
) -> None:
    """Draw a poster of the city or a region, with its legend."""
    with handle_errors():
        _check_png(out)
    site = _site("map", study, cluster)
    with handle_errors():
        from patrolscope.cli.progress import show_amount
        from patrolscope.dashboards.app.poster import poster_view, write_poster
        from patrolscope.pipeline.study.output_folder import replace_file

        poster = poster_view(site, measure=measure, geography=geography, region=region, query=view, width=width)
        with show_amount("rows of pixels") as update:
            content = write_poster(site, poster, update)
        replace_file(out, content)
        echo(f"{out}: {poster.window.columns:,} x {poster.window.rows:,} pixels and the legend, {len(content):,} bytes")


def _check_png(out: Path) -> None:
    from patrolscope.pipeline.errors import SettingsError

    if out.suffix.lower() != ".png" or out.is_dir():
        raise SettingsError(f"--out {out} is not a PNG file; expected a name such as city.png")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"--out {out}: cannot create its folder ({error.strerror}); choose a different folder"
        ) from error


def _site(command: str, root: str, cluster: str, **options: Any) -> Any:
    """Return the study as dashboards use it, after packing its points if needed."""
    with handle_errors():
        stages = command_stages(command, root)
    opened = execute(root, stages, cluster)
    with handle_errors():
        from patrolscope.dashboards.app.site import Site

        return Site.load(opened, **options)


@app.command(rich_help_panel=PANEL)
def dictionary(
    table: Annotated[str | None, typer.Argument(help="Name of one table. Default: all tables.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Output as JSON.")] = False,
) -> None:
    """Show meaning, type, unit, and bounds of every column of every table."""
    from patrolscope.pipeline.contract.tables import TABLES
    from patrolscope.pipeline.errors import SettingsError

    with handle_errors():
        selected = [declared for declared in TABLES if table in (None, declared.name)]
        if not selected:
            names = ", ".join(declared.name for declared in TABLES)
            raise SettingsError(f"no table {table!r}; expected one of {names}")
        if as_json:
            echo(json.dumps([declared.describe() for declared in selected], indent=1))
            return
        _print_dictionary(selected)


def _print_dictionary(tables: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table as Grid

    console = Console()
    for table in tables:
        grid = Grid(title=f"{table.name}: {table.row} (key: {', '.join(table.key) or 'none'})", title_justify="left")
        # The longest published names have more than 100 characters and are folded; shorter ones fit on a line.
        grid.add_column("column", overflow="fold", width=min(30, max(map(len, table.names))))
        grid.add_column("type", overflow="fold", no_wrap=True)
        for heading in ("meaning", "unit", "values", "published as"):
            grid.add_column(heading, overflow="fold")
        for column in table.describe()["columns"]:
            grid.add_row(*(column[key] for key in ("name", "type", "meaning", "unit", "values", "published_name")))
        console.print(grid)
