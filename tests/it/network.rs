//! How `MODE=remote` reaches its server, end to end: proxies, certificates, headers, members that the
//! server does not take, servers that are still loading, and what `doctor` says of all that.

use std::io::Write;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::proxy::{Kind, Proxy};
use crate::common::server::{Act, Server, json_answer, raw, sound};
use crate::common::{Printed, Workspace, run};
use assert_cmd::Command;
use serde_json::{Value, json};

/// A run of one flow (three steps) on this endpoint, which tries everything once.
fn at(workspace: &Workspace, endpoint: &str) -> Command {
    let mut command = workspace.flowbench(&["run"]);
    command.envs([
        ("MODE", "remote"),
        ("TEMPLATE", "chain"),
        ("NUM_FLOWS", "1"),
        ("ENDPOINT", endpoint),
        ("MAX_ATTEMPTS", "1"),
        ("RETRY_DELAY", "0.001"),
    ]);
    command
}

#[track_caller]
fn expect(printed: &Printed, code: i32, words: &[&str]) {
    assert_eq!(printed.code, code, "{}", printed.err);
    for word in words {
        assert!(
            printed.err.contains(word),
            "{word:?} is not in {}",
            printed.err
        );
    }
    assert!(!printed.err.contains("panicked"), "{}", printed.err);
}

/// Everything that a run left behind.
fn kept(workspace: &Workspace) -> String {
    let folder = workspace.run_folder();
    let files = std::fs::read_dir(folder).expect("readable");
    let texts = files.map(|file| std::fs::read(file.expect("readable").path()).unwrap_or_default());
    texts
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .collect()
}

#[test]
fn a_port_out_of_range_is_no_url() {
    for (endpoint, words) in [
        (
            "http://127.0.0.1:80000/v1",
            "ENDPOINT is not a URL: there is no port 80000",
        ),
        (
            "http://127.0.0.1:0/v1",
            "ENDPOINT is not a URL: there is no port 0",
        ),
        (
            "localhost:8000/v1",
            "ENDPOINT is not a URL: it has no scheme",
        ),
    ] {
        expect(
            &run(&mut at(&Workspace::new(), endpoint)),
            2,
            &[words, "hint: ENDPOINT"],
        );
    }
}

// Members.

/// A server that takes none of these members.
fn without(refused: &'static [&'static str]) -> Server {
    Server::start(move |request| {
        let member = refused
            .iter()
            .find(|name| !request.body[**name].is_null())?;
        let message = format!("Unsupported parameter: '{member}'");
        Some(vec![json_answer(
            400,
            &json!({"error": {"message": message}}),
        )])
    })
}

#[test]
fn members_that_a_server_does_not_take_are_left_out_or_renamed() {
    let server = without(&[
        "max_tokens",
        "seed",
        "stream_options",
        "temperature",
        "top_p",
    ]);
    let workspace = Workspace::new();
    expect(
        &run(&mut at(&workspace, &server.endpoint())),
        4,
        &[
            "Unsupported parameter",
            "ENDPOINT_EXTRA can drop a field ({",
        ],
    );
    let extra = r#"{"max_tokens": {"rename": "max_completion_tokens"}, "seed": null,
                    "stream_options": null, "temperature": null, "top_p": null, "model": "other"}"#;
    let workspace = Workspace::new();
    let printed = run(at(&workspace, &server.endpoint()).env("ENDPOINT_EXTRA", extra));
    expect(&printed, 0, &[]);
    let post = server.posts().pop().expect("three");
    let mut members: Vec<&String> = post.body.as_object().expect("an object").keys().collect();
    members.sort();
    assert_eq!(
        members,
        ["max_completion_tokens", "messages", "model", "stream"]
    );
    assert_eq!(post.body["max_completion_tokens"], 12);
    let record = workspace.record();
    assert_eq!(record["engine"]["model"], "other");
    let kept = &record["settings"]["remote"]["endpoint_extra"];
    assert_eq!(
        kept["max_tokens"],
        json!({"rename": "max_completion_tokens"})
    );
    assert_eq!(kept["seed"], Value::Null);

    for extra in [
        r#"{"stream": false}"#,
        r#"{"messages": []}"#,
        r#"{"prompt": null}"#,
    ] {
        let printed = run(at(&Workspace::new(), &server.endpoint()).env("ENDPOINT_EXTRA", extra));
        expect(&printed, 2, &["cannot be changed"]);
    }
}

