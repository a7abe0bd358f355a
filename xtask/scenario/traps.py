"""Prepares a living site with everything that is known to go wrong silently at a failover, and writes down what must have become of
each thing at the standby, as JSON. Then it says "ready", and stays.

Environment: OS_CLIENT_CONFIG_FILE and OS_CLOUD (the site's admin), SITE_FOLDER, SHARE_FOLDER, SOCKET (of MariaDB),
EXPECTED (the file).
"""

import json
import os
import shutil
import subprocess
import threading
import time
import uuid

import openstack

from clouds import until

SHARE, IMAGES = os.environ["SHARE_FOLDER"], f"{os.environ['SITE_FOLDER']}/glance/images"
cloud = openstack.connect()
cloud.block_storage.update_quota_set(cloud.current_project_id, volumes=-1, gigabytes=-1)
MIB = 1 << 20
expected = []


def expect(kind, id, why, listed=True, **what):
    expected.append({"kind": kind, "id": id, "why": why, "listed": listed} | what)


def sql(statement):
    """Its rows, as lists of texts."""
    client = ["mariadb", "--no-defaults", "--socket", os.environ["SOCKET"], "-NBe", statement]
    return [line.split("\t") for line in subprocess.check_output(client, text=True).splitlines()]


def wait(get, status):
    problem = until(get, status)
    if problem is not None:
        raise SystemExit(problem)


def image(name):
    return cloud.image.create_image(
        name=name, data=os.urandom(MIB), disk_format="raw", container_format="bare", validate_checksum=False
    )


def volume(name):
    made = cloud.block_storage.create_volume(name=name, size=1)
    wait(lambda: cloud.block_storage.get_volume(made.id), "available")
    return made


def snapshot(of):
    made = cloud.block_storage.create_snapshot(volume_id=of.id, name=f"of-{of.name}")
    wait(lambda: cloud.block_storage.get_snapshot(made.id), "available")
    return made


def path(of):
    return f"{SHARE}/volume-{of.id}"


def write(file, form, pattern, offset):
    subprocess.run(["qemu-io", "-f", form, "-c", f"write -q -P {pattern} {offset} 64k", file], check=True)


good = image("good")
expect("image", good.id, "nothing is wrong with it", listed=False, status="active")
gone = image("without-bytes")
os.remove(f"{IMAGES}/{gone.id}")
expect("image", gone.id, "active, and its bytes are gone", status="deactivated")
short = image("cut")
os.truncate(f"{IMAGES}/{short.id}", MIB - 1)
expect("image", short.id, "active, and cut", status="deactivated")
queued = cloud.image.create_image(name="queued", disk_format="raw", container_format="bare", allow_duplicates=True)
expect("image", queued.id, "nobody has sent its bytes yet", listed=False, status="queued")


class Slow:
    """An upload that does not end."""

    def __iter__(self):
        # uwsgi gives up a body of which nothing has come for four seconds.
        for _ in range(600):
            yield os.urandom(64 << 10)
            time.sleep(1)


saving = cloud.image.create_image(name="saving", disk_format="raw", container_format="bare", allow_duplicates=True)
headers = {"Content-Type": "application/octet-stream"}
upload = {"data": iter(Slow()), "headers": headers, "raise_exc": False}
threading.Thread(target=lambda: cloud.image.put(f"/images/{saving.id}/file", **upload), daemon=True).start()
wait(lambda: cloud.image.get_image(saving.id), "saving")
expect("image", saving.id, "its upload was under way", status="killed")

whole = volume("whole")
write(path(whole), "raw", "0xa1", 0)
kept = snapshot(whole)
write(f"{path(whole)}.{kept.id}", "qcow2", "0xb2", 65536)
expect("volume", whole.id, "a whole chain", listed=False, status="available", format="qcow2", bytes=["a1", "b2"], data=whole.id)
expect("snapshot", kept.id, "in a whole chain", listed=False, status="available")

copied = volume("copied")
if all(kind.name != "other" for kind in cloud.block_storage.types()):
    cloud.block_storage.create_type(name="other")
write(path(copied), "raw", "0xa1", 0)
retype = {"os-retype": {"new_type": "other", "migration_policy": "on-demand"}}
cloud.block_storage.post(f"/volumes/{copied.id}/action", json=retype).raise_for_status()
wait(lambda: cloud.block_storage.get_volume(copied.id), "available")
name = cloud.block_storage.get_volume(copied.id).migration_id
if name in (None, copied.id) or not os.path.exists(f"{SHARE}/volume-{name}"):
    raise SystemExit(f"Cinder retypes a volume otherwise than by copying it: its data has the name {name}")
taken = snapshot(copied)
write(f"{SHARE}/volume-{name}.{taken.id}", "qcow2", "0xb2", 65536)
why = "retyped by copying: its files have the copy's name"
expect("volume", copied.id, why, listed=False, status="available", format="qcow2", bytes=["a1", "b2"], data=name)
expect("snapshot", taken.id, why, listed=False, status="available")

blind = volume("without-record")
snapshot(blind)
os.remove(f"{path(blind)}.info")
expect("volume", blind.id, "which of its files is the newest is not known", status="error")

