"""The contents of volumes where a site keeps them: files of a share, or images of a Ceph pool.

Environment: SHARE_FOLDER, or CEPH_CONF of a site whose volumes are in its pool `volumes`.
"""

import json
import os
import subprocess

CEPH = os.environ.get("CEPH_CONF")
SHARE = os.environ.get("SHARE_FOLDER")
# The back end that volumes are made in; without one it is the one of the share.
TYPE = "ceph" if CEPH else None


def _pool():
    import rados

    cluster = rados.Rados(conffile=CEPH, name="client.admin", conf={"client_mount_timeout": "20"})
    cluster.connect()
    return cluster.open_ioctx("volumes")


_opened, _held = [], []


def pool():
    if not _opened:
        _opened.append(_pool())
    return _opened[0]


def _image(volume, read_only):
    import rbd

    return rbd.Image(pool(), f"volume-{volume}", read_only=read_only)


def writer(volume):
    """What writes bytes at an offset, as an attached guest does; they are durable when it returns."""
    if CEPH:
        image = _image(volume, False)
        _held.append(image)

        def write(data, offset):
            image.write(data, offset)
            image.flush()

        return write
    disk = os.open(f"{SHARE}/volume-{volume}", os.O_WRONLY | os.O_DSYNC)
    return lambda data, offset: os.pwrite(disk, data, offset)


def forget():
    """Lets go of every image that is open for writing: its user would hold the image's lock."""
    while _held:
        _held.pop().close()


def exists(volume):
    if CEPH:
        import rbd

        return f"volume-{volume}" in rbd.RBD().list(pool())
    return os.path.exists(f"{SHARE}/volume-{volume}")


def contents(volume, size):
    """The first bytes of a volume as a guest would see them: of its active file, whatever its format."""
    if CEPH:
        with _image(volume, True) as image:
            return image.read(0, min(size, image.size()))
    active, form = f"{SHARE}/volume-{volume}", "raw"
    if os.path.exists(f"{active}.info"):
        active = os.path.join(SHARE, json.load(open(f"{active}.info"))["active"])
        form = json.loads(subprocess.check_output(["qemu-img", "info", "-U", "--output=json", active]))["format"]
    raw = f"/tmp/farsite-verify-{os.getpid()}"
    try:
        subprocess.run(["qemu-img", "convert", "-U", "-f", form, "-O", "raw", active, raw], check=True)
        with open(raw, "rb") as file:
            return file.read(size)
    finally:
        if os.path.exists(raw):
            os.remove(raw)


def in_pool():
    """A hash of every image of the pools `volumes` and `images`, and of its snapshots; what is Farsite's own left out."""
    lines = []
    for pool in ("volumes", "images"):
        listing = subprocess.check_output(["rbd", "--conf", CEPH, "ls", "--long", "--format", "json", pool])
        for image in json.loads(listing):
            name = f"{pool}/{image['image']}" + (f"@{image['snapshot']}" if "snapshot" in image else "")
            if ".farsite-" in name or "@farsite-" in name:
                continue
            export = subprocess.Popen(
                ["rbd", "--conf", CEPH, "export", "--no-progress", name, "-"], stdout=subprocess.PIPE
            )
            digest = subprocess.check_output(["sha256sum"], stdin=export.stdout, text=True).split()[0]
            if export.wait() != 0:
                raise RuntimeError(f"{name} cannot be read")
            lines.append(f"{name} {image['size']} {digest}")
    return "\n".join(sorted(lines))