// Headers.

#[test]
fn headers_are_sent_and_their_values_are_not_kept() {
    // The server quotes what it does not like, whole and cut short.
    let server = Server::start(|request| {
        let key = request.header("api-key").unwrap_or_default();
        let known = key == "canary-5f3e-key" && request.header("x-team") == Some("a canary-team");
        let long = format!("{}{key}", "x".repeat(193));
        let quoted = match request.number {
            1 => format!("wrong api-key {key} of the team canary-team"),
            _ => long,
        };
        let fails = !known || request.number > 0 && request.method == "POST";
        fails.then(|| vec![json_answer(401, &json!({"error": {"message": quoted}}))])
    });
    let workspace = Workspace::new();
    let printed = run(at(&workspace, &server.endpoint())
        .env("NUM_FLOWS", "2")
        .env("PROFILE", "1")
        .env("CONCURRENCY", "1")
        .env("AZURE_KEY", "canary-5f3e-key\n")
        .env(
            "ENDPOINT_HEADERS",
            r#"{"api-key": "$AZURE_KEY", "X-Team": "a canary-team", "User-Agent": "mine"}"#,
        ));
    expect(
        &printed,
        100,
        &["wrong api-key [AZURE_KEY] of the team [X-Team]"],
    );
    assert!(printed.err.contains("x[AZURE_KEY]…"), "{}", printed.err);
    let posts = server.posts();
    assert_eq!(posts[0].header("user-agent"), Some("mine"));
    assert_eq!(posts[0].header("authorization"), None);
    for text in [&printed.out, &printed.err, &kept(&workspace)] {
        assert!(!text.contains("canary"), "{text}");
    }
    let names = &workspace.record()["settings"]["remote"]["endpoint_headers"];
    assert_eq!(names, &json!(["user-agent", "x-team", "api-key"]));
}

