//! Bodies that are taken whole, and bodies that end in the middle: what the faults are made of.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};

/// All of a body, or nothing when it breaks off.
pub async fn whole<B>(body: B) -> Option<Bytes>
where
    B: Body<Data = Bytes>,
{
    let mut body = pin!(body);
    let mut bytes = BytesMut::new();
    while let Some(frame) = poll_fn(|context| body.as_mut().poll_frame(context)).await {
        if let Ok(data) = frame.ok()?.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    Some(bytes.freeze())
}

/// Promises a length and ends with an error before it is reached: the connection is cut.
pub struct Broken {
    sent: Option<Bytes>,
    promised: u64,
}

impl Broken {
    /// The first half of `bytes`.
    pub fn half(bytes: &Bytes) -> Self {
        Self { promised: bytes.len() as u64, sent: Some(bytes.slice(..bytes.len() / 2)) }
    }
}

impl Body for Broken {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(Some(match self.sent.take() {
            Some(bytes) => Ok(Frame::data(bytes)),
            None => Err(std::io::Error::other("cut on purpose")),
        }))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.promised)
    }
}
