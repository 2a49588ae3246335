//! Parses host and port of a URL, more strictly than `http::Uri`, which accepts `host:80000`.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Authority<'a> {
    /// A name or an address; an IPv6 address is in brackets.
    pub(super) host: &'a str,
    pub(super) port: Option<u16>,
}

/// Parses `host`, `host:port` or `[IPv6]:port`, without user information.
///
/// # Errors
/// The reason. It shows no part of `text` other than a numeric port.
pub(super) fn parse(text: &str) -> Result<Authority<'_>, String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((address, rest)) = rest.split_once(']') else {
                return Err("the bracket before its host is not closed".to_owned());
            };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err("its host is no IPv6 address".to_owned());
            }
            let port = match rest.strip_prefix(':') {
                Some(port) => Some(port),
                None if rest.is_empty() => None,
                None => return Err("there is something between its host and its port".to_owned()),
            };
            (&text[..address.len() + 2], port)
        }
        None => match text.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err(
                    "an IPv6 address stands in brackets, as in http://[::1]:8000".to_owned(),
                );
            }
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if host.is_empty() {
        return Err("it names no host".to_owned());
    }
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if !host.starts_with('[') && !host.chars().all(known) {
        return Err("its host has characters that no host's name has".to_owned());
    }
    let port = match port {
        None => None,
        Some(text) if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) => {
            return Err("its port is not a number".to_owned());
        }
        Some(text) => match text.parse::<u16>() {
            Ok(port) if port > 0 => Some(port),
            _ => {
                let shown = text
                    .get(..10)
                    .map_or(text.to_owned(), |start| format!("{start}…"));
                return Err(format!("there is no port {shown}; the last one is 65535"));
            }
        },
    };
    Ok(Authority { host, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports() {
        for (text, host, port) in [
            ("host", "host", None),
            ("my_host-1.example.:1", "my_host-1.example.", Some(1)),
            ("127.0.0.1:65535", "127.0.0.1", Some(65535)),
            ("[::1]", "[::1]", None),
            ("[fe80::1]:8000", "[fe80::1]", Some(8000)),
            ("host:08000", "host", Some(8000)),
        ] {
            assert_eq!(parse(text), Ok(Authority { host, port }), "{text}");
        }
        for (text, words) in [
            ("host:80000", "no port 80000"),
            ("host:99999", "no port 99999"),
            ("host:65536", "no port 65536"),
            ("host:0", "no port 0"),
            ("host:00", "no port 00"),
            ("[::1]:80000", "no port 80000"),
            ("host:123456789012345", "no port 1234567890…"),
            ("host:", "not a number"),
            ("host:-1", "not a number"),
            ("host:+80", "not a number"),
            ("host:80a", "not a number"),
            ("host:８０", "not a number"),
            (":80", "no host"),
            ("", "no host"),
            ("::1:8000", "brackets"),
            ("[::1", "not closed"),
            ("[]:80", "no IPv6"),
            ("[host]:80", "no IPv6"),
            ("[::1]80", "between"),
            ("ho st", "characters"),
            ("hôst", "characters"),
            ("ho%20st", "characters"),
            ("a,b", "characters"),
        ] {
            let why = parse(text).expect_err(text);
            assert!(why.contains(words), "{text}: {why}");
        }
    }
}
