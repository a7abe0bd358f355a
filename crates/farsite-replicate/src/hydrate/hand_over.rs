//! A promotion takes a hydrated copy: the place comes in; the copy stands beside it as what an earlier attempt of the restore
//! left, and the map of what it is, if it was proved untouched, goes out. What must hold: once handed over nothing says
//! any more that there is a hydrated copy; killed at any instant, what is left is no more than a file whose contents are
//! compared.

use std::fs;
use std::path::Path;
use std::time::Duration;

use farsite_store::manifest::ManifestItem;
use farsite_store::map::MapRoot;

use super::copy::Copy;
use super::lock::Lock;
use super::state;
use crate::ReplicateError;
use crate::restore::partial_of;
use crate::unfinished::sync_folder;

/// Whoever hydrates lets go between two blocks; one that does not is left alone with its copy.
const LETS_GO: Duration = Duration::from_secs(30);

/// `None`: there is no copy to be had. `Some(None)`: there is one, and what it is must be found out.
pub async fn hand_over(item: &ManifestItem, place: &Path) -> Result<Option<Option<MapRoot>>, ReplicateError> {
    let copy = Copy::of(&item.id, place);
    if fs::symlink_metadata(copy.path()).is_err() {
        return Ok(None);
    }
    let what = || format!("taking the hydrated copy {}", copy.path().display());
    let io = |source| ReplicateError::Io { what: what(), source };
    let Some(_wanted) = Lock::take(&copy.wanted_path(), LETS_GO).await.map_err(io)? else { return Ok(None) };
    let Some(_lock) = Lock::take(&copy.lock_path(), LETS_GO).await.map_err(io)? else {
        tracing::warn!(
            "{} is being hydrated and not let go of: the item is restored anew",
            copy.path().display()
        );
        return Ok(None);
    };
    let known = copy.untouched().map_err(io)?.map(|version| version.map);
    state::forget(&copy.state_path()).map_err(io)?;
    let partial = partial_of(place);
    fs::rename(copy.path(), &partial).map_err(io)?;
    sync_folder(copy.path()).and_then(|()| sync_folder(&partial)).map_err(io)?;
    Ok(Some(known))
}
