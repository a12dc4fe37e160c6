"""Table of neighborhoods on the disparities page: its rows, and its interactive and static forms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import panel as pn
from markupsafe import Markup

from patrolscope.analysis.stages.result_tables import from_the_highest
from patrolscope.analysis.stages.results import FEW_IMAGES, UNKNOWN, Results
from patrolscope.dashboards.app.site import Site

DECIMALS = {"deployment_rate": 3, "images": 0}  # of columns; others have 3
TABLE = {
    "group": "Neighborhood",
    "borough": "Borough",
    "estimate": "Relative rate",
    "rank": "Rank set",
    "lower": "Lower",
    "upper": "Upper",
    "deployment_rate": "Deployment rate, %",
    "images": "Images",
    "note": "Note",
    "published": "Published",
}
TEXT_COLUMNS = ("group", "borough", "rank", "note")


def neighborhood_table(site: Site, results: Results, published: pd.DataFrame | None) -> pd.DataFrame:
    """List the neighborhoods by descending relative rate, then those with few images.

    Parameters
    ----------
    site : Site
        Study with its areas.
    results : Results
        Estimates.
    published : DataFrame, optional
        Rows of `published_table`.

    Returns
    -------
    DataFrame
        Columns of `TABLE`, few, none_positive.
    """
    rows = from_the_highest(results.groups("neighborhood"))
    rate = results.groups("neighborhood", "weighted_mean").set_index("key")["estimate"]
    rows = rows.assign(deployment_rate=100 * rows["key"].map(rate), few=rows["images"] < FEW_IMAGES)
    few, none = "few images", "none positive"
    notes = {(True, True): f"{few}, {none}", (True, False): few, (False, True): none, (False, False): ""}
    rows["note"] = [
        notes[few, none] + (f": the rate is below {upper:.3f}" if bound == "below" else "")
        for few, none, bound, upper in zip(
            rows["few"], rows["none_positive"], rows["bound"], rows["upper"], strict=True
        )
    ]
    # Without a positive image, at most the upper end is known, which the note has.
    unknown = (rows["bound"] == "below") | (rows["none_positive"] & rows["lower"].isna())
    rows.loc[unknown, ["estimate", "lower", "deployment_rate"]] = np.nan
    if results.places is not None:
        ends = zip(rows["rank_first"], rows["rank_last"], strict=True)
        rows["rank"] = ["" if np.isnan(first) else f"{first:.0f} to {last:.0f}" for first, last in ends]
    rows = rows.sort_values("few", kind="stable")
    boroughs = site.points.areas.dropna(subset=["neighborhood"]).groupby("neighborhood")["borough"].first()
    rows = rows.assign(borough=rows["key"].map(boroughs))
    if published is not None:
        released = published[
            (published["analysis"] == "neighborhood") & (published["quantity"] == "relative_to_average")
        ]
        rows = rows.assign(published=rows["key"].map(released.set_index("key")["estimate"]))
    columns = [name for name in TABLE if name in rows]
    return rows[[*columns, "few", "none_positive"]].reset_index(drop=True)


def matching_names(table: pd.DataFrame, text: str, most: int = 12) -> list[str]:
    """Return up to `most` neighborhoods of the ranking whose names contain a text.

    Parameters
    ----------
    table : DataFrame
        From `neighborhood_table`.
    text : str
        Text to search for, in any case.
    most : int, default 12
        Largest number of names to return.
    """
    if not text.strip():
        return []
    matches = table["group"].str.contains(text.strip(), case=False, regex=False)
    return table.loc[matches & ~table["few"] & ~table["none_positive"], "group"].head(most).to_list()


def displayed_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the visible columns under their display names."""
    shown = table.drop(columns=["few", "none_positive"])
    # Tabulator shows None as an empty cell, and NaN as text.
    return shown.astype(object).where(shown.notna(), None).rename(columns=TABLE)


def tabulator(table: pd.DataFrame) -> pn.widgets.Tabulator:
    """Return the interactive table. Every cell is plain text."""
    shown = displayed_table(table)
    texts = [TABLE[name] for name in TEXT_COLUMNS]
    decimals = {TABLE[name]: digits for name, digits in DECIMALS.items()}
    money = {"type": "money", "thousand": ",", "decimal": ".", "symbol": ""}
    return pn.widgets.Tabulator(
        shown,
        show_index=False,
        disabled=True,
        pagination="local",
        page_size=12,
        layout="fit_data_stretch",
        selectable="checkbox",
        sizing_mode="stretch_width",
        header_filters={name: {"type": "input", "func": "like", "placeholder": "find"} for name in texts[:2]},
        formatters={
            name: {"type": "plaintext"} if name in texts else {**money, "precision": decimals.get(name, 3)}
            for name in TABLE.values()
        },
        text_align={name: "left" if name in texts else "right" for name in TABLE.values()},
        widths={TABLE["note"]: 190},
        theme="simple",
        configuration={"headerFilterLiveFilterDelay": 150},
        margin=(8, 0),
    )


def static_table(table: pd.DataFrame) -> Markup:
    """Render the table as HTML that the script of a static page searches and sorts."""
    columns = [name for name in TABLE if name in table]
    texts = set(TEXT_COLUMNS)
    head = Markup("").join(
        Markup('<th scope="col"{}><button type="button">{}</button></th>').format(
            Markup(' class="text"') if name in texts else "", TABLE[name]
        )
        for name in columns
    )
    body = []
    for row in table[columns].to_dict("records"):
        cells = []
        for name in columns:
            value = row[name]
            missing = pd.isna(value)
            if name in texts:
                cells.append(Markup('<td class="text">{}</td>').format("" if missing else value))
            else:
                shown = UNKNOWN if missing else f"{value:,.{DECIMALS.get(name, 3)}f}"
                cells.append(Markup('<td data-value="{}">{}</td>').format("" if missing else value, shown))
        body.append(Markup("<tr>{}</tr>").format(Markup("").join(cells)))
    return Markup(
        '<label for="find">Find a neighborhood or borough</label><br><input type="search" id="find">'
        '<div class="scroll" tabindex="0" role="region" aria-label="Neighborhoods">'
        '<table class="find" data-box="find" aria-label="Neighborhoods"><thead><tr>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>"
    ).format(head, Markup("").join(body))