#[test]
fn headers_that_cannot_be_sent_are_refused() {
    let server = Server::sound();
    for (headers, words) in [
        (
            r#"{"api-key": "$NO_SUCH_KEY"}"#,
            "the variable NO_SUCH_KEY, which is not set",
        ),
        (r#"{"Host": "canary"}"#, "Host, which cannot be set"),
        (
            r#"{"content-length": "1"}"#,
            "content-length, which cannot be set",
        ),
        (
            r#"{"Transfer-Encoding": "chunked"}"#,
            "Transfer-Encoding, which cannot be set",
        ),
        (r#"{"a b": "canary"}"#, "no header's name"),
        (
            r#"{"x": "canary\r\ny: 1"}"#,
            "characters that a header cannot hold",
        ),
        ("canary", "not a JSON object"),
    ] {
        let printed =
            run(at(&Workspace::new(), &server.endpoint()).env("ENDPOINT_HEADERS", headers));
        expect(&printed, 2, &[words, "hint: "]);
        assert!(!printed.err.contains("canary"), "{}", printed.err);
    }
    let both = [
        ("API_KEY", "canary-1"),
        ("ENDPOINT_HEADERS", r#"{"authorization": "Basic canary-2"}"#),
    ];
    let printed = run(at(&Workspace::new(), &server.endpoint()).envs(both));
    expect(
        &printed,
        2,
        &["API_KEY and ENDPOINT_HEADERS both give Authorization"],
    );
    assert!(server.received().is_empty());
    let help = run(Workspace::new()
        .flowbench(&["run", "--help"])
        .env("ENDPOINT_HEADERS", "canary"));
    assert!(!help.out.contains("canary"));
}

// Listings.

#[test]
fn a_named_model_needs_no_listing() {
    for status in [400, 401, 403, 404, 405, 500, 501] {
        let server = Server::start(move |request| {
            let answer = json_answer(status, &json!({"error": {"message": "no listing"}}));
            (request.method == "GET").then(|| vec![answer])
        });
        let workspace = Workspace::new();
        let printed = run(at(&workspace, &server.endpoint()).env("MODEL", "m"));
        expect(
            &printed,
            0,
            &["[PROGRESS] the server lists no models", "no listing"],
        );
        assert_eq!(workspace.record()["engine"]["model"], "m");
        let printed = run(&mut at(&Workspace::new(), &server.endpoint()));
        expect(&printed, 3, &["set MODEL (--model) to its name"]);
    }
    // A gateway without a server behind it is none that lacks a listing.
    let server = Server::start(|_| Some(vec![raw(503, "text/plain", &[], b"loading")]));
    let printed = run(at(&Workspace::new(), &server.endpoint()).env("MODEL", "m"));
    expect(
        &printed,
        3,
        &["503", "hint: to wait for a server", "WAIT_READY"],
    );
}

#[test]
fn a_wrong_key_is_found_by_the_first_request() {
    let server = Server::start(|_| {
        Some(vec![json_answer(
            401,
            &json!({"error": {"message": "no such key"}}),
        )])
    });
    let workspace = Workspace::new();
    let settings = [
        ("MODEL", "m"),
        ("API_KEY", "wrong-key"),
        ("MAX_ATTEMPTS", "4"),
    ];
    let printed = run(at(&workspace, &server.endpoint()).envs(settings));
    expect(
        &printed,
        4,
        &["401 Unauthorized: no such key", "set API_KEY"],
    );
    assert_eq!(server.posts().len(), 1);
}

// Loading.

#[test]
fn a_server_that_is_loading_is_waited_for() {
    let begun = Instant::now();
    let server = Server::start(move |request| {
        let spent = begun.elapsed();
        let answer = |status, body: Value| Some(vec![json_answer(status, &body)]);
        if spent < Duration::from_millis(400) {
            return answer(
                503,
                json!({"error": {"message": "Loading model", "code": 503}}),
            );
        }
        if spent < Duration::from_millis(800) {
            return answer(200, json!({"status": "loading model"}));
        }
        // llama.cpp's lists its models while it loads one.
        if spent < Duration::from_millis(1200) && request.path == "/health" {
            return answer(503, json!({"error": {"message": "Loading model"}}));
        }
        None
    });
    let workspace = Workspace::new();
    let printed = run(at(&workspace, &server.endpoint()).env("WAIT_READY", "60"));
    expect(
        &printed,
        0,
        &[
            "Waiting for the server (0 of 60 s): the server answered 503",
            "GET /models: loading model",
            "GET /health: the server answered 503",
            "Ready after 1.",
        ],
    );
    assert_eq!(workspace.record()["totals"]["remote"]["start_attempts"], 1);
    assert!(workspace.record()["engine_init_ms"].as_f64() < Some(1000.0));
}

#[test]
fn a_server_that_is_not_there_yet_is_waited_for() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = free.local_addr().expect("bound");
    drop(free);
    let later = thread::spawn(move || {
        thread::sleep(Duration::from_millis(500));
        Server::listen(
            TcpListener::bind(address).expect("still free"),
            None,
            |_| None,
        )
    });
    let endpoint = format!("http://{address}/v1");
    let printed = run(at(&Workspace::new(), &endpoint).env("WAIT_READY", "60"));
    expect(&printed, 0, &["Connection refused", "Ready after"]);
    drop(later.join());

    let gone = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}/v1", gone.local_addr().expect("bound"));
    // It takes connections and says nothing.
    let printed = run(at(&Workspace::new(), &endpoint).env("WAIT_READY", "0.3"));
    expect(
        &printed,
        3,
        &[
            "not ready within 0.3 s (WAIT_READY)",
            "took too long",
            "hint: ",
        ],
    );
    drop(gone);
    let workspace = Workspace::new();
    let printed = run(at(&workspace, &endpoint).env("WAIT_READY", "0.3"));
    expect(
        &printed,
        3,
        &["not ready within 0.3 s (WAIT_READY)", "Connection refused"],
    );
    let left = std::fs::read_dir(workspace.file("results"))
        .expect("made")
        .count();
    assert_eq!(left, 0, "nothing was measured");
    let printed = run(at(&Workspace::new(), &endpoint).env("WAIT_READY", "-1"));
    expect(&printed, 2, &["WAIT_READY"]);
}

#[test]
fn an_interrupt_ends_the_wait() {
    let silent = Server::start(|_| Some(vec![Act::Hang]));
    let workspace = Workspace::new();
    let mut child = workspace
        .child(&[
            ("MODE", "remote"),
            ("ENDPOINT", &silent.endpoint()),
            ("WAIT_READY", "600"),
        ])
        .spawn()
        .expect("starts");
    while silent.received().is_empty() {
        thread::sleep(Duration::from_millis(5));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    assert_eq!(child.wait().expect("ends").code(), Some(106));
}

// Proxies.

#[test]
fn a_plain_request_goes_to_the_proxy_with_its_whole_url() {
    let server = Server::sound();
    let proxy = Proxy::start(Kind::Http);
    let workspace = Workspace::new();
    let url = format!("http://user:canary%40word@{}", proxy.address());
    let endpoint = format!("{}?k=1", server.endpoint().replace("/v1", "/a/v1"));
    let printed = run(at(&workspace, &endpoint).env("http_proxy", &url));
    expect(
        &printed,
        3,
        &["404 Not Found: Not Found (through the proxy http://127.0.0.1:"],
    );
    let heads = proxy.asked();
    let origin = server.endpoint().replace("/v1", "");
    assert!(
        heads[0].starts_with(&format!("GET {origin}/a/v1/models?k=1 HTTP/1.1\r\n")),
        "{heads:?}"
    );

    let workspace = Workspace::new();
    let printed = run(at(&workspace, &server.endpoint()).env("HTTP_PROXY", &url));
    expect(&printed, 0, &[]);
    assert!(
        printed.err.contains("[PROGRESS] Proxy http://127.0.0.1:"),
        "{}",
        printed.err
    );
    let heads = proxy.asked();
    let posts: Vec<&String> = heads
        .iter()
        .filter(|head| head.starts_with("POST "))
        .collect();
    assert_eq!(posts.len(), 3);
    for head in posts {
        assert!(
            head.starts_with(&format!("POST {origin}/v1/chat/completions HTTP/1.1\r\n")),
            "{head}"
        );
        let lower = head.to_ascii_lowercase();
        assert!(lower.contains(&format!(
            "host: {}\r\n",
            origin.trim_start_matches("http://")
        )));
        // user:canary@word
        assert!(head.contains("Basic dXNlcjpjYW5hcnlAd29yZA=="), "{head}");
    }
    let shown = format!("http://{}", proxy.address());
    assert_eq!(workspace.record()["settings"]["remote"]["proxy"], shown);
    for text in [&printed.out, &printed.err, &kept(&workspace)] {
        assert!(
            !text.contains("canary") && !text.contains("dXNlcjpj"),
            "{text}"
        );
    }
}

#[test]
fn which_proxy_is_used_is_as_curl_has_it() {
    let server = Server::sound();
    for (settings, used) in [
        (&[("HTTPS_PROXY", "P")][..], false),
        (&[("HTTP_PROXY", "P")], true),
        (&[("ALL_PROXY", "P")], true),
        (&[("all_proxy", "P"), ("http_proxy", "")], true),
        (
            &[("HTTP_PROXY", "P"), ("NO_PROXY", "localhost, 127.0.0.1")],
            false,
        ),
        (&[("HTTP_PROXY", "P"), ("NO_PROXY", "127.0.0.0/8")], false),
        (&[("HTTP_PROXY", "P"), ("no_proxy", "*")], false),
        (
            &[("HTTP_PROXY", "P"), ("no_proxy", "127.0.0.1:1, 10.0.0.0/8")],
            true,
        ),
        (
            &[("HTTP_PROXY", "ftp://P"), ("NO_PROXY", "127.0.0.1")],
            false,
        ),
    ] {
        let proxy = Proxy::start(Kind::Http);
        let settings = settings
            .iter()
            .map(|(name, value)| (*name, value.replace('P', &proxy.address())));
        let printed = run(at(&Workspace::new(), &server.endpoint()).envs(settings.clone()));
        expect(&printed, 0, &[]);
        let settings: Vec<_> = settings.collect();
        assert_eq!(!proxy.asked().is_empty(), used, "{settings:?}");
    }
    let printed = run(at(&Workspace::new(), &server.endpoint()).env("http_proxy", "ftp://canary"));
    expect(
        &printed,
        2,
        &["http_proxy is not the URL of a proxy", "hint: "],
    );
    assert!(!printed.err.contains("canary"));
}

#[test]
fn a_socks_proxy_makes_a_tunnel() {
    let server = Server::sound();
    let proxy = Proxy::start(Kind::Socks);
    let endpoint = server.endpoint().replace("127.0.0.1", "localhost");
    for (scheme, host) in [("socks5", "127.0.0.1"), ("socks5h", "localhost")] {
        let url = format!("{scheme}://{}", proxy.address());
        expect(
            &run(at(&Workspace::new(), &endpoint).env("all_proxy", url)),
            0,
            &[],
        );
        let last = proxy.asked().pop().expect("asked");
        assert_eq!(last, format!("{host}:{}", server.port()));
    }
}

#[test]
fn what_a_proxy_does_wrong_is_told_of_the_proxy() {
    let server = Server::sound();
    let gone = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = gone.local_addr().expect("bound").to_string();
    drop(gone);
    let named = format!("the proxy http://{address} (HTTP_PROXY)");
    // At once, as a certificate is.
    let printed = run(at(&Workspace::new(), &server.endpoint())
        .env("HTTP_PROXY", &address)
        .envs([("MAX_ATTEMPTS", "9"), ("RETRY_DELAY", "60")]));
    expect(
        &printed,
        3,
        &[&named, "Connection refused", "hint: is the proxy running?"],
    );
    for (status, words) in [
        (407, "requires a user name and a password (407)"),
        (403, "403 Forbidden (through the proxy http://"),
        (502, "502 Bad Gateway (through the proxy http://"),
    ] {
        let proxy = Proxy::start(Kind::Refuse(status));
        let run = run(at(&Workspace::new(), &server.endpoint()).env("http_proxy", proxy.address()));
        expect(&run, 3, &[words, "hint: "]);
        let secure = server.endpoint().replace("http:", "https:");
        let run =
            crate::common::run(at(&Workspace::new(), &secure).env("https_proxy", proxy.address()));
        expect(
            &run,
            3,
            &[
                &format!("opened no tunnel to {secure}: it answered {status}"),
                "hint: ",
            ],
        );
        let heads = proxy.asked();
        assert!(
            heads
                .last()
                .is_some_and(|head| head.starts_with("CONNECT 127.0.0.1:")),
            "{heads:?}"
        );
    }
}

// Certificates.

/// An authority, and a server's certificate from it.
struct Authority {
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::new([]).expect("no names");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("a key");
        let issuer = rcgen::CertifiedIssuer::self_signed(params, key).expect("an authority");
        Self { issuer }
    }

    fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// TLS of a server with a certificate for these names, which ends with this year.
    fn server(&self, names: &[&str], last_year: i32) -> Arc<rustls::ServerConfig> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).expect("names");
        params.not_after = rcgen::date_time_ymd(last_year, 12, 31);
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        tls(certificate.der().to_vec(), &key)
    }
}

