"""Simulated studies: inputs have the format of real ones, and the stated truth holds."""

import json
import re
from datetime import date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
import shapely
from sklearn.metrics import average_precision_score, roc_auc_score

from patrolscope.analysis.estimators.calibration import two_class
from patrolscope.analysis.stages.calibrate import read_labeled_sets
from patrolscope.pipeline.errors import SettingsError, SourceError
from patrolscope.pipeline.geography.catalog import load_catalog
from patrolscope.pipeline.geography.layers import build_areas, read_area_tables, read_layer
from patrolscope.pipeline.geography.polygon_index import PolygonIndex
from patrolscope.pipeline.geography.readers.police import read_felonies
from patrolscope.pipeline.simulation import public_data as public
from patrolscope.pipeline.simulation.detector import Detector, draw_boxes, fit_detector
from patrolscope.pipeline.simulation.files import METADATA_FOLDER
from patrolscope.pipeline.simulation.road_network import M_PER_DEGREE, Streets
from patrolscope.pipeline.simulation.simulate import simulate
from patrolscope.pipeline.simulation.stages import SIMULATE_CITY, SIMULATE_DAYS
from patrolscope.pipeline.simulation.truth import MEAN_RATE, rates_of_areas
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import open_study
from tests.small_city import areas, content, day_records, labels, rows, simulated, small_study

NEW_YORK = ZoneInfo("America/New_York")
THRESHOLD = 0.770508
# The published validation set (paper_results, "How the numbers are made").
PUBLISHED = Detector(images=20_000, positive=264, true_positive=205, missed=42, threshold=THRESHOLD)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return simulated(tmp_path_factory.mktemp("city"))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return simulated(tmp_path_factory.mktemp("large"), images=150_000, days=2, seed=9)


def truth_of(study):
    return json.loads(study.read_bytes("truth/truth.json"))


def fail_to_start():
    pytest.fail("a cluster was started")


# Metadata.


def test_studies_have_the_requested_images_and_a_few_duplicate_rows(large):
    frame = rows(large)
    assert truth_of(large)["repeated_rows"] == 8
    assert len(frame) == 150_008
    assert frame.duplicated(["image_ref", "timestamp", "lat", "lng", "split", "file"]).sum() == 8
    assert frame["image_ref"].nunique() == 150_000
    assert frame.drop_duplicates("image_ref").duplicated(["lat", "lng", "timestamp"]).sum() == 0


@pytest.mark.parametrize("images", [1, 2, 61, 399])
def test_very_small_studies_have_the_requested_images(tmp_path, images):
    frame = rows(simulated(tmp_path, images=images, days=5))
    assert len(frame) == images + 1
    assert frame["image_ref"].nunique() == images


def test_every_image_is_in_the_file_of_its_local_day(study):
    frame = rows(study)
    midnights = [datetime(2020, 10, 31, tzinfo=NEW_YORK), datetime(2020, 11, 1, tzinfo=NEW_YORK)]
    midnights.append(datetime(2020, 11, 2, tzinfo=NEW_YORK))
    names = [f"{round(midnight.timestamp() * 1000)}.csv" for midnight in midnights]
    assert sorted(frame["file"].unique()) == names
    for name, midnight in zip(names, midnights, strict=True):
        assert set(frame.loc[frame["file"] == name, "local"].dt.date) == {midnight.date()}


def test_rides_cover_all_25_hours_of_the_day_on_which_daylight_saving_time_ends(tmp_path):
    frame = rows(simulated(tmp_path, images=100_000, days=1, first_day="2020-11-01"))
    hours_since_midnight = (frame["timestamp"] - int(frame["file"].iloc[0].removesuffix(".csv"))) // 3_600_000
    assert set(hours_since_midnight) == set(range(25))


def test_more_rides_start_by_day_than_at_night(large):
    by_hour = rows(large)["local"].dt.hour.value_counts().sort_index()
    assert by_hour.loc[9:20].mean() > 3 * by_hour.loc[1:4].mean()


