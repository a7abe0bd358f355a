//! What our images in a pool are called: hidden ones beside the items' own. Cinder and Glance know theirs by names that begin
//! otherwise, and so does our own reading of a pool.

use farsite_model::PromotionId;

/// All of ours begin so.
pub const HIDDEN: &str = ".farsite-";

/// The copy that is kept hydrated.
pub fn hydrated_name(item: &str) -> String {
    format!("{HIDDEN}hydrated.{item}")
}

/// What is being made ready to be named.
pub(super) fn partial(item: &str) -> String {
    format!("{HIDDEN}partial.{item}")
}

/// What stood there before a promotion.
pub fn before(item: &str, promotion: PromotionId) -> String {
    format!("{HIDDEN}before-{promotion}.{item}")
}

/// The item's name out of the name of what stood there before.
pub fn item_of_before(name: &str, promotion: PromotionId) -> Option<&str> {
    name.strip_prefix(HIDDEN)?
        .strip_prefix("before-")?
        .strip_prefix(promotion.to_string().as_str())?
        .strip_prefix('.')
}

/// What a promotion had made, and was undone.
pub(super) fn undone(item: &str, promotion: PromotionId, again: u32) -> String {
    match again {
        0 => format!("{HIDDEN}undone-{promotion}.{item}"),
        again => format!("{HIDDEN}undone-{promotion}-{}.{item}", again + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stood_there_before_is_told_by_its_name_and_by_its_promotion() {
        let (ours, other) = (PromotionId::from_random(1), PromotionId::from_random(2));
        let name = before("volume-1.x", ours);
        assert_eq!(item_of_before(&name, ours), Some("volume-1.x"));
        assert_eq!(item_of_before(&name, other), None);
        assert_eq!(item_of_before("volume-1.x", ours), None);
    }
}
