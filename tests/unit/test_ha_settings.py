"""HA-18, HA-19: names, defaults, ranges, when a change applies; HA-27: sums that are refused."""

import json

import pytest

from ftkvm.core.ha import budget, settings
from ftkvm.core.ha.model import HaSettings, IsolationResponse, Priority
from ftkvm.core.ha.setting import Applies, BadSetting, Kind

GUIDE = {  # table 2-2 and the text around it
    **{f"das.isolationaddress{number}": "" for number in range(1, 11)},
    "das.usedefaultisolationaddress": True, "das.failuredetectiontime": 15_000, "das.failuredetectioninterval": 1000,
    "das.defaultfailoverhost": "", "das.isolationShutdownTimeout": 300, "das.slotMemInMB": 0, "das.slotCpuInMHz": 0,
    "das.vmMemoryMinMB": 0, "das.vmCpuMinMHz": 256, "das.iostatsInterval": 120,
    "ha.restart_priority": "medium", "ha.isolation_response": "shutdown", "ha.vm_max_resets": 3,
}  # fmt: skip
OFF_AND_ON = {*(f"das.isolationaddress{number}" for number in range(1, 11)), "das.usedefaultisolationaddress",
              "das.failuredetectiontime", "das.failuredetectioninterval", "das.isolationShutdownTimeout"}  # fmt: skip


def test_the_guides_settings_have_the_guides_defaults():
    found = settings.values({})
    assert {name: found[name] for name in GUIDE} == GUIDE
    assert {name for name, each in settings.SETTINGS.items()
            if name.startswith("das.") and each.applies is Applies.OFF_AND_ON} == OFF_AND_ON  # fmt: skip


def test_defaults_are_the_machines_and_break_no_sum():
    assert settings.ha_settings({}) == HaSettings()
    assert budget.breaches({}) == []
    assert budget.restart_ms({}) <= budget.MOST_RESTART_MS


@pytest.mark.parametrize(
    ("spelt", "name"),
    [("das.failedetectiontime", "das.failuredetectiontime"), ("das.failureDetectionTime", "das.failuredetectiontime"),
     ("das.failedetectioninterval", "das.failuredetectioninterval"), ("das.isolationAddress9", "das.isolationaddress9"),
     ("das.isolationaddress", "das.isolationaddress1"), ("das.slotmeminmb", "das.slotMemInMB")],
)  # fmt: skip
def test_spellings(spelt, name):
    assert settings.cluster_name(spelt) == name


def test_every_default_and_shown_value_can_be_set_again():
    for known in (settings.SETTINGS, settings.VM_SETTINGS):
        for setting in known.values():
            if setting.kind not in (Kind.ADDRESS, Kind.HOST):
                assert setting.parse(setting.show(setting.default)) == setting.default
            assert setting.understand(setting.default) == setting.default
            assert setting.meaning and setting.allowed


@pytest.mark.parametrize(
    ("name", "text"),
    [("ha.enabled", "maybe"), ("ha.host_failures", "0"), ("ha.host_failures", "5"), ("ha.reserved_percent", "51"),
     ("ha.reserved_percent", "2.5"), ("ha.admission_policy", "none"), ("das.isolationaddress1", "10.77.1"),
     ("das.isolationaddress1", "127.0.0.1"), ("das.isolationaddress2", "::"), ("das.isolationaddress11", "10.1.1.1"),
     ("das.failuredetectiontime", "15s"), ("das.failuredetectiontime", "999999"), ("das.iostatsInterval", "-1"),
     ("das.defaultfailoverhost", "a b"), ("ha.networks", "management,vm"), ("ha.networks", ","), ("nonsense", "1"),
     ("ha.watchdog_ms", "5500"), ("das.vmCpuMinMHz", "٣")],
)  # fmt: skip
def test_bad_words_are_refused_whole(name, text):
    given = {"ha.host_failures": 2}
    with pytest.raises(BadSetting):
        settings.change(given, {"ha.host_failures": "3", name: text})
    assert given == {"ha.host_failures": 2}