def test_metadata_files_have_the_published_format(study):
    for path in Path(study.path(METADATA_FOLDER)).iterdir():
        header, *lines = path.read_text().splitlines()
        assert header == "image_ref,timestamp,lat,lng,split"
        form = re.compile(r"ride/[0-9a-f]{32}/[^/,]+\.jpg,\d{13},40(\.\d{1,6})?,-7[34](\.\d{1,6})?,[01]")
        assert [line for line in lines if not form.fullmatch(line)] == []


def test_images_of_a_ride_are_consecutive_and_a_few_seconds_apart(study):
    frame = rows(study).drop_duplicates("image_ref")
    frame["ride"] = frame["image_ref"].str.slice(5, 37)
    assert (frame["ride"] != frame["ride"].shift()).sum() == frame["ride"].nunique()
    assert frame.groupby("ride")["file"].nunique().max() == 1
    apart_s = frame.groupby("ride")["timestamp"].diff().dropna() / 1000
    assert apart_s.between(2.3, 8.5).all()
    assert 150 < frame["ride"].value_counts().mean() < 250


def test_images_of_a_ride_follow_each_other_at_street_speed(study):
    frame = rows(study).drop_duplicates("image_ref")
    ride = frame["image_ref"].str.slice(5, 37)
    north_m = frame.groupby(ride)["lat"].diff() * M_PER_DEGREE
    east_m = frame.groupby(ride)["lng"].diff() * M_PER_DEGREE * np.cos(np.radians(frame["lat"]))
    speed = np.hypot(north_m, east_m) / (frame.groupby(ride)["timestamp"].diff() / 1000)
    assert 3 < speed.median() < 8  # meters per second
    assert speed.max() < 50


def test_images_lie_within_meters_of_a_boundary(study):
    frame = rows(study)
    edges = shapely.union_all(areas().boundary.to_numpy())
    scale = np.array([np.cos(np.radians(40.715)), 1.0]) * M_PER_DEGREE
    points = shapely.points(frame[["lng", "lat"]].to_numpy() * scale)
    distance_m = shapely.distance(points, shapely.transform(edges, lambda degrees: degrees * scale))
    assert distance_m.max() < 12
    assert distance_m.mean() > 1


def test_rides_start_more_often_in_the_center():
    streets = Streets.build(areas().geometry.to_numpy())
    locations = streets.positions(*streets.draw_locations(50_000, np.random.default_rng(2)))
    distance = np.hypot((locations[:, 0] + 73.985) * 0.76, locations[:, 1] - 40.715)
    inner, outer = (distance < 0.006).sum(), ((distance > 0.008) & (distance < 0.010)).sum()  # equal areas
    assert inner > 1.5 * outer


def test_a_tenth_of_the_images_are_in_the_development_split(large):
    share = (rows(large)["split"] == 0).mean()
    assert share == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / 150_000))


# Labels.


def test_label_files_have_the_format_and_order_of_the_detector(study):
    boxes = labels(study)
    assert boxes.groupby("stem")["score"].apply(lambda scores: scores.is_monotonic_increasing).all()
    assert boxes["kind"].isin([0, 1]).all()
    assert boxes["kind"].value_counts()[1] > boxes["kind"].value_counts()[0] > 0
    assert ((boxes["x"] - boxes["width"] / 2).min() >= 0) & ((boxes["x"] + boxes["width"] / 2).max() <= 1)
    assert ((boxes["y"] - boxes["height"] / 2).min() >= 0) & ((boxes["y"] + boxes["height"] / 2).max() <= 1)
    for path in Path(study.path("source/labels")).rglob("*.txt"):
        for line in path.read_text().splitlines():
            assert line == "{} {:g} {:g} {:g} {:g} {:g}".format(line.split()[0], *map(float, line.split()[1:]))


