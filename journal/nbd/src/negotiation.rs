//! The negotiation at the start of a connection (fixed newstyle), without any socket: bytes in, bytes out.

use std::sync::Arc;

use thiserror::Error;

use crate::export::{Export, Exports};
use crate::request::Session;
use crate::wire::{
    BLOCK_SIZE_BYTES_MIN, BLOCK_SIZE_BYTES_PREFERRED, Fields, MAGIC_OPTION, MAGIC_OPTION_REPLY, MAGIC_SERVER,
    NAME_BYTES_MAX, PAYLOAD_BYTES_MAX, handshake, info, option, option_reply, transmission,
};

/// Longest option that is looked at, in bytes: room for a name and many queries. A longer one is skipped and refused.
const OPTION_BYTES_MAX: u32 = 64 << 10;
/// A client that announces more than this in one option is not talked to any longer.
const SKIPPED_OPTION_BYTES_MAX: u32 = 32 << 20;
/// Options per connection, so that nobody negotiates for ever.
const OPTIONS_MAX: u32 = 1024;
/// Queries for metadata contexts in one option.
const QUERIES_MAX: u32 = 64;
/// Bytes of an option before its data.
const OPTION_HEADER_BYTES: usize = 16;
/// The id under which extents of `base:allocation` are reported.
pub(crate) const BASE_ALLOCATION_ID: u32 = 1;
/// The only metadata context.
pub(crate) const BASE_ALLOCATION: &str = "base:allocation";

/// Why a negotiation ended without a session.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum NegotiationError {
    #[error("the client does not speak fixed newstyle NBD (flags {flags:#x})")]
    ClientFlags { flags: u32 },
    #[error("an option does not begin with its magic number")]
    Magic,
    #[error("an option announces {length} bytes")]
    OptionLength { length: u32 },
    #[error("there is no export of the name that the client asked for")]
    UnknownExport,
    #[error("the client sent more than {OPTIONS_MAX} options")]
    TooManyOptions,
}

/// What [`Negotiation::handle_input`] came to.
pub(crate) enum Step {
    /// The negotiation goes on.
    More,
    /// The client has opened an export.
    Opened(Session),
    /// The client has said goodbye.
    Aborted,
}

/// The state of a negotiation.
#[derive(Default)]
pub(crate) struct Negotiation {
    greeted: bool,
    no_zeroes: bool,
    structured: bool,
    /// The export for which the client selected `base:allocation`.
    base_allocation: Option<String>,
    skip_bytes: u32,
    options: u32,
}

/// What INFO and GO carry.
struct InfoRequest<'a> {
    name: &'a str,
    wanted: Vec<u16>,
}

impl Negotiation {
    /// Begins with the server's greeting.
    pub(crate) fn start(out: &mut Vec<u8>) -> Self {
        out.extend(MAGIC_SERVER.to_be_bytes());
        out.extend(MAGIC_OPTION.to_be_bytes());
        out.extend((handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES).to_be_bytes());
        Negotiation::default()
    }

    /// Takes one step with the front of `input`, appends the answer to `out`, and returns how many bytes it took: none if
    /// more are needed.
    pub(crate) fn handle_input(
        &mut self,
        input: &[u8],
        exports: &Exports,
        out: &mut Vec<u8>,
    ) -> Result<(usize, Step), NegotiationError> {
        if !self.greeted {
            return Ok((self.handle_client_flags(input)?, Step::More));
        }
        if self.skip_bytes > 0 {
            let skipped = input.len().min(self.skip_bytes as usize);
            self.skip_bytes -= skipped as u32;
            return Ok((skipped, Step::More));
        }
        let mut fields = Fields(input);
        let (Some(magic), Some(number), Some(length)) = (fields.u64(), fields.u32(), fields.u32()) else {
            return Ok((0, Step::More));
        };
        if magic != MAGIC_OPTION {
            return Err(NegotiationError::Magic);
        }
        if length > SKIPPED_OPTION_BYTES_MAX {
            return Err(NegotiationError::OptionLength { length });
        }
        if length > OPTION_BYTES_MAX {
            self.count_option()?;
            self.skip_bytes = length;
            reply(out, number, option_reply::ERR_TOO_BIG, b"the option is too long");
            return Ok((OPTION_HEADER_BYTES, Step::More));
        }
        let Some(data) = fields.bytes(length as usize) else {
            return Ok((0, Step::More));
        };
        self.count_option()?;
        let step = self.handle_option(number, data, exports, out)?;
        Ok((OPTION_HEADER_BYTES + data.len(), step))
    }