def test_the_same_setting_twice_under_two_spellings_is_refused():
    with pytest.raises(BadSetting, match="twice"):
        settings.change({}, {"das.failedetectiontime": "15000", "das.failuredetectiontime": "16000"})


def test_a_setting_that_needs_ha_off_and_on_waits_for_it():
    changed = settings.change({}, {"das.failedetectiontime": "20000", "das.vmCpuMinMHz": "500"})
    assert settings.values(changed)["das.failuredetectiontime"] == 20_000
    assert settings.ha_settings(changed).failure_ms == 15_000
    assert settings.in_force(changed)["das.vmCpuMinMHz"] == 500
    again = settings.change(changed, {"das.failedetectiontime": "25000"})
    assert settings.ha_settings(again).failure_ms == 15_000
    assert settings.IN_FORCE not in settings.change(again, {"das.failedetectiontime": ""})  # nothing waits any more
    off = settings.change(again, {"ha.enabled": "off"})
    on = settings.change(json.loads(json.dumps(off)), {"ha.enabled": "on"})
    assert settings.ha_settings(on).failure_ms == 25_000
    assert settings.ha_settings(on).isolation_ms == 22_000


def test_isolation_addresses_in_order_with_the_gateway():
    off = settings.change({}, {"ha.enabled": "off"})
    given = settings.change(off, {"das.isolationaddress10": "10.0.0.10", "das.isolationaddress2": "10.0.0.2"})
    assert settings.ha_settings(given, "10.0.0.1").isolation_addresses == ("10.0.0.1", "10.0.0.2", "10.0.0.10")
    given = settings.change(given, {"das.usedefaultisolationaddress": "false"})
    assert settings.ha_settings(given, "10.0.0.1").isolation_addresses == ("10.0.0.2", "10.0.0.10")


def test_what_is_not_understood_is_named_and_the_default_is_in_force():
    stored = {
        "das.failuredetectiontime": "soon",
        "ha.host_failures": 9,
        "ha.enabled": 1,
        "das.new": 1,
        "ha.in_force": 3,
    }
    assert {each.name for each in settings.problems(stored)} == set(stored) - {"ha.in_force"}
    assert settings.ha_settings(stored) == HaSettings()
    assert {each.name for each in settings.vm_problems({"ha.restart_priority": "x"})} == {"ha.restart_priority"}


def test_a_vms_own_settings_override_the_clusters():
    cluster = settings.change({}, {"ha.restart_priority": "low", "ha.isolation_response": "leave-on"})
    own = settings.change_vm({}, {"ha.restart_priority": "high", "ha.memory_reservation_mb": "512"})
    found = settings.vm_settings(cluster, own)
    assert (found.priority, found.isolation_response) == (Priority.HIGH, IsolationResponse.LEAVE_ON)
    assert (found.cpu_mhz, found.memory_mb) == (0, 512)
    assert settings.vm_settings(cluster, settings.change_vm(own, {"ha.restart_priority": ""})).priority is Priority.LOW
    assert settings.all_vm_settings(cluster, {"a": own, "b": {}}) == {
        "a": found,
        "b": settings.vm_settings(cluster, {}),
    }
    assert settings.vm_settings(cluster, {"ha.restart_priority": "never heard of"}).priority is Priority.LOW
    with pytest.raises(BadSetting):
        settings.change_vm({}, {"das.slotMemInMB": "5"})


@pytest.mark.parametrize(
    ("word", "failure_s", "window_s"),
    [("high", 30, 3600), ("medium", 60, 86_400), ("low", 120, 604_800), ("custom", 90, 7200)],
)
def test_sensitivities_are_table_2_1(word, failure_s, window_s):
    own = settings.change_vm({}, {"ha.vm_monitoring_sensitivity": word, "ha.vm_failure_interval_s": "90",
                                  "ha.vm_reset_window_s": "7200"})  # fmt: skip
    found = settings.vm_settings({}, own).monitoring
    assert (found.failure_interval_s, found.window_s, found.max_resets) == (failure_s, window_s, 3)