def test_every_label_file_belongs_to_an_image_of_its_day(study):
    boxes, frame = labels(study), rows(study)
    day = frame.drop_duplicates("stem").set_index("stem")["local"].dt.strftime("%Y-%m-%d")
    assert frame["stem"].nunique() == frame["image_ref"].nunique()
    assert (day.loc[boxes["stem"]].to_numpy() == boxes["day"]).all()


def test_exactly_the_positive_images_have_a_vehicle_box_above_the_threshold(large):
    boxes = labels(large)
    best = boxes[boxes["kind"] == 1].groupby("stem")["score"].max()
    facts = [record.facts for record in day_records(large).values()]
    assert (best > THRESHOLD).sum() == sum(fact["positive"] for fact in facts) > 1000
    assert (best[best > THRESHOLD] > THRESHOLD + 0.001).all()
    assert boxes["stem"].nunique() == sum(fact["label_files"] for fact in facts)


def test_positive_images_are_as_frequent_as_the_rate_of_their_neighborhood_implies(large):
    truth, frame = truth_of(large), rows(large).drop_duplicates("image_ref")
    boxes = labels(large)
    positive = set(boxes.loc[(boxes["kind"] == 1) & (boxes["score"] > THRESHOLD), "stem"])
    city = areas()
    area = PolygonIndex.build(city["geoid"].to_numpy(), city.geometry.to_numpy()).locate(frame["lng"], frame["lat"])
    rate = pd.read_csv(large.path("truth/neighborhoods.csv")).set_index("neighborhood")["deployment_rate"]
    probability = (rate - truth["p_negative"]) / (truth["p_positive"] - truth["p_negative"])
    row = pd.Series(area // 5, index=frame.index)[area >= 0].map("Row {}".format)
    found = frame["stem"].isin(positive).groupby(row).agg(["sum", "size"])
    expected = found["size"] * probability
    z = (found["sum"] - expected) / np.sqrt(expected * (1 - probability))
    assert len(z) == 5
    assert z.abs().max() < 3.5
    assert rate.max() > 5 * rate.min()


def test_images_show_police_as_often_as_the_rates_imply(large):
    shows = sum(record.facts["shows_police"] for record in day_records(large).values())
    expected = 150_000 * truth_of(large)["mean_level"]
    # The mean is over the validation set, a sample; 10% is four times its standard deviation.
    assert shows == pytest.approx(expected, rel=0.1)


# Truth and labeled sets.


def test_calibrating_on_the_validation_set_gives_the_true_probabilities_exactly(study):
    truth = truth_of(study)
    frame = read_labeled_sets(study)["validation"]
    found = two_class(frame["ground_truth"], frame["score"], THRESHOLD)
    assert len(frame) == 2_000
    assert (found.ppv, found.false_omission_rate) == (truth["p_positive"], truth["p_negative"])


def test_the_published_validation_set_follows_from_precision_recall_and_mean_rate():
    rate = np.full(20_000, 247 / 20_000)
    assert (
        fit_detector(rate, lowest=0.0022, highest=0.042, precision=0.777, recall=0.83, threshold=THRESHOLD) == PUBLISHED
    )


def test_the_rates_of_areas_are_those_of_their_neighborhoods(study):
    by_area = pd.read_csv(study.path("truth/areas.csv"), dtype={"area": "str"})
    rate = pd.read_csv(study.path("truth/neighborhoods.csv")).set_index("neighborhood")["deployment_rate"]
    assert len(by_area) == 25
    assert (by_area["deployment_rate"] == by_area["neighborhood"].map(rate)).all()


def test_given_rates_are_used_and_missing_neighborhoods_get_their_mean(tmp_path):
    given = {"Row 0": 0.01, "Row 1": 0.004, "Row 4": 0.016, "Row 9": 0.01}
    study = simulated(tmp_path, rates=given, images=100)
    rate = pd.read_csv(study.path("truth/neighborhoods.csv")).set_index("neighborhood")["deployment_rate"]
    assert rate.to_dict() == {"Row 0": 0.01, "Row 1": 0.004, "Row 2": 0.01, "Row 3": 0.01, "Row 4": 0.016}
    assert truth_of(study)["level_elsewhere"] == 0.01


def test_simulated_rates_have_the_published_mean_over_images_for_any_seed():
    city = pd.DataFrame({"neighborhood": [f"Quarter {number // 4}" for number in range(400)]})
    points = np.column_stack([np.arange(400) % 20, np.arange(400) // 20]) * 0.01 + np.array([-74.0, 40.7])
    images = np.repeat(np.arange(400), np.arange(400) // 40 + 1).astype(np.int32)
    for seed in range(5):
        rate, elsewhere = rates_of_areas(city, points, images, None, seed)
        assert rate[images].mean() == pytest.approx(MEAN_RATE)
        assert elsewhere == MEAN_RATE
        assert rate.max() / rate.min() == pytest.approx(19, rel=0.1)


def test_the_surface_of_rates_is_smooth():
    across, up = np.meshgrid(np.linspace(-74.0, -73.9, 40), np.linspace(40.7, 40.8, 40))
    surface = public.smooth_surface(np.column_stack([across.ravel(), up.ravel()]), np.random.default_rng(1))
    surface = surface.reshape(40, 40)
    assert np.abs(np.diff(surface, axis=0)).mean() < 0.5 * surface.std()
    assert 0.5 < surface.std() < 1.5


def test_the_detector_is_about_as_good_as_the_published_one():
    generator = np.random.default_rng(3)
    positive, shows = PUBLISHED.detect(np.full(400_000, 247 / 20_000), generator)
    score = np.nan_to_num(PUBLISHED.scores(positive, shows, generator))
    assert (score > THRESHOLD).tolist() == positive.tolist()
    assert (shows & positive).sum() / shows.sum() == pytest.approx(0.83, abs=0.02)
    assert shows[positive].mean() == pytest.approx(0.777, abs=0.02)
    assert roc_auc_score(shows, score) == pytest.approx(0.98, abs=0.01)
    assert average_precision_score(shows, score) == pytest.approx(0.82, abs=0.02)


def test_scores_stay_on_their_side_of_the_threshold_as_text():
    generator = np.random.default_rng(4)
    positive, shows = PUBLISHED.detect(np.full(400_000, 0.05), generator)
    boxes = draw_boxes(PUBLISHED.scores(positive, shows, generator), generator)
    images, texts = boxes.texts()
    best = {
        image: max((float(line.split()[5]) for line in text.decode().splitlines() if line[0] == "1"), default=0)
        for image, text in zip(images.tolist(), texts, strict=True)
    }
    assert {image for image, score in best.items() if score > THRESHOLD} == set(np.flatnonzero(positive).tolist())


# Public data.


def test_simulated_public_data_are_read_like_the_official_files(study):
    city = build_areas(study, read_area_tables(study))
    groups = city[["persons_white", "persons_black", "persons_hispanic", "persons_asian"]]
    assert (city["persons"] > 0).all()
    assert (groups.sum(axis=1) <= city["persons"]).all()
    assert groups.sum().min() > 0.03 * city["persons"].sum()
    assert city["income_usd"].max() == 250_000
    assert city["income_usd"].min() == 2_500
    stations = read_layer(study, study.settings.layers.stations)
    assert len(stations) == 1


@pytest.mark.shared
def test_the_population_table_has_the_columns_of_the_authors_file(study, shared_data):
    header = (shared_data / "census" / "nyc_cbgs_ethnicity_table.csv").read_text().splitlines()[0]
    assert Path(study.path("source/population.csv")).read_text().splitlines()[0] == header


@pytest.mark.shared
def test_the_income_table_has_the_headings_of_the_official_file(study, shared_data):
    official = (shared_data / "census" / "ACSDT5Y2020.B19013-Data.csv").read_text().splitlines()[:2]
    assert Path(study.path("source/income.csv")).read_text().splitlines()[:2] == official


@pytest.mark.shared
def test_the_complaints_have_the_header_of_the_official_file(study, shared_data):
    official = (shared_data / "nypd" / "NYPD_Complaint_Data_Historic_sample_35col.csv").read_bytes().splitlines()[0]
    assert Path(study.path("source/complaints.csv")).read_bytes().splitlines()[0] == official


def test_felonies_surround_every_image_and_some_rows_have_the_official_faults(study):
    ledger = Ledger("felonies", 0)
    felonies = read_felonies(
        Path(study.path("source/complaints.csv")),
        load_catalog()["nypd_complaints_historic"],
        category="FELONY",
        time_zone="America/New_York",
        ledger=ledger,
    )
    local = felonies["started_at_utc"].dt.tz_convert("America/New_York")
    assert set(local.dt.date) == {date(2020, 10, 30) + timedelta(days=ahead) for ahead in range(5)}
    assert ledger.rows_in == 5 * 1130
    assert ledger.dropped["no position"] > 0
    assert felonies["felony_id"].is_unique
    assert 0.25 < len(felonies) / ledger.rows_in < 0.40


def test_some_complaints_have_hour_24_and_an_impossible_year(study):
    complaints = pd.read_csv(
        study.path("source/complaints.csv"), dtype="str", keep_default_na=False, encoding="utf-8-sig"
    )
    assert (complaints["CMPLNT_FR_TM"] == "24:00:00").any()
    assert complaints["CMPLNT_FR_DT"].str.endswith("/1020").any()
    assert (complaints["Lat_Lon"] == "(0.0, 0.0)").any()


def test_the_largest_area_has_no_residents():
    shapes = areas().rename(columns={"geoid": "area"})
    shapes.loc[3, "geometry"] = shapely.box(-73.9, 40.7, -73.8, 40.8)
    persons = public.population(shapes, seed=3)["Estimate_Total"]
    assert np.flatnonzero(persons == 0).tolist() == [3]
    income = public.income(shapes, persons.to_numpy(), seed=3)
    assert income["B19013_001E"].iloc[1 + 3] == "-"


def test_areas_differ_in_their_residents():
    shapes = areas().rename(columns={"geoid": "area"})
    residents = public.population(shapes, seed=3)
    share = residents["Estimate_Total_Hispanic_or_Latino"] / residents["Estimate_Total"].clip(lower=1)
    assert share.std() > 0.05
    totals = residents[["Estimate_Total_Not_Hispanic_or_Latino", "Estimate_Total_Hispanic_or_Latino"]].sum(axis=1)
    assert (totals == residents["Estimate_Total"]).all()


# Reruns and errors.


def test_an_interrupted_day_is_rebuilt_completely(study, tmp_path):
    before = content(study)
    day = SIMULATE_DAYS.plan(study)[1]
    labels_of_day = Path(study.path("source/labels", day.name))
    first, *others = sorted(labels_of_day.iterdir())
    first.write_bytes(b"1 0.")
    others[0].unlink()
    (labels_of_day / "left.txt").write_bytes(b"")
    SIMULATE_DAYS.finish(study, day)
    assert content(study) == before


def test_days_can_be_simulated_in_any_order(study, tmp_path):
    other = small_study(tmp_path)
    SIMULATE_CITY.finish(other, SIMULATE_CITY.plan(other)[0])
    for day in reversed(SIMULATE_DAYS.plan(other)):
        SIMULATE_DAYS.finish(other, day)
    assert content(other) == content(study)


def test_a_different_seed_gives_a_different_study(study, tmp_path):
    other = content(simulated(tmp_path, seed=8))
    same = [name for name, text in content(study).items() if other.get(name) == text]
    assert same == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": 0}, "images 0"),
        ({"days": 0}, "days 0"),
        ({"days": -3}, "days -3"),
        ({"seed": -1}, "seed -1"),
        ({"precision": 1.2}, "precision 1.2"),
        ({"recall": 0.0}, "recall 0.0"),
        ({"validation_images": 0}, "validation_images 0"),
        ({"city": "london"}, "city 'london'"),
    ],
)
def test_errors_name_the_invalid_argument(tmp_path, wrong, message):
    with pytest.raises(SettingsError, match=re.escape(message)):
        simulate(str(tmp_path / "out"), **{"images": 10, "client": fail_to_start, **wrong})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,level\nHarlem,0.01\n", "has no column nta"),
        ("nta,weighted_mean\nHarlem,1.5\n", "the rate of 'Harlem' is 1.5"),
        ("nta,weighted_mean\nHarlem,0\n", "the rate of 'Harlem' is 0"),
        ("nta,weighted_mean\nHarlem,much\n", "rates.csv"),
    ],
)
def test_unreadable_rates_are_rejected(tmp_path, text, message):
    (tmp_path / "rates.csv").write_text(text)
    with pytest.raises(SourceError, match=re.escape(message)):
        simulate(str(tmp_path / "out"), images=10, client=fail_to_start, rates=tmp_path / "rates.csv")


