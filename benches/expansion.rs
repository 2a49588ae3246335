//! Expansion of 25 flows with prompts of about 2.6 KB, cold and cached, and its growth with the number of
//! flows.
//!
//! `FLOWBENCH_LARGE=1 cargo bench --bench expansion` also measures 100,000 flows (400 MB).

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use flowbench::config::Layout;
use flowbench::flow::{ExpandRequest, Expansion, expand};

const TEMPLATE: &str = r#"schema = 1
name = "bench"
suite = "bench.suite.jsonl"
fixture = { dir = "code", include = ["**/*.py"] }
system = """You review code. The code base:
{{ fixture.text }}"""

[[step]]
id = "planner"
prompt = "{{ row.task }} Plan how you will look for it."
max_tokens = 48

[[step]]
id = "executor"
needs = ["planner"]
context = "append"
prompt = "Carry the plan out: ${steps.planner.text}"

[[step]]
id = "verifier"
needs = ["executor"]
prompt = "Task: {{ row.task }}\nAnswer: ${steps.executor.text}\nIs it right?"
"#;

/// Creates a project with a system message of about `bytes` bytes.
fn project(root: &Path, bytes: usize) -> Layout {
    let write = |path: &str, text: String| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("it has a folder")).expect("a folder");
        fs::write(path, text).expect("a file is written");
    };
    let suite =
        (1..=25).map(|row| format!("{{\"id\": \"task-{row}\", \"task\": \"Find bug {row}.\"}}\n"));
    write("templates/bench.toml", TEMPLATE.into());
    write("templates/bench.suite.jsonl", suite.collect());
    for file in 0..4 {
        let line = "    return total * rate if total > limit else 0\n";
        let text = line.repeat((bytes / 4).div_ceil(line.len()));
        write(&format!("fixtures/code/module{file}.py"), text);
    }
    Layout { root: root.into() }
}

fn run(layout: &Layout, num_flows: usize, load: bool) -> Expansion {
    expand(&ExpandRequest {
        layout,
        template: "bench",
        num_flows: Some(num_flows),
        params: &[],
        input: None,
        use_cache: true,
        load,
        on_wait: &|_| Ok(()),
        proceed: &|| Ok(()),
    })
    .expect("the template is right")
}

/// Removes the flows and their cache.
fn clear(layout: &Layout) {
    let flows = layout.flows();
    if flows.exists() {
        fs::remove_dir_all(flows).expect("flows/ is removed");
    }
}

fn twenty_five(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let layout = project(folder.path(), 2400);
    criterion.bench_function("25 flows cold", |bencher| {
        let cold = |()| black_box(run(&layout, 25, true));
        bencher.iter_batched(|| clear(&layout), cold, BatchSize::PerIteration);
    });
    run(&layout, 25, true);
    criterion.bench_function("25 flows cached", |bencher| {
        bencher.iter(|| black_box(run(&layout, 25, true)));
    });
}

/// Uses an in-memory file system if there is one: ext4 skips inodes that were deleted in the last
/// minute one by one, so each sample would pay for the previous one.
fn growth(criterion: &mut Criterion) {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    let folder = folder.expect("a temporary folder");
    let layout = project(folder.path(), 100);
    let mut group = criterion.benchmark_group("small flows");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(3));
    let mut sizes = vec![1_000, 10_000];
    if std::env::var_os("FLOWBENCH_LARGE").is_some() {
        sizes.push(100_000);
    }
    for flows in sizes {
        group.bench_function(format!("{flows} cold"), |bencher| {
            let cold = |()| black_box(run(&layout, flows, false));
            bencher.iter_batched(|| clear(&layout), cold, BatchSize::PerIteration);
        });
        group.bench_function(format!("{flows} cached"), |bencher| {
            bencher.iter(|| black_box(run(&layout, flows, false)));
        });
    }
    group.finish();
}

criterion_group!(benches, twenty_five, growth);
criterion_main!(benches);
