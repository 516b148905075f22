"""How many cores there are to use: files of a control group, as Linux writes them."""

from __future__ import annotations

import math

import pytest

from unixent_native import cores


@pytest.mark.parametrize(
    ("groups", "files", "due"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "10000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, math.inf),
        ("0::/", {}, math.inf),
        ("0::/pod/box", {"pod/box/cpu.max": "max 100000", "pod/cpu.max": "300000 100000"}, 3),
        ("0::/pod/box", {"pod/box/cpu.max": "200000 100000", "pod/cpu.max": "800000 100000"}, 2),
        ("0::/not/seen/here", {"cpu.max": "400000 100000"}, 4),
        ("1:cpu:/\n0::/", {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ("4:cpuacct,cpu:/box", {"cpu/box/cpu.cfs_quota_us": "50000", "cpu/box/cpu.cfs_period_us": "50000"}, 1),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("1:cpuset:/", {"cpu.max": "100000 100000"}, math.inf),
    ],
)
def test_a_quota_is_rounded_up_to_whole_cores(tmp_path, groups, files, due):
    (tmp_path / "groups").write_text(groups + "\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert cores.cgroup_cores.__wrapped__(str(tmp_path / "groups"), str(tmp_path)) == due


def test_other_systems_have_no_quota(tmp_path):
    assert cores.cgroup_cores.__wrapped__(str(tmp_path / "nowhere")) == math.inf


def test_the_smaller_of_affinity_and_quota_counts(monkeypatch):
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    for quota, due in ((math.inf, 6), (3, 3), (100, 6)):
        monkeypatch.setattr(cores, "cgroup_cores", lambda quota=quota: quota)
        assert cores.available_cores() == due
