"""Fixtures that hand out running peers. A test whose peer is missing is skipped by name; with ``CI=true`` it fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import pytest

from tests.peers import certificates as _certificates
from tests.peers import dcmtk, instances, pynetdicom_apps
from tests.peers.certificates import Certificates
from tests.peers.orthanc import Orthanc, orthanc
from tests.peers.peer import Peer
from tests.peers.programs import PACKAGES, MissingProgram, find_program
from tests.peers.prometheus import Prometheus, prometheus

P = TypeVar("P")


def give_up(reason: str) -> NoReturn:
    """Skip the test because its peer is missing; with ``CI=true`` let it fail instead."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}; with CI=true every peer must be there", pytrace=False)
    pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Hold tests to their ``peer`` marks before anything of theirs is set up."""
    for marker in item.iter_markers("peer"):
        for name in marker.args:
            if name not in PACKAGES:
                pytest.fail(f"peer({name!r}) is not in tests/peers/programs.py", pytrace=False)
            if find_program(name) is None:
                give_up(f"{name} is not installed (Debian package {PACKAGES[name]})")
    try:
        yield
    except MissingProgram as error:
        give_up(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """The same for a test that finds out by itself."""
    try:
        yield
    except MissingProgram as error:
        give_up(str(error))


class Starter(Generic[P]):
    """Starts peers of one kind, each in a folder of its own, and ends them all when the test is over."""

    def __init__(self, serve: Callable[..., AbstractContextManager[P]], folder: Path) -> None:
        self._serve = serve
        self._folder = folder
        self._stack = ExitStack()
        self._count = 0

    def __call__(self, **settings: Any) -> P:
        """Start one more.

        :param settings: the keyword arguments of the server's function
        """
        self._count += 1
        return self._stack.enter_context(self._serve(self._folder / str(self._count), **settings))

    def close(self) -> None:
        """End them, the last one first."""
        self._stack.close()


def _starter(serve: Callable[..., AbstractContextManager[P]], folder: Path) -> Iterator[Starter[P]]:
    starter = Starter(serve, folder)
    try:
        yield starter
    finally:
        starter.close()


@pytest.fixture
def start_storescp(tmp_path: Path) -> Iterator[Starter[Peer]]:
    """DCMTK ``storescp``: call it with the settings of :func:`tests.peers.dcmtk.storescp`."""
    yield from _starter(dcmtk.storescp, tmp_path / "storescp")


@pytest.fixture
def start_dcmqrscp(tmp_path: Path) -> Iterator[Starter[Peer]]:
    """DCMTK ``dcmqrscp``: call it with the settings of :func:`tests.peers.dcmtk.dcmqrscp`."""
    yield from _starter(dcmtk.dcmqrscp, tmp_path / "dcmqrscp")


@pytest.fixture
def start_wlmscpfs(tmp_path: Path) -> Iterator[Starter[Peer]]:
    """DCMTK ``wlmscpfs``: call it with the settings of :func:`tests.peers.dcmtk.wlmscpfs`."""
    yield from _starter(dcmtk.wlmscpfs, tmp_path / "wlmscpfs")


@pytest.fixture
def start_orthanc(tmp_path: Path) -> Iterator[Starter[Orthanc]]:
    """Orthanc: call it with the settings of :func:`tests.peers.orthanc.orthanc`."""
    yield from _starter(orthanc, tmp_path / "orthanc")


@pytest.fixture
def start_pynetdicom_storescp(tmp_path: Path) -> Iterator[Starter[Peer]]:
    """pynetdicom's ``storescp``: call it with the settings of :func:`tests.peers.pynetdicom_apps.storescp`."""
    yield from _starter(pynetdicom_apps.storescp, tmp_path / "pynetdicom-storescp")


@pytest.fixture
def start_pynetdicom_qrscp(tmp_path: Path) -> Iterator[Starter[Peer]]:
    """pynetdicom's ``qrscp``: call it with the settings of :func:`tests.peers.pynetdicom_apps.qrscp`."""
    yield from _starter(pynetdicom_apps.qrscp, tmp_path / "pynetdicom-qrscp")


@pytest.fixture
def start_prometheus(tmp_path: Path) -> Iterator[Starter[Prometheus]]:
    """Prometheus: call it with the settings of :func:`tests.peers.prometheus.prometheus`."""
    yield from _starter(prometheus, tmp_path / "prometheus")


@pytest.fixture
def dcmtk_storescp(start_storescp: Starter[Peer]) -> Peer:
    """A plain ``storescp``."""
    return start_storescp()


@pytest.fixture
def dcmtk_tls_storescp(start_storescp: Starter[Peer], certificates: Certificates) -> Peer:
    """A ``storescp`` with mutual TLS."""
    return start_storescp(tls=certificates.server, client=certificates.client)


@pytest.fixture
def dcmtk_qrscp(start_dcmqrscp: Starter[Peer], study: list[Path]) -> Peer:
    """A ``dcmqrscp`` that offers one study of three instances."""
    return start_dcmqrscp(instances=study)


@pytest.fixture
def dcmtk_worklist(start_wlmscpfs: Starter[Peer]) -> Peer:
    """A ``wlmscpfs`` that offers one scheduled procedure step."""
    return start_wlmscpfs()


@pytest.fixture
def orthanc_peer(start_orthanc: Starter[Orthanc]) -> Orthanc:
    """An empty Orthanc."""
    return start_orthanc()


@pytest.fixture
def pynetdicom_storescp(start_pynetdicom_storescp: Starter[Peer]) -> Peer:
    """pynetdicom's ``storescp``."""
    return start_pynetdicom_storescp()


@pytest.fixture
def pynetdicom_qrscp(start_pynetdicom_qrscp: Starter[Peer]) -> Peer:
    """An empty ``qrscp`` of pynetdicom."""
    return start_pynetdicom_qrscp()


@pytest.fixture
def pynetdicom_echoscp(tmp_path: Path) -> Iterator[Peer]:
    """pynetdicom's ``echoscp``."""
    with pynetdicom_apps.echoscp(tmp_path / "pynetdicom-echoscp") as peer:
        yield peer


@pytest.fixture
def study(tmp_path: Path) -> list[Path]:
    """Three DICOM files of one study of patient ``P1``."""
    return instances.write_study(tmp_path / "study")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates of every kind that TLS tests need."""
    return _certificates.issue(tmp_path_factory.mktemp("certificates"))
