//! Who may ask: the `Host` header against DNS rebinding, and the key.

use std::net::IpAddr;

use axum::http::{HeaderMap, header};

use super::errors::{ApiError, ApiResult};

#[derive(Debug, Clone, Default)]
pub(super) struct Access {
    /// `None`: any key, or none, will do.
    pub(super) key: Option<String>,
    /// Names of this server besides localhost, in lower case.
    pub(super) hosts: Vec<String>,
}

impl Access {
    /// Checks that a request was meant for this server. A page in a browser can let its own host's name point
    /// to 127.0.0.1, but then the header has that name.
    ///
    /// # Errors
    /// 403.
    pub(super) fn check_host(&self, headers: &HeaderMap) -> ApiResult<()> {
        let Some(value) = headers.get(header::HOST) else {
            return Ok(());
        };
        let text = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
        let host = without_port(&text);
        let is_local = host == "localhost" || host.ends_with(".localhost");
        let address = host.trim_start_matches('[').trim_end_matches(']');
        if is_local
            || address.parse::<IpAddr>().is_ok()
            || self.hosts.iter().any(|known| known == host)
        {
            return Ok(());
        }
        Err(ApiError::other_host(host))
    }

    /// # Errors
    /// 401.
    pub(super) fn check_key(&self, headers: &HeaderMap) -> ApiResult<()> {
        let Some(key) = &self.key else {
            return Ok(());
        };
        let given = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, given)| given.trim());
        match given {
            Some(given) if is_same(given.as_bytes(), key.as_bytes()) => Ok(()),
            _ => Err(ApiError::wrong_key()),
        }
    }
}

/// Compares in a time that does not depend on where they differ.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    let differences = one
        .iter()
        .zip(other)
        .fold(0, |all, (one, other)| all | (one ^ other));
    one.len() == other.len() && differences == 0
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        let value = HeaderValue::from_str(value).expect("a value");
        [(name, value)].into_iter().collect()
    }

    #[test]
    fn only_names_of_this_machine_are_hosts() {
        let access = Access {
            hosts: vec!["bench.lan".to_owned()],
            ..Access::default()
        };
        for host in [
            "localhost",
            "LOCALHOST:8000",
            "a.localhost",
            "127.0.0.1:8000",
            "[::1]:8000",
            "[::1]",
            "192.168.0.7:80",
            "bench.lan:8000",
        ] {
            assert!(
                access.check_host(&headers(header::HOST, host)).is_ok(),
                "{host}"
            );
        }
        for host in [
            "evil.example",
            "evil.example:8000",
            "localhost.evil.example",
            "",
            "127.0.0.1.nip.io",
        ] {
            assert!(
                access.check_host(&headers(header::HOST, host)).is_err(),
                "{host}"
            );
        }
        assert!(access.check_host(&HeaderMap::new()).is_ok());
    }

    #[test]
    fn the_key_is_a_bearer_token() {
        let access = Access {
            key: Some("secret".to_owned()),
            ..Access::default()
        };
        let check = |value: &str| access.check_key(&headers(header::AUTHORIZATION, value));
        assert!(check("Bearer secret").is_ok());
        assert!(check("bearer secret").is_ok());
        for wrong in [
            "Bearer secre",
            "Bearer secrets",
            "Basic secret",
            "secret",
            "Bearer",
        ] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
        assert!(access.check_key(&HeaderMap::new()).is_err());
        assert!(Access::default().check_key(&HeaderMap::new()).is_ok());
    }
}
