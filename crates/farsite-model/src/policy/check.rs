//! What a policy's shape does not say: schedules that fire, names that are unique, figures that fit each other.

use std::collections::BTreeMap;

use super::file::{BandwidthFile, PolicyFile};
use super::{Alerts, Bandwidth, DiskFormat, Drill, Item, Policy, Retention, Window};
use crate::quantity::{ByteSize, Span};
use crate::schedule::{Schedule, ScheduleError};
use crate::yaml::{At, Source, YamlError};
use crate::{GroupName, ItemId, ItemKind};

const BLOCK_SIZES: std::ops::RangeInclusive<u64> = 4 << 10..=4 << 20;
const ONLY_QCOW2: &str = "only qcow2 images are read through the process that has them open";
const FORMAT_QCOW2: &str = "say `format: qcow2`, or remove `qmp:`";
const DEFAULT_BLOCK_SIZE: ByteSize = ByteSize(64 << 10);
const DEFAULT_MEMORY: ByteSize = ByteSize(256 << 20);
const DEFAULT_CACHE: ByteSize = ByteSize(4 << 30);
const DEFAULT_VERIFY_TRACKING: Span = Span::from_millis(7 * 24 * 3_600_000);
/// A run holds blocks that are being read, compressed and sent at once; fewer than these leave it no work to
/// overlap.
const LEAST_BLOCKS_IN_MEMORY: u64 = 16;

pub(super) fn check(source: Source<'_>, file: PolicyFile) -> Result<Policy, YamlError> {
    let tz = file.tz.as_ref();
    let schedule = parse_schedule(source, &file.schedule, tz)?;
    check_sites(source, &file)?;
    check_items(source, &file.items)?;
    super::hosts::check(source, &file)?;
    for target in [Some(&file.rpo), file.rto.as_ref()].into_iter().flatten() {
        if target.value == Span::from_millis(0) {
            return Err(source.error(target, "a target of nothing can never be met", None));
        }
    }
    let block_size = match &file.block_size {
        None => DEFAULT_BLOCK_SIZE,
        Some(size) if is_block_size(size.value) => size.value,
        Some(size) => return Err(bad_block_size(source, size, size.value)),
    };
    let memory = match &file.memory {
        Some(memory) if memory.0 < block_size.0 * LEAST_BLOCKS_IN_MEMORY => {
            let least = ByteSize(block_size.0 * LEAST_BLOCKS_IN_MEMORY);
            let message = format!("{} is too little memory for blocks of {block_size}", memory.value);
            return Err(source.error(memory, message, Some(format!("give at least {least}"))));
        }
        memory => memory.as_ref().map_or(DEFAULT_MEMORY, |memory| memory.value),
    };
    let retention = match &file.retention {
        None => Retention::default(),
        Some(retention) => {
            let checked = retention.checked();
            let Retention { last, hourly, daily, weekly, monthly, yearly, keep: _ } = checked;
            if [last, hourly, daily, weekly, monthly, yearly].iter().all(|count| *count == 0) {
                let hint = Some("add `last: 24`, for example".to_owned());
                return Err(source.error(retention, "this retention keeps no points", hint));
            }
            checked
        }
    };
    let bandwidth = check_bandwidth(source, &file.bandwidth, tz)?;
    let drill = match &file.drill {
        None => None,
        Some(drill) => Some(Drill {
            schedule: parse_schedule(source, &drill.schedule, tz)?,
            level: drill.level.unwrap_or(file.level),
            runbook: drill.runbook.clone(),
        }),
    };
    let webhook = match &file.alerts.webhook {
        None => None,
        Some(url) => {
            let expanded = crate::env::expand(url).map_err(|why| source.error(url, why, None))?;
            if !expanded.starts_with("https://") && !expanded.starts_with("http://") {
                return Err(source.error(
                    url,
                    "a webhook is a URL that begins with https:// or http://",
                    None,
                ));
            }
            Some(expanded)
        }
    };
    let warnings = warnings(source, &file, &schedule, drill.as_ref());
    Ok(Policy {
        file: source.file.to_owned(),
        group: file.group,
        site: file.site.value,
        to: file.to.value.into_iter().map(|site| site.value).collect(),
        level: file.level,
        tz: file.tz.map(|tz| tz.value),
        rpo: file.rpo.value,
        rto: file.rto.map(|rto| rto.value),
        items: file.items.value.into_iter().map(|item| item.value).collect(),
        retention,
        bandwidth,
        hooks: file.hooks,
        drill,
        alerts: Alerts { webhook, mail: file.alerts.mail.0 },
        block_size,
        memory,
        cache: file.cache.map_or(DEFAULT_CACHE, |cache| cache.value),
        compression: file.compression,
        ancestors: file
            .ancestors
            .into_iter()
            .map(|(item, ancestor)| (ItemId::parse(item), ItemId::parse(ancestor)))
            .collect(),
        verify_tracking: file.verify_tracking.map_or(DEFAULT_VERIFY_TRACKING, |span| span.value),
        keep_versions: file.keep_versions.map(|size| size.value),
        schedule,
        warnings,
    })
}

