"""Where a driver listens: on the address from which its machine reaches the master."""

import socket

import pytest

from tasks.embed.spark import address_towards
from tasks.errors import VitrineError


@pytest.mark.parametrize(
    "master", ["local[2]", "spark://127.0.0.1:7077", "spark://127.0.0.1:7077,10.0.0.2:7077", "k8s://https://127.0.0.1:6443"]
)
def test_a_master_on_this_machine_is_reached_by_loopback(master: str) -> None:
    assert address_towards(master) == "127.0.0.1"


def test_another_machine_is_reached_from_an_address_that_executors_can_reach() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 7077))
        except OSError:
            pytest.skip("this machine has no route to other networks")
        assert address_towards("spark://192.0.2.1:7077") == probe.getsockname()[0] != "127.0.0.1"


def test_a_master_without_an_address_is_one_sentence() -> None:
    with pytest.raises(VitrineError, match=r"VITRINE_SPARK_MASTER='spark://nowhere.invalid:7077': this machine does not reach"):
        address_towards("spark://nowhere.invalid:7077")
