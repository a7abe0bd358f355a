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
if "alike" not in kinds:
    block.create_type(name="alike", extra_specs={"volume_backend_name": kind})


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


names = ("deleted", "extended", "reverted", "cloned", "uploaded", "retyped", "migrated")
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


def retype(volume, to, policy):
    return action(volume, **{"os-retype": {"new_type": to, "migration_policy": policy}}) or available(volume)


def must_have_type(volume, due):
    has = block.get_volume(volume.id).volume_type
    must(f"its type is {due}", None if has == due else f"it is {has}")


it = volumes["retyped"]
must("retyping to a type that says the same", retype(it, "alike", "never"))
must_have_type(it, "alike")
must("retyping where it is", retype(it, "other", "never"))
# The NFS driver gives no volume another type where it is: Cinder refuses by leaving it as it was.
must_have_type(it, "other" if storage.CEPH else "alike")
clone = made("clone", source_volume_id=volumes["cloned"].id)
it = volumes["uploaded"]
image = block.upload_volume_to_image(it.id, image_name="of-a-volume", disk_format="raw", container_format="bare")
must("uploading to an image", available(it))
of = image["image_id"] if isinstance(image, dict) else image.image_id
must("the image", until(lambda: cloud.image.get_image(of), status="active", limit=120))
it = volumes["migrated"]
if storage.CEPH:
    problem = retype(it, "nfs", "on-demand")
    if problem is None and "@nfs" not in block.get_volume(it.id).host:
        problem = "it is where it was"
else:
    # There is no other back end to go to, and Cinder says so; but it retypes by copying, within the share.
    refused = action(it, **{"os-migrate_volume": {"host": it.host, "force_host_copy": True}})
    must("migrating to where it is, refused", None if refused and refused.startswith("400") else f"answered {refused}")
    problem = retype(it, "other", "on-demand")
    must_have_type(it, "other")
deadline = time.monotonic() + 120
while problem is None and storage.exists(it.id):
    if time.monotonic() > deadline:
        problem = "what it was copied from stays"
    time.sleep(0.5)
must("migrating", problem)

# A volume that was copied keeps its id, and has its data under the name of the copy.
names_of = {name: block.get_volume(volume.id).migration_id or volume.id for name, volume in volumes.items() if name != "deleted"}
if (names_of["migrated"] == volumes["migrated"].id) is not bool(storage.CEPH):
    wrong.append(f"migrated: its data has the name {names_of['migrated']}")
left = {"clone": clone.id} | names_of
if storage.CEPH:
    # On another back end, which this group does not have.
    del left["migrated"]
for name, id in left.items():
    due = b"cloned" if name == "clone" else name.encode()
    if storage.contents(id, 16).rstrip() != due:
        wrong.append(f"{name}: its contents are not what was written")
with open(os.environ["DONE"], "w") as done:
    json.dump({"left": left, "gone": [volumes["deleted"].id], "away": [volumes["migrated"].id]}, done)
print(json.dumps({"wrong": wrong}))
sys.exit(1 if wrong else 0)
