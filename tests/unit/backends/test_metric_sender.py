"""Counters reach Triton as sums, from a thread, and never cost a request its answer."""

from __future__ import annotations

import gc
import sys
import threading
import time
from typing import Any

import pytest

from mlcls.backends.metric_sender import CounterGroup, MetricSender
from support.fake_pb_utils import FakePbUtils


def make_group(name: str = "images", count: int = 3, **options: Any) -> CounterGroup:
    labels = [{"reason": str(index)} for index in range(count)]
    return CounterGroup(name, "Images.", labels, **options)


def test_growth_is_sent_once() -> None:
    pb_utils, group = FakePbUtils(), make_group()
    sender = MetricSender([group], pb_utils)
    assert pb_utils.values == {("images", "0"): 0, ("images", "1"): 0, ("images", "2"): 0}
    group.totals[1] += 2
    sender.send_due(10)
    group.totals[1] += 3
    group.totals[2] += 0.5
    sender.send_due(20)
    sender.send_due(30)
    assert pb_utils.values == {("images", "0"): 0, ("images", "1"): 5, ("images", "2"): 0.5}
    assert pb_utils.increments == 3


def test_two_processes_add_up() -> None:
    pb_utils = FakePbUtils()
    for _ in range(2):
        group = make_group()
        sender = MetricSender([group], pb_utils)
        group.totals[0] = 7
        sender.send_due(1)
    assert pb_utils.values["images", "0"] == 14


def test_each_group_has_its_pace() -> None:
    pb_utils = FakePbUtils()
    often, seldom = make_group("often"), make_group("seldom", interval_s=15)
    sender = MetricSender([often, seldom], pb_utils)
    for second in range(1, 18):
        often.totals[0] += 1
        seldom.totals[0] += 1
        sender.send_due(100 + second)
    assert pb_utils.values["often", "0"] == 17
    assert pb_utils.values["seldom", "0"] == 15, "the first at once, the next after 13.5 to 15 s"
    sender.stop()
    assert pb_utils.values["seldom", "0"] == 17, "the rest at the end"


def test_a_counter_of_many_appears_with_its_first_count() -> None:
    pb_utils, group = FakePbUtils(), make_group(count=1000, shown_at_zero=False)
    sender = MetricSender([group], pb_utils)
    assert pb_utils.values == {}
    group.totals[[3, 999]] += 1
    sender.send_due(1)
    assert pb_utils.values == {("images", "3"): 1, ("images", "999"): 1}


def test_the_thread_sends_and_stops() -> None:
    pb_utils, group = FakePbUtils(), make_group(interval_s=0.01)
    sender = MetricSender([group], pb_utils)
    sender.start()
    group.totals[0] += 1
    deadline = time.monotonic() + 10
    while pb_utils.values["images", "0"] != 1:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    group.totals[0] += 1
    sender.stop()
    assert pb_utils.values["images", "0"] == 2
    assert all(thread.name != "mlcls-metrics" for thread in threading.enumerate())


def test_nothing_is_lost_while_counting_goes_on() -> None:
    pb_utils, group = FakePbUtils(), make_group(count=600, interval_s=0.001)
    sender, totals = MetricSender([group], pb_utils), group.totals
    sender.start()
    for _ in range(2000):
        totals += 1
    sender.stop()
    assert set(pb_utils.values.values()) == {2000.0}


@pytest.mark.parametrize("at", ["start", "send"])
def test_a_server_without_metrics_serves(at: str) -> None:
    pb_utils, group = FakePbUtils(), make_group(interval_s=0.01)
    fault = RuntimeError("metrics are not enabled")
    pb_utils.fault = fault if at == "start" else None
    sender = MetricSender([group], pb_utils)
    pb_utils.fault = fault
    group.totals[0] += 1
    sender.start()
    sender.send_due(1)
    sender.stop()
    assert pb_utils.log == ["mlcls: no metrics of this process: RuntimeError: metrics are not enabled"]


def test_objects_of_triton_are_never_removed() -> None:
    pb_utils = FakePbUtils()
    group = make_group()
    sender = MetricSender([group], pb_utils)
    assert sys.getrefcount(group._family) >= 3, "one more than those that refer to it"
    sender.stop()
    del sender, group
    gc.collect()
    assert pb_utils.removed == []
