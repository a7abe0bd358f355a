//! Replay: log files and two ends come in; a running server that holds exactly what lies between them goes out. The
//! database's own tools do it, `mariadb-binlog | mariadb`. What must hold: the log has no hole between the ends, an
//! event that is cut off at its very end is left out and never guessed, and a failure of either tool is a failure.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::ChildStdin;

use super::binlog::{self, HEADER_BYTES, Scan};
use super::server::Server;
use super::stream::BINLOG_PROGRAMS;
use crate::{LogPosition, SourceError, commands};

/// A day's log of a busy server, and more.
const REPLAY_LIMIT: Duration = Duration::from_hours(24);
const AGAIN: &str = "what is in the data directory is half replayed: restore the base again, then replay";

/// How far a log is replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplayEnd {
    /// Up to this place, which must be one where an event ends.
    Position(LogPosition),
    /// Everything before this moment. The log knows whole seconds: what is of that very second is left out.
    Time(Timestamp),
    /// Up to the last complete event.
    End,
}

/// What is replayed: files without a hole between them, and where to stop in the last one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    files: Vec<PathBuf>,
    from: u64,
    /// Where it ends; the same as the begin when there is nothing to replay.
    pub(super) end: LogPosition,
    /// An event that is cut off follows the end. `mariadb-binlog` reads one event past its stop position, and would fail.
    is_torn: bool,
}

/// Checks the files against both ends before anything is written.
pub(super) fn plan(files: &[PathBuf], from: &LogPosition, up_to: &ReplayEnd) -> Result<Plan, SourceError> {
    let what = "replaying the log";
    let nothing = Plan { files: Vec::new(), from: from.offset, end: from.clone(), is_torn: false };
    if let ReplayEnd::Position(end) = up_to {
        if end == from {
            return Ok(nothing);
        }
        if end < from {
            return Err(SourceError::new(
                what,
                format!("its end {end} is before the base's position {from}"),
            ));
        }
    }
    let files = between(files, from, up_to)?;
    let until = match up_to {
        ReplayEnd::Time(until) => Some(*until),
        _ => None,
    };
    let mut plan = nothing;
    let last = files.len().saturating_sub(1);
    for (index, (path, name)) in files.iter().enumerate() {
        let damaged = |why: String| SourceError::new(format!("{what} file {name}"), why);
        let scan = binlog::scan(path, until).map_err(|error| damaged(error.to_string()))?;
        let start = if index == 0 { from.offset } else { 0 };
        if index == 0 && !binlog::is_boundary(path, from.offset).unwrap_or(false) {
            return Err(damaged(format!("no event begins at the base's position {from}")));
        }
        if let Some(later) = scan.later {
            if later < start {
                let moment = until.map(|moment| moment.to_string()).unwrap_or_default();
                return Err(damaged(format!("the base holds changes of {moment} or later already"))
                    .hint("choose a recovery point before that moment"));
            }
            plan.stop(path, name, later, &scan);
            return Ok(plan);
        }
        match up_to {
            ReplayEnd::Position(end) if index == last => {
                if !binlog::is_boundary(path, end.offset).unwrap_or(false) {
                    return Err(damaged(format!(
                        "no event ends at {end}; it is whole up to {}",
                        scan.complete
                    )));
                }
                plan.stop(path, name, end.offset, &scan);
            }
            _ if index < last && scan.complete < scan.length => {
                let why = format!("it is cut off at byte {}, and a later file follows", scan.complete);
                return Err(damaged(why).hint("its copy is damaged: `farsite points verify` names what is"));
            }
            _ => plan.stop(path, name, scan.complete, &scan),
        }
    }
    Ok(plan)
}

impl Plan {
    /// Adds a file, replayed up to `offset`; one of which nothing is replayed is left out.
    fn stop(&mut self, path: &Path, name: &str, offset: u64, scan: &Scan) {
        let begin = if *name == self.end.file { self.from } else { 4 };
        if offset > begin {
            if self.files.is_empty() && *name != self.end.file {
                self.from = 4;
            }
            self.files.push(path.to_owned());
            name.clone_into(&mut self.end.file);
            self.end.offset = offset;
            self.is_torn = offset == scan.complete && scan.complete < scan.length;
        }
    }
}

