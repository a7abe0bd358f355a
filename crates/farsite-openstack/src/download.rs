//! An image's data, through Glance's API. An image's id and length come in; its bytes go out, in order. What must hold: a
//! connection that breaks off is gone on with where it broke off, and what comes once more from the beginning is said to; what
//! is not all of the length is an error; nothing waits longer than its limits. Whether the bytes are the right ones, the
//! receiver finds out by their hash.
//!
//! Glance answers `Range` with 206, and with 400 where the image's store cannot begin in the middle; an image whose store has
//! lost it with 204 and nothing (glance/api/v2/image_data.py).

use std::time::Duration;

use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Response, StatusCode};
use tokio::time::{Instant, timeout};

use crate::{AskError, Client, Service};

/// Fewer bytes than this within the time of one call are no progress.
const LEAST_BYTES: u64 = 256 << 10;

/// Where an image's bytes go.
pub trait Receives: Send {
    /// The next bytes. An error, in words, ends the download.
    fn take(&mut self, bytes: &[u8]) -> Result<(), String>;
    /// What comes next begins at the image's first byte once more.
    fn begin_anew(&mut self) -> Result<(), String>;
}

/// One image on its way.
struct Download<'c> {
    client: &'c Client,
    image: &'c str,
    size_bytes: u64,
    what: String,
    /// Bytes that the receiver has.
    at: u64,
    /// Whether the image's store can begin in the middle, as far as is known.
    has_ranges: bool,
}

/// Why one try ended.
enum Broke {
    /// Asking again may help.
    Off(AskError),
    /// Its store cannot begin in the middle.
    NoRanges,
    /// The token is good no more.
    Refused(AskError),
    ForGood(AskError),
}

impl Client {
    /// Downloads all of an image's data. `limit` is the longest that it may take.
    pub async fn download(
        &self,
        image: &str,
        size_bytes: u64,
        limit: Duration,
        into: &mut dyn Receives,
    ) -> Result<(), AskError> {
        let what = format!("GET /images/{image}/file ({})", Service::Image);
        let cloud = self.name().to_owned();
        let late = AskError::TimedOut { cloud, what: what.clone(), limit };
        let download = Download { client: self, image, size_bytes, what, at: 0, has_ranges: true };
        timeout(limit, download.all(limit, into)).await.unwrap_or(Err(late))
    }
}

