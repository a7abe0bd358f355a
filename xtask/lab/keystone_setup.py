"""Keys, schema and first admin of a new Keystone: the commands of keystone-manage, one after the other.

Arguments: the configuration file, then the address (http://…/v3), the region and the admin's password for `bootstrap`.
Each command runs in a fork of one process, because importing Keystone takes longer than most of them. All of them may
be run again. The exit code is that of the first command that fails.
"""

import os
import sys

from keystone.cmd import cli

configuration, url, region, password = sys.argv[1:]
commands = [
    ["fernet_setup", "--keystone-user", "root", "--keystone-group", "root"],
    ["credential_setup", "--keystone-user", "root", "--keystone-group", "root"],
    ["db_sync"],
    ["bootstrap", "--bootstrap-password", password, "--bootstrap-region-id", region]
    + [word for kind in ("public", "internal", "admin") for word in (f"--bootstrap-{kind}-url", url)],
]
for command in commands:
    child = os.fork()
    if child == 0:
        sys.exit(cli.main(["keystone-manage", "--config-file", configuration, *command]))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        sys.exit(f"keystone-manage {command[0]} ended with {code}")
