//! Fixtures: which files are read, in which order, and the errors.

use std::os::unix::fs::symlink;

use super::{Project, template};

const STEP: &str = "[[step]]\nid = \"a\"\nprompt = \"{{ fixture.text }}\"\n";

/// A project whose only prompt is the fixture.
fn project(fixture: &str) -> Project {
    Project::empty().with(
        "templates/t.toml",
        template(&format!("fixture = {fixture}"), STEP),
    )
}

fn prompt(project: &Project) -> String {
    let flow = project.expand(1).flows.remove(0);
    super::generate(&flow, 0).prompt[0]
        .as_text()
        .expect("it is text")
        .to_owned()
}

#[test]
fn files_are_sorted_and_each_has_a_header() {
    let project = project("{ dir = \"code\" }")
        .with("fixtures/code/b.py", "b")
        .with("fixtures/code/a/z.py", "z\n")
        .with("fixtures/code/a-b.py", "{{ x }} ${y}\n\n")
        .with("fixtures/code/.hidden", "no")
        .with("fixtures/code/.git/config", "no")
        .with("fixtures/code/a/__pycache__/z.pyc", b"\xff")
        .with("fixtures/code/empty.txt", "");
    assert_eq!(
        prompt(&project),
        "===== FILE: a-b.py =====\n{{ x }} ${y}\n\n\
         ===== FILE: a/z.py =====\nz\n\
         ===== FILE: b.py =====\nb\n\
         ===== FILE: empty.txt =====\n"
    );
    let size = project.expand(1).fixture;
    assert_eq!((size.bytes, size.files), (17, 4));
}

#[test]
fn include_patterns_select_files() {
    let project = project("{ dir = \"code\", include = [\"*.md\", \"**/*.py\", \"a/**\"] }")
        .with("fixtures/code/a.md", "")
        .with("fixtures/code/b/b.md", "")
        .with("fixtures/code/c.py", "")
        .with("fixtures/code/b/d.py", "")
        .with("fixtures/code/a/b/c.txt", "")
        .with("fixtures/code/not-text.bin", b"\xff");
    let text = prompt(&project);
    let heads: Vec<&str> = text
        .lines()
        .map(|line| line.trim_matches(['=', ' ']))
        .collect();
    assert_eq!(
        heads,
        [
            "FILE: a.md",
            "FILE: a/b/c.txt",
            "FILE: b/d.py",
            "FILE: c.py"
        ]
    );
}

#[test]
fn symlinks_inside_the_folder_are_followed() {
    let project = project("{ dir = \"code\" }").with("fixtures/code/a.md", "a\n");
    symlink("a.md", project.path("fixtures/code/b.md")).expect("a link");
    assert_eq!(
        prompt(&project),
        "===== FILE: a.md =====\na\n===== FILE: b.md =====\na\n"
    );
    // The folder itself may be a symlink.
    symlink("code", project.path("fixtures/linked")).expect("a link");
    project.write(
        "templates/t.toml",
        template("fixture = { dir = \"linked\" }", STEP),
    );
    assert!(prompt(&project).contains("b.md"));
}

#[test]
fn templates_can_access_single_files_and_rows() {
    let step = |prompt: &str| format!("[[step]]\nid = \"a\"\nprompt = \"{prompt}\"\n");
    let project = Project::empty()
        .with("fixtures/code/a.md", "text of a")
        .with("fixtures/code/b.md", "b")
        .with(
            "fixtures/rows.jsonl",
            "{\"name\": \"ann\"}\n{\"name\": \"bob\"}\n",
        );
    let files =
        step("{% for file in fixture.files %}{{ file.path }}={{ file.bytes }} {% endfor %}");
    project.write(
        "templates/t.toml",
        template("fixture = { dir = \"code\" }", &files),
    );
    assert_eq!(prompt(&project), "a.md=9 b.md=1 ");
    let rows = step("{{ fixture.rows[flow.number].name }} of {{ fixture.rows | length }}");
    project.write(
        "templates/t.toml",
        template("fixture = { rows = \"rows.jsonl\" }", &rows),
    );
    assert_eq!(prompt(&project), "bob of 2");
    assert_eq!(project.expand(1).fixture.files, 1);
}

