"""Looks for the names of a lost site where its standby keeps what its services go by: in every row of every table of every database,
and in every line of the configuration. It reads what the database dumps, and asks nothing of Farsite.

Environment: NAMES of the lost site (KIND=NAME, separated by blanks, the more exact ones first), SITE_FOLDER and SOCKET (of MariaDB) of the standby.
"""

import os
import re
import subprocess

# What is known to remain: where, which kinds of names, and why it does no harm. Anything else is a fault.
REMAINS = [
    (
        r"cinder\.volume_attachment\.(attached_host|connector|connection_info), deleted",
        {"site", "folder", "address", "cluster"},
        "an ended attachment tells which host had it and how that reached the volume: rows marked as deleted, which nothing reads",
    ),
]

VALUE = re.compile(r"(?:_binary )?'(?:[^'\\]|\\.)*'|[^,()']+")
INSERT = re.compile(r"INSERT INTO `(\w+)` \((.*?)\) VALUES \((.*)\);$")


def rows():
    """Each value of each row, and where it is; what is no row (a table's own definition) as it stands."""
    dump = ["mariadb-dump", "--no-defaults", "--socket", os.environ["SOCKET"], "--all-databases", "--single-transaction"]
    dump += ["--skip-comments", "--skip-extended-insert", "--complete-insert"]
    out = subprocess.run(dump, check=True, capture_output=True, timeout=120).stdout.decode(errors="replace")
    database = "?"
    for line in out.split("\n"):
        if line.startswith("USE `"):
            database = line.split("`")[1]
        elif insert := INSERT.match(line):
            table, columns, values = insert[1], re.findall(r"`(.+?)`", insert[2]), VALUE.findall(insert[3])
            if len(columns) != len(values):
                raise RuntimeError(f"a row of {database}.{table} was not understood: {line[:200]}")
            row = dict(zip(columns, values))
            gone = "" if row.get("deleted", "0") in ("0", "NULL") else ", deleted"
            for column, value in row.items():
                yield f"{database}.{table}.{column}{gone}", value
        else:
            yield f"{database}, in a definition", line


def configuration():
    for parent, _, files in os.walk(f"{os.environ['SITE_FOLDER']}/etc"):
        for name in files:
            path = os.path.join(parent, name)
            with open(path, errors="replace") as file:
                for number, line in enumerate(file, 1):
                    yield f"{path}:{number}", line.strip()


def remains():
    """What is wrong, as sentences; how many values and lines were looked at; how many are known to remain, by the reason."""
    names = [name.split("=", 1) for name in os.environ["NAMES"].split()]
    wrong, looked, known = [], 0, {}
    for part in (rows, configuration):
        before = looked
        for place, text in part():
            looked += 1
            lower = text.lower()
            kind, name = next(((kind, name) for kind, name in names if name.lower() in lower), (None, None))
            if name is None:
                continue
            why = next((why for at, kinds, why in REMAINS if re.fullmatch(at, place) and kind in kinds), None)
            if why is None:
                wrong.append(f"{place} has the lost site's {kind} {name}: {text[:200]}")
            else:
                known[why] = known.get(why, 0) + 1
        if looked - before < 100:
            wrong.append(f"the lost site's names were looked for in {looked - before} {part.__name__} alone: that cannot be all")
    return wrong, looked, known
