"""The trash of the pool `volumes`: how many objects what is in it still takes, by image, as JSON. With LATER (seconds) everything in it was
deleted so much earlier than it was: the pool's own record of the time is put back, so that nobody has to wait.

Environment: CEPH_CONF; LATER, where it is wanted.
"""

import json
import os
import struct

import rados
import rbd

import disks

pool = disks.pool()
# The pool's record of its trash, and the key of an image there (Ceph, src/cls/rbd/cls_rbd.cc).
RECORD, KEY = "rbd_trash", "id_"


def put_back(entry, seconds):
    """cls::rbd::TrashImageSpec (src/cls/rbd/cls_rbd_types.cc): six bytes of version and length, source, name, and two times."""
    (name_bytes,) = struct.unpack_from("<I", entry, 7)
    at = 11 + name_bytes
    deleted, deleted_ns, until, until_ns = struct.unpack_from("<4I", entry, at)
    times = struct.pack("<4I", deleted - seconds, deleted_ns, until - seconds, until_ns)
    return entry[:at] + times + entry[at + len(times) :]


def listed():
    return {image["id"]: image for image in rbd.RBD().trash_list(pool)}


if later := int(os.environ.get("LATER", "0")):
    before = listed()
    with rados.ReadOpCtx() as read:
        entries, _ = pool.get_omap_vals(read, "", KEY, 1000)
        pool.operate_read_op(read, RECORD)
        entries = dict(entries)
    with rados.WriteOpCtx() as write:
        pool.set_omap(write, tuple(entries), tuple(put_back(entry, later) for entry in entries.values()))
        pool.operate_write_op(write, RECORD)
    for id, image in listed().items():
        moved = (before[id]["deletion_time"] - image["deletion_time"]).total_seconds()
        if image["name"] != before[id]["name"] or abs(moved - later) > 1:
            raise SystemExit(f"the time of {image['name']} could not be put back: by {moved} s")

objects = [object.key for object in pool.list_objects()]
print(json.dumps({image["name"]: sum(f".{id}." in name for name in objects) for id, image in listed().items()}))
