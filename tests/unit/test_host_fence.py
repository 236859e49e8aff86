"""``host fence``: what is refused before any agent is asked."""

import pytest

from ftkvm.adapters.power import AGENT_NAME
from ftkvm.catalogue import FtkvmError
from ftkvm.cli.host import _pair


def test_pairs_are_understood() -> None:
    assert _pair("ip=10.0.0.1") == ("ip", "10.0.0.1")
    assert _pair("password=a=b") == ("password", "a=b")


@pytest.mark.parametrize("word", ["ip", "=x", "ip=1\naction=on", "action=on", ""])
def test_what_is_no_pair_is_refused(word: str) -> None:
    with pytest.raises(FtkvmError) as caught:
        _pair(word)
    assert caught.value.code == "FTKVM-605"


@pytest.mark.parametrize("name", ["fence_", "../fence_x", "fence_x; reboot", "sh", "fence_X"])
def test_only_a_fence_agents_name_is_one(name: str) -> None:
    assert AGENT_NAME.fullmatch("fence_ipmilan")
    assert not AGENT_NAME.fullmatch(name)
