//! The journals of promotions and drills: one chain each, readable by everybody, written by operators and standby
//! agents.

use serde::Serialize;
use serde::de::DeserializeOwned;

use farsite_model::PromotionId;

use crate::Store;
use crate::chain::Chain;
use crate::signed::Kind;

/// The journal of one promotion.
pub fn journal<T: Serialize + DeserializeOwned + Send>(store: &Store, promotion: PromotionId) -> Chain<T> {
    Chain::new(store, format!("journal/{promotion}"), Kind::Journal)
}

/// All promotions that have a journal.
pub async fn promotions(store: &Store) -> Result<Vec<PromotionId>, crate::StoreError> {
    let mut found: Vec<PromotionId> = store
        .backend
        .list("journal/", None)
        .await?
        .iter()
        .filter_map(|object| object.key.split('/').nth(1)?.parse().ok())
        .collect();
    found.dedup();
    Ok(found)
}
