//! Hub repositories, and the default model from the hub.

use std::cell::Cell;
use std::fs;
use std::sync::atomic::Ordering;

use super::server::TestHub;
use super::*;

fn place_with(hub: &TestHub, model: Option<&str>) -> Place {
    let mut place = Place::new();
    place.config.hf_endpoint = Some(hub.endpoint.clone());
    place.config.model = model.map(str::to_owned);
    place
}

#[test]
fn a_repository_file_is_fetched_once_and_then_found_offline() {
    let hub = TestHub::start(&[("o/n/a.gguf", &content()), ("o/n/b.gguf", b"b")]);
    let place = place_with(&hub, Some("o/n:a.gguf"));
    assert_eq!(place.finder().find_local().unwrap(), None);
    let found = place.locate().unwrap();
    assert_eq!(found.source, ModelSource::Hub);
    assert_eq!(found.format, ModelFormat::Gguf);
    assert_eq!(fs::read(&found.path).unwrap(), content());

    let requests = hub.requests().len();
    let again = place.locate().unwrap();
    assert_eq!(
        (again.source, &again.path),
        (ModelSource::Cache, &found.path)
    );
    assert_eq!(hub.requests().len(), requests);
    assert_eq!(place.finder().find_local().unwrap(), Some(again));
}

#[test]
fn errors_of_the_hub_are_explained() {
    let hub = TestHub::start(&[("o/n/a.gguf", b"a")]);
    let report = |model| place_with(&hub, Some(model)).locate().unwrap_err().report();
    let text = report("o/n:z.gguf");
    assert!(text.contains("failed to fetch the model o/n"), "{text}");
    assert!(text.contains("there is no z.gguf in o/n"), "{text}");
    let text = report("o/other");
    assert!(text.contains("there is no repository o/other"), "{text}");
    hub.state.status.store(401, Ordering::SeqCst);
    let text = report("o/n");
    assert!(text.contains("hint: set HF_TOKEN"), "{text}");
    hub.state.status.store(503, Ordering::SeqCst);
    let text = report("o/n:a.gguf");
    assert!(text.contains("503"), "{text}");
}

#[test]
fn a_repository_with_several_ggufs_needs_a_file_name() {
    let hub = TestHub::start(&[
        ("o/one/README.md", b"#"),
        ("o/one/m.gguf", b"m"),
        ("o/two/q4.gguf", b"4"),
        ("o/two/q8.gguf", b"8"),
        ("o/none/README.md", b"#"),
    ]);
    let place = place_with(&hub, Some("o/one"));
    assert_eq!(fs::read(place.locate().unwrap().path).unwrap(), b"m");
    let error = place_with(&hub, Some("o/two")).locate().unwrap_err();
    assert_eq!(error.exit(), Exit::Usage);
    assert!(
        error.report().contains("q4.gguf, q8.gguf"),
        "{}",
        error.report()
    );
    assert!(
        error.report().contains("MODEL=o/two:q4.gguf"),
        "{}",
        error.report()
    );
    let error = place_with(&hub, Some("o/none")).locate().unwrap_err();
    assert!(
        error.report().contains("it has no usable model"),
        "{}",
        error.report()
    );
}

