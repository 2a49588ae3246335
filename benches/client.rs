//! How long after a server has written a first token its time is on the record, with 1 and 25 requests in flight.
//!
//! `cargo bench --bench client`

use std::time::Duration;

#[expect(dead_code, unused_imports, reason = "the tests use the rest")]
#[path = "../tests/it/common/mod.rs"]
mod common;
#[path = "../tests/support/default_model.rs"]
mod default_model;

use common::server::{Act, Server, USAGE, WORDS, answer};
use common::{Workspace, run};

#[expect(clippy::print_stdout, reason = "what a benchmark is for")]
fn main() {
    const PAUSE: Duration = Duration::from_millis(20);
    let server = Server::start(move |request| {
        let mut acts = vec![Act::Wait(PAUSE)];
        acts.extend(answer(&WORDS, Some(USAGE)));
        (request.method == "POST").then_some(acts)
    });
    for concurrency in ["1", "25"] {
        let workspace = Workspace::new();
        let printed = run(workspace
            .flowbench(&["run", "--mode", "remote", "--template", "chain"])
            .args(["--num-flows", "25", "--concurrency", concurrency])
            .args(["--endpoint", &server.endpoint()])
            .env("QUIET", "1"));
        assert_eq!(printed.code, 0, "{}", printed.err);
        let mut added: Vec<f64> = (workspace.steps().iter())
            .filter_map(|step| Some(step["ttft_ms"].as_f64()? - PAUSE.as_secs_f64() * 1e3))
            .collect();
        added.sort_by(f64::total_cmp);
        println!(
            "{concurrency} in flight: time to first token beyond the server's {PAUSE:?}: \
             median {:.3} ms, least {:.3}, most {:.3}",
            added[added.len() / 2],
            added[0],
            added[added.len() - 1]
        );
    }
}
