"""A volume of a type that Cinder encrypts; prints its id.

Environment: OS_CLIENT_CONFIG_FILE and OS_CLOUD (the site's admin), BACKEND (`volume_backend_name`).
"""

import os
import sys

import openstack

from clouds import until

block = openstack.connect().block_storage
kind = block.create_type(name="encrypted", extra_specs={"volume_backend_name": os.environ["BACKEND"]})
block.create_type_encryption(
    kind, provider="luks", cipher="aes-xts-plain64", key_size=256, control_location="front-end"
)
volume = block.create_volume(name="vault", size=1, volume_type="encrypted")
wrong = until(lambda: block.get_volume(volume.id))
if wrong or not block.get_volume(volume.id).is_encrypted:
    sys.exit(f"no encrypted volume: {wrong or 'Cinder does not call it encrypted'}")
print(volume.id)