fn tls(certificate: Vec<u8>, key: &rcgen::KeyPair) -> Arc<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.into()], key)
        .expect("a pair");
    Arc::new(config)
}

fn localhost(server: &Server) -> String {
    server.endpoint().replace("127.0.0.1", "localhost")
}

#[test]
fn a_private_authority_is_trusted_by_variable() {
    let authority = Authority::new();
    let server = Server::start_tls(authority.server(&["localhost", "127.0.0.1"], 2100), |_| {
        None
    });
    let workspace = Workspace::new();
    workspace.write("ca.pem", authority.pem());
    workspace.write("certs/1234abcd.0", authority.pem());
    for (name, path) in [
        ("SSL_CERT_FILE", "ca.pem"),
        ("SSL_CERT_DIR", "nowhere:certs"),
    ] {
        for endpoint in [localhost(&server), server.endpoint()] {
            let printed = run(at(&workspace, &endpoint).env(name, path));
            expect(&printed, 0, &[]);
        }
    }
    // Through a tunnel, too.
    let proxy = Proxy::start(Kind::Http);
    let printed = run(at(&workspace, &localhost(&server))
        .env("SSL_CERT_FILE", "ca.pem")
        .env("HTTPS_PROXY", format!("http://{}", proxy.address())));
    expect(&printed, 0, &[]);
    let tunnel = format!("CONNECT localhost:{} HTTP/1.1\r\n", server.port());
    assert!(
        proxy.asked().iter().all(|head| head.starts_with(&tunnel)),
        "{:?}",
        proxy.asked()
    );
    assert!(!proxy.asked().is_empty());

    // At once, and as what it is.
    let mut untrusted = at(&workspace, &localhost(&server));
    untrusted.envs([
        ("MAX_ATTEMPTS", "9"),
        ("RETRY_DELAY", "60"),
        ("WAIT_READY", "60"),
    ]);
    let words = [
        "the certificate of https://localhost:",
        "is signed by an authority that is not trusted here",
        "hint: set SSL_CERT_FILE to",
    ];
    expect(&run(&mut untrusted), 3, &words);
    expect(&run(untrusted.env("WAIT_READY", "0")), 3, &words);
    for (value, words) in [
        ("nowhere.pem", "SSL_CERT_FILE (nowhere.pem)"),
        ("steps", "SSL_CERT_FILE"),
    ] {
        let printed = run(at(&workspace, &localhost(&server)).env("SSL_CERT_FILE", value));
        expect(
            &printed,
            3,
            &[words, "hint: SSL_CERT_FILE must be a PEM file"],
        );
    }
    // Where there is no TLS, no certificate is read.
    let plain = Server::sound();
    let printed = run(at(&Workspace::new(), &plain.endpoint()).env("SSL_CERT_FILE", "nowhere.pem"));
    expect(&printed, 0, &[]);
}