fn parse_schedule(
    source: Source<'_>,
    text: &At<String>,
    tz: Option<&At<String>>,
) -> Result<Schedule, YamlError> {
    Schedule::parse(text, tz.map(|tz| tz.as_str())).map_err(|error| {
        let ScheduleError { field, hint, .. } = &error;
        let place = tz.filter(|_| *field == Some("time zone")).unwrap_or(text);
        let hint = hint.clone();
        source.error(place, ScheduleError { hint: None, ..error }.to_string(), hint)
    })
}

fn check_sites(source: Source<'_>, file: &PolicyFile) -> Result<(), YamlError> {
    if file.to.is_empty() {
        let hint = Some("name at least one standby site: `to: [south]`".to_owned());
        return Err(source.error(&file.to, "this policy replicates to no site", hint));
    }
    for (n, to) in file.to.iter().enumerate() {
        if to.value == file.site.value {
            let hint = Some("name another site: a disaster takes what stands beside it".to_owned());
            return Err(source.error(to, format!("{} would be its own standby", to.value), hint));
        }
        if file.to[..n].contains(to) {
            return Err(source.error(to, format!("{} stands here a second time", to.value), None));
        }
    }
    Ok(())
}

fn check_items(source: Source<'_>, items: &At<Vec<At<Item>>>) -> Result<(), YamlError> {
    if items.is_empty() {
        let hint = Some("add one: `- files: { paths: [/etc/keystone] }`".to_owned());
        return Err(source.error(items, "this policy protects nothing", hint));
    }
    let mut seen: BTreeMap<(ItemKind, String), usize> = BTreeMap::new();
    for item in items.iter() {
        let name = item.name();
        // Names become parts of object keys, as groups' do.
        if let Err(why) = GroupName::new(name.as_str()) {
            let hint = Some("give it another with `name:`".to_owned());
            return Err(source.error(
                item,
                format!("the item name {name:?} is not valid: {}", why.why),
                hint,
            ));
        }
        if let Some(line) = seen.insert((item.kind(), name), item.line) {
            let message = format!("a second item called {}; the first is on line {line}", item.id());
            return Err(source.error(item, message, Some("tell them apart with `name:`".to_owned())));
        }
        check_item(source, item)?;
    }
    for item in items.iter() {
        check_keys(source, item, &seen)?;
    }
    Ok(())
}

/// The items that hold a volume's keys are in the same group: a key that is recovered to another moment may be no key.
fn check_keys(
    source: Source<'_>,
    item: &At<Item>,
    items: &BTreeMap<(ItemKind, String), usize>,
) -> Result<(), YamlError> {
    let Item::Cinder(cinder) = &item.value else { return Ok(()) };
    let ids: Vec<String> = items.keys().map(|(kind, name)| format!("{kind}/{name}")).collect();
    for key in &cinder.encryption_keys {
        let hint = "name a database or files of this policy: `mariadb/main`, `files/barbican`";
        if !ids.contains(key) {
            let near = crate::nearest::did_you_mean(key, ids.iter().map(String::as_str));
            let message = format!("`encryption-keys` names {key}, which is no item of this policy{near}");
            return Err(source.error(item, message, Some(hint.to_owned())));
        }
        if key.starts_with("cinder/") || key.starts_with("glance/") {
            let message = format!("`encryption-keys` names {key}, and keys lie in no volumes or images");
            return Err(source.error(item, message, Some(hint.to_owned())));
        }
    }
    Ok(())
}

