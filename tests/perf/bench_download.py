"""Speed and memory of a download against the plainest one: `python -m tests.perf.bench_download`.

A server in its own process sends a file over loopback. In turns, fresh processes fetch it

    plain   one connection of http.client, written and hashed as it comes, one fsync at the end
    ours    `fetch_file`, with its journal, CRCs and a sync each 8 MiB

and print MB/s, with what the process grew by while it did so. Nothing is asserted: the figures
depend on the machine, which should do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qh_runtime.store.download import fetch_file
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.transfer import FetchOptions, RemoteFile, StopSignal

BLOCK = 1 << 20


def peak_bytes() -> int:
    """The most memory this process has had, from the kernel's books."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def plain(port: int, size: int, folder: Path) -> str:
    """Fetch with one connection and no safety at all."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/file", headers={"Accept-Encoding": "identity"})
    response = connection.getresponse()
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(BLOCK))
    with open(folder / "plain", "wb", buffering=0) as file:
        while count := response.readinto(buffer):
            file.write(buffer[:count])
            digest.update(buffer[:count])
        os.fsync(file.fileno())
    connection.close()
    return digest.hexdigest()


def ours(port: int, size: int, folder: Path, sha256: str, connections: int) -> str:
    """Fetch into a store."""
    file = RemoteFile("file", size, sha256, "", f"http://127.0.0.1:{port}/file")
    options = FetchOptions(connections=connections)
    found = fetch_file(StoreLayout(folder), file, options, lambda _: None, StopSignal())
    assert found is not None
    return found


def measure(job: str) -> None:
    """One download in this process; prints seconds and bytes of growth as JSON."""
    args = json.loads(job)
    folder = Path(args["folder"])
    before = peak_bytes()
    start = time.perf_counter()
    if args["how"] == "plain":
        found = plain(args["port"], args["size"], folder)
    else:
        found = ours(args["port"], args["size"], folder, args["sha256"], args["connections"])
    seconds = time.perf_counter() - start
    assert found == args["sha256"]
    print(json.dumps({"seconds": seconds, "grown": peak_bytes() - before}))


def make_file(path: Path, size: int) -> str:
    """Random bytes; returns their hash."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for begin in range(0, size, BLOCK):
            data = os.urandom(min(BLOCK, size - begin))
            file.write(data)
            digest.update(data)
    return digest.hexdigest()


def main() -> None:
    """Run the rounds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=1_000_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to write; default: the temporary folder")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measure(args.one)
        return
    ways = {"plain": 1, "ours, 1 connection": 1, "ours, 4 connections": 4}
    rates: dict[str, list[float]] = {x: [] for x in ways}
    grown = dict.fromkeys(ways, 0)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        source = Path(name) / "source"
        sha256 = make_file(source, args.bytes)
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.payload_server", str(source)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        port = int(server.stdout.readline())
        for _ in range(args.rounds):
            for way, connections in ways.items():
                with tempfile.TemporaryDirectory(dir=name) as folder:
                    job = {
                        "how": way.partition(",")[0],
                        "port": port,
                        "size": args.bytes,
                        "folder": folder,
                        "sha256": sha256,
                        "connections": connections,
                    }
                    command = [sys.executable, "-m", "tests.perf.bench_download", "--one"]
                    done = subprocess.run(
                        [*command, json.dumps(job)], capture_output=True, text=True, check=True
                    )
                found = json.loads(done.stdout)
                rates[way].append(args.bytes / 1e6 / found["seconds"])
                grown[way] = max(grown[way], found["grown"])
        server.communicate()
    base = statistics.median(rates["plain"])
    print(
        f"{'way':22} {'MB/s median':>11} {'worst':>6} {'best':>6} {'of plain':>8} {'grown MB':>8}"
    )
    for way, found in rates.items():
        median = statistics.median(found)
        print(
            f"{way:22} {median:11.0f} {min(found):6.0f} {max(found):6.0f} "
            f"{median / base:8.0%} {grown[way] / 1e6:8.1f}"
        )


if __name__ == "__main__":
    main()