#[test]
fn a_self_signed_certificate_is_trusted_by_itself() {
    for (is_ca, untrusted) in [
        (rcgen::IsCa::NoCa, "an authority that is not trusted here"),
        (
            rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained),
            "is self-signed, and is not trusted here",
        ),
    ] {
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a name");
        // As `openssl req -x509` makes it.
        params.is_ca = is_ca;
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let server = Server::start_tls(tls(certificate.der().to_vec(), &key), |_| None);
        let workspace = Workspace::new();
        workspace.write("own.pem", certificate.pem());
        let mut command = at(&workspace, &localhost(&server));
        expect(
            &run(&mut command),
            3,
            &[untrusted, "hint: set SSL_CERT_FILE to"],
        );
        expect(&run(command.env("SSL_CERT_FILE", "own.pem")), 0, &[]);
        // It is for no other host.
        let printed = run(at(&workspace, &server.endpoint()).env("SSL_CERT_FILE", "own.pem"));
        expect(
            &printed,
            3,
            &["is for another host than ENDPOINT names: localhost\n"],
        );
        // Nor is another one with it.
        let other = Server::start_tls(Authority::new().server(&["localhost"], 2100), |_| None);
        let printed = run(at(&workspace, &localhost(&other)).env("SSL_CERT_FILE", "own.pem"));
        expect(&printed, 3, &["the certificate of https://localhost:"]);
    }
}

