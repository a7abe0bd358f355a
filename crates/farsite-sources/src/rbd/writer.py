# Makes, writes and reads images of one RBD pool for Farsite. A request is a line of JSON, and after `write` its bytes; an
# answer is a line of JSON, and after `read` the bytes: {"ok": …}, {"gone": WORDS} when something is not there,
# {"error": WORDS} for all else. One image is open at a time; the requests without a name are about that one.
import calendar
import concurrent.futures
import json
import sys
import threading
import time
import rados
import rbd

MARK, WANTED = "farsite", "farsite-wanted"
# Writes under way at once; each is no longer than the caller's block.
WRITES = 32
# A client that was shut out is gone within these seconds.
FENCED = 40
# Images that are opened or snapshotted at once.
THREADS = 64

conf, user, pool, namespace = sys.argv[1:5]
into, out = sys.stdin.buffer, sys.stdout.buffer
cluster = rados.Rados(conffile=conf, rados_id=user or None)
# Blocks that lie side by side go to the OSDs together; a flush brings all of them there.
cluster.conf_set("rbd_cache", "true")
cluster.conf_set("rbd_cache_writethrough_until_flush", "false")
# What `connect` itself is given as its limit, Ceph ignores: it would wait for five minutes.
cluster.conf_set("client_mount_timeout", "60")
cluster.connect()
ioctx = cluster.open_ioctx(pool)
if namespace:
    ioctx.set_namespace(namespace)
images = rbd.RBD()
image = None
failed = []
free = threading.BoundedSemaphore(WRITES)


def written(completion):
    if completion.get_return_value() < 0:
        failed.append("a write ended with %d" % completion.get_return_value())
    free.release()


def settle():
    for _ in range(WRITES):
        free.acquire()
    for _ in range(WRITES):
        free.release()


def check():
    if failed:
        raise Exception(failed[0])


def close():
    global image
    if image:
        settle()
        image.close()
        image = None
        failed.clear()


def metadata(at, key):
    try:
        return at.metadata_get(key)
    except KeyError:
        return None


def open_image(name, write, seconds, fence):
    """False: another client has it, and does not let go in time. With `fence` that one is shut out of the cluster instead."""
    global image
    close()
    image = rbd.Image(ioctx, name, read_only=not write)
    if not write or not image.features() & rbd.RBD_FEATURE_EXCLUSIVE_LOCK:
        return image.size()
    until = time.monotonic() + seconds
    while True:
        try:
            image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
            return image.size()
        except rbd.Error as error:
            if time.monotonic() >= until and fence:
                fence = False
                until += FENCED
                for owner in image.lock_get_owners():
                    image.lock_break(owner["mode"], owner["owner"])
            elif time.monotonic() >= until:
                close()
                if isinstance(error, (rbd.ReadOnlyImage, rbd.ImageBusy)) or getattr(error, "errno", 0) in (11, 16, 30):
                    return False
                raise
            else:
                time.sleep(0.2)


def look(name):
    with rbd.Image(ioctx, name, read_only=True) as at:
        user_made = rbd.RBD_SNAP_NAMESPACE_TYPE_USER
        snapshots = [
            {"id": s["id"], "name": s["name"], "protected": s["namespace"] == user_made and at.is_protected_snap(s["name"])}
            for s in at.list_snaps() if s["namespace"] == user_made]
        return {"id": at.id(), "size": at.size(), "mark": metadata(at, MARK), "snapshots": snapshots}


def changed(snapshot):
    """Whether anything of the open image may differ from its snapshot."""
    sizes = [s["size"] for s in image.list_snaps() if s["name"] == snapshot]
    if not sizes:
        raise rbd.ImageNotFound("there is no snapshot %s" % snapshot)
    found = [sizes[0] != image.size()]

    def differs(offset, length, exists):
        found[0] = True
    image.diff_iterate(0, image.size(), snapshot, differs, whole_object=True)
    return found[0]


def data(offset, length):
    found = []

    def each(start, length, exists):
        if not exists:
            return
        if found and found[-1][1] == start:
            found[-1][1] = start + length
        else:
            found.append([start, start + length])
    image.diff_iterate(offset, length, None, each, whole_object=True)
    return sorted(found)


