//! What stands under an item's name goes aside for a promotion, and comes back when that is undone.
//!
//! What must hold: nothing that was there before is ever removed; what the promotion made is kept under a name that says so,
//! unless it was not whole; killed at any instant, both can be run again.

use std::io;
use std::sync::Arc;

use farsite_model::{ItemKind, PromotionId};
use farsite_sources::rbd::Writer;

use super::hydrated::Taken;
use super::mark::Mark;
use super::names::{HIDDEN, before, hydrated_name, item_of_before, partial, undone};
use super::restored::LETS_GO;
use crate::restore::Guard;

/// The most undone copies that are told apart by a number.
const AGAIN: u32 = 1000;

/// Moves an image that is not this promotion's own aside.
pub fn make_room(writer: &Writer, name: &str, promotion: PromotionId) -> io::Result<()> {
    let aside = before(name, promotion);
    if writer.look(&aside)?.is_some() {
        return Err(io::Error::other(format!(
            "{aside} is what stood under the name {name} before this promotion, and there is another image of that name now\n  hint: somebody made it meanwhile; nothing was changed: rename or remove that one, then go on"
        )));
    }
    writer.rename(name, &aside)
}

/// What was given back of a pool.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct GivenBack {
    /// Where what the promotion had made is now.
    pub kept: Vec<String>,
    /// Names that have what stood there before.
    pub returned: Vec<String>,
}

/// Gives all of a pool back that a promotion took for items of one kind.
pub fn give_back(
    writer: &Arc<Writer>,
    kind: ItemKind,
    promotion: PromotionId,
    guard: &Guard,
) -> io::Result<GivenBack> {
    let mut given = GivenBack::default();
    let names = writer.names()?;
    let of_kind = format!("{kind}/");
    let is_made = |mark: &Mark| mark.is_of(promotion) && mark.item.as_str().starts_with(&of_kind);
    let of_name = |name: &str| {
        let found = writer.look(name)?;
        Ok::<_, io::Error>(found.and_then(|found| Mark::of(&found)).filter(&is_made))
    };
    for name in names.iter().filter(|name| !name.starts_with(HIDDEN)) {
        guard()?;
        if of_name(name)?.is_some() {
            let to = (0..AGAIN).map(|again| undone(name, promotion, again)).find(|to| !names.contains(to));
            let to = to.ok_or_else(|| io::Error::other(format!("{name} was undone too often")))?;
            writer.rename(name, &to)?;
            given.kept.push(to);
        }
    }
    for name in names.iter().filter(|name| name.starts_with(&partial(""))) {
        guard()?;
        let Some(mark) = of_name(name)? else { continue };
        let (item, id) = (name[partial("").len()..].to_owned(), mark.item);
        let Some(image) = writer.take(name, LETS_GO)? else {
            return Err(io::Error::other(format!("{name} is being written to by another process")));
        };
        let mut taken = Taken::of(writer, name, &id, image, true)?;
        // It was hydrated, and is that again.
        if taken.mark.holds.is_some() && writer.look(&hydrated_name(&item))?.is_none() {
            taken.mark.restored = None;
            taken.mark.write(&taken.image)?;
            drop(taken);
            writer.rename(name, &hydrated_name(&item))?;
        } else {
            drop(taken);
            writer.remove(name)?;
        }
    }
    for name in &names {
        let Some(item) = item_of_before(name, promotion) else { continue };
        guard()?;
        if writer.look(item)?.is_some() {
            return Err(io::Error::other(format!(
                "{name} stood under the name {item} before the promotion, and another image has that name now\n  hint: rename or remove that one, then run this again"
            )));
        }
        writer.rename(name, item)?;
        given.returned.push(item.to_owned());
    }
    Ok(given)
}