#[test]
fn what_is_wrong_with_a_certificate_is_told() {
    let authority = Authority::new();
    let workspace = Workspace::new();
    workspace.write("ca.pem", authority.pem());
    for (names, year, words) in [
        (
            &["localhost"][..],
            2020,
            "has expired at 2020-12-31T00:00:00Z",
        ),
        (
            &["other.example"],
            2100,
            "is for another host than ENDPOINT names: ",
        ),
        (&[], 2100, "names no host (it has no subjectAltName)"),
    ] {
        let server = Server::start_tls(authority.server(names, year), |_| None);
        let settings = [
            ("SSL_CERT_FILE", "ca.pem"),
            ("MAX_ATTEMPTS", "9"),
            ("RETRY_DELAY", "60"),
        ];
        let printed = run(at(&workspace, &localhost(&server)).envs(settings));
        expect(&printed, 3, &[words, "hint: "]);
    }
    // No TLS where TLS is expected, and the other way round.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("https://{}/v1", listener.local_addr().expect("bound"));
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let printed = run(&mut at(&workspace, &endpoint));
    expect(&printed, 3, &["does not speak TLS", "should ENDPOINT"]);
    let silent = Server::sound().endpoint().replace("http:", "https:");
    let printed = run(&mut at(&workspace, &silent));
    expect(
        &printed,
        3,
        &[
            "closed during the TLS handshake",
            "hint: does the server speak TLS",
        ],
    );
    let secure = Server::start_tls(authority.server(&["localhost"], 2100), |_| None);
    let endpoint = localhost(&secure).replace("https:", "http:");
    let printed = run(at(&workspace, &endpoint).env("MODEL", "m"));
    expect(&printed, 3, &["hint: "]);
}

