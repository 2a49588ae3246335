//! Selects the proxy from the variables that curl reads (curl(1), "ENVIRONMENT" and "PROXY PROTOCOL
//! PREFIXES"): `http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`, in lower or upper case.

use std::fmt;
use std::net::IpAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Serialize, Serializer};

use super::authority::{self, Authority};
use super::secret::Secrets;
use crate::error::{Error, Result};

/// Protocol of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyKind {
    /// HTTP: forwards `http` requests, which carry the full URL, and tunnels `https` (CONNECT).
    Http,
    /// The same over TLS.
    Https,
    /// SOCKS4; names are resolved locally.
    Socks4,
    /// SOCKS4a; names are resolved by the proxy.
    Socks4a,
    /// SOCKS5; names are resolved locally.
    Socks5,
    /// SOCKS5; names are resolved by the proxy.
    Socks5h,
}

impl ProxyKind {
    /// URL scheme.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Socks4 => "socks4",
            Self::Socks4a => "socks4a",
            Self::Socks5 => "socks5",
            Self::Socks5h => "socks5h",
        }
    }

    /// Default port. As in curl, it is 1080 even for `http`.
    fn port(self) -> u16 {
        match self {
            Self::Https => 443,
            _ => 1080,
        }
    }
}

/// A proxy. Printed and recorded without its user and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    pub kind: ProxyKind,
    /// An IPv6 address is in brackets.
    pub host: String,
    pub port: u16,
    /// User and password.
    pub credentials: Option<(String, String)>,
    /// The environment variable that it came from.
    pub variable: &'static str,
}

impl Proxy {
    /// Returns the proxy for a server with this scheme, host and port; `variable` looks up an
    /// environment variable. `None`: connect directly.
    ///
    /// # Errors
    /// Exit code 2 for a variable with an invalid URL, which is not shown.
    pub fn find(
        scheme: &str,
        host: &str,
        port: u16,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>> {
        // curl ignores HTTP_PROXY, because a web server sets it for CGI programs from a request's
        // `Proxy` header. flowbench is not a CGI program, and most other programs read it.
        let names: &[&'static str] = match scheme {
            "https" => &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"],
            _ => &["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"],
        };
        let set = |name: &&'static str| {
            let value = variable(name).filter(|value| !value.trim().is_empty())?;
            Some((*name, value))
        };
        let Some((name, value)) = names.iter().find_map(set) else {
            return Ok(None);
        };
        let exempt = ["no_proxy", "NO_PROXY"].iter().find_map(set);
        if exempt.is_some_and(|(_, list)| is_exempt(&list, host, port)) {
            return Ok(None);
        }
        Self::parse(name, &value).map(Some)
    }

    fn parse(variable: &'static str, text: &str) -> Result<Self> {
        let refuse = |why: &str| {
            Error::usage(format!("{variable} is not the URL of a proxy: {why}")).hint(format!(
                "{variable} is a URL such as http://127.0.0.1:3128, with user:password@ before the host if \
                 needed; to connect directly, unset it or add the server to NO_PROXY"
            ))
        };
        let text = text.trim();
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let kind = match scheme.to_ascii_lowercase().as_str() {
            "http" => ProxyKind::Http,
            "https" => ProxyKind::Https,
            "socks4" => ProxyKind::Socks4,
            "socks4a" => ProxyKind::Socks4a,
            "socks" | "socks5" => ProxyKind::Socks5,
            "socks5h" => ProxyKind::Socks5h,
            _ => {
                return Err(refuse(
                    "its scheme is not one of http, https, socks4(a), socks5(h)",
                ));
            }
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (credentials, authority) = match authority.rsplit_once('@') {
            None => (None, authority),
            Some((credentials, authority)) => {
                let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
                let both = decode(user).zip(decode(password));
                let both =
                    both.ok_or_else(|| refuse("its user or password is incorrectly encoded"))?;
                (Some(both), authority)
            }
        };
        let Authority { host, port } = authority::parse(authority).map_err(|why| refuse(&why))?;
        Ok(Self {
            kind,
            host: host.to_owned(),
            port: port.unwrap_or(kind.port()),
            credentials,
            variable,
        })
    }

    /// Value of `Proxy-Authorization` (RFC 7617), if there is a user.
    pub fn authorization(&self) -> Option<String> {
        let (user, password) = self.credentials.as_ref()?;
        let both = BASE64_STANDARD.encode(format!("{user}:{password}"));
        Some(format!("Basic {both}"))
    }

    /// Adds the strings that must not appear in any output.
    pub(super) fn add_secrets(&self, secrets: &mut Secrets) {
        if let Some((_, password)) = &self.credentials {
            secrets.add(password, self.variable);
        }
        if let Some(value) = self.authorization() {
            secrets.add_value(&value, self.variable);
        }
    }
}

/// Percent-decodes (RFC 3986, §2.1).
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        let value = 16 * digit()? + digit()?;
        bytes.push(u8::try_from(value).ok()?);
    }
    let text = String::from_utf8(bytes).ok()?;
    // Control characters are not valid in a header or in SOCKS.
    (!text.contains(char::is_control)).then_some(text)
}