/// The files from the begin's to the end's, in the order of the log.
fn between(
    files: &[PathBuf],
    from: &LogPosition,
    up_to: &ReplayEnd,
) -> Result<Vec<(PathBuf, String)>, SourceError> {
    let fail = |why: String| {
        Err(SourceError::new("replaying the log", why)
            .hint("nothing was replayed; `farsite points verify` names what is missing"))
    };
    let mut named: Vec<(LogPosition, PathBuf)> = Vec::new();
    for path in files {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let position = LogPosition::new(name, 0);
        if position.number().is_none() {
            return fail(format!("{} is not named as a log file is", path.display()));
        }
        named.push((position, path.clone()));
    }
    named.sort();
    let last = match up_to {
        ReplayEnd::Position(end) => end.number(),
        _ => None,
    };
    named.retain(|(position, _)| {
        position.number() >= from.number() && last.is_none_or(|last| position.number() <= Some(last))
    });
    match named.first() {
        Some((first, _)) if first.file == from.file => {}
        first => {
            let first = first.map_or("no file at all".to_owned(), |(position, _)| position.file.clone());
            return fail(format!("it should begin with {} and begins with {first}", from.file));
        }
    }
    for pair in named.windows(2) {
        let (before, after) = (&pair[0].0, &pair[1].0);
        if before.number().map(|number| number + 1) != after.number() {
            return fail(format!(
                "behind {} comes {}: a file is missing between them",
                before.file, after.file
            ));
        }
    }
    if let (ReplayEnd::Position(end), Some((found, _))) = (up_to, named.last())
        && found.file != end.file
    {
        return fail(format!("it should end in {} and ends in {}", end.file, found.file));
    }
    Ok(named.into_iter().map(|(position, path)| (path, position.file)).collect())
}

/// Carries out a plan.
pub(super) async fn run(server: &Server, plan: &Plan) -> Result<(), SourceError> {
    if plan.files.is_empty() {
        return Ok(());
    }
    let what = format!("replaying the log up to {} into {}", plan.end, server.place());
    let again = |error: SourceError| error.hint(AGAIN);
    let reader = commands::require(&BINLOG_PROGRAMS, "mariadb-client")?;
    let writer = commands::require(&["mariadb", "mysql"], "mariadb-client")?;
    let mut read = commands::tied(&reader);
    read.args(arguments(plan)).stdout(Stdio::piped()).stderr(Stdio::piped());
    if plan.is_torn {
        read.stdin(Stdio::piped());
    }
    let mut read = commands::spawn(&what, read).await?;
    let prefix = feed(plan, read.stdin.take());
    let pipe = read.stdout.take().map(TryInto::<Stdio>::try_into);
    let Some(Ok(pipe)) = pipe else {
        return Err(SourceError::new(&what, "no pipe between the two tools"));
    };
    let mut write = commands::tied(&writer);
    server.connect_program(&mut write)?;
    // Rows may hold every byte, and be large.
    write.args(["--batch", "--binary-mode", "--max-allowed-packet=1G"]);
    write.stdin(pipe).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut write = commands::spawn(&what, write).await?;
    let (read_said, write_said) = (read.stderr.take(), write.stderr.take());
    let ended = async {
        let said = async { tokio::join!(commands::tail(read_said), commands::tail(write_said)) };
        tokio::join!(said, prefix, read.wait(), write.wait())
    };
    let Ok((said, fed, read_status, write_status)) = tokio::time::timeout(REPLAY_LIMIT, ended).await else {
        return Err(again(commands::timed_out(&what, REPLAY_LIMIT)));
    };
    let (read_said, write_said) = said;
    // The reader of a pipe whose other end has died fails too: the writer's own words come first.
    for (name, status, said) in
        [("mariadb", write_status, write_said), ("mariadb-binlog", read_status, read_said)]
    {
        let status = status.map_err(|error| again(SourceError::new(&what, error)))?;
        if !status.success() {
            let why = format!("{name} ended with {status}{}", commands::shown(&said));
            return Err(again(SourceError::new(&what, why)));
        }
    }
    fed.map_err(|error| again(SourceError::new(&what, error)))
}

/// Writes the whole part of a torn last file into the reader's standard input.
async fn feed(plan: &Plan, into: Option<ChildStdin>) -> std::io::Result<()> {
    let (Some(mut into), Some(path)) = (into, plan.files.last()) else { return Ok(()) };
    let mut whole = tokio::fs::File::open(path).await?.take(plan.end.offset);
    let fed = tokio::io::copy(&mut whole, &mut into).await?;
    if fed < plan.end.offset {
        return Err(std::io::Error::other(format!("{} became shorter while it was read", path.display())));
    }
    into.shutdown().await
}

