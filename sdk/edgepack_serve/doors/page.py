"""GET /, /status and /static/NAME: the page for people. Its files are read once; no path of a client names a file."""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

# No script, style or connection of elsewhere, and none that stands in the page itself.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Page:
    """Answers with the page's files."""

    def __init__(self) -> None:
        folder = files("edgepack_serve") / "page"
        found = [each for each in folder.iterdir() if each.is_file()] if folder.is_dir() else []
        self._files = {each.name: each.read_bytes() for each in found if _ending(each.name) in _KINDS}

    async def index(self, request: Request) -> Response:
        """Return the chat."""
        return self._file(request, "index.html")

    async def status(self, request: Request) -> Response:
        """Return the page of the server's status."""
        return self._file(request, "status.html")

    async def file(self, request: Request) -> Response:
        """Return a file that the pages ask for."""
        return self._file(request, request.path_params["name"])

    def _file(self, request: Request, name: str) -> Response:
        data = self._files.get(name)
        if data is None:
            raise HTTPException(404)
        tag = f'"{sha256(data).hexdigest()[:32]}"'
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, headers={**headers, "Content-Type": _KINDS[_ending(name)]})


def _ending(name: str) -> str:
    return name[name.rfind(".") :]
