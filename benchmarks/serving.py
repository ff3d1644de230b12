"""Load a service with many clients, some of which send nonsense, far too much or next to nothing.

Run with ``python benchmarks/serving.py``; ``--clients 40 --seconds 3`` is a quick look. A small
model is fitted on real reviews and served by a process of its own. Of the clients, four fifths
send requests of one to three rows, one after the other, and compare what they get with what the
model predicts. The others send invalid rows and JSON, bodies of 150 MB, heads byte by byte, and
bodies that stop. The benchmark fails if one good request does not get its predictions.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

HOST = "127.0.0.1"
HEAD = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
OVERSIZE = 150_000_000
INVALID = [b"[" + b"{}," * 13_000 + b"{}]", b"[" * 40_000, b"{", b"\xff", b'{"a":NaN}', b'"rows"']
CLOSED = (ConnectionError, asyncio.IncompleteReadError)


@contextmanager
def service(path, *options):
    """Serve a model in a process; give the process and the port."""
    command = [sys.executable, "-m", "sk_easytensor.serving", str(path), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            if "serving" not in line:
                raise RuntimeError("the service did not start")
            yield process, int(line.rpartition(":")[2])
        finally:
            process.terminate()


async def receive(reader):
    """Return status and body of a response."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    length = next((line for line in lines if line.startswith("content-length:")), ":0")
    return int(lines[0].split()[1]), await reader.readexactly(int(length.partition(":")[2]))


async def send(writer, body):
    """Send a request."""
    writer.write(f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()


class Load:
    """Clients of a service, and what they found.

    Parameters
    ----------
    port : int
        Of the service on this machine.
    rows : list of dict
        To send.
    expected : dict of {str: list}
        For each of the rows, what the outputs of the service are.
    seconds : float
        That clients send for.
    """

    def __init__(self, port, rows, expected, seconds):
        self.port, self.rows, self.expected = port, rows, expected
        self.until = time.perf_counter() + seconds
        self.seconds, self.failed, self.statuses = [], [], Counter()

    def run(self, clients):
        """Run so many clients at a time."""

        async def all_of_them():
            bad = [self.invalid, self.oversize, self.slow_head, self.slow_body]
            kinds = [
                bad[index // 5 % 4] if index % 5 == 4 else self.good for index in range(clients)
            ]
            await asyncio.gather(*(kind(index) for index, kind in enumerate(kinds)))

        asyncio.run(all_of_them())
        return self

    async def good(self, index):
        reader, writer = await asyncio.open_connection(HOST, self.port)
        while time.perf_counter() < self.until:
            index = (index + 17) % (len(self.rows) - 3)
            part = slice(index, index + 1 + index % 3)
            begin = time.perf_counter()
            try:
                await send(writer, json.dumps(self.rows[part]).encode())
                status, body = await receive(reader)
            except CLOSED as error:
                self.failed.append(repr(error))
                return
            self.seconds.append(time.perf_counter() - begin)
            self.statuses["good", status] += 1
            if status != 200:
                self.failed.append(f"{status}: {body[:200]}")
                continue
            for name, values in json.loads(body).items():
                if not same(values, self.expected[name][part]):
                    self.failed.append(f"{name} of rows {part} differs")
            await asyncio.sleep(0.05)
        writer.close()

    async def invalid(self, index):
        await self.repeat("invalid", lambda writer: send(writer, INVALID[index % len(INVALID)]))

    async def oversize(self, index):
        async def some(writer):
            declared = f"Content-Length: {OVERSIZE}" if index % 2 else "Transfer-Encoding: chunked"
            writer.write(f"{HEAD}{declared}\r\n\r\n".encode())
            chunk = b" " * 2**16
            for _ in range(OVERSIZE // 2**16):
                writer.write(chunk if index % 2 else b"10000\r\n" + chunk + b"\r\n")
                await writer.drain()

        await self.repeat("oversize", some)

    async def slow_head(self, index):
        async def some(writer):
            for character in HEAD:
                writer.write(character.encode())
                await asyncio.sleep(0.2)

        await self.repeat("slow head", some)

    async def slow_body(self, index):
        async def some(writer):
            writer.write(f"{HEAD}Content-Length: 1000\r\n\r\n[".encode())
            await writer.drain()

        await self.repeat("slow body", some)

    async def repeat(self, kind, some):
        """Send one request a connection and count the statuses, "closed" without one."""
        while time.perf_counter() < self.until:
            status = "closed"
            reader, writer = await asyncio.open_connection(HOST, self.port)
            sending = asyncio.create_task(some(writer))
            with suppress(*CLOSED):
                status, _ = await receive(reader)
            sending.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await sending
            self.statuses[kind, status] += 1
            writer.close()
            await asyncio.sleep(0.1)

    def report(self):
        """Return lines of figures."""
        median, most, nearly = 1e3 * np.quantile(self.seconds, [0.5, 0.9, 0.99])
        return [
            f"{len(self.seconds)} good requests, {len(self.failed)} failed",
            f"milliseconds: p50 {median:.0f}, p90 {most:.0f}, p99 {nearly:.0f}",
            *(
                f"{kind}, {status}: {count}"
                for (kind, status), count in sorted(self.statuses.items(), key=str)
            ),
        ]


def same(found, expected):
    """Return whether outputs are the same, numbers up to rounding."""
    if isinstance(expected[0], str):
        return list(found) == list(expected)
    return bool(np.allclose(found, expected, atol=1e-5))


def peak_memory(process):
    """Return the most memory that a process has had, as Linux words it."""
    with suppress(OSError):
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("VmHWM"))
    return "unknown"


def reviews_model(folder):
    """Fit and export a small model; return its path and rows to send."""
    from sk_easytensor import MLP, EasyTensorClassifier
    from sk_easytensor.datasets import load_clothing_reviews

    X, y = load_clothing_reviews(return_X_y=True)
    X = X[["age", "department_name", "class_name", "title", "review_text"]]
    model = EasyTensorClassifier(trunk=MLP(width=64), max_epochs=3, trees=None, random_state=0)
    model.fit(X[:2000], y[:2000])
    return model.to_onnx(Path(folder) / "model.onnx"), json.loads(
        X[2000:2200].to_json(orient="records")
    )


def main():
    from sk_easytensor.inference import load

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, rows = reviews_model(folder)
        outputs = ["label", "probabilities"]
        arrays = load(path).run(rows, *outputs)
        expected = {name: each.tolist() for name, each in zip(outputs, arrays, strict=True)}
        with service(path, "--header-seconds", "3", "--body-seconds", "3") as (process, port):
            print(f"memory before: {peak_memory(process)}")
            load_ = Load(port, rows, expected, options.seconds).run(options.clients)
            print(*load_.report(), sep="\n")
            print(f"peak memory: {peak_memory(process)}")
    if load_.failed:
        raise SystemExit("\n".join(load_.failed[:10]))


if __name__ == "__main__":
    main()
