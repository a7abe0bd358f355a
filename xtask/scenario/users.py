"""What users may do with their volumes while Farsite holds snapshots of them: all of it, as without Farsite. First makes the volumes
and says "ready"; when the file GO is there it does everything to them, and writes down what must be at the end, as JSON.

Environment: OS_CLIENT_CONFIG_FILE and OS_CLOUD (the site's admin), SHARE_FOLDER or CEPH_CONF (where the volumes are), GO and DONE (files).
"""

import json
import os
import sys
import time

import openstack

import disks as storage
from clouds import until

cloud = openstack.connect()
block = cloud.block_storage
MIB = 1 << 20
wrong = []
kinds = {kind.name for kind in block.types()}
kind = storage.TYPE or "nfs"
if "other" not in kinds:
    # Any back end may have it, so that a volume gets it where it is.
    block.create_type(name="other")


def must(what, problem):
    print(f"{what}: {problem or 'done'}", flush=True)
    if problem:
        wrong.append(f"{what}: {problem}")


def made(name, **more):
    volume = block.create_volume(name=name, size=1, volume_type=kind, **more)
    must(f"making {name}", until(lambda: block.get_volume(volume.id)))
    return volume


def action(volume, version="3.40", **body):
    answer = block.post(f"/volumes/{volume.id}/action", headers={"OpenStack-API-Version": f"volume {version}"}, json=body)
    return None if answer.ok else f"{answer.status_code} {answer.text[:200]}"


def write(volume, pattern):
    storage.writer(volume.id)(pattern * (MIB // len(pattern)), 0)


names = ("deleted", "extended", "reverted", "cloned", "uploaded")
# Cinder's NFS driver retypes nothing in place.
names += ("retyped", "migrated") if storage.CEPH else ()
volumes = {name: made(name) for name in names}
for name, volume in volumes.items():
    write(volume, name.encode().ljust(16))
snapshot = block.create_snapshot(volume_id=volumes["reverted"].id, name="before")
must("a snapshot", until(lambda: block.get_snapshot(snapshot.id)))
storage.forget()
print("ready", flush=True)
while not os.path.exists(os.environ["GO"]):
    time.sleep(0.2)


def gone(volume, limit=120):
    deadline = time.monotonic() + limit
    while (there := block.find_volume(volume.id, ignore_missing=True)) is not None:
        if there.status.startswith("error") or time.monotonic() > deadline:
            return f"is {there.status}"
        time.sleep(0.3)
    return None


def available(volume):
    return until(lambda: block.get_volume(volume.id), limit=120)


it = volumes["deleted"]
block.delete_volume(it.id)
must("deleting", gone(it))
it = volumes["extended"]
must("extending", action(it, **{"os-extend": {"new_size": 2}}) or available(it))
it = volumes["reverted"]
must("reverting", action(it, revert={"snapshot_id": snapshot.id}) or available(it))
if storage.CEPH:
    it = volumes["retyped"]
    must("retyping", action(it, **{"os-retype": {"new_type": "other", "migration_policy": "never"}}) or available(it))
    if block.get_volume(it.id).volume_type != "other":
        wrong.append("retyping: its type is what it was")
clone = made("clone", source_volume_id=volumes["cloned"].id)
it = volumes["uploaded"]
image = block.upload_volume_to_image(it.id, image_name="of-a-volume", disk_format="raw", container_format="bare")
must("uploading to an image", available(it))
of = image["image_id"] if isinstance(image, dict) else image.image_id
must("the image", until(lambda: cloud.image.get_image(of), status="active", limit=120))
if storage.CEPH:
    it = volumes["migrated"]
    retype = {"new_type": "nfs", "migration_policy": "on-demand"}
    problem = action(it, **{"os-retype": retype}) or available(it)
    if problem is None and "@nfs" not in block.get_volume(it.id).host:
        problem = "it is where it was"
    deadline = time.monotonic() + 120
    while problem is None and storage.exists(it.id):
        if time.monotonic() > deadline:
            problem = "its old image stays"
        time.sleep(0.5)
    must("migrating", problem)

left = {name: volume.id for name, volume in volumes.items() if name not in ("deleted", "migrated")} | {"clone": clone.id}
for name, volume in left.items():
    due = b"cloned" if name == "clone" else name.encode()
    if storage.contents(volume, 16).rstrip() != due:
        wrong.append(f"{name}: its contents are not what was written")
with open(os.environ["DONE"], "w") as done:
    json.dump({"left": left, "gone": [volumes[name].id for name in volumes if name not in left]}, done)
print(json.dumps({"wrong": wrong}))
sys.exit(1 if wrong else 0)