#[test]
fn a_repository_of_safetensors_is_fetched_as_a_folder() {
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    let hub = TestHub::start(&[
        ("o/n/config.json", b"{}"),
        ("o/n/tokenizer.json", b"{} "),
        ("o/n/tokenizer_config.json", b"{}  "),
        ("o/n/model.safetensors.index.json", index),
        ("o/n/model-1.safetensors", b"1"),
        ("o/n/model-2.safetensors", b"22"),
        ("o/n/consolidated.safetensors", b"12"),
        ("o/n/original/model.safetensors", b"x"),
    ]);
    let place = place_with(&hub, Some("o/n"));
    let found = place.locate().unwrap();
    assert_eq!(found.format, ModelFormat::Folder);
    assert_eq!(found.sha256, None);
    assert_eq!(
        folder::files(&found.path).unwrap(),
        [
            "config.json",
            "model-1.safetensors",
            "model-2.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    assert_eq!(place.locate().unwrap().source, ModelSource::Cache);

    // An incomplete folder does not count as cached, but is completed from the hub.
    fs::remove_file(found.path.join("model-2.safetensors")).unwrap();
    assert_eq!(place.finder().find_local().unwrap(), None);
    assert_eq!(place.locate().unwrap().source, ModelSource::Hub);
    assert_eq!(
        fs::read(found.path.join("model-2.safetensors")).unwrap(),
        b"22"
    );
}

#[test]
fn an_interrupted_download_is_resumed() {
    let hub = TestHub::start(&[("o/n/a.gguf", &content())]);
    let place = place_with(&hub, Some("o/n:a.gguf"));
    hub.state.cuts.store(2, Ordering::SeqCst);
    let found = place.locate().unwrap();
    assert_eq!(fs::read(found.path).unwrap(), content());
    let resumed = hub
        .requests()
        .iter()
        .filter(|request| request.ends_with(" 150000-") || request.ends_with(" 225000-"))
        .count();
    assert_eq!(resumed, 2, "{:?}", hub.requests());

    // More interruptions than attempts: the next run resumes.
    let place = place_with(&hub, Some("o/n:a.gguf"));
    hub.state.cuts.store(3, Ordering::SeqCst);
    let error = place.locate().unwrap_err();
    assert_eq!(error.exit(), Exit::Preflight, "{}", error.report());
    assert_eq!(place.finder().find_local().unwrap(), None);
    assert_eq!(fs::read(place.locate().unwrap().path).unwrap(), content());
    assert!(
        hub.requests().last().unwrap().ends_with(" 262500-"),
        "{:?}",
        hub.requests()
    );
}

#[test]
fn a_file_with_a_wrong_digest_is_refused_and_removed() {
    let hub = TestHub::start(&[("o/n/a.gguf", &content())]);
    hub.state.lies.store(1, Ordering::SeqCst);
    let place = place_with(&hub, Some("o/n:a.gguf"));
    let error = place.locate().unwrap_err();
    assert!(
        error.report().contains("wrong digest"),
        "{}",
        error.report()
    );
    assert_eq!(place.finder().find_local().unwrap(), None);
    hub.state.lies.store(0, Ordering::SeqCst);
    assert_eq!(fs::read(place.locate().unwrap().path).unwrap(), content());
}

#[test]
fn the_default_model_is_fetched_from_the_hub_first() {
    let hub = TestHub::start(&[("owner/test/test.gguf", &content())]);
    let place = place_with(&hub, None);
    let found = place.locate().unwrap();
    assert_eq!(found.source, ModelSource::Hub);
    assert_eq!(found.sha256.as_deref(), Some(place.pinned.sha256));
    assert!(
        hub.requests()[0].contains(place.pinned.revision),
        "{:?}",
        hub.requests()
    );
    assert_eq!(place.locate().unwrap().source, ModelSource::Cache);
    assert_eq!(place.calls(), 0);
}

#[test]
fn a_different_file_on_the_hub_is_not_the_default_model() {
    let hub = TestHub::start(&[("owner/test/test.gguf", b"other")]);
    let place = place_with(&hub, None);
    let (found, said) = place.locate_while(&|| false);
    assert_eq!(found.unwrap().source, ModelSource::Package);
    assert!(
        said.iter()
            .any(|line| line.contains("is not the pinned one")),
        "{said:?}"
    );
}

#[test]
fn a_silent_hub_times_out() {
    let hub = TestHub::start(&[("owner/test/test.gguf", &content())]);
    hub.state.status.store(1, Ordering::SeqCst);
    let place = place_with(&hub, None);
    let (found, said) = place.locate_while(&|| false);
    assert_eq!(found.unwrap().source, ModelSource::Package);
    assert!(
        said.iter()
            .any(|line| line.contains("has not responded for 0.5 s")),
        "{said:?}"
    );
}

#[test]
fn a_stalled_download_times_out_and_can_be_interrupted() {
    let hub = TestHub::start(&[("o/n/a.gguf", &content())]);
    hub.state.stalls.store(2, Ordering::SeqCst);
    let place = place_with(&hub, Some("o/n:a.gguf"));
    let error = place.locate().unwrap_err();
    assert!(
        error.report().contains("has not responded"),
        "{}",
        error.report()
    );

    let place = place_with(&hub, Some("o/n:a.gguf"));
    let asked = Cell::new(0);
    let (result, _) = place.locate_while(&|| {
        asked.set(asked.get() + 1);
        asked.get() > 3
    });
    assert_eq!(result.unwrap_err().exit(), Exit::Incomplete);
}

#[test]
fn a_cache_filled_by_the_python_libraries_is_found() {
    // The Python libraries store a snapshot per commit, and no branch if they were asked for a
    // commit.
    let mut place = Place::new();
    let snapshot = place
        .config
        .hf_cache_dir
        .join("models--owner--test/snapshots")
        .join(place.pinned.revision);
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(snapshot.join(place.pinned.file), content()).unwrap();
    place.config.offline = true;
    let found = place.locate().unwrap();
    assert_eq!(found.source, ModelSource::Cache);
    assert_eq!(found.path, snapshot.join(place.pinned.file));
}

#[test]
fn all_parts_of_a_split_model_are_fetched() {
    let hub = TestHub::start(&[
        ("o/n/m-00001-of-00002.gguf", b"one"),
        ("o/n/m-00002-of-00002.gguf", b"two"),
        ("o/two/a-00001-of-00002.gguf", b"1"),
        ("o/two/a-00002-of-00002.gguf", b"2"),
        ("o/two/b.gguf", b"b"),
    ]);
    // Named by any part or not at all, since it is the only model in the repository.
    for model in [
        "o/n:m-00002-of-00002.gguf",
        "o/n:m-00001-of-00002.gguf",
        "o/n",
    ] {
        let place = place_with(&hub, Some(model));
        let found = place.locate().unwrap();
        assert_eq!(found.source, ModelSource::Hub, "{model}");
        assert_eq!(fs::read(&found.path).unwrap(), b"one");
        let second = found.path.with_file_name("m-00002-of-00002.gguf");
        assert_eq!(fs::read(&second).unwrap(), b"two");
        assert_eq!(place.locate().unwrap().source, ModelSource::Cache);

        // The model's digest is computed from its parts' digests.
        let lines = format!("{}\n{}\n", hash::sha256(b"one"), hash::sha256(b"two"));
        let digest = digest(&place.config, &found).unwrap();
        assert_eq!(digest, Some(hash::sha256(lines.as_bytes())));
        assert_eq!(place.locate().unwrap().sha256, digest);

        // If a part is missing, it is downloaded again.
        fs::remove_file(&second).unwrap();
        assert_eq!(place.finder().find_local().unwrap(), None);
        assert_eq!(place.locate().unwrap().source, ModelSource::Hub);
        assert!(second.is_file());
    }
    let report = place_with(&hub, Some("o/two"))
        .locate()
        .unwrap_err()
        .report();
    assert!(
        report.contains("several models: a-00001-of-00002.gguf, b.gguf"),
        "{report}"
    );
}