def remove(name):
    with rbd.Image(ioctx, name) as at:
        for snapshot in [s["name"] for s in at.list_snaps() if s["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_USER]:
            if at.is_protected_snap(snapshot):
                at.unprotect_snap(snapshot)
            at.remove_snap(snapshot)
    images.remove(ioctx, name)


def create(name, size):
    images.create(ioctx, name, size, old_format=False)
    with rbd.Image(ioctx, name, read_only=True) as at:
        return at.id()


def snapshot(name):
    flush()
    image.create_snap(name)
    return image.snap_get_id(name)


def zero(offset, length):
    image.write_zeroes(offset, length)


def wanted():
    until = metadata(image, WANTED)
    return until is not None and float(until) > time.time()


def want(name, seconds):
    with rbd.Image(ioctx, name) as at:
        at.metadata_set(WANTED, str(time.time() + seconds))


def unwanted():
    if metadata(image, WANTED) is not None:
        image.metadata_remove(WANTED)


def flush():
    settle()
    check()
    image.flush()


def protect(name):
    if not image.is_protected_snap(name):
        image.protect_snap(name)


def remove_snapshot(name):
    if image.is_protected_snap(name):
        image.unprotect_snap(name)
    image.remove_snap(name)


def trash():
    found = []
    for entry in images.trash_list(ioctx):
        with rbd.Image(ioctx, image_id=entry["id"], read_only=True) as at:
            snapshots = [s["name"] if s["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_USER else None for s in at.list_snaps()]
        found.append({
            "id": entry["id"], "name": entry["name"], "by_user": entry["source"] == "USER", "snapshots": snapshots,
            "deleted": calendar.timegm(entry["deletion_time"].timetuple()),
            "until": calendar.timegm(entry["deferment_end_time"].timetuple())})
    return found


def remove_snapshots(at, prefix):
    for s in list(at.list_snaps()):
        if s["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_USER and s["name"].startswith(prefix):
            at.remove_snap(s["name"])


def remove_snapshots_of(name, prefix):
    with rbd.Image(ioctx, name) as at:
        remove_snapshots(at, prefix)


def let_go(id_, prefix, remove):
    with rbd.Image(ioctx, image_id=id_) as at:
        remove_snapshots(at, prefix)
    if remove:
        images.trash_remove(ioctx, id_)


def told(command):
    code, text, why = cluster.mon_command(json.dumps({**command, "format": "json"}), b"")
    if code:
        raise Exception("%s: %s" % (command["prefix"], why or code))
    return json.loads(text)


def room():
    """Bytes that the pool still takes: by its quota, and by its OSDs, where a manager tells of them; None where neither is known."""
    stats = [p["stats"] for p in told({"prefix": "df"})["pools"] if p["name"] == pool]
    pools = told({"prefix": "osd pool ls", "detail": "detail"})
    quota = next(p["quota_max_bytes"] for p in pools if p["pool_name"] == pool)
    rooms = [s["max_avail"] for s in stats]
    if quota:
        rooms.append(max(0, quota - sum(s["stored"] for s in stats)))
    return min(rooms, default=None)


opened = {}


def open_all(names):
    def one(name):
        try:
            opened[name] = rbd.Image(ioctx, name)
        except rbd.ImageNotFound:
            pass
    in_threads(one, names)


def snapshot_all(snapshot):
    gone = []

    def one(name):
        try:
            opened[name].create_snap(snapshot)
        except rbd.ImageNotFound:
            gone.append(name)
    in_threads(one, list(opened))
    return gone


def end():
    """A client that goes without a word is taken for one that has its images open, for half a minute."""
    close()
    for at in opened.values():
        at.close()
    opened.clear()
    ioctx.close()
    cluster.shutdown()


def in_threads(work, names):
    """All at once; the first error is everybody's."""
    with concurrent.futures.ThreadPoolExecutor(max(1, min(len(names), THREADS))) as threads:
        for done in [threads.submit(work, name) for name in names]:
            done.result()


requests = {
    "end": lambda r: end(),
    "trash": lambda r: trash(),
    "remove-snapshots": lambda r: remove_snapshots_of(r["name"], r["prefix"]),
    "let-go": lambda r: let_go(r["id"], r["prefix"], r["remove"]),
    "open-all": lambda r: open_all(r["names"]),
    "snapshot-all": lambda r: snapshot_all(r["snapshot"]),
    "fsid": lambda r: cluster.get_fsid(),
    "room": lambda r: room(),
    "names": lambda r: images.list(ioctx),
    "look": lambda r: look(r["name"]),
    "create": lambda r: create(r["name"], r["size"]),
    "rename": lambda r: images.rename(ioctx, r["name"], r["to"]),
    "remove": lambda r: remove(r["name"]),
    "want": lambda r: want(r["name"], r["seconds"]),
    "open": lambda r: open_image(r["name"], r["write"], r["seconds"], r["fence"]),
    "close": lambda r: close(),
    "mark": lambda r: image.metadata_set(MARK, r["text"]),
    "wanted": lambda r: wanted(),
    "unwanted": lambda r: unwanted(),
    "resize": lambda r: image.resize(r["size"]),
    "zero": lambda r: zero(r["offset"], r["length"]),
    "data": lambda r: data(r["offset"], r["length"]),
    "flush": lambda r: flush(),
    "changed": lambda r: changed(r["snapshot"]),
    "roll-back": lambda r: image.rollback_to_snap(r["snapshot"]),
    "snapshot": lambda r: snapshot(r["snapshot"]),
    "protect": lambda r: protect(r["snapshot"]),
    "remove-snapshot": lambda r: remove_snapshot(r["snapshot"]),
}


def answer(request):
    """The answer, and the bytes behind it."""
    what = request["do"]
    if what == "write":
        # Read first: whatever goes wrong, the next request begins behind them.
        bytes_ = into.read(request["length"])
        check()
        free.acquire()
        try:
            image.aio_write(bytes_, request["offset"], written)
        except BaseException:
            free.release()
            raise
        return None, b""
    if what == "read":
        check()
        bytes_ = image.read(request["offset"], request["length"])
        return len(bytes_), bytes_
    return requests[what](request), b""


for line in into:
    bytes_ = b""
    try:
        ok, bytes_ = answer(json.loads(line))
        said = {"ok": ok}
    except (rbd.ImageNotFound, rbd.ObjectNotFound) as error:
        said = {"gone": str(error)}
    except Exception as error:
        said = {"error": "%s: %s" % (type(error).__name__, error)}
    out.write(json.dumps(said).encode() + b"\n")
    out.write(bytes_)
    out.flush()
