//! Long listings, a page at a time. What must hold: what is missing from a listing does not exist at its end; a page that
//! cannot be had is an error. A link to the next page is followed by its marker alone, at the address out of the catalog: what
//! a proxy makes of the address neither misleads the question nor gets the token.

use std::marker::PhantomData;

use reqwest::Url;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{AskError, Client, Service};

/// What is asked for at once. Services have a limit of their own (1000 by default) and then give less.
const PAGE: u32 = 1000;
/// A listing is begun anew when what stood at the end of a page was deleted meanwhile; no more often than this.
const FRESH_STARTS: u32 = 3;

/// A listing under way.
pub struct Pages<'c, T> {
    client: &'c Client,
    service: Service,
    path: String,
    /// `volumes`: the answer's field; links are in `volumes_links`, or Glance's `next`.
    field: &'static str,
    query: Vec<(String, String)>,
    version: Option<String>,
    page: u32,
    at: At,
    fresh_starts: u32,
    records: PhantomData<fn() -> T>,
}

enum At {
    Start,
    Behind(String),
    End,
}

impl<'c, T: DeserializeOwned> Pages<'c, T> {
    pub(crate) fn new(
        client: &'c Client,
        service: Service,
        path: &str,
        field: &'static str,
        query: Vec<(String, String)>,
        version: Option<String>,
    ) -> Self {
        Self {
            client,
            service,
            path: path.to_owned(),
            field,
            query,
            version,
            page: PAGE,
            at: At::Start,
            fresh_starts: 0,
            records: PhantomData,
        }
    }

    /// Pages of so many records.
    pub fn of(mut self, page: u32) -> Self {
        self.page = page;
        self
    }

    /// The next page; `None` behind the last one. A record may come twice when something was deleted meanwhile.
    pub async fn next(&mut self) -> Result<Option<Vec<T>>, AskError> {
        loop {
            let mut query = self.query.clone();
            query.push(("limit".to_owned(), self.page.to_string()));
            match &self.at {
                At::End => return Ok(None),
                At::Start => {}
                At::Behind(marker) => query.push(("marker".to_owned(), marker.clone())),
            }
            let version = self.version.as_deref();
            let answer: Value = match self.client.get(self.service, &self.path, &query, version).await {
                Ok(answer) => answer,
                Err(AskError::Status { status: 400 | 404, .. })
                    if matches!(self.at, At::Behind(_)) && self.fresh_starts < FRESH_STARTS =>
                {
                    self.fresh_starts += 1;
                    self.at = At::Start;
                    continue;
                }
                Err(error) => return Err(error),
            };
            return self.read(answer).map(Some);
        }
    }

    /// All of it at once.
    pub async fn all(mut self) -> Result<Vec<T>, AskError> {
        let mut all = Vec::new();
        while let Some(page) = self.next().await? {
            all.extend(page);
        }
        Ok(all)
    }

    fn read(&mut self, mut answer: Value) -> Result<Vec<T>, AskError> {
        let unreadable = |why: String| AskError::Unreadable {
            cloud: self.client.name().to_owned(),
            what: format!("listing {}", self.field),
            why,
        };
        let next = next_link(&answer, self.field).map(str::to_owned);
        let Some(Value::Array(records)) = answer.get_mut(self.field).map(Value::take) else {
            return Err(unreadable(format!("it has no list of {}", self.field)));
        };
        let page: Result<Vec<T>, AskError> = records
            .into_iter()
            .map(|record| {
                let id = record.get("id").and_then(Value::as_str).unwrap_or("one without an id").to_owned();
                serde_json::from_value(record).map_err(|error| unreadable(format!("{id}: {error}")))
            })
            .collect();
        let page = page?;
        let at = match next {
            None => At::End,
            Some(link) => {
                let marker = marker(&link)
                    .ok_or_else(|| unreadable("its link to the next page has no marker".to_owned()))?;
                if matches!(&self.at, At::Behind(before) if *before == marker) {
                    return Err(unreadable("its next page is the one before".to_owned()));
                }
                At::Behind(marker)
            }
        };
        self.at = at;
        Ok(page)
    }
}

/// Cinder's `volumes_links: [{rel: next, href: …}]`, Glance's `next: /v2/images?…`, Keystone's `links: {next: …}`.
fn next_link<'a>(answer: &'a Value, field: &str) -> Option<&'a str> {
    let links = answer.get(format!("{field}_links")).and_then(Value::as_array);
    let of_cinder = links.into_iter().flatten().find(|link| link["rel"] == "next");
    of_cinder
        .map(|link| &link["href"])
        .or_else(|| answer.get("next"))
        .or_else(|| answer.get("links")?.get("next"))?
        .as_str()
}

fn marker(link: &str) -> Option<String> {
    // Glance's begin with a path.
    let base = Url::parse("http://any").ok()?;
    let url = Url::options().base_url(Some(&base)).parse(link).ok()?;
    url.query_pairs().find(|(name, _)| name == "marker").map(|(_, value)| value.into_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_service_has_its_own_way_to_say_that_there_is_more() {
        let cinder = json!({ "volumes": [], "volumes_links": [
            { "rel": "next", "href": "http://inside:8776/v3/volumes/detail?limit=2&marker=b" } ] });
        assert_eq!(next_link(&cinder, "volumes").and_then(marker).as_deref(), Some("b"));
        let glance = json!({ "images": [], "next": "/v2/images?marker=c%2Fd&limit=2" });
        assert_eq!(next_link(&glance, "images").and_then(marker).as_deref(), Some("c/d"));
        let keystone = json!({ "projects": [], "links": { "next": null } });
        assert_eq!(next_link(&keystone, "projects"), None);
    }
}
