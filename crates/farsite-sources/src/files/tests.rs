use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::tests::{context, item};

fn keys(dir: &Path) -> PathBuf {
    let keys = dir.join("etc/keys");
    fs::create_dir_all(keys.join("old")).unwrap();
    fs::write(keys.join("0"), b"zero").unwrap();
    fs::write(keys.join("old/1"), b"one").unwrap();
    std::os::unix::fs::symlink("0", keys.join("current")).unwrap();
    fs::set_permissions(keys.join("0"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o750)).unwrap();
    File::options().write(true).open(keys.join("0")).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    keys
}

fn source(paths: &[&Path]) -> Box<dyn Source> {
    let list: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    crate::tests::source(&item(&format!("files: {{ name: keys, paths: [{}] }}", list.join(", ")))).unwrap()
}

async fn captured(source: &dyn Source, context: &CaptureContext) -> Capture {
    let id = source.items().await.unwrap().remove(0);
    source.capture(&id, context).await.unwrap()
}

#[tokio::test]
async fn a_set_of_files_is_one_tree_below_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys(dir.path());
    let single = dir.path().join("single.conf");
    fs::write(&single, b"x").unwrap();
    let scratch = dir.path().join("scratch");
    let source = source(&[&keys, &single]);
    let capture = captured(&*source, &context(&scratch)).await;
    assert_eq!((capture.consistency, capture.still), (Consistency::Crash, true));
    let Content::Tree { root, paths } = &capture.content else { panic!("a tree") };
    let base = dir.path().strip_prefix("/").unwrap();
    let expected: Vec<PathBuf> =
        ["etc/keys", "etc/keys/0", "etc/keys/current", "etc/keys/old", "etc/keys/old/1", "single.conf"]
            .iter()
            .map(|name| base.join(name))
            .collect();
    assert_eq!(paths, &expected);
    for path in paths {
        let (copy, original) =
            (fs::symlink_metadata(root.join(path)).unwrap(), fs::symlink_metadata(absolute(path)).unwrap());
        assert_eq!((copy.mode(), copy.uid(), copy.gid()), (original.mode(), original.uid(), original.gid()));
        assert_eq!(copy.modified().unwrap(), original.modified().unwrap(), "{}", path.display());
        if original.is_file() {
            assert_eq!(fs::read(root.join(path)).unwrap(), fs::read(absolute(path)).unwrap());
        }
    }
    fs::write(keys.join("0"), b"changed").unwrap();
    assert_eq!(fs::read(root.join(&expected[1])).unwrap(), b"zero", "the copy is still");
    drop(capture);
    assert!(fs::read_dir(&scratch).unwrap().next().is_none(), "no key is left in scratch");
}

#[tokio::test]
async fn files_that_never_rest_are_fuzzy_unless_a_hook_holds_them() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys(dir.path());
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, busy) = (stop.clone(), keys.join("busy"));
    let writer = std::thread::spawn(move || {
        let mut count = 0_u64;
        while !stopped.load(Ordering::Relaxed) {
            count += 1;
            fs::write(&busy, count.to_string()).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    std::thread::sleep(Duration::from_millis(20));
    let source = source(&[&keys]);
    let capture = captured(&*source, &context(&dir.path().join("scratch"))).await;
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    assert_eq!((capture.consistency, capture.still), (Consistency::Fuzzy, false));
    assert!(capture.details["read-in-place"].contains("did not stay"));
    let Content::Tree { root, .. } = &capture.content else { panic!("a tree") };
    assert_eq!(root, Path::new("/"));
}

#[tokio::test]
async fn what_cannot_be_restored_is_left_out_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys(dir.path());
    let _socket = std::os::unix::net::UnixListener::bind(keys.join("socket")).unwrap();
    let source = source(&[&keys]);
    let capture = captured(&*source, &context(&dir.path().join("scratch"))).await;
    assert!(capture.details["left-out"].contains("socket"));
    assert!(matches!(&source.check().await[0].result, Ok(said) if said.contains("socket")));
}

#[tokio::test]
async fn a_path_that_is_missing_or_a_link_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys(dir.path());
    for path in [dir.path().join("gone"), keys.join("current")] {
        let source = source(&[&keys, &path]);
        let id = source.items().await.unwrap().remove(0);
        assert!(source.capture(&id, &context(&dir.path().join("scratch"))).await.is_err());
        assert!(source.check().await[0].result.is_err());
    }
}

#[test]
fn a_path_must_be_absolute_and_plain() {
    for path in ["relative", "/", "/a/../b"] {
        assert!(below_root(Path::new(path)).is_err(), "{path}");
    }
    assert_eq!(below_root(Path::new("/etc/./keys/")).unwrap(), Path::new("etc/keys"));
}
