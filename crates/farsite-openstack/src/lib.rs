//! clouds.yaml to what exists at a site. The file that every OpenStack client reads comes in; the clouds it names
//! go out, with what is needed to find and reach them and never with what opens them: user names, passwords and
//! tokens are not read into memory, and no error quotes a line of the file.

mod auth_url;
mod clouds;
mod probe;

pub use auth_url::{AuthUrl, InvalidAuthUrl};
pub use clouds::{Cloud, Clouds, CloudsError};
pub use probe::{ProbeError, Reached, probe};
