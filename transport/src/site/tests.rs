//! A site against sources that send what a test wants them to.

use std::future::Future;

use journal_format::{Generation, Hash, Sequence};
use quinn::{ClientConfig, ConnectionError, RecvStream, SendStream, VarInt};

use super::*;
use crate::frames::{read_message, read_preamble, write_message};
use crate::network::{Network, SystemNetwork};
use crate::quic::{ConnectionSettings, source_endpoint};
use crate::testing::{InboxState, Lab, group, segment, until};
use crate::wire::{
    Heartbeat, Hello, MESSAGE_BYTES_MAX, PIECE_BYTES_MAX, PROTOCOL_VERSION, PieceHeader, Receipt, Refusal,
    RefusalKind, SegmentDescriptor, SiteMessage, SourceMessage, encode, preamble,
};

/// Longer than anything takes, so that a fault fails a test instead of hanging it.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), what).await.expect("what is waited for comes")
}

/// A connection of a source, with none of the rules that a source obeys.
struct RawSource {
    connection: Connection,
    _endpoint: Endpoint,
}

/// A control stream whose preambles were exchanged.
struct Control {
    send: SendStream,
    recv: RecvStream,
}

impl RawSource {
    async fn connect(lab: &Lab, identity: &Identity) -> Self {
        let socket = SystemNetwork.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let endpoint = source_endpoint(socket).unwrap();
        let (crypto, _) = tls::source_config(identity, &[lab.site.fingerprint()], tls::ALPN).unwrap();
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(transport_config(ConnectionSettings::default()));
        let connecting = endpoint.connect_with(config, lab.address(), tls::SERVER_NAME).unwrap();
        Self { connection: soon(connecting).await.unwrap(), _endpoint: endpoint }
    }

    async fn control(&self, preamble: [u8; 8]) -> Control {
        let (mut send, mut recv) = self.connection.open_bi().await.unwrap();
        send.write_all(&preamble).await.unwrap();
        assert_eq!(soon(read_preamble(&mut recv)).await.unwrap(), PROTOCOL_VERSION);
        Control { send, recv }
    }

    /// Opens a group whose head is none.
    async fn open(&self, name: &str) -> Control {
        let mut control = self.control(preamble()).await;
        control.send(&hello(name)).await;
        let Some(SiteMessage::Welcome { head: None, .. }) = control.read().await else {
            panic!("no welcome");
        };
        control
    }

    /// Begins a segment's stream with these bytes of it.
    async fn begin(&self, name: &str, segment: SegmentDescriptor, bytes: &[u8]) -> SendStream {
        let mut stream = self.connection.open_uni().await.unwrap();
        let length = segment.size_bytes.min(PIECE_BYTES_MAX);
        let header = PieceHeader { group: group(name), segment, offset: 0, length };
        write_message(&mut stream, &header).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    async fn ship(&self, name: &str, (segment, bytes): &(SegmentDescriptor, Vec<u8>)) {
        self.begin(name, *segment, bytes).await.finish().unwrap();
    }

    /// The stream of receipts, which is there once there is a receipt.
    async fn receipts(&self) -> RecvStream {
        soon(self.connection.accept_uni()).await.unwrap()
    }

    /// The code with which the site closes the connection.
    async fn closed(&self) -> VarInt {
        match soon(self.connection.closed()).await {
            ConnectionError::ApplicationClosed(close) => close.error_code,
            other => panic!("{other}"),
        }
    }
}

impl Control {
    async fn send(&mut self, message: &SourceMessage) {
        write_message(&mut self.send, message).await.unwrap();
    }

    /// The next message; none at the end of the stream.
    async fn read(&mut self) -> Option<SiteMessage> {
        soon(read_message(&mut self.recv, "message of a site")).await.unwrap()
    }

    /// Expects a refusal, and that it is the last word.
    async fn refusal(&mut self) -> Refusal {
        let Some(SiteMessage::Refused(refusal)) = self.read().await else { panic!("no refusal") };
        assert_eq!(self.read().await, None);
        refusal
    }

