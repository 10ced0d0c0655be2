//! `s3s-fs` on a socket of the loopback interface, without and with TLS.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use futures::future::BoxFuture;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::BUCKET;

pub(crate) const KEY: &str = "AKIDFORTESTS";
pub(crate) const SECRET: &str = "a-secret-that-nobody-may-see";

/// A server with one bucket. It ends when this is dropped.
pub(crate) struct S3Server {
    pub(crate) address: SocketAddr,
    /// Certificate, in PEM, if it speaks TLS.
    pub(crate) certificate: Option<String>,
    _folder: TempDir,
    _tasks: JoinSet<()>,
}

impl S3Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    /// Speaks TLS, as `localhost`, with a certificate that it signed itself.
    pub(crate) async fn start_tls() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        Self::start_with(Some(made)).await
    }

    async fn start_with(certified: Option<rcgen::CertifiedKey<rcgen::KeyPair>>) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        std::fs::create_dir(folder.path().join(BUCKET)).expect("the bucket");
        let service = service(folder.path());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let mut tasks = JoinSet::new();
        let tls = certified.as_ref().map(acceptor);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            let service = OneByOne { service, turn: Arc::default() };
            while let Ok((stream, _)) = listener.accept().await {
                let (service, tls) = (service.clone(), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(stream, service).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, service).await;
                            }
                        }
                    }
                });
            }
        });
        let certificate = certified.map(|certified| certified.cert.pem());
        Self { address, certificate, _folder: folder, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Lets one conditional request after the other in: `s3s-fs` looks whether an object exists, and writes it later.
#[derive(Clone)]
struct OneByOne {
    service: S3Service,
    turn: Arc<Mutex<()>>,
}

impl Service<Request<Incoming>> for OneByOne {
    type Response = <S3Service as Service<Request<Incoming>>>::Response;
    type Error = <S3Service as Service<Request<Incoming>>>::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let one_by_one = self.clone();
        Box::pin(async move {
            let conditional = request.headers().contains_key("if-none-match");
            let _turn = if conditional { Some(one_by_one.turn.lock().await) } else { None };
            Service::call(&one_by_one.service, request).await
        })
    }
}

fn service(folder: &Path) -> S3Service {
    let mut builder = S3ServiceBuilder::new(FileSystem::new(folder).expect("a file system"));
    builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
    builder.build()
}

/// A client that closes its connection early is no failure.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, service: OneByOne) {
    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}

fn acceptor(certified: &rcgen::CertifiedKey<rcgen::KeyPair>) -> TlsAcceptor {
    let certificate = CertificateDer::from(certified.cert.der().to_vec());
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a configuration");
    TlsAcceptor::from(Arc::new(config))
}