    fn count_option(&mut self) -> Result<(), NegotiationError> {
        self.options += 1;
        if self.options > OPTIONS_MAX { Err(NegotiationError::TooManyOptions) } else { Ok(()) }
    }

    fn handle_client_flags(&mut self, input: &[u8]) -> Result<usize, NegotiationError> {
        let Some(flags) = Fields(input).u32() else {
            return Ok(0);
        };
        let known = u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
        if flags & !known != 0 || flags & u32::from(handshake::FIXED_NEWSTYLE) == 0 {
            return Err(NegotiationError::ClientFlags { flags });
        }
        self.greeted = true;
        self.no_zeroes = flags & u32::from(handshake::NO_ZEROES) != 0;
        Ok(size_of::<u32>())
    }

    fn handle_option(
        &mut self,
        number: u32,
        data: &[u8],
        exports: &Exports,
        out: &mut Vec<u8>,
    ) -> Result<Step, NegotiationError> {
        match number {
            option::EXPORT_NAME => return self.handle_export_name(data, exports, out),
            option::ABORT => {
                reply(out, number, option_reply::ACK, b"");
                return Ok(Step::Aborted);
            }
            option::INFO | option::GO => return Ok(self.handle_info(number, data, exports, out)),
            option::LIST if !data.is_empty() => invalid(out, number, "LIST carries no data"),
            option::LIST => list(exports, out),
            option::STRUCTURED_REPLY if !data.is_empty() => {
                invalid(out, number, "STRUCTURED_REPLY carries no data")
            }
            option::STRUCTURED_REPLY => {
                self.structured = true;
                reply(out, number, option_reply::ACK, b"");
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.handle_meta_context(number, data, exports, out);
            }
            // STARTTLS and EXTENDED_HEADERS among them.
            _ => reply(out, number, option_reply::ERR_UNSUP, b"this server does not know the option"),
        }
        Ok(Step::More)
    }

    fn handle_export_name(
        &mut self,
        data: &[u8],
        exports: &Exports,
        out: &mut Vec<u8>,
    ) -> Result<Step, NegotiationError> {
        let name = export_name(data).ok_or(NegotiationError::UnknownExport)?;
        let export = exports.get(name).ok_or(NegotiationError::UnknownExport)?;
        let session = self.session(name, export);
        out.extend(session.size_bytes().to_be_bytes());
        out.extend(flags(&session).to_be_bytes());
        if !self.no_zeroes {
            out.extend([0; 124]);
        }
        Ok(Step::Opened(session))
    }

    fn handle_info(&mut self, number: u32, data: &[u8], exports: &Exports, out: &mut Vec<u8>) -> Step {
        let Some(request) = InfoRequest::parse(data) else {
            invalid(out, number, "the name or the list of information is malformed");
            return Step::More;
        };
        let Some(export) = exports.get(request.name) else {
            reply(out, number, option_reply::ERR_UNKNOWN, b"there is no export of this name");
            return Step::More;
        };
        let description = export.description();
        let session = self.session(request.name, export);
        let mut body = info::EXPORT.to_be_bytes().to_vec();
        body.extend(session.size_bytes().to_be_bytes());
        body.extend(flags(&session).to_be_bytes());
        reply(out, number, option_reply::INFO, &body);
        for (wanted, text) in [(info::NAME, request.name), (info::DESCRIPTION, truncated(&description))] {
            if request.wanted.contains(&wanted) {
                let mut body = wanted.to_be_bytes().to_vec();
                body.extend(text.as_bytes());
                reply(out, number, option_reply::INFO, &body);
            }
        }
        // Sent unasked as well: a client that understands it is better off with it, others skip it.
        let mut body = info::BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [BLOCK_SIZE_BYTES_MIN, BLOCK_SIZE_BYTES_PREFERRED, PAYLOAD_BYTES_MAX] {
            body.extend(size.to_be_bytes());
        }
        reply(out, number, option_reply::INFO, &body);
        reply(out, number, option_reply::ACK, b"");
        if number == option::GO { Step::Opened(session) } else { Step::More }
    }

