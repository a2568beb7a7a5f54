"""Fixtures: deployments that end with the test, or with its module."""

import pytest

from deployment import Deployment


@pytest.fixture
def deploy(tmp_path):
    """Makes deployments that end with the test."""
    made = []

    def make(**options):
        folder = tmp_path / f"d{len(made)}"
        folder.mkdir()
        made.append(Deployment(folder, **options))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """One deployment with the embedded model, shared by a module's tests."""
    one = Deployment(tmp_path_factory.mktemp("service")).start()
    yield one
    one.stop()


@pytest.fixture(scope="module")
def stub(service):
    """The generated client of the public API."""
    import grpc
    from invar.v1 import inference_pb2_grpc

    with grpc.insecure_channel(service.address) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)
