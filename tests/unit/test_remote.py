"""Faults of disks and object stores end with one line; possible defects of the program keep their traceback."""

import errno

import pytest
from botocore.exceptions import EndpointConnectionError

from patrolscope.pipeline.errors import StorageError
from patrolscope.pipeline.study.remote import report_storage_faults


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error", "/data/1.csv"),
        PermissionError(errno.EACCES, "Permission denied", "/data/1.csv"),
        EndpointConnectionError(endpoint_url="http://127.0.0.1:9/data/1.csv"),
    ],
)
def test_a_fault_of_the_storage_is_one_line_with_the_stage(error):
    message = r"stage read: .*/data/1\.csv.*; a disk or an object store failed"
    with pytest.raises(StorageError, match=message), report_storage_faults("stage read: "):
        raise error


@pytest.mark.parametrize("error", [FileNotFoundError("1.csv"), BrokenPipeError(), ValueError("no storage")])
def test_other_errors_are_unchanged(error):
    with pytest.raises(type(error)), report_storage_faults():
        raise error
