//! Why a connection failed or ended: the network, a proxy, a certificate.

use std::error::Error as StdError;
use std::io;

use rustls::{AlertDescription, CertificateError};

use super::failure::{Cause, Failure, shorten};
use super::tls::{HandshakeCut, is_authority};
use crate::config::{Proxy, ProxyKind, RemoteConfig};

const RUNNING: &str = "is the server running at ENDPOINT? to wait for a server that is starting, set \
                       WAIT_READY=SECONDS";
const PROXY_RUNNING: &str =
    "is the proxy running? to bypass it, name the server in NO_PROXY, or unset the variable";

/// Classifies an error before the answer began.
pub(super) fn failed(error: &ureq::Error, config: &RemoteConfig) -> Failure {
    if let Some(error) = tls_error(error) {
        return tls_failed(error, config);
    }
    let endpoint = &config.server.endpoint;
    let proxy = config.server.proxy.as_ref();
    // With a proxy, every connection goes to the proxy.
    let (place, running) = match proxy {
        None => (endpoint.to_string(), RUNNING),
        Some(proxy) => (named(proxy), PROXY_RUNNING),
    };
    match error {
        ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
            let time = config.retry.connect_timeout_s;
            let place = match proxy {
                None => place,
                Some(_) => format!("{endpoint} through {place}"),
            };
            Failure::new(
                Cause::Timeout,
                format!("no connection to {place} within {time} s (CONNECT_TIMEOUT)"),
            )
        }
        ureq::Error::Timeout(_) => Failure::new(Cause::Timeout, "the request took too long"),
        ureq::Error::HostNotFound => unknown_host(&place, config),
        ureq::Error::ConnectionFailed => {
            Failure::new(Cause::Connect, format!("no connection to {place}")).hint(running)
        }
        ureq::Error::ConnectProxyFailed(reason) => no_tunnel(reason, config),
        ureq::Error::Io(error) if is_unknown_host(error) => unknown_host(&place, config),
        ureq::Error::Io(error) if could_not_connect(error) => {
            let message = format!("no connection to {place}: {error}");
            Failure::new(Cause::Connect, message).hint(running)
        }
        ureq::Error::Io(error)
            if error
                .get_ref()
                .is_some_and(|inner| inner.is::<HandshakeCut>()) =>
        {
            let message = format!("the connection to {endpoint} was {error}");
            Failure::new(Cause::CutOff, message)
                .hint("does the server speak TLS there? if not, ENDPOINT must begin with http://")
        }
        // ureq has no separate error for SOCKS.
        ureq::Error::Io(error) if proxy.is_some_and(|proxy| !is_http(proxy)) => Failure::new(
            Cause::Connect,
            format!("no connection to {endpoint} through {place}: {error}"),
        )
        .hint("does the proxy support that version of SOCKS, and can it reach the server?"),
        ureq::Error::Io(error) => {
            let way = proxy.map_or(String::new(), |proxy| format!(", or {}", named(proxy)));
            let message =
                format!("the server{way} closed the connection before it answered: {error}");
            Failure::new(Cause::CutOff, message)
        }
        ureq::Error::Protocol(error) => {
            let failure = Failure::new(
                Cause::Malformed,
                format!("the server's answer is not HTTP: {error}"),
            );
            match endpoint.scheme() {
                "http" => failure.hint("should ENDPOINT begin with https:// instead of http://?"),
                _ => failure,
            }
        }
        error => Failure::new(
            Cause::Refused,
            format!("no answer from {endpoint}: {error}"),
        ),
    }
}

/// Classifies an error while reading a stream.
pub(super) fn broken(error: &io::Error, config: &RemoteConfig) -> Failure {
    if let Some(error) = tls_error(error) {
        return tls_failed(error, config);
    }
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(ureq::Error::Timeout(_)) => Failure::new(Cause::Timeout, "the request took too long"),
        Some(ureq::Error::Protocol(error)) => {
            Failure::new(Cause::Malformed, format!("the stream is not HTTP: {error}"))
        }
        _ => Failure::new(
            Cause::CutOff,
            format!("the stream was cut off before its end: {error}"),
        ),
    }
}

