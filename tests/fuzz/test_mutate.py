"""The mutators and limits that every fuzzer uses."""

import contextlib
import json
import time

import pytest

from rlaif_jax.errors import UserError
from tests.fuzz.mutate import bounded, json_mutations, mutations, outcomes

_VALUE = {"a": [1, 2.5, {"b": "text"}], "c": None, "d": "more"}


def test_the_same_seed_gives_the_same_cases():
    data = json.dumps(_VALUE).encode()
    assert list(mutations(data, 50, 3)) == list(mutations(data, 50, 3)) != list(mutations(data, 50, 4))
    first, again = (list(map(repr, json_mutations(_VALUE, 50, 3))) for _ in range(2))
    assert first == again != list(map(repr, json_mutations(_VALUE, 50, 4)))


def test_cases_differ_from_the_input_and_from_each_other():
    data = json.dumps(_VALUE).encode()
    assert len({*mutations(data, 500, 0)} - {data}) > 400
    assert len({repr(v) for v in json_mutations(_VALUE, 500, 0)} - {repr(_VALUE)}) > 300
    assert _VALUE == {"a": [1, 2.5, {"b": "text"}], "c": None, "d": "more"}
    assert list(mutations(b"", 50, 0)) and list(json_mutations(7, 50, 0))


def test_a_hang_and_a_hungry_block_are_failures():
    with pytest.raises(AssertionError, match=r"still running after 0\.05 s"), bounded(0.05):
        while True:
            with contextlib.suppress(Exception):
                pass
    with pytest.raises(AssertionError, match="still running"), bounded(0.02):
        time.sleep(5)
    with pytest.raises(AssertionError, match="peak memory grew"), bounded(5, megabytes=50):
        bytes([1]) * (2 * 10**8)


def test_only_user_errors_are_refusals():
    def read(case):
        if case < 0:
            raise UserError("negative")
        return 10 / case

    assert outcomes(read, [1, -1, 2]) == ([(1, 10.0), (2, 5.0)], 1)
    with pytest.raises(AssertionError, match="ZeroDivisionError: .*; input: 0"):
        outcomes(read, [0])
