//! Repositories of the hub, and the default model from there.

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
fn a_file_of_a_repository_is_fetched_and_then_found_without_the_hub() {
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
fn what_the_hub_does_not_have_is_named() {
    let hub = TestHub::start(&[("o/n/a.gguf", b"a")]);
    let report = |model| place_with(&hub, Some(model)).locate().unwrap_err().report();
    let text = report("o/n:z.gguf");
    assert!(text.contains("failed to fetch the model o/n"), "{text}");
    assert!(text.contains("there is no z.gguf in o/n"), "{text}");
    let text = report("o/other");
    assert!(text.contains("there is no repository o/other"), "{text}");
    hub.state.status.store(401, Ordering::SeqCst);
    let text = report("o/n");
    assert!(text.contains("hint: HF_TOKEN"), "{text}");
    hub.state.status.store(503, Ordering::SeqCst);
    let text = report("o/n:a.gguf");
    assert!(text.contains("503"), "{text}");
}

#[test]
fn a_repository_without_a_file_gives_its_only_gguf_or_asks() {
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
        error.report().contains("it holds no model"),
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

    // A folder that is not whole is not found, but completed.
    fs::remove_file(found.path.join("model-2.safetensors")).unwrap();
    assert_eq!(place.finder().find_local().unwrap(), None);
    assert_eq!(place.locate().unwrap().source, ModelSource::Hub);
    assert_eq!(
        fs::read(found.path.join("model-2.safetensors")).unwrap(),
        b"22"
    );
}

#[test]
fn a_download_that_breaks_off_is_resumed_where_it_ended() {
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

    // Too often for one run: the next one goes on.
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
fn a_file_whose_digest_is_not_the_hubs_is_refused_and_removed() {
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
fn the_default_model_comes_from_the_hub_where_the_hub_has_it() {
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
fn other_bytes_on_the_hub_are_not_the_default_model() {
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
fn a_hub_that_says_nothing_is_given_up() {
    let hub = TestHub::start(&[("owner/test/test.gguf", &content())]);
    hub.state.status.store(1, Ordering::SeqCst);
    let place = place_with(&hub, None);
    let (found, said) = place.locate_while(&|| false);
    assert_eq!(found.unwrap().source, ModelSource::Package);
    assert!(
        said.iter()
            .any(|line| line.contains("gives no answer for 0.5 s")),
        "{said:?}"
    );
}

#[test]
fn a_download_that_stands_still_is_given_up_and_an_interrupt_ends_it() {
    let hub = TestHub::start(&[("o/n/a.gguf", &content())]);
    hub.state.stalls.store(2, Ordering::SeqCst);
    let place = place_with(&hub, Some("o/n:a.gguf"));
    let error = place.locate().unwrap_err();
    assert!(
        error.report().contains("gives no answer"),
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
    // They keep a snapshot of a commit, and name no branch when they were asked for a commit.
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
    // Named by any part, or not at all: it is the only model there.
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

        // Its digest is that of its parts' digests.
        let lines = format!("{}\n{}\n", hash::sha256(b"one"), hash::sha256(b"two"));
        let digest = digest(&place.config, &found).unwrap();
        assert_eq!(digest, Some(hash::sha256(lines.as_bytes())));
        assert_eq!(place.locate().unwrap().sha256, digest);

        // Half of it is fetched again.
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
