"""Results of a study, read back from its files in the released form."""

import numpy as np
import pandas as pd

from patrolscope.analysis.estimators.compare import compare
from patrolscope.analysis.stages.compared_results import find_dependence, read_results
from patrolscope.dashboards.report.reproduction import write_reproduction


def test_a_studys_own_results_give_the_numbers_of_its_tables(finished, tmp_path):
    list(write_reproduction(finished.path("estimates"), tmp_path / "out"))
    ours = pd.read_csv(tmp_path / "out" / "tables.csv", keep_default_na=False)
    tables = pd.read_csv(finished.path("estimates/tables.csv"), keep_default_na=False)
    key = ["analysis", "group", "quantity"]
    assert ours[key].to_numpy().tolist() == tables[key].to_numpy().tolist()
    numbers = ["estimate", "lower", "upper", "sd", "replicates"]
    found, expected = (one[numbers].replace("", np.nan).astype(float) for one in (ours, tables))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    page = (tmp_path / "out" / "tables.md").read_text()
    assert f"**Simulated: {finished.settings.simulated}**" in page


def test_a_study_agrees_with_itself(finished):
    one = read_results(finished.path("estimates"))
    dependence = find_dependence(one, one)
    assert dependence == "both are results of one study, so they share their images"
    compared = compare(one.table, one.table, (one.replicates, one.replicates), percent=95, dependence=dependence)
    assert (compared["found_in"] == "both").all()
    assert (compared["no_interval"] == dependence).all()
