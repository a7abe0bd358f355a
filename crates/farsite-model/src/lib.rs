//! The vocabulary of Farsite as types. Text and numbers come in (YAML, ids, clock readings), checked values go
//! out (policies, points, exposures). This crate does no I/O beyond reading the configuration file it is given,
//! and everything that depends on time takes the time as a parameter.

pub mod clock;
pub mod config;
pub mod content;
pub mod env;
pub mod ids;
pub mod item;
pub mod level;
pub mod nearest;
pub mod policy;
pub mod quantity;
pub mod retention;
pub mod rpo;
pub mod schedule;
pub mod secret;
pub mod status;
pub mod time;
pub mod yaml;

pub use ids::{Epoch, GroupName, ItemId, PointId, PromotionId, RunId, SiteName};
pub use item::{Consistency, ItemKind};
pub use level::{Level, Mode};
pub use time::{CaptureTime, StoreTime};
