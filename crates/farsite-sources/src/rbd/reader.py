# Reads one RBD image for Farsite: requests come as lines, answers go out as a line and bytes. It changes nothing.
# SNAP is a snapshot's name, or - for the image as it is now.
#   size SNAP           -> ok BYTES
#   read SNAP OFF LEN   -> ok LEN, then LEN bytes
#   data SNAP OFF LEN   -> OFF LEN 1 (data) or 0 (none) a line, then ok
#   diff SNAP FROM      -> the same of what differs, then ok
# What goes wrong is answered by: error WORDS, or gone WORDS when there is no such snapshot.
import sys
import rados
import rbd

conf, user, pool, namespace, name = sys.argv[1:6]
out = sys.stdout.buffer
cluster = rados.Rados(conffile=conf, rados_id=user or None)
cluster.conf_set("rbd_cache", "false")
# What `connect` itself is given as its limit, Ceph ignores: it would wait for five minutes.
cluster.conf_set("client_mount_timeout", "60")
cluster.connect()
ioctx = cluster.open_ioctx(pool)
if namespace:
    ioctx.set_namespace(namespace)
images = {}


def image(snap):
    if snap not in images:
        images[snap] = rbd.Image(ioctx, name, snapshot=None if snap == "-" else snap, read_only=True)
    return images[snap]


def said(offset, length, exists):
    out.write(b"%d %d %d\n" % (offset, length, 1 if exists else 0))


for line in sys.stdin.buffer:
    words = line.decode().split()
    try:
        what, snap = words[0], image(words[1])
        if what == "size":
            out.write(b"ok %d\n" % snap.size())
        elif what == "read":
            data = snap.read(int(words[2]), int(words[3]))
            out.write(b"ok %d\n" % len(data))
            out.write(data)
        elif what == "data":
            snap.diff_iterate(int(words[2]), int(words[3]), None, said)
            out.write(b"ok\n")
        elif what == "diff":
            # Exactly what differs, not whole objects.
            snap.diff_iterate(0, snap.size(), words[2], said)
            out.write(b"ok\n")
    except rbd.ImageNotFound as error:
        out.write(b"gone %s\n" % repr(str(error)).encode())
    except Exception as error:
        out.write(b"error %s\n" % repr(str(error)).encode())
    out.flush()
