//! Connections to the server, direct or through a proxy, with or without TLS, and the headers
//! common to all requests.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use ureq::config::Config;
use ureq::http::{HeaderName, HeaderValue, Uri, header};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectProxyConnector, ConnectionDetails, Connector, Either, NextTimeout,
    SocksConnector, TcpConnector, Transport,
};
use ureq::{Agent, Proxy as Tunnel, ProxyProtocol, RequestBuilder};

use super::tls::{self, Roots, TlsConnector};
use crate::config::{Proxy, ProxyKind, RemoteConfig};
use crate::error::{Error, Result};

/// How long an idle connection is kept. Shorter than uvicorn's five seconds, after which the server
/// may close it while a request is being sent.
const KEEP_ALIVE: Duration = Duration::from_secs(4);

#[derive(Debug)]
pub(super) struct Network {
    connect_timeout: Duration,
    request_timeout: Duration,
    client: Option<Arc<ClientConfig>>,
    /// The source of the trusted certificates, if any are needed.
    pub(super) roots: Option<String>,
    route: Route,
    headers: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Debug, Clone)]
enum Route {
    Direct,
    /// Plain HTTP requests go to the proxy with the whole URL.
    Forward {
        proxy: Uri,
        /// Its name, if it is reached over TLS.
        name: Option<ServerName<'static>>,
        /// Scheme, host and port of the server.
        origin: String,
    },
    /// The proxy opens a tunnel to the server (CONNECT or SOCKS).
    Tunnel(Tunnel),
}

impl Network {
    /// Reads the certificates if they are needed. Sends nothing.
    ///
    /// # Errors
    /// Exit code 3 if trusted certificates cannot be read.
    pub(super) fn new(config: &RemoteConfig) -> Result<Self> {
        let secure_proxy = |proxy: &Proxy| proxy.kind == ProxyKind::Https;
        let needs_tls = config.server.endpoint.scheme() == "https"
            || config.server.proxy.as_ref().is_some_and(secure_proxy);
        let roots = match needs_tls {
            true => Some(Roots::read(&config.server.trust)?),
            false => None,
        };
        let source = roots.as_ref().map(|roots| roots.source.clone());
        let (route, authorization) = route(config)?;
        let mut headers: Vec<(HeaderName, HeaderValue)> = (config.endpoint_headers.iter())
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let mut add = |name: HeaderName, value: &str| {
            let value = HeaderValue::from_str(value).map_err(|error| {
                Error::usage(format!("the header {name} cannot be sent")).caused_by(error)
            })?;
            headers.push((name, value));
            Ok(())
        };
        if let Some(key) = &config.server.api_key {
            add(header::AUTHORIZATION, &key.bearer())?;
        }
        if let Some(value) = authorization {
            add(header::PROXY_AUTHORIZATION, &value)?;
        }
        Ok(Self {
            connect_timeout: config.retry.connect(),
            request_timeout: config.retry.request(),
            client: roots.map(Roots::client).transpose()?,
            roots: source,
            route,
            headers,
        })
    }

    /// A connection to the server. Each agent serves one request at a time, so that it can be shut
    /// down alone.
    pub(super) fn agent(&self) -> Agent {
        // The engine times out earlier. This is for abandoned threads.
        self.agent_within(self.request_timeout + Duration::from_secs(5))
    }

    /// A connection whose requests time out after `time`.
    pub(super) fn agent_within(&self, time: Duration) -> Agent {
        let tunnel = match &self.route {
            Route::Tunnel(tunnel) => Some(tunnel.clone()),
            Route::Direct | Route::Forward { .. } => None,
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // A redirect would pass the key on.
            .max_redirects(0)
            // A compressed stream arrives in larger pieces than tokens.
            .accept_encoding("identity")
            .user_agent(concat!("flowbench/", env!("CARGO_PKG_VERSION")))
            // ureq's own reading of the environment neither separates http from https nor supports
            // networks.
            .proxy(tunnel)
            .timeout_resolve(Some(self.connect_timeout))
            .timeout_connect(Some(self.connect_timeout))
            .timeout_global(Some(time))
            .max_idle_age(KEEP_ALIVE)
            .build();
        let (name, origin, proxy) = match &self.route {
            Route::Forward {
                proxy,
                name,
                origin,
            } => (name.clone(), Some(origin.clone()), Some(proxy.clone())),
            Route::Direct | Route::Tunnel(_) => (None, None, None),
        };
        let connector = ()
            .chain(SocksConnector::default())
            .chain(ConnectProxyConnector::default())
            .chain(TcpConnector::default())
            .chain(TlsConnector {
                client: self.client.clone(),
                proxy: name,
            })
            .chain(ForwardConnector { origin });
        let resolver = ProxyResolver {
            proxy,
            inner: DefaultResolver::default(),
        };
        Agent::with_parts(config, connector, resolver)
    }

    /// Adds the headers common to all requests.
    pub(super) fn with_headers<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        let headers = self.headers.iter();
        headers.fold(request, |request, (name, value)| {
            request.header(name, value)
        })
    }