// doctor.

#[test]
fn doctor_asks_the_server() {
    let server = Server::start(|request| match request.path.as_str() {
        "/v1/models" => Some(vec![json_answer(
            200,
            &json!({"data": [{"id": "a"}, {"id": "b"}]}),
        )]),
        _ => Some(sound(request)),
    });
    let workspace = Workspace::new();
    let doctor = |settings: &[(&str, &str)]| {
        run(workspace
            .flowbench(&["doctor"])
            .envs(settings.iter().copied()))
    };
    let endpoint = server.endpoint();
    let printed = doctor(&[("ENDPOINT", &endpoint), ("MODEL", "a")]);
    assert_eq!(printed.code, 0, "{}", printed.out);
    for line in [
        format!("ok    endpoint   {endpoint} answers ("),
        "ok    model      a, one of 2 that the server lists\n".to_owned(),
    ] {
        assert!(
            printed.out.contains(&line),
            "{line} is not in {}",
            printed.out
        );
    }
    assert!(!printed.out.contains("gpu"), "{}", printed.out);
    let several = doctor(&[("ENDPOINT", &endpoint), ("MODE", "remote")]);
    assert_eq!(several.code, 3, "{}", several.out);
    assert!(
        several
            .out
            .contains("fail  model      the server lists 2 models: a, b")
    );
    assert!(server.posts().is_empty(), "nothing is generated");

    let none = doctor(&[("MODE", "remote")]);
    expect(&none, 2, &["ENDPOINT is not set"]);
    let gone = doctor(&[
        ("ENDPOINT", "http://127.0.0.1:1/v1"),
        ("HTTP_PROXY", "127.0.0.1:1"),
    ]);
    assert_eq!(gone.code, 3, "{}", gone.out);
    assert!(
        gone.out
            .contains("ok    proxy      the proxy http://127.0.0.1:1 (HTTP_PROXY)")
    );
    assert!(
        gone.out
            .contains("fail  endpoint   no connection to the proxy http://127.0.0.1:1")
    );

    let authority = Authority::new();
    workspace.write("ca.pem", authority.pem());
    let secure = Server::start_tls(authority.server(&["localhost"], 2100), |_| None);
    let endpoint = localhost(&secure);
    let trusted = doctor(&[("ENDPOINT", &endpoint), ("SSL_CERT_FILE", "ca.pem")]);
    assert_eq!(trusted.code, 0, "{}", trusted.out);
    let line =
        "ok    tls        its certificate is trusted by SSL_CERT_FILE (ca.pem), 1 certificate\n";
    assert!(trusted.out.contains(line), "{}", trusted.out);
    let untrusted = doctor(&[("ENDPOINT", &endpoint)]);
    assert_eq!(untrusted.code, 3, "{}", untrusted.out);
    assert!(
        untrusted
            .out
            .contains("fail  endpoint   the certificate of https://localhost:")
    );
}
