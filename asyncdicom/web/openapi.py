"""What every address takes and answers, as OpenAPI 3.1 (``/api/openapi.json``).

Kept by hand beside the routes; a test asks a running service for everything that is described, and compares.
"""

from __future__ import annotations

from typing import Any, get_args

from asyncdicom.monitor.state import Condition
from asyncdicom.outcome import OPERATIONS, PHASES, Reason

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_MOMENT: Schema = {"type": "string", "format": "date-time"}
_REASON: Schema = {"type": "string", "enum": [reason.value for reason in Reason]}
_OPERATION: Schema = {"type": "string", "enum": list(OPERATIONS)}
_STATUS: Schema = {"type": "integer", "minimum": 0, "maximum": 0xFFFF, "description": "a DIMSE status (PS3.7 Annex C)"}
_STATE: Schema = {"type": "string", "enum": list(get_args(Condition))}
_MILLISECONDS: Schema = {"type": "number", "minimum": 0, "description": "milliseconds"}
_SECURITY: list[Schema] = [{}, {"bearer": []}, {"basic": []}]


def _object(**properties: Schema) -> Schema:
    """An object all of whose members are always there."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    if "enum" in schema:
        return {**schema, "type": [schema["type"], "null"], "enum": [*schema["enum"], None]}
    return {**schema, "type": [schema["type"], "null"]}


def _named(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_PROBLEM: dict[str, Schema] = {
    "error": {**_TEXT, "description": "what is wrong"},
    "where": {**_TEXT, "description": "the parameter, setting or path"},
    "remedy": {**_TEXT, "description": "what to do next"},
}
_MODALITY: dict[str, Schema] = {
    "name": _TEXT,
    "ae_title": _TEXT,
    "host": _TEXT,
    "port": {"type": "integer", "minimum": 1, "maximum": 65_535},
    "groups": _list(_TEXT),
    "state": {**_STATE, "description": "after down_after failures, or up_after successes, in a row"},
    "since": {**_or_null(_MOMENT), "description": "since when it is in this state"},
    "reason": {**_or_null(_REASON), "description": "of its last outcome: a failure where there is one"},
    "detail": _or_null(_TEXT),
    "remedy": _or_null(_TEXT),
    "status": _or_null(_STATUS),
    "latency_ms": {**_or_null(_MILLISECONDS), "description": "how many milliseconds the last success took"},
    "last_success": _or_null(_MOMENT),
    "last_received": {**_or_null(_MOMENT), "description": "when it last sent us an instance"},
    "expected_by": {**_or_null(_MOMENT), "description": "when an instance is expected of it at the latest"},
    "quiet_since": {**_or_null(_MOMENT), "description": "since when it has sent less than expected; null while it has not"},
    "failures": {**_COUNT, "description": "outcomes without success, in a row"},
    "breaker_open": {"type": "boolean", "description": "whether it is left alone for a while"},
}
_OUTCOME: dict[str, Schema] = {
    "modality": _TEXT,
    "ae_title": _TEXT,
    "host": _TEXT,
    "port": {"type": "integer", "minimum": 0, "maximum": 65_535},
    "ok": {"type": "boolean"},
    "reason": _REASON,
    "status": _or_null(_STATUS),
    "duration_ms": _MILLISECONDS,
    "phases_ms": _object(**{phase: _or_null(_MILLISECONDS) for phase in PHASES}),
    "peer": _object(implementation_class_uid=_or_null(_TEXT), implementation_version=_or_null(_TEXT)),
    "rejected": _object(**{name: _or_null({"type": "integer"}) for name in ("result", "source", "reason")}),
}
_SCHEMAS: dict[str, Schema] = {
    "Problem": _object(**_PROBLEM),
    "Modality": _object(**_MODALITY),
    "ModalityInFull": _object(
        **_MODALITY,
        latest={
            "type": "object",
            "description": "the last outcome of each operation that is asked of it",
            "propertyNames": _OPERATION,
            "additionalProperties": _named("Outcome"),
        },
        outcomes=_list(_object(at=_MOMENT, operation=_OPERATION, reason=_REASON, duration_ms=_MILLISECONDS)),
        failed=_list(_object(at=_MOMENT, operation=_OPERATION, reason=_REASON, status=_or_null(_STATUS), detail=_TEXT)),
        changes=_list(_object(at=_MOMENT, state=_STATE, seconds={"type": "number", "minimum": 0})),
    ),
    "Outcome": _object(**_OUTCOME),
    "OutcomeInFull": _object(**_OUTCOME, detail=_TEXT, remedy=_TEXT),
    "Study": _object(
        study_instance_uid=_TEXT,
        study_date=_or_null(_TEXT),
        series=_COUNT,
        instances=_COUNT,
        size={**_COUNT, "description": "bytes"},
        first_received=_MOMENT,
        last_received=_MOMENT,
        completed_at={**_or_null(_MOMENT), "description": "null while instances may still come"},
    ),
    "Storage": _object(
        associations=_COUNT,
        instances=_COUNT,
        failed=_COUNT,
        received_bytes=_COUNT,
        rejected=_COUNT,
        last_received=_or_null(_MOMENT),
    ),
    "TargetGroup": _object(
        targets={**_list(_TEXT), "minItems": 1, "maxItems": 1},
        labels=_object(**{f"__meta_dicom_{name}": _TEXT for name in ("groups", "ae_title", "host", "port")}),
    ),
    "Reloaded": _object(reloaded={"const": True}, mistakes={**_list(_TEXT), "maxItems": 0}),
    "NotReloaded": _object(**_PROBLEM, reloaded={"const": False}, mistakes={**_list(_TEXT), "minItems": 1}),
}


def _answer(description: str, media_type: str, schema: Schema) -> Schema:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _json(description: str, schema: Schema) -> Schema:
    return _answer(description, "application/json", schema)


def _text(description: str) -> Schema:
    return _answer(description, "text/plain", _TEXT)


def _page(description: str) -> Schema:
    return _answer(description, "text/html", _TEXT)


def _problem(description: str) -> Schema:
    return _json(description, _named("Problem"))


def _parameter(name: str, description: str, schema: Schema = _TEXT, *, where: str = "query", required: bool = False) -> Schema:
    return {"name": name, "in": where, "required": required or where == "path", "description": description, "schema": schema}


def _operation(
    summary: str, tag: str, answers: dict[str, Schema], *parameters: Schema, is_open: bool = False, changes: bool = False
) -> Schema:
    """One method of a path.

    :param answers: by status
    :param is_open: it needs no token in any case
    :param changes: it is answered without a token to this machine alone, and to no other site's page
    """
    refusals = {} if is_open else {"401": _problem("the token is missing or wrong")}
    if changes:
        refusals["403"] = _problem("another site, or without a token another machine")
    operation: Schema = {"summary": summary, "tags": [tag], "responses": {**answers, **refusals}}
    if parameters:
        operation["parameters"] = list(parameters)
    operation["security"] = [{}] if is_open else _SECURITY
    return operation


_NAME = _parameter("name", "a modality of the inventory", where="path")
_FRAGMENT = _parameter("fragment", "with any value: what of the page changes by itself")
_NO_MODALITY = "the inventory has no such modality"
_NO_INDEX = "the index does not answer"
_SAMPLES = {
    "200": {
        "description": "as Prometheus' text format, or as OpenMetrics for who accepts it",
        "content": {"text/plain": {"schema": _TEXT}, "application/openmetrics-text": {"schema": _TEXT}},
    }
}


def _paths() -> dict[str, Schema]:
    return {
        "/": {
            "get": _operation(
                "the fleet page",
                "pages",
                {"200": _page("the page")},
                _parameter("q", "part of a name, AE title or host"),
                _parameter("state", "only those in this state"),
                _parameter("group", "only those of this group"),
                _parameter("failing", "1: only what is down or quiet"),
                _parameter("page", "from 1", {"type": "integer", "minimum": 1}),
                _FRAGMENT,
            )
        },
        "/modalities/{name}": {
            "get": _operation(
                "the page of a modality",
                "pages",
                {"200": _page("the page"), "404": _page(_NO_MODALITY)},
                _NAME,
                _FRAGMENT,
            )
        },
        "/storage": {
            "get": _operation("the storage page", "pages", {"200": _page("the page"), "503": _page(_NO_INDEX)}, _FRAGMENT)
        },
        "/static/{name}": {
            "get": _operation(
                "what pages load",
                "pages",
                {
                    "200": {
                        "description": "the file",
                        "content": {kind: {"schema": _TEXT} for kind in ("text/css", "text/javascript", "image/svg+xml")},
                    },
                    "404": _problem("there is no such file"),
                },
                _parameter("name", "of the file", where="path"),
            )
        },
        "/metrics": {"get": _operation("every metric", "prometheus", _SAMPLES)},
        "/probe": {
            "get": _operation(
                "ask a modality now; 200 also when it is down, because the metrics say so",
                "prometheus",
                {**_SAMPLES, "400": _problem("no such modality or module, or it does not allow it")},
                _parameter("target", "a name of the inventory", required=True),
                _parameter("module", "echo, find, worklist, store, or a [[probe]] of the configuration; echo by default"),
                _parameter("debug", "true: what was said on the wire, in words", {"type": "string", "enum": ["true", "false"]}),
                _parameter(
                    "X-Prometheus-Scrape-Timeout-Seconds",
                    "how long the scraper waits",
                    {"type": "number", "exclusiveMinimum": 0},
                    where="header",
                ),
            )
        },
        "/sd": {
            "get": _operation(
                "the inventory for http_sd_configs",
                "prometheus",
                {"200": _json("one item for each modality", _list(_named("TargetGroup")))},
            )
        },
        "/-/healthy": {"get": _operation("whether the loop turns", "service", {"200": _text("it does")}, is_open=True)},
        "/-/ready": {
            "get": _operation(
                "whether the service can work",
                "service",
                {"200": _text("it can"), "503": _text("it cannot: a reason a line")},
                is_open=True,
            )
        },
        "/-/reload": {
            "post": _operation(
                "read the configuration again",
                "service",
                {
                    "200": _json("it was", _named("Reloaded")),
                    "422": _json("it has mistakes, and the old one stays", _named("NotReloaded")),
                },
                changes=True,
            )
        },
        "/api/openapi.json": {"get": _operation("this description", "api", {"200": _json("OpenAPI 3.1", {"type": "object"})})},
        "/api/events": {
            "get": _operation(
                "what changes, as server-sent events",
                "api",
                {
                    "200": _answer(
                        "events: modality (data: Modality), gone (data: an object with its name), storage (data: Storage)",
                        "text/event-stream",
                        _TEXT,
                    ),
                    "503": _problem("too many listen already"),
                },
                _parameter(
                    "brief", "with any value: one event, changed, with the names of modalities and whether storage changed"
                ),
            )
        },
        "/api/studies": {
            "get": _operation(
                "the studies that received something last, latest first, without patients",
                "api",
                {
                    "200": _json("at most as many as the limit", _list(_named("Study"))),
                    "400": _problem("the limit is none"),
                    "503": _problem(_NO_INDEX),
                },
                _parameter("limit", "how many; 100 by default", {"type": "integer", "minimum": 1, "maximum": 1_000}),
            )
        },
        "/api/modalities": {
            "get": _operation(
                "every modality, in the order of the inventory",
                "api",
                {"200": _json("all of them", _list(_named("Modality")))},
            )
        },
        "/api/modalities/{name}": {
            "get": _operation(
                "one modality, with its last outcomes",
                "api",
                {"200": _json("the modality", _named("ModalityInFull")), "404": _problem(_NO_MODALITY)},
                _NAME,
            )
        },
        "/api/modalities/{name}/echo": {
            "post": _operation(
                "ask a modality for an echo now; 200 whatever came of it",
                "api",
                {"200": _json("what came of it", _named("OutcomeInFull")), "404": _problem(_NO_MODALITY)},
                _NAME,
                changes=True,
            )
        },
    }


def describe(version: str) -> Schema:
    """The description of the web side.

    :param version: of asyncdicom
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "asyncdicom",
            "version": version,
            "description": "Fleets of DICOM devices: what is up, what arrived, what happened.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": _paths(),
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "the token of web.token_file, where there is one",
                },
                "basic": {"type": "http", "scheme": "basic", "description": "the token as the password, whatever the user"},
            },
        },
    }
