"""Uses a promoted cloud: logs in, downloads every active image and compares its hash, makes a volume of one of them and a snapshot
of that. For a drill, in which nothing of it is kept. Ends with 1 and a sentence when something is not as it should be.

Environment: AUTH_URL and REGION, ADMIN_PASSWORD.
"""

import hashlib
import os
import sys

from clouds import connect, until

cloud = connect("admin", os.environ["ADMIN_PASSWORD"])


def must(problem):
    if problem is not None:
        sys.exit(problem)


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
    must(until(lambda: cloud.block_storage.get_volume(volume.id)))
    snapshot = cloud.block_storage.create_snapshot(volume_id=volume.id, name="drill")
    must(until(lambda: cloud.block_storage.get_snapshot(snapshot.id)))
print(f"{len(images)} images by their hashes, {len(volumes)} volumes, a new volume and a snapshot")
