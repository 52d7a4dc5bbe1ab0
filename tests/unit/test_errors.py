"""What the two exceptions of `selfshot.errors` are, are not, and how they are found again."""

import pickle

import pytest
from ray import cloudpickle
from ray.exceptions import RayTaskError

from selfshot.errors import StorageError, UserError, reported_error


def from_worker(error: Exception) -> Exception:
    """As `ray.get` raises what a worker raised."""
    told = RayTaskError("work", "Traceback …", error, "worker", 1, "10.0.0.1")
    raised: Exception = cloudpickle.loads(cloudpickle.dumps(told)).as_instanceof_cause()
    return raised


def test_no_except_for_damaged_or_missing_content_catches_them() -> None:
    assert not issubclass(UserError, ValueError | OSError)
    assert not issubclass(StorageError, ValueError | OSError | UserError)
    assert not issubclass(UserError, StorageError)


@pytest.mark.parametrize("kind", [UserError, StorageError])
def test_a_worker_s_error_is_found_without_its_traceback(kind: type[Exception]) -> None:
    raised = from_worker(kind("vis.dim: 5 is not allowed"))
    assert isinstance(raised, kind)
    assert "worker" in str(raised)  # What must not be printed.
    failed = RuntimeError("Training failed")
    failed.__cause__ = raised
    for error in (raised, from_worker(raised), failed):
        found = reported_error(error)
        assert type(found) is kind
        assert str(found) == "vis.dim: 5 is not allowed"


def test_other_errors_are_not_reported() -> None:
    error = from_worker(ValueError("a bug"))
    error.__cause__ = error
    assert reported_error(error) is None
    assert reported_error(None) is None


def test_the_setting_survives_a_pickle() -> None:
    error = pickle.loads(pickle.dumps(UserError("vis.dim: 5 is not allowed", setting="vis.dim")))
    assert (str(error), error.setting) == ("vis.dim: 5 is not allowed", "vis.dim")
