//! clouds.yaml to what exists at a site. The file that every OpenStack client reads comes in; what Keystone, Glance and Cinder
//! tell goes out as records, a page at a time: images, volumes, snapshots, pools, types, and what a volume was made from; and the
//! data of images.
//!
//! What must hold: nothing is ever changed at a cloud; a listing is whole or an error; passwords and tokens are read when a
//! token is asked for and shown nowhere, and no error quotes a line of the file.

mod auth_url;
mod catalog;
mod client;
mod clouds;
mod credentials;
mod download;
mod error;
mod files;
mod listings;
mod paging;
mod probe;
pub mod records;
mod selection;
mod site;
mod told;
mod volumes;

pub use auth_url::{AuthUrl, InvalidAuthUrl};
pub use catalog::{Service, Token};
pub use client::{Client, Limits};
pub use clouds::{Cloud, Clouds, CloudsError, ENVVARS, Interface};
pub use credentials::Credentials;
pub use download::Receives;
pub use error::AskError;
pub use paging::Pages;
pub use probe::{ProbeError, Reached, probe};
pub use selection::holds;
pub use site::SiteCloud;
pub use told::{MadeFrom, Told};
pub use volumes::Wanted;
