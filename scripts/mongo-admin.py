#!/usr/bin/env python3
"""Make local mongod processes a replica set, and wait until it takes writes.

    mongo-admin.py SET_NAME PORT [PORT ...] [--timeout SECONDS] [--fast-elections]

Used by scripts/services. Python's standard library is all it needs, because a fresh machine has neither a MongoDB
shell nor a driver: it speaks OP_MSG itself, with just the BSON types that the two commands below use.
Running it again on a set that is already up changes nothing.
"""

import argparse
import socket
import struct
import sys
import time

OP_MSG = 2013
ALREADY_INITIALIZED = 23


def encode(document):
    """BSON for the types we send: bool, int, str, list, dict."""
    body = b""
    for name, value in document.items():
        key = name.encode() + b"\0"
        if isinstance(value, bool):
            body += b"\x08" + key + (b"\1" if value else b"\0")
        elif isinstance(value, int):
            body += b"\x10" + key + struct.pack("<i", value)
        elif isinstance(value, str):
            text = value.encode() + b"\0"
            body += b"\x02" + key + struct.pack("<i", len(text)) + text
        elif isinstance(value, list):
            body += b"\x04" + key + encode({str(i): item for i, item in enumerate(value)})
        else:
            body += b"\x03" + key + encode(value)
    return struct.pack("<i", len(body) + 5) + body + b"\0"


# Bytes taken by the values of fixed size: double, object id, bool, date, null, int32, timestamp, int64, decimal.
FIXED = {0x01: 8, 0x07: 12, 0x08: 1, 0x09: 8, 0x0A: 0, 0x10: 4, 0x11: 8, 0x12: 8, 0x13: 16}


def decode(data):
    """BSON to a dict. Values we have no use for (dates, ids, binary, ...) come back as raw bytes."""
    document, at = {}, 4
    while data[at]:
        kind, end = data[at], data.index(b"\0", at + 1)
        name, at = data[at + 1 : end].decode(), end + 1
        if kind in FIXED:
            size = FIXED[kind]
        else:
            (size,) = struct.unpack_from("<i", data, at)
            if kind == 0x02:
                size += 4
            elif kind == 0x05:
                size += 5
            elif kind not in (0x03, 0x04):
                raise ValueError(f"field {name} has BSON type {kind:#x}, which this script does not read")
        raw, at = data[at : at + size], at + size
        if kind == 0x01:
            document[name] = struct.unpack("<d", raw)[0]
        elif kind == 0x02:
            document[name] = raw[4:-1].decode()
        elif kind in (0x03, 0x04):
            document[name] = decode(raw)
        elif kind == 0x08:
            document[name] = raw == b"\1"
        elif kind == 0x10:
            document[name] = struct.unpack("<i", raw)[0]
        else:
            document[name] = raw
    return document


def read_exactly(connection, size):
    data = b""
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        if not chunk:
            raise ConnectionError("connection closed by mongod")
        data += chunk
    return data


def command(port, timeout=5, database="admin", **fields):
    """Run one command on a database of 127.0.0.1:port; the first field names the command."""
    body = b"\0\0\0\0" + b"\0" + encode({**fields, "$db": database})  # no flags; one section, of kind 0
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.sendall(struct.pack("<iiii", 16 + len(body), 1, 0, OP_MSG) + body)
        (length,) = struct.unpack("<i", read_exactly(connection, 4))
        reply = read_exactly(connection, length - 4)
    return decode(reply[12 + 5 :])  # the rest of the header, then the flags and the section's kind


def initiate(set_name, ports, fast_elections):
    settings = {}
    if fast_elections:
        settings = {"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500, "heartbeatTimeoutSecs": 2}
    members = [{"_id": i, "host": f"127.0.0.1:{port}"} for i, port in enumerate(ports)]
    reply = command(
        ports[0], timeout=30, replSetInitiate={"_id": set_name, "members": members, "settings": settings}
    )
    if not reply.get("ok") and reply.get("code") != ALREADY_INITIALIZED:
        raise RuntimeError(f"replSetInitiate on port {ports[0]}: {reply.get('errmsg')}")


def try_once(set_name, ports, fast_elections):
    """None if the set is ready, otherwise the missing part."""
    hellos = {}
    for port in ports:
        try:
            hellos[port] = command(port, hello=1)
        except OSError as error:
            return f"port {port}: {error}"
    found = {hello.get("setName") for hello in hellos.values()} - {None}
    if found - {set_name}:
        return f"the mongod on these ports belong to {', '.join(sorted(found))}, not to {set_name}"
    if not found and all(hello.get("isreplicaset") for hello in hellos.values()):
        initiate(set_name, ports, fast_elections)
        return "just initiated"
    if not any(hello.get("isWritablePrimary") for hello in hellos.values()):
        return "no primary yet"
    idle = [str(p) for p, hello in hellos.items() if not (hello.get("isWritablePrimary") or hello.get("secondary"))]
    return f"not in sync yet: {', '.join(idle)}" if idle else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set_name")
    parser.add_argument("ports", type=int, nargs="+")
    parser.add_argument("--timeout", type=float, default=60, help="seconds to wait in all (default: 60)")
    parser.add_argument("--fast-elections", action="store_true", help="elect a new primary after 2 s, not 10 s")
    options = parser.parse_args()
    deadline = time.monotonic() + options.timeout
    while missing := try_once(options.set_name, options.ports, options.fast_elections):
        if time.monotonic() > deadline:
            sys.exit(f"replica set {options.set_name} is not ready after {options.timeout:.0f} s: {missing}")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
