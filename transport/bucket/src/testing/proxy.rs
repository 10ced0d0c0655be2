//! A proxy of HTTP/1.1, one request for each connection, that spoils the requests that it is told to.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What is done with a request.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// It is answered with this, and not carried.
    Answer { status: u16, headers: &'static str, body: &'static str },
    /// The connection is reset after so many bytes of its body.
    ResetInBody(usize),
    /// It is carried, and the connection reset instead of an answer.
    LoseAnswer,
    /// It is carried, and the answer ends after so many bytes of its body.
    TruncateAnswer(usize),
    /// It is taken, and nothing follows.
    Stall,
}

/// Which requests are spoiled, and how often.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    /// Method of HTTP.
    pub(crate) method: &'static str,
    /// What the path and query have in them.
    pub(crate) contains: &'static str,
    /// Requests that go unharmed before.
    pub(crate) after: usize,
    pub(crate) times: usize,
    pub(crate) action: Action,
}

impl Rule {
    /// The first request of this kind.
    pub(crate) fn once(method: &'static str, contains: &'static str, action: Action) -> Self {
        Self { method, contains, after: 0, times: 1, action }
    }

    pub(crate) fn always(method: &'static str, contains: &'static str, action: Action) -> Self {
        Self { times: usize::MAX, ..Self::once(method, contains, action) }
    }
}

#[derive(Debug)]
struct State {
    rules: Vec<Rule>,
    /// Methods and targets, in order of arrival.
    seen: Vec<String>,
}

/// A proxy. It ends when this is dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn start(upstream: SocketAddr, rules: impl IntoIterator<Item = Rule>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let state = State { rules: rules.into_iter().collect(), seen: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&state);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                connections.spawn(async move { drop(handle(client, upstream, &state).await) });
            }
        });
        Self { address, state, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many requests came whose method and target are these.
    pub(crate) fn count(&self, method: &str, contains: &str) -> usize {
        let state = self.state.lock().expect("not poisoned");
        state.seen.iter().filter(|seen| seen.starts_with(method) && seen.contains(contains)).count()
    }
}

impl State {
    fn action(&mut self, method: &str, target: &str) -> Option<Action> {
        self.seen.push(format!("{method} {target}"));
        let matches =
            |rule: &&mut Rule| rule.times > 0 && rule.method == method && target.contains(rule.contains);
        let rule = self.rules.iter_mut().find(matches)?;
        if rule.after > 0 {
            rule.after -= 1;
            return None;
        }
        rule.times -= 1;
        Some(rule.action.clone())
    }
}

/// The first lines of a request or an answer.
struct Head {
    text: String,
    /// What was read behind them.
    rest: Vec<u8>,
}

impl Head {
    async fn read(stream: &mut TcpStream) -> std::io::Result<Self> {
        let mut bytes = Vec::new();
        loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                let rest = bytes.split_off(end + 4);
                let text = String::from_utf8(bytes).map_err(std::io::Error::other)?;
                return Ok(Self { text, rest });
            }
            if stream.read_buf(&mut bytes).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    /// The same, asking for one request on this connection and for no interim answer.
    fn for_one_request(&self) -> String {
        let kept = |line: &&str| {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            name != "connection" && name != "expect"
        };
        let lines: Vec<&str> = self.text.trim_end().lines().filter(kept).collect();
        format!("{}\r\nconnection: close\r\n\r\n", lines.join("\r\n"))
    }
}

async fn handle(mut client: TcpStream, upstream: SocketAddr, state: &Mutex<State>) -> std::io::Result<()> {
    let mut head = Head::read(&mut client).await?;
    let line = head.text.lines().next().unwrap_or_default().to_owned();
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let action = state.lock().expect("not poisoned").action(method, target);
    let length: usize = head.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    if head.header("expect").is_some() {
        client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let wanted = match action {
        Some(Action::ResetInBody(bytes)) => bytes.min(length),
        _ => length,
    };
    let mut body = std::mem::take(&mut head.rest);
    while body.len() < wanted {
        if client.read_buf(&mut body).await? == 0 {
            return Ok(());
        }
    }
    match action {
        Some(Action::ResetInBody(_)) => return reset(client),
        Some(Action::Stall) => return std::future::pending().await,
        Some(Action::Answer { status, headers, body }) => {
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status} -\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n"
            );
            client.write_all(head.as_bytes()).await?;
            client.write_all(body.as_bytes()).await?;
            return client.shutdown().await;
        }
        None | Some(Action::LoseAnswer | Action::TruncateAnswer(_)) => {}
    }
    let mut server = TcpStream::connect(upstream).await?;
    server.write_all(head.for_one_request().as_bytes()).await?;
    server.write_all(&body).await?;
    let answer_head = Head::read(&mut server).await?;
    let mut answer = answer_head.rest;
    server.read_to_end(&mut answer).await?;
    match action {
        Some(Action::LoseAnswer) => return reset(client),
        Some(Action::TruncateAnswer(bytes)) => answer.truncate(bytes),
        _ => {}
    }
    client.write_all(answer_head.text.as_bytes()).await?;
    client.write_all(&answer).await?;
    client.shutdown().await
}

/// Closes a connection so that its other end sees an error, not an end.
fn reset(client: TcpStream) -> std::io::Result<()> {
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO))
}
