"""A service for a Raspberry Pi: a daemon behind a Unix socket, under systemd and its watchdog. No port is opened.

python examples/pi_service.py demo.edgepack llm.sock
echo '{"messages": [{"role": "user", "content": "What is a token?"}]}' | socat -t 60 - UNIX-CONNECT:llm.sock

A line asks, lines answer: {"text": "..."} as it comes, then {"finish_reason": "stop", "tokens": 12}; {"error": "..."}
where something is wrong. Clients are served in turn; one that goes away, or reads nothing for ten seconds, ends its
answer. SIGTERM ends all answers and frees the model. pi_service.service is its unit: systemd starts it anew where it
crashes, where the engine fails, and where the engine gives no token for longer than WatchdogSec.
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
from contextlib import closing, suppress
from pathlib import Path
from time import monotonic

import msgspec

import edgepack


class Question(msgspec.Struct, forbid_unknown_fields=True):
    messages: list[dict[str, object]]
    max_tokens: int = 256


class Service:
    def __init__(self, model: edgepack.Model) -> None:
        self.model, self.end = model, asyncio.Event()
        self.asked, self.moved = 0, 0.0  # questions without their whole answer; when one of them last got a token

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def reply(**fields: object) -> None:
            writer.write(msgspec.json.encode(fields) + b"\n")
            await asyncio.wait_for(writer.drain(), 10)

        with suppress(OSError), closing(writer):  # a client that went, or does not read
            try:
                async for line in reader:
                    self.moved = self.moved if self.asked else monotonic()
                    self.asked += 1
                    try:
                        question = msgspec.json.decode(line, type=Question)
                        async with self.model.astream_chat(question.messages, max_tokens=question.max_tokens) as stream:
                            async for chunk in stream:
                                self.moved = monotonic()
                                await reply(text=chunk.text)
                        await reply(finish_reason=stream.result.finish_reason, tokens=len(stream.result.token_ids))
                    except (msgspec.DecodeError, edgepack.EdgepackError) as error:
                        if isinstance(error, edgepack.EngineError):
                            self.end.set()  # it would answer nobody else
                        await reply(error=str(error))
                    finally:
                        self.asked -= 1
            except ValueError:
                await reply(error="The line is longer than 64 KiB.")
            except asyncio.CancelledError:
                await reply(error="The service stops.")


def notify(state: str) -> None:
    """Tell systemd, where it started us, as sd_notify(3) does."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


async def run(model: edgepack.Model, path: Path) -> None:
    """Serve until a signal comes or the engine fails. Whoever is served then is told so."""
    service, seconds = Service(model), int(os.environ.get("WATCHDOG_USEC", 60e6)) / 1e6
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, service.end.set)
    server = await asyncio.start_unix_server(service.serve, path)
    notify("READY=1")
    while not service.end.is_set():
        if not service.asked or monotonic() - service.moved < seconds:
            notify("WATCHDOG=1")
        with suppress(TimeoutError):
            await asyncio.wait_for(service.end.wait(), seconds / 2)
    notify("STOPPING=1")
    server.close()
    path.unlink(missing_ok=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a bundle behind a Unix socket.")
    parser.add_argument("bundle")
    parser.add_argument("socket", type=Path)
    given = parser.parse_args()
    try:
        with edgepack.load(given.bundle) as loaded:
            asyncio.run(run(loaded, given.socket))
    except (edgepack.EdgepackError, OSError) as error:
        sys.exit(str(error) if isinstance(error, edgepack.EdgepackError) else f"{given.socket}: {error}")