    /// Asks whether the site still serves this group.
    async fn check_served(&mut self) {
        self.send(&heartbeat()).await;
        assert!(matches!(self.read().await, Some(SiteMessage::Pong { heartbeat: Timestamp(41), .. })));
    }
}

fn hello(name: &str) -> SourceMessage {
    let group = group(name);
    SourceMessage::Hello(Hello {
        software: String::new(),
        group,
        generation: Generation(1),
        head: None,
        oldest: Sequence(1),
    })
}

fn heartbeat() -> SourceMessage {
    let state = "streaming".into();
    SourceMessage::Heartbeat(Heartbeat {
        now: Timestamp(41),
        newest_cut: None,
        backlog_bytes: 0,
        backlog_segments: 0,
        state,
    })
}

fn chain<const N: usize>(sizes: [usize; N]) -> [(SegmentDescriptor, Vec<u8>); N] {
    let (mut parent, mut sequence) = (Hash::ZERO, 0);
    sizes.map(|size| {
        sequence += 1;
        let made = segment(sequence, size, parent);
        parent = made.0.position.hash;
        made
    })
}

async fn read_receipt(stream: &mut RecvStream) -> Receipt {
    soon(read_message(stream, "receipt")).await.unwrap().expect("there is another receipt")
}

fn durable(state: &InboxState, sequence: u64) -> bool {
    state.segments.contains_key(&(group("a"), Sequence(sequence)))
}

#[tokio::test]
async fn other_version_is_refused_with_the_preamble_and_both_versions() {
    let lab = Lab::new();
    let server = lab.serve();
    let source = RawSource::connect(&lab, &lab.source).await;
    let mut other = source.control(*b"TSQP\x02\0\0\0").await;
    let refusal = other.refusal().await;
    assert_eq!(refusal.kind, RefusalKind::Version);
    assert!(refusal.reason.contains("version 2") && refusal.reason.contains("site 1"), "{refusal}");
    // Only the session is over.
    source.open("a").await.check_served().await;
    source.connection.close(code::GOODBYE, b"");
    server.shutdown().await;
}

#[tokio::test]
async fn receipts_name_only_the_contiguous_head_and_are_signed() {
    let lab = Lab::new();
    let server = lab.serve();
    let source = RawSource::connect(&lab, &lab.source).await;
    let _control = source.open("a").await;
    let [first, second, third] = chain([1000, 1000, 1000]);
    source.ship("a", &third).await;
    lab.inbox.0.until("the third segment is durable", |state| durable(state, 3)).await;
    source.ship("a", &first).await;
    let mut receipts = source.receipts().await;
    let one = read_receipt(&mut receipts).await;
    assert_eq!((one.group.as_str(), one.position), ("a", first.0.position));
    source.ship("a", &second).await;
    let three = read_receipt(&mut receipts).await;
    assert_eq!(three.position, third.0.position);
    assert!([one, three].iter().all(|receipt| receipt.is_signed_by(&lab.site.public_key())));
    source.connection.close(code::GOODBYE, b"");
    server.shutdown().await;
}

#[tokio::test]
async fn segment_that_the_site_has_is_stopped_and_its_receipt_repeated() {
    let lab = Lab::new();
    let server = lab.serve();
    let source = RawSource::connect(&lab, &lab.source).await;
    let _control = source.open("a").await;
    let [first] = chain([1000]);
    source.ship("a", &first).await;
    let mut receipts = source.receipts().await;
    assert_eq!(read_receipt(&mut receipts).await.position, first.0.position);
    let mut again = source.begin("a", first.0, &first.1[..1]).await;
    assert_eq!(soon(again.stopped()).await.unwrap(), Some(code::STREAM_HAVE));
    assert_eq!(read_receipt(&mut receipts).await.position, first.0.position);
    again.reset(code::STREAM_ABANDONED).ok();
    source.connection.close(code::GOODBYE, b"");
    server.shutdown().await;
}

#[tokio::test]
async fn segment_of_a_group_that_is_not_open_is_stopped() {
    let lab = Lab::new();
    let server = lab.serve();
    let source = RawSource::connect(&lab, &lab.source).await;
    let mut control = source.open("a").await;
    let [first] = chain([1000]);
    let stray = source.begin("b", first.0, &[]).await;
    assert_eq!(soon(stray.stopped()).await.unwrap(), Some(code::STREAM_REFUSED));
    control.check_served().await;
    assert!(lab.inbox.0.read(|state| state.begun.is_empty()));
    source.connection.close(code::GOODBYE, b"");
    server.shutdown().await;
}

#[tokio::test]
async fn longer_stream_than_its_descriptor_says_is_refused_as_damage() {
    let lab = Lab::new();
    let server = lab.serve();
    let source = RawSource::connect(&lab, &lab.source).await;
    let mut control = source.open("a").await;
    let [(descriptor, mut bytes)] = chain([1000]);
    bytes.push(0);
    source.ship("a", &(descriptor, bytes)).await;
    let refusal = control.refusal().await;
    assert_eq!((refusal.kind, refusal.sequence), (RefusalKind::Corrupt, Some(Sequence(1))));
    assert!(!lab.inbox.0.read(|state| durable(state, 1)));
    // The next session takes it as it should be.
    let _control = source.open("a").await;
    source.ship("a", &chain([1000])[0]).await;
    lab.inbox.0.until("the segment is durable", |state| durable(state, 1)).await;
    source.connection.close(code::GOODBYE, b"");
    server.shutdown().await;
}

#[tokio::test]
async fn stream_that_is_given_up_ends_nothing() {
    let lab = Lab::new();
    let server = lab.serve();
    let source = RawSource::connect(&lab, &lab.source).await;
    let mut control = source.open("a").await;
    let [first] = chain([300_000]);
    let mut half = source.begin("a", first.0, &first.1[..150_000]).await;
    lab.inbox.0.until("it is being received", |state| state.sinks == 1).await;
    half.reset(code::STREAM_ABANDONED).unwrap();
    assert!(!lab.inbox.0.read(|state| durable(state, 1)));
    control.check_served().await;
    source.ship("a", &first).await;
    let mut receipts = source.receipts().await;
    assert_eq!(read_receipt(&mut receipts).await.position, first.0.position);
    source.connection.close(code::GOODBYE, b"");
    server.shutdown().await;
}

#[tokio::test]
async fn segment_above_the_limit_of_the_site_is_refused_before_its_bytes() {
    let lab = Lab::new();
    let options = SiteOptions { segment_bytes_max: 1000, ..lab.site_options() };
    let server = lab.serve_with(options, &Handle::current());
    let source = RawSource::connect(&lab, &lab.source).await;
    let mut control = source.open("a").await;
    let claimed = SegmentDescriptor { size_bytes: u64::MAX, ..chain([1001])[0].0 };
    let stream = source.begin("a", claimed, &[]).await;
    let refusal = control.refusal().await;
    assert_eq!((refusal.kind, refusal.sequence), (RefusalKind::Invalid, Some(Sequence(1))));
    soon(stream.stopped()).await.unwrap().expect("the site stopped the stream");
    assert!(lab.inbox.0.read(|state| state.begun.is_empty()));
    source.connection.close(code::GOODBYE, b"");
    server.shutdown().await;
}

/// Sends bytes on a new stream; expects that the site closes this connection and serves another.
async fn check_closed(control: bool, bytes: &[u8]) {
    let lab = Lab::without_enrolment();
    let other = lab.identity("other");
    lab.enrol(&lab.source, "pair", &["a"]);
    lab.enrol(&other, "other", &["b"]);
    let server = lab.serve();
    let bystander = RawSource::connect(&lab, &other).await;
    let mut served = bystander.open("b").await;

    let source = RawSource::connect(&lab, &lab.source).await;
    let _session = source.open("a").await;
    let (mut send, _recv) = if control {
        let (send, recv) = source.connection.open_bi().await.unwrap();
        (send, Some(recv))
    } else {
        (source.connection.open_uni().await.unwrap(), None)
    };
    send.write_all(bytes).await.unwrap();
    send.finish().unwrap();
    assert_eq!(source.closed().await, code::PROTOCOL);
    lab.inbox.0.until("its group is closed", |state| state.closed == [group("a")]).await;
    served.check_served().await;
    bystander.connection.close(code::GOODBYE, b"");
    server.shutdown().await;
}

#[tokio::test]
async fn garbage_instead_of_a_segment_header_closes_the_connection_only() {
    let too_large = (MESSAGE_BYTES_MAX as u32 + 1).to_le_bytes();
    let header = PieceHeader { group: group("a"), segment: chain([10])[0].0, offset: 0, length: 10 };
    let header = encode(&header);
    check_closed(false, &too_large).await;
    check_closed(false, &[3, 0, 0, 0, 0xff, 0xff, 0xff]).await;
    check_closed(false, &header[..header.len() - 1]).await;
    check_closed(false, &[]).await;
}

#[tokio::test]
async fn garbage_on_a_control_stream_closes_the_connection_only() {
    check_closed(true, b"GET / HTTP/1.1\r\n\r\n").await;
    let with = |message: &[u8]| [&preamble()[..], message].concat();
    check_closed(true, &with(&(MESSAGE_BYTES_MAX as u32 + 1).to_le_bytes())).await;
    check_closed(true, &with(&[1, 0, 0, 0, 9])).await;
    let hello = encode(&hello("a"));
    check_closed(true, &with(&hello[..hello.len() - 1])).await;
    check_closed(true, &with(&encode(&heartbeat()))).await;
}

#[tokio::test]
async fn second_hello_closes_the_connection() {
    let lab = Lab::new();
    let server = lab.serve();
    let source = RawSource::connect(&lab, &lab.source).await;
    let mut control = source.open("a").await;
    control.send(&hello("b")).await;
    assert_eq!(source.closed().await, code::PROTOCOL);
    server.shutdown().await;
}

#[tokio::test]
async fn goodbye_is_answered_and_closes_the_group() {
    let lab = Lab::new();
    let server = lab.serve();
    let source = RawSource::connect(&lab, &lab.source).await;
    let mut control = source.open("a").await;
    control.send(&SourceMessage::Goodbye).await;
    assert_eq!(control.read().await, Some(SiteMessage::Goodbye));
    assert_eq!(control.read().await, None);
    let mut status = server.status();
    until(&mut status, "the group is closed", |status| status.peers[0].groups.is_empty()).await;
    source.connection.close(code::GOODBYE, b"");
    until(&mut status, "the source is gone", |status| status.peers.is_empty()).await;
    server.shutdown().await;
}

#[tokio::test]
async fn group_is_opened_for_its_newer_session_when_the_older_has_ended() {
    let lab = Lab::new();
    let server = lab.serve();
    let source = RawSource::connect(&lab, &lab.source).await;
    let mut older = source.open("a").await;
    let mut newer = source.control(preamble()).await;
    newer.send(&hello("a")).await;
    older.check_served().await;
    assert_eq!(lab.inbox.0.read(|state| state.opened.len()), 1, "one session at a time");
    older.send(&SourceMessage::Goodbye).await;
    assert!(matches!(newer.read().await, Some(SiteMessage::Welcome { .. })));
    source.connection.close(code::GOODBYE, b"");
    server.shutdown().await;
}

#[tokio::test]
async fn group_whose_older_session_does_not_end_is_busy() {
    let lab = Lab::new();
    let options = SiteOptions { takeover_timeout: Duration::ZERO, ..lab.site_options() };
    let server = lab.serve_with(options, &Handle::current());
    let source = RawSource::connect(&lab, &lab.source).await;
    let mut older = source.open("a").await;
    let mut newer = source.control(preamble()).await;
    newer.send(&hello("a")).await;
    assert_eq!(newer.refusal().await.kind, RefusalKind::Busy);
    older.check_served().await;
    source.connection.close(code::GOODBYE, b"");
    server.shutdown().await;
}

#[tokio::test]
async fn site_that_stops_says_goodbye() {
    let lab = Lab::new();
    let server = lab.serve();
    let source = RawSource::connect(&lab, &lab.source).await;
    let mut control = source.open("a").await;
    let stopping = tokio::spawn(server.shutdown());
    assert_eq!(control.read().await, Some(SiteMessage::Goodbye));
    source.connection.close(code::GOODBYE, b"");
    soon(stopping).await.unwrap();
    assert_eq!(lab.inbox.0.read(|state| state.closed.clone()), [group("a")]);
}

#[tokio::test]
async fn address_that_is_in_use_is_told() {
    let lab = Lab::new();
    let server = lab.serve();
    let (options, inbox) = (lab.site_options(), Arc::new(lab.inbox.clone()));
    let error = SiteServer::bind(options, lab.site.clone(), inbox, &Handle::current()).unwrap_err();
    assert!(matches!(&error, SiteError::AddressInUse { address, .. } if *address == server.local_addr()));
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn site_with_a_malformed_list_does_not_start() {
    let lab = Lab::new();
    std::fs::write(lab.enrolled(), "peers").unwrap();
    let (options, inbox) = (lab.site_options(), Arc::new(lab.inbox.clone()));
    let error = SiteServer::bind(options, lab.site.clone(), inbox, &Handle::current()).unwrap_err();
    assert!(matches!(error, SiteError::Enrolment(EnrolmentError::Malformed { .. })), "{error:?}");
}
