"""A TCP link with a delay in each direction, on loopback: for what depends on how far away a box is.

    with DelayedLink(port, one_way_s=0.04) as link:  # connections to link.port reach `port` 40 ms later

It runs in a process of its own, so that it forwards while the caller is busy. A SIGSTOP of `link.pid` freezes the link.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from types import TracebackType

CHUNK = 1 << 16  # bytes
MOST_CHUNKS = 256  # on their way in one direction; further ones wait at the sender, as on a real link


class DelayedLink:
    """A listening port on 127.0.0.1 whose connections are forwarded to `target`, a port there too."""

    def __init__(self, target: int, one_way_s: float) -> None:
        command = [sys.executable, "-S", __file__, str(target), str(one_way_s)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.pid = self._process.pid
        self.port = int(self._process.stdout.readline())

    def __enter__(self) -> DelayedLink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cut every connection, and stop listening."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


async def _serve(target: int, one_way_s: float) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_forward(reader, far_writer, one_way_s), _forward(far_reader, writer, one_way_s))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    # Our stdin ends with the process that started us, however that ends.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, one_way_s: float) -> None:
    """Forward what `reader` gets, and its end, each `one_way_s` later."""
    clock = asyncio.get_running_loop().time
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MOST_CHUNKS)

    async def receive() -> None:
        data = b"any"
        while data:
            try:
                data = await reader.read(CHUNK)
            except OSError:
                data = b""
            await queue.put((clock() + one_way_s, data))

    receiving = asyncio.create_task(receive())
    while True:
        due, data = await queue.get()
        await asyncio.sleep(due - clock())
        try:
            if not data:
                writer.close()
                break
            writer.write(data)
            await writer.drain()
        except OSError:  # the receiver has gone: the sender must learn of it, so stop reading
            break
    receiving.cancel()


if __name__ == "__main__":
    try:
        asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2])))
    except KeyboardInterrupt:
        pass
