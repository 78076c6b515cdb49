"""Orthanc: a real archive, its REST interface beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.peers.peer import HOST, Peer, Target, wait_for_echo
from tests.peers.programs import program
from tests.peers.running import free_port, serving

_TIMEOUT = 10.0


@dataclass(frozen=True)
class Orthanc(Peer):
    """A running Orthanc.

    :ivar url: its REST interface
    """

    url: str = ""

    def get(self, path: str) -> Any:
        """GET a JSON resource; not for the event loop, where :meth:`get_async` is."""
        return httpx.get(self.url + path, timeout=_TIMEOUT).raise_for_status().json()

    async def get_async(self, path: str) -> Any:
        """GET a JSON resource."""
        async with httpx.AsyncClient(timeout=_TIMEOUT) as client:
            return (await client.get(self.url + path)).raise_for_status().json()

    def upload(self, file: Path) -> str:
        """Put a DICOM file into it, and return Orthanc's identifier of the instance."""
        answer = httpx.post(f"{self.url}/instances", content=file.read_bytes(), timeout=_TIMEOUT).raise_for_status()
        return str(answer.json()["ID"])

    def sop_instance_uids(self) -> set[str]:
        """What it keeps."""
        instances = self.get("/instances?expand")
        return {instance["MainDicomTags"]["SOPInstanceUID"] for instance in instances}


def _configuration(folder: Path, ae_title: str, dicom_port: int, http_port: int, known: Sequence[Target]) -> dict[str, Any]:
    return {
        "Name": ae_title,
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [],
        "DicomServerEnabled": True,
        "DicomAet": ae_title,
        "DicomPort": dicom_port,
        "DicomCheckCalledAet": False,
        "DicomCheckModalityHost": False,
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomScpTimeout": 10,
        "DicomScuTimeout": 10,
        "UnknownSopClassAccepted": True,
        # A C-MOVE request goes to the modality by this AE title.
        "DicomModalities": {to.ae_title.lower(): [to.ae_title, to.host, to.port] for to in known},
        "HttpServerEnabled": True,
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "OverwriteInstances": False,
        "ConcurrentJobs": 2,
    }


@contextmanager
def orthanc(folder: Path, *, ae_title: str = "ORTHANC", known: Sequence[Target] = (), **settings: Any) -> Iterator[Orthanc]:
    """Orthanc with its storage in a folder.

    :param known: application entities that it can move and send to (``DicomModalities``)
    :param settings: further keys of its configuration
    """
    storage = folder / "storage"
    storage.mkdir(parents=True)
    dicom_port, http_port = free_port(), free_port()
    config = folder / "orthanc.json"
    config.write_text(json.dumps(_configuration(folder, ae_title, dicom_port, http_port, known) | settings, indent=2))
    # It takes seconds to close a database that nobody will open again.
    with serving([program("Orthanc"), config], log=folder / "orthanc.log", grace=0.1) as server:
        peer = Orthanc(ae_title, dicom_port, server, storage, url=f"http://{HOST}:{http_port}")
        wait_for_echo(peer)
        server.wait_until(lambda: _answers(f"{peer.url}/system"))
        yield peer


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0).is_success
    except httpx.TransportError:
        return False