    fn handle_meta_context(&mut self, number: u32, data: &[u8], exports: &Exports, out: &mut Vec<u8>) {
        let setting = number == option::SET_META_CONTEXT;
        if setting {
            self.base_allocation = None;
        }
        if !self.structured {
            return invalid(out, number, "metadata contexts need structured replies first");
        }
        let Some((name, queries)) = meta_queries(data) else {
            return invalid(out, number, "the name or the queries are malformed");
        };
        if exports.get(name).is_none() {
            return reply(out, number, option_reply::ERR_UNKNOWN, b"there is no export of this name");
        }
        let all = !setting && queries.is_empty();
        let matches =
            |query: &&[u8]| *query == BASE_ALLOCATION.as_bytes() || (!setting && *query == b"base:");
        if all || queries.iter().any(matches) {
            let id = if setting { BASE_ALLOCATION_ID } else { 0 };
            let mut body = id.to_be_bytes().to_vec();
            body.extend(BASE_ALLOCATION.as_bytes());
            reply(out, number, option_reply::META_CONTEXT, &body);
            if setting {
                self.base_allocation = Some(name.to_owned());
            }
        }
        reply(out, number, option_reply::ACK, b"");
    }

    /// A selection of contexts for another export than the one that is opened does not count.
    fn session(&self, name: &str, export: Arc<dyn Export>) -> Session {
        let base_allocation = self.base_allocation.as_deref() == Some(name);
        Session::new(name.to_owned(), export, self.structured, base_allocation)
    }
}

impl<'a> InfoRequest<'a> {
    fn parse(data: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(data);
        let name = export_name(fields.string()?)?;
        let count = fields.u16()?;
        let wanted = (0..count).map(|_| fields.u16()).collect::<Option<Vec<_>>>()?;
        fields.is_empty().then_some(InfoRequest { name, wanted })
    }
}

fn meta_queries(data: &[u8]) -> Option<(&str, Vec<&[u8]>)> {
    let mut fields = Fields(data);
    let name = export_name(fields.string()?)?;
    let count = fields.u32().filter(|count| *count <= QUERIES_MAX)?;
    let queries = (0..count).map(|_| fields.string()).collect::<Option<Vec<_>>>()?;
    fields.is_empty().then_some((name, queries))
}

fn export_name(bytes: &[u8]) -> Option<&str> {
    if bytes.len() > NAME_BYTES_MAX { None } else { str::from_utf8(bytes).ok() }
}

/// The protocol's strings have at most 4096 bytes.
fn truncated(text: &str) -> &str {
    &text[..text.floor_char_boundary(NAME_BYTES_MAX)]
}

fn flags(session: &Session) -> u16 {
    let mut flags = transmission::HAS_FLAGS
        | transmission::SEND_FLUSH
        | transmission::SEND_FUA
        | transmission::CAN_MULTI_CONN;
    if session.structured() {
        flags |= transmission::SEND_DF;
    }
    if session.read_only() {
        flags | transmission::READ_ONLY
    } else {
        flags | transmission::SEND_TRIM | transmission::SEND_WRITE_ZEROES | transmission::SEND_FAST_ZERO
    }
}

fn list(exports: &Exports, out: &mut Vec<u8>) {
    for (name, export) in exports.list() {
        let mut body = (name.len() as u32).to_be_bytes().to_vec();
        body.extend(name.as_bytes());
        body.extend(truncated(&export.description()).as_bytes());
        reply(out, option::LIST, option_reply::SERVER, &body);
    }
    reply(out, option::LIST, option_reply::ACK, b"");
}

fn invalid(out: &mut Vec<u8>, number: u32, why: &str) {
    reply(out, number, option_reply::ERR_INVALID, why.as_bytes());
}

fn reply(out: &mut Vec<u8>, number: u32, kind: u32, body: &[u8]) {
    out.extend(MAGIC_OPTION_REPLY.to_be_bytes());
    out.extend(number.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((body.len() as u32).to_be_bytes());
    out.extend(body);
}

#[cfg(test)]
mod tests;
