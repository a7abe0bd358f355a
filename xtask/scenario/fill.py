"""Fills a site: images and volumes through its APIs, then the volumes' contents as guests write them.

Environment: OS_CLIENT_CONFIG_FILE and OS_CLOUD (the site's admin), SHARE_FOLDER, IMAGES and VOLUMES (how many), VOLUME_MIB (contents of
each, of which a quarter is incompressible; the rest of its 1 GiB is a hole).
"""

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import openstack

from clouds import until

MIB = 1 << 20
AT_ONCE = 8
mine = threading.local()
admin = openstack.connect()
project = admin.current_project_id
admin.block_storage.update_quota_set(project, volumes=-1, gigabytes=-1)


def cloud():
    """A connection of this thread's own."""
    if not hasattr(mine, "cloud"):
        mine.cloud = openstack.connect()
    return mine.cloud


def image(number):
    body = random.Random(number).randbytes(MIB)
    cloud().image.create_image(
        name=f"image-{number}", data=body, disk_format="raw", container_format="bare", validate_checksum=False
    )


def volume(number):
    storage = cloud().block_storage
    made = storage.create_volume(name=f"volume-{number}", size=1, metadata={"dr": "yes"})
    problem = until(lambda: storage.get_volume(made.id), limit=600)
    if problem is not None:
        raise SystemExit(problem)
    chance = random.Random(number)
    with open(f"{os.environ['SHARE_FOLDER']}/volume-{made.id}", "r+b") as file:
        for _ in range(int(os.environ["VOLUME_MIB"])):
            block = chance.randbytes(MIB // 4)
            file.write(block + f"{number:08}".encode() * (MIB * 3 // 32))
        os.fsync(file.fileno())


with ThreadPoolExecutor(AT_ONCE) as threads:
    list(threads.map(image, range(int(os.environ["IMAGES"]))))
    list(threads.map(volume, range(int(os.environ["VOLUMES"]))))
