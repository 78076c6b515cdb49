"""The private names of pynetdicom that the bridge stands on. When one moves, this says which."""

from __future__ import annotations

import inspect
from importlib.metadata import version

import pytest
from pynetdicom import _config, fsm
from pynetdicom.acse import ACSE
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dul import DULServiceProvider
from pynetdicom.timer import Timer
from pynetdicom.transport import AssociationSocket

MEMBERS = {
    Association: [
        "_abort_blocking",
        "_run_reactor",
        "_serve_request",
        "kill",
        "rejected_contexts",
        "request",
        "run_reactor",
    ],
    DULServiceProvider: ["_decode_pdu", "_send", "kill_dul", "receive_pdu", "run_reactor", "idle_timer_expired"],
    DIMSEServiceProvider: ["get_msg", "receive_primitive", "send_msg"],
    AssociationSocket: ["_create_socket", "close", "connect", "ready", "recv", "send"],
    ACSE: [
        "is_aborted",
        "is_release_requested",
        "negotiate_association",
        "negotiate_release",
        "send_abort",
        "send_accept",
        "send_reject",
        "send_release",
    ],
    DIMSEMessage: ["decode_msg"],
    Timer: ["expired", "remaining", "restart", "start", "stop", "timeout"],
    fsm.StateMachine: ["do_action"],
}


def test_the_bridge_was_written_against_this_version() -> None:
    assert version("pynetdicom").startswith("3."), (
        "read docs/architecture.md, then hold asyncdicom/association/hardened.py against it"
    )


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in MEMBERS.items() for name in names])
def test_a_member_that_is_overridden_or_called_exists(owner: type, name: str) -> None:
    assert hasattr(owner, name), f"{owner.__module__}.{owner.__qualname__}.{name} has moved"


@pytest.mark.parametrize("name", ["LOG_REQUEST_IDENTIFIERS", "LOG_RESPONSE_IDENTIFIERS", "LOG_HANDLER_LEVEL"])
def test_a_setting_exists(name: str) -> None:
    assert hasattr(_config, name)


def test_the_attributes_that_are_replaced_exist() -> None:
    association = Association(ApplicationEntity("NAMES"), "requestor")
    for owner, names in (
        (
            association,
            ["acse", "dul", "dimse", "_dul_ready", "_kill", "_is_paused", "_reactor_checkpoint", "_sent_abort", "_accepted_cx"],
        ),
        (
            association.dul,
            ["to_provider_queue", "to_user_queue", "event_queue", "artim_timer", "_idle_timer", "_run_loop_delay"],
        ),
        (association.dimse, ["message", "msg_queue"]),
        (DIMSEMessage(), ["encoded_command_set", "data_set"]),
    ):
        for name in names:
            assert hasattr(owner, name), f"{type(owner).__qualname__}.{name} has moved"


def test_a_store_can_be_read_from_a_file_as_it_is_sent() -> None:
    assert hasattr(C_STORE(), "_dataset_path")


def test_the_state_machine_s_names_are_those_of_the_standard() -> None:
    assert {"Evt17", "Evt19"} <= {event for event, _ in fsm.TRANSITION_TABLE}
    assert {"Sta1", "Sta13"} <= set(fsm.STATES)


def test_the_acceptor_s_timeout_is_passed_to_its_wait() -> None:
    assert "timeout" in inspect.signature(DULServiceProvider.receive_pdu).parameters
