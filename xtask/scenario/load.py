"""Clients of a site: they make images, volumes, snapshots, users and projects through its APIs, delete some of them again, and
write into two attached volumes, until the site dies under them. Everything that the site has acknowledged is a line of JSON
in a file, with the time at which it was.

Environment: OS_CLIENT_CONFIG_FILE and OS_CLOUD (the site's admin), SHARE_FOLDER or CEPH_CONF (where the volumes are), PROMISES
(the file), SEED.
"""

import hashlib
import json
import os
import random
import struct
import sys
import threading
import time
import uuid

import openstack

import disks as storage
import image_kinds
from clouds import until

seed = int(os.environ["SEED"])
chance = random.Random(seed)
promises = open(os.environ["PROMISES"], "a", buffering=1)
lock = threading.Lock()
MIB = 1 << 20
SLOTS = 8192  # of 4 KiB in a guest's disk, for its counter


def promise(kind, **what):
    """What was acknowledged, at a time that is not earlier than it was."""
    with lock:
        promises.write(json.dumps({"t": time.time(), "kind": kind, **what}) + "\n")


def until_available(get):
    problem = until(get)
    if problem is not None:
        raise RuntimeError(problem)


def guests(volumes):
    """Writes a counter into the first disk and only then into the second one, as a database does with its log and its data."""
    disks = [storage.writer(volume) for volume in volumes]
    count, told = 0, 0.0
    while True:
        count += 1
        for write in disks:
            write(b"CNTR" + struct.pack("<Q", count), (count % SLOTS) * 4096)
        if time.monotonic() - told > 0.1:
            told = time.monotonic()
            promise("count", count=count)
        time.sleep(0.005)


admin = openstack.connect()
auth = admin.config.config["auth"]
member = admin.identity.find_role("member")


def tenant():
    name = f"tenant-{uuid.uuid4().hex[:8]}"
    password = f"{name}-pass"
    project = admin.identity.create_project(name=name, domain_id="default")
    person = admin.identity.create_user(
        name=name, password=password, domain_id="default", default_project_id=project.id
    )
    admin.identity.assign_project_role_to_user(project, person, member)
    credential = admin.identity.post(f"/users/{person.id}/credentials/OS-EC2", json={"tenant_id": project.id}).json()
    cloud = openstack.connect(
        auth=auth | {"username": name, "password": password, "project_name": name},
        region_name=admin.config.region_name,
        load_yaml_config=False,
        load_envvars=False,
    )
    promise("tenant", id=person.id, name=name, password=password, ec2=credential["credential"])
    return cloud, name


def image(cloud, owner):
    body = chance.randbytes(chance.choice([1, 2, 4]) * MIB)
    name = f"image-{uuid.uuid4().hex[:8]}"
    made = cloud.image.create_image(
        name=name, data=body, disk_format="raw", container_format="bare", validate_checksum=False, farsite_seed=str(seed)
    )
    if cloud.image.get_image(made.id).status != "active":
        raise RuntimeError(f"image {made.id} is not active")
    promise("image", id=made.id, name=name, owner=owner, seed=str(seed), sha256=hashlib.sha256(body).hexdigest(), bytes=len(body))
    return made.id, body


def volume(cloud, owner, of=None):
    name = f"volume-{uuid.uuid4().hex[:8]}"
    made = cloud.block_storage.create_volume(name=name, size=1, image_id=of and of[0], volume_type=storage.TYPE)
    until_available(lambda: cloud.block_storage.get_volume(made.id))
    what = {"sha256": hashlib.sha256(of[1]).hexdigest(), "bytes": len(of[1])} if of else {}
    promise("volume", id=made.id, owner=owner, **what)
    return made.id


tenants = [tenant(), tenant()]
(owner, owner_name), (other, other_name) = tenants
kinds = image_kinds.make(admin, owner, other)
promise("image kinds", owner=owner_name, other=other_name, kinds=kinds)
disks = [volume(*tenants[0]) for _ in range(2)]
for disk in disks:
    attachment = {
        "volume_uuid": disk,
        "instance_uuid": str(uuid.uuid4()),
        "connector": {
            "host": f"compute-{os.environ['OS_CLOUD']}",
            "ip": "127.0.0.1",
            "initiator": "iqn.lab",
            "platform": "x86_64",
            "os_type": "linux",
            "multipath": False,
            "mountpoint": "/dev/vdb",
        },
    }
    version = {"OpenStack-API-Version": "volume 3.54"}
    answer = tenants[0][0].block_storage.post("/attachments", headers=version, json={"attachment": attachment})
    answer.raise_for_status()
    path = f"/attachments/{answer.json()['attachment']['id']}/action"
    tenants[0][0].block_storage.post(path, headers=version, json={"os-complete": None}).raise_for_status()
promise("guests", disks=disks)
threading.Thread(target=guests, args=(disks,), daemon=True).start()

images, volumes, snapshots = [], [], []
print("ready", flush=True)
while True:
    cloud, owner = chance.choice(tenants)
    try:
        what = chance.random()
        if what < 0.1 and len(tenants) < 4:
            tenants.append(tenant())
        elif what < 0.4 or not images:
            images.append((cloud, *image(cloud, owner)))
        elif what < 0.55:
            volumes.append((cloud, volume(cloud, owner)))
        elif what < 0.7:
            cloud, *of = chance.choice(images)
            volumes.append((cloud, volume(cloud, owner, of)))
        elif what < 0.8 and volumes:
            cloud, of = chance.choice(volumes)
            made = cloud.block_storage.create_snapshot(volume_id=of, name=f"snapshot-{uuid.uuid4().hex[:8]}")
            until_available(lambda: cloud.block_storage.get_snapshot(made.id))
            snapshots.append((cloud, made.id, of))
            promise("snapshot", id=made.id, volume=of)
        elif what < 0.87 and len(images) > 3:
            cloud, gone, _ = images.pop(chance.randrange(len(images)))
            promise("deleting", id=gone)
            cloud.image.delete_image(gone)
            promise("deleted", id=gone, of="image")
        elif what < 0.93 and len(volumes) > 3:
            free = [at for at, (_, it) in enumerate(volumes) if all(of != it for _, _, of in snapshots)]
            if free:
                cloud, gone = volumes.pop(chance.choice(free))
                promise("deleting", id=gone)
                cloud.block_storage.delete_volume(gone)
                promise("deleted", id=gone, of="volume")
        time.sleep(chance.uniform(0.1, 0.8))
    except Exception as error:  # the site is dying, or dead
        print(f"clients: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr, flush=True)
        time.sleep(0.5)