/// Names the proxy in a failure by status: the proxy may have answered instead of the server.
pub(super) fn by_way_of(mut failure: Failure, config: &RemoteConfig) -> Failure {
    let Some(proxy) = config.server.proxy.as_ref().filter(|proxy| is_http(proxy)) else {
        return failure;
    };
    if config.server.endpoint.scheme() != "http" {
        return failure;
    }
    if failure.status == Some(407) {
        failure.message = format!("{} requires a user name and a password (407)", named(proxy));
        return failure.hint(
            "write them into the proxy's URL: http://user:password@host:port, percent-encoded",
        );
    }
    failure.message = format!("{} (through {})", failure.message, named(proxy));
    failure
}

/// The proxy and the variable that sets it.
pub(super) fn named(proxy: &Proxy) -> String {
    format!("the proxy {proxy} ({})", proxy.variable)
}

fn is_http(proxy: &Proxy) -> bool {
    matches!(proxy.kind, ProxyKind::Http | ProxyKind::Https)
}

fn unknown_host(place: &str, config: &RemoteConfig) -> Failure {
    let unknown = "its host name cannot be resolved";
    let (message, hint) = match &config.server.proxy {
        None => (
            format!("no connection to {place}: {unknown}"),
            "is the name in ENDPOINT right?",
        ),
        // With these kinds the server's name is resolved on this side, too.
        Some(proxy) if matches!(proxy.kind, ProxyKind::Socks4 | ProxyKind::Socks5) => (
            format!(
                "no connection to {} through {place}: one of the two host names cannot be resolved here",
                config.server.endpoint
            ),
            "with socks5h:// (socks4a://) the proxy resolves the server's name",
        ),
        Some(_) => (
            format!("no connection to {place}: {unknown}"),
            PROXY_RUNNING,
        ),
    };
    Failure::new(Cause::Connect, message).hint(hint)
}

/// The proxy did not open the tunnel. ureq reports the status as text only.
fn no_tunnel(reason: &str, config: &RemoteConfig) -> Failure {
    let place = config
        .server
        .proxy
        .as_ref()
        .map_or("the proxy".to_owned(), named);
    let status = reason.split(|c: char| !c.is_ascii_digit());
    let status = status
        .filter_map(|word| word.parse::<u16>().ok())
        .find(|status| *status >= 100);
    let endpoint = &config.server.endpoint;
    let Some(status) = status else {
        let message = format!(
            "{place} opened no tunnel to {endpoint}: {}",
            shorten(reason)
        );
        return Failure::new(Cause::Connect, message);
    };
    let message = format!("{place} opened no tunnel to {endpoint}: it answered {status}");
    match status {
        407 => Failure::new(Cause::Refused, message).hint(
            "it requires a user name and a password: http://user:password@host:port, percent-encoded",
        ),
        500.. => Failure::new(Cause::Connect, message)
            .hint("is the server running at ENDPOINT, and can the proxy reach it?"),
        _ => Failure::new(Cause::Refused, message)
            .hint("to bypass the proxy, name the server in NO_PROXY"),
    }
}

fn is_unknown_host(error: &io::Error) -> bool {
    // The standard library has no error kind for it.
    error
        .to_string()
        .starts_with("failed to lookup address information")
}

fn could_not_connect(error: &io::Error) -> bool {
    // No file descriptors left, in this process or on the system.
    let no_room = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE];
    if no_room
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
    {
        return true;
    }
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::AddrNotAvailable
    )
}

/// Finds the TLS library's error inside another one.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return Some(error);
    }
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return tls_error(error.get_ref()?);
    }
    match error.downcast_ref::<ureq::Error>()? {
        ureq::Error::Io(error) => tls_error(error),
        ureq::Error::Rustls(error) => Some(error),
        _ => None,
    }
}