def test_failover_host_of_the_advanced_option_comes_before_the_policys():
    given = {"ha.failover_host": "host2"}
    assert settings.failover_host(given) is None  # another policy is in force
    given |= {"ha.admission_policy": "failover-host"}
    assert settings.failover_host(given) == "host2"
    assert settings.failover_host(given | {"das.defaultfailoverhost": "host3"}) == "host3"


@pytest.mark.parametrize(
    ("words", "name", "figures"),
    [({"ha.stop_after_ms": "10000"}, "ha.lease_ms", "10000 + ha.watchdog_ms 5000 + margin 1000 = 16000 is above "
      "ha.lease_ms 15000"),
     ({"ha.watchdog_ms": "7000"}, "ha.lease_ms", "8000 + ha.watchdog_ms 7000 + margin 1000 = 16000"),
     ({"ha.lease_ms": "13000"}, "ha.lease_ms", "= 14000 is above ha.lease_ms 13000"),
     ({"ha.lease_ms": "16000"}, "ha.lease_ms", "ha.lease_ms 16000 is above das.failuredetectiontime 15000"),
     ({"das.failuredetectiontime": "14999"}, "ha.lease_ms", "15000 is above das.failuredetectiontime 14999"),
     ({"das.failuredetectioninterval": "2000"}, "das.failuredetectioninterval", "= 4000 is above read gap 3000"),
     ({"ha.stop_after_ms": "3999"}, "ha.stop_after_ms", "= 4000 is above ha.stop_after_ms 3999"),
     ({"ha.watchdog_ms": "2000"}, "ha.watchdog_ms", "= 3000 is above ha.watchdog_ms 2000"),
     ({"ha.retry_first_ms": "61000"}, "ha.retry_first_ms", "61000 is above ha.retry_most_ms 60000"),
     ({"ha.vm_monitoring_sensitivity": "high", "ha.vm_max_resets": "31"}, "ha.vm_max_resets", "= 3720 is above"),
     ({"ha.admission_policy": "failover-host"}, "ha.failover_host", "needs ha.failover_host"),
     ({"das.failuredetectiontime": "5999", "ha.lease_ms": "5999"}, "das.failuredetectiontime", "isolation time 2999")],
)  # fmt: skip
def test_sums_that_do_not_add_up_are_refused_with_the_sum(words, name, figures):
    changed = settings.change({}, words)
    found = {breach.setting: str(breach) for breach in budget.breaches(changed)}
    assert name in found and any(figures in text for text in map(str, budget.breaches(changed)))
    with pytest.raises(BadSetting):
        budget.check(changed)


@pytest.mark.parametrize(
    "words",
    [{"ha.stop_after_ms": "9000"}, {"ha.watchdog_ms": "6000"}, {"ha.lease_ms": "14000"},
     {"das.failuredetectioninterval": "1300"}, {"ha.stop_after_ms": "4000"}, {"ha.watchdog_ms": "3000"},
     {"das.failuredetectiontime": "20000"}, {"das.failuredetectiontime": "60000", "ha.lease_ms": "60000"},
     {"das.failuredetectiontime": "9000", "ha.lease_ms": "9000", "ha.stop_after_ms": "4000", "ha.watchdog_ms": "4000"}],
)  # fmt: skip
def test_sums_at_their_edges_stand(words):
    assert budget.breaches(settings.change({}, words)) == []


def test_a_vms_resets_must_reach_their_limit():
    own = settings.change_vm({}, {"ha.vm_monitoring_sensitivity": "custom", "ha.vm_reset_window_s": "60"})
    with pytest.raises(BadSetting, match=r"3 \* 120 s .* = 360 is above the reset window of 60 s"):
        budget.check_vm(settings.vm_values({}, own))
    budget.check_vm(settings.vm_values({}, own | {"ha.vm_reset_window_s": 360}))
