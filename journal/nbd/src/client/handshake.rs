//! The client's side of the negotiation.

use super::{ClientError, ExportInfo, ListedExport, Protocol, Wire, protocol};
use crate::negotiation::BASE_ALLOCATION;
use crate::wire::{
    Fields, MAGIC_OPTION, MAGIC_OPTION_REPLY, MAGIC_SERVER, handshake, info, option, option_reply,
};

/// Longest reply to an option that is accepted, in bytes.
const OPTION_REPLY_BYTES_MAX: u32 = 64 << 10;

/// A reply to an option.
struct OptionReply {
    kind: u32,
    body: Vec<u8>,
}

pub(super) fn open(wire: &mut Wire, export: &str, wanted: Protocol) -> Result<ExportInfo, ClientError> {
    greet(wire)?;
    let mut found = ExportInfo::default();
    if wanted == Protocol::ExportName {
        send(wire, option::EXPORT_NAME, export.as_bytes())?;
        found.size_bytes = u64::from_be_bytes(wire.take()?);
        found.flags = u16::from_be_bytes(wire.take()?);
        return Ok(found);
    }
    if wanted == Protocol::Structured {
        found.structured = ask(wire, option::STRUCTURED_REPLY, &[])?.is_some();
    }
    if found.structured {
        let mut body = string(export);
        body.extend(1u32.to_be_bytes());
        body.extend(string(BASE_ALLOCATION));
        let contexts = ask(wire, option::SET_META_CONTEXT, &body)?;
        found.base_allocation = contexts.is_some_and(|contexts| !contexts.is_empty());
    }
    let mut body = string(export);
    body.extend(2u16.to_be_bytes());
    body.extend(info::BLOCK_SIZE.to_be_bytes());
    body.extend(info::DESCRIPTION.to_be_bytes());
    for reply in demand(wire, option::GO, &body)? {
        if reply.kind == option_reply::INFO {
            take_info(&mut found, &reply.body).ok_or(protocol("malformed information about the export"))?;
        }
    }
    Ok(found)
}

pub(super) fn list(wire: &mut Wire) -> Result<Vec<ListedExport>, ClientError> {
    greet(wire)?;
    let replies = demand(wire, option::LIST, &[])?;
    let exports = replies.iter().map(|reply| {
        let mut fields = Fields(&reply.body);
        let name = fields.string().ok_or(protocol("a malformed list of exports"))?;
        Ok(ListedExport { name: text(name), description: text(fields.0) })
    });
    let exports = exports.collect::<Result<_, ClientError>>()?;
    send(wire, option::ABORT, &[])?;
    Ok(exports)
}

fn take_info(found: &mut ExportInfo, body: &[u8]) -> Option<()> {
    let mut fields = Fields(body);
    match fields.u16()? {
        info::EXPORT => {
            found.size_bytes = fields.u64()?;
            found.flags = fields.u16()?;
        }
        info::BLOCK_SIZE => found.block_sizes = Some((fields.u32()?, fields.u32()?, fields.u32()?)),
        info::DESCRIPTION => found.description = Some(text(fields.0)),
        _ => {}
    }
    Some(())
}

fn greet(wire: &mut Wire) -> Result<(), ClientError> {
    if u64::from_be_bytes(wire.take()?) != MAGIC_SERVER || u64::from_be_bytes(wire.take()?) != MAGIC_OPTION {
        return Err(protocol("no newstyle greeting: is this an NBD server?"));
    }
    let offered = u16::from_be_bytes(wire.take()?);
    if offered & handshake::FIXED_NEWSTYLE == 0 || offered & handshake::NO_ZEROES == 0 {
        return Err(protocol("a greeting without fixed newstyle"));
    }
    wire.stream.write_all(&u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES).to_be_bytes())?;
    Ok(())
}

fn send(wire: &mut Wire, number: u32, body: &[u8]) -> Result<(), ClientError> {
    let mut bytes = MAGIC_OPTION.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((body.len() as u32).to_be_bytes());
    bytes.extend(body);
    Ok(wire.stream.write_all(&bytes)?)
}

/// Sends an option; the replies before the acknowledgement, or `None` if the server does not know the option.
fn ask(wire: &mut Wire, number: u32, body: &[u8]) -> Result<Option<Vec<OptionReply>>, ClientError> {
    match demand(wire, number, body) {
        Err(ClientError::Refused { reply: option_reply::ERR_UNSUP, .. }) => Ok(None),
        other => other.map(Some),
    }
}

/// Sends an option that the server has to accept; the replies before the acknowledgement.
fn demand(wire: &mut Wire, number: u32, body: &[u8]) -> Result<Vec<OptionReply>, ClientError> {
    send(wire, number, body)?;
    let mut replies = Vec::new();
    loop {
        let reply = receive(wire, number)?;
        if reply.kind & option_reply::ERROR != 0 {
            return Err(ClientError::Refused {
                option: number,
                reply: reply.kind,
                message: text(&reply.body),
            });
        }
        if reply.kind == option_reply::ACK {
            return Ok(replies);
        }
        replies.push(reply);
    }
}

fn receive(wire: &mut Wire, number: u32) -> Result<OptionReply, ClientError> {
    if u64::from_be_bytes(wire.take()?) != MAGIC_OPTION_REPLY || u32::from_be_bytes(wire.take()?) != number {
        return Err(protocol("something else than a reply to the option"));
    }
    let kind = u32::from_be_bytes(wire.take()?);
    let length = u32::from_be_bytes(wire.take()?);
    if length > OPTION_REPLY_BYTES_MAX {
        return Err(protocol("a reply to an option that is too long"));
    }
    let mut body = vec![0; length as usize];
    wire.read_exact(&mut body)?;
    Ok(OptionReply { kind, body })
}

fn string(value: &str) -> Vec<u8> {
    [&(value.len() as u32).to_be_bytes(), value.as_bytes()].concat()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
