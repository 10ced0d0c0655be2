//! Messages on QUIC streams.

use quinn::{ReadError, ReadExactError, RecvStream, SendStream, WriteError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::wire::{self, PREAMBLE_BYTES, WireError};

/// Why no message could be read.
#[derive(Debug, Error)]
pub(crate) enum ReadFault {
    /// The bytes are not the protocol's.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The stream ends within a message.
    #[error("the stream ends within a message")]
    Truncated,
    /// The stream or connection broke.
    #[error("the stream broke")]
    Stream(#[from] ReadError),
}

/// Reads one message; none at the end of the stream. The buffer grows as bytes arrive, not by the length that is claimed.
///
/// # Cancel safety
/// Not cancel safe: a part of a message may be lost.
pub(crate) async fn read_message<T: DeserializeOwned>(
    stream: &mut RecvStream,
    what: &'static str,
) -> Result<Option<T>, ReadFault> {
    Ok(read_sized(stream, what).await?.map(|(message, _)| message))
}

/// Like [`read_message`]; answers how many bytes of the stream the message took, too.
pub(crate) async fn read_sized<T: DeserializeOwned>(
    stream: &mut RecvStream,
    what: &'static str,
) -> Result<Option<(T, u64)>, ReadFault> {
    let mut prefix = [0; 4];
    match stream.read_exact(&mut prefix).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(ReadExactError::FinishedEarly(_)) => return Err(ReadFault::Truncated),
        Err(ReadExactError::ReadError(error)) => return Err(error.into()),
    }
    let length = wire::parse_length(prefix)?;
    let mut body = Vec::new();
    while body.len() < length {
        let chunk = stream.read_chunk(length - body.len(), true).await?.ok_or(ReadFault::Truncated)?;
        body.extend_from_slice(&chunk.bytes);
    }
    Ok(Some((wire::decode(what, &body)?, (prefix.len() + body.len()) as u64)))
}

/// Reads a preamble and answers the version in it.
pub(crate) async fn read_preamble(stream: &mut RecvStream) -> Result<u32, ReadFault> {
    Ok(wire::parse_preamble(read_first(stream).await?)?)
}

/// Reads the bytes of a preamble.
pub(crate) async fn read_first(stream: &mut RecvStream) -> Result<[u8; PREAMBLE_BYTES], ReadFault> {
    let mut bytes = [0; PREAMBLE_BYTES];
    match stream.read_exact(&mut bytes).await {
        Ok(()) => Ok(bytes),
        Err(ReadExactError::FinishedEarly(_)) => Err(ReadFault::Truncated),
        Err(ReadExactError::ReadError(error)) => Err(error.into()),
    }
}

/// Writes one message.
pub(crate) async fn write_message<T: Serialize>(
    stream: &mut SendStream,
    message: &T,
) -> Result<(), WriteError> {
    stream.write_all(&wire::encode(message)).await
}
