"""Reading what Weights & Biases has written offline, with its own messages (wandb.proto).

The file is a LevelDB log behind a header of seven bytes: blocks of 32 KiB with pieces of records,
each behind its checksum (4 bytes), length (2) and kind (1: whole, 2: first, 3: middle, 4: last).
"""

import struct
import time

BLOCK = 32768


def pieces(content):
    place = 7
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        if kind == 0:
            return
        yield kind, content[place + 7 : place + 7 + length]
        place += 7 + length


def records(path):
    from wandb.proto.wandb_internal_pb2 import Record

    whole = b""
    for kind, piece in pieces(path.read_bytes()):
        whole = piece if kind in (1, 2) else whole + piece
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(whole)
            yield record.WhichOneof("record_type"), record


def finished_records(path):
    """The records once the last is there: W&B's own process may write after a run has ended."""
    for _ in range(100):
        found = list(records(path))
        if any(kind == "exit" for kind, _ in found):
            return found
        time.sleep(0.2)
    raise AssertionError(f"{path} has no end")