impl Download<'_> {
    async fn all(mut self, limit: Duration, into: &mut dyn Receives) -> Result<(), AskError> {
        let (mut tries, mut was_renewed) = (0, false);
        loop {
            let before = self.at;
            let Err(broke) = self.once(limit, into).await else { return Ok(()) };
            // A long one outlives more than one connection, and more than one token.
            if self.at.saturating_sub(before) >= LEAST_BYTES {
                (tries, was_renewed) = (0, false);
            }
            tries += 1;
            let error = match broke {
                Broke::NoRanges if self.has_ranges => {
                    self.has_ranges = false;
                    continue;
                }
                Broke::NoRanges => self.odd("it answers to a range that nobody asked for".to_owned()),
                Broke::Refused(_) if !was_renewed => {
                    was_renewed = true;
                    continue;
                }
                Broke::ForGood(error) | Broke::Refused(error) => return Err(error),
                Broke::Off(error) => error,
            };
            if tries >= self.client.limits.tries {
                return Err(error);
            }
            tracing::debug!("going on at byte {}: {error}", self.at);
            self.client.pause(tries, None).await;
        }
    }

    /// One connection, to its end.
    async fn once(&mut self, limit: Duration, into: &mut dyn Receives) -> Result<(), Broke> {
        let client = self.client;
        let token = client.token().await.map_err(Broke::ForGood)?;
        let endpoint = client.endpoint(Service::Image).await.map_err(Broke::ForGood)?;
        let url = format!("{endpoint}/images/{}/file", self.image);
        let mut request = client.ask(&url, &token).timeout(limit);
        let asks_range = self.at > 0 && self.has_ranges;
        if asks_range {
            request = request.header(RANGE, format!("bytes={}-", self.at));
        }
        let call = client.limits.call;
        let sent = timeout(call, request.send()).await.map_err(|_| self.late())?;
        let mut response = sent.map_err(|error| Broke::Off(client.unreachable(&self.what, &error)))?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if asks_range && self.goes_on(&response) => {}
            StatusCode::PARTIAL_CONTENT => return Err(Broke::NoRanges),
            StatusCode::OK => {
                if let Some(told) = response.content_length().filter(|told| *told != self.size_bytes) {
                    let why =
                        format!("it is {told} bytes long, and Glance's record says {}", self.size_bytes);
                    return Err(Broke::ForGood(self.odd(why)));
                }
                if self.at > 0 {
                    self.at = 0;
                    into.begin_anew().map_err(|why| Broke::ForGood(self.odd(why)))?;
                }
            }
            StatusCode::NO_CONTENT => {
                let why = "Glance has its record, and its store has no data of it".to_owned();
                return Err(Broke::ForGood(self.odd(why)));
            }
            StatusCode::BAD_REQUEST | StatusCode::RANGE_NOT_SATISFIABLE if asks_range => {
                return Err(Broke::NoRanges);
            }
            status => {
                let bytes = timeout(call, client.bytes(&self.what, response)).await;
                let bytes = bytes.unwrap_or(Ok(Vec::new())).unwrap_or_default();
                let error = client.status(&self.what, status, &bytes, Some(&token));
                if status == StatusCode::UNAUTHORIZED {
                    client.drop_token(&token).await;
                    return Err(Broke::Refused(error));
                }
                let may_pass = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
                return Err(if may_pass { Broke::Off(error) } else { Broke::ForGood(error) });
            }
        }
        self.read(&mut response, into).await
    }

    async fn read(&mut self, response: &mut Response, into: &mut dyn Receives) -> Result<(), Broke> {
        let client = self.client;
        let (mut since, mut came) = (Instant::now(), 0);
        loop {
            let chunk = timeout(client.limits.call, response.chunk()).await.map_err(|_| self.late())?;
            let chunk = match chunk {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                // All of it is here.
                Err(_) if self.at == self.size_bytes => break,
                Err(error) => return Err(Broke::Off(client.unreachable(&self.what, &error))),
            };
            let length = chunk.len() as u64;
            if self.at + length > self.size_bytes {
                let why = format!("more comes than the {} bytes that Glance's record says", self.size_bytes);
                return Err(Broke::ForGood(self.odd(why)));
            }
            into.take(&chunk).map_err(|why| Broke::ForGood(self.odd(why)))?;
            self.at += length;
            came += length;
            if since.elapsed() >= client.limits.call {
                if came < LEAST_BYTES && self.at < self.size_bytes {
                    return Err(self.late());
                }
                (since, came) = (Instant::now(), 0);
            }
        }
        if self.at < self.size_bytes {
            let why = format!("it ended after {} of {} bytes", self.at, self.size_bytes);
            return Err(Broke::Off(self.odd(why)));
        }
        Ok(())
    }

    /// Whether the answer begins where the receiver has come to.
    fn goes_on(&self, response: &Response) -> bool {
        let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        range.is_some_and(|range| range.starts_with(&format!("bytes {}-", self.at)))
    }

    fn late(&self) -> Broke {
        let (cloud, limit) = (self.client.name().to_owned(), self.client.limits.call);
        let what = format!("{}, at byte {} of {},", self.what, self.at, self.size_bytes);
        Broke::Off(AskError::TimedOut { cloud, what, limit })
    }

    fn odd(&self, why: String) -> AskError {
        AskError::Data { cloud: self.client.name().to_owned(), image: self.image.to_owned(), why }
    }
}
