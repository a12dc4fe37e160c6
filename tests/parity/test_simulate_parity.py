"""A simulated study is the same, to the byte, however its days are spread over workers."""

import pytest

from patrolscope.pipeline.engine.run import Progress, run_stages
from patrolscope.pipeline.simulation.simulate import SIMULATE_CITY, SIMULATE_DAYS, simulate
from tests import small_city
from tests.small_city import content, small_study

STAGES = [SIMULATE_CITY, SIMULATE_DAYS]


class Counting(Progress):
    """Remembers what was made."""

    def __init__(self):
        self.made = []

    def advance(self, stage, shard, record):
        self.made.append((stage.name, shard.name))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return small_city.simulated(tmp_path_factory.mktemp("alone"))


def refuse_to_start():
    pytest.fail("a cluster was asked for although everything is made")


def test_two_workers_make_the_same_files_as_this_process(client, alone, tmp_path):
    study = small_study(tmp_path)
    run_stages(study, STAGES, lambda: client)
    assert content(study) == content(alone)
    assert study.records("simulate").keys() == {"2020-10-31", "2020-11-01", "2020-11-02"}


def test_only_missing_days_are_made_again(client, alone, tmp_path):
    study, counting = small_study(tmp_path), Counting()
    run_stages(study, STAGES, lambda: client)
    study.fs.rm_file(study.path("source/metadata/1604203200000.csv"))
    run_stages(study, STAGES, lambda: client, counting)
    assert counting.made == [("simulate", "2020-11-01")]
    assert content(study) == content(alone)


def test_a_study_that_is_there_is_not_made_again(simulated):
    before, counting = content(simulated), Counting()
    simulate(simulated.root, images=60_000, days=3, client=refuse_to_start, progress=counting)
    assert counting.made == []
    assert content(simulated) == before
    assert sum(text.count(b"\n") - 1 for name, text in before.items() if "metadata" in name) == 60_000 + 3