    pub(super) fn has_header(&self, name: &HeaderName) -> bool {
        self.headers.iter().any(|(known, _)| known == name)
    }
}

/// The route to the server, and the `Proxy-Authorization` header if the proxy needs one with each
/// request.
fn route(config: &RemoteConfig) -> Result<(Route, Option<String>)> {
    let Some(proxy) = &config.server.proxy else {
        return Ok((Route::Direct, None));
    };
    let refuse = |error: Box<dyn std::error::Error + Send + Sync>| {
        Error::usage(format!(
            "{} is not the URL of a proxy that can be used ({proxy})",
            proxy.variable
        ))
        .caused_by(error)
    };
    let protocol = match proxy.kind {
        ProxyKind::Http => ProxyProtocol::Http,
        ProxyKind::Https => ProxyProtocol::Https,
        ProxyKind::Socks4 => ProxyProtocol::Socks4,
        ProxyKind::Socks4a => ProxyProtocol::Socks4A,
        ProxyKind::Socks5 => ProxyProtocol::Socks5,
        ProxyKind::Socks5h => ProxyProtocol::Socks5h,
    };
    let speaks_http = matches!(proxy.kind, ProxyKind::Http | ProxyKind::Https);
    if config.server.endpoint.scheme() == "http" && speaks_http {
        let name = match proxy.kind {
            ProxyKind::Https => {
                Some(tls::server_name(Some(&proxy.host)).map_err(|error| refuse(error.into()))?)
            }
            _ => None,
        };
        let route = Route::Forward {
            proxy: (proxy.to_string().parse::<Uri>()).map_err(|error| refuse(error.into()))?,
            name,
            origin: config.server.endpoint.origin(),
        };
        return Ok((route, proxy.authorization()));
    }
    let mut tunnel = Tunnel::builder(protocol).host(&proxy.host).port(proxy.port);
    if let Some((user, password)) = &proxy.credentials {
        tunnel = tunnel.username(user).password(password);
    }
    let tunnel = tunnel.build().map_err(|error| refuse(error.into()))?;
    Ok((Route::Tunnel(tunnel), None))
}

/// Resolves the proxy's name instead of the server's, which is left to the proxy.
#[derive(Debug)]
struct ProxyResolver {
    proxy: Option<Uri>,
    inner: DefaultResolver,
}

impl Resolver for ProxyResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> std::result::Result<ResolvedSocketAddrs, ureq::Error> {
        let uri = self.proxy.as_ref().unwrap_or(uri);
        self.inner.resolve(uri, config, timeout)
    }
}

/// Puts the server's scheme, host and port into the request line, in the form that a proxy requires
/// (RFC 9112, §3.2.2).
#[derive(Debug)]
struct ForwardConnector {
    origin: Option<String>,
}

impl<In: Transport> Connector<In> for ForwardConnector {
    type Out = Either<In, ForwardTransport>;

    fn connect(
        &self,
        _: &ConnectionDetails,
        chained: Option<In>,
    ) -> std::result::Result<Option<Self::Out>, ureq::Error> {
        let Some(transport) = chained else {
            return Ok(None);
        };
        Ok(Some(match &self.origin {
            None => Either::A(transport),
            Some(origin) => Either::B(ForwardTransport {
                inner: Box::new(transport),
                origin: origin.clone(),
                is_start: true,
            }),
        }))
    }
}

#[derive(Debug)]
struct ForwardTransport {
    inner: Box<dyn Transport>,
    origin: String,
    /// Whether the next output starts a request: nothing was sent yet, or input was read since.
    is_start: bool,
}

impl Transport for ForwardTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(
        &mut self,
        amount: usize,
        timeout: NextTimeout,
    ) -> std::result::Result<(), ureq::Error> {
        if !std::mem::take(&mut self.is_start) {
            return self.inner.transmit_output(amount, timeout);
        }
        let mut sent = self.inner.buffers().output()[..amount].to_vec();
        if let Some(space) = sent.iter().position(|byte| *byte == b' ') {
            sent.splice(space + 1..space + 1, self.origin.bytes());
        }
        let mut rest = sent.as_slice();
        while !rest.is_empty() {
            let output = self.inner.buffers().output();
            let count = rest.len().min(output.len());
            output[..count].copy_from_slice(&rest[..count]);
            self.inner.transmit_output(count, timeout)?;
            rest = &rest[count..];
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> std::result::Result<bool, ureq::Error> {
        self.is_start = true;
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}