called_raw = volume("called-raw")
snapshot(called_raw)
sql(f"UPDATE cinder.volume_admin_metadata SET value = 'raw' WHERE volume_id = '{called_raw.id}' AND `key` = 'format'")
expect("volume", called_raw.id, "an overlay whose row says raw", status="available", format="qcow2")

older = volume("older-than-its-row")
shutil.copy(path(older), f"{path(older)}-before")
newer = snapshot(older)
os.replace(f"{path(older)}-before", path(older))
os.remove(f"{path(older)}.{newer.id}")
os.remove(f"{path(older)}.info")
expect("volume", older.id, "its row knows a snapshot that the share does not have", status="available", format="raw")
expect("snapshot", newer.id, "newer than the share", status="error")

# The user deletes the newest snapshot while the share is read: Cinder merges its overlay, which has the last writes, into the file
# below it and names that one in the record. The point then holds both files as they were before, and the record of afterwards: what
# it calls active lacks the last writes. The rows are of afterwards too, or still of before.
for name, is_in_rows in (("record-newer-than-its-files", False), ("record-newer-than-files-and-rows", True)):
    torn = volume(name)
    write(path(torn), "raw", "0xa1", 0)
    first = snapshot(torn)
    write(f"{path(torn)}.{first.id}", "qcow2", "0xb2", 65536)
    last = snapshot(torn)
    write(f"{path(torn)}.{last.id}", "qcow2", "0xc3", 131072)
    files = [f"{path(torn)}.{of.id}" for of in (first, last)]
    for file in files:
        shutil.copy(file, f"{file}-before")
    cloud.block_storage.delete_snapshot(last.id)
    deadline = time.monotonic() + 60
    while cloud.block_storage.find_snapshot(last.id, ignore_missing=True):
        if time.monotonic() > deadline:
            raise SystemExit(f"Cinder does not delete snapshot {last.id}")
        time.sleep(0.3)
    with open(f"{path(torn)}.info") as record:
        active = json.load(record)["active"]
    if os.path.exists(files[1]) or active != os.path.basename(files[0]):
        raise SystemExit(f"Cinder deletes the newest snapshot otherwise than was thought: {active} is active")
    for file in files:
        os.replace(f"{file}-before", file)
    expect("volume", torn.id, "its record does not know of the file that has the last writes", status="error")
    if is_in_rows:
        sql(f"UPDATE cinder.snapshots SET deleted = 0, deleted_at = NULL, status = 'deleting' WHERE id = '{last.id}'")
        expect("snapshot", last.id, "it was being deleted", status="error_deleting")

lost = volume("without-file")
os.remove(path(lost))
expect("volume", lost.id, "it has no data", status="error")
grown = volume("grown")
os.truncate(path(grown), 2 << 30)
expect("volume", grown.id, "larger than its row says", status="available", size=2)

for status, to in (("creating", "error"), ("extending", "error_extending"), ("deleting", "error_deleting"), ("attaching", "available")):
    made = volume(f"was-{status}")
    sql(f"UPDATE cinder.volumes SET status = '{status}' WHERE id = '{made.id}'")
    expect("volume", made.id, f"it was {status}", listed=to != "available", status=to)

# What a service was at stands in `workers`, under the id of the service's row. A promotion that made the rows of services anew, or
# emptied `workers`, would leave this one for ever.
given_up = volume("was-deleting-by-a-service")
sql(
    f"""UPDATE cinder.volumes SET status = 'deleting' WHERE id = '{given_up.id}';
    INSERT INTO cinder.workers (created_at, updated_at, deleted, resource_type, resource_id, status, service_id)
    SELECT UTC_TIMESTAMP(), UTC_TIMESTAMP(), 0, 'Volume', '{given_up.id}', 'deleting', id FROM cinder.services
    WHERE `binary` = 'cinder-volume' AND host LIKE '%@nfs' AND deleted = 0"""
)
((workers,),) = sql(f"SELECT COUNT(*) FROM cinder.workers WHERE resource_id = '{given_up.id}'")
if workers != "1":
    raise SystemExit(f"Cinder knows of {workers} workers at volume {given_up.id}")
expect("volume", given_up.id, "a service was deleting it, and goes on with it when it starts", listed=False, is_gone=True)
for id, uuid_, program, host in sql("SELECT id, uuid, `binary`, host FROM cinder.services WHERE deleted = 0"):
    why = "volumes and unfinished work refer to its row"
    expect("service", id, why, listed=False, uuid=uuid_, program=program, host=host.replace("ctl-north", "ctl-south"))

for kind, folder, name in (("image", IMAGES, "{}"), ("volume", SHARE, "volume-{}")):
    stray = str(uuid.uuid4())
    file = os.path.join(folder, name.format(stray))
    with open(file, "wb") as out:
        out.write(os.urandom(4096))
    expect(kind, stray, "data without a row", file=os.path.basename(file))
with open(os.environ["EXPECTED"], "w") as out:
    json.dump(expected, out, indent=1)
print("ready", flush=True)
# The upload is under way as long as this is.
time.sleep(600)
