//! The words around the tables of the reference pages.

pub const CLI: &str = "
# The command line

Short ids are accepted wherever they are unique. A mistyped name gets the nearest ones. Times are ISO 8601 (`2026-11-24T03:00:00Z`) or
ages (`2h ago`). What a person reads goes to stdout, progress and logs to stderr. `--json` prints one JSON document.
A command that could do harm asks one question; `--yes` answers it, and without a terminal and without `--yes` the command refuses (exit code 4).

`farsite man --out DIR` writes manual pages, `farsite completions SHELL` a shell's completions.
";

pub const POLICY: &str = "
# Policies

A policy says what is protected together, when it is captured, to which standby it goes, and what recovery is promised. It is a YAML file in the
folder `policies/` beside `farsite.yaml`, one for each protection group, on the hosts of the source site. Put a copy beside the
`farsite.yaml` of whoever promotes: targets and level are read there too.

[policies/cloud.yaml](../policies/cloud.yaml) is a whole one with comments. `farsite policy check FILE` says what is wrong with a policy, with line and
column, when it runs next, and what is allowed but hardly meant. `farsite policy schema` prints the [JSON Schema](schemas/policy.json) for an editor.

`${env:NAME}` may stand in paths, names and commands. A secret never stands in the file: `${env:NAME}`, `file:/path` or `credential:NAME`
(systemd) say where it is. An unknown key is an error.

`retention` is applied by `farsite store gc`, which cron runs at the standby; a copy of the policy must lie there.

**Read, and not acted on yet:** `drill` (the agent starts no drill; let cron run `farsite drill run`),
`alerts` (nobody is told; use exit code 3 of `farsite status`, or the metrics). **Not there yet:** a `cinder` entry without `path` or `rbd`,
and `databases:` other than `all` are accepted by `policy check` and refused by `farsite check` and by the run.
";

pub const POLICY_END: &str = "
## Schedules

As in crontab(5): minute, hour, day of month, month, day of week (0 and 7 are Sunday), with lists, ranges, steps and names. Six fields begin with seconds.
`@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly` are known. As cron(8) has it, a time that a change of the clock skips is run
at once, one that it repeats is run once, and what runs several times an hour goes on as always. A schedule that is never due (30 February) is an error. What was missed while the agent was away is caught up once.
";

pub const RUNBOOK: &str = "
# Runbooks

A runbook is what a promotion does: stages, one after the other; in a stage, steps that run together as far as their `needs` allow. Three are
built in, one for each level. A file of the same name in the folder `runbooks/` beside `farsite.yaml` goes before a built-in one;
`--runbook FILE` names another.

`farsite runbook check` checks all, with line and column; `farsite runbook graph NAME` draws one; `farsite runbook schema` prints the
[JSON Schema](schemas/runbook.json) for an editor.

Every step is written into the journal before it begins and after it ends. A step that was cut off is looked at first (its `check`), then
repeated, if twice is as good as once. Undo runs in the reverse order: in a rollback, and at the end of each drill. Hence a step that runs in
drills must be undoable, or say `undo: none`, or be `real-only`.
";

pub const RUNBOOK_ACTIONS: &str = "
## Actions

The last column is the time that a step may take where it says no `timeout` of its own. With a `gate`, the time that the person has comes on top.
";

pub const RUNBOOK_SHIPPED: &str = "
## The runbooks that ship

Each includes the one before it. A step that is marked with a variable runs only where the variable is not empty: the [files](../runbooks/) say which.
";

pub const RUNBOOK_VARIABLES: &str = "
### Their variables

They get their values under `places.<group>.variables` in [farsite.yaml](config-reference.md). Always known are `place` (`place.mariadb.socket`,
`place.sqlite`, `place.glance`, `place.cinder`, `place.files`), `promotion`, `group`, `site`, `from`, `to`, `mode` and `level`.
";

pub const CONFIG: &str = "
# farsite.yaml

One for each host. It is looked for at `--config`, `$FARSITE_CONFIG`, `./farsite.yaml`, `/etc/farsite/farsite.yaml`; the first that is there counts.
Relative paths start in the folder of the file. `farsite init` writes one for each machine. `farsite check` says what would not work.
Its [JSON Schema](schemas/config.json) is for editors.

A secret never stands in the file. An unknown key is an error with the nearest known one.
";

pub const CONFIG_END: &str = "
## Which key on which host

| host | `keys:` | `identity:` of the store |
| --- | --- | --- |
| source agent | `source-agent`, `block-secret` | never |
| standby agent | `standby-agent` | yes |
| whoever promotes | `operator` | yes |

## Stores

`url: ./folder` is a folder, on a file system that the standby keeps and the source can reach (NFS). `url: s3://bucket/prefix?endpoint=https://…&region=…`
is a bucket. Its credentials are `access-key` and `secret-key`, else `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`. `endpoint:` and `region:` go before what the URL says.
[What the credentials should be able to do](operator-guide.md#the-object-store) stands in the operator's guide.
";