def test_a_missing_file_of_rates_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"--rates .*none.csv is not a file"):
        simulate(str(tmp_path / "out"), images=10, client=fail_to_start, rates=tmp_path / "none.csv")


def test_rates_of_a_different_city_are_rejected(tmp_path):
    with pytest.raises(SettingsError, match="none of the 1 neighborhoods, such as 'Montmartre', is in the city"):
        simulated(tmp_path, rates={"Montmartre": 0.01})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": {"Row 0": 0.001, "Row 1": 0.02}}, "the lowest rate 0.001 is too low"),
        ({"rates": {"Row 0": 0.9, "Row 1": 0.5}}, "the highest rate 0.9 is too high"),
        ({"recall": 0.3}, "raise recall"),
        ({"validation_images": 20}, "increase validation_images"),
    ],
)
def test_an_impossible_detector_is_rejected(tmp_path, changes, message):
    with pytest.raises(SettingsError, match=message):
        simulated(tmp_path, **changes)


def test_a_folder_with_other_content_is_left_unchanged(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SettingsError, match="is not empty and holds no simulated study"):
        simulate(str(tmp_path), images=10, client=fail_to_start)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_rejected(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(SettingsError, match="is a file"):
        simulate(str(tmp_path / "out"), images=10, client=fail_to_start)


def test_an_object_store_is_rejected():
    with pytest.raises(SettingsError, match="needs a local folder"):
        simulate("memory://study", images=10, client=fail_to_start)


def test_other_arguments_for_the_same_folder_are_rejected(tmp_path):
    with pytest.raises(RuntimeError, match="no cluster"):
        simulate(str(tmp_path / "out"), images=10, seed=1, client=no_cluster)
    with pytest.raises(SettingsError, match=re.escape("other images, seed (images 10, not 20)")):
        simulate(str(tmp_path / "out"), images=20, seed=2, client=fail_to_start)


def no_cluster():
    raise RuntimeError("no cluster")


def test_a_run_that_stopped_before_its_first_result_resumes(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no cluster"):
            simulate(str(tmp_path / "out"), images=10, client=no_cluster)
    assert open_study(tmp_path / "out").settings.simulated.startswith("Images, detections")


def test_settings_changed_by_the_user_are_kept(tmp_path):
    path = tmp_path / "out" / "study.yaml"
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no cluster"):
            simulate(str(tmp_path / "out"), images=10, client=no_cluster)
        if "replicates: 7" not in path.read_text():
            path.write_text(path.read_text().replace("preset: recommended", "preset: recommended\n  replicates: 7"))
    assert open_study(tmp_path / "out").settings.estimate.replicates == 7


def test_days_beyond_the_usual_period_belong_to_the_study(tmp_path):
    with pytest.raises(RuntimeError, match="no cluster"):
        simulate(str(tmp_path / "out"), images=1000, days=100, client=no_cluster)
    assert open_study(tmp_path / "out").settings.period.end == date(2021, 1, 12)