/// Classifies a failed TLS connection.
fn tls_failed(error: &rustls::Error, config: &RemoteConfig) -> Failure {
    let mut place = config.server.endpoint.to_string();
    if let Some(proxy) = &config.server.proxy
        && proxy.kind == ProxyKind::Https
    {
        // It may be either of the two; the error does not say which.
        place = match config.server.endpoint.scheme() {
            "https" => format!("{place}, or of {}", named(proxy)),
            _ => named(proxy),
        };
    }
    match error {
        rustls::Error::InvalidCertificate(error) => untrusted(error, &place),
        rustls::Error::NoCertificatesPresented => {
            Failure::new(Cause::Certificate, format!("{place} sent no certificate"))
        }
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::BadCertificate,
        ) => Failure::new(
            Cause::Certificate,
            format!("{place} requires a client certificate ({error})"),
        )
        .hint("flowbench has no client certificate: the server must accept an API_KEY instead"),
        rustls::Error::InvalidMessage(_) => Failure::new(
            Cause::Malformed,
            format!("what answers at {place} does not speak TLS: {error}"),
        )
        .hint("should ENDPOINT begin with http:// instead of https://?"),
        rustls::Error::PeerIncompatible(_)
        | rustls::Error::PeerMisbehaved(_)
        | rustls::Error::AlertReceived(
            AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure,
        ) => Failure::new(
            Cause::Malformed,
            format!("{place} and flowbench have no TLS version or cipher in common: {error}"),
        )
        .hint("flowbench speaks TLS 1.2 and 1.3"),
        error => Failure::new(
            Cause::Connect,
            format!("no TLS connection to {place}: {error}"),
        ),
    }
}

/// Classifies an untrusted certificate.
fn untrusted(error: &CertificateError, place: &str) -> Failure {
    let day = |time: &rustls::pki_types::UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        jiff::Timestamp::from_second(seconds).map_or("unknown".to_owned(), |at| at.to_string())
    };
    let (what, hint) = match error {
        CertificateError::UnknownIssuer => (
            "is signed by an authority that is not trusted here".to_owned(),
            TRUST,
        ),
        CertificateError::Expired => ("has expired".to_owned(), RENEW),
        CertificateError::ExpiredContext { not_after, .. } => {
            (format!("has expired at {}", day(not_after)), RENEW)
        }
        CertificateError::NotValidYet => ("is not valid yet".to_owned(), RENEW),
        CertificateError::NotValidYetContext { not_before, .. } => {
            (format!("is not valid before {}", day(not_before)), RENEW)
        }
        CertificateError::NotValidForName => {
            ("is for another host than ENDPOINT names".to_owned(), NAME)
        }
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => (
            "names no host (it has no subjectAltName)".to_owned(),
            "create a new one with the host's name: openssl req -x509 -addext subjectAltName=DNS:host …",
        ),
        CertificateError::NotValidForNameContext { presented, .. } => (
            format!(
                "is for another host than ENDPOINT names: {}",
                shorten(
                    &presented
                        .iter()
                        .map(|name| bare(name))
                        .collect::<Vec<_>>()
                        .join(", ")
                )
            ),
            NAME,
        ),
        error if is_authority(error) => {
            ("is self-signed, and is not trusted here".to_owned(), TRUST)
        }
        CertificateError::Revoked => ("has been revoked".to_owned(), RENEW),
        CertificateError::BadSignature => ("has a signature that is wrong".to_owned(), TRUST),
        error => (format!("cannot be used: {error}"), TRUST),
    };
    let message = format!("the certificate of {place} {what}");
    Failure::new(Cause::Certificate, message).hint(hint)
}

