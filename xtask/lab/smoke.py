"""Makes one of everything through the APIs of a site, looks at it again, and prints what it made as JSON.

A project with a user and a role, an EC2 credential, an application credential, a 16 MiB image, an empty volume, a volume
made from the image, a snapshot of the empty one. A few things go through the `openstack` command, as a person would type
them; the rest through one process, because the command needs seconds for each call.

At a site with a Ceph cluster the image lies in its pool, and the same two volumes and a snapshot are made there once more.

Environment: OS_CLIENT_CONFIG_FILE and OS_CLOUD (the site's admin), SITE_FOLDER, SHARE_FOLDER (where the share is mounted),
CEPH_CONF (empty where the site has no cluster).
Any step that fails ends it with a traceback and an exit code that is not 0.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
import uuid

import openstack

IMAGE_BYTES = 16 << 20
FOLDER = os.environ["SITE_FOLDER"]
SHARE = os.environ["SHARE_FOLDER"]
CEPH = os.environ["CEPH_CONF"]
begun = time.monotonic()
name = f"smoke-{uuid.uuid4().hex[:8]}"
password = f"{name}-pass"


def say(what):
    print(f"[{os.environ['OS_CLOUD']} {time.monotonic() - begun:5.1f} s] {what}", file=sys.stderr, flush=True)


def client(*words, **more):
    """Starts the real client; its output is JSON."""
    command = ["openstack", *words, "-f", "json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | more, text=True)


def answer(process):
    out, _ = process.communicate(timeout=60)
    if process.returncode != 0:
        sys.exit(f"{' '.join(process.args)} ended with {process.returncode}")
    return json.loads(out)


def sha256(path, size):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(size)).hexdigest()


def sha256_in_pool(image, size):
    command = ["rbd", "--conf", CEPH, "export", "--no-progress", image, "-"]
    exported = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ)
    digest = hashlib.sha256(exported.stdout.read(size)).hexdigest()
    exported.stdout.close()
    exported.wait(timeout=60)
    return digest


def wait_until_available(volumes, snapshots, limit=60):
    deadline = time.monotonic() + limit
    while True:
        now = [user.block_storage.get_volume(volume) for volume in volumes]
        now += [user.block_storage.get_snapshot(snapshot) for snapshot in snapshots]
        if any(thing.status.startswith("error") for thing in now) or time.monotonic() > deadline:
            sys.exit(f"not available: {[(thing.name, thing.id, thing.status) for thing in now]}")
        if all(thing.status == "available" for thing in now):
            return
        time.sleep(0.3)


admin = openstack.connect()
project = admin.identity.create_project(name=name, domain_id="default")
person = admin.identity.create_user(name=name, password=password, domain_id="default", default_project_id=project.id)
admin.identity.assign_project_role_to_user(project, person, admin.identity.find_role("member"))
say(f"project and user {name}")

auth = admin.config.config["auth"] | {"username": name, "password": password, "project_name": name}
user = openstack.connect(auth=auth, region_name=admin.config.region_name, load_yaml_config=False, load_envvars=False)
as_person = {"OS_CLOUD": "", "OS_CLIENT_CONFIG_FILE": "", "OS_REGION_NAME": admin.config.region_name}
as_person |= {"OS_IDENTITY_API_VERSION": "3"} | {f"OS_{key.upper()}": value for key, value in auth.items()}

raw = os.path.join(FOLDER, f"{name}.raw")
with open(raw, "wb") as file:
    file.write(os.urandom(IMAGE_BYTES))
upload = client(
    *["image", "create", name, "--disk-format", "raw", "--container-format", "bare", "--file", raw], **as_person
)

credentials = f"/users/{person.id}/credentials/OS-EC2"
ec2 = admin.identity.post(credentials, json={"tenant_id": project.id}).json()["credential"]
application = user.identity.create_application_credential(user=person.id, name=name)
say("an EC2 credential, an application credential")

empty = user.block_storage.create_volume(name=f"{name}-empty", size=1)
image = user.image.get_image(answer(upload)["id"])
image_sha256 = sha256(raw, IMAGE_BYTES)
os.remove(raw)
if CEPH:
    stored = sha256_in_pool(f"images/{image.id}@snap", IMAGE_BYTES)
else:
    stored = sha256(f"{FOLDER}/glance/images/{image.id}", -1)
if image.status != "active" or stored != image_sha256:
    sys.exit(f"image {image.id} is {image.status}, or its file is not what was sent")
say(f"image {image.id}, through the client")

from_image = user.block_storage.create_volume(name=f"{name}-from-image", size=1, image_id=image.id)
wait_until_available([empty.id], [])
snapshot = user.block_storage.create_snapshot(name=name, volume_id=empty.id)
wait_until_available([empty.id, from_image.id], [snapshot.id])
if sha256(f"{SHARE}/volume-{from_image.id}", IMAGE_BYTES) != image_sha256:
    sys.exit(f"volume {from_image.id} does not begin with the image's bytes")
say("an empty volume, one made from the image, a snapshot")

in_pool, in_pool_snapshot = [], None
if CEPH:
    in_pool = [
        user.block_storage.create_volume(name=f"{name}-pool-empty", size=1, volume_type="ceph"),
        user.block_storage.create_volume(name=f"{name}-pool-image", size=1, volume_type="ceph", image_id=image.id),
    ]
    wait_until_available([volume.id for volume in in_pool], [])
    in_pool_snapshot = user.block_storage.create_snapshot(name=f"{name}-pool", volume_id=in_pool[0].id)
    wait_until_available([], [in_pool_snapshot.id])
    if sha256_in_pool(f"volumes/volume-{in_pool[1].id}", IMAGE_BYTES) != image_sha256:
        sys.exit(f"volume {in_pool[1].id} of the pool does not begin with the image's bytes")
    say("two volumes and a snapshot in the pool")

# What was made is there for those who ask, in each of the ways to log in.
listing = client("volume", "list", **as_person)
catalog = client("catalog", "list")
read_back = admin.identity.get(f"{credentials}/{ec2['access']}").json()["credential"]
if read_back["secret"] != ec2["secret"]:
    sys.exit("the EC2 credential's secret is not what it was")
with_application = openstack.connect(
    auth_type="v3applicationcredential",
    auth={
        "auth_url": auth["auth_url"],
        "application_credential_id": application.id,
        "application_credential_secret": application.secret,
    },
    region_name=admin.config.region_name,
    load_yaml_config=False,
    load_envvars=False,
)
images = {image.id for image in with_application.image.images()}
snapshots = {snapshot.id for snapshot in with_application.block_storage.snapshots()}
if image.id not in images or snapshot.id not in snapshots:
    sys.exit("the image or the snapshot is not in the lists")
if {volume["ID"] for volume in answer(listing)} != {empty.id, from_image.id} | {volume.id for volume in in_pool}:
    sys.exit("the client does not list the volumes")
types = {service["Type"] for service in answer(catalog)}
if not {"identity", "image", "block-storage"} <= types:
    sys.exit(f"the catalog lacks a service: {types}")
say("lists and both credentials, through the client and the SDK")

made = {
    "site": os.environ["OS_CLOUD"],
    "name": name,
    "project": project.id,
    "user": person.id,
    "password": password,
    "ec2": {"access": ec2["access"], "secret": ec2["secret"]},
    "application_credential": {"id": application.id, "secret": application.secret},
    "image": image.id,
    "image_sha256": image_sha256,
    "volume_empty": empty.id,
    "volume_from_image": from_image.id,
    "snapshot": snapshot.id,
}
if CEPH:
    made |= {"pool_empty": in_pool[0].id, "pool_from_image": in_pool[1].id, "pool_snapshot": in_pool_snapshot.id}
print(json.dumps(made, indent=2))