/// Whether `NO_PROXY` lists this host. Entries are domain names, which include their subdomains,
/// addresses, networks (`10.0.0.0/8`) or `*`, each with an optional port, separated by commas or
/// spaces.
fn is_exempt(list: &str, host: &str, port: u16) -> bool {
    let bare = |host: &str| host.trim_matches(['[', ']']).to_ascii_lowercase();
    let host = bare(host);
    let host = host.trim_end_matches('.');
    let address = host
        .parse::<IpAddr>()
        .ok()
        .map(|address| address.to_canonical());
    let entries = list.split(|c: char| c == ',' || c.is_whitespace());
    entries.filter(|entry| !entry.is_empty()).any(|entry| {
        if let Some(address) = address
            && let Some(matches) = is_in(entry.trim_matches(['[', ']']), address)
        {
            return matches;
        }
        let (entry, only) = match entry.rsplit_once(':') {
            Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, Some(port)),
            _ => (entry, None),
        };
        if only.is_some_and(|only| only.parse() != Ok(port)) {
            return false;
        }
        let entry = bare(entry);
        if entry == "*" {
            return true;
        }
        if let Some(address) = address {
            return is_in(&entry, address) == Some(true);
        }
        let below = |name: &str| {
            let before = host.strip_suffix(name);
            !name.is_empty() && before.is_some_and(|before| before.ends_with('.'))
        };
        match entry.strip_prefix("*.") {
            Some(name) => below(name.trim_end_matches('.')),
            None => {
                let name = entry.trim_start_matches('.').trim_end_matches('.');
                host == name || below(name)
            }
        }
    })
}

/// Whether the entry is this address or a network that contains it; `None` if the entry is neither.
fn is_in(entry: &str, address: IpAddr) -> Option<bool> {
    let (network, bits) = match entry.split_once('/') {
        Some((network, bits)) => (network, Some(bits.parse::<u32>().ok()?)),
        None => (entry, None),
    };
    let network = network.trim_matches(['[', ']']).parse::<IpAddr>().ok()?;
    let (network, address, width) = match (network.to_canonical(), address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            (network.to_bits().into(), address.to_bits().into(), 32)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => (network.to_bits(), address.to_bits(), 128),
        _ => return Some(false),
    };
    let bits = bits.unwrap_or(width);
    let different: u128 = network ^ address;
    Some(bits <= width && (bits == 0 || different >> (width - bits) == 0))
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.kind.scheme(), self.host, self.port)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

impl Serialize for Proxy {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(server: (&str, &str, u16), set: &[(&str, &str)]) -> Result<Option<Proxy>> {
        let variable = |name: &str| {
            let found = set.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Proxy::find(server.0, server.1, server.2, variable)
    }

    fn found(server: (&str, &str, u16), set: &[(&str, &str)]) -> Option<String> {
        let proxy = find(server, set).expect("sound");
        proxy.map(|proxy| format!("{} {proxy}", proxy.variable))
    }

    const PLAIN: (&str, &str, u16) = ("http", "host", 80);
    const SECURE: (&str, &str, u16) = ("https", "host", 443);

    #[test]
    fn the_scheme_selects_the_variable() {
        let all = [
            ("https_proxy", "http://s:1"),
            ("http_proxy", "http://p:1"),
            ("HTTP_PROXY", "http://P:1"),
            ("ALL_PROXY", "http://A:1"),
        ];
        assert_eq!(found(PLAIN, &all).as_deref(), Some("http_proxy http://p:1"));
        assert_eq!(
            found(SECURE, &all).as_deref(),
            Some("https_proxy http://s:1")
        );
        let upper = &all[2..];
        assert_eq!(
            found(PLAIN, upper).as_deref(),
            Some("HTTP_PROXY http://P:1")
        );
        assert_eq!(
            found(SECURE, upper).as_deref(),
            Some("ALL_PROXY http://A:1")
        );
        assert_eq!(found(PLAIN, &[("HTTPS_PROXY", "http://s:1")]), None);
        assert_eq!(
            found(PLAIN, &[("http_proxy", " "), ("https_proxy", "x")]),
            None
        );
        let empty = [("http_proxy", ""), ("all_proxy", "a:1")];
        assert_eq!(
            found(PLAIN, &empty).as_deref(),
            Some("all_proxy http://a:1")
        );
    }