fn check_item(source: Source<'_>, item: &At<Item>) -> Result<(), YamlError> {
    let wrong = |message: &str, hint: &str| Err(source.error(item, message, Some(hint.to_owned())));
    match &item.value {
        Item::Mariadb(mariadb) => {
            match (&mariadb.socket, &mariadb.host) {
                (None, None) => return wrong("this server has no address", "add `socket:` or `host:`"),
                (Some(_), Some(_)) => {
                    return wrong("this server has two addresses", "remove `socket:` or `host:`");
                }
                (Some(_), None) if mariadb.port.is_some() => {
                    return wrong("a socket has no port", "remove `port:`, or write `host:` for `socket:`");
                }
                _ => {}
            }
            if matches!(&mariadb.databases, super::Databases::Named(names) if names.is_empty()) {
                return wrong("no database is named", "write `databases: all` or name some");
            }
            if mariadb.backup_args.iter().any(|arg| arg.starts_with("--pass") || arg.starts_with("-p")) {
                return wrong(
                    "a password among arguments can be seen by everybody on the host",
                    "use `password: credential:NAME`",
                );
            }
        }
        Item::Glance(glance) => {
            let named = [glance.store.is_some(), glance.rbd.is_some(), glance.api];
            match named.iter().filter(|is_named| **is_named).count() {
                0 => {
                    return wrong(
                        "nothing says where these images are",
                        "add `store:`, `rbd:` or `api: true`",
                    );
                }
                1 => {}
                _ => {
                    let hint = "keep one of `store:`, `rbd:` and `api:`";
                    return wrong("these images are in more than one place", hint);
                }
            }
            if glance.api && glance.checksums.is_some() {
                return wrong("Glance's API tells checksums by itself", "remove `checksums:`");
            }
        }
        Item::Cinder(cinder) if cinder.backend.is_none() && cinder.path.is_none() && cinder.rbd.is_none() => {
            return wrong("nothing says where these volumes are", "add `backend:`, `path:` or `rbd:`");
        }
        Item::Cinder(cinder) if cinder.path.is_some() && cinder.rbd.is_some() => {
            return wrong("these volumes are in two places", "remove `path:` or `rbd:`");
        }
        Item::Cinder(cinder) if cinder.rbd.is_some() && cinder.format != DiskFormat::Raw => {
            return wrong("images of a pool are raw", "remove `format:`");
        }
        Item::Cinder(cinder) if cinder.qmp.is_some() && cinder.format != DiskFormat::Qcow2 => {
            return wrong(ONLY_QCOW2, FORMAT_QCOW2);
        }
        Item::Volume(volume) if volume.qmp.is_some() && volume.format != DiskFormat::Qcow2 => {
            return wrong(ONLY_QCOW2, FORMAT_QCOW2);
        }
        Item::Files(files) if files.paths.is_empty() => {
            return wrong("no files are named", "add some: `paths: [/etc/keystone/fernet-keys]`");
        }
        Item::Volume(volume) => {
            if let Some(size) = volume.block_size.filter(|size| !is_block_size(*size)) {
                return Err(bad_block_size(source, item, size));
            }
        }
        Item::Sqlite(_) | Item::Cinder(_) | Item::Files(_) => {}
    }
    Ok(())
}

fn is_block_size(size: ByteSize) -> bool {
    BLOCK_SIZES.contains(&size.0) && size.0.is_power_of_two()
}

fn bad_block_size<T>(source: Source<'_>, at: &At<T>, size: ByteSize) -> YamlError {
    let hint = Some("give a power of two from 4KiB to 4MiB".to_owned());
    source.error(at, format!("{size} is not a block size"), hint)
}

fn check_bandwidth(
    source: Source<'_>,
    file: &BandwidthFile,
    tz: Option<&At<String>>,
) -> Result<Bandwidth, YamlError> {
    let limits = file.limit.iter().chain(file.windows.values().map(|window| &window.limit));
    for limit in limits {
        if limit.0 == 0 {
            let message = "a limit of nothing would stop replication";
            return Err(source.error(limit, message, Some("leave `limit:` away for no limit".to_owned())));
        }
    }
    let windows = file.windows.iter().map(|(name, window)| {
        let cron = parse_schedule(source, &window.cron, tz)?;
        Ok(Window { name: name.clone(), cron, limit: window.limit.value })
    });
    Ok(Bandwidth {
        limit: file.limit.as_ref().map(|limit| limit.value),
        windows: windows.collect::<Result<_, YamlError>>()?,
    })
}

fn warning<T>(source: Source<'_>, at: &At<T>, text: &str) -> String {
    format!("{}:{}:{}: {text}", source.file, at.line, at.column)
}

fn warnings(
    source: Source<'_>,
    file: &PolicyFile,
    schedule: &Schedule,
    drill: Option<&Drill>,
) -> Vec<String> {
    let mut warnings = Vec::new();
    for remark in schedule.remarks() {
        warnings.push(warning(source, &file.schedule, remark));
    }
    let pause = schedule.longest_pause();
    let by_schedule: Vec<String> =
        file.items.value.iter().filter(|item| !item.ships_log()).map(|item| item.id().to_string()).collect();
    if file.rpo.to_signed() < pause && !by_schedule.is_empty() {
        let pause = Span::from_millis(u64::try_from(pause.as_millis()).unwrap_or(0));
        let text = format!(
            "the schedule pauses for up to {pause}, so an RPO of {} will be missed by {}",
            file.rpo.value,
            by_schedule.join(", ")
        );
        warnings.push(warning(source, &file.rpo, &text));
    }
    if let (Some(drill), Some(in_file)) = (drill, &file.drill) {
        for remark in drill.schedule.remarks() {
            warnings.push(warning(source, &in_file.schedule, remark));
        }
        if drill.level < file.level {
            let text =
                format!("drills prove level {} only, and level {} is promised", drill.level, file.level);
            warnings.push(warning(source, &in_file.schedule, &text));
        }
    }
    warnings
}