/// The name without rustls's `DnsName("…")` around it.
fn bare(name: &str) -> &str {
    let inner = name
        .split_once('(')
        .and_then(|(_, inner)| inner.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"')
}

const TRUST: &str = "set SSL_CERT_FILE to a PEM file with the certificate of its authority, or with \
                     the server's own if it is self-signed";
const RENEW: &str = "is the clock of this machine right? if so, the server needs a new certificate";
const NAME: &str = "use the host name from the certificate in ENDPOINT";

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use rustls::pki_types::{ServerName, UnixTime};

    fn of(proxy: Option<&str>) -> RemoteConfig {
        let mut config = RemoteConfig::plain("https://host/v1");
        let variable = |name: &str| (name == "https_proxy").then(|| proxy.map(str::to_owned))?;
        config.server.proxy = Proxy::find("https", "host", 443, variable).expect("sound");
        config
    }

    fn certificate(error: CertificateError) -> Failure {
        let error = rustls::Error::InvalidCertificate(error);
        failed(
            &io::Error::new(io::ErrorKind::InvalidData, error).into(),
            &of(None),
        )
    }

    #[test]
    fn certificate_errors_are_specific_and_not_retried() {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(1_700_000_000));
        for (error, words) in [
            (
                CertificateError::UnknownIssuer,
                "not trusted here (set SSL_CERT_FILE to",
            ),
            (
                CertificateError::ExpiredContext {
                    time,
                    not_after: time,
                },
                "has expired at 2023-11-14T22:13:20Z (is the clock",
            ),
            (
                CertificateError::NotValidYetContext {
                    time,
                    not_before: time,
                },
                "not valid before 2023-11-14T22:13:20Z",
            ),
            (
                CertificateError::NotValidForNameContext {
                    expected: ServerName::try_from("host").expect("a name"),
                    presented: vec!["DnsName(\"other\")".to_owned()],
                },
                "another host than ENDPOINT names: other (use the host name",
            ),
            (
                CertificateError::NotValidForNameContext {
                    expected: ServerName::try_from("host").expect("a name"),
                    presented: Vec::new(),
                },
                "no subjectAltName",
            ),
            (CertificateError::BadEncoding, "cannot be used: "),
        ] {
            let failure = certificate(error);
            let line = failure.line();
            assert!(
                line.starts_with("the certificate of https://host/v1 "),
                "{line}"
            );
            assert!(line.contains(words), "{line}");
            assert_eq!(failure.cause, Cause::Certificate);
            assert!(!failure.cause.is_transient());
        }
    }

    #[test]
    fn errors_name_the_proxy() {
        let refused = || ureq::Error::from(io::Error::from(io::ErrorKind::ConnectionRefused));
        let line = |error: &ureq::Error, proxy| failed(error, &of(proxy)).line();
        let direct = line(&refused(), None);
        assert!(
            direct.starts_with("no connection to https://host/v1: "),
            "{direct}"
        );
        let through = line(&refused(), Some("u:canary@p:9"));
        assert!(
            through.starts_with("no connection to the proxy http://p:9 (https_proxy): "),
            "{through}"
        );
        assert!(
            through.contains("NO_PROXY") && !through.contains("canary"),
            "{through}"
        );
        for (status, cause, words) in [
            (403, Cause::Refused, "it answered 403 (to bypass the proxy"),
            (407, Cause::Refused, "a user name and a password"),
            (502, Cause::Connect, "can the proxy reach it?"),
        ] {
            let error = ureq::Error::ConnectProxyFailed(format!(
                "proxy server responded {status}/{status}"
            ));
            let failure = failed(&error, &of(Some("p:9")));
            assert_eq!(failure.cause, cause, "{status}");
            let line = failure.line();
            assert!(
                line.starts_with("the proxy http://p:9 (https_proxy) opened no tunnel"),
                "{line}"
            );
            assert!(line.contains(words), "{line}");
        }
        let unknown = io::Error::other("failed to lookup address information: Name or service");
        let unknown = ureq::Error::from(unknown);
        assert!(line(&unknown, None).contains("cannot be resolved (is the name in ENDPOINT"));
        assert!(
            line(&unknown, Some("p:9")).contains("to the proxy http://p:9 (https_proxy): its host")
        );
        assert!(
            line(&unknown, Some("socks5://p:9"))
                .contains("one of the two host names cannot be resolved here")
        );
        assert_eq!(failed(&unknown, &of(None)).cause, Cause::Connect);
    }

    #[test]
    fn failures_by_status_name_the_proxy() {
        let mut config = RemoteConfig::plain("http://host/v1");
        let failure = |status| Failure::status(status, &ureq::http::HeaderMap::new(), "");
        let line = by_way_of(failure(502), &config).line();
        assert_eq!(line, "the server answered 502 Bad Gateway");
        let variable = |name: &str| (name == "http_proxy").then(|| "p:1".to_owned());
        config.server.proxy = Proxy::find("http", "host", 80, variable).expect("sound");
        let line = by_way_of(failure(502), &config).line();
        assert_eq!(
            line,
            "the server answered 502 Bad Gateway (through the proxy http://p:1 (http_proxy))"
        );
        let line = by_way_of(failure(407), &config).line();
        assert!(
            line.starts_with("the proxy http://p:1 (http_proxy) requires a user"),
            "{line}"
        );
    }
}