    #[test]
    fn proxy_urls_are_parsed() {
        for (text, shown) in [
            ("p", "http://p:1080"),
            ("p:3128", "http://p:3128"),
            (" HTTP://p:3128/path ", "http://p:3128"),
            ("https://p", "https://p:443"),
            ("socks://p", "socks5://p:1080"),
            ("socks5h://p:9", "socks5h://p:9"),
            ("http://[::1]:3128", "http://[::1]:3128"),
            ("http://user:canary@p:1", "http://p:1"),
            ("http://user:c%40n%3aary@p:1", "http://p:1"),
        ] {
            let proxy = find(PLAIN, &[("http_proxy", text)])
                .expect(text)
                .expect("one");
            assert_eq!(proxy.to_string(), shown, "{text}");
            assert_eq!(serde_json::to_value(&proxy).expect("text"), shown);
        }
        let proxy = find(PLAIN, &[("http_proxy", "user:c%40nary%3A@p:1")]).expect("sound");
        let proxy = proxy.expect("one");
        let both = ("user".to_owned(), "c@nary:".to_owned());
        assert_eq!(proxy.credentials, Some(both));
        assert_eq!(
            proxy.authorization().as_deref(),
            Some("Basic dXNlcjpjQG5hcnk6")
        );
        assert!(!format!("{proxy:?}").contains("nary"));
        let mut secrets = Secrets::default();
        proxy.add_secrets(&mut secrets);
        assert_eq!(
            secrets.hide("c@nary: dXNlcjpjQG5hcnk6"),
            "[http_proxy] [http_proxy]"
        );

        for (text, words) in [
            ("ftp://canary", "scheme"),
            ("http://", "host"),
            ("http://:canary@", "host"),
            ("http://p:80000", "port 80000"),
            ("http://p:0", "port 0"),
            ("http://p:x", "port"),
            ("http://canary@p q:1", "host"),
            ("http://%zz:canary@p", "encoded"),
            ("http://a%0d%0ab:canary@p", "encoded"),
        ] {
            let error = find(PLAIN, &[("http_proxy", text)]).expect_err(text);
            assert_eq!(error.exit(), crate::error::Exit::Usage, "{text}");
            let report = error.report();
            assert!(
                report.contains("http_proxy is not the URL of a proxy"),
                "{report}"
            );
            assert!(report.contains(words), "{text}: {report}");
            assert!(!report.contains("canary"), "{report}");
        }
        // An invalid URL is ignored if the proxy is not needed.
        let unused = [("http_proxy", "ftp://p"), ("no_proxy", "host")];
        assert_eq!(found(PLAIN, &unused), None);
    }

    #[test]
    fn no_proxy_matches_hosts_and_networks() {
        for (list, host, exempt) in [
            ("localhost, 127.0.0.1", "127.0.0.1", true),
            ("localhost 127.0.0.1", "127.0.0.1", true),
            ("localhost\t,,127.0.0.1", "127.0.0.1", true),
            ("*", "host", true),
            ("a,*", "host", true),
            ("127.0.0.0/8", "127.0.0.1", true),
            ("127.0.0.0/8", "128.0.0.1", false),
            ("127.0.0.1/32", "127.0.0.1", true),
            ("127.0.0.0/33", "127.0.0.1", false),
            ("0.0.0.0/0", "9.9.9.9", true),
            ("10.0.0.0/9", "10.127.0.1", true),
            ("10.0.0.0/9", "10.128.0.1", false),
            ("127.0.0.0/8", "localhost", false),
            ("127.0.0.1", "localhost", false),
            ("127.0.0.0/x", "127.0.0.0", false),
            ("::1", "[::1]", true),
            ("[::1]", "[::1]", true),
            ("[::1]:8000", "[::1]", true),
            ("[::1]:8001", "[::1]", false),
            ("fd00::/8", "[fd12::1]", true),
            ("[fd00::]/8", "[fd12::1]", true),
            ("fe00::/8", "[fd12::1]", false),
            ("fd00::/8", "127.0.0.1", false),
            ("0:0:0:0:0:0:0:1", "[::1]", true),
            ("127.0.0.1", "[::ffff:127.0.0.1]", true),
            ("example.com", "example.com", true),
            ("example.com", "EXAMPLE.com.", true),
            ("example.com", "api.example.com", true),
            ("example.com", "notexample.com", false),
            ("example.com", "example.com.org", false),
            (".example.com", "example.com", true),
            (".example.com", "api.example.com", true),
            ("Example.Com.", "api.example.com", true),
            ("*.example.com", "api.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "notexample.com", false),
            ("example.com:8000", "example.com", true),
            ("example.com:8001", "example.com", false),
            ("127.0.0.1:8000", "127.0.0.1", true),
            ("127.0.0.1:8001", "127.0.0.1", false),
            ("*:8000", "host", true),
            (".", "host", false),
            ("", "host", false),
            ("27.0.0.1", "127.0.0.1", false),
            (".0.0.1", "127.0.0.1", false),
        ] {
            assert_eq!(is_exempt(list, host, 8000), exempt, "{host} in {list:?}");
        }
    }
}
