//! Makes the client of the SDK: TLS, credentials, and none of its own repetitions.

use std::time::Duration;

use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    SharedCredentialsProvider, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::Builder as HttpBuilder;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};

use super::S3Options;
use super::credentials::{CredentialsSource, KeyFile};

/// Until a connection stands.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that is longer idle is closed: servers and firewalls drop them, and the next request would be lost.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes the client. Nothing is sent.
pub(super) fn client(options: &S3Options) -> Client {
    let http = http_client(options);
    let region = Region::new(options.region.clone());
    let aws = options.endpoint.is_none();
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build();
    let mut config = aws_sdk_s3::config::Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .credentials_provider(credentials(options, &http, &region))
        .region(region)
        .http_client(http)
        .force_path_style(options.path_style)
        .timeout_config(timeouts)
        // `Retrier` decides both, for the whole of a request.
        .retry_config(RetryConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        // Others reject what AWS adds by itself; the checksums of what is put are sent by `S3Store` in any case.
        .request_checksum_calculation(if aws {
            RequestChecksumCalculation::WhenSupported
        } else {
            RequestChecksumCalculation::WhenRequired
        })
        .response_checksum_validation(if aws {
            ResponseChecksumValidation::WhenSupported
        } else {
            ResponseChecksumValidation::WhenRequired
        });
    if let Some(endpoint) = &options.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Client::from_conf(config.build())
}

fn http_client(options: &S3Options) -> SharedHttpClient {
    let mut roots = TrustStore::empty().with_native_roots(options.system_roots);
    if let Some(authority) = &options.authority {
        roots = roots.with_pem_certificate(authority.pem());
    }
    let context = TlsContext::builder().with_trust_store(roots).build();
    let builder = HttpBuilder::new().pool_idle_timeout(IDLE_TIMEOUT);
    builder
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .tls_context(context.expect("rustls takes any roots"))
        .build_https()
}

fn credentials(options: &S3Options, http: &SharedHttpClient, region: &Region) -> SharedCredentialsProvider {
    let config = ProviderConfig::without_region()
        .with_region(Some(region.clone()))
        .with_http_client(http.clone())
        .with_behavior_version(Some(BehaviorVersion::latest()));
    match &options.credentials {
        CredentialsSource::File(path) => SharedCredentialsProvider::new(KeyFile::new(path.clone())),
        CredentialsSource::Profile(name) => SharedCredentialsProvider::new(
            ProfileFileCredentialsProvider::builder().configure(&config).profile_name(name).build(),
        ),
        CredentialsSource::Environment => {
            SharedCredentialsProvider::new(EnvironmentVariableCredentialsProvider::new())
        }
        CredentialsSource::Instance => {
            SharedCredentialsProvider::new(ImdsCredentialsProvider::builder().configure(&config).build())
        }
        CredentialsSource::WebIdentity => SharedCredentialsProvider::new(
            WebIdentityTokenCredentialsProvider::builder().configure(&config).build(),
        ),
    }
}
