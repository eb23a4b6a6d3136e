"""What the chaos suite does to runs, in short: `make chaos` does all of it, many times."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks import chaos
from benchmarks.chaos import KINDS, SEEDS, TOGETHER, Fault, disturb, load, plan, prepare, save, scene, table
from benchmarks.hosts import Hosts, missing, until

needs_hosts = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with Hosts(2) as some:
        yield some


@needs_hosts
def test_hosts_reach_each_other_until_a_cable_is_pulled(hosts: Hosts) -> None:
    first, second = hosts
    server = second.start("python3", "-m", "http.server", "8000")
    ask = f"import urllib.request; print(urllib.request.urlopen('http://{second.name}:8000', timeout=1).status)"

    def answers() -> bool:
        try:
            return first.call("python3", "-c", ask) == "200\n"
        except RuntimeError:
            return False

    until(answers, 30, "the server did not answer")
    second.cut()
    assert not answers()
    second.heal()
    until(answers, 30, "the server did not answer again")
    assert second.kill("http.server") == 1 and server.wait(5) != 0 and second.processes("http.server") == []


@needs_hosts
def test_a_host_without_power_loses_its_processes_and_its_own_disk_alone(hosts: Hosts) -> None:
    first, second = hosts
    for host in hosts:
        host.call("touch", f"{host.scratch}/file")
        host.start("sleep", "1000")
    second.power_off()
    assert second.processes() == [] and len(first.processes("sleep 1000")) >= 1
    second.boot()
    assert second.call("hostname") == "host1\n" and second.call("ls", str(second.scratch)) == ""
    assert first.call("ls", str(first.scratch)) == "file\n"


@needs_hosts
def test_nothing_is_left_of_hosts() -> None:
    with Hosts(1) as some:
        (host,) = some
        pid = host.start("sleep", "1000").pid
        assert Path(f"/proc/{pid}").exists() and some.base.exists()
    until(lambda: not Path(f"/proc/{pid}").exists(), 10, "a process was left behind")
    assert not some.base.exists()


def test_every_kind_of_fault_has_its_place_in_a_campaign(tmp_path: Path) -> None:
    planned = [(fault.kind, fault.seed) for run in plan(list(KINDS), SEEDS, []) for fault in run]
    assert sorted(planned) == sorted((kind, seed) for kind in KINDS for seed in range(SEEDS))
    assert sorted(KINDS) == sorted(kind for _, together in TOGETHER for kind in together)
    assert len(planned) >= 100 and len(KINDS) >= 10


def test_a_campaign_that_was_broken_off_goes_on_with_the_rest(tmp_path: Path) -> None:
    first, *rest = plan(list(KINDS), 2, [])
    save(tmp_path / "chaos.json", first)
    assert load(tmp_path / "chaos.json") == first
    assert list(plan(list(KINDS), 2, load(tmp_path / "chaos.json"))) == rest


def test_the_longest_wait_for_a_step_counts_and_steps_that_were_taken_again() -> None:
    steps = [(10.0, 7, 2), (11.0, 8, 2), (19.0, 6, 1), (19.5, 7, 1), (20.0, 8, 1), (20.5, 9, 1)]
    assert chaos._waits(steps, since=11.5) == (7.5, 3)


def test_what_was_found_is_written_down_and_shown() -> None:
    faults = load(chaos.RESULTS)
    assert len({fault.kind for fault in faults}) >= 10
    assert len({(fault.kind, fault.seed) for fault in faults}) == len(faults)
    keys = {"kind", "seed", "status", "rows_lost", "rows_repeated", "same_revisions", "seconds_to_next_step"}
    assert all(keys <= fault.keys() for fault in json.loads(chaos.RESULTS.read_text())["faults"])
    page = (chaos.RESULTS.parents[2] / "docs" / "chaos.md").read_text(encoding="utf-8")
    assert table(faults) in page, "python -m benchmarks.chaos --table prints it"


@pytest.mark.ray
@pytest.mark.timeout(1_800)
@needs_hosts
def test_a_run_on_hosts_gets_over_a_lost_worker_and_a_lost_host() -> None:
    faults = [Fault("worker killed", 0), Fault("raylet killed", 0)]
    with scene(2, store=False) as place:
        job, undisturbed = prepare(place, rows=12_800)
        assert undisturbed["summary"]["grows"] + undisturbed["summary"]["shrinks"] >= 1
        disturb(place, job, faults, undisturbed)
    for fault in faults:
        assert fault.perfect and fault.same_outcome, fault
        assert 0 < fault.seconds_to_next_step < chaos.RECOVERS_WITHIN_S and fault.detail