fn arguments(plan: &Plan) -> Vec<OsString> {
    let mut all: Vec<OsString> = vec!["--no-defaults".into(), "--disable-log-bin".into()];
    if plan.from >= HEADER_BYTES {
        all.push(format!("--start-position={}", plan.from).into());
    }
    // It applies to the last file alone.
    all.push(format!("--stop-position={}", plan.end.offset).into());
    all.extend(plan.files.iter().map(|path| path.as_os_str().to_owned()));
    if plan.is_torn {
        all.pop();
        all.push("-".into());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mariadb::binlog::tests::event;

    /// A log file: its description, and a transaction for each second.
    fn write(dir: &Path, name: &str, seconds: &[u32]) -> (PathBuf, Vec<u64>) {
        let mut bytes = vec![0xfe, b'b', b'i', b'n'];
        bytes.extend(event(15, 1, 100));
        let mut ends = vec![bytes.len() as u64];
        for seconds in seconds {
            bytes.extend(event(162, *seconds, 23));
            bytes.extend(event(16, *seconds, 12));
            ends.push(bytes.len() as u64);
        }
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        (path, ends)
    }

    fn at(file: &str, offset: u64) -> LogPosition {
        LogPosition::new(file, offset)
    }

    #[test]
    fn a_position_cuts_the_list_at_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let (one, ends) = write(dir.path(), "b.000001", &[5, 6]);
        let (two, _) = write(dir.path(), "b.000002", &[7, 8]);
        let (three, _) = write(dir.path(), "b.000003", &[9]);
        let files = [three.clone(), one.clone(), two.clone()];
        let from = at("b.000001", ends[1]);
        let to = |file: &str, offset| plan(&files, &from, &ReplayEnd::Position(at(file, offset)));
        let planned = to("b.000002", ends[1]).unwrap();
        assert_eq!(planned.files, [one.clone(), two.clone()]);
        assert_eq!((planned.from, planned.end), (ends[1], at("b.000002", ends[1])));
        assert!(to("b.000001", ends[1]).unwrap().files.is_empty(), "nothing lies between");
        assert!(to("b.000001", ends[0]).is_err(), "before the base");
        assert!(to("b.000002", ends[1] + 1).is_err(), "in the middle of an event");
        assert!(to("b.000002", 1 << 20).is_err(), "past the end");
        assert!(to("b.000004", ends[0]).is_err(), "its file is missing");
        let planned = plan(&files, &from, &ReplayEnd::End).unwrap();
        assert_eq!((planned.files.len(), planned.end), (3, at("b.000003", ends[1])));
    }

    #[test]
    fn a_missing_file_is_a_hole() {
        let dir = tempfile::tempdir().unwrap();
        let (one, ends) = write(dir.path(), "b.000001", &[5]);
        let (three, _) = write(dir.path(), "b.000003", &[9]);
        let from = at("b.000001", ends[0]);
        let error = plan(&[one, three.clone()], &from, &ReplayEnd::End).unwrap_err().to_string();
        assert!(error.contains("b.000003") && error.contains("missing"), "{error}");
        assert!(plan(&[three], &from, &ReplayEnd::End).is_err(), "the first one is missing");
        assert!(plan(&[], &from, &ReplayEnd::End).is_err());
    }

    #[test]
    fn a_cut_event_is_left_out_at_the_end_and_refused_in_the_middle() {
        let dir = tempfile::tempdir().unwrap();
        let (one, ends) = write(dir.path(), "b.000001", &[5, 6]);
        let (two, _) = write(dir.path(), "b.000002", &[7, 8]);
        let cut = |path: &Path, length: u64| {
            std::fs::File::options().write(true).open(path).unwrap().set_len(length).unwrap();
        };
        let from = at("b.000001", ends[0]);
        let all = [one.clone(), two.clone()];
        cut(&two, ends[2] - 40);
        assert_eq!(plan(&all, &from, &ReplayEnd::End).unwrap().end, at("b.000002", ends[1]));
        cut(&two, 30);
        let planned = plan(&all, &from, &ReplayEnd::End).unwrap();
        assert_eq!((planned.files, planned.end), (vec![one.clone()], at("b.000001", ends[2])));
        cut(&one, ends[2] - 1);
        assert!(plan(&all, &from, &ReplayEnd::End).is_err());
    }

    #[test]
    fn a_moment_stops_before_the_first_later_transaction() {
        let dir = tempfile::tempdir().unwrap();
        let (one, ends) = write(dir.path(), "b.000001", &[5, 6]);
        let (two, _) = write(dir.path(), "b.000002", &[7, 8]);
        let all = [one, two];
        let moment = |from: u64, seconds| {
            let until = ReplayEnd::Time(Timestamp::from_second(seconds).unwrap());
            plan(&all, &at("b.000001", from), &until)
        };
        assert_eq!(moment(ends[0], 8).unwrap().end, at("b.000002", ends[1]));
        assert_eq!(moment(ends[0], 9).unwrap().end, at("b.000002", ends[2]));
        // Nothing of the second file is left: the first is replayed to its end.
        assert_eq!(moment(ends[0], 7).unwrap().end.number(), Some(2));
        assert!(moment(ends[0], 5).unwrap().files.is_empty(), "the base is that moment");
        assert!(moment(ends[1], 5).is_err(), "the base is later than that moment");
    }
}
