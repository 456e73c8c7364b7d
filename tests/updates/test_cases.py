"""The table of cases is complete: every registered method has a row, with the update that the registry names."""

from helpers_updates import CASES
from tasklora.tuner import METHODS


def test_every_registered_method_has_a_case():
    assert {case.method for case in CASES if case.method is not None} == set(METHODS)


def test_cases_test_the_registered_updates():
    for case in CASES:
        if case.method is not None:
            assert case.update_cls is METHODS[case.method].update_cls


def test_case_ids_are_distinct():
    assert len({case.id for case in CASES}) == len(CASES)