#[test]
fn errors_in_a_fixture() {
    let code = |fixture: &str| project(fixture).with("fixtures/code/a.md", "a");
    insta::assert_snapshot!(code("{ dir = \"cod\" }").failure(), @"
    exit code 2
    error: templates/t.toml:3:19: there is no fixture folder `cod` (searched: templates/, fixtures/, the shipped fixtures)
    hint: did you mean `code`? fixture folders: code, helpdesk
    ");
    insta::assert_snapshot!(code("{ dir = \"../code\" }").failure(), @"
    exit code 2
    error: templates/t.toml:3:19: the fixture `../code` leads out of its folder
    hint: put the folder beside the template or into fixtures/, and give its name
    ");
    insta::assert_snapshot!(code("{ dir = \"/etc\" }").failure(), @"
    exit code 2
    error: templates/t.toml:3:19: the fixture `/etc` leads out of its folder
    hint: put the folder beside the template or into fixtures/, and give its name
    ");
    insta::assert_snapshot!(code("{ rows = \"code.jsonl\" }").failure(), @"
    exit code 2
    error: templates/t.toml:3:20: there is no fixture file `code.jsonl` (searched: templates/, fixtures/, the shipped fixtures)
    hint: there are no fixture files
    ");
    insta::assert_snapshot!(code("{ dir = \"code\", rows = \"x.jsonl\" }").failure(), @r#"
    exit code 2
    error: templates/t.toml:3:11: a fixture is either a folder (`dir`, with `include`) or a file of rows (`rows`)
    hint: fixture = { dir = "helpdesk" } or fixture = { rows = "tickets.jsonl" }
    "#);
    insta::assert_snapshot!(code("{ rows = \"x.jsonl\", include = [\"*\"] }").failure(), @r#"
    exit code 2
    error: templates/t.toml:3:11: a fixture is either a folder (`dir`, with `include`) or a file of rows (`rows`)
    hint: fixture = { dir = "helpdesk" } or fixture = { rows = "tickets.jsonl" }
    "#);
    insta::assert_snapshot!(code("{}").failure(), @r#"
    exit code 2
    error: templates/t.toml:3:11: a fixture is either a folder (`dir`, with `include`) or a file of rows (`rows`)
    hint: fixture = { dir = "helpdesk" } or fixture = { rows = "tickets.jsonl" }
    "#);
    insta::assert_snapshot!(code("{ dir = \"code\", include = [] }").failure(), @r#"
    exit code 2
    error: templates/t.toml:3:37: `include` is empty
    hint: omit it to include all files, or list some: include = ["**/*.py"]
    "#);
    insta::assert_snapshot!(code("{ dir = \"code\", include = [\"*.md\", \"*.py\"] }").failure(), @"
    exit code 2
    error: templates/t.toml:3:46: `*.py` matches no file in fixtures/code/
    hint: `*` does not cross folders, `**/` does; hidden files and __pycache__ are ignored
    ");
    insta::assert_snapshot!(code("{ dir = \"code\", include = [\"a.{md\"] }").failure(), @r#"
    exit code 2
    error: templates/t.toml:3:38: bad glob `a.{md`: unclosed alternate group; missing '}' (maybe escape '{' with '[{]'?)
    hint: globs are relative to the fixture's folder, as in "**/*.py" or "docs/{a,b}.md"
    "#);
    insta::assert_snapshot!(code("{ dir = \"code\", include = [\"../*\"] }").failure(), @r#"
    exit code 2
    error: templates/t.toml:3:38: bad glob `../*`: it is outside of the fixture
    hint: globs are relative to the fixture's folder, as in "**/*.py" or "docs/{a,b}.md"
    "#);
    insta::assert_snapshot!(
        project("{ dir = \"code\" }").with("fixtures/code/.x", "").failure(), @"
    exit code 2
    error: templates/t.toml:3:19: the folder fixtures/code has no files
    hint: hidden files and __pycache__ are ignored
    "
    );
}

#[test]
fn errors_in_the_files_of_a_fixture() {
    let code = || project("{ dir = \"code\" }").with("fixtures/code/a.md", "a");
    insta::assert_snapshot!(code().with("fixtures/code/b.bin", b"abc\xc3\x28").failure(), @"
    exit code 2
    error: fixtures/code/b.bin: not UTF-8 at byte 3 (0xc3)
    hint: prompts are made of text: convert the file, or leave it out
    ");
    let linked = |target: &str| {
        let project = code()
            .with("fixtures/other.md", "o")
            .with("fixtures/code/sub/s.md", "s");
        symlink(target, project.path("fixtures/code/link")).expect("a link");
        project.failure()
    };
    insta::assert_snapshot!(linked("nowhere"), @"
    exit code 2
    error: fixtures/code/link: cannot be read
      caused by: No such file or directory (os error 2)
    hint: replace it by a file, or leave it out with `include`
    ");
    insta::assert_snapshot!(linked("../other.md"), @"
    exit code 2
    error: fixtures/code/link: a symlink to outside the fixture
    hint: replace it by a file, or leave it out with `include`
    ");
    insta::assert_snapshot!(linked("sub"), @"
    exit code 2
    error: fixtures/code/link: a symlink to something other than a file
    hint: replace it by a file, or leave it out with `include`
    ");
    let rows = |text: &str| {
        project("{ rows = \"r.jsonl\" }")
            .with("fixtures/r.jsonl", text)
            .failure()
    };
    insta::assert_snapshot!(rows("{}\nno\n"), @r#"
    exit code 2
    error: fixtures/r.jsonl:2:2: invalid JSON: expected ident
    hint: each line is one JSON object, such as {"id": "late-fees", "task": "…"}
    "#);
    insta::assert_snapshot!(rows("\n"), @"
    exit code 2
    error: fixtures/r.jsonl:1:1: the fixture has no rows
    hint: write one JSON object per line
    ");
}

#[test]
fn sockets_and_names_that_are_not_utf8_are_errors() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let project = project("{ dir = \"code\" }").with("fixtures/code/a.md", "a");
    let _socket = std::os::unix::net::UnixListener::bind(project.path("fixtures/code/s"));
    insta::assert_snapshot!(project.failure(), @"
    exit code 2
    error: fixtures/code/s: not a file
    hint: replace it by a file, or leave it out with `include`
    ");
    std::fs::remove_file(project.path("fixtures/code/s")).expect("the socket is removed");
    let name = project
        .path("fixtures/code")
        .join(OsStr::from_bytes(b"x\xff.md"));
    std::fs::write(name, "x").expect("a file is written");
    insta::assert_snapshot!(project.failure(), @"
    exit code 2
    error: fixtures/code/x�.md: its name is not UTF-8
    hint: rename the file: its path is part of the prompt
    ");
}
