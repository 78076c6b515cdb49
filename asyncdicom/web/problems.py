"""What is answered where something is wrong: one shape for programs, one page for people. What, where, what to do next."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from asyncdicom.errors import ArchiveError, ConfigurationError
from asyncdicom.web.markup import element
from asyncdicom.web.shell import Shell

logger = logging.getLogger(__name__)

# Whose answers people read. Everything else is for programs.
_PAGES = ("/modalities/", "/storage")
_INDEX_REMEDY = (
    "look at the log of the service and at /-/ready; check the disk and the file that archive.index names, and whether another"
    " program has it open; instances that were acknowledged are kept"
)


class Problem(HTTPException):
    """A request that cannot be answered as asked.

    :param status: of HTTP
    :param what: is wrong
    :param where: the parameter, setting or path
    :param remedy: what to do next
    """

    def __init__(self, status: int, what: str, where: str, remedy: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, what, None if headers is None else dict(headers))
        self.where = where
        self.remedy = remedy


def problem_json(
    status: int, what: str, where: str, remedy: str, headers: Mapping[str, str] | None = None, **more: Any
) -> JSONResponse:
    """A problem as programs read it.

    :param more: further members
    """
    return JSONResponse({"error": what, "where": where, "remedy": remedy, **more}, status, headers)


class Problems:
    """Turns what routes raise into answers.

    :param shell: what pages have around them
    """

    def __init__(self, shell: Callable[[], Shell]) -> None:
        self._shell = shell

    def handlers(self) -> dict[Any, Any]:
        """By exception, as the application wants them."""
        return {
            HTTPException: self._http,
            ArchiveError: self._index,
            ConfigurationError: self._setting,
            Exception: self._fault,
        }

    async def _http(self, request: Request, error: HTTPException) -> Response:
        return self._answer(request, error if isinstance(error, Problem) else _told(request, error))

    async def _index(self, request: Request, error: ArchiveError) -> Response:
        logger.warning("the web side has no answer from the index: %s", error)
        return self._answer(request, Problem(503, str(error), "archive.index", _INDEX_REMEDY, {"retry-after": "10"}))

    async def _setting(self, request: Request, error: ConfigurationError) -> Response:
        return self._answer(request, Problem(400, str(error), error.path, error.remedy))

    async def _fault(self, request: Request, error: Exception) -> Response:
        # The server logs it with its traceback.
        what = f"a fault of ours: {type(error).__name__}"
        return self._answer(request, Problem(500, what, request.url.path, "look at the log of the service, and report it"))

    def _answer(self, request: Request, problem: Problem) -> Response:
        path = request.url.path
        if path != "/" and not path.startswith(_PAGES):
            return problem_json(problem.status_code, problem.detail, problem.where, problem.remedy, problem.headers)
        card = element(
            "div",
            element("nav", element("a", "‹ Fleet", href="/"), class_="back"),
            element(
                "div",
                element("p", element("b", _capital(problem.detail)), " ", element("code", problem.where)),
                element("p", element("b", "Next: "), problem.remedy, class_="next"),
                class_="card pad told down",
            ),
            id="live",
            data_title=f"{problem.status_code} · asyncdicom",
        )
        page = self._shell().page(str(problem.status_code), card)
        return HTMLResponse(page, problem.status_code, problem.headers)


def _told(request: Request, error: HTTPException) -> Problem:
    """What the framework found, in words."""
    path = request.url.path
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return Problem(405, f"{request.method} is not for this address", path, f"it takes {allowed}", error.headers)
    if error.status_code == 404:
        return Problem(404, "there is nothing at this address", path, "/api/openapi.json names every address")
    return Problem(error.status_code, error.detail, path, "/api/openapi.json says what is expected", error.headers)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
