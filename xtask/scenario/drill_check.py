"""Uses a promoted cloud: logs in, downloads every active image and compares its hash, makes a volume of one of them and a snapshot
of that. For a drill, in which nothing of it is kept. Ends with 1 and a sentence when something is not as it should be.

Environment: AUTH_URL and REGION, ADMIN_PASSWORD.
"""

import hashlib
import os
import sys
import time

import openstack

cloud = openstack.connect(
    auth={
        "auth_url": os.environ["AUTH_URL"],
        "username": "admin",
        "password": os.environ["ADMIN_PASSWORD"],
        "project_name": "admin",
        "user_domain_id": "default",
        "project_domain_id": "default",
    },
    region_name=os.environ["REGION"],
    load_yaml_config=False,
    load_envvars=False,
)


def until_available(get, limit=60):
    deadline = time.monotonic() + limit
    while (thing := get()).status != "available":
        if thing.status.startswith("error") or time.monotonic() > deadline:
            sys.exit(f"{thing.name} is {thing.status}")
        time.sleep(0.3)


images = [image for image in cloud.image.images() if image.status == "active"]
for image in images:
    body = cloud.image.download_image(image).content
    if hashlib.new(image.hash_algo, body).hexdigest() != image.hash_value:
        sys.exit(f"image {image.id} does not download as it was uploaded")
volumes = list(cloud.block_storage.volumes(all_projects=True))
odd = [f"{volume.id} is {volume.status}" for volume in volumes if volume.status in ("in-use", "creating", "attaching")]
if odd:
    sys.exit(f"volumes in a state that nobody ends: {odd}")
if images:
    volume = cloud.block_storage.create_volume(name="drill", size=1, image_id=images[0].id)
    until_available(lambda: cloud.block_storage.get_volume(volume.id))
    snapshot = cloud.block_storage.create_snapshot(volume_id=volume.id, name="drill")
    until_available(lambda: cloud.block_storage.get_snapshot(snapshot.id))
print(f"{len(images)} images by their hashes, {len(volumes)} volumes, a new volume and a snapshot")
